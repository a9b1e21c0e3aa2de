//! One neighbour of one manifest: what it has and wants, as far as this host knows.

use std::collections::{BTreeMap, VecDeque};

use super::bucket::Meter;
use super::conduct::Seat;
use super::io::{LinkId, PieceNo};
use super::set::PieceSet;
use crate::id::KeyId;
use crate::time::Time;
use crate::wire::bao::GroupSet;

/// One neighbour of one manifest. What every frame and every choice of a neighbour looks at stands first, in one line of
/// the processor's cache; the set of what it has follows in the next.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Link {
    /// It declined; nothing is offered before.
    pub(super) declined_until: Time,
    pub(super) load_told: Time,
    pub(super) frames: Meter,
    pub(super) more: Box<More>,
    pub(super) id: LinkId,
    /// Pieces promised to it or on their way.
    pub(super) jobs: u32,
    /// Pieces that are whole here and not there.
    pub(super) surplus: u32,
    /// Fetches in flight from it.
    pub(super) in_flight: u32,
    /// Pieces asked of it and not granted yet.
    pub(super) asked: u32,
    /// So many of the pieces that are to be told were told to it already, or more.
    pub(super) told: u16,
    /// Fetches that it has in flight, as it last told.
    pub(super) load: u8,
    /// Same rack, or racks are not known.
    pub(super) near: bool,
    /// Its first frame came.
    pub(super) begun: bool,
    /// It releases each piece once: what it has is not near yet.
    pub(super) releasing: bool,
    /// It promised a piece that did not come, and never sent any: what it says that it has does not keep others of the
    /// rack from fetching it from outside.
    pub(super) doubted: bool,
    /// How often it declined since it last took a piece or had news.
    pub(super) declines: u8,
    /// Asks that it did not answer since anything came from it: who only offers what it may not have stays last.
    pub(super) ignored: u8,
    /// It may have pieces in part.
    pub(super) has_parts: bool,
    pub(super) ours: bool,
    /// Pieces that it has whole.
    pub(super) have: PieceSet,
    pub(super) peer: KeyId,
    /// Where its conduct is.
    pub(super) seat: Seat,
}

/// What is seldom looked at.
#[derive(Debug)]
pub(super) struct More {
    /// Pieces that it asks for.
    pub(super) asks: VecDeque<(PieceNo, bool)>,
    pub(super) since: Time,
    /// What it has of pieces that it does not have whole, by part. Bounded by the count of pieces.
    pub(super) partial: BTreeMap<PieceNo, Vec<GroupSet>>,
    /// Ends of ranges that it declared.
    pub(super) declared: usize,
    /// Pieces that it fetches from outside the rack.
    pub(super) coming: PieceSet,
}

impl Link {
    pub(super) fn new(
        id: LinkId,
        peer: KeyId,
        (ours, near): (bool, bool),
        since: Time,
        count: usize,
    ) -> Self {
        let more = More {
            asks: VecDeque::new(),
            since,
            partial: BTreeMap::new(),
            declared: 0,
            coming: PieceSet::new(count),
        };
        Self {
            declined_until: Time(0),
            load_told: Time(0),
            frames: Meter::default(),
            more: Box::new(more),
            id,
            jobs: 0,
            surplus: 0,
            in_flight: 0,
            asked: 0,
            told: 0,
            load: 0,
            near,
            begun: false,
            releasing: false,
            doubted: false,
            declines: 0,
            ignored: 0,
            has_parts: false,
            ours,
            have: PieceSet::new(count),
            peer,
            seat: Seat::default(),
        }
    }

    /// It did not answer, and what it has is not counted on.
    pub(super) fn is_silent(&self) -> bool {
        self.doubted && self.ignored > 0
    }

    /// What it has counts as being in the rack.
    pub(super) fn is_in_rack(&self) -> bool {
        self.near && !self.releasing && !self.doubted
    }

    /// What speaks against asking it: asks that it did not answer, and that it promised a piece that did not come and never
    /// sent any. Both weigh the same: one piece that was lost on the way makes nobody worse than who never answers.
    pub(super) fn doubts(&self) -> u16 {
        u16::from(self.ignored) + u16::from(self.doubted)
    }

    pub(super) fn have(&self) -> &PieceSet {
        &self.have
    }

    /// What it has of pieces that it does not have whole, by part.
    pub(super) fn partial(&self) -> &BTreeMap<PieceNo, Vec<GroupSet>> {
        &self.more.partial
    }

    pub(super) fn partial_mut(&mut self) -> &mut BTreeMap<PieceNo, Vec<GroupSet>> {
        self.has_parts = true;
        &mut self.more.partial
    }

    pub(super) fn told_load(&mut self, now: Time, load: u8) {
        (self.load, self.load_told) = (load, now);
    }

    /// One of its fetches, from this host, is over.
    pub(super) fn one_less(&mut self) {
        self.load = self.load.saturating_sub(1);
    }

    /// Fetches that it has in flight, as far as is known: what it told long ago counts for nothing.
    pub(super) fn load(&self, now: Time, stale_ns: u64) -> u32 {
        if now.0.saturating_sub(self.load_told.0) > stale_ns { 0 } else { u32::from(self.load) }
    }
}
