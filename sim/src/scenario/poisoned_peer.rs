//! A flash crowd in which some hosts offer everything and serve wrong bytes: they are named, everyone else finishes.

use std::collections::BTreeSet;

use weighlock_protocol::Time;

use crate::check::{Check, Seen};
use crate::host::Role;
use crate::options::Options;
use crate::world::World;

pub(super) fn apply(options: &mut Options) {
    options.liars = options.liars.max(1);
}

pub(super) fn cast(options: &Options) -> Vec<Role> {
    let fetchers = std::iter::repeat_n(Role::Fetcher, options.hosts);
    let liars = std::iter::repeat_n(Role::Liar, options.liars);
    std::iter::once(Role::Seed).chain(fetchers).chain(liars).collect()
}

pub(super) fn checks() -> Vec<Box<dyn Check>> {
    vec![Box::<Named>::default()]
}

/// Whoever was sent wrong bytes names the sender.
#[derive(Debug, Default)]
struct Named {
    cheated: BTreeSet<(usize, usize)>,
    banned: BTreeSet<(usize, usize)>,
}

impl Check for Named {
    fn name(&self) -> &'static str {
        "liars are named"
    }

    fn see(&mut self, _: Time, seen: &Seen<'_>) -> Result<(), String> {
        match *seen {
            Seen::Received { by, from, bad: Some(_), .. } => {
                self.cheated.insert((by, from));
            }
            Seen::Banned { by, peer, .. } => {
                self.banned.insert((by, peer));
            }
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, _: &World) -> Result<(), String> {
        match self.cheated.difference(&self.banned).next() {
            Some((by, from)) => Err(format!("host {by} got wrong bytes from {from} and did not ban it")),
            None => Ok(()),
        }
    }
}
