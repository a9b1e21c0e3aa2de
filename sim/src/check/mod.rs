//! What must hold in every run: one invariant per file, fed with everything that happens.

mod banned;
mod culprits;
mod declared;
mod finished;
mod once;
mod verified;

use std::fmt;
use std::ops::Range;

use serde::Serialize;
use weighlock_protocol::Time;
use weighlock_protocol::wire::bao::GroupSet;

use crate::world::World;

/// Something that happened. Hosts and layers by number.
#[derive(Debug, Clone)]
pub enum Seen<'a> {
    /// `to` heard that `from` has these groups.
    Declared {
        /// Who heard.
        to: usize,
        /// Who has.
        from: usize,
        /// Of which layer.
        layer: usize,
        /// Which groups.
        have: &'a GroupSet,
    },
    /// `by` heard that `peer` is gone.
    Gone {
        /// Who heard.
        by: usize,
        /// Who is gone.
        peer: usize,
    },
    /// A host came back and knows only what is on its disk.
    Restarted {
        /// Which.
        host: usize,
    },
    /// `by` asked `from` for a range.
    Asked {
        /// Who asks.
        by: usize,
        /// Whom.
        from: usize,
        /// Of which layer.
        layer: usize,
        /// Groups.
        range: &'a Range<u64>,
        /// What the asking host has stored of the layer.
        stored: &'a GroupSet,
    },
    /// An answer came.
    Received {
        /// Who receives.
        by: usize,
        /// From whom.
        from: usize,
        /// Of which layer.
        layer: usize,
        /// Groups that the receiver took as proven and stored.
        stored: &'a Range<u64>,
        /// The group that the sender had spoiled.
        bad: Option<u64>,
    },
    /// `by` banned `peer`.
    Banned {
        /// Who bans.
        by: usize,
        /// Whom.
        peer: usize,
        /// Until when.
        until: Time,
    },
}

/// An invariant.
pub trait Check: fmt::Debug {
    /// What holds, in a few words.
    fn name(&self) -> &'static str;

    /// Looks at something that happened.
    ///
    /// # Errors
    /// One line that says what was violated and by whom.
    fn see(&mut self, now: Time, seen: &Seen<'_>) -> Result<(), String>;

    /// Looks at the world when the run is over.
    ///
    /// # Errors
    /// One line that says what was violated and by whom.
    fn end(&mut self, world: &World) -> Result<(), String> {
        let _ = world;
        Ok(())
    }
}

/// An invariant that did not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// Which invariant.
    pub check: &'static str,
    /// When, in nanoseconds of the run.
    pub at_ns: u64,
    /// What happened.
    pub what: String,
}

/// The invariants of every scenario.
pub fn always() -> Vec<Box<dyn Check>> {
    vec![
        Box::<verified::Verified>::default(),
        Box::<declared::DeclaredOnly>::default(),
        Box::<once::Once>::default(),
        Box::<culprits::Culprits>::default(),
        Box::<banned::Banned>::default(),
        Box::<finished::Finished>::default(),
    ]
}
