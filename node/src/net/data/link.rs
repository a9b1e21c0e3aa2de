//! Streams of frames between neighbours of one manifest.

use quinn::{Connection, RecvStream, SendStream, VarInt};
use weighlock_protocol::ManifestDigest;
use weighlock_protocol::wire::data::{Request, reset};
use weighlock_protocol::wire::swarm::{FRAME_BYTES_MAX, Frame};

use super::get::{exact_error, within};
use super::{GetError, PRIORITY_SHORT};

/// Longest wait for a peer to take a link.
const OPEN_MAX: std::time::Duration = std::time::Duration::from_secs(10);

/// Opens a link for a manifest. The peer's first frame tells whether it takes part.
///
/// # Errors
/// The connection.
pub async fn open_link(
    connection: &Connection,
    manifest: ManifestDigest,
) -> Result<(SendStream, RecvStream), GetError> {
    let open = async {
        let (mut send, recv) = connection.open_bi().await.map_err(|e| GetError::Lost(e.to_string()))?;
        let _ = send.set_priority(PRIORITY_SHORT);
        let request = Request::Link { manifest }.encode();
        send.write_all(&request).await.map_err(|e| GetError::Lost(e.to_string()))?;
        Ok((send, recv))
    };
    within(OPEN_MAX, open).await?
}

/// The next frame of a kind that this version knows, with its length in bytes; `None` at an orderly end.
///
/// # Errors
/// The connection, or what comes over it.
pub async fn read_frame(recv: &mut RecvStream) -> Result<Option<(Frame, usize)>, GetError> {
    loop {
        let mut len = [0; 4];
        match recv.read_exact(&mut len).await {
            Ok(()) => {}
            Err(quinn::ReadExactError::FinishedEarly(0)) => return Ok(None),
            Err(e) => return Err(exact_error(e)),
        }
        let len = u32::from_be_bytes(len) as usize;
        if len > FRAME_BYTES_MAX {
            return Err(GetError::Protocol("a frame is over the limit".into()));
        }
        let mut body = vec![0; len];
        recv.read_exact(&mut body).await.map_err(exact_error)?;
        if let Some(frame) = Frame::parse(&body).map_err(|e| GetError::Protocol(e.to_string()))? {
            return Ok(Some((frame, len)));
        }
    }
}

/// Tells the peer that this host takes no part in the manifest, or not now.
pub fn refuse_link(mut send: SendStream, mut recv: RecvStream) {
    let code = VarInt::from_u32(reset::LIMIT);
    let _ = send.reset(code);
    let _ = recv.stop(code);
}
