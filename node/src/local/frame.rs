//! Frames on local sockets: a u32 length, big-endian, and a JSON object; file descriptors ride on the length.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};

/// Largest frame, in bytes.
pub const FRAME_BYTES_MAX: usize = 16 << 20;
/// Most file descriptors on one frame; well under the kernel's 253.
pub const FRAME_FDS_MAX: usize = 64;

/// Room for the body of a frame before any of it came; most requests are shorter.
const BODY_BYTES_FIRST: usize = 1 << 10;
/// The rest of a frame follows its first byte within this, or the other side is given up.
const FRAME_TIME_MAX: Duration = Duration::from_secs(10);
/// A frame is taken within this, or the other side is given up.
const TAKE_TIME_MAX: Duration = Duration::from_secs(60);

/// Reads one frame of at most `bytes_max` bytes; `None` when the other side closed between frames.
///
/// # Errors
/// Cut short, over `bytes_max` or not JSON of the expected form (`InvalidData`), or begun and not finished for 10 s
/// (`TimedOut`).
pub async fn read<T: DeserializeOwned>(
    stream: &mut tokio::net::UnixStream,
    bytes_max: usize,
) -> io::Result<Option<T>> {
    read_within(stream, bytes_max, FRAME_TIME_MAX).await
}

async fn read_within<T: DeserializeOwned>(
    stream: &mut tokio::net::UnixStream,
    bytes_max: usize,
    time_max: Duration,
) -> io::Result<Option<T>> {
    let mut len = [0; 4];
    if stream.read(&mut len[..1]).await? == 0 {
        return Ok(None);
    }
    let rest = async {
        stream.read_exact(&mut len[1..]).await?;
        let len = checked_len(len, bytes_max)?;
        // Grows with what comes: a length alone takes next to no memory.
        let mut body = Vec::with_capacity(len.min(BODY_BYTES_FIRST));
        (&mut *stream).take(len as u64).read_to_end(&mut body).await?;
        if body.len() < len { Err(io::Error::from(io::ErrorKind::UnexpectedEof)) } else { Ok(body) }
    };
    let body = tokio::time::timeout(time_max, rest).await;
    let body = body.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "a frame was not finished"))??;
    Ok(Some(parse(&body)?))
}

/// Writes one frame.
///
/// # Errors
/// The other side is gone or takes nothing for 60 s, or the value is over [`FRAME_BYTES_MAX`].
pub async fn write(stream: &mut tokio::net::UnixStream, value: &impl Serialize) -> io::Result<()> {
    let bytes = encode(value)?;
    taken(stream.write_all(&bytes), TAKE_TIME_MAX).await
}

/// Writes one frame to a connection that was just accepted and is not to be served. Does not wait.
pub fn refuse(stream: &tokio::net::UnixStream, value: &impl Serialize) {
    if let Ok(bytes) = encode(value) {
        // Past the runtime, which does not know yet that a fresh connection takes bytes.
        let _ = rustix::net::send(stream.as_fd(), &bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
    }
}

async fn taken(write: impl Future<Output = io::Result<()>>, time_max: Duration) -> io::Result<()> {
    tokio::time::timeout(time_max, write)
        .await
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "the other side takes nothing")))
}

/// Writes one frame with file descriptors attached to its first bytes.
///
/// # Errors
/// As [`write`], or more than [`FRAME_FDS_MAX`] descriptors.
pub async fn write_with_fds(
    stream: &mut tokio::net::UnixStream,
    value: &impl Serialize,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    if fds.is_empty() {
        return write(stream, value).await;
    }
    if fds.len() > FRAME_FDS_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one frame"));
    }
    let bytes = encode(value)?;
    taken(send_all_with_fds(stream, &bytes, fds), TAKE_TIME_MAX).await
}

async fn send_all_with_fds(
    stream: &mut tokio::net::UnixStream,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let sent = loop {
        stream.writable().await?;
        let attempt = stream.try_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FRAME_FDS_MAX))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            ancillary.push(SendAncillaryMessage::ScmRights(fds));
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            Ok(rustix::net::sendmsg(stream.as_fd(), &[IoSlice::new(bytes)], &mut ancillary, flags)?)
        });
        match attempt {
            Ok(sent) => break sent,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    };
    stream.write_all(&bytes[sent..]).await
}

/// The blocking side, for the command line.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
}

impl Client {
    /// Connects to a socket.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(path: &Path) -> io::Result<Self> {
        Ok(Self { stream: UnixStream::connect(path)? })
    }

    /// Sends one frame.
    ///
    /// # Errors
    /// The daemon is gone.
    pub fn send(&mut self, value: &impl Serialize) -> io::Result<()> {
        self.stream.write_all(&encode(value)?)
    }

    /// Receives one frame with the descriptors that came on it.
    ///
    /// # Errors
    /// The daemon is gone (`UnexpectedEof`), or sent something else.
    pub fn recv<T: DeserializeOwned>(&mut self) -> io::Result<(T, Vec<OwnedFd>)> {
        let mut len = [0; 4];
        let mut fds = Vec::new();
        let mut filled = 0;
        while filled < 4 {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FRAME_FDS_MAX))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let message = rustix::net::recvmsg(
                self.stream.as_fd(),
                &mut [IoSliceMut::new(&mut len[filled..])],
                &mut ancillary,
                RecvFlags::CMSG_CLOEXEC,
            )?;
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(received) = message {
                    fds.extend(received);
                }
            }
            if message.bytes == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the daemon closed the connection"));
            }
            filled += message.bytes;
        }
        let mut body = vec![0; checked_len(len, FRAME_BYTES_MAX)?];
        self.stream.read_exact(&mut body)?;
        Ok((parse(&body)?, fds))
    }
}

fn checked_len(len: [u8; 4], bytes_max: usize) -> io::Result<usize> {
    let len = u32::from_be_bytes(len) as usize;
    if len > bytes_max {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a frame of {len} bytes is over the limit of {bytes_max}"),
        ));
    }
    Ok(len)
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> io::Result<T> {
    serde_json::from_slice(body).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))
}

fn encode(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, value)?;
    let len = bytes.len() - 4;
    if len > FRAME_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("an answer of {len} bytes is over the limit"),
        ));
    }
    bytes[..4].copy_from_slice(&(len as u32).to_be_bytes());
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[tokio::test]
    async fn frames_and_descriptors_cross() {
        let (ours, theirs) = UnixStream::pair().expect("pair");
        ours.set_nonblocking(true).expect("nonblocking");
        let mut ours = tokio::net::UnixStream::from_std(ours).expect("tokio");
        let reader = std::thread::spawn(move || {
            let mut client = Client { stream: theirs };
            let (one, fds): (serde_json::Value, _) = client.recv().expect("first");
            assert_eq!((one["n"].as_u64(), fds.len()), (Some(1), 0));
            let (two, fds): (serde_json::Value, _) = client.recv().expect("second");
            assert_eq!(two["pad"].as_str().map(str::len), Some(300_000));
            assert_eq!(fds.len(), FRAME_FDS_MAX);
            assert!(fds.iter().all(|fd| fd.as_raw_fd() >= 0));
            client.send(&serde_json::json!({"back": true})).expect("send");
        });
        write(&mut ours, &serde_json::json!({"n": 1})).await.expect("write");
        let file = std::fs::File::open("/dev/null").expect("open");
        let fds = vec![file.as_fd(); FRAME_FDS_MAX];
        let value = serde_json::json!({"pad": "x".repeat(300_000)});
        write_with_fds(&mut ours, &value, &fds).await.expect("write");
        let back: Option<serde_json::Value> = read(&mut ours, FRAME_BYTES_MAX).await.expect("read");
        assert_eq!(back.map(|v| v["back"] == true), Some(true));
        tokio::task::spawn_blocking(|| reader.join()).await.expect("join").expect("reader");
        assert!(read::<serde_json::Value>(&mut ours, 9).await.expect("end").is_none());
    }

    #[tokio::test]
    async fn oversize_and_garbage_frames_are_errors() {
        for bytes in [&[0xff, 0xff, 0xff, 0xff][..], &[0, 0, 0, 2, b'{', b'x']] {
            let (ours, mut theirs) = UnixStream::pair().expect("pair");
            ours.set_nonblocking(true).expect("nonblocking");
            let mut ours = tokio::net::UnixStream::from_std(ours).expect("tokio");
            theirs.write_all(bytes).expect("write");
            let error = read::<serde_json::Value>(&mut ours, FRAME_BYTES_MAX).await.expect_err("refused");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }

    #[tokio::test]
    async fn half_a_frame_and_a_reader_that_takes_nothing_are_given_up() {
        let pair = || {
            let (ours, theirs) = UnixStream::pair().expect("pair");
            ours.set_nonblocking(true).expect("nonblocking");
            (tokio::net::UnixStream::from_std(ours).expect("tokio"), theirs)
        };
        let short = Duration::from_millis(50);
        for begun in [&[0][..], &[0, 0], &[0, 0, 0, 9], &[0, 0, 0, 9, b'{']] {
            let (mut ours, mut theirs) = pair();
            theirs.write_all(begun).expect("write");
            let unfinished = read_within::<serde_json::Value>(&mut ours, 9, short);
            let error = unfinished.await.expect_err("never finished");
            assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{begun:?}");
            let (mut ours, mut theirs) = pair();
            theirs.write_all(begun).expect("write");
            drop(theirs);
            let error = read::<serde_json::Value>(&mut ours, 9).await.expect_err("cut short");
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{begun:?}");
        }
        let (mut ours, mut theirs) = pair();
        theirs.write_all(&[0, 0, 0, 10]).expect("write");
        let error = read::<serde_json::Value>(&mut ours, 9).await.expect_err("over the limit");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let (mut ours, _theirs) = pair();
        let long = vec![0; 8 << 20];
        let file = std::fs::File::open("/dev/null").expect("open");
        let sent = taken(send_all_with_fds(&mut ours, &long, &[file.as_fd()]), short).await;
        assert_eq!(sent.expect_err("not taken").kind(), io::ErrorKind::TimedOut);
        let sent = taken(ours.write_all(&long), short).await;
        assert_eq!(sent.expect_err("not taken").kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn who_is_not_served_is_told() {
        let (ours, theirs) = UnixStream::pair().expect("pair");
        ours.set_nonblocking(true).expect("nonblocking");
        let ours = tokio::net::UnixStream::from_std(ours).expect("tokio");
        refuse(&ours, &serde_json::json!({"event": "error"}));
        drop(ours);
        let (event, _): (serde_json::Value, _) = Client { stream: theirs }.recv().expect("told");
        assert_eq!(event["event"], "error");
    }
}
