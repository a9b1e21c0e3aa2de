//! Whoever is harmed names the culprit: who got wrong bytes bans the sender at once, who was told of bytes that are not
//! there, or promised bytes that do not come, bans after so many times in a row.

use std::collections::{BTreeMap, BTreeSet};

use weighlock_protocol::swarm::Fault;

use super::{Check, Seen};
use crate::cast::Role;
use crate::world::World;

/// How often a host was wronged in a row by another.
#[derive(Debug, Default)]
pub(super) struct Named {
    wronged: BTreeMap<(u32, u32), u32>,
    cheated: BTreeSet<(u32, u32)>,
}

impl Check for Named {
    fn name(&self) -> &'static str {
        "culprits are named"
    }

    fn see(&mut self, world: &World, seen: &Seen<'_>) -> Result<(), String> {
        match *seen {
            Seen::Failed { by, from, fault: Fault::Verify, .. } => {
                self.cheated.insert((by, from));
            }
            Seen::Failed { by, from, fault, late, bytes } => {
                let wronged = match world.hosts()[from as usize].player.role {
                    Role::FalseAnnouncer => fault == Fault::Miss,
                    Role::Mute => fault == Fault::Cancelled && late && bytes == 0,
                    _ => false,
                };
                if wronged {
                    *self.wronged.entry((by, from)).or_default() += 1;
                }
            }
            Seen::Banned { by, peer, .. } => {
                self.cheated.remove(&(by, peer));
                self.wronged.remove(&(by, peer));
            }
            Seen::Crashed { host } => {
                self.cheated.retain(|(by, _)| *by != host);
                self.wronged.retain(|(by, _), _| *by != host);
            }
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, world: &World) -> Result<(), String> {
        if let Some((by, from)) = self.cheated.first() {
            return Err(format!("host {by} got wrong bytes from {from} and did not ban it"));
        }
        // Several may be under way when the last straw falls.
        let config = world.options().config();
        let max = config.strikes_max + u32::try_from(config.downloads_max).unwrap_or(u32::MAX);
        match self.wronged.iter().find(|(_, times)| **times > max) {
            Some(((by, from), times)) => {
                Err(format!("host {by} was wronged {times} times by {from} and did not ban it"))
            }
            None => Ok(()),
        }
    }
}
