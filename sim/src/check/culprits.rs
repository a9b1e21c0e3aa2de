//! Only culprits are banned, each for what it does.

use weighlock_protocol::swarm::Charge;

use super::{Check, Seen};
use crate::cast::Role;
use crate::world::World;

#[derive(Debug, Default)]
pub(super) struct Culprits;

impl Check for Culprits {
    fn name(&self) -> &'static str {
        "only culprits are banned"
    }

    fn see(&mut self, world: &World, seen: &Seen<'_>) -> Result<(), String> {
        let Seen::Banned { by, peer, charge, .. } = seen else {
            return Ok(());
        };
        let role = world.hosts()[*peer as usize].player.role;
        let fits = match charge {
            Charge::WrongBytes(_) => role == Role::Liar,
            // Who sits on its uploads for ever refuses what comes after.
            Charge::FalseDeclarations => matches!(role, Role::FalseAnnouncer | Role::Mute),
            Charge::NeverServes => role == Role::Mute,
            Charge::Flood => matches!(role, Role::Flooder | Role::Greedy),
            // Who floods also declines and asks for what was never granted.
            Charge::Protocol => matches!(role, Role::Garbler | Role::Flooder | Role::Greedy),
        };
        if fits { Ok(()) } else { Err(format!("host {by} banned {peer}, which is a {role:?}: {charge:?}")) }
    }
}
