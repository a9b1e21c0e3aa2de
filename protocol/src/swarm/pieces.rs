//! The pieces of one manifest: how layers are cut, what of each piece is missing, who works on it.

use std::collections::BTreeMap;
use std::ops::Range;

use super::config::FetchConfig;
use super::io::SlotId;
use crate::id::LayerId;
use crate::wire::bao::{GROUP_BYTES, GroupSet, all_groups, bounded, bytes_in, group_count};

/// A layer that a fetch is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerWant {
    /// Which layer.
    pub layer: LayerId,
    /// Its length in bytes.
    pub size: u64,
    /// Its groups that are not stored yet.
    pub missing: GroupSet,
}

/// Piece length in bytes for a manifest of `total_bytes`: the shortest power of two between the floor and the
/// ceiling that gives no more than `piece_count_max` pieces.
pub fn piece_bytes(config: &FetchConfig, total_bytes: u64) -> u64 {
    let floor = config.piece_bytes_min.max(GROUP_BYTES).next_power_of_two();
    let ceiling = config.piece_bytes_max.max(floor);
    let mut length = floor;
    while length < ceiling && total_bytes.div_ceil(length) > config.piece_count_max {
        length *= 2;
    }
    length
}

/// Number of a piece in loading order.
pub(super) type PieceNo = u32;

/// A set of pieces, one bit each.
#[derive(Debug, Clone, Default)]
pub(super) struct PieceSet {
    words: Vec<u64>,
}

impl PieceSet {
    pub(super) fn new(count: usize) -> Self {
        Self { words: vec![0; count.div_ceil(64)] }
    }

    pub(super) fn insert(&mut self, piece: PieceNo) {
        self.words[piece as usize / 64] |= 1 << (piece % 64);
    }

    pub(super) fn remove(&mut self, piece: PieceNo) {
        self.words[piece as usize / 64] &= !(1 << (piece % 64));
    }

    pub(super) fn contains(&self, piece: PieceNo) -> bool {
        self.words[piece as usize / 64] & (1 << (piece % 64)) != 0
    }

    /// How many pieces are in both sets.
    pub(super) fn common_count(&self, other: &Self) -> u64 {
        let words = self.words.iter().zip(&other.words);
        words.map(|(a, b)| u64::from((a & b).count_ones())).sum()
    }

    /// The `n`-th piece, counted from 0, that is in both sets.
    pub(super) fn common_nth(&self, other: &Self, mut n: u64) -> Option<PieceNo> {
        for (at, (a, b)) in self.words.iter().zip(&other.words).enumerate() {
            let mut both = a & b;
            let count = u64::from(both.count_ones());
            if n >= count {
                n -= count;
                continue;
            }
            for _ in 0..n {
                both &= both - 1;
            }
            return PieceNo::try_from(at * 64 + both.trailing_zeros() as usize).ok();
        }
        None
    }
}

/// One piece: a range of one layer, moved by one fetch when all goes well.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) layer: usize,
    pub(super) range: Range<u64>,
    pub(super) missing: GroupSet,
    /// Fetches in flight for it: one, or a few in the end-game.
    pub(super) slots: Vec<SlotId>,
}

#[derive(Debug)]
pub(super) struct LayerState {
    pub(super) id: LayerId,
    pub(super) size: u64,
    pub(super) missing_bytes: u64,
    pieces: Range<PieceNo>,
    piece_groups: u64,
}

/// What storing some groups led to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    pub(super) layer_complete: bool,
    pub(super) all_complete: bool,
}

/// Owns what is missing and which pieces are idle.
#[derive(Debug)]
pub(super) struct Pieces {
    layers: Vec<LayerState>,
    by_id: BTreeMap<LayerId, usize>,
    pieces: Vec<Piece>,
    /// Pieces with something missing and nobody working on it.
    idle: PieceSet,
    /// Pieces below this come first, in order.
    head_end: PieceNo,
    unfinished: usize,
    missing_bytes: u64,
}

impl Pieces {
    /// Cuts the layers, which stand in loading order. A layer that is named twice counts once.
    pub(super) fn new(config: &FetchConfig, wants: Vec<LayerWant>) -> Self {
        let total = wants.iter().fold(0u64, |sum, want| sum.saturating_add(want.size));
        let piece_groups = piece_bytes(config, total) / GROUP_BYTES;
        let mut this = Self {
            layers: Vec::new(),
            by_id: BTreeMap::new(),
            pieces: Vec::new(),
            idle: PieceSet::default(),
            head_end: 0,
            unfinished: 0,
            missing_bytes: 0,
        };
        let mut head_left = Some(config.head_bytes_max);
        for want in wants {
            if this.by_id.contains_key(&want.layer) {
                continue;
            }
            this.push(want, piece_groups, &mut head_left);
        }
        this.idle = PieceSet::new(this.pieces.len());
        for (at, piece) in (0..).zip(&this.pieces) {
            if !piece.missing.is_empty() {
                this.idle.insert(at);
                this.unfinished += 1;
            }
        }
        this.missing_bytes = this.layers.iter().map(|layer| layer.missing_bytes).sum();
        this
    }

    fn push(&mut self, want: LayerWant, piece_groups: u64, head_left: &mut Option<u64>) {
        let missing = &want.missing & &all_groups(want.size);
        let first = self.next_no();
        let groups = group_count(want.size);
        let mut start = 0;
        while start < groups {
            let range = start..(start + piece_groups).min(groups);
            start = range.end;
            self.pieces.push(Piece {
                layer: self.layers.len(),
                missing: &missing & &GroupSet::from(range.clone()),
                range,
                slots: Vec::new(),
            });
        }
        *head_left = head_left.and_then(|left| left.checked_sub(want.size));
        if head_left.is_some() {
            self.head_end = self.next_no();
        }
        self.by_id.insert(want.layer, self.layers.len());
        self.layers.push(LayerState {
            id: want.layer,
            size: want.size,
            missing_bytes: bytes_in(&missing, want.size),
            pieces: first..self.next_no(),
            piece_groups,
        });
    }

    fn next_no(&self) -> PieceNo {
        // A layer has at most 2^46 bytes and a piece at least 2^20 unless a test says otherwise; a manifest of
        // more than 2^32 pieces does not fit in memory.
        PieceNo::try_from(self.pieces.len()).unwrap_or(PieceNo::MAX)
    }

    pub(super) fn count(&self) -> usize {
        self.pieces.len()
    }

    pub(super) fn layer_index(&self, id: &LayerId) -> Option<usize> {
        self.by_id.get(id).copied()
    }

    pub(super) fn layer(&self, index: usize) -> &LayerState {
        &self.layers[index]
    }

    pub(super) fn piece(&self, piece: PieceNo) -> &Piece {
        &self.pieces[piece as usize]
    }

    pub(super) fn idle(&self) -> &PieceSet {
        &self.idle
    }

    pub(super) fn head_end(&self) -> PieceNo {
        self.head_end
    }

    /// Pieces of which something is missing.
    pub(super) fn unfinished(&self) -> usize {
        self.unfinished
    }

    pub(super) fn missing_bytes(&self) -> u64 {
        self.missing_bytes
    }

    /// Numbers of the pieces of a layer.
    pub(super) fn of_layer(&self, layer: usize) -> Range<PieceNo> {
        self.layers[layer].pieces.clone()
    }

    /// Splits groups of a layer by piece.
    pub(super) fn split(&self, layer: usize, groups: &GroupSet) -> Vec<(PieceNo, Range<u64>)> {
        let state = &self.layers[layer];
        let mut parts = Vec::new();
        for run in bounded(groups, state.size) {
            let mut start = run.start;
            while start < run.end {
                let nth = start / state.piece_groups;
                let end = run.end.min((nth + 1) * state.piece_groups);
                // The run ends inside the layer, so the piece exists and its number fits.
                let piece = state.pieces.start + PieceNo::try_from(nth).unwrap_or(0);
                parts.push((piece, start..end));
                start = end;
            }
        }
        parts
    }

    /// Bytes of a range of the piece's layer.
    pub(super) fn bytes(&self, piece: PieceNo, range: &Range<u64>) -> u64 {
        let layer = &self.layers[self.pieces[piece as usize].layer];
        bytes_in(&GroupSet::from(range.clone()), layer.size)
    }

    /// Somebody works on the piece.
    pub(super) fn begin(&mut self, piece: PieceNo, slot: SlotId) {
        self.pieces[piece as usize].slots.push(slot);
        self.idle.remove(piece);
    }

    /// A fetch for the piece ended and stored these groups.
    pub(super) fn end(&mut self, piece: PieceNo, slot: SlotId, stored: &GroupSet) -> Progress {
        let entry = &mut self.pieces[piece as usize];
        entry.slots.retain(|other| *other != slot);
        let layer = &mut self.layers[entry.layer];
        let news = &entry.missing & stored;
        let mut progress = Progress::default();
        if !news.is_empty() {
            entry.missing.difference_with(&news);
            let bytes = bytes_in(&news, layer.size);
            layer.missing_bytes -= bytes;
            self.missing_bytes -= bytes;
            if entry.missing.is_empty() {
                self.unfinished -= 1;
                progress.all_complete = self.unfinished == 0;
                let layer_pieces = layer.pieces.clone();
                // An empty layer has a group without bytes, so bytes alone do not tell.
                progress.layer_complete = layer.missing_bytes == 0
                    && layer_pieces.clone().all(|no| self.pieces[no as usize].missing.is_empty());
            }
        }
        let entry = &self.pieces[piece as usize];
        if entry.slots.is_empty() && !entry.missing.is_empty() {
            self.idle.insert(piece);
        }
        progress
    }

    /// Unfinished pieces that somebody works on.
    pub(super) fn busy(&self) -> impl Iterator<Item = (PieceNo, &Piece)> {
        (0..).zip(&self.pieces).filter(|(_, piece)| !piece.missing.is_empty() && !piece.slots.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn piece_length_follows_the_size() {
        let config = FetchConfig::default();
        let gb = 1_000_000_000;
        for (total, mib) in
            [(0, 1), (gb, 1), (10 * gb, 4), (100 * gb, 32), (140 << 30, 32), (500 * gb, 64), (5_000 * gb, 64)]
        {
            assert_eq!(piece_bytes(&config, total), mib << 20, "{total}");
        }
        for gib in (4..=480u64).step_by(4) {
            let count = (gib << 30).div_ceil(piece_bytes(&config, gib << 30));
            assert!((2_000..=8_000).contains(&count), "{gib} GiB gives {count} pieces");
        }
    }

    #[test]
    fn pieces_cover_each_layer_once_and_small_layers_whole() {
        let config = FetchConfig { head_bytes_max: 100_000, ..FetchConfig::default() };
        let sizes = [0u64, 90_000, (5 << 20) + 1, 300];
        let wants = (0..).zip(sizes).map(|(at, size)| LayerWant {
            layer: LayerId([at; 32]),
            size,
            missing: all_groups(size),
        });
        let pieces = Pieces::new(&config, wants.collect());
        assert_eq!(pieces.count(), 1 + 1 + 6 + 1);
        assert_eq!(pieces.head_end(), 2, "the big layer ends the head");
        assert_eq!(pieces.missing_bytes(), sizes.iter().sum::<u64>());
        let parts = pieces.split(2, &GroupSet::from(63..130));
        assert_eq!(parts, vec![(2, 63..64), (3, 64..128), (4, 128..130)]);
        let past = pieces.split(2, &GroupSet::from(320..));
        assert_eq!(past, vec![(7, 320..321)], "nothing beyond the end");
    }

    #[test]
    fn sets_count_and_choose() {
        let (mut a, mut b) = (PieceSet::new(200), PieceSet::new(200));
        for no in (0..200).step_by(3) {
            a.insert(no);
        }
        for no in (0..200).step_by(5) {
            b.insert(no);
        }
        assert_eq!(a.common_count(&b), 14);
        let all: Vec<_> = (0..14).filter_map(|n| a.common_nth(&b, n)).collect();
        assert_eq!(all, (0..200).step_by(15).collect::<Vec<_>>());
        assert_eq!(a.common_nth(&b, 14), None);
        a.remove(15);
        assert!(!a.contains(15) && a.contains(18));
    }
}
