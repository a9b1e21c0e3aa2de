//! The loop around the swarm: select, handle, drain. It decides nothing itself.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::{RecvStream, SendStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use weighlock_protocol::swarm::{
    Action, Event, Input, LinkId, LinkStatus, Poll, RequestId, SlotId, Swarm, WorkId, WorkStatus,
};
use weighlock_protocol::wire::bao::GroupSet;
use weighlock_protocol::wire::swarm::Frame;
use weighlock_protocol::{KeyId, LayerId, ManifestDigest, Time};

use super::Inner;
use super::gets::{self, Answer};
use super::jobs::{Job, Works};
use super::layers::Layers;
use super::links::{self, Links};
use super::sources;
use crate::error::{Error, Result};
use crate::net::data::{GetError, Pass, open_link, refuse_link};

/// How often those who wait are told, and limits of patience are looked at.
const TELL: Duration = Duration::from_millis(100);
/// How often hosts that take part are looked for.
const LOOK: Duration = Duration::from_millis(500);
/// A manifest that nobody fetches from here any more is closed after this.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// Happenings that wait for the loop; those who tell more wait themselves.
pub(super) const HAPPENINGS_MAX: usize = 1_024;

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
    Frame { link: LinkId, frame: Frame },
    /// A neighbour's stream ended.
    LinkEnded { link: LinkId, peer: KeyId, broke_protocol: bool },
    /// A peer asks for groups.
    Asked { peer: KeyId, layer: LayerId, groups: Range<u64>, admitted: oneshot::Sender<Pass> },
    /// Tell what is going on.
    Status { answer: oneshot::Sender<Vec<WorkReport>> },
}

/// A request that was admitted has ended.
pub(super) struct Ended {
    request: RequestId,
    bytes: u64,
    complete: bool,
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

/// What came of an attempt to link.
struct Linked {
    work: WorkId,
    peer: KeyId,
    streams: std::result::Result<(SendStream, RecvStream), GetError>,
}

pub(super) struct Driver {
    inner: Arc<Inner>,
    pub(super) swarm: Swarm,
    started: Instant,
    pub(super) works: Works,
    pub(super) layers: Layers,
    links: Links,
    by_link: BTreeMap<LinkId, WorkId>,
    pub(super) slots: BTreeMap<SlotId, CancellationToken>,
    gets: JoinSet<Answer>,
    linking: JoinSet<Linked>,
    waiting: BTreeMap<RequestId, oneshot::Sender<Pass>>,
    request_next: u64,
    /// Links that wait until it is known what is here of their manifest.
    waiting_links: BTreeMap<ManifestDigest, Vec<(KeyId, SendStream, RecvStream)>>,
    tell: mpsc::Sender<Happening>,
    ended: mpsc::UnboundedSender<Ended>,
    ends: mpsc::UnboundedReceiver<Ended>,
}

/// Links that wait for one manifest to be looked up.
const WAITING_LINKS_MAX: usize = 64;

/// Runs until the daemon stops. `heard` is the other end of `Inner::swarm`.
pub(super) async fn run(inner: Arc<Inner>, mut heard: mpsc::Receiver<Happening>, seed: u64) {
    let (ended, ends) = mpsc::unbounded_channel();
    let swarm = Swarm::new(inner.limits.swarm.clone(), seed, inner.control.key(), inner.rack);
    let mut driver = Driver {
        swarm,
        started: Instant::now(),
        works: Works::default(),
        layers: Layers::new(inner.store.clone()),
        links: Links::default(),
        by_link: BTreeMap::new(),
        slots: BTreeMap::new(),
        gets: JoinSet::new(),
        linking: JoinSet::new(),
        waiting: BTreeMap::new(),
        request_next: 0,
        waiting_links: BTreeMap::new(),
        tell: inner.swarm.clone(),
        ended,
        ends,
        inner,
    };
    driver.drive(&mut heard).await;
    driver.wind_down().await;
}

impl Driver {
    async fn drive(&mut self, heard: &mut mpsc::Receiver<Happening>) {
        let mut tell = tokio::time::interval(TELL);
        let mut look = tokio::time::interval(LOOK);
        let stop = self.inner.stop.clone();
        loop {
            let wake = self.drain();
            self.layers.seal();
            let wake_at = async {
                match wake {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                Some(happening) = heard.recv() => self.happened(happening),
                Some(end) = self.ends.recv() => {
                    self.input(Input::Served { request: end.request, bytes: end.bytes, complete: end.complete });
                }
                Some(answer) = self.gets.join_next() => match answer {
                    Ok(answer) => self.answered(answer),
                    Err(e) => warn!(error = %e, "a fetch ended without an answer"),
                },
                Some(linked) = self.linking.join_next() => if let Ok(linked) = linked { self.linked(linked) },
                (layers, result) = self.layers.sealed() => self.sealed(&layers, &result),
                () = wake_at => self.input(Input::Tick),
                _ = tell.tick() => self.look_after(),
                _ = look.tick() => self.look(),
            }
        }
    }

    /// Does all that the swarm wants done. Answers when it wants to be woken.
    fn drain(&mut self) -> Option<tokio::time::Instant> {
        loop {
            match self.swarm.poll() {
                Poll::Action(action) => self.act(action),
                Poll::Event(event) => self.event(event),
                Poll::Idle { wake } => {
                    return wake.map(|at| (self.started + Duration::from_nanos(at.0)).into());
                }
            }
        }
    }

    fn input(&mut self, input: Input) {
        let now = self.now();
        self.swarm.handle(now, input);
    }

    fn now(&self) -> Time {
        Time(u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn happened(&mut self, happening: Happening) {
        match happening {
            Happening::Fetch(job) => self.fetch(*job),
            Happening::Close { digest, closed } => {
                if let Some(id) = self.works.id(&digest) {
                    self.close(id, Err(Error::unavailable("the artifact was removed from this host")));
                }
                drop(closed);
            }
            Happening::Urgent { digest, layer, groups } => {
                let Some(id) = self.works.id(&digest) else { return };
                let Some(fetch) = self.works.get_mut(id).and_then(|work| work.fetch.as_mut()) else { return };
                fetch.want_soon(layer, groups);
                let groups = fetch.urgent.iter().map(|(layer, groups)| (*layer, groups.clone())).collect();
                self.input(Input::Urgent { work: id, groups });
            }
            Happening::LinkIn { peer, digest, send, recv } => self.link_in(peer, digest, send, recv),
            Happening::Serve { digest, layers } => self.serve(digest, layers),
            Happening::Frame { link, frame } => self.input(Input::Frame { link, frame }),
            Happening::LinkEnded { link, peer, broke_protocol } => {
                if broke_protocol {
                    warn!(%peer, "a host's messages about an artifact do not parse");
                }
                self.unlink(link);
                self.input(Input::LinkDown { link });
            }
            Happening::Asked { peer, layer, groups, admitted } => {
                self.request_next += 1;
                let request = RequestId(self.request_next);
                self.waiting.insert(request, admitted);
                self.input(Input::Asked { request, peer, layer, range: groups });
            }
            Happening::Status { answer } => {
                let report = |(id, work): (WorkId, &super::jobs::Work)| {
                    let status = self.swarm.status(id)?;
                    Some(WorkReport { digest: work.digest, status, links: self.swarm.links(id) })
                };
                let _ = answer.send(self.works.iter().filter_map(report).collect());
            }
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Connect { work, peer } => self.connect(work, peer),
            Action::Disconnect { link } => self.unlink(link),
            Action::Send { link, frame } => self.send(&[link], &frame),
            Action::Broadcast { links, frame } => self.send(&links, &frame),
            Action::Fetch { slot, work, from, parts, deadline: _ } => {
                let cancel = CancellationToken::new();
                self.slots.insert(slot, cancel.clone());
                let get = gets::prepare(self, slot, work, from, parts, cancel);
                self.gets.spawn(get);
            }
            Action::Cancel { slot } => {
                if let Some(cancel) = self.slots.get(&slot) {
                    cancel.cancel();
                }
            }
            Action::Serve { request } => {
                let Some(admitted) = self.waiting.remove(&request) else { return };
                let ended = self.ended.clone();
                // Told also when nobody waits for the pass any more: it is dropped then.
                let report = move |bytes, complete| {
                    let _ = ended.send(Ended { request, bytes, complete });
                };
                let _ = admitted.send(Pass::new(report));
            }
            Action::Refuse { request } => {
                self.waiting.remove(&request);
            }
            Action::Ban { peer, charge, until } => {
                let duration = until.since(self.now());
                warn!(%peer, %charge, seconds = duration.as_secs(), "banned a host");
                self.inner.ban(peer, duration);
            }
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::LayerComplete { work, layer } => {
                self.layers.complete(layer);
                if let Some(fetch) = self.works.get_mut(work).and_then(|work| work.fetch.as_mut()) {
                    fetch.unsealed.insert(layer);
                    fetch.urgent.remove(&layer);
                }
            }
            Event::Complete { work } => {
                if let Some(fetch) = self.works.get_mut(work).and_then(|work| work.fetch.as_mut()) {
                    fetch.complete = true;
                }
            }
            Event::Stalled { work, missing_bytes } => {
                if let Some(fetch) = self.works.get_mut(work).and_then(|work| work.fetch.as_mut()) {
                    fetch.stalled.get_or_insert((Instant::now(), missing_bytes));
                }
            }
            Event::Paused { missing_bytes } => {
                warn!(missing_bytes, "the disk is full: fetching goes on when there is room");
            }
            Event::Stopped { work, .. } => {
                let error = self.inner.disk_error();
                self.close(work, Err(error));
            }
        }
    }

    fn fetch(&mut self, mut job: Job) {
        if let Some(id) = self.works.id(&job.digest) {
            // It was only served, and has lost something since.
            self.close(id, Ok(()));
        }
        let mut unsealed = Vec::new();
        self.layers.adopt(std::mem::take(&mut job.open));
        for want in &mut job.layers {
            // What another fetch brought since this one was prepared.
            if let Some(partial) = self.layers.is_open(&want.layer) {
                want.missing = partial.missing();
                if want.missing.is_empty() {
                    unsealed.push(want.layer);
                }
            } else if !want.missing.is_empty() && matches!(self.inner.store.layer(&want.layer), Ok(Some(_))) {
                want.missing = GroupSet::empty();
            }
        }
        let (digest, layers) = (job.digest, job.layers.clone());
        let sizes = layers.iter().map(|want| (want.layer, want.size)).collect();
        let mut fetch = super::jobs::Fetch::new(job);
        fetch.complete = layers.iter().all(|want| want.missing.is_empty());
        for layer in unsealed {
            fetch.unsealed.insert(layer);
            self.layers.complete(layer);
        }
        let id = self.works.insert(digest, sizes, Some(fetch));
        self.input(Input::Open { work: id, layers });
        self.candidates(id);
        self.finish();
    }

    /// Takes part no more.
    fn close(&mut self, id: WorkId, result: Result<()>) {
        self.input(Input::Close { work: id });
        let of_work: Vec<LinkId> =
            self.by_link.iter().filter(|(_, work)| **work == id).map(|(link, _)| *link).collect();
        of_work.into_iter().for_each(|link| self.unlink(link));
        if let Some(work) = self.works.remove(id) {
            if let Some(fetch) = work.fetch {
                fetch.end(result);
            }
            for layer in work.sizes.keys().filter(|layer| !self.works.uses(layer)) {
                self.layers.close(layer);
            }
        }
    }

    fn answered(&mut self, answer: Answer) {
        self.slots.remove(&answer.slot);
        let work = self.works.get_mut(answer.work);
        if answer.bytes > 0 {
            if let Some(fetch) = work.and_then(|work| work.fetch.as_mut()) {
                fetch.sources.insert(answer.from);
                fetch.stalled = None;
            }
            self.inner.fetched(&answer.from, answer.bytes);
            for (layer, _) in &answer.stored {
                self.layers.written(layer, answer.bytes / answer.stored.len() as u64);
            }
        }
        let input = gets::input(&self.inner, answer);
        self.input(input);
    }

    fn sealed(&mut self, layers: &[LayerId], result: &Result<()>) {
        debug!(layers = layers.len(), "sealed");
        let mut failed = Vec::new();
        for (id, work) in self.works.iter_mut() {
            let Some(fetch) = &mut work.fetch else { continue };
            for layer in layers {
                if fetch.unsealed.remove(layer) && result.is_err() {
                    failed.push(id);
                }
            }
        }
        if let Err(e) = result {
            failed.dedup();
            failed.into_iter().for_each(|id| self.close(id, Err(e.clone())));
        }
        self.inner.grown.send_modify(|n| *n += 1);
        self.finish();
    }

    /// Ends fetches that have all their layers sealed. They go on being served while somebody is linked.
    fn finish(&mut self) {
        for (_, work) in self.works.iter_mut() {
            if work.fetch.as_ref().is_some_and(super::jobs::Fetch::is_done)
                && let Some(fetch) = work.fetch.take()
            {
                work.idle_since = Instant::now();
                fetch.end(Ok(()));
            }
        }
    }

    /// Tells those who wait; gives up what nobody has, and what nobody needs.
    fn look_after(&mut self) {
        let paused = self.swarm.is_paused();
        let patience = self.inner.limits.patience;
        let (mut given_up, mut idle) = (Vec::new(), Vec::new());
        for (id, work) in self.works.iter_mut() {
            if let Some(fetch) = &mut work.fetch {
                fetch.tell(paused);
                match fetch.stalled {
                    Some(_) if paused => fetch.stalled = None,
                    Some((since, missing)) if since.elapsed() > patience => given_up.push((id, missing)),
                    _ => {}
                }
            } else if work.is_idle(IDLE_MAX) {
                idle.push(id);
            }
        }
        for (id, missing) in given_up {
            let error = Error::unavailable(format!("no reachable host has the {missing} bytes that are missing"));
            self.close(id, Err(error.hint(
                "what is here is kept; open it again when a host that has it is up, see `weighlock peers`",
            )));
        }
        idle.into_iter().for_each(|id| self.close(id, Ok(())));
        if paused && self.has_room() {
            self.input(Input::Room);
        }
        self.input(Input::Tick);
    }

    fn has_room(&self) -> bool {
        let needed = self.swarm.missing_bytes().min(self.inner.limits.room_bytes_min);
        self.inner.store.available_bytes().is_ok_and(|available| available >= needed)
    }

    fn look(&mut self) {
        let ids: Vec<WorkId> = self.works.iter().map(|(id, _)| id).collect();
        ids.into_iter().for_each(|id| self.candidates(id));
    }

    /// Tells the swarm who takes part, if that changed.
    fn candidates(&mut self, id: WorkId) {
        let Some(work) = self.works.get_mut(id) else { return };
        let hosts = sources::candidates(&self.inner, &work.digest);
        if hosts != work.candidates {
            work.candidates.clone_from(&hosts);
            self.input(Input::Candidates { work: id, hosts });
        }
    }

    fn connect(&mut self, work: WorkId, peer: KeyId) {
        let Some(digest) = self.works.get(work).map(|work| work.digest) else { return };
        let inner = self.inner.clone();
        self.linking.spawn(async move {
            let open = async {
                let connection = inner.data.connect(peer, &sources::addresses(&inner, &peer)).await?;
                open_link(&connection, digest).await
            };
            Linked { work, peer, streams: open.await }
        });
    }

    fn linked(&mut self, linked: Linked) {
        let Linked { work, peer, streams } = linked;
        match streams {
            Ok(streams) if self.works.get(work).is_some() => self.link(work, peer, streams, true),
            Ok(_) => {}
            Err(e) => {
                debug!(%peer, error = %e, "no link");
                self.input(Input::ConnectFailed { work, peer });
            }
        }
    }

    fn link(&mut self, work: WorkId, peer: KeyId, streams: (SendStream, RecvStream), ours: bool) {
        let link = self.links.name();
        let rack = sources::rack_of(&self.inner, &peer);
        self.by_link.insert(link, work);
        if let Some(work) = self.works.get_mut(work) {
            work.links += 1;
        }
        // The reader's frames come through the same channel, so after this.
        self.links.start(link, peer, streams, self.tell.clone());
        self.input(Input::LinkUp { link, work, peer, rack, ours });
    }

    fn unlink(&mut self, link: LinkId) {
        self.links.close(link);
        if let Some(work) = self.by_link.remove(&link).and_then(|work| self.works.get_mut(work)) {
            work.links = work.links.saturating_sub(1);
            work.idle_since = Instant::now();
        }
    }

    fn send(&mut self, to: &[LinkId], frame: &Frame) {
        let bytes = links::encode(frame);
        for link in to {
            if !self.links.send(*link, &bytes) {
                debug!(link = link.0, "a neighbour reads too slowly, or is gone");
                self.unlink(*link);
                self.input(Input::LinkDown { link: *link });
            }
        }
    }

    fn link_in(&mut self, peer: KeyId, digest: ManifestDigest, send: SendStream, recv: RecvStream) {
        if let Some(id) = self.works.id(&digest) {
            return self.link(id, peer, (send, recv), false);
        }
        let first = !self.waiting_links.contains_key(&digest);
        if first && self.waiting_links.len() >= WAITING_LINKS_MAX {
            return refuse_link(send, recv);
        }
        let waiting = self.waiting_links.entry(digest).or_default();
        if waiting.len() >= WAITING_LINKS_MAX {
            return refuse_link(send, recv);
        }
        waiting.push((peer, send, recv));
        if first {
            let (inner, tell) = (self.inner.clone(), self.tell.clone());
            tokio::spawn(async move {
                let layers = sources::complete_layers(&inner, digest).await;
                let _ = tell.send(Happening::Serve { digest, layers }).await;
            });
        }
    }

    /// What is here of a manifest that others asked for is known: served if that is all of it.
    fn serve(&mut self, digest: ManifestDigest, layers: Option<Vec<(LayerId, u64)>>) {
        let waiting = self.waiting_links.remove(&digest).unwrap_or_default();
        let id = self.works.id(&digest).or_else(|| {
            let layers = layers?;
            let id = self.works.insert(digest, layers.iter().copied().collect(), None);
            let want = |(layer, size)| weighlock_protocol::swarm::LayerWant {
                layer,
                size,
                missing: GroupSet::empty(),
            };
            self.input(Input::Open { work: id, layers: layers.into_iter().map(want).collect() });
            self.candidates(id);
            Some(id)
        });
        for (peer, send, recv) in waiting {
            match id {
                Some(id) => self.link(id, peer, (send, recv), false),
                None => refuse_link(send, recv),
            }
        }
    }

    pub(super) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// Ends what is in flight, so that what was proven is on record before anyone opens these layers again.
    async fn wind_down(&mut self) {
        self.slots.values().for_each(CancellationToken::cancel);
        while self.gets.join_next().await.is_some() {}
        self.layers.wind_down().await;
        let stopping = || Error::unavailable("the daemon is stopping").hint("open it again; it resumes");
        let ids: Vec<WorkId> = self.works.iter().map(|(id, _)| id).collect();
        for id in ids {
            if let Some(fetch) = self.works.remove(id).and_then(|work| work.fetch) {
                fetch.end(Err(stopping()));
            }
        }
    }
}
