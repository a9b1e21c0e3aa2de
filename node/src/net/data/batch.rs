//! An encoded answer on its way out: items are collected into batches, and the leaves of a batch are read together.

use std::io::IoSliceMut;

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;
use weighlock_cache::{LayerReader, StoreError, Wait};
use weighlock_protocol::wire::bao::GROUP_BYTES;

use super::buffers::Buffers;

/// Collects encoded bytes.
pub(super) struct Batch {
    size: usize,
    buffers: Buffers,
    /// Written up to `at`, but for the leaves that are still to be read.
    buffer: BytesMut,
    at: usize,
    leaves: Vec<Leaf>,
}

/// A leaf that is to be read: where it goes in the batch, and where it comes from in the layer.
#[derive(Clone, Copy)]
struct Leaf {
    at: usize,
    len: usize,
    offset: u64,
}

impl Batch {
    /// Room behind a batch for the item that fills it.
    const SLACK_BYTES: usize = GROUP_BYTES as usize + 4096;

    pub(super) fn new(size: usize, buffers: &Buffers) -> Self {
        let buffer = buffers.take(size + Self::SLACK_BYTES);
        Self { size, buffers: buffers.clone(), buffer, at: 0, leaves: Vec::new() }
    }

    /// The next `len` bytes, to be written over; at most a group.
    pub(super) fn next(&mut self, len: usize) -> &mut [u8] {
        let from = self.at;
        self.at += len;
        &mut self.buffer[from..self.at]
    }

    /// Makes room for a leaf, which [`read_leaves`](Self::read_leaves) fills.
    pub(super) fn leaf(&mut self, len: usize, offset: u64) {
        self.leaves.push(Leaf { at: self.at, len, offset });
        self.at += len;
    }

    /// Reads the leaves that room was made for, neighbours in one call. Call it before the batch is taken. False if they
    /// are not at hand and nobody is to wait; then call it again.
    pub(super) fn read_leaves(&mut self, reader: &LayerReader, wait: Wait) -> Result<bool, StoreError> {
        let mut leaves = self.leaves.iter().copied().peekable();
        let (mut rest, mut taken) = (&mut self.buffer[..], 0);
        let mut parts: Vec<IoSliceMut<'_>> = Vec::new();
        while let Some(first) = leaves.next() {
            let (mut leaf, mut end) = (first, 0);
            let offset = leaf.offset;
            parts.clear();
            loop {
                let (part, after) = rest[leaf.at - taken..].split_at_mut(leaf.len);
                (rest, taken, end) = (after, leaf.at + leaf.len, end.max(leaf.offset + leaf.len as u64));
                parts.push(IoSliceMut::new(part));
                match leaves.next_if(|next| next.offset == end) {
                    Some(next) => leaf = next,
                    None => break,
                }
            }
            if !reader.read_parts_at(&mut parts, offset, wait)? {
                return Ok(false);
            }
        }
        self.leaves.clear();
        Ok(true)
    }

    pub(super) fn is_full(&self) -> bool {
        self.at >= self.size
    }

    /// What was collected. `more` is to come after it.
    pub(super) fn take(&mut self, more: bool) -> Bytes {
        debug_assert!(self.leaves.is_empty(), "leaves are read before");
        let next = if more { self.buffers.take(self.size + Self::SLACK_BYTES) } else { BytesMut::new() };
        let mut full = std::mem::replace(&mut self.buffer, next);
        full.truncate(std::mem::take(&mut self.at));
        let full = full.freeze();
        // It is used again once the asker has acknowledged all of it.
        self.buffers.give(full.clone());
        full
    }
}

/// Hands batches on as they fill, from a thread that may wait.
pub(super) struct Outflow<'a> {
    batch: Batch,
    batches: &'a mpsc::Sender<Bytes>,
}

impl<'a> Outflow<'a> {
    pub(super) fn new(batch: Batch, batches: &'a mpsc::Sender<Bytes>) -> Self {
        Self { batch, batches }
    }

    /// False when nobody listens any more.
    pub(super) fn end(mut self) -> bool {
        self.hand_on(false)
    }

    fn hand_on(&mut self, more: bool) -> bool {
        let full = self.batch.take(more);
        full.is_empty() || self.batches.blocking_send(full).is_ok()
    }
}

impl std::io::Write for Outflow<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let len = bytes.len().min(GROUP_BYTES as usize);
        self.batch.next(len).copy_from_slice(&bytes[..len]);
        if self.batch.is_full() && !self.hand_on(true) {
            return Err(std::io::ErrorKind::BrokenPipe.into());
        }
        Ok(len)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
