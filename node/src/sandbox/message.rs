//! What the three processes of a run say to each other: JSON lines over socket pairs.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::limits::SandboxLimits;
use super::spec::Means;

/// The longest message: command line and environment are bounded by the kernel at 2 MiB, escaped at most sixfold.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Everything that the stages need to know.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Setup {
    /// The process that sends this; a stage whose parent is another one has been orphaned.
    pub(super) parent: u32,
    /// What is to be used; a stage does all of it or fails.
    pub(super) means: BTreeSet<Means>,
    pub(super) command: Vec<String>,
    pub(super) env: Vec<(String, String)>,
    pub(super) model: PathBuf,
    pub(super) out: PathBuf,
    pub(super) tmp: PathBuf,
    pub(super) cwd: PathBuf,
    pub(super) hidden: Vec<PathBuf>,
    pub(super) devices: Vec<PathBuf>,
    pub(super) limits: SandboxLimits,
    /// The outer stage's own program and arguments.
    pub(super) reenter: (PathBuf, Vec<String>),
}

impl Setup {
    pub(super) fn has(&self, means: Means) -> bool {
        self.means.contains(&means)
    }
}

/// From the supervisor down.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Down {
    /// The first one to the outer stage.
    Outer(Box<Setup>),
    /// The first one to the inner stage.
    Inner(Box<Setup>),
    /// The user namespace has its maps.
    Mapped,
    /// The supervisor may not write the maps.
    MapYourself,
    /// Start the command.
    Go,
}

/// From the stages up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Up {
    /// The outer stage is in a user namespace without maps.
    Unmapped,
    /// One of the means cannot be had; the stage ends.
    Without { means: Means, why: String },
    /// Something else failed; the stage ends.
    Failed { step: String, error: String },
    /// The inner stage waits for `Go`.
    Ready { own_proc: bool },
    /// The command runs.
    Started,
    /// The command could not be started.
    NotStarted { error: String },
    /// The command itself ended; what it left running ends now.
    Exited { code: Option<i32>, signal: Option<i32> },
    /// Everything ended, after so much CPU time.
    Done { cpu_seconds: f64 },
}

/// One end of a socket pair.
#[derive(Debug)]
pub(super) struct Channel {
    stream: UnixStream,
    /// What was read of messages that are not complete or not taken.
    buffer: Vec<u8>,
}

impl Channel {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    pub(super) fn pair() -> io::Result<(Self, UnixStream)> {
        let (ours, theirs) = UnixStream::pair()?;
        Ok((Self::new(ours), theirs))
    }

    pub(super) fn send(&mut self, message: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        self.stream.write_all(&line)
    }

    /// Tells the other side that nothing more comes.
    pub(super) fn hang_up(&self) {
        // It may have gone already.
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
    }

    /// Reads once; waits unless the socket is readable. False at the end.
    pub(super) fn fill(&mut self) -> io::Result<bool> {
        if self.buffer.len() > MESSAGE_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a message is too long"));
        }
        let mut chunk = [0; 16 * 1024];
        loop {
            match self.stream.read(&mut chunk) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(false),
                read => {
                    let read = read?;
                    self.buffer.extend_from_slice(&chunk[..read]);
                    return Ok(read > 0);
                }
            }
        }
    }

    /// The next complete message of those read.
    pub(super) fn take<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') else {
            return Ok(None);
        };
        let line: Vec<u8> = self.buffer.drain(..=end).collect();
        serde_json::from_slice(&line).map(Some).map_err(io::Error::from)
    }

    /// Waits for the next message; none when the other side is gone.
    pub(super) fn receive<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(Some(message));
            }
            if !self.fill()? {
                return Ok(None);
            }
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_one_by_one_however_they_are_cut() {
        let (mut ours, mut theirs) = Channel::pair().expect("pair");
        theirs.write_all(b"\"Started\"\n{\"Exited\":{\"code\":3,").expect("written");
        assert_eq!(ours.receive::<Up>().expect("read"), Some(Up::Started));
        assert_eq!(ours.take::<Up>().expect("nothing whole"), None);
        theirs.write_all(b"\"signal\":null}}\n").expect("written");
        drop(theirs);
        assert_eq!(ours.receive::<Up>().expect("read"), Some(Up::Exited { code: Some(3), signal: None }));
        assert_eq!(ours.receive::<Up>().expect("end"), None);
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        let (mut ours, mut theirs) = Channel::pair().expect("pair");
        theirs.write_all(b"{\"Unknown\":1}\n").expect("written");
        assert!(ours.receive::<Up>().is_err());
    }
}
