//! The tree of a layer: built while hashing, laid out in pre-order as pairs of 64 bytes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bao_tree::TreeNode;
use blake3::Hash;
use rayon::prelude::*;
use weighlock_protocol::LayerId;
use weighlock_protocol::wire::bao::{GROUP_BYTES, group_count, parent_hash, subtree_hash, tree};

use crate::error::{StoreError, at};

/// Bytes of one hash pair.
pub(crate) const PAIR_BYTES: u64 = 64;
/// Bytes below which a block is hashed on the calling thread alone.
const PARALLEL_BYTES_MIN: usize = 256 * 1024;

/// Length of the tree file of a layer of `size` bytes.
pub(crate) fn tree_bytes(size: u64) -> u64 {
    (group_count(size) - 1) * PAIR_BYTES
}

/// Groups below the left child of a node over `groups` groups: the largest power of two below it.
pub(crate) fn left_groups(groups: u64) -> u64 {
    groups.next_power_of_two() / 2
}

/// Where in the tree file the pair of `node` stands; `None` if the tree has no such node.
pub(crate) fn pair_offset(size: u64, node: TreeNode) -> Option<u64> {
    tree(size).pre_order_offset(node).map(|n| n * PAIR_BYTES).filter(|at| at + PAIR_BYTES <= tree_bytes(size))
}

/// Two hashes as they stand in the file.
pub(crate) fn pair_of(bytes: &[u8; 64]) -> (Hash, Hash) {
    let half = |at: usize| {
        let mut hash = [0; 32];
        hash.copy_from_slice(&bytes[at..at + 32]);
        Hash::from_bytes(hash)
    };
    (half(0), half(32))
}

/// Builds the tree of a layer from its blocks in order. Each block but the last has the same length: a power of
/// two, at least one group. Memory: 32 bytes per block, and one block's part of the tree.
pub(crate) struct TreeBuilder {
    size: u64,
    block_groups: u64,
    blocks: Vec<Hash>,
    done: u64,
}

impl TreeBuilder {
    pub(crate) fn new(size: u64, block_bytes: usize) -> Self {
        let block_groups = block_bytes as u64 / GROUP_BYTES;
        debug_assert!(block_groups.is_power_of_two());
        Self { size, block_groups, blocks: Vec::new(), done: 0 }
    }

    /// Takes the next block, on all cores if `parallel`; `sink(offset, bytes)` gets the block's part of the tree file, contiguous.
    pub(crate) fn block(
        &mut self,
        data: &[u8],
        parallel: bool,
        mut sink: impl FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let total = group_count(self.size);
        let (top, part) = hash_block(self.done, data, total <= self.block_groups, parallel);
        if !part.is_empty() {
            sink(self.block_position(self.blocks.len() as u64, total), &part)?;
        }
        self.blocks.push(top);
        self.done += data.len() as u64;
        Ok(())
    }

    /// The root, after the last block; `sink` gets the nodes above the blocks one by one.
    pub(crate) fn finish(self, mut sink: impl FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<LayerId> {
        let groups = group_count(self.size);
        let root = self.top(0, self.blocks.len() as u64, 0, groups, true, &mut sink)?;
        Ok(LayerId(*root.as_bytes()))
    }

    /// Position in the tree file of the first node of block `block`: down from the root, left or right.
    fn block_position(&self, block: u64, total: u64) -> u64 {
        let (mut first, mut groups, mut position) = (0, total, 0);
        let target = block * self.block_groups;
        while groups > self.block_groups {
            let left = left_groups(groups);
            if target < first + left {
                position += 1;
                groups = left;
            } else {
                position += left;
                first += left;
                groups -= left;
            }
        }
        position * PAIR_BYTES
    }

    fn top(
        &self,
        first: u64,
        blocks: u64,
        position: u64,
        groups: u64,
        is_root: bool,
        sink: &mut impl FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> io::Result<Hash> {
        if blocks == 1 {
            return Ok(self.blocks[first as usize]);
        }
        let left = left_groups(groups);
        let left_blocks = left / self.block_groups;
        let pair = (
            self.top(first, left_blocks, position + 1, left, false, sink)?,
            self.top(first + left_blocks, blocks - left_blocks, position + left, groups - left, false, sink)?,
        );
        sink(position * PAIR_BYTES, &[*pair.0.as_bytes(), *pair.1.as_bytes()].concat())?;
        Ok(parent_hash(&pair, is_root))
    }
}

/// The top hash of a block that begins at byte `start`, and its part of the tree file. `is_root` says that the block is
/// the whole layer. On all cores if `parallel`.
pub(crate) fn hash_block(start: u64, data: &[u8], is_root: bool, parallel: bool) -> (Hash, Vec<u8>) {
    let is_only = is_root && data.len() as u64 <= GROUP_BYTES;
    let group = |(i, bytes): (usize, &[u8])| subtree_hash(start + i as u64 * GROUP_BYTES, bytes, is_only);
    let groups: Vec<Hash> = if data.is_empty() {
        vec![subtree_hash(0, data, true)]
    } else if parallel && data.len() >= PARALLEL_BYTES_MIN {
        data.par_chunks(GROUP_BYTES as usize).enumerate().map(group).collect()
    } else {
        data.chunks(GROUP_BYTES as usize).enumerate().map(group).collect()
    };
    let mut part = vec![0; (groups.len() - 1) * PAIR_BYTES as usize];
    let top = merge(&groups, &mut part, is_root);
    (top, part)
}

/// The top hash of neighbouring groups, their pairs written to `out` in pre-order.
fn merge(groups: &[Hash], out: &mut [u8], is_root: bool) -> Hash {
    if let [single] = groups {
        return *single;
    }
    let left = left_groups(groups.len() as u64) as usize;
    let (node, below) = out.split_at_mut(PAIR_BYTES as usize);
    let (below_left, below_right) = below.split_at_mut((left - 1) * PAIR_BYTES as usize);
    let pair = (merge(&groups[..left], below_left, false), merge(&groups[left..], below_right, false));
    node[..32].copy_from_slice(pair.0.as_bytes());
    node[32..].copy_from_slice(pair.1.as_bytes());
    parent_hash(&pair, is_root)
}

/// Hashes a whole file of `size` bytes; `sink` gets its tree.
pub(crate) fn hash_file(
    file: &File,
    path: &Path,
    size: u64,
    sink: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> Result<LayerId, StoreError> {
    hash_file_beside(file, path, size, sink, |_| {})
}

/// As [`hash_file`]; `beside` gets the bytes in order.
pub(crate) fn hash_file_beside(
    file: &File,
    path: &Path,
    size: u64,
    sink: impl FnMut(u64, &[u8]) -> io::Result<()>,
    mut beside: impl FnMut(&[u8]),
) -> Result<LayerId, StoreError> {
    const BLOCK_BYTES: usize = 1 << 20;
    let mut sink = sink;
    let mut builder = TreeBuilder::new(size, BLOCK_BYTES);
    let mut buffer = vec![0; BLOCK_BYTES.min(usize::try_from(size).unwrap_or(BLOCK_BYTES))];
    let mut offset = 0;
    loop {
        let len = buffer.len().min(usize::try_from(size - offset).unwrap_or(usize::MAX));
        file.read_exact_at(&mut buffer[..len], offset).map_err(at(path, "read"))?;
        builder.block(&buffer[..len], true, &mut sink).map_err(at(path, "write the tree of"))?;
        beside(&buffer[..len]);
        offset += len as u64;
        if offset == size {
            return builder.finish(sink).map_err(at(path, "write the tree of"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bao_tree::io::outboard::PreOrderMemOutboard;
    use weighlock_protocol::wire::bao::BLOCK;

    #[test]
    fn trees_equal_those_of_bao_tree() {
        for block in [GROUP_BYTES as usize, 64 << 10, 512 << 10] {
            for size in [0, 1, 16384, 16385, 65536, 65537, 99_999, 524_288, 524_289, 1_300_000] {
                let data: Vec<u8> = (0..size).map(|i| (i * 31 % 251) as u8).collect();
                let reference = PreOrderMemOutboard::create(&data, BLOCK);
                let mut file = vec![0xaa; tree_bytes(size as u64) as usize];
                let mut builder = TreeBuilder::new(size as u64, block);
                let mut sink = |offset: u64, bytes: &[u8]| {
                    let offset = offset as usize;
                    file[offset..offset + bytes.len()].copy_from_slice(bytes);
                    Ok(())
                };
                let mut blocks: Vec<&[u8]> = data.chunks(block).collect();
                if blocks.is_empty() {
                    blocks.push(&[]);
                }
                for part in blocks {
                    builder.block(part, true, &mut sink).expect("memory");
                }
                let root = builder.finish(&mut sink).expect("memory");
                assert_eq!(root.0, *reference.root.as_bytes(), "{size} {block}");
                assert_eq!(root, LayerId::of(&data));
                assert_eq!(file, reference.data, "{size} {block}");
            }
        }
    }
}
