//! Asking by name: for what must cross racks, for what a loader waits for, and where nothing moves.

use std::time::Duration;

use rand::RngExt;

use super::Swarm;
use super::io::{Action, Event, PieceNo, WorkId};
use super::link::Link;
use super::racks::may_import;
use super::timers::Due;
use super::work::{Asked, Work};
use crate::id::KeyId;
use crate::wire::swarm::Frame;

/// Why a piece is asked for by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Because {
    /// It is this host's turn to bring it into the rack.
    Turn,
    /// A loader waits for it.
    Urgent,
    /// Nothing moves.
    Rescue,
}

impl Swarm {
    /// Asks neighbours in other racks for pieces that are this host's turn.
    pub(super) fn import(&mut self, id: WorkId) {
        let now = self.now;
        loop {
            let Some(work) = self.works.get(&id) else { return };
            let Some(turns) = &work.turns else { return };
            if work.asked_of(|link| !link.is_silent()) >= self.config.asks_max
                || work.pieces.is_complete()
                || self.paused
                || work.stopped
            {
                return;
            }
            let mut best: Option<((u16, u32, u32), usize, PieceNo)> = None;
            for (at, link) in work.links().iter().enumerate() {
                // A first holder gives each piece to somebody anyway; asking it would upset its order.
                if link.near || link.releasing || !link.begun || !self.peers.is_free(&link.peer, now) {
                    continue;
                }
                // It is asked where nothing else moves.
                if link.is_silent() {
                    continue;
                }
                let idle = work.pieces.idle();
                let Some(piece) = link.have().first_of(idle, &turns.allowed, &work.near_set) else {
                    continue;
                };
                let key = (link.doubts(), link.asked + link.in_flight, link.load(self.now, self.stale_ns()));
                if best.is_none_or(|(least, ..)| key < least) {
                    best = Some((key, at, piece));
                }
            }
            let Some((_, at, piece)) = best else { return };
            self.ask(id, at, piece, Because::Turn);
        }
    }

    /// Asks for the pieces that a loader waits for, past all other rules.
    pub(super) fn ask_urgent(&mut self, id: WorkId) {
        let now = self.now;
        let Some(work) = self.works.get(&id) else { return };
        let wanted: Vec<PieceNo> = work
            .urgent
            .iter()
            .copied()
            .filter(|piece| work.pieces.idle().contains(*piece) && !work.asks.contains_key(piece))
            .take(self.config.asks_max)
            .collect();
        for piece in wanted {
            let Some(work) = self.works.get(&id) else { return };
            let usable = |link: &Link| {
                link.begun && link.have().contains(piece) && self.peers.is_free(&link.peer, now)
            };
            let links = work.links().iter().enumerate().filter(|(_, link)| usable(link));
            let best = links.min_by_key(|(_, link)| {
                let busy = (link.asked + link.in_flight, link.load(self.now, self.stale_ns()));
                (link.doubts(), !link.near, busy)
            });
            if let Some((at, _)) = best {
                self.ask(id, at, piece, Because::Urgent);
            }
        }
    }

    fn ask(&mut self, id: WorkId, at: usize, piece: PieceNo, because: Because) {
        let now = self.now;
        let Some(work) = self.works.get_mut(&id) else {
            return;
        };
        let link = work.link_mut(at);
        link.asked += 1;
        let (link, is_silent) = (link.id, link.is_silent());
        work.asks.insert(piece, Asked { of: link, at: now, anyway: because != Because::Turn });
        // Somebody has something: when nobody has, that is to be told anew.
        work.stalled &= is_silent;
        work.near_more(piece);
        let urgent = because == Because::Urgent;
        self.act(Action::Send { link, frame: Frame::Ask { piece, urgent } });
        let wait = Duration::from_millis(self.config.ask_ms);
        self.timers.set_earlier(Due::Starve(id), now + wait);
    }

    /// Looks soon whether anything moves.
    pub(super) fn starve_soon(&mut self, id: WorkId) {
        if self.works.get(&id).is_some_and(|work| work.in_flight == 0 && !work.pieces.is_complete()) {
            let wait = (self.pace * 4).clamp(
                Duration::from_millis(20.min(self.config.starve_ms)),
                Duration::from_millis(self.config.starve_ms),
            );
            self.timers.set_earlier(Due::Starve(id), self.now + wait);
        }
    }

    /// Nothing moves: asks by name for whatever somebody has. Tells if nobody has anything.
    pub(super) fn starve(&mut self, id: WorkId) {
        let (now, wait) = (self.now, Duration::from_millis(self.config.ask_ms));
        let Some(work) = self.works.get_mut(&id) else {
            return;
        };
        if work.pieces.is_complete() {
            return;
        }
        let late: Vec<PieceNo> =
            work.asks.iter().filter(|(_, ask)| now.since(ask.at) >= wait).map(|(piece, _)| *piece).collect();
        late.into_iter().for_each(|piece| work.ask_ignored(piece));
        let again = if work.asks.is_empty() { Duration::from_millis(self.config.starve_ms) } else { wait };
        self.timers.set_earlier(Due::Starve(id), now + again);
        self.import(id);
        self.ask_urgent(id);
        let Some(work) = self.works.get(&id).filter(|work| !work.stopped) else {
            return;
        };
        // That somebody who let an ask lie was asked again is no reason to think that something moves.
        if self.paused || work.in_flight > 0 || work.asked_of(|link| link.ignored == 0) > 0 {
            return;
        }
        let since =
            *self.works.get_mut(&id).map_or(&mut None, |work| &mut work.starving_since).get_or_insert(now);
        // Who starves for a turn may fetch from other racks whatever it is.
        let far = now.since(since) >= Duration::from_millis(self.config.rack_turn_ms);
        if far && self.doubt_silent(id) {
            self.import(id);
            if self.works.get(&id).is_none_or(|work| work.asked_of(|link| link.ignored == 0) > 0) {
                return;
            }
        }
        // Rather one that failed than nobody.
        let rescue = self.rescue(id, far, false);
        if let Some((at, piece)) = rescue.or_else(|| if far { self.rescue(id, far, true) } else { None }) {
            self.ask(id, at, piece, Because::Rescue);
        }
        let Some(work) = self.works.get(&id).filter(|work| work.asked_of(|link| !link.is_silent()) == 0)
        else {
            return;
        };
        let hope = work.links().iter().any(|link| {
            link.begun
                && !link.is_silent()
                && has_something(work, link)
                && !self.peers.is_banned(&link.peer, now)
        });
        if !hope {
            self.swap_neighbour(id);
        }
        let Some(work) = self.works.get_mut(&id) else { return };
        // Told anew when somebody had something in between.
        let was_stalled = std::mem::replace(&mut work.stalled, !hope);
        if !was_stalled && !hope {
            let missing_bytes = work.pieces.missing_bytes();
            self.tell(Event::Stalled { work: id, missing_bytes });
        }
    }

    /// Counts no longer on neighbours that did not answer and never sent anything: what they say to have would keep this
    /// host from getting it elsewhere. True if there were any.
    fn doubt_silent(&mut self, id: WorkId) -> bool {
        let Self { works, peers, config, .. } = self;
        let Some(work) = works.get_mut(&id) else { return false };
        // First holders that release let asks lie for as long as that takes, unless a loader waits.
        let patient = |link: &Link| if link.releasing { config.releasing_ignored_max } else { 0 };
        let is_silent = |link: &Link| {
            u32::from(link.ignored) > patient(link)
                && !link.is_silent()
                && !peers.near(link.seat, &link.peer).is_some_and(|conduct| conduct.has_served())
        };
        let silent = work.links().iter().enumerate().filter(|(_, link)| is_silent(link));
        let silent: Vec<(usize, KeyId, bool)> =
            silent.map(|(at, link)| (at, link.peer, !link.doubted)).collect();
        silent.iter().for_each(|(at, ..)| work.doubt(*at, true));
        for (_, peer, is_new) in &silent {
            if *is_new {
                self.tell(Event::Silent { peer: *peer });
            }
        }
        !silent.is_empty()
    }

    /// Any piece that any neighbour has: the least busy one first, near ones first.
    /// Hosts that are left alone after a failure only if `anybody`.
    fn rescue(&mut self, id: WorkId, far: bool, anybody: bool) -> Option<(usize, PieceNo)> {
        let now = self.now;
        let work = self.works.get(&id)?;
        let idle = work.pieces.idle();
        let mut best: Option<((u16, bool, u32), usize, PieceNo)> = None;
        for (at, link) in work.links().iter().enumerate() {
            let free = self.peers.is_free(&link.peer, now);
            if !link.begun || !(free || anybody && !self.peers.is_banned(&link.peer, now)) {
                continue;
            }
            if link.asked > 0 {
                // It has not answered yet, and did not the last time.
                continue;
            }
            let count = link.have().common_count(idle);
            let whole = if count == 0 {
                None
            } else if work.links().len() == 1 {
                link.have().common_first(idle)
            } else {
                link.have().common_nth(idle, self.rng.random_range(0..count))
            };
            let whole = whole.filter(|piece| far || link.near || may_import(work, *piece));
            let piece = whole.or_else(|| {
                link.partial()
                    .keys()
                    .copied()
                    .find(|piece| idle.contains(*piece) && useful_part(work, link, *piece))
            });
            let Some(piece) = piece.filter(|piece| !work.asks.contains_key(piece)) else { continue };
            let key = (link.doubts(), !link.near, link.load(self.now, self.stale_ns()) + link.asked);
            if best.is_none_or(|(least, ..)| key < least) {
                best = Some((key, at, piece));
            }
        }
        best.map(|(_, at, piece)| (at, piece))
    }
}

fn has_something(work: &Work, link: &Link) -> bool {
    link.have().common_count(work.pieces.idle()) > 0
        || link.partial().keys().any(|piece| useful_part(work, link, *piece))
}

fn useful_part(work: &Work, link: &Link, piece: PieceNo) -> bool {
    let Some(have) = link.partial().get(&piece) else {
        return false;
    };
    work.pieces.missing(piece).iter().any(|(part, lack)| !lack.is_disjoint(&have[*part]))
}
