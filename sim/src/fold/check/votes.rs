//! A witness signs one promotion in one place, whatever happens to it: unless it lost its disk, or others have its key.

use super::{Check, Seen};
use crate::fold::world::FoldWorld;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Votes;

impl Check for Votes {
    fn name(&self) -> &'static str {
        "votes"
    }

    fn see(&mut self, world: &FoldWorld, seen: &Seen<'_>) -> Result<(), String> {
        let Seen::Ingested { .. } = seen else { return Ok(()) };
        let twice = world
            .truth()
            .votes
            .iter()
            .find(|((witness, _), promotions)| promotions.len() > 1 && !world.is_forgetful(witness));
        match twice {
            Some(((witness, (channel, ..)), promotions)) => {
                Err(format!("{witness} signed {} promotions in one place of {channel}", promotions.len()))
            }
            None => Ok(()),
        }
    }
}
