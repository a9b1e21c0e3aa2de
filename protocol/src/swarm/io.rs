//! What goes into a scheduler and what comes out: the seam between decisions and the driver that acts on them.

use std::fmt;
use std::ops::Range;

use crate::id::{KeyId, LayerId};
use crate::time::Time;
use crate::wire::bao::GroupSet;

/// Names one fetch in flight. Never used twice by one scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(pub u64);

impl fmt::Display for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slot {}", self.0)
    }
}

/// What the driver tells a scheduler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A peer says which groups of a layer it can serve, in addition to what it said before. An empty set
    /// says that it wants the layer too.
    Declared {
        /// Who.
        peer: KeyId,
        /// Of which layer.
        layer: LayerId,
        /// Its groups; those beyond the layer's end are ignored.
        have: GroupSet,
        /// Connections open to the peer, at least one.
        connections: u32,
    },
    /// The peer cannot be reached any more. What it declared is forgotten; what is in flight from it is
    /// answered as [`Fault::Lost`] by the driver.
    PeerGone {
        /// Who.
        peer: KeyId,
    },
    /// The whole range of a fetch is proven and written. Each fetch is answered exactly once, by this or by
    /// [`Input::Failed`], also after [`Action::Cancel`].
    Stored {
        /// Which fetch.
        slot: SlotId,
        /// Payload bytes that came over the wire for it.
        bytes: u64,
    },
    /// A fetch ended before its whole range was stored.
    Failed {
        /// Which fetch.
        slot: SlotId,
        /// Why.
        fault: Fault,
        /// Groups of its range that were proven and written all the same.
        stored: GroupSet,
    },
    /// Nothing happened but time.
    Tick,
}

/// Why a fetch ended early.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Bytes failed their proof: the peer is banned.
    Verify,
    /// The peer refused or did not have it: what it declared of this layer is forgotten until it declares again.
    Miss,
    /// Too slow.
    Timeout,
    /// The connection or the stream broke.
    Lost,
    /// The driver ended it because it was told to.
    Cancelled,
    /// Our own disk failed: everything stops.
    Local,
}

/// What a scheduler wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Ask `from` for a range, prove it, write it, and answer by [`Input::Stored`] or [`Input::Failed`].
    Fetch {
        /// Names this fetch.
        slot: SlotId,
        /// Whom to ask; it declared the whole range.
        from: KeyId,
        /// Of which layer.
        layer: LayerId,
        /// Groups of 16 KiB; never empty.
        range: Range<u64>,
        /// When the scheduler will cancel it.
        deadline: Time,
    },
    /// Stop a fetch and answer with what of it was stored.
    Cancel {
        /// Which fetch.
        slot: SlotId,
    },
    /// This peer sent bytes that failed their proof. Nothing is asked of it before `until`.
    Ban {
        /// The culprit.
        peer: KeyId,
        /// What it lied about.
        layer: LayerId,
        /// When the ban ends.
        until: Time,
    },
}

/// What a scheduler has to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Every group of the layer is stored. Said once, and only of layers that lacked something at the start.
    LayerComplete(LayerId),
    /// Every layer is complete. The last event.
    Done,
    /// Nothing is in flight and no peer that is not banned holds anything that is missing. Goes on when one
    /// declares, or when a ban ends.
    Stalled {
        /// Bytes still missing.
        missing_bytes: u64,
    },
    /// The local disk failed. What is in flight is cancelled and nothing more is asked for.
    Stopped {
        /// Bytes still missing.
        missing_bytes: u64,
    },
}

/// One answer of `poll`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Poll {
    /// Do this.
    Action(Action),
    /// Know this.
    Event(Event),
    /// Nothing more for now.
    Idle {
        /// When to call `handle` with [`Input::Tick`] if nothing else happens before.
        wake: Option<Time>,
    },
}
