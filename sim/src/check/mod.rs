//! What must hold in every run: one invariant per file, fed with everything that happens.

mod banned;
mod complete;
mod culprits;
mod declared;
mod finished;
mod limits;
mod named;
mod once;
mod rates;
pub(crate) mod shares;
mod verified;

use std::fmt;
use std::ops::Range;

use serde::Serialize;
use weighlock_protocol::Time;
use weighlock_protocol::swarm::{Charge, Fault, SlotId};
use weighlock_protocol::wire::swarm::Frame;

use crate::options::Options;
use crate::world::World;

/// Runs with more hosts are not shown every frame: checkers that need it keep more than the hosts themselves.
const SHOWN_HOSTS_MAX: usize = 80;

/// Something that happened. Hosts, manifests and layers by number.
#[derive(Debug, Clone)]
pub enum Seen<'a> {
    /// A host is about to hear that it has a neighbour.
    LinkUp {
        /// Which host.
        by: u32,
        /// Its number of the link.
        link: u32,
        /// The other side.
        peer: u32,
        /// For which manifest.
        work: u32,
    },
    /// It heard, and did what it does about it.
    Linked {
        /// Which host.
        by: u32,
        /// For which manifest.
        work: u32,
    },
    /// A host closed its side of a link, or is about to hear that it ended.
    LinkDown {
        /// Which host.
        by: u32,
        /// Its number of the link.
        link: u32,
    },
    /// A host is about to hear a frame. Only in small runs.
    Frame {
        /// Which host.
        to: u32,
        /// Its number of the link.
        link: u32,
        /// The frame.
        frame: &'a Frame,
    },
    /// A host lost everything that is not on its disk.
    Crashed {
        /// Which.
        host: u32,
    },
    /// A host's disk lost something.
    Rotten {
        /// Which.
        host: u32,
    },
    /// `by` asks `from` for ranges. They are not yet among its downloads.
    Asked {
        /// Who asks.
        by: u32,
        /// Whom.
        from: u32,
        /// The fetch.
        slot: SlotId,
        /// For which manifest.
        work: u32,
        /// Layers with groups.
        parts: &'a [(u32, Range<u64>)],
    },
    /// An answer to one range came.
    Received {
        /// Who receives.
        by: u32,
        /// From whom.
        from: u32,
        /// Of which layer.
        layer: u32,
        /// Groups that the receiver takes as proven; about to be stored.
        stored: &'a Range<u64>,
        /// The group among those that came that the sender had spoiled.
        bad: Option<u64>,
        /// Why it is not the whole range.
        fault: Option<Fault>,
    },
    /// A fetch failed as a whole; its state machine is about to hear.
    Failed {
        /// Who fetched.
        by: u32,
        /// From whom.
        from: u32,
        /// Why.
        fault: Fault,
        /// It was past its deadline.
        late: bool,
        /// Payload bytes that had come.
        bytes: u64,
    },
    /// `by` banned `peer`.
    Banned {
        /// Who bans.
        by: u32,
        /// Whom.
        peer: u32,
        /// For what.
        charge: Charge,
        /// Until when, on the clock of the run.
        until: Time,
    },
    /// What a server has to do changed.
    Load {
        /// Which host.
        server: u32,
    },
    /// A host says that it has all of a manifest.
    SaysComplete {
        /// Which host.
        by: u32,
        /// Which manifest.
        work: u32,
    },
    /// A host says that it has all of a layer.
    SaysLayerComplete {
        /// Which host.
        by: u32,
        /// Which layer.
        layer: u32,
    },
}

/// An invariant.
pub trait Check: fmt::Debug {
    /// What holds, in a few words.
    fn name(&self) -> &'static str;

    /// True if it must be shown [`Seen::Frame`].
    fn wants_frames(&self) -> bool {
        false
    }

    /// Looks at something that happened.
    ///
    /// # Errors
    /// One line that says what was violated and by whom.
    fn see(&mut self, world: &World, seen: &Seen<'_>) -> Result<(), String>;

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

/// The invariants of every scenario. In a run of many hosts those that must see every frame are left out.
pub fn always(_: &Options, hosts: usize) -> Vec<Box<dyn Check>> {
    let mut checks: Vec<Box<dyn Check>> = vec![
        Box::<verified::Verified>::default(),
        Box::<once::Once>::default(),
        Box::<culprits::Culprits>::default(),
        Box::<named::Named>::default(),
        Box::<banned::Banned>::default(),
        Box::<limits::Limits>::default(),
        Box::<rates::Rates>::default(),
        Box::<complete::Complete>::default(),
        Box::<finished::Finished>::default(),
    ];
    if hosts <= SHOWN_HOSTS_MAX {
        checks.push(Box::<declared::DeclaredOnly>::default());
    }
    checks
}
