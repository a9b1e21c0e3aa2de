//! The asking side: fetches ranges into a partial layer, verified before they are written, and watches possession.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use quinn::{Connection, ReadError, ReadExactError, RecvStream, VarInt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use weighlock_cache::{PartialLayer, StoreError};
use weighlock_protocol::LayerId;
use weighlock_protocol::wire::bao::{DecodeError, Decoder, GROUP_BYTES, GroupSet, Verified};
use weighlock_protocol::wire::data::{MESSAGE_BYTES_MAX, ObserveItem, Request, RequestError, reset};

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
    let GetOptions { batch_bytes, stall, progress, cancel } = options;
    let wanted = groups;
    let decoder = Decoder::new(layer, size, &wanted);
    // Raw bytes to the thread that proves and writes; two batches in flight bound the memory of a slot.
    let (raw, batches) = mpsc::channel::<BytesMut>(2);
    let writer = tokio::task::spawn_blocking(move || write_proven(decoder, &partial, batches, &progress));
    let request = Request::get(layer, &wanted, size).encode();
    let received = tokio::select! {
        biased;
        () = cancel.cancelled() => Err(GetError::Cancelled),
        received = receive(connection, &request, size, raw, batch_bytes, stall) => received,
    };
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

/// Sends `request`, checks the size header, passes everything after it on in batches.
pub(super) async fn receive(
    connection: &Connection,
    request: &[u8],
    size: u64,
    raw: mpsc::Sender<BytesMut>,
    batch_bytes: usize,
    stall: Duration,
) -> Result<(), GetError> {
    let mut recv = within(stall, open(connection, request)).await??;
    let mut header = [0; 8];
    within(stall, recv.read_exact(&mut header)).await?.map_err(exact_error)?;
    let claimed = u64::from_le_bytes(header);
    if claimed != size {
        let _ = recv.stop(VarInt::from_u32(0));
        return Err(GetError::Protocol(format!("says that the layer has {claimed} bytes instead of {size}")));
    }
    let mut batch = BytesMut::with_capacity(batch_bytes);
    let end = loop {
        let chunk = match within(stall, recv.read_chunk(batch_bytes, true)).await {
            Ok(Ok(Some(chunk))) => chunk,
            Ok(Ok(None)) => break Ok(()),
            Ok(Err(e)) => break Err(read_error(e)),
            Err(e) => break Err(e),
        };
        batch.extend_from_slice(&chunk.bytes);
        if batch.len() >= batch_bytes {
            let full = std::mem::replace(&mut batch, BytesMut::with_capacity(batch_bytes));
            if raw.send(full).await.is_err() {
                // The writer gave up; it says why.
                let _ = recv.stop(VarInt::from_u32(0));
                return Ok(());
            }
        }
    };
    // What came before an early end counts too.
    let _ = raw.send(batch).await;
    end
}

/// Blocking: proves and writes what comes. Returns what was stored, its bytes, and whether the range is whole.
fn write_proven(
    mut decoder: Decoder,
    partial: &PartialLayer,
    mut batches: mpsc::Receiver<BytesMut>,
    progress: &AtomicU64,
) -> (GroupSet, u64, Result<bool, GetError>) {
    let mut buffer = BytesMut::new();
    let mut stored = GroupSet::empty();
    let mut bytes = 0;
    let mut run = || -> Result<bool, GetError> {
        let mut ended = false;
        while !ended {
            match batches.blocking_recv() {
                Some(batch) if buffer.is_empty() => buffer = batch,
                Some(batch) => buffer.extend_from_slice(&batch),
                None => ended = true,
            }
            let mut items: Vec<Verified> = Vec::new();
            let mut fault = None;
            while let Some(need) = decoder.need() {
                if buffer.len() < need || (need == 0 && !ended) {
                    break;
                }
                match decoder.feed(buffer.split_to(need).freeze()) {
                    Ok(item) => items.push(item),
                    Err(e) => {
                        fault = Some(e);
                        break;
                    }
                }
            }
            // What was proven before a lie is kept.
            partial.write(&items)?;
            for item in &items {
                if let Verified::Leaf(leaf) = item {
                    let group = leaf.offset() / GROUP_BYTES;
                    stored |= GroupSet::from(group..group + 1);
                    bytes += leaf.data().len() as u64;
                    progress.fetch_add(leaf.data().len() as u64, Ordering::Relaxed);
                }
            }
            if let Some(fault) = fault {
                return Err(fault.into());
            }
            if decoder.need().is_none() && !buffer.is_empty() {
                return Err(GetError::Protocol("sent more than was asked for".into()));
            }
        }
        Ok(decoder.need().is_none())
    };
    let mut end = run();
    if let (Err(e), Ok(_)) = (partial.flush_have(), &end) {
        end = Err(e.into());
    }
    (stored, bytes, end)
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
async fn open(connection: &Connection, request: &[u8]) -> Result<RecvStream, GetError> {
    let (mut send, recv) = connection.open_bi().await.map_err(|e| GetError::Lost(e.to_string()))?;
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

fn read_error(error: ReadError) -> GetError {
    match error {
        ReadError::Reset(code) => GetError::Miss(u32::try_from(code.into_inner()).unwrap_or(u32::MAX)),
        error => GetError::Lost(error.to_string()),
    }
}
