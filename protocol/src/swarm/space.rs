//! The piece space of a manifest: layers in loading order cut into pieces of one length, small files bundled whole.

use std::collections::BTreeMap;
use std::ops::Range;

use super::config::SwarmConfig;
use super::io::{LayerWant, PieceNo};
use crate::id::LayerId;
use crate::wire::bao::{GROUP_BYTES, GroupSet, bounded, bytes_in, group_count};

/// Most small files in one piece: each is a request of its own, and all are made at once.
pub const BUNDLE_LAYERS_MAX: usize = 64;

/// Piece length in bytes for a manifest of `total_bytes`: the shortest power of two between the floor and the
/// ceiling that gives no more than `piece_count_max` pieces.
pub fn piece_bytes(config: &SwarmConfig, total_bytes: u64) -> u64 {
    let floor = config.piece_bytes_min.max(GROUP_BYTES).next_power_of_two();
    let ceiling = config.piece_bytes_max.max(floor);
    let mut length = floor;
    while length < ceiling && total_bytes.div_ceil(length) > config.piece_count_max {
        length *= 2;
    }
    length
}

/// A range of groups of one layer; one or more of them make a piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Layer by its place among the distinct layers.
    pub layer: usize,
    /// Groups.
    pub groups: Range<u64>,
}

#[derive(Debug, Clone)]
struct Layer {
    id: LayerId,
    size: u64,
    parts: Range<usize>,
}

/// How a manifest is cut. All hosts cut alike.
#[derive(Debug, Clone)]
pub struct Space {
    piece_bytes: u64,
    layers: Vec<Layer>,
    by_id: BTreeMap<LayerId, usize>,
    /// Places in the manifest to distinct layers.
    places: Vec<usize>,
    parts: Vec<Part>,
    /// Piece of each part.
    piece_of: Vec<PieceNo>,
    /// First part of each piece, and the count of parts at the end.
    first_part: Vec<usize>,
    total_bytes: u64,
}

impl Space {
    /// Cuts layers, given as id and size in bytes in loading order. A layer that is named twice counts once.
    pub fn new(config: &SwarmConfig, layers: impl IntoIterator<Item = (LayerId, u64)>) -> Self {
        let mut this = Self {
            piece_bytes: 0,
            layers: Vec::new(),
            by_id: BTreeMap::new(),
            places: Vec::new(),
            parts: Vec::new(),
            piece_of: Vec::new(),
            first_part: Vec::new(),
            total_bytes: 0,
        };
        for (id, size) in layers {
            let next = this.layers.len();
            let index = *this.by_id.entry(id).or_insert(next);
            this.places.push(index);
            if index == next {
                this.layers.push(Layer { id, size, parts: 0..0 });
                this.total_bytes = this.total_bytes.saturating_add(size);
            }
        }
        this.piece_bytes = piece_bytes(config, this.total_bytes);
        this.cut();
        this
    }

    /// True if this is how these layers are cut.
    pub(super) fn is_of(&self, config: &SwarmConfig, wants: &[LayerWant]) -> bool {
        let same = |(want, layer): (&LayerWant, &usize)| {
            let layer = &self.layers[*layer];
            (want.layer, want.size) == (layer.id, layer.size)
        };
        self.places.len() == wants.len()
            && self.piece_bytes == piece_bytes(config, self.total_bytes)
            && wants.iter().zip(&self.places).all(same)
    }

    fn cut(&mut self) {
        let piece_groups = self.piece_bytes / GROUP_BYTES;
        // Bytes and files in the bundle that is open.
        let mut bundle: Option<(u64, usize)> = None;
        for index in 0..self.layers.len() {
            let size = self.layers[index].size;
            let first = self.parts.len();
            if size < self.piece_bytes {
                let joins = bundle
                    .filter(|(bytes, files)| bytes + size <= self.piece_bytes && *files < BUNDLE_LAYERS_MAX);
                let (bytes, files) = joins.unwrap_or((0, 0));
                bundle = Some((bytes + size, files + 1));
                self.push(Part { layer: index, groups: 0..group_count(size) }, files == 0);
            } else {
                bundle = None;
                let (mut start, groups) = (0, group_count(size));
                while start < groups {
                    let end = (start + piece_groups).min(groups);
                    self.push(Part { layer: index, groups: start..end }, true);
                    start = end;
                }
            }
            self.layers[index].parts = first..self.parts.len();
        }
        self.first_part.push(self.parts.len());
    }

    fn push(&mut self, part: Part, opens: bool) {
        if opens {
            self.first_part.push(self.parts.len());
        }
        // A layer has at most 2^46 bytes and a piece at least 2^14: more than 2^32 pieces do not fit in memory.
        let piece = PieceNo::try_from(self.first_part.len() - 1).unwrap_or(PieceNo::MAX);
        self.piece_of.push(piece);
        self.parts.push(part);
    }

    /// Length of a piece in bytes; the last of a layer, and bundles, may be shorter.
    pub fn piece_bytes(&self) -> u64 {
        self.piece_bytes
    }

    /// Pieces in all.
    pub fn count(&self) -> usize {
        self.first_part.len() - 1
    }

    /// Bytes of all distinct layers.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// Distinct layers.
    pub fn layer_count(&self) -> usize {
        self.layers.len()
    }

    /// A distinct layer's id.
    pub fn layer_id(&self, layer: usize) -> LayerId {
        self.layers[layer].id
    }

    /// A distinct layer's length in bytes.
    pub fn layer_size(&self, layer: usize) -> u64 {
        self.layers[layer].size
    }

    /// The distinct layer of an id.
    pub fn layer_index(&self, id: &LayerId) -> Option<usize> {
        self.by_id.get(id).copied()
    }

    /// The distinct layer at a place in the manifest.
    pub fn layer_at(&self, place: u32) -> Option<usize> {
        self.places.get(place as usize).copied()
    }

    /// The place in the manifest at which each distinct layer stands first.
    pub fn places(&self) -> Vec<u32> {
        let mut first = vec![0; self.layers.len()];
        for (place, layer) in self.places.iter().enumerate().rev() {
            first[*layer] = u32::try_from(place).unwrap_or(u32::MAX);
        }
        first
    }

    /// The parts of a piece.
    pub fn parts(&self, piece: PieceNo) -> &[Part] {
        let at = piece as usize;
        match (self.first_part.get(at), self.first_part.get(at + 1)) {
            (Some(start), Some(end)) => &self.parts[*start..*end],
            _ => &[],
        }
    }

    /// Bytes of a piece.
    pub fn bytes(&self, piece: PieceNo) -> u64 {
        self.parts(piece).iter().map(|part| self.bytes_of(part.layer, &part.groups)).sum()
    }

    /// Bytes of a range of groups of a layer.
    pub fn bytes_of(&self, layer: usize, groups: &Range<u64>) -> u64 {
        let size = self.layers[layer].size;
        (groups.end * GROUP_BYTES).min(size).saturating_sub(groups.start * GROUP_BYTES)
    }

    /// Bytes of a set of groups of a layer.
    pub fn bytes_in(&self, layer: usize, groups: &GroupSet) -> u64 {
        bytes_in(groups, self.layers[layer].size)
    }

    /// The pieces of a layer.
    pub fn pieces_of(&self, layer: usize) -> Range<PieceNo> {
        let parts = &self.layers[layer].parts;
        self.piece_of[parts.start]..self.piece_of[parts.end - 1] + 1
    }

    /// The piece that a group of a layer lies in, and the place of its part there.
    pub fn piece_at(&self, layer: usize, group: u64) -> Option<(PieceNo, usize)> {
        let parts = &self.layers[layer].parts;
        let nth = usize::try_from(group / (self.piece_bytes / GROUP_BYTES)).ok()?;
        let part = parts.start + nth;
        (part < parts.end && self.parts[part].groups.contains(&group)).then(|| {
            let piece = self.piece_of[part];
            (piece, part - self.first_part[piece as usize])
        })
    }

    /// Splits groups of a layer by piece: piece, place of the part in it, groups. Groups beyond the end are left out.
    pub fn split(&self, layer: usize, groups: &GroupSet) -> Vec<(PieceNo, usize, Range<u64>)> {
        let mut split = Vec::new();
        for run in bounded(groups, self.layers[layer].size) {
            let mut start = run.start;
            while start < run.end {
                let Some((piece, part)) = self.piece_at(layer, start) else { break };
                let end = run.end.min(self.parts(piece)[part].groups.end);
                split.push((piece, part, start..end));
                start = end;
            }
        }
        split
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn piece_length_follows_the_size() {
        let config = SwarmConfig::default();
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
    fn small_files_are_bundled_whole_and_big_ones_cut() {
        let config = SwarmConfig::default();
        let sizes = [0u64, 90_000, 300, (5 << 20) + 1, 1 << 20, 17];
        let ids = (0..).map(|n| LayerId([n; 32]));
        let space = Space::new(&config, ids.zip(sizes));
        assert_eq!(space.count(), 1 + 6 + 1 + 1);
        assert_eq!(space.parts(0).len(), 3, "three small files in front");
        assert_eq!(space.bytes(0), 90_300);
        assert_eq!(space.pieces_of(3), 1..7);
        assert_eq!(space.bytes(6), 1, "the tail");
        assert_eq!(space.pieces_of(4), 7..8, "a file of just a piece stands alone");
        assert_eq!(
            space.split(3, &GroupSet::from(63..130)),
            [(1, 0, 63..64), (2, 0, 64..128), (3, 0, 128..130)]
        );
        assert_eq!(space.split(1, &GroupSet::from(4..)), [(0, 1, 4..6)]);
        assert_eq!(space.split(3, &GroupSet::from(400..)), []);
        let many = Space::new(&config, (0..=200).map(|n| (LayerId([n; 32]), 10)));
        assert_eq!(many.count(), 4, "no more than {BUNDLE_LAYERS_MAX} files in one piece");
    }

    proptest! {
        #[test]
        fn every_group_is_in_one_piece(sizes in prop::collection::vec(0..3_000_000u64, 1..40)) {
            let config = SwarmConfig { piece_bytes_min: 64 << 10, piece_count_max: 50, ..SwarmConfig::default() };
            let ids = (0..).map(|n| LayerId([n; 32]));
            let space = Space::new(&config, ids.zip(sizes.clone()));
            let mut seen = std::collections::BTreeSet::new();
            for piece in 0..u32::try_from(space.count()).expect("few") {
                prop_assert!(space.bytes(piece) <= space.piece_bytes());
                prop_assert!(!space.parts(piece).is_empty());
                for (at, part) in space.parts(piece).iter().enumerate() {
                    for group in part.groups.clone() {
                        prop_assert!(seen.insert((part.layer, group)));
                        prop_assert_eq!(space.piece_at(part.layer, group), Some((piece, at)));
                    }
                }
            }
            let groups: u64 = sizes.iter().map(|size| group_count(*size)).sum();
            prop_assert_eq!(seen.len() as u64, groups);
            let bytes: u64 = (0..u32::try_from(space.count()).expect("few")).map(|p| space.bytes(p)).sum();
            prop_assert_eq!(bytes, sizes.iter().sum::<u64>());
        }
    }
}
