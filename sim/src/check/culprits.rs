//! Only those who sent wrong bytes are banned.

use std::collections::BTreeSet;

use weighlock_protocol::Time;

use super::{Check, Seen};

#[derive(Debug, Default)]
pub(super) struct Culprits {
    guilty: BTreeSet<usize>,
}

impl Check for Culprits {
    fn name(&self) -> &'static str {
        "only culprits are banned"
    }

    fn see(&mut self, _: Time, seen: &Seen<'_>) -> Result<(), String> {
        match seen {
            Seen::Received { from, bad: Some(_), .. } => {
                self.guilty.insert(*from);
                Ok(())
            }
            Seen::Banned { by, peer, .. } if !self.guilty.contains(peer) => {
                Err(format!("host {by} banned {peer}, which never sent wrong bytes"))
            }
            _ => Ok(()),
        }
    }
}
