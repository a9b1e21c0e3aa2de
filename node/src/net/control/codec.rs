//! Reads and writes requests and responses on a stream, length first, within fixed limits.

use std::io;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::StreamProtocol;
use libp2p::request_response;
use weighlock_protocol::wire::control::{
    REQUEST_BYTES_MAX, RESPONSE_BYTES_MAX, Request, Response, WireError,
};

/// A request as it came in. Errors are values here, because the library keeps quiet about requests that
/// cannot be read, and whoever sends rubbish is to be put out.
pub(super) type Incoming = Result<Request, WireError>;

/// Codec of the sync protocol. A response that is rubbish is [`io::ErrorKind::InvalidData`], which names
/// the peer as its author; one of a newer version is [`io::ErrorKind::Unsupported`], nobody's fault.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Codec;

impl request_response::Codec for Codec {
    type Protocol = StreamProtocol;
    type Request = Incoming;
    type Response = Response;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Incoming>
    where
        T: AsyncRead + Unpin + Send,
    {
        match read_frame(io, REQUEST_BYTES_MAX).await {
            Ok(bytes) => Ok(Request::decode(&bytes)),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                Ok(Err(WireError::Malformed { what: "request", reason: "it is too long" }))
            }
            Err(e) => Err(e),
        }
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Response>
    where
        T: AsyncRead + Unpin + Send,
    {
        Response::decode(&read_frame(io, RESPONSE_BYTES_MAX).await?).map_err(invalid)
    }

    async fn write_request<T>(&mut self, _: &StreamProtocol, io: &mut T, request: Incoming) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        let request = request.map_err(invalid)?;
        write_frame(io, &request.encode(), REQUEST_BYTES_MAX).await
    }

    async fn write_response<T>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        response: Response,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        write_frame(io, &response.encode(), RESPONSE_BYTES_MAX).await
    }
}

fn invalid(error: WireError) -> io::Error {
    let kind = match error {
        WireError::Version(_) => io::ErrorKind::Unsupported,
        WireError::Malformed { .. } | WireError::TooMany { .. } => io::ErrorKind::InvalidData,
    };
    io::Error::new(kind, error)
}

async fn read_frame<T: AsyncRead + Unpin + Send>(io: &mut T, bytes_max: usize) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    io.read_exact(&mut length).await?;
    let length = u32::from_be_bytes(length) as usize;
    if length > bytes_max {
        let what = format!("a message of {length} bytes; at most {bytes_max} are allowed");
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    // The buffer grows with what arrives, not with what the peer claims.
    let mut bytes = Vec::new();
    io.take(length as u64).read_to_end(&mut bytes).await?;
    if bytes.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}

async fn write_frame<T: AsyncWrite + Unpin + Send>(
    io: &mut T,
    bytes: &[u8],
    bytes_max: usize,
) -> io::Result<()> {
    if bytes.len() > bytes_max {
        let what = format!("our own message has {} bytes; at most {bytes_max} are allowed", bytes.len());
        return Err(io::Error::other(what));
    }
    io.write_all(&(bytes.len() as u32).to_be_bytes()).await?;
    io.write_all(bytes).await?;
    io.flush().await
}

#[cfg(test)]
mod tests {
    use futures::io::Cursor;

    use super::*;

    #[tokio::test]
    async fn frames_round_trip_and_lies_about_length_are_refused() {
        let mut wire = Cursor::new(Vec::new());
        write_frame(&mut wire, b"hello", 16).await.expect("written");
        let bytes = wire.into_inner();
        assert_eq!(read_frame(&mut Cursor::new(&bytes), 5).await.expect("read"), b"hello");
        let kind = |r: io::Result<Vec<u8>>| r.expect_err("refused").kind();
        assert_eq!(kind(read_frame(&mut Cursor::new(&bytes), 4).await), io::ErrorKind::InvalidData);
        assert_eq!(kind(read_frame(&mut Cursor::new(&bytes[..7]), 5).await), io::ErrorKind::UnexpectedEof);
        let huge = [0xff; 64];
        assert_eq!(kind(read_frame(&mut Cursor::new(&huge), 1 << 20).await), io::ErrorKind::InvalidData);
    }
}
