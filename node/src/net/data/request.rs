//! Reading requests: what a peer sends before it is answered, within bounds.

use std::ops::Range;

use bao_tree::ChunkRanges;
use quinn::RecvStream;
use tokio::sync::{Semaphore, SemaphorePermit};
use weighlock_protocol::wire::bao;
use weighlock_protocol::wire::data::{KIND_LINK, LINK_BYTES, MESSAGE_BYTES_MAX, Request, RequestError};

/// Requests up to this long are read as they come.
const SHORT_BYTES: usize = 4 << 10;

/// Leave to hold a long request.
pub(super) type Leave<'a> = Option<[SemaphorePermit<'a>; 2]>;

/// A request, read to its end unless it is a link, on which frames follow; and leave to hold it, until it is answered or
/// refused, where it is a long one.
pub(super) async fn read_request<'a>(
    recv: &mut RecvStream,
    [of_peer, of_host]: [&'a Semaphore; 2],
) -> Result<(Result<Request, RequestError>, Leave<'a>), String> {
    let mut long = None;
    let mut first = [0];
    match recv.read_exact(&mut first).await {
        Ok(()) => {}
        Err(quinn::ReadExactError::FinishedEarly(_)) => return Ok((Request::parse(&[]), long)),
        Err(e) => return Err(e.to_string()),
    }
    let mut bytes = first.to_vec();
    if first[0] == KIND_LINK {
        let mut rest = [0; LINK_BYTES];
        recv.read_exact(&mut rest).await.map_err(|e| e.to_string())?;
        bytes.extend(rest);
    } else {
        while let Some(chunk) = recv.read_chunk(MESSAGE_BYTES_MAX, true).await.map_err(|e| e.to_string())? {
            if bytes.len() + chunk.bytes.len() > MESSAGE_BYTES_MAX {
                return Err("a request is over the limit".into());
            }
            if long.is_none() && bytes.len() + chunk.bytes.len() > SHORT_BYTES {
                // Few are, and none for long: what waits here is memory.
                let closed = |e: tokio::sync::AcquireError| e.to_string();
                long = Some([
                    of_peer.acquire().await.map_err(closed)?,
                    of_host.acquire().await.map_err(closed)?,
                ]);
            }
            bytes.extend_from_slice(&chunk.bytes);
        }
    }
    Ok((Request::parse(&bytes), long))
}

/// The groups between the first and the last chunk that a peer asks for; up to the last that a number holds where that is
/// the layer's end, which is not known here.
pub(super) fn asked_groups(chunks: &ChunkRanges) -> Range<u64> {
    let boundaries = chunks.boundaries();
    let first = boundaries.first().map_or(0, |chunk| chunk.0 / bao::GROUP_CHUNKS);
    let last = match boundaries.len() % 2 {
        0 => boundaries.last().map_or(first, |chunk| chunk.0.div_ceil(bao::GROUP_CHUNKS)),
        // Open, as every range that reaches the layer's end.
        _ => u64::MAX,
    };
    first..last.max(first + 1)
}
