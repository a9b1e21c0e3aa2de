//! Where the tensors of a new layer lie in layers that are here, and which groups that covers. Pure.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::Deserialize;
use weighlock_protocol::LayerId;
use weighlock_protocol::wire::bao::{GROUP_BYTES, GroupSet, group_count};

/// The part of a contract that says where tensors lie; names and shapes, most of its bytes, are skipped in reading.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct TensorIndex {
    tensors: Vec<IndexedLayer>,
}

#[derive(Debug, Deserialize)]
struct IndexedLayer {
    layer: LayerId,
    tensors: Vec<IndexedTensor>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct IndexedTensor {
    offset: u64,
    len: u64,
    blake3: LayerId,
}

/// Bytes of the new layer that are said to lie in a layer that is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    /// First byte in the new layer.
    pub(super) start: u64,
    /// Length in bytes, not 0.
    pub(super) len: u64,
    /// The layer that is here.
    pub(super) from: LayerId,
    /// First byte in it.
    pub(super) from_start: u64,
}

/// What can be taken for one new layer.
#[derive(Debug)]
pub(super) struct LayerPlan {
    pub(super) layer: LayerId,
    pub(super) size: u64,
    /// By start, without overlaps, inside the layer.
    spans: Vec<Span>,
}

/// Finds equal tensors by their hash.
#[derive(Debug)]
pub(super) struct Matcher {
    /// By new layer: its size and its tensors.
    wanted: BTreeMap<LayerId, (u64, Vec<IndexedTensor>)>,
    /// By hash of a wanted tensor: its length, and where it lies here.
    found: BTreeMap<LayerId, (u64, Option<(LayerId, u64)>)>,
    open: usize,
}

impl Matcher {
    /// Looks for the tensors of those layers in `new` that are in `sizes`.
    pub(super) fn new(new: TensorIndex, sizes: &BTreeMap<LayerId, u64>) -> Self {
        let mut wanted = BTreeMap::new();
        let mut found = BTreeMap::new();
        for IndexedLayer { layer, mut tensors } in new.tensors {
            let Some(&size) = sizes.get(&layer) else { continue };
            tensors.sort_by_key(|tensor| (tensor.offset, tensor.len));
            // What an index claims past the end or twice is no tensor.
            let mut end = 0;
            tensors.retain(|tensor| {
                let fits = tensor.offset.checked_add(tensor.len).is_some_and(|to| to <= size);
                let keep = fits && tensor.len > 0 && tensor.offset >= end;
                if keep {
                    end = tensor.offset + tensor.len;
                }
                keep
            });
            found.extend(tensors.iter().map(|tensor| (tensor.blake3, (tensor.len, None))));
            wanted.insert(layer, (size, tensors));
        }
        let open = found.len();
        Self { wanted, found, open }
    }

    /// Whether every tensor is found.
    pub(super) fn satisfied(&self) -> bool {
        self.open == 0
    }

    /// Takes note of tensors in layers whose size `here` knows.
    pub(super) fn offer(&mut self, index: &TensorIndex, here: impl Fn(&LayerId) -> Option<u64>) {
        for IndexedLayer { layer, tensors } in &index.tensors {
            let mut size = None;
            for tensor in tensors {
                let Some((len, place @ None)) = self.found.get_mut(&tensor.blake3) else { continue };
                // Asked once, and only where something matches.
                let size = *size.get_or_insert_with(|| here(layer).unwrap_or(0));
                let fits = tensor.offset.checked_add(tensor.len).is_some_and(|to| to <= size);
                if fits && tensor.len == *len {
                    *place = Some((*layer, tensor.offset));
                    self.open -= 1;
                }
            }
        }
    }

    /// What was found, by layer. Layers of which nothing was found are left out.
    pub(super) fn plans(self) -> Vec<LayerPlan> {
        let mut plans = Vec::new();
        for (layer, (size, tensors)) in self.wanted {
            let span = |tensor: &IndexedTensor| {
                let (from, from_start) = self.found.get(&tensor.blake3)?.1?;
                Some(Span { start: tensor.offset, len: tensor.len, from, from_start })
            };
            let spans: Vec<Span> = tensors.iter().filter_map(span).collect();
            if !spans.is_empty() {
                plans.push(LayerPlan { layer, size, spans });
            }
        }
        plans
    }
}

impl LayerPlan {
    /// The groups of which every byte lies in a span; a group may be covered by several that touch.
    pub(super) fn covered(&self) -> GroupSet {
        let mut boundaries: Vec<u64> = Vec::new();
        let mut spans = self.spans.iter().peekable();
        while let Some(first) = spans.next() {
            let mut end = first.start + first.len;
            while let Some(next) = spans.next_if(|next| next.start == end) {
                end = next.start + next.len;
            }
            let from = first.start.div_ceil(GROUP_BYTES);
            let to = if end == self.size { group_count(self.size) } else { end / GROUP_BYTES };
            if from < to {
                boundaries.extend([from, to]);
            }
        }
        // Runs do not touch, so their groups cannot either but for an end and a start at one boundary.
        GroupSet::new(boundaries.into()).unwrap_or_else(GroupSet::empty)
    }

    /// What to read for `range` of the new layer's bytes: for each part, where it goes in the buffer and its source.
    pub(super) fn parts(&self, range: Range<u64>) -> impl Iterator<Item = (Range<usize>, LayerId, u64)> {
        let first = self.spans.partition_point(|span| span.start + span.len <= range.start);
        self.spans[first..].iter().take_while(move |span| span.start < range.end).map(move |span| {
            let start = span.start.max(range.start);
            let end = (span.start + span.len).min(range.end);
            let at = (start - range.start) as usize..(end - range.start) as usize;
            (at, span.from, span.from_start + (start - span.start))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weighlock_protocol::manifest::contract::{Contract, LayerTensors, Tensor};

    const G: u64 = GROUP_BYTES;

    fn id(name: &str) -> LayerId {
        LayerId::of(name.as_bytes())
    }

    /// Name, offset, length.
    type Named<'a> = (&'a str, u64, u64);

    /// An index by way of a real contract, so that the two forms cannot drift apart.
    fn index(layers: &[(&str, &[Named<'_>])]) -> TensorIndex {
        let tensor = |(name, offset, len): &Named<'_>| Tensor {
            name: (*name).into(),
            dtype: "F32".into(),
            shape: vec![len / 4],
            offset: *offset,
            len: *len,
            blake3: id(name),
        };
        let layer = |(name, tensors): &(&str, &[Named<'_>])| LayerTensors {
            path: format!("{name}.safetensors"),
            layer: id(name),
            tensors: tensors.iter().map(tensor).collect(),
        };
        let contract = Contract { tensors: layers.iter().map(layer).collect(), ..Contract::default() };
        serde_json::from_slice(&serde_json::to_vec(&contract).expect("plain data")).expect("the same form")
    }

    fn plan(new: &[Named<'_>], size: u64, old: &[Named<'_>], old_size: u64) -> Option<LayerPlan> {
        let mut matcher = Matcher::new(index(&[("new", new)]), &BTreeMap::from([(id("new"), size)]));
        matcher.offer(&index(&[("old", old)]), |layer| (*layer == id("old")).then_some(old_size));
        matcher.plans().pop()
    }

    fn covered(new: &[Named<'_>], size: u64, old: &[Named<'_>]) -> GroupSet {
        plan(new, size, old, u64::MAX).map_or_else(GroupSet::empty, |plan| plan.covered())
    }

    #[test]
    fn groups_count_only_where_every_byte_is_covered() {
        let old = [("a", 100, 3 * G), ("b", 9 * G, 2 * G), ("c", 20 * G, 10)];
        // A header of 40 bytes, then tensors without gaps; the last group is short.
        let new = [("a", 40, 3 * G), ("b", 40 + 3 * G, 2 * G), ("c", 40 + 5 * G, 10)];
        assert_eq!(covered(&new, 50 + 5 * G, &old), GroupSet::from(1..6));
        // Without c the last group is not covered, and without b only what a covers alone is.
        assert_eq!(covered(&new, 50 + 5 * G, &old[..2]), GroupSet::from(1..5));
        assert_eq!(covered(&new, 50 + 5 * G, &old[..1]), GroupSet::from(1..3));
        // A changed tensor in the middle takes the groups that it shares with its neighbours.
        let outer = [old[0], old[2]];
        assert_eq!(covered(&new, 50 + 5 * G, &outer), GroupSet::from(1..3));
        // A gap of one byte is not covered.
        let gap = [("a", 0, 3 * G), ("b", 3 * G + 1, 2 * G)];
        assert_eq!(covered(&gap, 6 * G, &old), GroupSet::from(0..3) | GroupSet::from(4..5));
        assert_eq!(covered(&[("a", 0, 3 * G)], 3 * G, &[]), GroupSet::empty());
        assert_eq!(covered(&[("c", 0, 10)], 10, &old), GroupSet::from(0..1));
    }

    #[test]
    fn parts_name_the_right_bytes() {
        let new = [("a", 40, 3 * G), ("b", 40 + 3 * G, 2 * G)];
        let old = [("b", 7, 2 * G), ("a", 90_000, 3 * G)];
        let plan = plan(&new, 40 + 5 * G, &old, 1 << 30).expect("found");
        let all: Vec<_> = plan.parts(2 * G..4 * G).collect();
        let split = (G + 40) as usize;
        let expected = [(0..split, id("old"), 90_000 + 2 * G - 40), (split..2 * G as usize, id("old"), 7)];
        assert_eq!(all, expected);
        assert_eq!(plan.parts(4 * G..5 * G).collect::<Vec<_>>(), [(0..G as usize, id("old"), 7 + G - 40)]);
        assert_eq!(plan.parts(0..40).count(), 0);
    }

    #[test]
    fn absurd_indexes_cover_nothing_that_is_not_there() {
        let old = [("a", 0, 2 * G), ("b", 0, 2 * G), ("d", u64::MAX, 2 * G)];
        // Past the end, overflowing, empty, overlapping.
        let new = [("a", 5 * G, 2 * G), ("d", u64::MAX - 3, 2 * G), ("c", 0, 0)];
        assert!(plan(&new, 6 * G, &old, u64::MAX).is_none());
        assert_eq!(covered(&[("a", 0, 2 * G), ("b", G, 2 * G)], 9 * G, &old), GroupSet::from(0..2));
        // What is claimed of the old layer must lie in it, and have the same length.
        assert!(plan(&[("a", 0, 2 * G)], 2 * G, &old, 2 * G - 1).is_none());
        assert!(plan(&[("a", 0, G)], 2 * G, &old, 9 * G).is_none());
        assert!(plan(&[("d", 0, 2 * G)], 2 * G, &old, u64::MAX).is_none());
        // A layer that is not here is no source.
        let mut matcher = Matcher::new(index(&[("new", &[("a", 0, G)])]), &BTreeMap::from([(id("new"), G)]));
        matcher.offer(&index(&[("old", &[("a", 0, G)])]), |_| None);
        assert!(!matcher.satisfied() && matcher.plans().is_empty());
    }

    #[test]
    fn equal_tensors_of_any_layer_and_name_are_found() {
        let sizes = BTreeMap::from([(id("one"), 4 * G), (id("two"), 4 * G)]);
        let new = index(&[
            ("one", &[("a", 0, G), ("a", G, G)]),
            ("two", &[("b", 0, G), ("x", G, G)]),
            ("small", &[("y", 0, G)]),
        ]);
        let mut matcher = Matcher::new(new, &sizes);
        matcher.offer(&index(&[("first", &[("a", 3, G)]), ("second", &[("b", 9, G)])]), |_| Some(1 << 20));
        assert!(!matcher.satisfied(), "x is nowhere");
        matcher.offer(&index(&[("third", &[("x", 1, G)])]), |_| Some(1 << 20));
        assert!(matcher.satisfied());
        let plans = matcher.plans();
        let found: BTreeMap<LayerId, Vec<LayerId>> =
            plans.iter().map(|p| (p.layer, p.spans.iter().map(|span| span.from).collect())).collect();
        let expected =
            [(id("one"), vec![id("first"), id("first")]), (id("two"), vec![id("second"), id("third")])];
        assert_eq!(found, BTreeMap::from(expected));
    }
}
