//! Fetching: what is asked of whom, and what becomes of it.

use std::time::Duration;

use smallvec::SmallVec;

use super::Swarm;
use super::conduct::Seat;
use super::io::{Action, Charge, Event, Fault, LinkId, PieceNo, SlotId, WorkId};
use super::pieces::Progress;
use super::timers::Due;
use crate::id::{KeyId, LayerId};
use crate::time::Time;
use crate::wire::bao::GroupSet;
use crate::wire::swarm::Frame;

/// For each so many pieces of a manifest, news of one may wait for half of what a piece takes ...
const NEWS_PIECES: usize = 256;
/// ... up to so many halves.
const NEWS_HALVES_MAX: u32 = 16;
/// A piece that more neighbours have is no longer rare: its news may wait longer. One of them may be a first holder.
const RARE_MAX: u16 = 1;

/// Why we cancelled a fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    Late,
    Duplicate,
    NoUse,
}

/// A fetch in flight.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) work: WorkId,
    link: LinkId,
    pub(super) from: KeyId,
    seat: Seat,
    pub(super) piece: PieceNo,
    /// What was asked of each part: the rest of the piece may be lost before the fetch ends.
    parts: Vec<(usize, GroupSet)>,
    pub(super) bytes: u64,
    pub(super) started: Time,
    /// It crosses racks, and the rack was told.
    imported: bool,
    /// Pieces of other manifests that it brings, too.
    shadows: Vec<(WorkId, PieceNo)>,
    pub(super) cancelled: Option<Why>,
}

impl Swarm {
    /// A neighbour promises an upload.
    pub(super) fn granted(&mut self, id: WorkId, at: usize, named: Option<PieceNo>) {
        let mut asked = None;
        if let (Some(piece), Some(work)) = (named, self.works.get_mut(&id)) {
            let link = work.links()[at].id;
            asked = work.asks.get(&piece).copied().filter(|ask| ask.of == link);
            // One that somebody else was asked for is answered by nobody else: it may be of no use here.
            if asked.is_some() {
                work.ask_ended(piece);
            }
        }
        match self.pick(id, at, named, asked) {
            Some(piece) if self.start(id, at, piece) => {
                // Whoever else was asked for it need not answer.
                if let Some(work) = self.works.get_mut(&id) {
                    work.ask_ended(piece);
                }
            }
            _ => {
                let frame = Frame::Decline { piece: named, load: self.load() };
                self.send_with_news(id, at, frame);
            }
        }
    }

    /// Asks for a piece, or for what the neighbour has of it. False if there is nothing, or no budget.
    fn start(&mut self, id: WorkId, at: usize, piece: PieceNo) -> bool {
        let now = self.now;
        let Self { works, peers, config, .. } = self;
        let Some(work) = works.get_mut(&id) else {
            return false;
        };
        let mut parts = work.pieces.missing(piece);
        let link = &work.links()[at];
        if !link.have().contains(piece) {
            let Some(have) = link.partial().get(&piece) else { return false };
            for (part, lack) in &mut parts {
                *lack = &*lack & &have[*part];
            }
            parts.retain(|(_, lack)| !lack.is_empty());
        }
        if parts.is_empty() {
            return false;
        }
        let layers: Vec<usize> = work.pieces.space.parts(piece).iter().map(|part| part.layer).collect();
        let bytes: u64 =
            parts.iter().map(|(part, lack)| work.pieces.space.bytes_in(layers[*part], lack)).sum();
        if self.bytes_in_flight + bytes > config.in_flight_bytes_max && self.bytes_in_flight > 0 {
            return false;
        }
        let request: Vec<(LayerId, GroupSet)> = parts
            .iter()
            .map(|(part, lack)| (work.pieces.space.layer_id(layers[*part]), lack.clone()))
            .collect();
        let (link, peer, seat, near) = (link.id, link.peer, link.seat, link.near);
        let slot = SlotId(self.slot_next);
        self.slot_next += 1;
        work.pieces.begin(piece, slot);
        work.in_flight += 1;
        (work.stalled, work.starving_since) = (false, None);
        work.link_mut(at).in_flight += 1;
        let imported = !near;
        // A piece shares this host's downlink with all others in flight.
        let shared =
            self.pace * u32::try_from(config.downloads_max).unwrap_or(u32::MAX) * config.deadline_factor;
        let shared = shared.min(Duration::from_millis(config.deadline_ms_max));
        let conduct = match peers.near(seat, &peer) {
            Some(conduct) => conduct,
            None => peers.of(config, now, peer),
        };
        let deadline = now + conduct.patience(config, bytes).max(shared);
        if imported {
            work.near_more(piece);
        }
        if imported {
            self.tell_near(id, &Frame::Coming { pieces: vec![piece] });
        }
        self.bytes_in_flight += bytes;
        if let Some(bucket) = &mut self.downloads {
            bucket.take(now, bytes);
        }
        self.timers.set(Due::Slot(slot), deadline);
        let shadows = self.shadow(id, slot, &request);
        self.slots.push(
            slot,
            Slot {
                work: id,
                link,
                from: peer,
                seat,
                piece,
                parts,
                bytes,
                started: now,
                imported,
                shadows,
                cancelled: None,
            },
        );
        self.act(Action::Fetch { slot, work: id, from: peer, parts: request, deadline });
        true
    }

    /// Marks pieces of other manifests that the fetch brings, too, so that nobody fetches them beside it.
    fn shadow(
        &mut self,
        id: WorkId,
        slot: SlotId,
        request: &[(LayerId, GroupSet)],
    ) -> Vec<(WorkId, PieceNo)> {
        let mut shadows = Vec::new();
        if !self.works_share {
            return shadows;
        }
        for (other, work) in self.works.iter_mut().filter(|(other, _)| **other != id) {
            for (layer, groups) in request {
                let Some(layer) = work.pieces.space.layer_index(layer) else { continue };
                for (piece, ..) in work.pieces.space.split(layer, groups) {
                    if !shadows.contains(&(*other, piece)) {
                        work.pieces.begin(piece, slot);
                        shadows.push((*other, piece));
                    }
                }
            }
        }
        shadows
    }

    /// Tells the neighbours in the rack.
    fn tell_near(&mut self, id: WorkId, frame: &Frame) {
        let links = self.works.get(&id).map_or(&[][..], |work| work.links()).iter();
        let links: Vec<LinkId> = links.filter(|link| link.near && link.begun).map(|link| link.id).collect();
        if !links.is_empty() {
            self.act(Action::Broadcast { links, frame: frame.clone() });
        }
    }

    /// Fetches in flight, as neighbours are told.
    pub(super) fn load(&self) -> u8 {
        u8::try_from(self.slots.len()).unwrap_or(u8::MAX)
    }

    pub(super) fn stored(&mut self, id: SlotId, bytes: u64) {
        let Some(slot) = self.take(id) else {
            return;
        };
        self.settle(slot.bytes, bytes);
        let took = self.now.since(slot.started);
        let piece_bytes = self.works.get(&slot.work).map_or(0, |work| work.pieces.space.piece_bytes());
        if let Some(conduct) = self.peers.near_mut(slot.seat, &slot.from) {
            conduct.delivered(bytes, took, bytes.saturating_mul(2) < piece_bytes);
        }
        self.pace(slot.started);
        self.last_received = Some(self.now);
        let Some(work) = self.works.get_mut(&slot.work) else {
            return;
        };
        if let Some(at) = work.find(slot.link) {
            work.doubt(at, false);
        }
        let (mut shared, mut progress) = (Vec::new(), SmallVec::<[Progress; 1]>::new());
        for (part, groups) in &slot.parts {
            let layer = work.pieces.space.parts(slot.piece)[*part].layer;
            if self.works_share {
                shared.push((work.pieces.space.layer_id(layer), groups.clone()));
            }
            progress.push(work.pieces.store(slot.piece, *part, groups));
        }
        work.pieces.end(slot.piece, id);
        for progress in progress {
            self.progressed(slot.work, slot.piece, &progress);
        }
        if self.works_share {
            for (layer, groups) in shared {
                self.grown(&layer, &groups, Some(slot.work));
            }
        }
    }

    pub(super) fn failed(&mut self, id: SlotId, fault: Fault, stored: &[(LayerId, GroupSet)]) {
        let Some(slot) = self.take(id) else {
            return;
        };
        let held = |work: &super::Work| work.pieces.held().contains(slot.piece);
        if slot.imported && !self.works.get(&slot.work).is_none_or(held) {
            // The rack was told that it comes.
            self.tell_near(slot.work, &Frame::Lost { pieces: vec![slot.piece] });
        }
        let mut bytes = 0;
        if let Some(work) = self.works.get_mut(&slot.work) {
            work.pieces.end(slot.piece, id);
            for (layer, groups) in stored {
                if let Some(layer) = work.pieces.space.layer_index(layer) {
                    bytes += work.pieces.space.bytes_in(layer, groups);
                }
            }
        }
        self.settle(slot.bytes, bytes);
        for (layer, groups) in stored {
            self.grown(layer, groups, None);
        }
        let (now, took) = (self.now, self.now.since(slot.started));
        if bytes > 0 {
            self.last_received = Some(now);
        }
        match fault {
            Fault::Local => return self.stop(slot.work),
            Fault::NoSpace => return self.pause(),
            _ => {}
        }
        let conduct = self.peers.of(&self.config, now, slot.from);
        let charge = match (fault, slot.cancelled) {
            (Fault::Verify, _) => {
                // The first part that did not come whole.
                let wrong = self.works.get(&slot.work).and_then(|work| {
                    let space = &work.pieces.space;
                    slot.parts.iter().find_map(|(part, asked)| {
                        let layer = space.layer_id(space.parts(slot.piece).get(*part)?.layer);
                        let mut whole = stored.iter().filter(|(other, _)| *other == layer);
                        (!whole.any(|(_, groups)| asked.is_subset(groups))).then_some(layer)
                    })
                });
                wrong.map(Charge::WrongBytes)
            }
            (Fault::Miss, _) => {
                let charge = conduct.missed(&self.config, now, slot.started);
                if let Some(work) = self.works.get_mut(&slot.work)
                    && let Some(at) = work.find(slot.link)
                {
                    work.forget(at, slot.piece);
                }
                charge
            }
            (Fault::Timeout, _) | (Fault::Cancelled, Some(Why::Late)) => {
                // A slow peer that delivers something is still worth asking.
                if bytes == 0 {
                    // Where nothing came from anybody meanwhile, the trouble may be ours.
                    let ours = self.last_received.is_none_or(|at| at < slot.started);
                    let charge = conduct.silent(&self.config, now, slot.started, ours);
                    let served = conduct.has_served();
                    if let Some(work) = self.works.get_mut(&slot.work).filter(|_| !served)
                        && let Some(at) = work.find(slot.link)
                    {
                        let is_new = !work.links()[at].doubted;
                        work.doubt(at, true);
                        if is_new {
                            self.tell(Event::Silent { peer: slot.from });
                        }
                    }
                    charge
                } else {
                    conduct.measure(bytes, took);
                    None
                }
            }
            (Fault::Cancelled, Some(Why::Duplicate)) => {
                if bytes > 0 {
                    conduct.measure(bytes, took);
                }
                None
            }
            (Fault::Cancelled, Some(Why::NoUse)) => None,
            (Fault::Size | Fault::Lost | Fault::Cancelled | Fault::Local | Fault::NoSpace, _) => {
                conduct.failed(&self.config, now, slot.started);
                // What somebody says to have who never sent anything is not counted on.
                let is_in_doubt = fault == Fault::Lost && bytes == 0 && !conduct.has_served();
                if let Some(work) = self.works.get_mut(&slot.work)
                    && let Some(at) = work.find(slot.link)
                {
                    if fault == Fault::Size {
                        // It has something else under that name.
                        work.forget(at, slot.piece);
                    } else if is_in_doubt {
                        work.doubt(at, true);
                    }
                }
                None
            }
        };
        if let Some(charge) = charge {
            self.punish(slot.from, charge);
        }
        self.starve_soon(slot.work);
    }

    /// The budget of downloads was charged for all that was asked for.
    fn settle(&mut self, asked: u64, came: u64) {
        if let Some(bucket) = &mut self.downloads {
            bucket.settle(self.now, asked, came);
        }
    }

    fn take(&mut self, id: SlotId) -> Option<Slot> {
        let slot = self.slots.remove(id)?;
        self.timers.clear(Due::Slot(id));
        self.bytes_in_flight -= slot.bytes;
        for (work, piece) in &slot.shadows {
            if let Some(work) = self.works.get_mut(work) {
                work.pieces.end(*piece, id);
            }
        }
        if let Some(work) = self.works.get_mut(&slot.work) {
            work.in_flight -= 1;
            if let Some(link) = work.find_mut(slot.link) {
                link.in_flight = link.in_flight.saturating_sub(1);
            }
            if slot.imported {
                work.near_less(slot.piece);
            }
        }
        Some(slot)
    }

    /// Groups of a layer came another way, or with another manifest.
    pub(super) fn grown(&mut self, layer: &LayerId, groups: &GroupSet, but: Option<WorkId>) {
        let ids: Vec<WorkId> = self.works.keys().copied().filter(|id| Some(*id) != but).collect();
        for id in ids {
            let Some(work) = self.works.get_mut(&id) else { continue };
            let Some(index) = work.pieces.space.layer_index(layer) else { continue };
            for (piece, part, range) in work.pieces.space.split(index, groups) {
                let Some(work) = self.works.get_mut(&id) else { break };
                let progress = work.pieces.store(piece, part, &GroupSet::from(range));
                self.progressed(id, piece, &progress);
            }
        }
    }

    fn progressed(&mut self, id: WorkId, piece: PieceNo, progress: &Progress) {
        let Some(work) = self.works.get_mut(&id) else {
            return;
        };
        let layers = progress.layers_complete.iter().map(|layer| work.pieces.space.layer_id(*layer));
        let layers: Vec<LayerId> = layers.collect();
        if progress.piece_complete {
            work.hold(piece);
            self.uploads_dirty = true;
            // The shorter a piece is beside all, the less it matters that others hear of it late.
            let halves = u32::try_from(work.pieces.count() / NEWS_PIECES).unwrap_or(u32::MAX);
            let delay = (self.pace / 2).saturating_mul(halves.clamp(1, NEWS_HALVES_MAX));
            // Others wait for what few have. Of the rest, everyone has enough to choose from without, and with a promise
            // the news of its giver comes, too.
            let all = u32::try_from(self.config.downloads_aim).unwrap_or(u32::MAX);
            let is_rare = work.available(piece) <= RARE_MAX;
            let delay = if is_rare { delay } else { delay.max(self.pace.saturating_mul(all)) };
            let delay = delay.min(Duration::from_millis(self.config.news_ms_max));
            self.timers.set_earlier(Due::News(id), self.now + delay);
            if self.works.get(&id).is_some_and(|work| work.pieces.slots(piece) > 0) {
                self.cancel_where(Why::Duplicate, |slot| slot.work == id && slot.piece == piece);
            }
        }
        for layer in layers {
            self.tell(Event::LayerComplete { work: id, layer });
        }
        if progress.all_complete {
            self.tell(Event::Complete { work: id });
            self.timers.clear(Due::Starve(id));
            self.timers.clear(Due::Turn(id));
        } else if progress.piece_complete {
            self.import(id);
            self.starve_soon(id);
        }
    }

    pub(super) fn late(&mut self, id: SlotId) {
        self.cancel_where_id(id, Why::Late);
    }

    pub(super) fn cancel_where(&mut self, why: Why, matches: impl Fn(&Slot) -> bool) {
        let ids: Vec<SlotId> =
            self.slots.iter().filter(|(_, slot)| matches(slot)).map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.cancel_where_id(id, why));
    }

    fn cancel_where_id(&mut self, id: SlotId, why: Why) {
        if let Some(slot) = self.slots.get_mut(id)
            && slot.cancelled.is_none()
        {
            slot.cancelled = Some(why);
            self.timers.clear(Due::Slot(id));
            self.act(Action::Cancel { slot: id });
        }
    }

    fn stop(&mut self, id: WorkId) {
        let Some(work) = self.works.get_mut(&id).filter(|work| !work.stopped) else {
            return;
        };
        work.stopped = true;
        let missing_bytes = work.pieces.missing_bytes();
        self.cancel_where(Why::NoUse, |slot| slot.work == id);
        self.tell(Event::Stopped { work: id, missing_bytes });
    }

    fn pause(&mut self) {
        if !self.paused {
            self.paused = true;
            self.cancel_where(Why::NoUse, |_| true);
            let missing_bytes = self.missing_bytes();
            self.tell(Event::Paused { missing_bytes });
        }
    }

    pub(super) fn room(&mut self) {
        self.paused = false;
        let ids: Vec<WorkId> = self.works.keys().copied().collect();
        for id in ids {
            if let Some(work) = self.works.get_mut(&id) {
                work.stalled = false;
            }
            self.starve_soon(id);
        }
    }
}
