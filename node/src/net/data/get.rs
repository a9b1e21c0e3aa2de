//! The asking side: fetches ranges into a partial layer, verified before they are written, and watches possession.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use quinn::{Connection, ReadError, ReadExactError, RecvStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use weighlock_cache::{PartialLayer, StoreError};
use weighlock_protocol::LayerId;
use weighlock_protocol::wire::bao::{DecodeError, Decoder, GROUP_BYTES, GroupSet, Verified};
use weighlock_protocol::wire::data::{MESSAGE_BYTES_MAX, ObserveItem, Request, RequestError, reset};

use super::PRIORITY_SHORT;
use super::buffers::Buffers;
use super::inflow::{Inflow, Plan};

/// Longest wait for a peer to take a question about what it has.
const ASK_MAX: Duration = Duration::from_secs(10);

/// Longest wait to tell a peer that it sent wrong bytes.
const DOUBT_MAX: Duration = Duration::from_secs(1);

/// Why a range did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum GetError {
    /// Bytes failed their proof: the peer lied, or its disk did.
    #[error("sent bytes that fail verification: {0}")]
    Verify(#[from] DecodeError),
    /// It speaks another protocol or breaks this one.
    #[error("broke the protocol: {0}")]
    Protocol(String),
    /// Its layer of that id has another size than the manifest says, whichever of the two is right.
    #[error("says that the layer has {theirs} bytes, and the manifest {ours}")]
    Size {
        /// By the peer.
        theirs: u64,
        /// By the manifest.
        ours: u64,
    },
    /// It does not have all of the range, or refuses.
    #[error("does not have the range that it declared (stream reset {0})")]
    Miss(u32),
    /// It answers too slowly.
    #[error("sent nothing for {} s", .0.as_secs())]
    Stalled(Duration),
    /// The connection could not be made or ended.
    #[error("connection failed: {0}")]
    Lost(String),
    /// The caller wanted it no more.
    #[error("was cancelled")]
    Cancelled,
    /// Our own disk.
    #[error(transparent)]
    Local(#[from] StoreError),
}

/// What came of a get: what was proven and written, and why it ended early, if it did.
#[derive(Debug)]
pub struct Got {
    /// Groups written to the partial layer.
    pub stored: GroupSet,
    /// Layer bytes among them.
    pub bytes: u64,
    /// `Ok` when the whole range arrived.
    pub end: Result<(), GetError>,
}

/// How a get is carried out.
#[derive(Debug, Clone)]
pub struct GetOptions {
    /// Bytes proven and written at once.
    pub batch_bytes: usize,
    /// Batches that wait for that; at least one.
    pub ahead: usize,
    /// Where buffers for them come from.
    pub buffers: Buffers,
    /// Longest wait for the next bytes.
    pub stall: Duration,
    /// Counts proven bytes as they are written.
    pub progress: Arc<AtomicU64>,
    /// Ends it early.
    pub cancel: CancellationToken,
}

/// Fetches `groups` of the layer behind `partial` over `connection`. Proven bytes are written as they come; an early
/// end keeps them.
pub async fn get(
    connection: &Connection,
    partial: Arc<PartialLayer>,
    groups: GroupSet,
    options: GetOptions,
) -> Got {
    let (layer, size) = (partial.id(), partial.size());
    let GetOptions { batch_bytes, ahead, buffers, stall, progress, cancel } = options;
    let decoder = Decoder::new(layer, size, &groups);
    let mut plan = Plan::new(size, &groups);
    // Raw bytes to the thread that proves and writes; how many batches are in flight bounds the memory of a slot.
    let (raw, batches) = mpsc::channel::<BytesMut>(ahead.max(1));
    let used = buffers.clone();
    let writer = tokio::task::spawn_blocking(move || {
        let sink = Sink { partial: &partial, buffers: &used, progress: &progress };
        sink.write_proven(decoder, batches)
    });
    let request = Request::get(layer, &groups, size).encode();
    let inflow = async {
        let mut inflow = Inflow::open(connection, &request, size, stall).await?;
        inflow.pass_on(&raw, &buffers, || plan.batch(batch_bytes)).await
    };
    let received = tokio::select! {
        biased;
        () = cancel.cancelled() => Err(GetError::Cancelled),
        received = inflow => received,
    };
    drop(raw);
    let Ok((stored, bytes, proven)) = writer.await else {
        return Got {
            stored: GroupSet::empty(),
            bytes: 0,
            end: Err(GetError::Lost("the writer ended".into())),
        };
    };
    // A failed proof explains everything after it.
    let end = match (proven, received) {
        (Err(e), _) | (Ok(_), Err(e)) => Err(e),
        (Ok(true), Ok(())) => Ok(()),
        (Ok(false), Ok(())) => Err(GetError::Miss(0)),
    };
    Got { stored, bytes, end }
}

/// What proven bytes meet on their way to the disk.
struct Sink<'a> {
    partial: &'a PartialLayer,
    buffers: &'a Buffers,
    progress: &'a AtomicU64,
}

impl Sink<'_> {
    /// Blocking: proves and writes what comes. Returns what was stored, its bytes, and whether the range is whole.
    fn write_proven(
        &self,
        mut decoder: Decoder,
        mut batches: mpsc::Receiver<BytesMut>,
    ) -> (GroupSet, u64, Result<bool, GetError>) {
        let (mut stored, mut bytes) = (GroupSet::empty(), 0);
        let mut end = Ok(());
        while end.is_ok()
            && let Some(batch) = batches.blocking_recv()
        {
            end = self.write_batch(&mut decoder, batch.freeze(), &mut stored, &mut bytes);
        }
        // An empty layer is proven by its end.
        if end.is_ok() && decoder.need() == Some(0) {
            end = self.write_batch(&mut decoder, Bytes::new(), &mut stored, &mut bytes);
        }
        if let (Err(e), Ok(())) = (self.partial.flush_have(), &end) {
            end = Err(e.into());
        }
        (stored, bytes, end.map(|()| decoder.need().is_none()))
    }

    /// Batches end where items do, but for the last one of an answer that was cut off.
    fn write_batch(
        &self,
        decoder: &mut Decoder,
        batch: Bytes,
        stored: &mut GroupSet,
        bytes: &mut u64,
    ) -> Result<(), GetError> {
        let mut rest = batch.clone();
        let mut items: Vec<Verified> = Vec::with_capacity(batch.len() / (GROUP_BYTES as usize / 2) + 32);
        let mut fault = None;
        while let Some(need) = decoder.need().filter(|need| *need <= rest.len()) {
            match decoder.feed(rest.split_to(need)) {
                Ok(item) => items.push(item),
                Err(e) => {
                    fault = Some(e);
                    break;
                }
            }
        }
        // What was proven before a lie is kept.
        self.partial.write(&items)?;
        let mut run = 0..0;
        for item in &items {
            let Verified::Leaf(leaf) = item else { continue };
            let group = leaf.offset() / GROUP_BYTES;
            if run.end != group {
                *stored |= GroupSet::from(run);
                run = group..group;
            }
            run.end += 1;
            *bytes += leaf.data().len() as u64;
            self.progress.fetch_add(leaf.data().len() as u64, Ordering::Relaxed);
        }
        *stored |= GroupSet::from(run);
        if let Some(fault) = fault {
            return Err(fault.into());
        }
        if decoder.need().is_none() && !rest.is_empty() {
            return Err(GetError::Protocol("sent more than was asked for".into()));
        }
        drop((items, rest));
        self.buffers.give(batch);
        Ok(())
    }
}

/// What a peer declares, as it declares it.
pub struct Declared<T> {
    recv: RecvStream,
    parse: fn(&[u8]) -> Result<T, RequestError>,
}

/// What a peer has of one layer, now and as it grows.
///
/// # Errors
/// The connection.
pub async fn observe(connection: &Connection, layer: LayerId) -> Result<Declared<ObserveItem>, GetError> {
    let recv = ask(connection, &Request::Observe { layer }).await?;
    Ok(Declared { recv, parse: ObserveItem::parse })
}

/// Tells a peer that bytes of a layer that it sent failed verification, so that it looks at its own copy. Without
/// effect on one that does not know this.
pub async fn doubt(connection: &Connection, layer: LayerId, error: &DecodeError) {
    let at = match error {
        DecodeError::Parent { start, .. } | DecodeError::Leaf { start, .. } => *start,
        DecodeError::Length { .. } => return,
    };
    let _ = within(DOUBT_MAX, open(connection, &Request::Doubt { layer, at }.encode())).await;
}

impl<T> Declared<T> {
    /// The next item; `None` once the peer has all of it and said so.
    ///
    /// # Errors
    /// The connection, or what comes over it.
    pub async fn next(&mut self) -> Result<Option<T>, GetError> {
        let Some(body) = read_prefixed(&mut self.recv).await? else {
            return Ok(None);
        };
        (self.parse)(&body).map(Some).map_err(|e| GetError::Protocol(e.to_string()))
    }
}

async fn ask(connection: &Connection, request: &Request) -> Result<RecvStream, GetError> {
    within(ASK_MAX, open(connection, &request.encode())).await?
}

/// Opens a stream and sends a request; a peer may let either wait.
pub(super) async fn open(connection: &Connection, request: &[u8]) -> Result<RecvStream, GetError> {
    let (mut send, recv) = connection.open_bi().await.map_err(|e| GetError::Lost(e.to_string()))?;
    let _ = send.set_priority(PRIORITY_SHORT);
    send.write_all(request).await.map_err(|e| GetError::Lost(e.to_string()))?;
    let _ = send.finish();
    Ok(recv)
}

/// One message after a varint length; `None` at an orderly end.
async fn read_prefixed(recv: &mut RecvStream) -> Result<Option<Vec<u8>>, GetError> {
    let mut len = 0usize;
    for shift in (0..).step_by(7) {
        let mut byte = [0];
        match recv.read_exact(&mut byte).await {
            Ok(()) => {}
            Err(ReadExactError::FinishedEarly(_)) if shift == 0 => return Ok(None),
            Err(e) => return Err(exact_error(e)),
        }
        len |= usize::from(byte[0] & 0x7f) << shift;
        if len > MESSAGE_BYTES_MAX || shift > 21 {
            return Err(GetError::Protocol("a message is over the limit".into()));
        }
        if byte[0] & 0x80 == 0 {
            break;
        }
    }
    let mut body = vec![0; len];
    recv.read_exact(&mut body).await.map_err(exact_error)?;
    Ok(Some(body))
}

pub(super) async fn within<F: Future>(stall: Duration, read: F) -> Result<F::Output, GetError> {
    tokio::time::timeout(stall, read).await.map_err(|_| GetError::Stalled(stall))
}

pub(super) fn exact_error(error: ReadExactError) -> GetError {
    match error {
        ReadExactError::FinishedEarly(_) => GetError::Miss(reset::INTERNAL),
        ReadExactError::ReadError(error) => read_error(error),
    }
}

pub(super) fn read_error(error: ReadError) -> GetError {
    match error {
        ReadError::Reset(code) => GetError::Miss(u32::try_from(code.into_inner()).unwrap_or(u32::MAX)),
        error => GetError::Lost(error.to_string()),
    }
}
