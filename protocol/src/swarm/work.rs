//! One manifest's share of the swarm: its neighbours, what they have, and what follows from both.

use std::collections::{BTreeMap, BTreeSet};

use smallvec::SmallVec;

use super::io::{LinkId, PieceNo, WorkId};
use super::link::Link;
use super::neighbours::Known;
use super::pieces::Pieces;
use super::racks::Turns;
use super::set::PieceSet;
use crate::id::KeyId;
use crate::time::Time;

/// A piece that was asked for by name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub(super) of: LinkId,
    pub(super) at: Time,
    /// Whoever else may have it: a loader waits for it, or nothing moves.
    pub(super) anyway: bool,
}

/// One manifest.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) id: WorkId,
    pub(super) pieces: Pieces,
    /// Ids of `links`, in the same order.
    ids: SmallVec<[LinkId; 32]>,
    links: Vec<Link>,
    /// Neighbours that have each piece whole.
    available: Vec<u16>,
    /// Neighbours in the rack that have each piece or fetch it, and this host if it fetches it from outside. Empty where
    /// this host knows no rack of its own: then everybody is near.
    pub(super) near: Vec<u16>,
    /// Pieces for which `near` is not zero.
    pub(super) near_set: PieceSet,
    /// Held here, owned by this host, and with no neighbour: to be released. Empty unless this host is an origin.
    pub(super) release: PieceSet,
    /// Pieces that this host releases as one of the first holders.
    owned: Option<PieceSet>,
    /// When the first piece was released, and until when this host rests after the last.
    release_began: Option<Time>,
    rest_until: Option<Time>,
    /// Promised or just sent: not released again.
    releasing: BTreeSet<PieceNo>,
    /// Pieces that a loader waits for.
    pub(super) urgent: BTreeSet<PieceNo>,
    /// Pieces asked for by name: of whom and when.
    pub(super) asks: BTreeMap<PieceNo, Asked>,
    /// Stored and not told yet.
    pub(super) fresh: Vec<PieceNo>,
    pub(super) in_flight: usize,
    /// Bytes sent, for fair shares among manifests.
    pub(super) sent_bytes: u64,
    pub(super) candidates: BTreeMap<KeyId, Known>,
    /// The other first holders, among whom the release of pieces is shared.
    pub(super) origins: Vec<KeyId>,
    /// When a neighbour last made room for another.
    pub(super) swapped: Option<Time>,
    pub(super) turns: Option<Turns>,
    /// A neighbour may have asked for a piece by name.
    pub(super) is_asked: bool,
    pub(super) stalled: bool,
    /// Since when nothing is in flight although something is missing.
    pub(super) starving_since: Option<Time>,
    /// The disk failed.
    pub(super) stopped: bool,
}

impl Work {
    pub(super) fn new(id: WorkId, pieces: Pieces, racked: bool) -> Self {
        let count = pieces.count();
        Self {
            id,
            ids: SmallVec::new(),
            links: Vec::new(),
            available: vec![0; count],
            near: vec![0; if racked { count } else { 0 }],
            near_set: PieceSet::new(count),
            release: PieceSet::new(count),
            owned: None,
            release_began: None,
            rest_until: None,
            releasing: BTreeSet::new(),
            urgent: BTreeSet::new(),
            asks: BTreeMap::new(),
            fresh: Vec::new(),
            in_flight: 0,
            sent_bytes: 0,
            candidates: BTreeMap::new(),
            origins: Vec::new(),
            swapped: None,
            turns: None,
            is_asked: false,
            stalled: false,
            starving_since: None,
            stopped: false,
            pieces,
        }
    }

    pub(super) fn links(&self) -> &[Link] {
        &self.links
    }

    pub(super) fn link_mut(&mut self, at: usize) -> &mut Link {
        &mut self.links[at]
    }

    pub(super) fn find(&self, id: LinkId) -> Option<usize> {
        self.ids.iter().position(|other| *other == id)
    }

    pub(super) fn find_mut(&mut self, id: LinkId) -> Option<&mut Link> {
        self.find(id).map(|at| &mut self.links[at])
    }

    /// True if a neighbour lacks more pieces that are held here than are promised to it or on their way, and than it
    /// fetches from others.
    pub(super) fn is_useful(&self, link: &Link, fetched: u32) -> bool {
        debug_assert!(
            self.pieces.held().exceeds(&link.have, link.surplus.saturating_sub(1)) == (link.surplus > 0)
                && !self.pieces.held().exceeds(&link.have, link.surplus),
            "what a neighbour lacks is counted"
        );
        link.surplus > link.jobs + fetched
    }

    /// Pieces that were asked for by name of such neighbours.
    pub(super) fn asked_of(&self, such: impl Fn(&Link) -> bool) -> usize {
        let of = |ask: &&Asked| self.find(ask.of).is_some_and(|at| such(&self.links[at]));
        self.asks.values().filter(of).count()
    }

    pub(super) fn available(&self, piece: PieceNo) -> u16 {
        self.available[piece as usize]
    }

    pub(super) fn add_link(&mut self, mut link: Link) {
        link.surplus = u32::try_from(self.pieces.held().len()).unwrap_or(u32::MAX);
        link.told = u16::try_from(self.fresh.len()).unwrap_or(u16::MAX);
        self.ids.push(link.id);
        self.links.push(link);
    }

    /// Forgets a link and all that its neighbour had.
    pub(super) fn remove_link(&mut self, id: LinkId) -> Option<Link> {
        let at = self.find(id)?;
        let have: Vec<PieceNo> = self.links[at].have.iter().collect();
        have.into_iter().for_each(|piece| self.forget(at, piece));
        let coming: Vec<PieceNo> = self.links[at].more.coming.iter().collect();
        coming.into_iter().for_each(|piece| self.not_coming(at, piece));
        let gone: Vec<PieceNo> =
            self.asks.iter().filter(|(_, ask)| ask.of == id).map(|(piece, _)| *piece).collect();
        gone.into_iter().for_each(|piece| self.ask_ended(piece));
        self.ids.remove(at);
        Some(self.links.remove(at))
    }

    /// A neighbour has a piece whole. True if that is news.
    pub(super) fn learn(&mut self, at: usize, piece: PieceNo) -> bool {
        let link = &mut self.links[at];
        if piece as usize >= self.pieces.count() || !link.have.insert(piece) {
            return false;
        }
        if link.has_parts {
            link.more.partial.remove(&piece);
            link.has_parts = !link.more.partial.is_empty();
        }
        if self.pieces.held().contains(piece) {
            link.surplus -= 1;
        }
        self.available[piece as usize] += 1;
        if self.available[piece as usize] == 1 {
            self.release.remove(piece);
            self.releasing.remove(&piece);
        }
        if !self.near.is_empty() && link.is_in_rack() && !link.more.coming.remove(piece) {
            self.near_more(piece);
        }
        true
    }

    /// A neighbour does not have a piece after all.
    pub(super) fn forget(&mut self, at: usize, piece: PieceNo) {
        let link = &mut self.links[at];
        link.more.partial.remove(&piece);
        if !link.have.remove(piece) {
            return;
        }
        link.surplus += u32::from(self.pieces.held().contains(piece));
        let near = link.is_in_rack();
        self.available[piece as usize] -= 1;
        if near {
            self.near_less(piece);
        }
        self.consider_release(piece);
    }

    /// A neighbour of the rack fetches a piece from outside.
    pub(super) fn coming(&mut self, at: usize, piece: PieceNo) {
        let link = &mut self.links[at];
        if link.near && !link.doubted && !link.have.contains(piece) && link.more.coming.insert(piece) {
            self.near_more(piece);
        }
    }

    pub(super) fn not_coming(&mut self, at: usize, piece: PieceNo) {
        if self.links[at].more.coming.remove(piece) {
            self.near_less(piece);
        }
    }

    /// A neighbour proved that it serves, or did not although it promised.
    pub(super) fn doubt(&mut self, at: usize, doubted: bool) {
        let link = &mut self.links[at];
        if !doubted {
            link.ignored = 0;
        }
        if link.doubted == doubted {
            return;
        }
        let (was, coming) = (link.is_in_rack(), link.more.coming.iter().collect::<Vec<PieceNo>>());
        link.doubted = doubted;
        let is = link.is_in_rack();
        let have: Vec<PieceNo> = link.have.iter().filter(|_| was != is).collect();
        for piece in have {
            if is { self.near_more(piece) } else { self.near_less(piece) }
        }
        if doubted {
            coming.into_iter().for_each(|piece| self.not_coming(at, piece));
        }
    }

    /// Somebody of the rack, or this host itself, has the piece or gets it from outside.
    pub(super) fn near_more(&mut self, piece: PieceNo) {
        if let Some(count) = self.near.get_mut(piece as usize) {
            *count = count.saturating_add(1);
            self.near_set.insert(piece);
        }
    }

    pub(super) fn near_less(&mut self, piece: PieceNo) {
        if let Some(count) = self.near.get_mut(piece as usize) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.near_set.remove(piece);
            }
        }
    }

    /// An ask was not answered.
    pub(super) fn ask_ignored(&mut self, piece: PieceNo) {
        if let Some(ask) = self.asks.get(&piece).copied()
            && let Some(link) = self.find_mut(ask.of)
        {
            link.ignored = link.ignored.saturating_add(1);
        }
        self.ask_ended(piece);
    }

    /// An ask was granted, declined, or given up.
    pub(super) fn ask_ended(&mut self, piece: PieceNo) {
        if let Some(ask) = self.asks.remove(&piece) {
            if let Some(link) = self.find_mut(ask.of) {
                link.asked = link.asked.saturating_sub(1);
            }
            self.near_less(piece);
        }
    }

    /// The piece is whole here now.
    pub(super) fn hold(&mut self, piece: PieceNo) {
        self.fresh.push(piece);
        for link in &mut self.links {
            link.surplus += u32::from(!link.have.contains(piece));
        }
        self.urgent.remove(&piece);
        self.consider_release(piece);
    }

    /// The piece is not whole here any more.
    pub(super) fn unhold(&mut self, piece: PieceNo) {
        self.release.remove(piece);
        for link in &mut self.links {
            link.surplus -= u32::from(!link.have.contains(piece));
            // What was told is told again; that does no harm.
            link.told = 0;
        }
        self.fresh.retain(|other| *other != piece);
    }

    /// What is to be told to everyone, and to whom: those that do not know all of it.
    pub(super) fn tell_all(&mut self) -> (Vec<PieceNo>, Vec<LinkId>) {
        let mut held = std::mem::take(&mut self.fresh);
        held.sort_unstable();
        let mut links = Vec::with_capacity(self.links.len());
        for link in &mut self.links {
            if usize::from(std::mem::take(&mut link.told)) < held.len() {
                links.push(link.id);
            }
        }
        (held, links)
    }

    /// What a neighbour was not told yet. From now on it was.
    pub(super) fn tell_one(&mut self, at: usize) -> Vec<PieceNo> {
        let told = &mut self.links[at].told;
        let from = std::mem::replace(told, u16::try_from(self.fresh.len()).unwrap_or(u16::MAX));
        self.fresh.get(usize::from(from)..).unwrap_or_default().to_vec()
    }

    /// This host is one of the first holders and releases these pieces.
    pub(super) fn own(&mut self, owned: PieceSet) {
        self.release = PieceSet::new(self.pieces.count());
        let pieces: Vec<PieceNo> = owned.iter().collect();
        self.owned = Some(owned);
        pieces.into_iter().for_each(|piece| self.consider_release(piece));
    }

    /// This host holds all of it from the start and releases what it owns.
    pub(super) fn is_origin(&self) -> bool {
        self.owned.is_some()
    }

    /// The piece was promised to a neighbour for release.
    pub(super) fn releasing(&mut self, now: Time, piece: PieceNo) {
        self.release_began.get_or_insert(now);
        self.release.remove(piece);
        self.releasing.insert(piece);
    }

    /// Until when this host, which has released everything, offers nothing by itself.
    pub(super) fn resting(&mut self, now: Time, permille: u32) -> Option<Time> {
        let began = self.release_began.filter(|_| self.release.is_empty())?;
        let rest = now.since(began) * permille / 1_000;
        Some(*self.rest_until.get_or_insert(now + rest)).filter(|until| *until > now)
    }

    /// The promise was in vain, or nothing was heard of the piece since.
    pub(super) fn release_again(&mut self, piece: PieceNo) {
        self.releasing.remove(&piece);
        self.consider_release(piece);
    }

    fn consider_release(&mut self, piece: PieceNo) {
        let owned = self.owned.as_ref().is_some_and(|owned| owned.contains(piece));
        if owned
            && self.available[piece as usize] == 0
            && !self.releasing.contains(&piece)
            && self.pieces.held().contains(piece)
        {
            self.release.insert(piece);
        }
    }
}
