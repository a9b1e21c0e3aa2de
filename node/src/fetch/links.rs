//! Links to neighbours: one task reads frames, one writes them, both end with the stream.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn::{RecvStream, SendStream, VarInt};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tracing::debug;
use weighlock_protocol::KeyId;
use weighlock_protocol::swarm::LinkId;
use weighlock_protocol::wire::data::reset;
use weighlock_protocol::wire::swarm::{FRAME_BYTES_MAX, Frame};

use super::happening::Happening;
use crate::net::data::{GetError, read_frame};

/// Frames that wait for a slow neighbour; then its link is given up. More than one neighbour may send in a burst, each
/// of which may be answered, so that a flood is seen for what it is.
const QUEUE_MAX: usize = 16_384;

/// A neighbour that takes no frame for this long loses its link.
const TAKE_MAX: Duration = Duration::from_secs(30);

/// Bytes of one neighbour's frames that wait for the loop; then the neighbour waits.
const UNREAD_BYTES_MAX: usize = FRAME_BYTES_MAX;

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
    let room = Arc::new(Semaphore::new(UNREAD_BYTES_MAX));
    let mut spoke = false;
    let why = loop {
        match read_frame(&mut recv).await {
            Ok(Some((frame, len))) => {
                spoke = true;
                let weight = u32::try_from(len.clamp(1, UNREAD_BYTES_MAX)).unwrap_or(u32::MAX);
                let Ok(taken) = room.clone().acquire_many_owned(weight).await else { return };
                if heard.send(Happening::Frame { link, frame, taken }).await.is_err() {
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
    let _ = heard.send(Happening::LinkEnded { link, peer, spoke, broke_protocol }).await;
}

async fn write(mut send: SendStream, mut queue: mpsc::Receiver<Bytes>) {
    while let Some(frame) = queue.recv().await {
        match tokio::time::timeout(TAKE_MAX, send.write_chunk(frame)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return,
            Err(_) => {
                // Also a link that was closed meanwhile does not wait for ever.
                let _ = send.reset(VarInt::from_u32(reset::LIMIT));
                return;
            }
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
