//! The tree of a whole layer on the wire: its hash pairs in pre-order, proven from the root down as they come.
//!
//! The answer to a tree request is the layer's size (u64, little-endian) and [`tree_bytes`] of pairs. Who has the tree
//! can prove bytes from anywhere else, for example from an older layer that has the same tensors.

use bao_tree::iter::{BaoChunk, ResponseIter};
use bao_tree::{ChunkRanges, TreeNode};
use blake3::Hash;

use super::bao::{DecodeError, Verified, VerifiedParent, group_count, parent_hash, tree};
use crate::id::LayerId;

/// Bytes of one hash pair.
pub const PAIR_BYTES: usize = 64;

/// Bytes of all hash pairs of a layer of `size` bytes: one less than it has groups, so 0 for a layer of one group.
pub fn tree_bytes(size: u64) -> u64 {
    (group_count(size) - 1) * PAIR_BYTES as u64
}

/// Proves the pairs of a tree in the order in which they come. Memory: a few dozen hashes.
pub struct TreeDecoder {
    items: ResponseIter,
    next: Option<(TreeNode, bool)>,
    /// Hashes that coming nodes and groups must have, the next one on top.
    expected: Vec<Hash>,
    layer: LayerId,
    size: u64,
}

impl TreeDecoder {
    /// A decoder for the tree of `layer`, which is `size` bytes long (at most
    /// [`LAYER_BYTES_MAX`](super::bao::LAYER_BYTES_MAX)).
    pub fn new(layer: LayerId, size: u64) -> Self {
        let items = ResponseIter::new(tree(size), ChunkRanges::all());
        let mut decoder = Self { items, next: None, expected: vec![Hash::from_bytes(layer.0)], layer, size };
        decoder.advance();
        decoder
    }

    /// Whether all pairs came and were proven.
    pub fn complete(&self) -> bool {
        self.next.is_none()
    }

    /// Proves the next pair of [`PAIR_BYTES`].
    ///
    /// # Errors
    /// It does not hash to what its parent says, it is no pair, or the tree is complete. After an error the decoder is
    /// of no more use.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Verified, DecodeError> {
        let needed = if self.complete() { 0 } else { PAIR_BYTES };
        let wrong_length = DecodeError::Length { fed: bytes.len(), needed };
        let (Some((node, is_root)), Some((left, right))) = (self.next.take(), bytes.split_at_checked(32))
        else {
            return Err(wrong_length);
        };
        let (Ok(left), Ok(right)) = (left.try_into(), right.try_into()) else {
            return Err(wrong_length);
        };
        let pair = (Hash::from_bytes(left), Hash::from_bytes(right));
        if self.expected.pop() != Some(parent_hash(&pair, is_root)) {
            let range = node.chunk_range();
            let end = range.end.to_bytes().min(self.size);
            return Err(DecodeError::Parent { start: range.start.to_bytes(), end });
        }
        self.expected.extend([pair.1, pair.0]);
        self.advance();
        Ok(Verified::Parent(VerifiedParent::new(self.layer, self.size, node, pair)))
    }

    /// Goes on to the next node; the hashes of groups on the way are not for us.
    fn advance(&mut self) {
        for item in self.items.by_ref() {
            match item {
                BaoChunk::Parent { node, is_root, .. } => {
                    self.next = Some((node, is_root));
                    return;
                }
                BaoChunk::Leaf { .. } => {
                    self.expected.pop();
                }
            }
        }
    }
}

impl std::fmt::Debug for TreeDecoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TreeDecoder")
            .field("layer", &self.layer)
            .field("size", &self.size)
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bao_tree::io::outboard::PreOrderMemOutboard;
    use bao_tree::io::sync::Outboard;
    use proptest::prelude::*;

    use crate::wire::bao::{BLOCK, GROUP_BYTES, LAYER_BYTES_MAX};

    fn outboard(len: usize) -> PreOrderMemOutboard {
        let mut data = vec![0; len];
        blake3::Hasher::new().update(b"tree").finalize_xof().fill(&mut data);
        PreOrderMemOutboard::create(data, BLOCK)
    }

    fn id(outboard: &PreOrderMemOutboard) -> LayerId {
        LayerId(*outboard.root.as_bytes())
    }

    /// The nodes that are proven of `wire`, and whether they are all.
    fn decode(layer: LayerId, size: u64, wire: &[u8]) -> Result<(Vec<VerifiedParent>, bool), DecodeError> {
        let mut decoder = TreeDecoder::new(layer, size);
        let mut nodes = Vec::new();
        for pair in wire.chunks(PAIR_BYTES) {
            match decoder.feed(pair)? {
                Verified::Parent(parent) => nodes.push(parent),
                Verified::Leaf(_) => panic!("a tree has no leaf bytes"),
            }
        }
        Ok((nodes, decoder.complete()))
    }

    #[test]
    fn trees_of_awkward_sizes_are_proven() {
        for len in [0, 1, 16384, 16385, 32768, 32769, 49152, 49153, 100_000, 1 << 20, (1 << 20) + 7] {
            let outboard = outboard(len);
            let size = len as u64;
            assert_eq!(outboard.data.len() as u64, tree_bytes(size), "{len}");
            let (nodes, complete) = decode(id(&outboard), size, &outboard.data).expect("honest");
            assert!(complete, "{len}");
            assert_eq!(nodes.len() as u64, group_count(size) - 1);
            for node in nodes {
                assert_eq!(Some(*node.pair()), outboard.load(node.node()).expect("in memory"));
                assert_eq!((node.layer(), node.layer_size()), (id(&outboard), size));
            }
        }
    }

    #[test]
    fn a_flipped_bit_is_refused_at_every_level() {
        // 11 groups: a tree that is not full, with a lone last group.
        let outboard = outboard(10 * GROUP_BYTES as usize + 3);
        let size = 10 * GROUP_BYTES + 3;
        for byte in 0..outboard.data.len() {
            let mut bad = outboard.data.clone();
            bad[byte] ^= 1 << (byte % 8);
            let refused = decode(id(&outboard), size, &bad);
            assert!(matches!(refused, Err(DecodeError::Parent { .. })), "byte {byte}: {refused:?}");
        }
    }

    #[test]
    fn other_lengths_are_refused() {
        let outboard = outboard(5 * GROUP_BYTES as usize);
        let (layer, size, wire) = (id(&outboard), 5 * GROUP_BYTES, &outboard.data);
        for len in (0..wire.len()).step_by(PAIR_BYTES) {
            let (_, complete) = decode(layer, size, &wire[..len]).expect("honest so far");
            assert!(!complete, "{len} bytes");
        }
        let part = decode(layer, size, &wire[..PAIR_BYTES + 7]);
        assert_eq!(part.err(), Some(DecodeError::Length { fed: 7, needed: PAIR_BYTES }));
        for more in [1, PAIR_BYTES] {
            let long = [&wire[..], &vec![0; more]].concat();
            assert_eq!(decode(layer, size, &long).err(), Some(DecodeError::Length { fed: more, needed: 0 }));
        }
        // A layer of one group has no tree.
        let small = LayerId::of(b"x");
        assert!(TreeDecoder::new(small, 1).complete());
        assert!(TreeDecoder::new(small, 1).feed(&[0; PAIR_BYTES]).is_err());
        let mut long = TreeDecoder::new(layer, size);
        assert!(long.feed(&[&wire[..PAIR_BYTES], &[0]].concat()).is_err());
    }

    #[test]
    fn trees_of_other_sizes_and_other_layers_are_refused() {
        let outboard = outboard(9 * GROUP_BYTES as usize);
        let wire = &outboard.data;
        assert!(decode(LayerId::of(b"another"), 9 * GROUP_BYTES, wire).is_err());
        for size in [2 * GROUP_BYTES, 8 * GROUP_BYTES, 10 * GROUP_BYTES, 1 << 40, LAYER_BYTES_MAX] {
            let claimed = decode(id(&outboard), size, wire);
            assert!(!matches!(claimed, Ok((_, true))), "{size} bytes");
        }
        // The longest layer there may be costs no memory before its pairs come.
        let mut huge = TreeDecoder::new(id(&outboard), LAYER_BYTES_MAX);
        assert!(!huge.complete() && huge.feed(&[0; PAIR_BYTES]).is_err());
    }

    proptest! {
        #[test]
        fn garbage_never_passes(len in 2 * 16384usize..400_000, wire in prop::collection::vec(any::<u8>(), 0..300)) {
            let outboard = outboard(len);
            let refused = decode(id(&outboard), len as u64, &wire);
            prop_assert!(wire.is_empty() || refused.is_err());
        }
    }
}
