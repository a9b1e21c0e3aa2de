//! Bringing an artifact here: one fetch per manifest, whoever asks, with progress for all who wait.

mod delta;
mod drain;
mod driver;
mod gets;
mod happening;
mod jobs;
mod layers;
mod links;
mod manifests;
mod neighbours;
mod run;
mod sources;
mod wait;
mod whole;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use quinn::{RecvStream, SendStream};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};
use weighlock_cache::Store;
use weighlock_protocol::manifest::Manifest;
use weighlock_protocol::swarm::{RackId, SwarmConfig};
use weighlock_protocol::{KeyId, LayerId, ManifestDigest};

pub use delta::DeltaLimits;
pub use happening::WorkReport;

use self::happening::Happening;
use crate::cluster::now;
use crate::error::{Error, Kind, Result};
use crate::gc::Room;
use crate::local::message::Progress;
use crate::net::control::{ControlEvent, ControlHandle};
use crate::net::data::{DataPlane, Pass};

/// Pause between two looks for a manifest that no connected host has.
const MANIFEST_RETRY: Duration = Duration::from_secs(1);

/// Limits of fetching.
#[derive(Debug, Clone)]
pub struct FetchLimits {
    /// Limits of the swarm: neighbours, uploads, downloads, rates.
    pub swarm: SwarmConfig,
    /// Longest wait for the next bytes of a range.
    pub stall: Duration,
    /// A fetch that moves nothing for this long, because nobody has what is missing, fails for those who wait.
    pub patience: Duration,
    /// And how long if somebody has it who lets lie what is asked of it: a slow host that serves others first, most likely.
    pub silent_patience: Duration,
    /// How long those who need a manifest that no connected host has are kept waiting: after a start connections are
    /// still being made.
    pub manifest_patience: Duration,
    /// After a full disk, fetching goes on once so many bytes are available, or all that are missing.
    pub room_bytes_min: u64,
    /// Limits of taking tensors from layers that are here already.
    pub delta: DeltaLimits,
}

/// Counters of one peer since the daemon started.
#[derive(Debug, Clone, Copy, Default)]
pub struct PeerTraffic {
    /// Proven bytes fetched from it.
    pub fetched_bytes: u64,
    /// Bytes sent to it, proofs included.
    pub sent_bytes: u64,
    /// Times that it sent bytes that fail verification.
    pub lies: u64,
}

/// Everything that fetches. Cheap to clone.
#[derive(Clone)]
pub struct Fetcher {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    control: ControlHandle,
    data: DataPlane,
    limits: FetchLimits,
    /// This host's rack.
    rack: Option<RackId>,
    /// Tells the loop around the swarm.
    swarm: mpsc::Sender<Happening>,
    /// Makes room on the disk.
    room: OnceLock<Room>,
    /// The latest failure of the disk.
    disk_error: Mutex<Option<Error>>,
    /// Admitted hosts other than this one.
    members: watch::Receiver<Arc<BTreeSet<KeyId>>>,
    running: Mutex<BTreeMap<ManifestDigest, Running>>,
    bans: Mutex<BTreeMap<KeyId, Instant>>,
    traffic: Mutex<BTreeMap<KeyId, PeerTraffic>>,
    /// Bumped whenever a layer of this host grew; observers wait on it.
    grown: watch::Sender<u64>,
    /// Bumped when an artifact was begun, completed, added or removed.
    changed: watch::Sender<u64>,
    fetched_bytes: AtomicU64,
    /// Begins no fetch, and gives nothing new to others.
    draining: AtomicBool,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// An artifact on its way here.
pub struct Arrival {
    manifest: Manifest,
    running: Option<Running>,
    /// The last word on its progress was told.
    told: bool,
}

/// What [`Arrival::next`] tells.
pub enum Step {
    /// Not yet.
    Progress(Progress),
    /// All of it is here.
    Here(Manifest),
}

impl Arrival {
    /// Tells how far it is, ten times a second, until it is here.
    ///
    /// # Errors
    /// Nobody has what is missing, this host's disk, or the daemon stops.
    pub async fn next(&mut self) -> Result<Step> {
        let Some(running) = &mut self.running else {
            return Ok(Step::Here(self.manifest.clone()));
        };
        let wait = tokio::time::timeout(Duration::from_millis(100), running.done.wait_for(Option::is_some));
        let done = match wait.await {
            Err(_) => return Ok(Step::Progress(running.progress.borrow().clone())),
            Ok(Ok(done)) => done.clone(),
            Ok(Err(_)) => None,
        };
        if !std::mem::replace(&mut self.told, true) {
            return Ok(Step::Progress(running.progress.borrow().clone()));
        }
        let stopping =
            || Err(Error::unavailable("the daemon is stopping").hint("open it again when it runs"));
        done.unwrap_or_else(stopping).map(|()| Step::Here(self.manifest.clone()))
    }
}

#[derive(Clone)]
struct Running {
    progress: watch::Receiver<Progress>,
    done: watch::Receiver<Option<Result<()>>>,
    urgent: mpsc::Sender<wait::Urgent>,
    cancel: CancellationToken,
}

impl Fetcher {
    /// Starts the loop around the swarm; nothing is fetched yet. `members` are the admitted hosts other than this one,
    /// `labels` this host's own.
    #[expect(clippy::too_many_arguments, reason = "the composition root hands in each part once")]
    pub fn new(
        store: Store,
        control: ControlHandle,
        data: DataPlane,
        limits: FetchLimits,
        members: watch::Receiver<Arc<BTreeSet<KeyId>>>,
        labels: &BTreeMap<String, String>,
        grown: watch::Sender<u64>,
        stop: CancellationToken,
    ) -> Self {
        let (swarm, heard) = mpsc::channel(driver::HAPPENINGS_MAX);
        let inner = Inner {
            store,
            control,
            data,
            limits,
            rack: sources::rack(labels),
            swarm,
            room: OnceLock::new(),
            disk_error: Mutex::default(),
            members,
            running: Mutex::default(),
            bans: Mutex::default(),
            traffic: Mutex::default(),
            grown,
            changed: watch::Sender::new(0),
            fetched_bytes: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            tasks: TaskTracker::new(),
            stop,
        };
        let inner = Arc::new(inner);
        let mut seed = [0; 8];
        if let Err(e) = getrandom::fill(&mut seed) {
            // Only the order of choices hangs on it.
            warn!(error = %e, "no randomness from the system");
        }
        inner.tasks.spawn(driver::run(inner.clone(), heard, u64::from_le_bytes(seed)));
        Self { inner }
    }

    /// Starts to bring all of `digest` here, fetching what is missing. Several callers share one fetch; dropping the
    /// answer does not end it.
    ///
    /// # Errors
    /// Nobody has the manifest, this host is being drained, or the store failed.
    pub async fn begin(&self, digest: ManifestDigest) -> Result<Arrival> {
        if let Some(manifest) = self.whole(&digest)? {
            return Ok(Arrival { manifest, running: None, told: false });
        }
        let manifest = self.manifest(digest).await?;
        self.may_begin(&manifest).await?;
        let (store, copy) = (self.inner.store.clone(), manifest.clone());
        // From here on this host keeps the artifact, also over a restart in the middle.
        let (kept, complete) = blocking(move || {
            let begun = store.begin(&copy).map_err(Error::from)?;
            if !begun.0 {
                store.note_used(&copy.digest(), now().0);
            }
            Ok(begun)
        })
        .await?;
        if complete && !kept {
            // All its layers came with other artifacts.
            self.note_change();
        }
        let running = if complete { None } else { Some(self.start(&manifest)) };
        Ok(Arrival { manifest, running, told: false })
    }

    /// The manifest, asked of peers if it is not here, again and again for [`FetchLimits::manifest_patience`].
    ///
    /// # Errors
    /// No peer had it in that time, or there is nobody to ask; then it fails at once.
    pub async fn manifest(&self, digest: ManifestDigest) -> Result<Manifest> {
        let since = Instant::now();
        loop {
            // Subscribed before the look: a host that connects in the middle of it is asked right after.
            let mut events = self.inner.control.events().map_err(Error::unavailable)?;
            if let Some(manifest) = self.manifest_now(digest).await? {
                return Ok(manifest);
            }
            let missing = |who: &str| Error::unavailable(format!("{who} has the manifest {digest}"));
            if self.inner.members.borrow().is_empty() {
                return Err(missing("this host is alone in its cluster and neither it nor anyone else")
                    .hint("add the artifact again, or let a host that has it join (`weighlock invite`)"));
            }
            let Some(left) = self.inner.limits.manifest_patience.checked_sub(since.elapsed()) else {
                return Err(missing("no connected host")
                    .hint("see `weighlock peers`; it comes as soon as a host that has it is reachable"));
            };
            tokio::select! {
                () = self.inner.stop.cancelled() => {
                    return Err(Error::unavailable("the daemon is stopping").hint("open it again when it runs"));
                }
                () = connected(&mut events) => {}
                () = tokio::time::sleep(left.min(MANIFEST_RETRY)) => {}
            }
        }
    }

    /// Ends the fetch of `digest`, if one runs, and waits for its end. What it stored stays.
    pub async fn cancel(&self, digest: &ManifestDigest) {
        let running = self.inner.running.lock().unwrap_or_else(PoisonError::into_inner).get(digest).cloned();
        if let Some(mut running) = running {
            running.cancel.cancel();
            let _ = running.done.wait_for(Option::is_some).await;
        }
        let (closed, wait) = oneshot::channel();
        let _ = self.inner.swarm.send(Happening::Close { digest: *digest, closed: Some(closed) }).await;
        let _ = wait.await;
    }

    /// Whom to ask for room on the disk. Said once.
    pub(crate) fn set_room(&self, room: Room) {
        let _ = self.inner.room.set(room);
    }

    /// What was given of `digest` was let go of: takes part no more, unless it is being fetched again.
    pub(crate) fn retire(&self, digest: &ManifestDigest) {
        // Under the lock, so that no fetch begins before this is heard.
        let running = self.inner.running.lock().unwrap_or_else(PoisonError::into_inner);
        if !running.contains_key(digest) {
            // A full queue does no harm: whoever asks for it is told that it is not here.
            let _ = self.inner.swarm.try_send(Happening::Close { digest: *digest, closed: None });
        }
    }

    /// A host opened a link to this one.
    pub(crate) fn link(&self, peer: KeyId, digest: ManifestDigest, send: SendStream, recv: RecvStream) {
        let swarm = self.inner.swarm.clone();
        self.inner.tasks.spawn(async move {
            let _ = swarm.send(Happening::LinkIn { peer, digest, send, recv }).await;
        });
    }

    /// Waits for the turn of a peer that asks for groups of a layer. `None` if it is not to be served now.
    pub(crate) async fn admit(&self, peer: KeyId, layer: LayerId, groups: Range<u64>) -> Option<Pass> {
        let (admitted, wait) = oneshot::channel();
        self.inner.swarm.send(Happening::Asked { peer, layer, groups, admitted }).await.ok()?;
        wait.await.ok()
    }

    /// What goes on with each manifest that this host fetches or gives to others.
    pub async fn works(&self) -> Vec<WorkReport> {
        let (answer, wait) = oneshot::channel();
        let _ = self.inner.swarm.send(Happening::Status { answer }).await;
        wait.await.unwrap_or_default()
    }

    /// Fetches in progress.
    pub fn running(&self) -> Vec<(ManifestDigest, Progress)> {
        let running = self.inner.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.iter().map(|(digest, one)| (*digest, one.progress.borrow().clone())).collect()
    }

    /// Counters by peer.
    pub fn traffic(&self) -> BTreeMap<KeyId, PeerTraffic> {
        self.inner.traffic.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Proven bytes fetched since the start.
    pub fn fetched_bytes(&self) -> u64 {
        self.inner.fetched_bytes.load(Ordering::Relaxed)
    }

    /// Counts bytes sent to a peer.
    pub fn count_sent(&self, peer: &KeyId, bytes: u64) {
        self.inner.count(peer, |traffic| traffic.sent_bytes += bytes);
    }

    /// Until when a peer is banned here.
    pub fn banned_until(&self, peer: &KeyId) -> Option<Instant> {
        self.inner.banned_until(peer)
    }

    /// Changes when an artifact was begun, completed, added or removed here.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.inner.changed.subscribe()
    }

    /// Says that what is held here changed by an import or a removal.
    pub fn note_change(&self) {
        self.inner.grown.send_modify(|n| *n += 1);
        self.inner.changed.send_modify(|n| *n += 1);
    }

    /// Waits for the fetches to end; the cancellation token must have been cancelled.
    pub async fn stopped(&self) {
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    fn start(&self, manifest: &Manifest) -> Running {
        let mut running = self.inner.running.lock().unwrap_or_else(PoisonError::into_inner);
        let digest = manifest.digest();
        if let Some(one) = running.get(&digest) {
            return one.clone();
        }
        let (progress, progress_seen) =
            watch::channel(Progress { phase: "fetch".into(), ..Progress::default() });
        let (done, done_seen) = watch::channel(None);
        let cancel = self.inner.stop.child_token();
        let (urgent, wanted) = wait::urgent();
        let one = Running { progress: progress_seen, done: done_seen, urgent, cancel: cancel.clone() };
        running.insert(digest, one.clone());
        self.inner.changed.send_modify(|n| *n += 1);
        let (inner, manifest) = (self.inner.clone(), manifest.clone());
        self.inner.tasks.spawn(async move {
            let started = Instant::now();
            let ended = Ended { inner: inner.clone(), digest };
            let (all, reused) = (manifest.total_bytes(), progress.subscribe());
            let result = run::run(&inner, &manifest, progress, wanted, &cancel).await;
            drop(ended);
            match &result {
                Ok(()) => {
                    let seconds = started.elapsed().as_secs_f64();
                    let reused_bytes = reused.borrow().reused_bytes;
                    info!(%digest, bytes = all, reused_bytes, seconds, "artifact is complete");
                    inner.changed.send_modify(|n| *n += 1);
                }
                Err(e) if e.kind == Kind::Unavailable => info!(%digest, error = %e, "fetch paused"),
                Err(e) => warn!(%digest, error = %e, "fetch failed"),
            }
            let _ = done.send(Some(result));
        });
        one
    }
}

/// Waits until a host connects, or until that may have gone unheard.
async fn connected(events: &mut broadcast::Receiver<ControlEvent>) {
    loop {
        match events.recv().await {
            Ok(ControlEvent::Connected(_)) => return,
            Ok(_) => {}
            Err(broadcast::error::RecvError::Lagged(_)) => return,
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}

/// Takes a fetch off the list, also when it panics.
struct Ended {
    inner: Arc<Inner>,
    digest: ManifestDigest,
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.inner.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.digest);
    }
}

impl Inner {
    fn count(&self, peer: &KeyId, change: impl FnOnce(&mut PeerTraffic)) {
        change(self.traffic.lock().unwrap_or_else(PoisonError::into_inner).entry(*peer).or_default());
    }

    fn banned_until(&self, peer: &KeyId) -> Option<Instant> {
        let mut bans = self.bans.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        bans.retain(|_, until| *until > now);
        bans.get(peer).copied()
    }

    /// Counts bytes that came from a peer and tells of the growth.
    fn fetched(&self, peer: &KeyId, bytes: u64) {
        self.fetched_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.count(peer, |traffic| traffic.fetched_bytes += bytes);
        self.grown.send_modify(|n| *n += 1);
    }

    fn set_disk_error(&self, error: Error) {
        *self.disk_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    fn disk_error(&self) -> Error {
        let error = self.disk_error.lock().unwrap_or_else(PoisonError::into_inner).take();
        error.unwrap_or_else(|| {
            Error::internal("the disk failed").hint("see the daemon's log; open it again, it resumes")
        })
    }

    fn ban(&self, peer: KeyId, duration: Duration, lied: bool) {
        let until = Instant::now() + duration;
        // A short one never ends a longer one.
        let mut bans = self.bans.lock().unwrap_or_else(PoisonError::into_inner);
        bans.entry(peer).and_modify(|old| *old = until.max(*old)).or_insert(until);
        drop(bans);
        self.count(&peer, |traffic| traffic.lies += u64::from(lied));
    }
}

/// Runs `work` where it may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::internal(format!("a worker ended: {e}")))?
}
