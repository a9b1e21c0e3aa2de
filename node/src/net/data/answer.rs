//! Answers to gets as bytes of a stream: whole groups batch by batch, without a thread where no disk is waited for.

use bao_tree::io::sync::truncate_ranges;
use bao_tree::iter::{BaoChunk, ResponseIter};
use bao_tree::{ChunkRanges, ChunkRangesRef, TreeNode};
use bytes::Bytes;
use tokio::sync::mpsc;
use weighlock_cache::{LayerReader, TreeWindow, Wait};
use weighlock_protocol::LayerId;
use weighlock_protocol::wire::bao::{self, GroupSet};
use weighlock_protocol::wire::tree::PAIR_BYTES;

use super::batch::{Batch, Outflow};
use super::buffers::Buffers;
use super::serve::{Refusal, refuse};

/// An answer that is about to be sent.
pub(super) enum Answer {
    Groups(Groups),
    Parts(Parts),
}

impl Answer {
    /// Of the bytes of `chunks`, after the layer's size. Blocking: opens nothing, but looks at what is here.
    pub(super) fn new(
        reader: LayerReader,
        chunks: &ChunkRanges,
        batch_bytes: usize,
        buffers: &Buffers,
    ) -> Result<Self, Refusal> {
        let size = reader.size();
        let ranges = truncate_ranges(chunks, size);
        let touched = touched_groups(ranges, size);
        if !touched.is_subset(&reader.have()) {
            return Err(refuse("not all of the range is here"));
        }
        let whole = bao::canonical_chunks(&touched, size);
        let is_whole = whole.boundaries() == ranges.boundaries();
        let mut batch = Batch::new(batch_bytes, buffers);
        batch.next(8).copy_from_slice(&size.to_le_bytes());
        if !is_whole {
            let ranges = ChunkRanges::new(ranges.boundaries().iter().copied().collect())
                .ok_or_else(|| refuse("range boundaries are out of order"))?;
            return Ok(Self::Parts(Parts { reader, ranges, batch }));
        }
        let mut items = ResponseIter::new(bao::tree(size), whole);
        let item = items.next();
        Ok(Self::Groups(Groups { reader, items, item, window: TreeWindow::default(), batch }))
    }
}

/// What [`Groups::next`] comes to.
pub(super) enum Next {
    Batch(Bytes),
    /// The disk has to be waited for.
    Wait,
    End,
}

/// An answer of whole groups.
pub(super) struct Groups {
    reader: LayerReader,
    items: ResponseIter,
    /// The next item.
    item: Option<BaoChunk>,
    window: TreeWindow,
    batch: Batch,
}

impl Groups {
    /// Encodes the next batch. After [`Next::Wait`] it is called again, on a thread that may wait.
    pub(super) fn next(&mut self, wait: Wait) -> Result<Next, Refusal> {
        while !self.batch.is_full() {
            match &self.item {
                Some(BaoChunk::Parent { node, .. }) => {
                    let pair = self.reader.pair_near(*node, &mut self.window, wait).map_err(refuse)?;
                    let Some((left, right)) = pair else { return Ok(Next::Wait) };
                    let pair = self.batch.next(PAIR_BYTES);
                    pair[..PAIR_BYTES / 2].copy_from_slice(left.as_bytes());
                    pair[PAIR_BYTES / 2..].copy_from_slice(right.as_bytes());
                }
                Some(BaoChunk::Leaf { start_chunk, size, .. }) => {
                    self.batch.leaf(*size, start_chunk.to_bytes());
                }
                None => break,
            }
            self.item = self.items.next();
        }
        if !self.batch.read_leaves(&self.reader, wait).map_err(refuse)? {
            return Ok(Next::Wait);
        }
        let full = self.batch.take(self.item.is_some());
        Ok(if full.is_empty() { Next::End } else { Next::Batch(full) })
    }
}

/// An answer that needs hashes from inside a group, such as a proof of the size: rare, so the library encodes it.
pub(super) struct Parts {
    reader: LayerReader,
    ranges: ChunkRanges,
    batch: Batch,
}

impl Parts {
    /// Blocking: reads, encodes and hands on.
    pub(super) fn read(self, batches: &mpsc::Sender<Bytes>) -> Result<(), Refusal> {
        let mut out = Outflow::new(self.batch, batches);
        let outboard = FileOutboard { reader: &self.reader, root: self.reader.id() };
        bao_tree::io::sync::encode_ranges(FileData(&self.reader), outboard, &self.ranges, &mut out)
            .map_err(refuse)?;
        out.end();
        Ok(())
    }
}

/// Groups that `ranges` touch, even in part.
fn touched_groups(ranges: &ChunkRangesRef, size: u64) -> GroupSet {
    let mut boundaries: Vec<u64> = Vec::with_capacity(ranges.boundaries().len());
    for pair in ranges.boundaries().chunks(2) {
        // Past the end means the last chunk: a proof of the size.
        let start = (pair[0].0 / bao::GROUP_CHUNKS).min(bao::group_count(size) - 1);
        let end = pair.get(1).map_or(bao::group_count(size), |end| end.0.div_ceil(bao::GROUP_CHUNKS));
        let end = end.max(start + 1);
        match boundaries.last_mut() {
            // Parts of one group, or neighbours.
            Some(last) if *last >= start => *last = end.max(*last),
            _ => boundaries.extend([start, end]),
        }
    }
    GroupSet::new(boundaries.into()).unwrap_or_else(GroupSet::empty)
}

struct FileData<'a>(&'a LayerReader);

impl bao_tree::io::sync::ReadAt for FileData<'_> {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = usize::try_from(self.0.size().saturating_sub(offset)).unwrap_or(usize::MAX);
        let len = buffer.len().min(left);
        self.0.read_exact_at(&mut buffer[..len], offset).map_err(std::io::Error::other)?;
        Ok(len)
    }
}

impl bao_tree::io::sync::Size for FileData<'_> {
    fn size(&self) -> std::io::Result<Option<u64>> {
        Ok(Some(self.0.size()))
    }
}

struct FileOutboard<'a> {
    reader: &'a LayerReader,
    root: LayerId,
}

impl bao_tree::io::sync::Outboard for FileOutboard<'_> {
    fn root(&self) -> blake3::Hash {
        blake3::Hash::from_bytes(self.root.0)
    }

    fn tree(&self) -> bao_tree::BaoTree {
        bao::tree(self.reader.size())
    }

    fn load(&self, node: TreeNode) -> std::io::Result<Option<(blake3::Hash, blake3::Hash)>> {
        if bao::tree(self.reader.size()).pre_order_offset(node).is_none() {
            return Ok(None);
        }
        self.reader.pair(node).map(Some).map_err(std::io::Error::other)
    }
}
