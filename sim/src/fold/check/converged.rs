//! Once faults are over, a bounded number of rounds of reconciliation makes all equal.

use super::Check;
use crate::fold::world::FoldWorld;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Converged;

impl Check for Converged {
    fn name(&self) -> &'static str {
        "converged"
    }

    fn end(&mut self, world: &FoldWorld) -> Result<(), String> {
        match world.rounds() {
            Some(_) => Ok(()),
            None => Err(format!("not equal after {} rounds", world.options().rounds_max())),
        }
    }
}
