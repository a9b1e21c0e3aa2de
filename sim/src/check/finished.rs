//! Once the faults are over, everyone who fetches finishes.

use weighlock_protocol::Time;

use super::{Check, Seen};
use crate::world::World;

#[derive(Debug, Default)]
pub(super) struct Finished;

impl Check for Finished {
    fn name(&self) -> &'static str {
        "everyone finishes"
    }

    fn see(&mut self, _: Time, _: &Seen<'_>) -> Result<(), String> {
        Ok(())
    }

    fn end(&mut self, world: &World) -> Result<(), String> {
        let late: Vec<usize> = world.unfinished().collect();
        match late.first() {
            None => Ok(()),
            Some(first) => Err(format!(
                "{} hosts did not finish by {:.3} s, the first is host {first}, which lacks {} bytes",
                late.len(),
                world.now().0 as f64 / 1e9,
                world.missing_bytes(*first),
            )),
        }
    }
}
