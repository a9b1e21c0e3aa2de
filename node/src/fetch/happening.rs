//! What the loop around the swarm is told, and what it tells.

use std::collections::BTreeSet;
use std::ops::Range;

use quinn::{RecvStream, SendStream};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use weighlock_protocol::swarm::{LinkId, LinkStatus, RequestId, WorkStatus};
use weighlock_protocol::wire::bao::GroupSet;
use weighlock_protocol::wire::swarm::Frame;
use weighlock_protocol::{KeyId, LayerId, ManifestDigest};

use super::jobs::Job;
use crate::net::data::Pass;

/// What the loop is told.
pub(super) enum Happening {
    /// Begin a fetch.
    Fetch(Box<Job>),
    /// Take part no more; who waits is told that it was removed.
    Close { digest: ManifestDigest, closed: Option<oneshot::Sender<()>> },
    /// A loader waits for groups.
    Urgent { digest: ManifestDigest, layer: LayerId, groups: GroupSet },
    /// A host opened a link to this one.
    LinkIn { peer: KeyId, digest: ManifestDigest, send: SendStream, recv: RecvStream },
    /// The layers of a complete manifest, for which a link is waiting.
    Serve { digest: ManifestDigest, layers: Option<Vec<(LayerId, u64)>> },
    /// A neighbour sent a frame.
    Frame { link: LinkId, frame: Frame, taken: OwnedSemaphorePermit },
    /// A neighbour's stream ended; it `spoke` if any frame came.
    LinkEnded { link: LinkId, peer: KeyId, spoke: bool, broke_protocol: bool },
    /// A peer asks for groups.
    Asked { peer: KeyId, layer: LayerId, groups: Range<u64>, admitted: oneshot::Sender<Pass> },
    /// Hosts that the provider table lists for a manifest.
    Listed { digest: ManifestDigest, hosts: BTreeSet<KeyId> },
    /// Begin nothing for others any more, and end what is only served; or be as before again.
    Drain { on: bool },
    /// Tell what is going on.
    Status { answer: oneshot::Sender<Vec<WorkReport>> },
}

/// A request that was admitted has ended.
pub(super) struct Ended {
    pub(super) request: RequestId,
    pub(super) bytes: u64,
    pub(super) complete: bool,
}

/// What goes on with one manifest.
#[derive(Debug, Clone)]
pub struct WorkReport {
    /// Which.
    pub digest: ManifestDigest,
    /// In numbers.
    pub status: WorkStatus,
    /// Its neighbours.
    pub links: Vec<LinkStatus>,
}
