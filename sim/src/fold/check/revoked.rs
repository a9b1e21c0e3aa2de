//! Whoever a host has heard is revoked is no member there again, unless an admin admitted it afterwards.

use std::collections::BTreeMap;

use weighlock_protocol::statement::{Kind, Ledger, Status, Target};
use weighlock_protocol::{KeyId, StatementId};

use super::{Check, Seen};
use crate::fold::host::EPOCH;
use crate::fold::world::FoldWorld;

/// What a host has heard: revocations by host, with the key that each is aimed at and the root that was in force.
#[derive(Debug, Default)]
pub(super) struct Revoked {
    heard: BTreeMap<(usize, StatementId), (KeyId, Option<StatementId>)>,
}

impl Check for Revoked {
    fn name(&self) -> &'static str {
        "revoked"
    }

    fn see(&mut self, world: &FoldWorld, seen: &Seen<'_>) -> Result<(), String> {
        if let Seen::Restored { host } = seen {
            self.heard.retain(|(of, _), _| of != host);
        }
        let (Seen::Ingested { host, .. } | Seen::Restarted { host }) = seen else { return Ok(()) };
        let ledger = &world.hosts()[*host].ledger;
        let root = ledger.root(EPOCH).map(|r| r.id);
        for revocation in ledger.revocations() {
            if let Target::Key { key, .. } = revocation.revoke.target {
                self.heard.entry((*host, revocation.id)).or_insert((key, root));
            }
        }
        let mut undone = Vec::new();
        for (at, (key, before)) in
            self.heard.range((*host, StatementId([0; 32]))..=(*host, StatementId([255; 32])))
        {
            let id = at.1;
            if ledger.status(&id) != Some(Status::Effective) {
                // A rotation may leave it unsettled, and a fork of rotations takes back whom they named. Nothing else
                // undoes it.
                if root == *before {
                    return Err(format!(
                        "host {host} no longer counts the revocation {} of {key}",
                        id.short()
                    ));
                }
                undone.push(*at);
                continue;
            }
            if ledger.is_member(key, EPOCH) && !is_admitted_after(ledger, key, &id) {
                return Err(format!(
                    "host {host} counts {key} as a member after its revocation {}",
                    id.short()
                ));
            }
        }
        undone.iter().for_each(|at| {
            self.heard.remove(at);
        });
        Ok(())
    }
}

/// Whether an effective admission by an admin follows the revocation: in the same author's chain, or by a later date
/// of another.
fn is_admitted_after(ledger: &Ledger, key: &KeyId, revocation: &StatementId) -> bool {
    let Some(revoked) = ledger.statement(revocation) else { return false };
    let Some(place) = revoked.chain else { return false };
    ledger.statements().any(|id| {
        let Some(s) = ledger.statement(&id) else { return false };
        let admits = matches!(&s.kind, Kind::Admit(a) if a.host == *key && a.invite.is_none());
        let after = match s.chain {
            Some(chain) if s.by == revoked.by => chain.seq > place.seq,
            Some(_) => s.time > revoked.time,
            None => false,
        };
        admits && after && ledger.status(&id) == Some(Status::Effective)
    })
}
