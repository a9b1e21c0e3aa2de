//! In the end all honest hosts give the same answers, byte for byte: members, roots, tags, proofs, whatever there is.

use super::Check;
use crate::fold::canon::{SECTIONS, section};
use crate::fold::host::EPOCH;
use crate::fold::world::FoldWorld;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct SameFold;

impl Check for SameFold {
    fn name(&self) -> &'static str {
        "same-fold"
    }

    fn end(&mut self, world: &FoldWorld) -> Result<(), String> {
        let circle = world.circle();
        let all = world.union(&circle);
        for one in SECTIONS.iter().filter(|s| !s.idle || !world.options().flood) {
            // What everything together gives is what each must give.
            let expected = section(one, &all, EPOCH);
            for n in &circle {
                let answers = section(one, &world.hosts()[*n].ledger, EPOCH);
                if answers != expected {
                    let differ = answers.lines().zip(expected.lines()).find(|(a, b)| a != b);
                    return Err(format!("host {n} differs in {}: {differ:?}", one.name));
                }
            }
        }
        Ok(())
    }
}
