//! Neighbours: whom this host connects to, whom it lets in, and when it lets go.

use std::time::Duration;

use rand::RngExt;

use super::Swarm;
use super::io::{Action, Candidate, Charge, LinkId, RackId, WorkId};
use super::link::Link;
use super::racks;
use super::timers::Due;
use crate::id::KeyId;
use crate::time::Time;
use crate::wire::swarm::Frame;

/// A link that the other side closes sooner than this was refused.
const SHORT_LIFE: Duration = Duration::from_secs(10);
/// A neighbour that made room is not asked again for so many pauses.
const SWAPPED_PAUSES: u32 = 16;
/// Layers and range boundaries in one bitfield frame.
const BITFIELD_WEIGHT_MAX: usize = 40_000;

/// A host that takes part in a manifest.
#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    pub(super) rack: Option<RackId>,
    pub(super) complete: bool,
    /// It was complete when it was first heard of: one of the first holders.
    origin: bool,
    connecting: bool,
    failures: u32,
    not_before: Time,
}

impl Swarm {
    pub(super) fn candidates(&mut self, id: WorkId, hosts: Vec<Candidate>) {
        let Some(work) = self.works.get_mut(&id) else {
            return;
        };
        let mut old = std::mem::take(&mut work.candidates);
        let first_time = old.is_empty();
        for host in hosts.into_iter().filter(|host| host.peer != self.me).take(self.config.candidates_max) {
            let mut known = old
                .remove(&host.peer)
                .unwrap_or(Known { origin: host.complete && first_time, ..Known::default() });
            known.rack = host.rack;
            known.complete = host.complete;
            work.candidates.insert(host.peer, known);
        }
        self.set_owned(id, first_time);
        self.set_turns(id);
        self.look_for_neighbours(id);
    }

    /// Shares the release of pieces among the first holders.
    pub(super) fn set_owned(&mut self, id: WorkId, first_time: bool) {
        let Some(work) = self.works.get_mut(&id) else {
            return;
        };
        if !work.is_origin() {
            return;
        }
        let origins: Vec<KeyId> =
            work.candidates.iter().filter(|(_, known)| known.origin).map(|(key, _)| *key).collect();
        if first_time || origins != work.origins {
            let owned = racks::owned(self.me, &origins, work.pieces.count());
            work.origins = origins;
            work.own(owned);
            self.uploads_dirty = true;
        }
    }

    /// Connects until there are enough neighbours, half of them in the rack.
    pub(super) fn look_for_neighbours(&mut self, id: WorkId) {
        let Self { works, peers, rng, out, config, now, rack, .. } = self;
        let Some(work) = works.get_mut(&id) else {
            return;
        };
        let complete = work.pieces.is_complete();
        let connecting = work.candidates.values().filter(|known| known.connecting).count();
        let mut count = work.links().len() + connecting;
        let near = |known: &Known| rack.is_none() || known.rack == *rack;
        let mut near_count = work.links().iter().filter(|link| link.near).count();
        near_count += work.candidates.values().filter(|known| known.connecting && near(known)).count();
        if count >= config.neighbours_target {
            return;
        }
        let (mut waits, mut near_open, mut far_open) = (false, Vec::new(), Vec::new());
        for (key, known) in &work.candidates {
            let taken = known.connecting || work.links().iter().any(|link| link.peer == *key);
            if taken || (complete && known.complete) || peers.is_banned(key, *now) {
                continue;
            }
            if known.not_before > *now {
                waits = true;
            } else if near(known) {
                near_open.push(*key);
            } else {
                far_open.push(*key);
            }
        }
        while count < config.neighbours_target {
            // Half in the rack, half outside, as far as there are any.
            let want_near = rack.is_none() || near_count * 2 < config.neighbours_target;
            let from = match (near_open.is_empty(), far_open.is_empty()) {
                (true, true) => break,
                (false, true) => &mut near_open,
                (true, false) => &mut far_open,
                (false, false) if want_near => &mut near_open,
                (false, false) => &mut far_open,
            };
            let nth = rng.random_range(0..from.len() as u64);
            let peer = from.swap_remove(usize::try_from(nth).unwrap_or(0));
            if let Some(known) = work.candidates.get_mut(&peer) {
                known.connecting = true;
                near_count += usize::from(near(known));
            }
            count += 1;
            out.push_back(super::Poll::Action(Action::Connect { work: id, peer }));
        }
        if waits && count < config.neighbours_target {
            let at = *now + Duration::from_millis(config.reconnect_ms);
            self.timers.set_earlier(Due::Neighbours(id), at);
        }
    }

    pub(super) fn connect_failed(&mut self, id: WorkId, peer: KeyId) {
        self.not_again_soon(id, peer);
        self.look_for_neighbours(id);
    }

    /// A connect did not work, or the other side closed the link at once.
    fn not_again_soon(&mut self, id: WorkId, peer: KeyId) {
        let (now, base) = (self.now, self.config.reconnect_ms);
        if let Some(known) = self.works.get_mut(&id).and_then(|work| work.candidates.get_mut(&peer)) {
            known.connecting = false;
            let factor = 1u64.checked_shl(known.failures.min(6)).unwrap_or(64);
            known.failures = known.failures.saturating_add(1);
            known.not_before = now + Duration::from_millis(base.saturating_mul(factor));
        }
    }

    pub(super) fn link_up(
        &mut self,
        id: LinkId,
        work_id: WorkId,
        peer: KeyId,
        rack: Option<RackId>,
        ours: bool,
    ) {
        let (now, me) = (self.now, self.me);
        let refuse = |this: &mut Self| this.act(Action::Disconnect { link: id });
        let Some(work) = self.works.get_mut(&work_id) else {
            return refuse(self);
        };
        if let Some(known) = work.candidates.get_mut(&peer) {
            known.connecting = false;
        }
        let twin = work.links().iter().find(|link| link.peer == peer).map(|link| (link.id, link.ours));
        if let Some((twin, twin_ours)) = twin {
            // Both sides keep the link that the smaller key opened; of two by the same side, the newer.
            if twin_ours != ours && ours != (me < peer) {
                return refuse(self);
            }
            self.drop_link(twin, true);
        }
        let Some(work) = self.works.get_mut(&work_id) else {
            return;
        };
        if work.links().len() >= self.config.neighbours_max || self.peers.is_banned(&peer, now) {
            return refuse(self);
        }
        let near = self.rack.is_none() || rack.is_none() || rack == self.rack;
        let count = work.pieces.count();
        work.add_link(Link::new(id, peer, (ours, near), now, count));
        let releasing = !work.release.is_empty();
        let begin = Frame::Begin { piece_bytes: work.pieces.space.piece_bytes(), rack: self.rack, releasing };
        let have = work.pieces.have(BITFIELD_WEIGHT_MAX, self.config.declared_max);
        self.link_work.insert(id, work_id);
        let conduct = self.peers.of(&self.config, now, peer);
        conduct.returned(now);
        conduct.links += 1;
        let seat = self.peers.seat(&peer);
        if let Some(link) = self.works.get_mut(&work_id).and_then(|work| work.find_mut(id)) {
            link.seat = seat;
        }
        self.act(Action::Send { link: id, frame: begin });
        for layers in have {
            self.act(Action::Send { link: id, frame: Frame::Bitfield { layers } });
        }
        self.uploads_dirty = true;
    }

    pub(super) fn link_down(&mut self, id: LinkId) {
        let link = self
            .link_work
            .get(&id)
            .and_then(|work| self.works.get(work)?.links().iter().find(|l| l.id == id));
        let short = link.map(|link| (link.peer, self.now.since(link.more.since) < SHORT_LIFE));
        let Some(work_id) = self.drop_link(id, false) else {
            return;
        };
        match short {
            Some((peer, true)) => self.not_again_soon(work_id, peer),
            Some((peer, false)) => {
                if let Some(known) =
                    self.works.get_mut(&work_id).and_then(|work| work.candidates.get_mut(&peer))
                {
                    known.failures = 0;
                }
            }
            None => {}
        }
        self.timers.set_earlier(
            Due::Neighbours(work_id),
            self.now + Duration::from_millis(self.config.reconnect_ms / 4),
        );
        self.uploads_dirty = true;
    }

    /// Forgets a link and, unless it is gone already, closes it. Fetches from it run on; the driver answers them.
    pub(super) fn drop_link(&mut self, id: LinkId, close: bool) -> Option<WorkId> {
        let work_id = self.link_work.remove(&id)?;
        let link = self.works.get_mut(&work_id)?.remove_link(id)?;
        if let Some(conduct) = self.peers.get_mut(&link.peer) {
            conduct.links = conduct.links.saturating_sub(1);
        }
        self.unpromise_link(id);
        if close {
            self.act(Action::Disconnect { link: id });
        }
        self.starve_soon(work_id);
        Some(work_id)
    }

    /// No neighbour has anything that is missing: one of them makes room for a host that is not a neighbour yet, if there
    /// is one. Else hosts that all lack the same pieces could stay among themselves for ever.
    pub(super) fn swap_neighbour(&mut self, work_id: WorkId) {
        let (now, pause) = (self.now, Duration::from_millis(self.config.reconnect_ms));
        let Some(work) = self.works.get_mut(&work_id) else {
            return;
        };
        let linked = |key: &KeyId| work.links().iter().any(|link| link.peer == *key);
        let free = |key: &KeyId, known: &Known| {
            !linked(key) && !known.connecting && known.not_before <= now && !self.peers.is_banned(key, now)
        };
        let others: Vec<KeyId> =
            work.candidates.iter().filter(|(key, known)| free(key, known)).map(|(key, _)| *key).collect();
        let soon = work.swapped.is_some_and(|at| now.since(at) < pause);
        if others.is_empty() || soon || work.links().is_empty() {
            return;
        }
        work.swapped = Some(now);
        if work.links().len() >= self.config.neighbours_target {
            // Rather one that has nothing: what only a slow one has would be out of reach.
            let idle = work.pieces.idle();
            let useless =
                |link: &&Link| link.begun && link.have().common_count(idle) == 0 && link.partial().is_empty();
            let useless: Vec<&Link> = work.links().iter().filter(useless).collect();
            let from = if useless.is_empty() { work.links().iter().collect() } else { useless };
            let nth = self.rng.random_range(0..from.len() as u64);
            let link = from[usize::try_from(nth).unwrap_or(0)];
            let (link, peer) = (link.id, link.peer);
            if let Some(known) = work.candidates.get_mut(&peer) {
                known.not_before = now + pause * SWAPPED_PAUSES;
            }
            self.drop_link(link, true);
            // Others may take the room meanwhile, so this one is not left to whether there is any.
            let peer = others[usize::try_from(self.rng.random_range(0..others.len() as u64)).unwrap_or(0)];
            let known = self.works.get_mut(&work_id).and_then(|work| work.candidates.get_mut(&peer));
            if let Some(known) = known {
                known.connecting = true;
                self.act(Action::Connect { work: work_id, peer });
            }
        }
        self.look_for_neighbours(work_id);
    }

    /// Nobody needs a link between two hosts that both have everything.
    pub(super) fn drop_needless(&mut self, work_id: WorkId) {
        let Some(work) = self.works.get(&work_id).filter(|work| work.pieces.is_complete()) else {
            return;
        };
        let count = work.pieces.count();
        let idle = |link: &&Link| link.have().len() == count && link.jobs == 0 && link.in_flight == 0;
        let needless: Vec<LinkId> = work.links().iter().filter(idle).map(|link| link.id).collect();
        for link in needless {
            self.drop_link(link, true);
        }
    }

    /// Bans a peer: nothing is asked of it, and its links are closed.
    pub(super) fn punish(&mut self, peer: KeyId, charge: Charge) {
        let now = self.now;
        let until = self.peers.of(&self.config, now, peer).ban(&self.config, now);
        self.act(Action::Ban { peer, charge, until });
        self.cancel_where(super::fetching::Why::NoUse, |slot| slot.from == peer);
        let links: Vec<LinkId> = self
            .works
            .values()
            .flat_map(|work| work.links())
            .filter(|link| link.peer == peer)
            .map(|link| link.id)
            .collect();
        for link in links {
            if let Some(work) = self.drop_link(link, true) {
                self.timers.set_earlier(
                    Due::Neighbours(work),
                    now + Duration::from_millis(self.config.reconnect_ms / 4),
                );
            }
        }
    }
}
