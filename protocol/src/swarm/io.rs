//! What goes into the swarm and what comes out: the seam between decisions and the driver that acts on them.

use std::fmt;
use std::ops::Range;

use crate::id::{KeyId, LayerId};
use crate::time::Time;
use crate::wire::bao::GroupSet;
use crate::wire::swarm::Frame;

/// Number of a piece in loading order.
pub type PieceNo = u32;

/// Names one manifest that this host takes part in. Chosen by the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkId(pub u32);

/// Names one neighbour of one manifest: a stream of frames. Chosen by the driver, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u32);

/// Names one fetch in flight. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(pub u64);

/// Names one request that a peer made of this host. Chosen by the driver, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Names a rack: hosts behind one shared uplink. Equal labels give equal ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct RackId(pub u64);

impl fmt::Display for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slot {}", self.0)
    }
}

/// A layer of a manifest, in loading order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerWant {
    /// Which layer.
    pub layer: LayerId,
    /// Its length in bytes.
    pub size: u64,
    /// Its groups that are not stored yet.
    pub missing: GroupSet,
}

/// A host that is known to take part in a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Which host.
    pub peer: KeyId,
    /// Its rack, where known.
    pub rack: Option<RackId>,
    /// It says that it holds all of it.
    pub complete: bool,
}

/// What the driver tells the swarm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Take part in a manifest: fetch what is missing, serve what is there. Nothing missing makes a seed.
    Open {
        /// Its name from now on.
        work: WorkId,
        /// All its layers in loading order. A layer that is named twice counts once.
        layers: Vec<LayerWant>,
    },
    /// Take part no more. Its fetches are cancelled, its links closed by the driver without [`Input::LinkDown`].
    Close {
        /// Which.
        work: WorkId,
    },
    /// All hosts that take part as far as is known, this one left out. Replaces what was said before.
    Candidates {
        /// In which manifest.
        work: WorkId,
        /// Who.
        hosts: Vec<Candidate>,
    },
    /// A stream to a neighbour is open, asked for by [`Action::Connect`] or by the neighbour. Answered by
    /// [`Action::Disconnect`] where there are too many.
    LinkUp {
        /// Its name from now on.
        link: LinkId,
        /// For which manifest.
        work: WorkId,
        /// To whom.
        peer: KeyId,
        /// In which rack it is, where known.
        rack: Option<RackId>,
        /// This host opened it. When two hosts open one to each other at once, that of the smaller key stays.
        ours: bool,
    },
    /// The stream ended. What is in flight from the peer is answered by the driver as ever.
    LinkDown {
        /// Which.
        link: LinkId,
    },
    /// A connect that [`Action::Connect`] asked for did not work.
    ConnectFailed {
        /// For which manifest.
        work: WorkId,
        /// To whom.
        peer: KeyId,
    },
    /// A frame from a neighbour.
    Frame {
        /// On which link.
        link: LinkId,
        /// What it says.
        frame: Frame,
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
        /// What of its parts was proven and written all the same.
        stored: Vec<(LayerId, GroupSet)>,
    },
    /// Groups of a layer came another way: an import, local tensors.
    Grown {
        /// Which layer.
        layer: LayerId,
        /// What is there now; may name what was known.
        groups: GroupSet,
    },
    /// Groups of a layer are gone, found rotten or removed.
    Shrunk {
        /// Which layer.
        layer: LayerId,
        /// What is gone.
        groups: GroupSet,
    },
    /// A loader waits for these groups: they go first. Replaces what was urgent of the manifest.
    Urgent {
        /// Of which manifest.
        work: WorkId,
        /// By layer.
        groups: Vec<(LayerId, GroupSet)>,
    },
    /// A peer asks for groups of a layer. Answered by [`Action::Serve`], at once or later, or by [`Action::Refuse`].
    Asked {
        /// Its name from now on.
        request: RequestId,
        /// Who asks.
        peer: KeyId,
        /// Of which layer.
        layer: LayerId,
        /// Groups; the bounds are checked.
        range: Range<u64>,
    },
    /// A request that was served, or waited, has ended.
    Served {
        /// Which.
        request: RequestId,
        /// Payload bytes that were sent.
        bytes: u64,
        /// The peer has all of it.
        complete: bool,
    },
    /// The disk has room again after [`Fault::NoSpace`].
    Room,
    /// Nothing happened but time.
    Tick,
}

/// Why a fetch ended early.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Bytes failed their proof: the peer is banned.
    Verify,
    /// The peer refused or did not have it: what it declared of this piece is forgotten.
    Miss,
    /// Its layer of that id has another size than the manifest says: what it declared of this piece is forgotten.
    Size,
    /// Too slow.
    Timeout,
    /// The connection or the stream broke.
    Lost,
    /// The driver ended it because it was told to.
    Cancelled,
    /// Our own disk is full: everything pauses until [`Input::Room`].
    NoSpace,
    /// Our own disk failed: the manifest stops.
    Local,
}

/// What the swarm wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Open a stream to a host. Answered by [`Input::LinkUp`] or [`Input::ConnectFailed`].
    Connect {
        /// For which manifest.
        work: WorkId,
        /// To whom.
        peer: KeyId,
    },
    /// Close a stream. Not answered.
    Disconnect {
        /// Which.
        link: LinkId,
    },
    /// Send a frame to one neighbour.
    Send {
        /// On which link.
        link: LinkId,
        /// What to say.
        frame: Frame,
    },
    /// Send a frame to several neighbours.
    Broadcast {
        /// On which links, in order.
        links: Vec<LinkId>,
        /// What to say.
        frame: Frame,
    },
    /// Ask a peer for a piece, or what is missing of it, prove it, write it, and answer by [`Input::Stored`] or
    /// [`Input::Failed`].
    Fetch {
        /// Names this fetch.
        slot: SlotId,
        /// For which manifest.
        work: WorkId,
        /// Whom to ask; it declared all parts.
        from: KeyId,
        /// Layers with groups; never empty. More than one where small files are bundled.
        parts: Vec<(LayerId, GroupSet)>,
        /// When the swarm will cancel it.
        deadline: Time,
    },
    /// Stop a fetch and answer with what of it was stored.
    Cancel {
        /// Which.
        slot: SlotId,
    },
    /// Send what a peer asked for and answer by [`Input::Served`].
    Serve {
        /// Which request.
        request: RequestId,
    },
    /// Tell a peer that this host does not serve it now. Not answered.
    Refuse {
        /// Which request.
        request: RequestId,
    },
    /// This peer sent bytes that failed their proof, or broke the rules. Nothing is asked of it before `until`.
    Ban {
        /// The culprit.
        peer: KeyId,
        /// What it did.
        charge: Charge,
        /// When the ban ends.
        until: Time,
    },
}

/// What a peer did wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Charge {
    /// It sent bytes that fail their proof for this layer.
    WrongBytes(LayerId),
    /// It declared, time and again, what it does not have.
    FalseDeclarations,
    /// It granted pieces, time and again, and sent nothing.
    NeverServes,
    /// It sent more frames than anyone needs.
    Flood,
    /// A frame made no sense: piece numbers out of range, or another piece length.
    Protocol,
}

impl fmt::Display for Charge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Charge::WrongBytes(layer) => write!(f, "it sent bytes of layer {layer} that fail verification"),
            Charge::FalseDeclarations => write!(f, "it declared, time and again, what it does not have"),
            Charge::NeverServes => write!(f, "it offered pieces, time and again, and did not send them"),
            Charge::Flood => write!(f, "it flooded this host with messages"),
            Charge::Protocol => write!(f, "its messages make no sense for this manifest"),
        }
    }
}

/// What the swarm has to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Every group of the layer is stored. Said once, and only of layers that lacked something at the start.
    LayerComplete {
        /// Of which manifest.
        work: WorkId,
        /// Which layer.
        layer: LayerId,
    },
    /// Every layer of the manifest is complete. It goes on being served.
    Complete {
        /// Which manifest.
        work: WorkId,
    },
    /// Nothing is in flight for the manifest and no neighbour that is not banned holds anything that is missing.
    Stalled {
        /// Which manifest.
        work: WorkId,
        /// Bytes still missing.
        missing_bytes: u64,
    },
    /// A neighbour that never sent anything does not send what it promised, or does not answer: what it says to have is not
    /// counted on until it does. Said once for each link.
    Silent {
        /// Who.
        peer: KeyId,
    },
    /// The disk is full: nothing more is asked for until [`Input::Room`].
    Paused {
        /// Bytes still missing over all manifests.
        missing_bytes: u64,
    },
    /// The local disk failed. What is in flight for the manifest is cancelled and nothing more is asked for until it is
    /// opened anew.
    Stopped {
        /// Which manifest.
        work: WorkId,
        /// Bytes still missing of it.
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
