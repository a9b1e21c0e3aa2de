//! At no time does a tag mean a digest that nobody entitled has published under it.

use weighlock_protocol::statement::Resolution;

use super::{Check, Seen};
use crate::fold::world::FoldWorld;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Named;

impl Check for Named {
    fn name(&self) -> &'static str {
        "named"
    }

    fn see(&mut self, world: &FoldWorld, seen: &Seen<'_>) -> Result<(), String> {
        let (Seen::Ingested { host, .. } | Seen::Restarted { host }) = seen else { return Ok(()) };
        let ledger = &world.hosts()[*host].ledger;
        for artifact in ledger.artifacts() {
            for (tag, meaning) in ledger.tags(artifact) {
                let digests: Vec<_> = match &meaning {
                    Resolution::Resolved(digest) | Resolution::Unproven(digest) => vec![*digest],
                    Resolution::Conflict { digests } => digests.keys().copied().collect(),
                    Resolution::Unknown => Vec::new(),
                };
                if digests.is_empty() || (digests.len() > 1) != matches!(meaning, Resolution::Conflict { .. })
                {
                    return Err(format!("host {host} lists {artifact}:{tag} as {meaning:?}"));
                }
                if let Some(digest) = digests.iter().find(|d| !world.truth().was_named(artifact, tag, d)) {
                    return Err(format!("host {host} takes {artifact}:{tag} for {digest}"));
                }
            }
        }
        Ok(())
    }
}
