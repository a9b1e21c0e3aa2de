//! An encoded answer on its way out: items are collected into batches, and the leaves of a batch are read together.

use std::io::IoSliceMut;

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;
use weighlock_cache::{LayerReader, StoreError};
use weighlock_protocol::wire::bao::GROUP_BYTES;

use super::buffers::Buffers;

/// Collects encoded bytes and hands them on in batches.
pub(super) struct Batch<'a> {
    size: usize,
    buffers: &'a Buffers,
    /// Written up to `at`, but for the leaves that are still to be read.
    buffer: BytesMut,
    at: usize,
    leaves: Vec<Leaf>,
    batches: &'a mpsc::Sender<Bytes>,
}

/// A leaf that is to be read: where it goes in the batch, and where it comes from in the layer.
struct Leaf {
    at: usize,
    len: usize,
    offset: u64,
}

impl<'a> Batch<'a> {
    /// Room behind a batch for the item that fills it.
    const SLACK_BYTES: usize = GROUP_BYTES as usize + 4096;

    pub(super) fn new(size: usize, buffers: &'a Buffers, batches: &'a mpsc::Sender<Bytes>) -> Self {
        let buffer = buffers.take(size + Self::SLACK_BYTES);
        Self { size, buffers, buffer, at: 0, leaves: Vec::new(), batches }
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

    /// Reads the leaves that room was made for, neighbours in one call. Call it before the batch is handed on.
    pub(super) fn read_leaves(&mut self, reader: &LayerReader) -> Result<(), StoreError> {
        let mut leaves = self.leaves.drain(..).peekable();
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
            reader.read_parts_at(&mut parts, offset)?;
        }
        Ok(())
    }

    pub(super) fn is_full(&self) -> bool {
        self.at >= self.size
    }

    /// False when nobody listens any more.
    pub(super) fn flush_batch(&mut self) -> bool {
        let next = self.buffers.take(self.size + Self::SLACK_BYTES);
        self.hand_on(next)
    }

    pub(super) fn flush_last(mut self) {
        self.hand_on(BytesMut::new());
    }

    fn hand_on(&mut self, next: BytesMut) -> bool {
        debug_assert!(self.leaves.is_empty(), "leaves are read before");
        let mut full = std::mem::replace(&mut self.buffer, next);
        full.truncate(std::mem::take(&mut self.at));
        let full = full.freeze();
        // It is used again once the asker has acknowledged all of it.
        self.buffers.give(full.clone());
        full.is_empty() || self.batches.blocking_send(full).is_ok()
    }
}

impl std::io::Write for Batch<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let len = bytes.len().min(GROUP_BYTES as usize);
        self.next(len).copy_from_slice(&bytes[..len]);
        if self.is_full() && !self.flush_batch() {
            return Err(std::io::ErrorKind::BrokenPipe.into());
        }
        Ok(len)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
