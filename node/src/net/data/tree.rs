//! Asking for the tree of a layer: each hash pair is proven from the root down before it is written.

use std::sync::Arc;

use bytes::BytesMut;
use quinn::Connection;
use tokio::sync::mpsc;
use weighlock_cache::PartialLayer;
use weighlock_protocol::wire::bao::Verified;
use weighlock_protocol::wire::data::Request;
use weighlock_protocol::wire::tree::{PAIR_BYTES, TreeDecoder, tree_bytes};

use super::get::{GetError, GetOptions};
use super::inflow::Inflow;

/// Brings the whole tree of the layer behind `partial` over `connection`. Pairs are written as they are proven; an
/// early end keeps them. Memory: a few batches. Layers of one group have no tree; nothing is asked then.
///
/// # Errors
/// As [`get`](super::get()); [`GetError::Miss`] also from a host that does not have all of the layer, or does not know
/// this request.
pub async fn tree(
    connection: &Connection,
    partial: Arc<PartialLayer>,
    options: GetOptions,
) -> Result<(), GetError> {
    let (layer, size) = (partial.id(), partial.size());
    let decoder = TreeDecoder::new(layer, size);
    if decoder.complete() {
        return Ok(());
    }
    let GetOptions { batch_bytes, ahead: _, buffers, stall, cancel, progress: _ } = options;
    let (raw, batches) = mpsc::channel::<BytesMut>(1);
    let writer = tokio::task::spawn_blocking(move || write_proven(decoder, &partial, batches));
    let request = Request::Tree { layer }.encode();
    let mut left = tree_bytes(size);
    let whole_pairs = (batch_bytes / PAIR_BYTES).max(1) * PAIR_BYTES;
    let plan = || {
        let len = left.min(whole_pairs as u64);
        left -= len;
        (len > 0).then_some(len as usize)
    };
    let inflow = async {
        let mut inflow = Inflow::open(connection, &request, size, stall).await?;
        inflow.pass_on(&raw, &buffers, plan).await
    };
    let received = tokio::select! {
        biased;
        () = cancel.cancelled() => Err(GetError::Cancelled),
        received = inflow => received,
    };
    drop(raw);
    let written = writer.await.map_err(|_| GetError::Lost("the writer ended".into()))?;
    // A failed proof explains everything after it.
    match (written, received) {
        (Err(e), _) | (Ok(_), Err(e)) => Err(e),
        (Ok(true), Ok(())) => Ok(()),
        (Ok(false), Ok(())) => Err(GetError::Miss(0)),
    }
}

/// Blocking: proves and writes what comes. Answers whether the tree is whole.
fn write_proven(
    mut decoder: TreeDecoder,
    partial: &PartialLayer,
    mut batches: mpsc::Receiver<BytesMut>,
) -> Result<bool, GetError> {
    while let Some(mut buffer) = batches.blocking_recv() {
        let mut items: Vec<Verified> = Vec::with_capacity(buffer.len() / PAIR_BYTES);
        let mut fault = None;
        while buffer.len() >= PAIR_BYTES && !decoder.complete() {
            match decoder.feed(&buffer.split_to(PAIR_BYTES)) {
                Ok(item) => items.push(item),
                Err(e) => {
                    fault = Some(e);
                    break;
                }
            }
        }
        // What was proven before a lie is kept.
        partial.write(&items)?;
        if let Some(fault) = fault {
            return Err(fault.into());
        }
        if decoder.complete() && !buffer.is_empty() {
            return Err(GetError::Protocol("sent more than the tree has".into()));
        }
    }
    Ok(decoder.complete())
}
