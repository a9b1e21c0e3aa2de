//! Picking: which piece a promised upload is used for, if any.

use std::time::Duration;

use rand::RngExt;

use super::Swarm;
use super::io::{PieceNo, WorkId};
use super::work::Asked;
use crate::time::Time;

/// Pieces drawn, of which the rarest is taken.
const DRAWS: usize = 3;

impl Swarm {
    /// The piece to fetch from a neighbour now. Who was `asked` for it was chosen in spite of what it failed in before.
    pub(super) fn pick(
        &mut self,
        id: WorkId,
        at: usize,
        named: Option<PieceNo>,
        asked: Option<Asked>,
    ) -> Option<PieceNo> {
        if !self.may_fetch(id, named.is_some()) {
            return None;
        }
        let Self { works, peers, rng, now, config, .. } = self;
        let work = works.get(&id)?;
        let link = work.links().get(at)?;
        if !link.begun {
            return None;
        }
        let idle = work.pieces.idle();
        // Most offers are of what is on its way already; that needs no look at who makes them.
        let count = if named.is_none() && link.near { link.have().common_count(idle) } else { 0 };
        let any = named.is_none() && link.near && work.urgent.is_empty();
        if any && count == 0 && work.pieces.unfinished() > config.endgame_pieces_max {
            return None;
        }
        let conduct = peers.near(link.seat, &link.peer);
        let free_at =
            conduct.map_or(Time(0), |one| if asked.is_some() { one.banned_until() } else { one.free_at() });
        if free_at > *now {
            return None;
        }
        let urgent = named.is_some_and(|piece| work.urgent.contains(&piece));
        if !urgent && link.in_flight >= 1 && !conduct.is_some_and(|conduct| conduct.has_served()) {
            // Who has never served gets one try at a time: those that never do must not take all slots.
            return None;
        }
        if let Some(piece) = named {
            let anyway = link.near || asked.is_some_and(|ask| ask.anyway);
            // What this host has asked somebody else for is nobody else's to bring.
            let own = u32::from(work.asks.contains_key(&piece));
            let others = work.near.get(piece as usize).is_some_and(|count| u32::from(*count) > own);
            let fits = idle.contains(piece) && (anyway || !others);
            return if fits { Some(piece) } else { self.pick_duplicate(id, at, named) };
        }
        let urgent = work.urgent.iter().find(|piece| idle.contains(**piece) && link.have().contains(**piece));
        if let Some(piece) = urgent {
            return Some(*piece);
        }
        if !link.near {
            let turns = work.turns.as_ref()?;
            return link.have().first_of(idle, &turns.allowed, &work.near_set);
        }
        if count == 0 {
            return self.pick_duplicate(id, at, None);
        }
        let mut rarest: Option<(u16, PieceNo)> = None;
        for _ in 0..DRAWS.min(usize::try_from(count).unwrap_or(DRAWS)) {
            let piece = link.have().common_nth(idle, rng.random_range(0..count))?;
            let key = (work.available(piece), piece);
            rarest = Some(rarest.map_or(key, |old| old.min(key)));
        }
        let (available, piece) = rarest?;
        // What half of the neighbours have is no longer rare: order is worth more, for loaders.
        if usize::from(available) * 2 >= work.links().len() {
            return link.have().common_first(idle);
        }
        Some(piece)
    }

    /// Near the end: a piece that another peer holds up.
    fn pick_duplicate(&self, id: WorkId, at: usize, named: Option<PieceNo>) -> Option<PieceNo> {
        let work = self.works.get(&id)?;
        if work.pieces.unfinished() > self.config.endgame_pieces_max {
            return None;
        }
        let link = work.links().get(at)?;
        let conduct = self.peers.near(link.seat, &link.peer)?;
        let floor = Duration::from_millis(self.config.hedge_ms_min).min(self.pace * 8);
        let mut oldest: Option<(Time, PieceNo)> = None;
        for slot in self.slots.values().filter(|slot| slot.work == id && slot.cancelled.is_none()) {
            if slot.from == link.peer
                || named.is_some_and(|piece| piece != slot.piece)
                || !link.have().contains(slot.piece)
                || work.pieces.slots(slot.piece) != 1
            {
                continue;
            }
            let expected =
                conduct.expected(&self.config, slot.bytes).saturating_mul(self.config.hedge_factor);
            if self.now.since(slot.started) >= expected.max(floor)
                && oldest.is_none_or(|(since, _)| slot.started < since)
            {
                oldest = Some((slot.started, slot.piece));
            }
        }
        oldest.map(|(_, piece)| piece)
    }

    /// True if one more fetch may begin. A piece that is offered by name may go over the aim: it is asked for, or new.
    fn may_fetch(&mut self, id: WorkId, named: bool) -> bool {
        let most = if named { self.config.downloads_max } else { self.config.downloads_aim };
        if self.paused || self.slots.len() >= most {
            return false;
        }
        let wanting = self.works.values().filter(|work| !work.pieces.is_complete()).count().max(1);
        let share = most.div_ceil(wanting).max(2);
        let now = self.now;
        let in_budget = self.downloads.as_mut().is_none_or(|bucket| bucket.ready_at(now) <= now);
        in_budget && self.works.get(&id).is_some_and(|work| !work.stopped && work.in_flight < share)
    }
}
