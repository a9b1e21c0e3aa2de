//! Whoever is banned is not asked before the ban ends. A ban lives as long as the host that spoke it is up.

use std::collections::BTreeMap;

use weighlock_protocol::Time;

use super::{Check, Seen};
use crate::world::World;

#[derive(Debug, Default)]
pub(super) struct Banned {
    until: BTreeMap<(u32, u32), Time>,
}

impl Check for Banned {
    fn name(&self) -> &'static str {
        "the banned are not asked"
    }

    fn see(&mut self, world: &World, seen: &Seen<'_>) -> Result<(), String> {
        match seen {
            Seen::Banned { by, peer, until, .. } => {
                self.until.insert((*by, *peer), *until);
            }
            Seen::Crashed { host } => self.until.retain(|(by, _), _| by != host),
            // A clock that drifts may round the end of a ban by a moment.
            Seen::Asked { by, from, .. }
                if self.until.get(&(*by, *from)).is_some_and(|until| world.now().0 + 1_000 < until.0) =>
            {
                return Err(format!("host {by} asked {from} during its ban"));
            }
            _ => {}
        }
        Ok(())
    }
}
