//! Links to neighbours: one task reads frames, one writes them, both end with the stream.

use std::collections::BTreeMap;

use bytes::Bytes;
use quinn::{RecvStream, SendStream, VarInt};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::debug;
use weighlock_protocol::KeyId;
use weighlock_protocol::swarm::LinkId;
use weighlock_protocol::wire::swarm::Frame;

use super::driver::Happening;
use crate::net::data::{GetError, read_frame};

/// Frames that wait for a slow neighbour; then its link is given up.
const QUEUE_MAX: usize = 4_096;

/// Owns the tasks and queues of links.
#[derive(Default)]
pub(super) struct Links {
    open: BTreeMap<LinkId, Link>,
    next: u32,
}

struct Link {
    frames: mpsc::Sender<Bytes>,
    reader: JoinHandle<()>,
    writer: JoinHandle<()>,
}

impl Links {
    /// A name for the next link.
    pub(super) fn name(&mut self) -> LinkId {
        self.next = self.next.wrapping_add(1);
        LinkId(self.next)
    }

    /// Starts to read and write. What comes is told to `heard`; a full channel there makes the neighbour wait.
    pub(super) fn start(
        &mut self,
        link: LinkId,
        peer: KeyId,
        (send, recv): (SendStream, RecvStream),
        heard: mpsc::Sender<Happening>,
    ) {
        let (frames, queue) = mpsc::channel(QUEUE_MAX);
        let reader = tokio::spawn(read(link, peer, recv, heard));
        let writer = tokio::spawn(write(send, queue));
        self.open.insert(link, Link { frames, reader, writer });
    }

    /// Queues a frame. False if the neighbour is too slow, or gone.
    pub(super) fn send(&self, link: LinkId, frame: &Bytes) -> bool {
        self.open.get(&link).is_none_or(|link| link.frames.try_send(frame.clone()).is_ok())
    }

    /// Ends a link. What is queued is still sent.
    pub(super) fn close(&mut self, link: LinkId) {
        if let Some(link) = self.open.remove(&link) {
            link.reader.abort();
            drop(link.frames);
            drop(link.writer);
        }
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        for link in self.open.values() {
            link.reader.abort();
            link.writer.abort();
        }
    }
}

async fn read(link: LinkId, peer: KeyId, mut recv: RecvStream, heard: mpsc::Sender<Happening>) {
    let why = loop {
        match read_frame(&mut recv).await {
            Ok(Some(frame)) => {
                if heard.send(Happening::Frame { link, frame }).await.is_err() {
                    return;
                }
            }
            Ok(None) => break None,
            Err(e) => break Some(e),
        }
    };
    if let Some(e) = &why {
        debug!(%peer, error = %e, "link ended");
    }
    let broke_protocol = matches!(why, Some(GetError::Protocol(_)));
    let _ = heard.send(Happening::LinkEnded { link, peer, broke_protocol }).await;
}

async fn write(mut send: SendStream, mut queue: mpsc::Receiver<Bytes>) {
    while let Some(frame) = queue.recv().await {
        if send.write_chunk(frame).await.is_err() {
            return;
        }
    }
    if send.finish().is_err() {
        let _ = send.reset(VarInt::from_u32(0));
    }
}

/// A frame's bytes, made once for all neighbours that it goes to.
pub(super) fn encode(frame: &Frame) -> Bytes {
    frame.encode().into()
}
