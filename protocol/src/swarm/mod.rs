//! Swarming: which host gets which piece from whom, decided without IO or a clock.
//!
//! Big bytes never enter [`Swarm`]. A driver calls `handle(now, input)`, then `poll()` until it is idle, and decides
//! nothing. Uploads are granted by those who have a free slot; a grant names a piece where its giver cares (first
//! holders release each piece once, in loading order) and else leaves the choice to the receiver. Pieces are asked
//! for by name where a loader waits, where they must cross racks, and where nothing moves.
//!
//! State has owners: `pieces` what is here, `work` one manifest and `link` each of its neighbours, `uploads` and `serving` uploads,
//! `picking` and `fetching` fetches, `conduct` what is remembered of peers, `racks` whose turn it is, `timers` what is
//! due.
//!
//! **Architecture invariant:** all randomness comes from a seed and all collections are ordered, so the same inputs
//! give the same decisions on every machine. `sim` relies on it.

mod asking;
mod bucket;
mod choosing;
mod conduct;
mod config;
mod fetching;
mod hearing;
mod io;
mod link;
mod neighbours;
mod picking;
mod pieces;
mod racks;
mod rows;
mod serving;
mod set;
mod space;
mod timers;
mod uploads;
mod work;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

pub use config::SwarmConfig;
pub use io::{
    Action, Candidate, Charge, Event, Fault, Input, LayerWant, LinkId, PieceNo, Poll, RackId, RequestId,
    SlotId, WorkId,
};
pub use set::PieceSet;
pub use space::{BUNDLE_LAYERS_MAX, Part, Space, piece_bytes};

use self::bucket::Bucket;
use self::conduct::Peers;
use self::fetching::Slot;
use self::pieces::Pieces;
use self::rows::{Few, Rows};
use self::timers::{Due, Timers};
use self::uploads::Uploads;
use self::work::Work;
use crate::id::{KeyId, LayerId};
use crate::time::Time;
use crate::wire::bao::GroupSet;
use crate::wire::swarm::Frame;

/// Time per piece before the first one was measured.
const PACE_INITIAL: Duration = Duration::from_millis(50);

/// One host's part in all swarms.
#[derive(Debug)]
pub struct Swarm {
    config: Arc<SwarmConfig>,
    /// How manifests are cut, where that is known before they are opened.
    cuts: Vec<Arc<Space>>,
    me: KeyId,
    rack: Option<RackId>,
    rng: ChaCha8Rng,
    now: Time,
    works: Few<WorkId, Work>,
    /// There is more than one work, so layers may be shared.
    works_share: bool,
    link_work: BTreeMap<LinkId, WorkId>,
    peers: Peers,
    uploads: Uploads,
    slots: Rows<SlotId, Slot>,
    slot_next: u64,
    bytes_in_flight: u64,
    downloads: Option<Bucket>,
    timers: Timers,
    /// How long a piece takes, smoothed: the measure of all short waits.
    pace: Duration,
    last_piece: Option<Time>,
    /// When any bytes came last.
    last_received: Option<Time>,
    uploads_dirty: bool,
    paused: bool,
    out: VecDeque<Poll>,
}

/// What a manifest's swarm is at, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkStatus {
    /// Pieces in all.
    pub pieces: usize,
    /// Pieces that are here whole.
    pub held: usize,
    /// Bytes that are missing.
    pub missing_bytes: u64,
    /// Neighbours.
    pub links: usize,
    /// Fetches in flight.
    pub in_flight: usize,
    /// Hosts that something is in flight from.
    pub sources: usize,
}

/// What one neighbour is at, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkStatus {
    /// Which.
    pub link: LinkId,
    /// Who.
    pub peer: KeyId,
    /// Same rack, or racks are not known.
    pub near: bool,
    /// Pieces that it has whole.
    pub have: usize,
    /// Fetches in flight from it.
    pub in_flight: u32,
    /// Pieces promised to it or on their way.
    pub uploads: u32,
    /// It never sent anything and does not answer: what it says that it has is not counted on.
    pub silent: bool,
}

impl Swarm {
    /// The swarm of host `me`. `seed` is the only randomness.
    pub fn new(config: impl Into<Arc<SwarmConfig>>, seed: u64, me: KeyId, rack: Option<RackId>) -> Self {
        let (config, start) = (config.into(), Time(0));
        let downloads = config.download_bytes_per_s.map(|rate| Bucket::new(rate, rate / 4, start));
        Self {
            cuts: Vec::new(),
            me,
            rack,
            rng: ChaCha8Rng::seed_from_u64(seed),
            now: start,
            works: Few::default(),
            works_share: false,
            link_work: BTreeMap::new(),
            peers: Peers::default(),
            uploads: Uploads::new(config.upload_bytes_per_s, start),
            slots: Rows::default(),
            slot_next: 0,
            bytes_in_flight: 0,
            downloads,
            timers: Timers::default(),
            pace: PACE_INITIAL,
            last_piece: None,
            last_received: None,
            uploads_dirty: false,
            paused: false,
            out: VecDeque::new(),
            config,
        }
    }

    /// Lets this host use `cut` for a manifest of just these layers, when it opens one: where many hosts run in one
    /// process, they need not keep a copy each.
    pub fn share_cut(&mut self, cut: Arc<Space>) {
        self.cuts.push(cut);
    }

    /// Takes a frame of a neighbour, as [`Input::Frame`] does, without keeping it.
    pub fn hear(&mut self, now: Time, link: LinkId, frame: &Frame) {
        self.now = self.now.max(now);
        self.frame(link, frame);
    }

    /// Takes one input. `now` never goes back; an earlier one counts as the latest seen.
    pub fn handle(&mut self, now: Time, input: Input) {
        self.now = self.now.max(now);
        match input {
            Input::Open { work, layers } => self.open(work, &layers),
            Input::Close { work } => self.close(work),
            Input::Candidates { work, hosts } => self.candidates(work, hosts),
            Input::LinkUp { link, work, peer, rack, ours } => self.link_up(link, work, peer, rack, ours),
            Input::LinkDown { link } => self.link_down(link),
            Input::ConnectFailed { work, peer } => self.connect_failed(work, peer),
            Input::Frame { link, frame } => self.frame(link, &frame),
            Input::Stored { slot, bytes } => self.stored(slot, bytes),
            Input::Failed { slot, fault, stored } => self.failed(slot, fault, &stored),
            Input::Grown { layer, groups } => self.grown(&layer, &groups, None),
            Input::Shrunk { layer, groups } => self.shrunk(&layer, &groups),
            Input::Urgent { work, groups } => self.urgent(work, &groups),
            Input::Asked { request, peer, layer, range } => self.asked(request, peer, &layer, &range),
            Input::Served { request, bytes, complete } => self.served(request, bytes, complete),
            Input::Room => self.room(),
            Input::Tick => {}
        }
    }

    /// Puts `out` in the place of the list that [`Swarm::poll`] takes from, and the other way round. Both are empty
    /// between an idle poll and the next input: where many hosts run in one process, one list serves all of them.
    pub fn swap_out(&mut self, out: &mut VecDeque<Poll>) {
        std::mem::swap(&mut self.out, out);
    }

    /// The next thing to do or to know. Call until it is [`Poll::Idle`].
    pub fn poll(&mut self) -> Poll {
        loop {
            if let Some(next) = self.out.pop_front() {
                if self.out.is_empty() {
                    // Begins anew at the same place in memory.
                    self.out.clear();
                }
                return next;
            }
            if let Some(due) = self.timers.pop(self.now) {
                self.due(due);
            } else if self.uploads_dirty {
                self.uploads_dirty = false;
                self.fill_uploads();
            } else {
                return Poll::Idle { wake: self.timers.next() };
            }
        }
    }

    /// Bytes missing over all manifests.
    pub fn missing_bytes(&self) -> u64 {
        self.works.values().map(|work| work.pieces.missing_bytes()).sum()
    }

    /// True if nothing is missing of a manifest that this host takes part in.
    pub fn is_complete(&self, work: WorkId) -> bool {
        self.works.get(&work).is_some_and(|work| work.pieces.is_complete())
    }

    /// Pieces that are here whole.
    pub fn held(&self, work: WorkId) -> Option<&PieceSet> {
        self.works.get(&work).map(|work| work.pieces.held())
    }

    /// How a manifest is cut.
    pub fn space(&self, work: WorkId) -> Option<&Space> {
        self.works.get(&work).map(|work| &*work.pieces.space)
    }

    /// What a manifest is at.
    pub fn status(&self, work: WorkId) -> Option<WorkStatus> {
        let work = self.works.get(&work)?;
        Some(WorkStatus {
            pieces: work.pieces.count(),
            held: work.pieces.held().len(),
            missing_bytes: work.pieces.missing_bytes(),
            links: work.links().len(),
            in_flight: work.in_flight,
            sources: work.links().iter().filter(|link| link.in_flight > 0).count(),
        })
    }

    /// The neighbours of a manifest.
    pub fn links(&self, work: WorkId) -> Vec<LinkStatus> {
        let links = self.works.get(&work).map_or(&[][..], |work| work.links());
        let status = |link: &link::Link| LinkStatus {
            link: link.id,
            peer: link.peer,
            near: link.near,
            have: link.have().len(),
            in_flight: link.in_flight,
            uploads: link.jobs,
            silent: link.is_silent(),
        };
        links.iter().map(status).collect()
    }

    /// Fetches in flight, those included that were cancelled and not yet answered.
    pub fn slots_in_flight(&self) -> usize {
        self.slots.len()
    }

    /// Bytes that these fetches cover.
    pub fn bytes_in_flight(&self) -> u64 {
        self.bytes_in_flight
    }

    /// Uploads that run, that are promised, and requests that wait or run.
    pub fn uploads(&self) -> (usize, usize, usize) {
        (self.uploads.running(), self.uploads.promised(), self.uploads.requests())
    }

    /// True between a full disk and [`Input::Room`].
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    fn open(&mut self, id: WorkId, layers: &[LayerWant]) {
        self.close(id);
        let cut = self.cuts.iter().find(|cut| cut.is_of(&self.config, layers)).cloned();
        let cut = cut.unwrap_or_else(|| {
            let layers = layers.iter().map(|want| (want.layer, want.size));
            Arc::new(Space::new(&self.config, layers))
        });
        let mut work = Work::new(id, Pieces::new(cut, layers), self.rack.is_some());
        // A newcomer does not get all that others got before.
        work.sent_bytes = self.works.values().map(|work| work.sent_bytes).min().unwrap_or(0);
        let complete = work.pieces.is_complete();
        if complete {
            let all = racks::owned(self.me, &[], work.pieces.count());
            work.own(all);
        }
        let urgent = work.pieces.missing_bytes() == 0 && !complete;
        self.works.insert(id, work);
        self.works_share = self.works.len() > 1;
        if complete {
            return;
        }
        self.starve_soon(id);
        if urgent {
            // Only empty files are missing; they are asked for like all others.
            self.timers.set(Due::Starve(id), self.now);
        }
    }

    fn close(&mut self, id: WorkId) {
        if !self.works.contains_key(&id) {
            return;
        }
        self.cancel_where(fetching::Why::NoUse, |slot| slot.work == id);
        let links: Vec<LinkId> =
            self.link_work.iter().filter(|(_, work)| **work == id).map(|(link, _)| *link).collect();
        for link in links {
            self.drop_link(link, false);
        }
        self.works.remove(&id);
        self.works_share = self.works.len() > 1;
        self.timers.clear_work(id);
    }

    fn urgent(&mut self, id: WorkId, groups: &[(LayerId, GroupSet)]) {
        let Some(work) = self.works.get_mut(&id) else {
            return;
        };
        work.urgent.clear();
        for (layer, groups) in groups {
            let Some(layer) = work.pieces.space.layer_index(layer) else { continue };
            for (piece, _, _) in work.pieces.space.split(layer, groups) {
                if !work.pieces.held().contains(piece) {
                    work.urgent.insert(piece);
                }
            }
        }
        self.ask_urgent(id);
    }

    fn shrunk(&mut self, layer: &LayerId, groups: &GroupSet) {
        let ids: Vec<WorkId> = self.works.keys().copied().collect();
        for id in ids {
            let Some(work) = self.works.get_mut(&id) else { continue };
            let Some(index) = work.pieces.space.layer_index(layer) else { continue };
            let mut lost = Vec::new();
            for (piece, part, range) in work.pieces.space.split(index, groups) {
                if work.pieces.lose(piece, part, &GroupSet::from(range)) {
                    work.unhold(piece);
                    lost.push(piece);
                }
            }
            let links: Vec<LinkId> = work.links().iter().map(|link| link.id).collect();
            if !lost.is_empty() && !links.is_empty() {
                self.act(Action::Broadcast { links, frame: Frame::Lost { pieces: lost } });
            }
            self.starve_soon(id);
            self.look_for_neighbours(id);
        }
    }

    fn due(&mut self, due: Due) {
        match due {
            Due::Slot(slot) => self.late(slot),
            Due::Promise(job) => self.promise_late(job),
            Due::News(work) => self.tell_news(work),
            Due::Starve(work) => self.starve(work),
            Due::Turn(work) => self.turn(work),
            Due::Neighbours(work) => self.look_for_neighbours(work),
            Due::Release(work, piece) => self.release_due(work, piece),
            Due::Uploads => self.uploads_dirty = true,
        }
    }

    /// What a neighbour told of its load before this is not believed any more.
    fn stale(&self) -> Duration {
        Duration::from_millis(self.config.declined_ms)
    }

    fn stale_ns(&self) -> u64 {
        self.config.declined_ms.saturating_mul(1_000_000)
    }

    /// Takes one more piece into the measure of short waits.
    fn pace(&mut self, started: Time) {
        let since = self.last_piece.replace(self.now).unwrap_or(started);
        let one = self.now.since(since).max(Duration::from_micros(100)).min(Duration::from_secs(2));
        self.pace = self.pace * 7 / 8 + one / 8;
    }

    fn act(&mut self, action: Action) {
        self.out.push_back(Poll::Action(action));
    }

    fn tell(&mut self, event: Event) {
        self.out.push_back(Poll::Event(event));
    }
}

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
