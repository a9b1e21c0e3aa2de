//! An answer as it comes in: read from the stream in whole items, each byte copied once, out of its packet.

use std::time::Duration;

use bao_tree::iter::{BaoChunk, ResponseIter};
use bytes::{Bytes, BytesMut};
use quinn::{Connection, RecvStream, VarInt};
use tokio::sync::mpsc;
use weighlock_protocol::wire::bao::{self, GroupSet};

use super::buffers::Buffers;
use super::get::{GetError, exact_error, open, read_error, within};

/// Packets taken from a stream at once.
const CHUNKS_AT_ONCE: usize = 32;

/// Bytes of what comes after the end of an answer; one is enough to call it a lie.
const EXCESS_BYTES: usize = 4096;

/// How long the batches of a get are: as many whole items as reach the wanted length.
pub(super) struct Plan {
    items: ResponseIter,
}

impl Plan {
    pub(super) fn new(size: u64, groups: &GroupSet) -> Self {
        Self { items: ResponseIter::new(bao::tree(size), bao::canonical_chunks(groups, size)) }
    }

    /// Bytes of the next batch; `None` after the last.
    pub(super) fn batch(&mut self, batch_bytes: usize) -> Option<usize> {
        let mut len = 0;
        while len < batch_bytes {
            let Some(item) = self.items.next() else { break };
            len += BaoChunk::size(&item);
        }
        (len > 0).then_some(len)
    }
}

/// The bytes of one answer after its size.
pub(super) struct Inflow {
    recv: RecvStream,
    /// Taken from the stream and not copied yet, from `next` on.
    chunks: [Bytes; CHUNKS_AT_ONCE],
    next: usize,
    filled: usize,
    stall: Duration,
}

impl Inflow {
    /// Asks, and checks the size that the answer begins with.
    pub(super) async fn open(
        connection: &Connection,
        request: &[u8],
        size: u64,
        stall: Duration,
    ) -> Result<Self, GetError> {
        let mut recv = within(stall, open(connection, request)).await??;
        let mut header = [0; 8];
        within(stall, recv.read_exact(&mut header)).await?.map_err(exact_error)?;
        let claimed = u64::from_le_bytes(header);
        if claimed != size {
            let _ = recv.stop(VarInt::from_u32(0));
            return Err(GetError::Size { theirs: claimed, ours: size });
        }
        Ok(Self { recv, chunks: std::array::from_fn(|_| Bytes::new()), next: 0, filled: 0, stall })
    }

    /// Passes everything on in batches as long as `plan` says, until the stream or whoever takes them ends.
    pub(super) async fn pass_on(
        &mut self,
        raw: &mpsc::Sender<BytesMut>,
        buffers: &Buffers,
        mut plan: impl FnMut() -> Option<usize>,
    ) -> Result<(), GetError> {
        loop {
            let mut batch = plan().map_or_else(|| BytesMut::zeroed(EXCESS_BYTES), |len| buffers.take(len));
            let (len, end) = self.fill(&mut batch).await;
            // What came before an early end counts too.
            batch.truncate(len);
            if len > 0 && raw.send(batch).await.is_err() {
                // The writer gave up; it says why.
                let _ = self.recv.stop(VarInt::from_u32(0));
                return Ok(());
            }
            if let Some(end) = end {
                return end;
            }
        }
    }

    /// Fills `buffer`; fewer bytes only with the reason why no more come.
    async fn fill(&mut self, buffer: &mut [u8]) -> (usize, Option<Result<(), GetError>>) {
        let mut at = 0;
        while at < buffer.len() {
            if self.next == self.filled {
                self.next = 0;
                self.filled = match within(self.stall, self.recv.read_chunks(&mut self.chunks)).await {
                    Ok(Ok(Some(count))) => count,
                    Ok(Ok(None)) => return (at, Some(Ok(()))),
                    Ok(Err(e)) => return (at, Some(Err(read_error(e)))),
                    Err(e) => return (at, Some(Err(e))),
                };
                continue;
            }
            let chunk = &mut self.chunks[self.next];
            let len = chunk.len().min(buffer.len() - at);
            buffer[at..at + len].copy_from_slice(&chunk[..len]);
            at += len;
            if len == chunk.len() {
                *chunk = Bytes::new();
                self.next += 1;
            } else {
                *chunk = chunk.slice(len..);
            }
        }
        (at, None)
    }
}
