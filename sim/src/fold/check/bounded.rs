//! Strangers' statements take no more room than a ledger is configured to give them.

use std::collections::BTreeMap;

use weighlock_protocol::KeyId;
use weighlock_protocol::statement::Status;

use super::{Check, Seen};
use crate::fold::world::FoldWorld;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Bounded;

impl Check for Bounded {
    fn name(&self) -> &'static str {
        "bounded"
    }

    fn see(&mut self, world: &FoldWorld, seen: &Seen<'_>) -> Result<(), String> {
        let (Seen::Ingested { host, .. } | Seen::Restarted { host }) = seen else { return Ok(()) };
        let ledger = &world.hosts()[*host].ledger;
        if ledger.len() <= world.options().idle_per_author_max {
            return Ok(());
        }
        // Whoever was named or admitted may have had effect with what is idle now, and admins' chains are always let
        // in: those are bounded by the admins. Strangers are not bounded by anything else.
        let mut idle: BTreeMap<KeyId, usize> = BTreeMap::new();
        for id in ledger.statements() {
            let by = ledger.statement(&id).map(|s| s.by);
            let stranger = |by: &KeyId| !world.truth().is_entitled(by) && !world.truth().may_admit(by);
            if let Some(by) = by.filter(stranger)
                && ledger.status(&id) != Some(Status::Effective)
            {
                *idle.entry(by).or_default() += 1;
            }
        }
        let (all, most) = (idle.values().sum::<usize>(), idle.values().max().copied().unwrap_or(0));
        let (all_max, most_max) = (world.options().idle_max, world.options().idle_per_author_max);
        if all > all_max || most > most_max {
            return Err(format!(
                "host {host} holds {all} idle statements of strangers (at most {all_max}), {most} of one (at most {most_max})"
            ));
        }
        Ok(())
    }
}
