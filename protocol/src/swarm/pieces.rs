//! What of a manifest is here, what is missing, and who works on it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::io::{LayerWant, PieceNo, SlotId};
use super::set::PieceSet;
use super::space::Space;
use crate::wire::bao::{GroupSet, all_groups};

/// What storing some groups led to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// The piece is whole now and was not before.
    pub(super) piece_complete: bool,
    /// Layers, by place among the distinct ones, that are whole now and were not before.
    pub(super) layers_complete: Vec<usize>,
    /// Nothing is missing any more.
    pub(super) all_complete: bool,
}

/// Owns possession of one manifest.
#[derive(Debug)]
pub(super) struct Pieces {
    pub(super) space: Arc<Space>,
    held: PieceSet,
    /// Not whole, and nobody works on it.
    idle: PieceSet,
    /// What is missing of pieces that are neither whole nor wholly missing, by part.
    partial: BTreeMap<PieceNo, Vec<GroupSet>>,
    /// Fetches in flight, a few at a time.
    busy: Vec<(PieceNo, SlotId)>,
    /// Parts of each layer that are not whole.
    layer_left: Vec<usize>,
    missing_bytes: u64,
}

impl Pieces {
    /// `space` is how the layers of `wants` are cut.
    pub(super) fn new(space: Arc<Space>, wants: &[LayerWant]) -> Self {
        let count = space.count();
        let mut this = Self {
            held: PieceSet::new(count),
            idle: PieceSet::new(count),
            partial: BTreeMap::new(),
            busy: Vec::new(),
            layer_left: vec![0; space.layer_count()],
            missing_bytes: 0,
            space,
        };
        let mut missing: Vec<Option<&GroupSet>> = vec![None; this.space.layer_count()];
        for want in wants {
            if let Some(layer) = this.space.layer_index(&want.layer) {
                missing[layer].get_or_insert(&want.missing);
            }
        }
        for piece in this.numbers() {
            let mut lacks: Vec<GroupSet> = Vec::new();
            let (mut whole, mut none) = (true, true);
            for part in this.space.parts(piece) {
                let all = GroupSet::from(part.groups.clone());
                let lack = missing[part.layer].map_or_else(GroupSet::empty, |missing| missing & &all);
                whole &= lack.is_empty();
                none &= lack == all;
                if !lack.is_empty() {
                    this.layer_left[part.layer] += 1;
                    this.missing_bytes += this.space.bytes_in(part.layer, &lack);
                }
                lacks.push(lack);
            }
            if whole {
                this.held.insert(piece);
            } else {
                this.idle.insert(piece);
                if !none {
                    this.partial.insert(piece, lacks);
                }
            }
        }
        this
    }

    fn numbers(&self) -> std::ops::Range<PieceNo> {
        0..PieceNo::try_from(self.space.count()).unwrap_or(PieceNo::MAX)
    }

    pub(super) fn count(&self) -> usize {
        self.space.count()
    }

    pub(super) fn held(&self) -> &PieceSet {
        &self.held
    }

    pub(super) fn idle(&self) -> &PieceSet {
        &self.idle
    }

    pub(super) fn is_complete(&self) -> bool {
        self.held.len() == self.space.count()
    }

    pub(super) fn unfinished(&self) -> usize {
        self.space.count() - self.held.len()
    }

    pub(super) fn missing_bytes(&self) -> u64 {
        self.missing_bytes
    }

    /// True if the piece is here whole or in part.
    pub(super) fn has_some(&self, piece: PieceNo) -> bool {
        self.held.contains(piece) || self.partial.contains_key(&piece)
    }

    /// Fetches in flight for a piece.
    pub(super) fn slots(&self, piece: PieceNo) -> usize {
        self.busy.iter().filter(|(busy, _)| *busy == piece).count()
    }

    /// What is missing of a piece, by part; nothing of a whole one.
    pub(super) fn missing(&self, piece: PieceNo) -> Vec<(usize, GroupSet)> {
        if self.held.contains(piece) {
            return Vec::new();
        }
        if let Some(lacks) = self.partial.get(&piece) {
            return lacks.iter().cloned().enumerate().filter(|(_, lack)| !lack.is_empty()).collect();
        }
        let parts = self.space.parts(piece).iter().enumerate();
        parts.map(|(at, part)| (at, GroupSet::from(part.groups.clone()))).collect()
    }

    /// What is here of each layer, by place in the manifest, in chunks of at most `weight_max` layers and boundaries, of which
    /// there are about `declared_max` in all.
    pub(super) fn have(&self, weight_max: usize, declared_max: usize) -> Vec<Vec<(u32, GroupSet)>> {
        let mut chunks: Vec<Vec<(u32, GroupSet)>> = Vec::new();
        let (mut weight, mut declared) = (usize::MAX, 0);
        for (layer, place) in self.space.places().into_iter().enumerate() {
            let have = self.layer_have(layer);
            if have.is_empty() {
                continue;
            }
            let more = 1 + have.boundaries().len();
            declared += more;
            if declared > declared_max {
                break;
            }
            if weight.saturating_add(more) > weight_max {
                chunks.push(Vec::new());
                weight = 0;
            }
            weight += more;
            if let Some(chunk) = chunks.last_mut() {
                chunk.push((place, have));
            }
        }
        chunks
    }

    fn layer_have(&self, layer: usize) -> GroupSet {
        if self.layer_left[layer] == 0 {
            return all_groups(self.space.layer_size(layer));
        }
        let mut boundaries: Vec<u64> = Vec::new();
        for piece in self.space.pieces_of(layer) {
            let parts = self.space.parts(piece).iter().enumerate();
            for (at, part) in parts.filter(|(_, part)| part.layer == layer) {
                let all = GroupSet::from(part.groups.clone());
                let have = if self.held.contains(piece) {
                    all
                } else if let Some(lacks) = self.partial.get(&piece) {
                    &all - &lacks[at]
                } else {
                    continue;
                };
                // In order, so neighbours join at the end.
                for pair in have.boundaries().chunks(2) {
                    let end = pair.get(1).copied().unwrap_or(part.groups.end);
                    match boundaries.last_mut() {
                        Some(last) if *last == pair[0] => *last = end,
                        _ => boundaries.extend([pair[0], end]),
                    }
                }
            }
        }
        GroupSet::new(boundaries.into()).unwrap_or_else(GroupSet::empty)
    }

    /// Somebody works on the piece.
    pub(super) fn begin(&mut self, piece: PieceNo, slot: SlotId) {
        self.busy.push((piece, slot));
        self.idle.remove(piece);
    }

    /// A fetch for the piece ended.
    pub(super) fn end(&mut self, piece: PieceNo, slot: SlotId) {
        if let Some(at) = self.busy.iter().position(|busy| *busy == (piece, slot)) {
            self.busy.swap_remove(at);
            if self.slots(piece) == 0 && !self.held.contains(piece) {
                self.idle.insert(piece);
            }
        }
    }

    /// Groups of one part of a piece are stored.
    pub(super) fn store(&mut self, piece: PieceNo, at: usize, groups: &GroupSet) -> Progress {
        let mut progress = Progress::default();
        let Some(part) = self.space.parts(piece).get(at).filter(|_| !self.held.contains(piece)).cloned()
        else {
            return progress;
        };
        let lacks = match self.partial.get_mut(&piece) {
            Some(lacks) => lacks,
            // The usual case: all of a piece comes at once.
            None if self.space.parts(piece).len() == 1
                && groups.boundaries() == [part.groups.start, part.groups.end] =>
            {
                self.missing_bytes -= self.space.bytes_of(part.layer, &part.groups);
                self.part_done(part.layer, &mut progress);
                self.piece_done(piece, &mut progress);
                return progress;
            }
            None => {
                let all = self.space.parts(piece).iter().map(|part| GroupSet::from(part.groups.clone()));
                self.partial.entry(piece).or_insert(all.collect())
            }
        };
        let news = &lacks[at] & groups;
        if !news.is_empty() {
            lacks[at].difference_with(&news);
            let (part_done, all_done) = (lacks[at].is_empty(), lacks.iter().all(|lack| lack.is_empty()));
            self.missing_bytes -= self.space.bytes_in(part.layer, &news);
            if part_done {
                self.part_done(part.layer, &mut progress);
            }
            if all_done {
                self.piece_done(piece, &mut progress);
            }
        }
        // Nothing of it was news: do not remember it as partial.
        let parts = self.space.parts(piece);
        let untouched = |lacks: &Vec<GroupSet>| {
            lacks.iter().zip(parts).all(|(lack, part)| *lack == GroupSet::from(part.groups.clone()))
        };
        if self.partial.get(&piece).is_some_and(untouched) {
            self.partial.remove(&piece);
        }
        progress
    }

    /// Groups of one part are gone. True if the piece was whole.
    pub(super) fn lose(&mut self, piece: PieceNo, at: usize, groups: &GroupSet) -> bool {
        let Some(part) = self.space.parts(piece).get(at).cloned() else {
            return false;
        };
        let was_whole = self.held.remove(piece);
        if was_whole {
            let none = self.space.parts(piece).iter().map(|_| GroupSet::empty());
            self.partial.insert(piece, none.collect());
        }
        let Some(lacks) = self.partial.get_mut(&piece) else {
            return false;
        };
        let gone = &(groups & &GroupSet::from(part.groups.clone())) - &lacks[at];
        if !gone.is_empty() {
            if lacks[at].is_empty() {
                self.layer_left[part.layer] += 1;
            }
            lacks[at] |= gone.clone();
            self.missing_bytes += self.space.bytes_in(part.layer, &gone);
        }
        if lacks.iter().all(|lack| lack.is_empty()) {
            self.partial.remove(&piece);
            self.held.insert(piece);
            return false;
        }
        if self.slots(piece) == 0 {
            self.idle.insert(piece);
        }
        was_whole
    }

    fn part_done(&mut self, layer: usize, progress: &mut Progress) {
        self.layer_left[layer] -= 1;
        if self.layer_left[layer] == 0 {
            progress.layers_complete.push(layer);
        }
    }

    fn piece_done(&mut self, piece: PieceNo, progress: &mut Progress) {
        self.partial.remove(&piece);
        self.idle.remove(piece);
        self.held.insert(piece);
        progress.piece_complete = true;
        progress.all_complete = self.is_complete();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::LayerId;
    use crate::swarm::SwarmConfig;

    fn wants(sizes: &[u64]) -> Vec<LayerWant> {
        let want = |(n, size): (u8, &u64)| LayerWant {
            layer: LayerId([n; 32]),
            size: *size,
            missing: all_groups(*size),
        };
        (0..).zip(sizes).map(want).collect()
    }

    fn cut(wants: &[LayerWant]) -> Arc<Space> {
        Arc::new(Space::new(&SwarmConfig::default(), wants.iter().map(|want| (want.layer, want.size))))
    }

    #[test]
    fn parts_pieces_layers_and_all_complete_in_turn() {
        let all = wants(&[10, 20_000, 3 << 20]);
        let mut pieces = Pieces::new(cut(&all), &all);
        assert_eq!((pieces.count(), pieces.unfinished()), (4, 4));
        assert_eq!(pieces.missing_bytes(), 10 + 20_000 + (3 << 20));
        assert_eq!(pieces.store(0, 0, &GroupSet::from(0..1)).layers_complete, [0]);
        assert_eq!(pieces.missing(0), [(1, GroupSet::from(0..2))]);
        let done = pieces.store(0, 1, &GroupSet::from(0..9));
        assert_eq!(done, Progress { piece_complete: true, layers_complete: vec![1], all_complete: false });
        assert_eq!(pieces.store(0, 1, &GroupSet::from(0..9)), Progress::default(), "known");
        pieces.begin(2, SlotId(1));
        assert_eq!(pieces.idle().iter().collect::<Vec<_>>(), [1, 3]);
        assert!(!pieces.store(2, 0, &GroupSet::from(64..65)).piece_complete);
        pieces.end(2, SlotId(1));
        assert_eq!(pieces.idle().iter().collect::<Vec<_>>(), [1, 2, 3]);
        let have: Vec<_> = pieces.have(1_000, 10_000).concat();
        assert_eq!(have, [(0, GroupSet::from(0..1)), (1, GroupSet::from(0..2)), (2, GroupSet::from(64..65))]);
        let all = GroupSet::from(0..);
        assert!(pieces.store(1, 0, &all).piece_complete && pieces.store(3, 0, &all).piece_complete);
        let have: Vec<_> = pieces.have(1_000, 10_000).concat();
        assert_eq!(have[2].1, &(&GroupSet::from(0..65) | &GroupSet::from(128..192)) & &GroupSet::from(0..));
        let last = pieces.store(2, 0, &all);
        assert_eq!((last.layers_complete, last.all_complete), (vec![2], true));
        assert_eq!(pieces.missing_bytes(), 0);
        assert_eq!(pieces.have(2, 10_000).len(), 3, "cut to the weight");
    }

    #[test]
    fn what_is_lost_is_missing_again() {
        let mut all = wants(&[3 << 20]);
        all[0].missing = GroupSet::empty();
        let mut pieces = Pieces::new(cut(&all), &all);
        assert!(pieces.is_complete());
        assert!(pieces.lose(1, 0, &GroupSet::from(70..72)));
        assert!(!pieces.lose(1, 0, &GroupSet::from(0..3)), "not of this piece");
        assert_eq!(pieces.missing(1), [(0, GroupSet::from(70..72))]);
        assert_eq!((pieces.missing_bytes(), pieces.layer_left[0]), (32_768, 1));
        assert!(!pieces.lose(2, 0, &GroupSet::empty()), "nothing lost");
        assert!(pieces.store(1, 0, &GroupSet::from(70..72)).all_complete);
    }
}
