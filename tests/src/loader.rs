//! A loader: speaks the protocol of `loader.sock` from its description, with descriptors by SCM_RIGHTS.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};

use crate::wait::PATIENCE;

/// Most descriptors on one frame.
const FRAME_FDS_MAX: usize = 64;

/// A connection to `loader.sock`. What it opened stays leased until it is dropped.
#[derive(Debug)]
pub struct Loader {
    stream: UnixStream,
}

/// What an open brought.
#[derive(Debug)]
pub struct Opened {
    /// The `opened` event.
    pub event: Value,
    /// Descriptors by path.
    pub files: BTreeMap<String, File>,
    /// Progress events before it.
    pub progress: Vec<Value>,
}

impl Loader {
    /// Connects.
    ///
    /// # Panics
    /// Nobody listens there.
    pub fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap_or_else(|e| panic!("{}: {e}", socket.display()));
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout is taken");
        Self { stream }
    }

    /// Opens a reference with descriptors of all files; on failure the `error` event.
    ///
    /// # Panics
    /// The daemon goes away or breaks the protocol.
    pub fn open(&mut self, reference: &str) -> Result<Opened, Value> {
        self.send(&json!({"v": 1, "op": "open", "ref": reference, "fds": "all"}));
        let mut progress = Vec::new();
        let event = loop {
            let (event, fds) = self.recv().expect("an answer");
            assert!(fds.is_empty(), "descriptors before the answer");
            match event["event"].as_str() {
                Some("progress") => progress.push(event),
                Some("opened") => break event,
                Some("error") => return Err(event),
                _ => panic!("an unexpected event: {event}"),
            }
        };
        let wanted = event["fds"].as_u64().expect("a number of descriptors") as usize;
        let files = self.files(wanted);
        Ok(Opened { event, files, progress })
    }

    /// Opens a reference while it is on its way, without descriptors; on failure the `error` event.
    ///
    /// # Panics
    /// The daemon goes away.
    pub fn open_partial(&mut self, reference: &str) -> Result<Value, Value> {
        self.send(&json!({"v": 1, "op": "open", "ref": reference, "partial": true}));
        self.answer("opened").map(|(event, _)| event)
    }

    /// Waits for byte ranges of a file; answers the inode of the file that has them and the progress events before,
    /// or the `error` event.
    ///
    /// # Panics
    /// The daemon goes away.
    pub fn wait(
        &mut self,
        digest: &str,
        path: &str,
        ranges: &[(u64, u64)],
    ) -> Result<(u64, Vec<Value>), Value> {
        self.send(&json!({"op": "wait", "digest": digest, "path": path, "ranges": ranges}));
        let (event, progress) = self.answer("ready")?;
        assert_eq!(event["path"], path, "{event}");
        Ok((event["inode"].as_u64().expect("an inode"), progress))
    }

    /// The next event that is no progress, if it is named `wanted`, and the progress before it.
    ///
    /// # Panics
    /// The daemon goes away, or says something else.
    pub fn answer(&mut self, wanted: &str) -> Result<(Value, Vec<Value>), Value> {
        let mut progress = Vec::new();
        loop {
            let (event, _) = self.recv().expect("an answer");
            match event["event"].as_str() {
                Some("progress") => progress.push(event),
                Some("error") => return Err(event),
                Some(name) if name == wanted => return Ok((event, progress)),
                _ => panic!("an unexpected event: {event}"),
            }
        }
    }

    /// Asks for descriptors of single files of something opened; on failure the `error` event.
    ///
    /// # Panics
    /// The daemon goes away or breaks the protocol.
    pub fn fds(&mut self, digest: &str, paths: &[&str]) -> Result<BTreeMap<String, File>, Value> {
        self.send(&json!({"op": "fds", "digest": digest, "paths": paths}));
        loop {
            let (event, fds) = self.recv().expect("an answer");
            match event["event"].as_str() {
                Some("error") => return Err(event),
                Some("progress") => {}
                _ => return Ok(paired(&event, fds)),
            }
        }
    }

    /// Gives a lease back.
    ///
    /// # Panics
    /// The daemon does not confirm it.
    pub fn close(&mut self, digest: &str) {
        self.send(&json!({"op": "close", "digest": digest}));
        let (event, _) = self.recv().expect("an answer");
        assert_eq!(event["event"], "closed", "{event}");
    }

    /// Asks for the protocol's version.
    ///
    /// # Panics
    /// The daemon goes away.
    pub fn hello(&mut self) -> Value {
        self.send(&json!({"op": "hello"}));
        self.recv().expect("an answer").0
    }

    /// Sends one frame.
    ///
    /// # Panics
    /// The daemon is gone.
    pub fn send(&mut self, value: &Value) {
        let body = value.to_string();
        let frame = [&(body.len() as u32).to_be_bytes()[..], body.as_bytes()].concat();
        self.stream.write_all(&frame).expect("the daemon takes it");
    }

    /// Receives one frame with the descriptors on it.
    ///
    /// # Errors
    /// The daemon closed the connection.
    pub fn recv(&mut self) -> std::io::Result<(Value, Vec<OwnedFd>)> {
        let mut len = [0; 4];
        let mut fds = Vec::new();
        let mut filled = 0;
        while filled < 4 {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FRAME_FDS_MAX))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut buffers = [IoSliceMut::new(&mut len[filled..])];
            let flags = RecvFlags::CMSG_CLOEXEC;
            let message = recvmsg(self.stream.as_fd(), &mut buffers, &mut ancillary, flags)?;
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(received) = message {
                    fds.extend(received);
                }
            }
            if message.bytes == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            filled += message.bytes;
        }
        let mut body = vec![0; u32::from_be_bytes(len) as usize];
        self.stream.read_exact(&mut body)?;
        Ok((serde_json::from_slice(&body)?, fds))
    }

    fn files(&mut self, wanted: usize) -> BTreeMap<String, File> {
        let mut files = BTreeMap::new();
        while files.len() < wanted {
            let (event, fds) = self.recv().expect("descriptors");
            files.extend(paired(&event, fds));
        }
        files
    }
}

fn paired(event: &Value, fds: Vec<OwnedFd>) -> BTreeMap<String, File> {
    assert_eq!(event["event"], "fds", "{event}");
    let paths: Vec<String> = serde_json::from_value(event["paths"].clone()).expect("paths");
    assert_eq!(paths.len(), fds.len(), "one descriptor per path");
    paths.into_iter().zip(fds.into_iter().map(File::from)).collect()
}
