//! Manifests that this host takes part in: what is fetched for whom, what is only served.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};
use weighlock_protocol::swarm::{Candidate, LayerWant, WorkId};
use weighlock_protocol::wire::bao::{GroupSet, bytes_in};
use weighlock_protocol::{KeyId, LayerId, ManifestDigest};

use super::delta::OpenLayers;
use crate::error::Result;
use crate::local::message::Progress;

/// A fetch that is ready to begin.
pub(super) struct Job {
    pub(super) digest: ManifestDigest,
    /// All layers in loading order.
    pub(super) layers: Vec<LayerWant>,
    pub(super) open: OpenLayers,
    /// Bytes that other layers of this host had.
    pub(super) reused_bytes: u64,
    pub(super) progress: watch::Sender<Progress>,
    pub(super) done: oneshot::Sender<Result<()>>,
}

/// A manifest that is open in the swarm.
pub(super) struct Work {
    pub(super) digest: ManifestDigest,
    pub(super) sizes: BTreeMap<LayerId, u64>,
    /// Who waits for it; nobody once it is complete.
    pub(super) fetch: Option<Fetch>,
    pub(super) candidates: Vec<Candidate>,
    /// Hosts that the provider table lists.
    pub(super) listed: BTreeSet<KeyId>,
    pub(super) links: usize,
    /// Since when nobody is linked and nobody waits.
    pub(super) idle_since: Instant,
}

/// The fetching side of a manifest.
pub(super) struct Fetch {
    progress: watch::Sender<Progress>,
    done: Option<oneshot::Sender<Result<()>>>,
    already_bytes: u64,
    reused_bytes: u64,
    total_bytes: u64,
    pub(super) proven: Arc<AtomicU64>,
    pub(super) sources: BTreeSet<KeyId>,
    /// Complete layers that are not sealed yet.
    pub(super) unsealed: BTreeSet<LayerId>,
    pub(super) complete: bool,
    /// What loaders wait for.
    pub(super) urgent: BTreeMap<LayerId, GroupSet>,
    /// Since when nobody has what is missing, and how much that is.
    pub(super) stalled: Option<(Instant, u64)>,
    /// When somebody last had it who sent nothing.
    pub(super) silent: Option<Instant>,
}

impl Fetch {
    pub(super) fn new(job: Job) -> Self {
        let mut sizes: BTreeMap<LayerId, (u64, u64)> = BTreeMap::new();
        for want in &job.layers {
            sizes.entry(want.layer).or_insert((want.size, bytes_in(&want.missing, want.size)));
        }
        let total_bytes: u64 = sizes.values().map(|(size, _)| size).sum();
        let missing_bytes: u64 = sizes.values().map(|(_, missing)| missing).sum();
        Self {
            progress: job.progress,
            done: Some(job.done),
            already_bytes: total_bytes - missing_bytes,
            reused_bytes: job.reused_bytes,
            total_bytes,
            proven: Arc::default(),
            sources: BTreeSet::new(),
            unsealed: BTreeSet::new(),
            complete: false,
            urgent: BTreeMap::new(),
            stalled: None,
            silent: None,
        }
    }

    /// Tells those who wait how far it is.
    pub(super) fn tell(&self, paused: bool) {
        let done = self.already_bytes + self.proven.load(Ordering::Relaxed);
        let phase = match (paused, self.complete) {
            (true, _) => "no space",
            (false, true) => "seal",
            (false, false) => "fetch",
        };
        let now = Progress {
            phase: phase.into(),
            done_bytes: done.min(self.total_bytes),
            total_bytes: self.total_bytes,
            sources: self.sources.len(),
            reused_bytes: self.reused_bytes,
        };
        self.progress.send_if_modified(|old| std::mem::replace(old, now.clone()) != now);
    }

    /// True once all layers are sealed.
    pub(super) fn is_done(&self) -> bool {
        self.complete && self.unsealed.is_empty()
    }

    /// Tells those who wait how it ended.
    pub(super) fn end(mut self, result: Result<()>) {
        self.tell(false);
        if let Some(done) = self.done.take() {
            let _ = done.send(result);
        }
    }

    /// Somebody waits for groups of a layer.
    pub(super) fn want_soon(&mut self, layer: LayerId, groups: GroupSet) {
        let entry = self.urgent.entry(layer).or_insert_with(GroupSet::empty);
        *entry |= groups;
    }
}

impl Work {
    /// True if nobody needs it any more.
    pub(super) fn is_idle(&self, idle_max: Duration) -> bool {
        self.fetch.is_none() && self.links == 0 && self.idle_since.elapsed() > idle_max
    }
}

/// Manifests by name and by digest.
#[derive(Default)]
pub(super) struct Works {
    by_id: BTreeMap<WorkId, Work>,
    ids: BTreeMap<ManifestDigest, WorkId>,
    next: u32,
}

impl Works {
    pub(super) fn insert(
        &mut self,
        digest: ManifestDigest,
        sizes: BTreeMap<LayerId, u64>,
        fetch: Option<Fetch>,
    ) -> WorkId {
        self.next = self.next.wrapping_add(1);
        let id = WorkId(self.next);
        let work = Work {
            digest,
            sizes,
            fetch,
            candidates: Vec::new(),
            listed: BTreeSet::new(),
            links: 0,
            idle_since: Instant::now(),
        };
        self.by_id.insert(id, work);
        self.ids.insert(digest, id);
        id
    }

    pub(super) fn id(&self, digest: &ManifestDigest) -> Option<WorkId> {
        self.ids.get(digest).copied()
    }

    pub(super) fn get(&self, id: WorkId) -> Option<&Work> {
        self.by_id.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: WorkId) -> Option<&mut Work> {
        self.by_id.get_mut(&id)
    }

    pub(super) fn remove(&mut self, id: WorkId) -> Option<Work> {
        let work = self.by_id.remove(&id)?;
        self.ids.remove(&work.digest);
        Some(work)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (WorkId, &Work)> {
        self.by_id.iter().map(|(id, work)| (*id, work))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (WorkId, &mut Work)> {
        self.by_id.iter_mut().map(|(id, work)| (*id, work))
    }

    /// Open manifests that have the layer.
    pub(super) fn uses(&self, layer: &LayerId) -> bool {
        self.by_id.values().any(|work| work.fetch.is_some() && work.sizes.contains_key(layer))
    }
}
