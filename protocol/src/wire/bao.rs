//! Verified streaming without IO: 16 KiB groups, their tree, and a decoder that lets only proven bytes through.
//!
//! The encoding is BAO pre-order with groups of 16 chunks, as iroh-blobs sends it: for each node of the tree that
//! overlaps the asked ranges a 64-byte hash pair, for each group its bytes. Hash rules: the BLAKE3 paper, section 2.

use bao_tree::iter::{BaoChunk, ResponseIter};
use bao_tree::{BaoTree, BlockSize, ChunkNum, ChunkRanges, TreeNode};
use blake3::Hash;
use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use bytes::Bytes;
use range_collections::RangeSet2;

use crate::id::LayerId;

/// Bytes in one group: the unit of possession and of proof.
pub const GROUP_BYTES: u64 = 16 * 1024;
/// BLAKE3 chunks in one group.
pub const GROUP_CHUNKS: u64 = GROUP_BYTES / 1024;
/// The same as bao-tree's block size.
pub const BLOCK: BlockSize = BlockSize::from_chunk_log(4);
/// Largest layer, in bytes (64 TiB): keeps group numbers and offsets far from overflow.
pub const LAYER_BYTES_MAX: u64 = 1 << 46;

/// A set of 16 KiB groups of one layer, by number.
pub type GroupSet = RangeSet2<u64>;

/// Number of groups in a layer of `size` bytes; an empty layer has one (empty) group.
pub fn group_count(size: u64) -> u64 {
    size.div_ceil(GROUP_BYTES).max(1)
}

/// All groups of a layer of `size` bytes.
pub fn all_groups(size: u64) -> GroupSet {
    GroupSet::from(0..group_count(size))
}

/// Number of bytes that `groups` cover in a layer of `size` bytes.
pub fn bytes_in(groups: &GroupSet, size: u64) -> u64 {
    bounded(groups, size)
        .map(|range| (range.end * GROUP_BYTES).min(size).saturating_sub(range.start * GROUP_BYTES))
        .sum()
}

/// The ranges of `groups` inside a layer of `size` bytes, each with a start and an end.
pub fn bounded(groups: &GroupSet, size: u64) -> impl Iterator<Item = std::ops::Range<u64>> + '_ {
    let count = group_count(size);
    groups.boundaries().chunks(2).filter_map(move |pair| {
        let end = pair.get(1).copied().unwrap_or(count).min(count);
        (pair[0] < end).then_some(pair[0]..end)
    })
}

/// Groups as the chunk ranges of the iroh-blobs wire protocol.
pub fn to_chunks(groups: &GroupSet) -> ChunkRanges {
    let boundaries = groups.boundaries().iter().map(|group| ChunkNum(group.saturating_mul(GROUP_CHUNKS)));
    ChunkRanges::new(boundaries.collect()).unwrap_or_else(ChunkRanges::empty)
}

/// Chunk ranges inside a layer of `size` bytes in the form that walks the tree by whole groups: a range that reaches
/// the end of the layer is open, because the short last group is else taken for a part of one.
pub fn canonical_chunks(groups: &GroupSet, size: u64) -> ChunkRanges {
    let inside = groups & &all_groups(size);
    let mut chunks = to_chunks(&inside).into_inner();
    if inside.boundaries().last() == Some(&group_count(size)) {
        chunks.pop();
    }
    ChunkRanges::new(chunks).unwrap_or_else(ChunkRanges::empty)
}

/// The groups of a layer of `size` bytes that lie wholly in `chunks`. The last group is whole when all of the
/// chunks that exist are there.
pub fn from_chunks(chunks: &ChunkRanges, size: u64) -> GroupSet {
    let chunk_count = size.div_ceil(1024).max(1);
    let mut groups = GroupSet::empty();
    for pair in chunks.boundaries().chunks(2) {
        let start = pair[0].0.div_ceil(GROUP_CHUNKS);
        let end = pair.get(1).map_or(u64::MAX, |end| end.0);
        let end = if end >= chunk_count { group_count(size) } else { end / GROUP_CHUNKS };
        if start < end {
            groups |= GroupSet::from(start..end);
        }
    }
    groups
}

/// The tree over a layer of `size` bytes.
pub fn tree(size: u64) -> BaoTree {
    BaoTree::new(size, BLOCK)
}

/// The layer that an item was proven for: proof for one layer says nothing about another.
#[derive(Debug, Clone, Copy)]
struct Origin {
    layer: LayerId,
    size: u64,
}

/// A hash pair of the tree that BLAKE3 proved. Only [`Decoder`] and [`TreeDecoder`](super::tree::TreeDecoder) make one.
#[derive(Debug, Clone)]
pub struct VerifiedParent {
    origin: Origin,
    node: TreeNode,
    pair: (Hash, Hash),
}

/// The bytes of one group that BLAKE3 proved. Only [`Decoder`] makes one.
#[derive(Debug, Clone)]
pub struct VerifiedLeaf {
    origin: Origin,
    offset: u64,
    data: Bytes,
}

/// A proven item of a layer.
#[derive(Debug, Clone)]
pub enum Verified {
    /// An inner node.
    Parent(VerifiedParent),
    /// A group.
    Leaf(VerifiedLeaf),
}

impl VerifiedParent {
    /// Only for who has proven it.
    pub(super) fn new(layer: LayerId, size: u64, node: TreeNode, pair: (Hash, Hash)) -> Self {
        Self { origin: Origin { layer, size }, node, pair }
    }

    /// The layer that it was proven for.
    pub fn layer(&self) -> LayerId {
        self.origin.layer
    }

    /// Length of that layer in bytes, as given to the [`Decoder`].
    pub fn layer_size(&self) -> u64 {
        self.origin.size
    }

    /// Where in the tree.
    pub fn node(&self) -> TreeNode {
        self.node
    }

    /// Left and right chaining values.
    pub fn pair(&self) -> &(Hash, Hash) {
        &self.pair
    }
}

impl VerifiedLeaf {
    /// The layer that it was proven for.
    pub fn layer(&self) -> LayerId {
        self.origin.layer
    }

    /// Length of that layer in bytes, as given to the [`Decoder`].
    pub fn layer_size(&self) -> u64 {
        self.origin.size
    }

    /// First byte, from the start of the layer; a multiple of [`GROUP_BYTES`].
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The whole group, or the shorter last one.
    pub fn data(&self) -> &Bytes {
        &self.data
    }
}

/// Why a stream was not taken. The peer that sent it lied, or its disk did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A hash pair does not hash to its parent.
    #[error("tree node over bytes {start}..{end} does not match the layer's BLAKE3 root")]
    Parent {
        /// First byte below the node.
        start: u64,
        /// End of the bytes below the node.
        end: u64,
    },
    /// A group does not hash to its parent.
    #[error("bytes {start}..{end} do not match the layer's BLAKE3 root")]
    Leaf {
        /// First byte of the group.
        start: u64,
        /// End of the group.
        end: u64,
    },
    /// The caller fed another number of bytes than [`Decoder::need`] said, or fed after the end.
    #[error("decoder was fed {fed} bytes where {needed} were due")]
    Length {
        /// Bytes fed.
        fed: usize,
        /// Bytes needed.
        needed: usize,
    },
}

/// Decodes one response: ask [`Decoder::need`], feed exactly that many bytes, take the proven item.
pub struct Decoder {
    items: ResponseIter,
    next: Option<BaoChunk>,
    /// Hashes that coming items must match, the next one on top.
    expected: Vec<Hash>,
    origin: Origin,
}

impl Decoder {
    /// A decoder for `groups` of the layer `root`, which is `size` bytes long. Groups past the end are ignored.
    pub fn new(root: LayerId, size: u64, groups: &GroupSet) -> Self {
        let chunks = canonical_chunks(groups, size);
        let mut items = ResponseIter::new(tree(size), chunks);
        let next = items.next();
        Self { items, next, expected: vec![Hash::from_bytes(root.0)], origin: Origin { layer: root, size } }
    }

    /// Bytes of the next item: 64 for a hash pair, up to [`GROUP_BYTES`] for a group, `None` at the end. An empty
    /// layer needs one empty feed.
    pub fn need(&self) -> Option<usize> {
        self.next.as_ref().map(BaoChunk::size)
    }

    /// Proves the next item.
    ///
    /// # Errors
    /// The bytes do not match the root, or are not as many as needed. After an error the decoder is of no more use.
    pub fn feed(&mut self, bytes: Bytes) -> Result<Verified, DecodeError> {
        let needed = self.need().unwrap_or(0);
        let (Some(item), true) = (self.next.take(), bytes.len() == needed) else {
            return Err(DecodeError::Length { fed: bytes.len(), needed });
        };
        let verified = match item {
            BaoChunk::Parent { node, is_root, left, right, .. } => {
                let pair = (hash_at(&bytes, 0), hash_at(&bytes, 32));
                if self.expected.pop() != Some(parent_hash(&pair, is_root)) {
                    let range = node.chunk_range();
                    let end = range.end.to_bytes().min(self.origin.size);
                    return Err(DecodeError::Parent { start: range.start.to_bytes(), end });
                }
                if right {
                    self.expected.push(pair.1);
                }
                if left {
                    self.expected.push(pair.0);
                }
                Verified::Parent(VerifiedParent { origin: self.origin, node, pair })
            }
            BaoChunk::Leaf { start_chunk, is_root, .. } => {
                let offset = start_chunk.to_bytes();
                if self.expected.pop() != Some(subtree_hash(offset, &bytes, is_root)) {
                    return Err(DecodeError::Leaf { start: offset, end: offset + bytes.len() as u64 });
                }
                Verified::Leaf(VerifiedLeaf { origin: self.origin, offset, data: bytes })
            }
        };
        self.next = self.items.next();
        Ok(verified)
    }
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder")
            .field("origin", &self.origin)
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

/// The chaining value of a node from its children's, or the root hash.
pub fn parent_hash(pair: &(Hash, Hash), is_root: bool) -> Hash {
    let (left, right): (&ChainingValue, &ChainingValue) = (pair.0.as_bytes(), pair.1.as_bytes());
    if is_root {
        merge_subtrees_root(left, right, Mode::Hash)
    } else {
        Hash::from_bytes(merge_subtrees_non_root(left, right, Mode::Hash))
    }
}

/// The chaining value of the bytes of one group that starts at `offset`, or the root hash of a layer of one group.
pub fn subtree_hash(offset: u64, bytes: &[u8], is_root: bool) -> Hash {
    if is_root {
        return blake3::hash(bytes);
    }
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(offset);
    hasher.update(bytes);
    Hash::from_bytes(hasher.finalize_non_root())
}

fn hash_at(bytes: &[u8], at: usize) -> Hash {
    let mut hash = [0; 32];
    hash.copy_from_slice(&bytes[at..at + 32]);
    Hash::from_bytes(hash)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bao_tree::io::outboard::PreOrderMemOutboard;
    use bao_tree::io::sync::encode_ranges;
    use proptest::prelude::*;

    fn data(len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        blake3::Hasher::new().update(b"seed").finalize_xof().fill(&mut out);
        out
    }

    fn encode(data: &[u8], groups: &GroupSet) -> (LayerId, Vec<u8>) {
        let outboard = PreOrderMemOutboard::create(data, BLOCK);
        let mut out = Vec::new();
        encode_ranges(data, &outboard, &canonical_chunks(groups, data.len() as u64), &mut out)
            .expect("in memory");
        (LayerId(*outboard.root.as_bytes()), out)
    }

    /// What the decoder makes of `wire`: the bytes of the leaves by offset.
    fn decode(
        root: LayerId,
        size: u64,
        groups: &GroupSet,
        wire: &[u8],
    ) -> Result<Vec<(u64, Vec<u8>)>, DecodeError> {
        let mut decoder = Decoder::new(root, size, groups);
        let mut rest = Bytes::copy_from_slice(wire);
        let mut leaves = Vec::new();
        while let Some(need) = decoder.need() {
            if rest.len() < need {
                return Err(DecodeError::Length { fed: rest.len(), needed: need });
            }
            if let Verified::Leaf(leaf) = decoder.feed(rest.split_to(need))? {
                leaves.push((leaf.offset(), leaf.data().to_vec()));
            }
        }
        assert!(rest.is_empty(), "{} bytes left over", rest.len());
        Ok(leaves)
    }

    #[test]
    fn whole_layers_of_awkward_sizes_decode() {
        for len in [0, 1, 1023, 1024, 16383, 16384, 16385, 32768, 100_000, 1 << 20, (1 << 20) + 7] {
            let data = data(len);
            let (root, wire) = encode(&data, &all_groups(len as u64));
            assert_eq!(root, LayerId::of(&data));
            let leaves = decode(root, len as u64, &all_groups(len as u64), &wire).expect("honest");
            assert_eq!(leaves.concat_data(), data, "{len}");
        }
    }

    trait Concat {
        fn concat_data(&self) -> Vec<u8>;
    }
    impl Concat for Vec<(u64, Vec<u8>)> {
        fn concat_data(&self) -> Vec<u8> {
            self.iter().flat_map(|(_, data)| data.clone()).collect()
        }
    }

    #[test]
    fn group_sets_convert_to_chunks_and_back() {
        let size = 10 * GROUP_BYTES + 5;
        let groups = GroupSet::from(1..3) | GroupSet::from(9..11);
        assert_eq!(from_chunks(&to_chunks(&groups), size), groups);
        assert_eq!(bytes_in(&groups, size), 3 * GROUP_BYTES + 5);
        // A provider that has everything may say so with an open range.
        assert_eq!(from_chunks(&ChunkRanges::all(), size), all_groups(size));
        // Half a group is not a group.
        assert_eq!(from_chunks(&ChunkRanges::from(ChunkNum(8)..ChunkNum(40)), size), GroupSet::from(1..2));
        // The last chunks complete the short last group.
        assert_eq!(
            from_chunks(&ChunkRanges::from(ChunkNum(160)..ChunkNum(161)), size),
            GroupSet::from(10..11)
        );
    }

    proptest! {
        #[test]
        fn ranges_decode_to_the_original_and_flips_do_not(
            len in 0usize..300_000, a in 0u64..20, b in 0u64..20, c in 0u64..20, d in 0u64..20, flip in any::<prop::sample::Index>(), bit in 0u8..8,
        ) {
            let data = data(len);
            let size = len as u64;
            let groups = GroupSet::from(a.min(b)..a.max(b)) | GroupSet::from(c.min(d)..c.max(d));
            let inside = &groups & &all_groups(size);
            let (root, wire) = encode(&data, &inside);
            let leaves = decode(root, size, &groups, &wire).expect("honest");
            let mut got = GroupSet::empty();
            for (offset, bytes) in &leaves {
                let at = *offset as usize;
                prop_assert_eq!(&data[at..at + bytes.len()], &bytes[..]);
                got |= GroupSet::from(offset / GROUP_BYTES..offset / GROUP_BYTES + 1);
            }
            prop_assert_eq!(&got, &inside);
            if !wire.is_empty() {
                let mut bad = wire.clone();
                let at = flip.index(bad.len());
                bad[at] ^= 1 << bit;
                prop_assert!(decode(root, size, &groups, &bad).is_err());
            }
        }
    }
}
