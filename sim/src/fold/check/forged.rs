//! What nobody signed is nowhere: no forged statement and no forged signature in any ledger or store.

use std::collections::BTreeSet;

use weighlock_protocol::{KeyId, StatementId};

use super::{Check, Seen};
use crate::fold::world::FoldWorld;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Forged;

impl Check for Forged {
    fn name(&self) -> &'static str {
        "forged"
    }

    fn see(&mut self, world: &FoldWorld, seen: &Seen<'_>) -> Result<(), String> {
        match seen {
            Seen::Ingested { host, new } => new.iter().try_for_each(|id| real(world, *host, id)),
            _ => Ok(()),
        }
    }

    fn end(&mut self, world: &FoldWorld) -> Result<(), String> {
        for (n, host) in world.hosts().iter().enumerate() {
            for id in host.ledger.statements().chain(host.store.keys().copied()) {
                real(world, n, &id)?;
            }
        }
        Ok(())
    }
}

fn real(world: &FoldWorld, host: usize, id: &StatementId) -> Result<(), String> {
    let truth = world.truth();
    if truth.forged.contains(id) || !truth.signed.contains_key(id) {
        return Err(format!("host {host} has {}, which nobody said", id.short()));
    }
    let signers: BTreeSet<KeyId> =
        world.hosts()[host].store.get(id).into_iter().flat_map(|e| e.signatures()).map(|s| s.key).collect();
    match truth.signers.get(id) {
        Some(real) if signers.is_subset(real) => Ok(()),
        _ => Err(format!("host {host} has a signature of {} that nobody made", id.short())),
    }
}
