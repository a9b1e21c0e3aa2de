//! In the end all honest hosts hold the same statements with the same signatures, and nothing that one took in is lost.

use std::collections::{BTreeMap, BTreeSet};

use weighlock_protocol::StatementId;
use weighlock_protocol::statement::Status;

use super::{Check, Seen};
use crate::fold::world::FoldWorld;

/// What each host ever took in.
#[derive(Debug, Default)]
pub(super) struct SameSet {
    taken: BTreeMap<usize, BTreeSet<StatementId>>,
}

impl Check for SameSet {
    fn name(&self) -> &'static str {
        "same-set"
    }

    fn see(&mut self, world: &FoldWorld, seen: &Seen<'_>) -> Result<(), String> {
        match seen {
            Seen::Ingested { host, new } => self.taken.entry(*host).or_default().extend(*new),
            Seen::Restored { host } => {
                let left = &world.hosts()[*host].store;
                self.taken.entry(*host).or_default().retain(|id| left.contains_key(id));
            }
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, world: &FoldWorld) -> Result<(), String> {
        let circle = world.circle();
        let all = world.union(&circle);
        for n in &circle {
            let ledger = &world.hosts()[*n].ledger;
            for id in self.taken.get(n).into_iter().flatten() {
                let counts = all.status(id) == Some(Status::Effective);
                // A flooded host may have had no room for what does not count.
                let must = counts || !world.options().flood;
                if let Some(other) = circle.iter().find(|o| must && !world.hosts()[**o].ledger.contains(id)) {
                    return Err(format!("host {n} took in {}, host {other} has not got it", id.short()));
                }
            }
            if !world.options().flood && ledger.summary() != all.summary() {
                let theirs: BTreeSet<StatementId> = all.statements().collect();
                let lacks = theirs.into_iter().find(|id| !ledger.contains(id));
                return Err(format!("host {n} holds another set; it lacks {lacks:?}, or signatures"));
            }
        }
        Ok(())
    }
}
