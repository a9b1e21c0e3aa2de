//! Whoever put two bodies at one place is reported by every host that has both, with both as the proof.

use weighlock_protocol::statement::{Alarm, Signed};

use super::Check;
use crate::fold::host::EPOCH;
use crate::fold::world::FoldWorld;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Proven;

impl Check for Proven {
    fn name(&self) -> &'static str {
        "proven"
    }

    fn end(&mut self, world: &FoldWorld) -> Result<(), String> {
        for n in world.circle() {
            let host = &world.hosts()[n];
            let alarms = host.ledger.alarms(EPOCH);
            for (author, seq) in &world.truth().equivocations {
                let at = |id: &&_| {
                    let said = host.ledger.statement(id);
                    said.is_some_and(|s| s.by == *author && s.chain.is_some_and(|c| c.seq == *seq))
                };
                let here: Vec<_> = host.ledger.statements().filter(|id| at(&id)).collect();
                if here.len() < 2 {
                    continue;
                }
                // Of several places the lowest is what counts and is told.
                let proof = alarms.iter().find_map(|alarm| match alarm {
                    Alarm::Equivocation { key, seq: told, statements } if key == author && told <= seq => {
                        Some((*told, statements))
                    }
                    _ => None,
                });
                let Some((told, statements)) = proof else {
                    return Err(format!(
                        "host {n} has two bodies of {author} at place {seq} and does not say so"
                    ));
                };
                let valid = statements.iter().all(|id| {
                    let signed = host.store.get(id).and_then(|e| Signed::parse(e.clone()).ok());
                    let signed = signed.and_then(|s| s.verify().ok());
                    signed.is_some_and(|s| {
                        s.id() == *id
                            && s.body().by == *author
                            && s.body().chain.is_some_and(|c| c.seq == told)
                    })
                });
                if statements.len() < 2 || !valid {
                    return Err(format!("host {n} cannot prove that {author} spoke twice at place {told}"));
                }
            }
        }
        Ok(())
    }
}
