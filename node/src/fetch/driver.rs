//! The loop around the swarm: select, handle, drain. It decides nothing itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::{RecvStream, SendStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, trace, warn};
use weighlock_protocol::swarm::{
    Action, Charge, Event, Fault, Input, LinkId, Poll, RequestId, SlotId, Swarm, WorkId,
};
use weighlock_protocol::wire::bao::GroupSet;
use weighlock_protocol::{KeyId, LayerId, ManifestDigest, Time};

use super::Inner;
use super::gets::{self, Answer};
use super::happening::{Ended, Happening, WorkReport};
use super::jobs::{Job, Works};
use super::layers::Layers;
use super::links::Links;
use super::neighbours::Linked;
use super::sources;
use crate::error::{Error, Result};
use crate::net::data::Pass;

/// How often those who wait are told, and limits of patience are looked at.
const TELL: Duration = Duration::from_millis(100);
/// How often hosts that take part are looked for.
const LOOK: Duration = Duration::from_millis(500);
/// How often the provider table is asked who has what is fetched.
const LIST: Duration = Duration::from_secs(10);
/// Room that trees and records of layers take, which were begun before.
const ROOM_BYTES_LEAST: u64 = 1 << 20;
/// A manifest that nobody fetches from here any more is closed after this.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// Happenings that wait for the loop; those who tell more wait themselves.
pub(super) const HAPPENINGS_MAX: usize = 1_024;

pub(super) struct Driver {
    pub(super) inner: Arc<Inner>,
    pub(super) swarm: Swarm,
    started: Instant,
    pub(super) works: Works,
    pub(super) layers: Layers,
    pub(super) links: Links,
    pub(super) by_link: BTreeMap<LinkId, WorkId>,
    /// Fetches in flight: how to end them, and the task of each.
    slots: BTreeMap<SlotId, (CancellationToken, tokio::task::Id)>,
    gets: JoinSet<Answer>,
    pub(super) linking: JoinSet<Linked>,
    pub(super) waiting: BTreeMap<RequestId, oneshot::Sender<Pass>>,
    request_next: u64,
    /// Nothing new is given to others.
    pub(super) draining: bool,
    /// Links that wait until it is known what is here of their manifest.
    pub(super) waiting_links: BTreeMap<ManifestDigest, Vec<(KeyId, SendStream, RecvStream)>>,
    pub(super) tell: mpsc::Sender<Happening>,
    ended: mpsc::UnboundedSender<Ended>,
    ends: mpsc::UnboundedReceiver<Ended>,
}

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
        draining: false,
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
        let mut list = tokio::time::interval(LIST);
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
                    Err(e) => self.broken(&e),
                },
                Some(linked) = self.linking.join_next() => if let Ok(linked) = linked { self.linked(linked) },
                (layers, result) = self.layers.sealed() => self.sealed(&layers, &result),
                () = wake_at => self.input(Input::Tick),
                _ = tell.tick() => self.look_after(),
                _ = look.tick() => self.look(),
                _ = list.tick() => self.look_up(),
            }
        }
    }

    /// Does all that the swarm wants done. Answers when it wants to be woken.
    fn drain(&mut self) -> Option<tokio::time::Instant> {
        loop {
            match self.swarm.poll() {
                Poll::Action(action) => {
                    trace!(?action, "to do");
                    self.act(action);
                }
                Poll::Event(event) => self.event(event),
                Poll::Idle { wake } => {
                    return wake.map(|at| (self.started + Duration::from_nanos(at.0)).into());
                }
            }
        }
    }

    pub(super) fn input(&mut self, input: Input) {
        let now = self.now();
        trace!(?input, "heard");
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
                    let removed = Error::unavailable("the artifact was removed from this host");
                    self.close(id, Err(removed.hint("open it again to fetch it anew")));
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
            Happening::Frame { link, frame, taken } => {
                self.input(Input::Frame { link, frame });
                drop(taken);
            }
            Happening::LinkEnded { link, peer, spoke, broke_protocol } => {
                self.link_ended(link, peer, spoke, broke_protocol);
            }
            // Who fetches here gives and takes until it is done; what is only held is not asked for any more.
            Happening::Asked { layer, .. } if self.draining && !self.works.uses(&layer) => {}
            Happening::Asked { peer, layer, groups, admitted } => {
                self.request_next += 1;
                let request = RequestId(self.request_next);
                self.waiting.insert(request, admitted);
                self.input(Input::Asked { request, peer, layer, range: groups });
            }
            Happening::Listed { digest, hosts } => {
                if let Some(id) = self.works.id(&digest) {
                    if let Some(work) = self.works.get_mut(id) {
                        work.listed = hosts;
                    }
                    self.candidates(id);
                }
            }
            Happening::Drain { on } => self.drain_others(on),
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
                let get = gets::prepare(self, slot, work, from, parts, cancel.clone());
                let task = self.gets.spawn(get).id();
                self.slots.insert(slot, (cancel, task));
            }
            Action::Cancel { slot } => {
                if let Some((cancel, _)) = self.slots.get(&slot) {
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
                self.inner.ban(peer, duration, matches!(charge, Charge::WrongBytes(_)));
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
            Event::Silent { peer } => {
                warn!(%peer, "a host says that it has something, and sends nothing; others are asked");
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
        sources::look_up(&self.inner, digest);
        self.input(Input::Open { work: id, layers });
        self.candidates(id);
        self.finish();
    }

    /// Takes part no more.
    pub(super) fn close(&mut self, id: WorkId, result: Result<()>) {
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

    /// A task ended without an answer, by a panic: the swarm hears that its fetch failed, so that another may do it.
    fn broken(&mut self, error: &tokio::task::JoinError) {
        warn!(error = %error, "a fetch ended without an answer");
        let of_task = self.slots.iter().find(|(_, (_, task))| *task == error.id());
        if let Some(slot) = of_task.map(|(slot, _)| *slot) {
            self.slots.remove(&slot);
            self.input(Input::Failed { slot, fault: Fault::Lost, stored: Vec::new() });
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
        self.end_served();
    }

    /// Tells those who wait; gives up what nobody has, and what nobody needs.
    fn look_after(&mut self) {
        let paused = self.swarm.is_paused();
        let limits = &self.inner.limits;
        let (mut given_up, mut idle) = (Vec::new(), Vec::new());
        for (id, work) in self.works.iter_mut() {
            if let Some(fetch) = &mut work.fetch {
                fetch.tell(paused);
                let Some((since, missing)) = fetch.stalled else { continue };
                match who_has_more(&self.swarm, id) {
                    _ if paused => fetch.stalled = None,
                    Holders::Somebody => fetch.stalled = None,
                    Holders::Silent(_) if since.elapsed() <= limits.silent_patience => {
                        fetch.silent = Some(Instant::now());
                    }
                    // Its link may be back in a moment.
                    Holders::Nobody
                        if fetch.silent.map_or(since, |at| at.max(since)).elapsed() <= limits.patience => {}
                    Holders::Silent(peer) => given_up.push((id, missing, Some(peer))),
                    Holders::Nobody => given_up.push((id, missing, None)),
                }
            } else if work.is_idle(IDLE_MAX) {
                idle.push(id);
            }
        }
        for (id, missing, silent) in given_up {
            let why = match silent {
                None => format!("no reachable host has the {missing} bytes that are missing"),
                Some(peer) => format!("{peer} has the {missing} bytes that are missing and sends nothing"),
            };
            self.close(id, Err(Error::unavailable(why).hint(
                "what is here is kept; open it again when a host that has it is up, see `weighlock peers`",
            )));
        }
        idle.into_iter().for_each(|id| self.close(id, Ok(())));
        self.input(Input::Tick);
    }

    /// True if the disk has room for all that is missing, or for so much of it that it is worth going on. What was begun
    /// mostly has its room.
    fn has_room(&self) -> bool {
        let fetched = self.works.iter().filter(|(_, work)| work.fetch.is_some());
        let sizes: BTreeMap<&LayerId, u64> =
            fetched.flat_map(|(_, work)| work.sizes.iter().map(|(layer, size)| (layer, *size))).collect();
        let lacks = |(layer, size): (&LayerId, u64)| match self.layers.is_open(layer) {
            Some(begun) => begun.roomless_bytes().unwrap_or(0),
            None if matches!(self.inner.store.layer(layer), Ok(Some(_))) => 0,
            None => size,
        };
        let needed = sizes.into_iter().map(lacks).fold(ROOM_BYTES_LEAST, u64::saturating_add);
        let needed = needed.min(self.inner.limits.room_bytes_min);
        self.inner.store.available_bytes().is_ok_and(|available| available >= needed)
    }

    pub(super) fn look(&mut self) {
        if self.swarm.is_paused() && self.has_room() {
            self.input(Input::Room);
        }
        let ids: Vec<WorkId> = self.works.iter().map(|(id, _)| id).collect();
        ids.into_iter().for_each(|id| self.candidates(id));
    }

    /// Asks the provider table who has what is fetched: records list only so many artifacts of a host.
    fn look_up(&mut self) {
        for (_, work) in self.works.iter().filter(|(_, work)| work.fetch.is_some()) {
            sources::look_up(&self.inner, work.digest);
        }
    }

    /// Tells the swarm who takes part, if that changed.
    pub(super) fn candidates(&mut self, id: WorkId) {
        let Some(work) = self.works.get_mut(id) else { return };
        let hosts = sources::candidates(&self.inner, &work.digest, &work.listed);
        if hosts != work.candidates {
            work.candidates.clone_from(&hosts);
            self.input(Input::Candidates { work: id, hosts });
        }
    }

    /// Ends what is in flight, so that what was proven is on record before anyone opens these layers again.
    async fn wind_down(&mut self) {
        self.slots.values().for_each(|(cancel, _)| cancel.cancel());
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

/// Who has what is missing.
enum Holders {
    /// Something is on its way, or a neighbour has more than this host: it need only wait for its turn.
    Somebody,
    /// Only neighbours that let what they were asked for lie, such as this one. They may be slow.
    Silent(KeyId),
    Nobody,
}

fn who_has_more(swarm: &Swarm, id: WorkId) -> Holders {
    let Some(status) = swarm.status(id) else { return Holders::Nobody };
    let links = swarm.links(id);
    let mut holders = links.iter().filter(|link| link.have > status.held);
    match (status.in_flight, holders.clone().find(|link| !link.silent)) {
        (0, None) => holders.next().map_or(Holders::Nobody, |link| Holders::Silent(link.peer)),
        _ => Holders::Somebody,
    }
}
