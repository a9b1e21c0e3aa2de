//! Plain QUIC streams in the form that iroh-blobs takes.

use std::io;

use bytes::Bytes;
use iroh::endpoint::VarInt;
use iroh_blobs::util;
use quinn::ReadExactError;

/// The sending half.
pub(crate) struct Send(pub(crate) quinn::SendStream);
/// The receiving half.
pub(crate) struct Recv(pub(crate) quinn::RecvStream);

fn code(code: VarInt) -> quinn::VarInt {
    quinn::VarInt::from_u64(code.into_inner()).expect("the same range")
}

fn exact(error: ReadExactError) -> io::Error {
    match error {
        ReadExactError::FinishedEarly(0) => io::ErrorKind::UnexpectedEof.into(),
        ReadExactError::FinishedEarly(_) => io::ErrorKind::InvalidData.into(),
        ReadExactError::ReadError(error) => error.into(),
    }
}

impl util::SendStream for Send {
    async fn send_bytes(&mut self, bytes: Bytes) -> io::Result<()> {
        Ok(self.0.write_chunk(bytes).await?)
    }

    async fn send(&mut self, buffer: &[u8]) -> io::Result<()> {
        Ok(self.0.write_all(buffer).await?)
    }

    async fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn reset(&mut self, error: VarInt) -> io::Result<()> {
        Ok(self.0.reset(code(error))?)
    }

    async fn stopped(&mut self) -> io::Result<Option<VarInt>> {
        let stopped = self.0.stopped().await?;
        Ok(stopped.map(|code| VarInt::from_u64(code.into_inner()).expect("the same range")))
    }

    fn id(&self) -> u64 {
        self.0.id().index()
    }
}

impl util::RecvStream for Recv {
    async fn recv_bytes(&mut self, len: usize) -> io::Result<Bytes> {
        let mut buffer = vec![0; len];
        match self.0.read_exact(&mut buffer).await {
            Ok(()) => {}
            Err(ReadExactError::FinishedEarly(read)) => buffer.truncate(read),
            Err(error) => return Err(exact(error)),
        }
        Ok(buffer.into())
    }

    async fn recv_bytes_exact(&mut self, len: usize) -> io::Result<Bytes> {
        let mut buffer = vec![0; len];
        self.0.read_exact(&mut buffer).await.map_err(exact)?;
        Ok(buffer.into())
    }

    async fn recv_exact(&mut self, target: &mut [u8]) -> io::Result<()> {
        self.0.read_exact(target).await.map_err(exact)
    }

    fn stop(&mut self, error: VarInt) -> io::Result<()> {
        Ok(self.0.stop(code(error))?)
    }

    fn id(&self) -> u64 {
        self.0.id().index()
    }
}
