//! No honest host is ever caught sending rubbish: what one host takes in and passes on, every host takes.

use super::{Check, Seen};
use crate::fold::world::FoldWorld;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Accused;

impl Check for Accused {
    fn name(&self) -> &'static str {
        "accused"
    }

    fn see(&mut self, world: &FoldWorld, seen: &Seen<'_>) -> Result<(), String> {
        match seen {
            Seen::Accused { by, of, reason } if world.hosts()[*by].honest && world.hosts()[*of].honest => {
                Err(format!("host {by} took honest host {of} for a liar: {reason}"))
            }
            _ => Ok(()),
        }
    }
}
