//! A minority never promotes: no promotion is a head without most witnesses, and none of them votes across a partition.

use std::collections::BTreeSet;

use weighlock_protocol::statement::{Kind, Ledger, Role, Root, Statement};
use weighlock_protocol::{KeyId, StatementId};

use super::moves::{effective, may_move, promotion};
use super::{Check, Seen};
use crate::fold::world::FoldWorld;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Quorum {
    heads: BTreeSet<StatementId>,
}

impl Check for Quorum {
    fn name(&self) -> &'static str {
        "quorum"
    }

    fn see(&mut self, world: &FoldWorld, seen: &Seen<'_>) -> Result<(), String> {
        let host = match seen {
            Seen::Ingested { host, new } if may_move(world, new) => *host,
            Seen::Restarted { host } => *host,
            _ => return Ok(()),
        };
        if world.options().witnesses == 0 {
            return Ok(());
        }
        let ledger = &world.hosts()[host].ledger;
        let side: BTreeSet<KeyId> = world.side_of(host).map(|n| world.hosts()[n].id()).collect();
        for id in effective(world, host)?.values() {
            let Some(p) = promotion(ledger, id) else { continue };
            let witnesses = witnesses(ledger, p.said.root);
            let most = |of: usize| of > witnesses.len() / 2;
            let signed = world.truth().cosigners.get(id).map_or(0, |of| of.intersection(&witnesses).count());
            if !most(signed) {
                return Err(format!(
                    "{} is a head on host {host} with {signed} of {} witnesses",
                    id.short(),
                    witnesses.len()
                ));
            }
            // A stolen key votes on every side.
            let new = world.truth().moves.get(id) == Some(&world.truth().spell);
            if new && !world.is_whole() && !world.options().stolen {
                let here = side.intersection(&witnesses).count();
                if !most(here) {
                    return Err(format!(
                        "{} is a head on host {host}, where {here} of {} witnesses are",
                        id.short(),
                        witnesses.len()
                    ));
                }
            }
            self.heads.insert(*id);
        }
        Ok(())
    }

    fn heads(&self) -> u64 {
        self.heads.len() as u64
    }
}

/// Who may cosign under a root that this host counts.
pub(super) fn witnesses(ledger: &Ledger, version: u32) -> BTreeSet<KeyId> {
    root(ledger, version)
        .and_then(|root| root.roles.get(&Role::Witness).map(|role| role.keys.clone()))
        .unwrap_or_default()
}

/// A root that this host counts, from its envelope.
pub(super) fn root(ledger: &Ledger, version: u32) -> Option<Root> {
    ledger.root_chain().find_map(|envelope| match Statement::parse(envelope.payload()).ok()?.kind {
        Kind::Root(root) if root.version == version => Some(root),
        _ => None,
    })
}
