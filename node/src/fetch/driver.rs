//! The loop around the scheduler: hears, asks it, does what it says, and decides nothing itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use weighlock_cache::{PartialLayer, StoreError};
use weighlock_protocol::manifest::Manifest;
use weighlock_protocol::swarm::{
    Action, Event, Fault, FetchConfig, Input, LayerWant, Poll, SimpleFetch, SlotId,
};
use weighlock_protocol::wire::bao::{GroupSet, all_groups, bytes_in};
use weighlock_protocol::{KeyId, LayerId, Time};

use super::delta::{self, OpenLayers};
use super::sources::{self, Heard};
use super::wait::Urgent;
use super::{FetchLimits, Inner, blocking};
use crate::error::{Error, Result};
use crate::local::message::Progress;
use crate::net::data::{GetError, GetOptions, Got, get};

/// Layers sealed together: one sync of the file system for many small files.
const SEAL_BATCH_MAX: usize = 256;

/// A layer is written back to the disk each time that this many bytes came, so that sealing has little left to wait
/// for.
const WRITE_BACK_BYTES: u64 = 128 << 20;

/// What came of one fetch in flight.
struct Answer {
    slot: SlotId,
    from: KeyId,
    layer: LayerId,
    got: Got,
}

/// Fetches all that is missing of `manifest`. What was stored stays when it fails.
pub(super) async fn run(
    inner: &Arc<Inner>,
    manifest: &Manifest,
    progress: &watch::Sender<Progress>,
    mut wanted: mpsc::Receiver<Urgent>,
    cancel: &CancellationToken,
) -> Result<()> {
    let mut fetch = Fetch::new(inner.clone(), manifest, progress, cancel).await?;
    let (heard, mut hearing) = mpsc::channel(256);
    let (again, rewatch) = mpsc::unbounded_channel();
    fetch.again = Some(again);
    let looking = tokio::spawn(sources::look(inner.clone(), manifest.digest(), heard, rewatch));
    let result = tokio::select! {
        result = fetch.drive(&mut hearing, &mut wanted, progress) => result,
        () = cancel.cancelled() => Err(Error::unavailable("the artifact was removed from this host while it was fetched")),
    };
    looking.abort();
    fetch.wind_down().await;
    result
}

struct Fetch {
    inner: Arc<Inner>,
    scheduler: SimpleFetch,
    started: Instant,
    /// Layers by their place in the manifest.
    layers: Vec<(LayerId, u64)>,
    sizes: BTreeMap<LayerId, u64>,
    /// Open partial layers: those in flight, and those that wait to be sealed.
    open: OpenLayers,
    slots: BTreeMap<SlotId, CancellationToken>,
    gets: JoinSet<Answer>,
    unsealed: Vec<LayerId>,
    sealing: JoinSet<Result<Vec<LayerId>>>,
    /// Tells that a source should be asked anew what it has. At most one message per failed range.
    again: Option<mpsc::UnboundedSender<KeyId>>,
    write_back: JoinSet<()>,
    unwritten_bytes: u64,
    sources: BTreeSet<KeyId>,
    already_bytes: u64,
    /// Those among them that other layers of this host had.
    reused_bytes: u64,
    total_bytes: u64,
    proven: Arc<AtomicU64>,
    done: bool,
    /// Since when nobody has what is missing.
    stalled: Option<(Instant, u64)>,
    disk: Option<StoreError>,
}

impl Fetch {
    async fn new(
        inner: Arc<Inner>,
        manifest: &Manifest,
        progress: &watch::Sender<Progress>,
        cancel: &CancellationToken,
    ) -> Result<Self> {
        let layers: Vec<(LayerId, u64)> = manifest.layers().map(|layer| (layer.id, layer.size)).collect();
        let (store, all) = (inner.store.clone(), layers.clone());
        let (mut open, mut wants) = blocking(move || missing(&store, &all)).await?;
        let reused_bytes = delta::apply(&inner, manifest, &mut wants, &mut open, progress, cancel).await;
        let sizes: BTreeMap<LayerId, u64> = layers.iter().copied().collect();
        let total_bytes: u64 = sizes.values().sum();
        let missing_bytes: u64 = wants.iter().map(|want| bytes_in(&want.missing, want.size)).sum();
        let mut seed = [0; 8];
        getrandom::fill(&mut seed)
            .map_err(|e| Error::internal(format!("no randomness from the system: {e}")))?;
        let complete: Vec<LayerId> =
            wants.iter().filter(|want| want.missing.is_empty()).map(|want| want.layer).collect();
        let wants = wants.into_iter().filter(|want| !want.missing.is_empty()).collect();
        Ok(Self {
            scheduler: SimpleFetch::new(config(&inner.limits), u64::from_le_bytes(seed), wants),
            inner,
            started: Instant::now(),
            layers,
            sizes,
            open,
            slots: BTreeMap::new(),
            gets: JoinSet::new(),
            unsealed: complete,
            sealing: JoinSet::new(),
            again: None,
            write_back: JoinSet::new(),
            unwritten_bytes: 0,
            sources: BTreeSet::new(),
            already_bytes: total_bytes - missing_bytes,
            reused_bytes,
            total_bytes,
            proven: Arc::default(),
            done: false,
            stalled: None,
            disk: None,
        })
    }

    async fn drive(
        &mut self,
        hearing: &mut mpsc::Receiver<Heard>,
        wanted: &mut mpsc::Receiver<Urgent>,
        progress: &watch::Sender<Progress>,
    ) -> Result<()> {
        let mut tick = tokio::time::interval(Duration::from_millis(100));
        let mut wake = self.drain()?;
        loop {
            self.seal();
            if self.done && self.unsealed.is_empty() && self.sealing.is_empty() {
                self.tell(progress);
                return Ok(());
            }
            let wake_at = async {
                match wake {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let input = tokio::select! {
                () = self.inner.stop.cancelled() => {
                    return Err(Error::unavailable("the daemon is stopping").hint("open it again; it resumes"));
                }
                Some(heard) = hearing.recv() => self.heard(heard),
                Some((layer, groups)) = wanted.recv() => self.wanted_soon(layer, groups),
                Some(answer) = self.gets.join_next() => match answer {
                    Ok(answer) => vec![self.answered(answer)],
                    Err(e) => return Err(Error::internal(format!("a fetch ended: {e}"))),
                },
                Some(sealed) = self.sealing.join_next() => {
                    self.sealed(sealed.map_err(|e| Error::internal(format!("a worker ended: {e}")))??);
                    vec![]
                }
                () = wake_at => vec![Input::Tick],
                _ = tick.tick() => {
                    self.tell(progress);
                    self.lose_patience()?;
                    vec![Input::Tick]
                }
            };
            for input in input {
                let now = self.now();
                self.scheduler.handle(now, input);
            }
            wake = self.drain()?;
        }
    }

    /// Does all that the scheduler wants done. Answers when it wants to be woken.
    fn drain(&mut self) -> Result<Option<tokio::time::Instant>> {
        loop {
            match self.scheduler.poll() {
                Poll::Action(action) => self.act(action),
                Poll::Event(event) => self.event(event)?,
                Poll::Idle { wake } => return Ok(wake.map(|at| self.instant(at))),
            }
        }
    }

    /// Ends what is in flight, so that what was proven is on record before anyone opens these layers again.
    async fn wind_down(&mut self) {
        self.slots.values().for_each(CancellationToken::cancel);
        while self.gets.join_next().await.is_some() {}
        while self.sealing.join_next().await.is_some() {}
        while self.write_back.join_next().await.is_some() {}
    }

    fn heard(&mut self, heard: Heard) -> Vec<Input> {
        match heard {
            Heard::Declared { peer, mut layers } => {
                if layers.is_empty() {
                    // It has nothing yet but fetches too, which the scheduler takes into account.
                    layers.push((0, GroupSet::empty()));
                }
                let named = layers.into_iter().filter_map(|(index, have)| {
                    let (layer, _) = *self.layers.get(usize::try_from(index).ok()?)?;
                    Some(Input::Declared { peer, layer, have, connections: 1 })
                });
                named.collect()
            }
            Heard::Gone { peer } => vec![Input::PeerGone { peer }],
        }
    }

    /// A loader waits for these groups. [`SimpleFetch`] goes in loading order and has no input for it.
    fn wanted_soon(&mut self, layer: LayerId, groups: GroupSet) -> Vec<Input> {
        debug!(%layer, ?groups, "a loader waits for a range");
        vec![]
    }

    fn answered(&mut self, answer: Answer) -> Input {
        let Answer { slot, from, layer, got } = answer;
        self.slots.remove(&slot);
        if got.bytes > 0 {
            self.sources.insert(from);
            self.stalled = None;
            self.inner.fetched_bytes.fetch_add(got.bytes, Ordering::Relaxed);
            self.inner.count(&from, |traffic| traffic.fetched_bytes += got.bytes);
            self.inner.grown.send_modify(|n| *n += 1);
            self.write_back(layer, got.bytes);
        }
        let fault = match got.end {
            Ok(()) => {
                return Input::Stored { slot, bytes: got.bytes };
            }
            Err(e) => {
                debug!(peer = %from, %layer, error = %e, "range not fetched");
                match e {
                    GetError::Verify(_) => {
                        warn!(peer = %from, %layer, error = %e, "a host sent bytes that fail verification");
                        Fault::Verify
                    }
                    GetError::Protocol(_) => Fault::Verify,
                    GetError::Miss(_) => {
                        // What it declared is forgotten; it may still have the rest.
                        if let Some(again) = &self.again {
                            let _ = again.send(from);
                        }
                        Fault::Miss
                    }
                    GetError::Stalled(_) => Fault::Timeout,
                    GetError::Lost(_) => Fault::Lost,
                    GetError::Cancelled => Fault::Cancelled,
                    GetError::Local(e) => {
                        self.disk = Some(e);
                        Fault::Local
                    }
                }
            }
        };
        Input::Failed { slot, fault, stored: got.stored }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Fetch { slot, from, layer, range, deadline: _ } => {
                self.stalled = None;
                let cancel = CancellationToken::new();
                self.slots.insert(slot, cancel.clone());
                let inner = self.inner.clone();
                let options = GetOptions {
                    batch_bytes: inner.data.config().batch_bytes,
                    stall: inner.limits.stall,
                    progress: self.proven.clone(),
                    cancel,
                };
                let opened = self.partial(layer);
                self.gets.spawn(async move {
                    let nothing = |end| Got { stored: GroupSet::empty(), bytes: 0, end: Err(end) };
                    let got = match opened {
                        // Another fetch or an import has brought the whole layer meanwhile.
                        Err(StoreError::AlreadySealed(_)) => {
                            Got { stored: GroupSet::from(range), bytes: 0, end: Ok(()) }
                        }
                        Err(e) => nothing(GetError::Local(e)),
                        Ok(partial) => {
                            match inner.data.connect(from, &sources::addresses(&inner, &from)).await {
                                Ok(connection) => get(&connection, partial, range, options).await,
                                Err(e) => nothing(e),
                            }
                        }
                    };
                    Answer { slot, from, layer, got }
                });
            }
            Action::Cancel { slot } => {
                if let Some(cancel) = self.slots.get(&slot) {
                    cancel.cancel();
                }
            }
            Action::Ban { peer, layer, until } => {
                let duration = until.since(self.now());
                warn!(%peer, %layer, seconds = duration.as_secs(), "banned a host for bytes that fail verification");
                self.inner.ban(peer, duration);
            }
        }
    }

    fn event(&mut self, event: Event) -> Result<()> {
        match event {
            Event::LayerComplete(layer) => self.unsealed.push(layer),
            Event::Done => self.done = true,
            Event::Stalled { missing_bytes } => {
                self.stalled.get_or_insert((Instant::now(), missing_bytes));
            }
            Event::Stopped { .. } => {
                let error = self.disk.take().map_or_else(|| Error::internal("the disk failed"), Error::from);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Opening creates or resumes the files, quickly; few are open at once.
    fn partial(&mut self, layer: LayerId) -> std::result::Result<Arc<PartialLayer>, StoreError> {
        if let Some(partial) = self.open.get(&layer) {
            return Ok(partial.clone());
        }
        let size = self.sizes.get(&layer).copied().unwrap_or_default();
        let partial = self.inner.store.partial(&layer, size)?;
        self.open.insert(layer, partial.clone());
        Ok(partial)
    }

    /// Seals complete layers in the background, one batch at a time.
    fn seal(&mut self) {
        if self.unsealed.is_empty() || !self.sealing.is_empty() {
            return;
        }
        let batch: Vec<LayerId> = self.unsealed.drain(..self.unsealed.len().min(SEAL_BATCH_MAX)).collect();
        let partials: Vec<Arc<PartialLayer>> =
            batch.iter().filter_map(|layer| self.open.remove(layer)).collect();
        let store = self.inner.store.clone();
        self.sealing.spawn(blocking(move || {
            store.seal_all(&partials).map_err(Error::from)?;
            Ok(batch)
        }));
    }

    /// Starts to write a layer back, one at a time.
    fn write_back(&mut self, layer: LayerId, bytes: u64) {
        self.unwritten_bytes += bytes;
        while self.write_back.try_join_next().is_some() {}
        if self.unwritten_bytes < WRITE_BACK_BYTES || !self.write_back.is_empty() {
            return;
        }
        if let Some(partial) = self.open.get(&layer).cloned() {
            self.unwritten_bytes = 0;
            self.write_back.spawn_blocking(move || {
                if let Err(e) = partial.checkpoint() {
                    debug!(error = %e, "not written back; sealing will say why");
                }
            });
        }
    }

    fn sealed(&mut self, layers: Vec<LayerId>) {
        debug!(layers = layers.len(), "sealed");
        self.inner.grown.send_modify(|n| *n += 1);
    }

    fn lose_patience(&self) -> Result<()> {
        match self.stalled {
            Some((since, missing)) if since.elapsed() > self.inner.limits.patience => {
                Err(Error::unavailable(format!("no reachable host has the {missing} bytes that are missing"))
                    .hint("what is here is kept; open it again when a host that has it is up, see `weighlock peers`"))
            }
            _ => Ok(()),
        }
    }

    fn tell(&self, progress: &watch::Sender<Progress>) {
        let done = self.already_bytes + self.proven.load(Ordering::Relaxed);
        progress.send_replace(Progress {
            phase: if self.done { "seal" } else { "fetch" }.into(),
            done_bytes: done.min(self.total_bytes),
            total_bytes: self.total_bytes,
            sources: self.sources.len(),
            reused_bytes: self.reused_bytes,
        });
    }

    fn now(&self) -> Time {
        Time(u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn instant(&self, at: Time) -> tokio::time::Instant {
        (self.started + Duration::from_nanos(at.0)).into()
    }
}

/// What is missing of each distinct layer, resumed partial layers, and room on the disk for the rest.
fn missing(
    store: &weighlock_cache::Store,
    layers: &[(LayerId, u64)],
) -> Result<(OpenLayers, Vec<LayerWant>)> {
    let begun: BTreeSet<LayerId> =
        store.partials().map_err(Error::from)?.into_iter().map(|(layer, _)| layer).collect();
    let (mut open, mut wants, mut seen) = (BTreeMap::new(), Vec::new(), BTreeSet::new());
    let mut needed = 0;
    for (layer, size) in layers {
        if !seen.insert(*layer) || store.layer(layer).map_err(Error::from)?.is_some() {
            continue;
        }
        let missing = if begun.contains(layer) {
            let partial = store.partial(layer, *size).map_err(Error::from)?;
            let missing = partial.missing();
            open.insert(*layer, partial);
            missing
        } else {
            // A begun layer has its room already.
            needed += size;
            all_groups(*size)
        };
        wants.push(LayerWant { layer: *layer, size: *size, missing });
    }
    let available = store.available_bytes().map_err(Error::from)?;
    if needed > available {
        return Err(Error::unavailable(format!(
            "no space: {needed} bytes are to be fetched and {available} are available in {}",
            store.dir().display()
        ))
        .hint("free some space, for example with `weighlock rm`, and open it again"));
    }
    Ok((open, wants))
}

fn config(limits: &FetchLimits) -> FetchConfig {
    FetchConfig {
        slots_per_peer_max: u32::try_from(limits.slots_per_peer_max).unwrap_or(u32::MAX),
        peers_max: limits.sources_max,
        in_flight_bytes_max: limits.in_flight_bytes_max,
        ..FetchConfig::default()
    }
}
