//! Fetches one manifest from several providers at once: random useful pieces, each asked for once until the end.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::config::FetchConfig;
use super::io::{Action, Event, Fault, Input, Poll, SlotId};
use super::peers::Peer;
use super::pieces::{LayerWant, PieceNo, Pieces, Progress};
use crate::id::{KeyId, LayerId};
use crate::time::Time;
use crate::wire::bao::GroupSet;

/// The fetch of one manifest.
///
/// The head of the manifest comes first and in order. The rest comes in order from a lone provider; with several
/// peers, each idle slot takes a random piece that its peer can serve, so that peers who fetch at the same time
/// soon hold different pieces and can serve each other. Near the end, a piece that a slow peer holds up is asked of
/// a second one; the first result wins. Nothing stored is asked for again, save by these duplicates.
#[derive(Debug)]
pub struct SimpleFetch {
    config: FetchConfig,
    rng: ChaCha8Rng,
    now: Time,
    pieces: Pieces,
    peers: BTreeMap<KeyId, Known>,
    slots: BTreeMap<SlotId, Slot>,
    slot_next: u64,
    bytes_in_flight: u64,
    out: VecDeque<Poll>,
    /// Something changed since the slots were last filled.
    stale: bool,
    /// When a duplicate may be due.
    hedge_wake: Option<Time>,
    stalled: bool,
    stopped: bool,
}

#[derive(Debug)]
struct Known {
    peer: Peer,
    gone: bool,
}

#[derive(Debug)]
struct Slot {
    from: KeyId,
    piece: PieceNo,
    range: Range<u64>,
    bytes: u64,
    started: Time,
    deadline: Time,
    cancelled: Option<Why>,
}

/// Why we cancelled a fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    Late,
    Duplicate,
    NoUse,
}

impl SimpleFetch {
    /// A fetch of what is missing of `layers`, which stand in loading order. `seed` is the only randomness.
    pub fn new(config: FetchConfig, seed: u64, layers: Vec<LayerWant>) -> Self {
        let pieces = Pieces::new(&config, layers);
        let mut out = VecDeque::new();
        if pieces.unfinished() == 0 {
            out.push_back(Poll::Event(Event::Done));
        }
        Self {
            config,
            rng: ChaCha8Rng::seed_from_u64(seed),
            now: Time(0),
            pieces,
            peers: BTreeMap::new(),
            slots: BTreeMap::new(),
            slot_next: 0,
            bytes_in_flight: 0,
            out,
            stale: true,
            hedge_wake: None,
            stalled: false,
            stopped: false,
        }
    }

    /// Takes one input. `now` never goes back; an earlier one counts as the latest seen.
    pub fn handle(&mut self, now: Time, input: Input) {
        self.now = self.now.max(now);
        self.stale = true;
        match input {
            Input::Declared { peer, layer, have, connections } => {
                self.declared(peer, &layer, &have, connections)
            }
            Input::PeerGone { peer } => self.peer_gone(peer),
            Input::Stored { slot, bytes } => self.stored(slot, bytes),
            Input::Failed { slot, fault, stored } => self.failed(slot, fault, &stored),
            Input::Tick => {}
        }
    }

    /// The next thing to do or to know. Call until it is [`Poll::Idle`].
    pub fn poll(&mut self) -> Poll {
        if self.stale {
            self.stale = false;
            self.schedule();
        }
        self.out.pop_front().unwrap_or_else(|| Poll::Idle { wake: self.wake() })
    }

    /// True once everything is stored.
    pub fn is_done(&self) -> bool {
        self.pieces.unfinished() == 0
    }

    /// Bytes still missing.
    pub fn missing_bytes(&self) -> u64 {
        self.pieces.missing_bytes()
    }

    /// Fetches in flight, those included that were cancelled and not yet answered.
    pub fn slots_in_flight(&self) -> usize {
        self.slots.len()
    }

    /// Bytes that these fetches cover.
    pub fn bytes_in_flight(&self) -> u64 {
        self.bytes_in_flight
    }

    /// Peers that something is in flight from.
    pub fn sources(&self) -> usize {
        self.peers.values().filter(|known| known.peer.in_flight > 0).count()
    }

    fn declared(&mut self, id: KeyId, layer: &LayerId, have: &GroupSet, connections: u32) {
        let Some(layer) = self.pieces.layer_index(layer) else {
            return;
        };
        if !self.peers.contains_key(&id) && self.peers.len() >= self.config.peers_max && !self.evict() {
            return;
        }
        let count = self.pieces.count();
        let known = self.peers.entry(id).or_insert_with(|| Known { peer: Peer::new(count), gone: false });
        known.gone = false;
        known.peer.declare(&self.pieces, layer, have, connections);
    }

    /// Makes room by forgetting a peer that is gone, one that is not banned if there is one.
    fn evict(&mut self) -> bool {
        let now = self.now;
        let gone = self.peers.iter().filter(|(_, known)| known.gone && known.peer.in_flight == 0);
        let oldest = gone.min_by_key(|(_, known)| known.peer.free_at().max(now)).map(|(id, _)| *id);
        oldest.is_some_and(|id| self.peers.remove(&id).is_some())
    }

    fn peer_gone(&mut self, id: KeyId) {
        if let Some(known) = self.peers.get_mut(&id) {
            // How it behaved is remembered: a liar does not get clean by dialling again.
            known.gone = true;
            known.peer.forget_all(self.pieces.count());
        }
    }

    fn stored(&mut self, id: SlotId, bytes: u64) {
        let Some(slot) = self.take(id) else {
            return;
        };
        if let Some(known) = self.peers.get_mut(&slot.from) {
            known.peer.delivered(bytes, self.now - slot.started);
        }
        self.settle(id, &slot, &GroupSet::from(slot.range.clone()));
    }

    fn failed(&mut self, id: SlotId, fault: Fault, stored: &GroupSet) {
        let Some(slot) = self.take(id) else {
            return;
        };
        let stored = stored & &GroupSet::from(slot.range.clone());
        let bytes: u64 = {
            let layer = self.pieces.layer(self.pieces.piece(slot.piece).layer);
            crate::wire::bao::bytes_in(&stored, layer.size)
        };
        self.settle(id, &slot, &stored);
        if fault == Fault::Local {
            self.stop();
            return;
        }
        let layer_index = self.pieces.piece(slot.piece).layer;
        let layer = self.pieces.layer(layer_index).id;
        let (now, took) = (self.now, self.now - slot.started);
        let Some(known) = self.peers.get_mut(&slot.from) else {
            return;
        };
        let peer = &mut known.peer;
        match (fault, slot.cancelled) {
            (Fault::Verify, _) => {
                let until = peer.ban(&self.config, now);
                self.action(Action::Ban { peer: slot.from, layer, until });
                self.cancel_where(Why::NoUse, |other| other.from == slot.from);
            }
            (Fault::Miss, _) => {
                peer.forget_layer(&self.pieces, layer_index);
                peer.failed(&self.config, now);
            }
            (Fault::Timeout, _) | (Fault::Cancelled, Some(Why::Late)) => {
                peer.measure(bytes, took);
                // A slow peer that delivers something is still worth asking.
                if bytes == 0 {
                    peer.failed(&self.config, now);
                }
            }
            (Fault::Cancelled, Some(Why::Duplicate)) => peer.measure(bytes, took),
            (Fault::Cancelled, Some(Why::NoUse)) => {}
            (Fault::Lost | Fault::Cancelled | Fault::Local, _) => peer.failed(&self.config, now),
        }
    }

    fn take(&mut self, id: SlotId) -> Option<Slot> {
        let slot = self.slots.remove(&id)?;
        self.bytes_in_flight -= slot.bytes;
        if let Some(known) = self.peers.get_mut(&slot.from) {
            known.peer.in_flight -= 1;
        }
        Some(slot)
    }

    /// Books what a fetch stored and cancels duplicates that lost.
    fn settle(&mut self, id: SlotId, slot: &Slot, stored: &GroupSet) {
        let Progress { layer_complete, all_complete } = self.pieces.end(slot.piece, id, stored);
        if layer_complete {
            let layer = self.pieces.layer(self.pieces.piece(slot.piece).layer).id;
            self.event(Event::LayerComplete(layer));
        }
        if all_complete {
            self.event(Event::Done);
        }
        if stored.is_empty() {
            return;
        }
        let missing = self.pieces.piece(slot.piece).missing.clone();
        self.cancel_where(Why::Duplicate, |other| {
            other.piece == slot.piece && missing.is_disjoint(&GroupSet::from(other.range.clone()))
        });
        if !missing.is_empty() {
            for known in self.peers.values_mut() {
                known.peer.refresh(&self.pieces, slot.piece);
            }
        }
    }

    fn stop(&mut self) {
        if !self.stopped {
            self.stopped = true;
            self.cancel_where(Why::NoUse, |_| true);
            self.event(Event::Stopped { missing_bytes: self.pieces.missing_bytes() });
        }
    }

    fn cancel_where(&mut self, why: Why, matches: impl Fn(&Slot) -> bool) {
        for (id, slot) in &mut self.slots {
            if slot.cancelled.is_none() && matches(slot) {
                slot.cancelled = Some(why);
                self.out.push_back(Poll::Action(Action::Cancel { slot: *id }));
            }
        }
    }

    fn action(&mut self, action: Action) {
        self.out.push_back(Poll::Action(action));
    }

    fn event(&mut self, event: Event) {
        self.out.push_back(Poll::Event(event));
    }

    /// Fills the slots.
    fn schedule(&mut self) {
        self.hedge_wake = None;
        if self.stopped || self.is_done() {
            return;
        }
        let now = self.now;
        self.cancel_where(Why::Late, |slot| slot.deadline <= now);
        while let Some((from, piece)) = self.choose() {
            if !self.start(from, piece) {
                break;
            }
        }
        while let Some((from, piece)) = self.choose_duplicate() {
            if !self.start(from, piece) {
                break;
            }
        }
        self.report_stall();
    }

    /// The least busy peer that can serve an idle piece, and that piece.
    fn choose(&mut self) -> Option<(KeyId, PieceNo)> {
        let (config, now, idle) = (&self.config, self.now, self.pieces.idle());
        let mut best: Vec<(KeyId, u64)> = Vec::new();
        let mut least = u32::MAX;
        for (id, Known { peer, .. }) in &self.peers {
            if peer.in_flight > least || !peer.is_free(config, now) {
                continue;
            }
            let count = peer.useful().common_count(idle);
            if count == 0 {
                continue;
            }
            if peer.in_flight < least {
                least = peer.in_flight;
                best.clear();
            }
            best.push((*id, count));
        }
        if best.is_empty() {
            return None;
        }
        let at = self.rng.random_range(0..best.len() as u64);
        let (id, count) = best[usize::try_from(at).unwrap_or(0)];
        let useful = self.peers.get(&id)?.peer.useful();
        let first = useful.common_nth(idle, 0)?;
        if first < self.pieces.head_end() || self.is_alone() {
            return Some((id, first));
        }
        let nth = self.rng.random_range(0..count);
        Some((id, useful.common_nth(idle, nth)?))
    }

    /// True if there is only one peer: nobody to serve, so order is worth more than variety.
    fn is_alone(&self) -> bool {
        self.peers.values().filter(|known| !known.gone).count() <= 1
    }

    /// A piece near the end that its peer holds up, and a quicker peer for it. Else notes when one may be due.
    fn choose_duplicate(&mut self) -> Option<(KeyId, PieceNo)> {
        if self.pieces.unfinished() > self.config.endgame_pieces_max {
            return None;
        }
        let mut best: Option<(Duration, KeyId, PieceNo)> = None;
        let mut wake: Option<Time> = None;
        for (no, piece) in self.pieces.busy() {
            let [only] = piece.slots.as_slice() else {
                continue;
            };
            let Some(slot) = self.slots.get(only).filter(|slot| slot.cancelled.is_none()) else {
                continue;
            };
            for (id, Known { peer, .. }) in &self.peers {
                let useful = *id != slot.from && peer.useful().contains(no);
                if !useful || !peer.is_free(&self.config, self.now) {
                    continue;
                }
                let expected = peer.expected(&self.config, slot.bytes);
                let patience = expected
                    .saturating_mul(self.config.hedge_factor)
                    .max(Duration::from_millis(self.config.hedge_ms_min));
                let due = slot.started + patience;
                if due > self.now {
                    wake = Some(wake.map_or(due, |at| at.min(due)));
                } else if best.is_none_or(|(least, ..)| expected < least) {
                    best = Some((expected, *id, no));
                }
            }
        }
        self.hedge_wake = wake;
        best.map(|(_, id, no)| (id, no))
    }

    /// Asks `from` for what it can give of a piece. False if the budget is spent.
    fn start(&mut self, from: KeyId, piece: PieceNo) -> bool {
        let Some(known) = self.peers.get_mut(&from) else {
            return false;
        };
        let Some(range) = known.peer.wanted(&self.pieces, piece) else {
            return false;
        };
        let bytes = self.pieces.bytes(piece, &range);
        let over = self.bytes_in_flight + bytes > self.config.in_flight_bytes_max;
        if self.slots.len() >= self.config.slots_max || (over && !self.slots.is_empty()) {
            return false;
        }
        let deadline = self.now + known.peer.patience(&self.config, bytes);
        known.peer.in_flight += 1;
        self.bytes_in_flight += bytes;
        let slot = SlotId(self.slot_next);
        self.slot_next += 1;
        self.pieces.begin(piece, slot);
        self.stalled = false;
        let layer = self.pieces.layer(self.pieces.piece(piece).layer).id;
        let started = self.now;
        self.slots.insert(
            slot,
            Slot { from, piece, range: range.clone(), bytes, started, deadline, cancelled: None },
        );
        self.action(Action::Fetch { slot, from, layer, range, deadline });
        true
    }

    fn report_stall(&mut self) {
        if self.stalled || !self.slots.is_empty() {
            return;
        }
        let idle = self.pieces.idle();
        let hope =
            |known: &Known| !known.peer.is_banned(self.now) && known.peer.useful().common_count(idle) > 0;
        if !self.peers.values().any(hope) {
            self.stalled = true;
            self.event(Event::Stalled { missing_bytes: self.pieces.missing_bytes() });
        }
    }

    fn wake(&self) -> Option<Time> {
        if self.stopped || self.is_done() {
            return None;
        }
        let running = self.slots.values().filter(|slot| slot.cancelled.is_none());
        let deadlines = running.map(|slot| slot.deadline);
        let idle = self.pieces.idle();
        let endgame = self.pieces.unfinished() <= self.config.endgame_pieces_max;
        let paused =
            self.peers.values().map(|known| &known.peer).filter(|peer| {
                peer.free_at() > self.now && (endgame || peer.useful().common_count(idle) > 0)
            });
        deadlines.chain(paused.map(Peer::free_at)).chain(self.hedge_wake).min()
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
