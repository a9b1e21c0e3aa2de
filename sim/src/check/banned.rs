//! Whoever is banned is not asked before the ban ends. A ban lives as long as the host that spoke it is up.

use std::collections::BTreeMap;

use weighlock_protocol::Time;

use super::{Check, Seen};

#[derive(Debug, Default)]
pub(super) struct Banned {
    until: BTreeMap<(usize, usize), Time>,
}

impl Check for Banned {
    fn name(&self) -> &'static str {
        "the banned are not asked"
    }

    fn see(&mut self, now: Time, seen: &Seen<'_>) -> Result<(), String> {
        match seen {
            Seen::Banned { by, peer, until } => {
                self.until.insert((*by, *peer), *until);
            }
            Seen::Restarted { host } => self.until.retain(|(by, _), _| by != host),
            Seen::Asked { by, from, .. }
                if self.until.get(&(*by, *from)).is_some_and(|until| now < *until) =>
            {
                return Err(format!("host {by} asked {from} during its ban"));
            }
            _ => {}
        }
        Ok(())
    }
}
