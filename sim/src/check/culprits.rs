//! Only culprits are banned, and only liars for wrong bytes.

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
        let role = |host: u32| world.hosts()[host as usize].player.role;
        let honest = |role: Role| matches!(role, Role::Seed | Role::Fetcher);
        // What hostile hosts think of others is their own affair, and they are culprits whatever the charge.
        let unjust = match charge {
            Charge::WrongBytes(_) => role(*peer) != Role::Liar,
            _ => honest(role(*peer)),
        };
        if honest(role(*by)) && unjust {
            return Err(format!("host {by} banned {peer}, which is a {:?}: {charge:?}", role(*peer)));
        }
        Ok(())
    }
}
