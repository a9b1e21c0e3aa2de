//! The providing side: answers get, tree, observe and link from sealed and partial layers.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use quinn::{RecvStream, SendStream, VarInt};
use tokio::sync::{Semaphore, mpsc, watch};
use tracing::debug;
use weighlock_cache::{LayerReader, Wait};
use weighlock_protocol::wire::bao::{self, GroupSet};
use weighlock_protocol::wire::data::{ObserveItem, Request, RequestError, reset};
use weighlock_protocol::wire::tree::{PAIR_BYTES, tree_bytes};
use weighlock_protocol::{KeyId, LayerId, ManifestDigest};

use super::answer::{Answer, Groups, Next};
use super::buffers::Buffers;
use super::link::refuse_link;
use super::request::{asked_groups, read_request};
use super::{DataConfig, PRIORITY_SHORT};

/// How often at most a change is told to those who observe.
const UPDATE_INTERVAL: Duration = Duration::from_millis(100);

/// An asker that takes nothing for this long loses its upload.
const TAKE_MAX: Duration = Duration::from_secs(30);

/// One that takes less than this of an answer, in bytes per second after [`TAKE_MAX`], loses it, too: there are few
/// uploads, and others wait.
const TAKEN_BYTES_PER_S_MIN: u64 = 64 << 10;

/// A request that was not admitted for this long is refused; its asker has given up on it before.
const ADMIT_MAX: Duration = Duration::from_secs(600);

/// What this host has, as the data plane asks for it. Calls may read the disk.
pub trait Possession: Send + Sync + 'static {
    /// A reader over a sealed or partial layer.
    fn reader(&self, layer: &LayerId) -> Option<LayerReader>;
    /// Size of a layer and what is here of it; cheaper than a reader.
    fn have(&self, layer: &LayerId) -> Option<(u64, GroupSet)> {
        self.reader(layer).map(|reader| (reader.size(), reader.have()))
    }
    /// Changes whenever any layer grew.
    fn grown(&self) -> watch::Receiver<u64>;
    /// Told of every answered get or tree, for the metrics: bytes sent.
    fn sent(&self, peer: &KeyId, bytes: u64);
    /// Waits for the turn of a peer that asks for groups of a layer. `None` if it is not to be served now.
    fn admit(&self, _peer: KeyId, _layer: LayerId, _groups: Range<u64>) -> BoxFuture<'static, Option<Pass>> {
        Box::pin(std::future::ready(Some(Pass::new(|_, _| {}))))
    }
    /// A peer says that bytes of a layer that came from here fail verification.
    fn doubted(&self, _peer: KeyId, _layer: LayerId, _at: u64) {}
    /// A peer wants to be this host's neighbour in a manifest's swarm.
    fn link(&self, _peer: KeyId, _manifest: ManifestDigest, send: SendStream, recv: RecvStream) {
        refuse_link(send, recv);
    }
}

/// What [`Pass`] reports to: bytes sent, and whether that was all.
type Report = Box<dyn FnOnce(u64, bool) + Send>;

/// Leave to serve one get. Reports how it ended, also when it is dropped on the way.
pub struct Pass {
    report: Option<Report>,
}

impl Pass {
    /// `report` hears how many bytes were sent, and whether that was all.
    pub fn new(report: impl FnOnce(u64, bool) + Send + 'static) -> Self {
        Self { report: Some(Box::new(report)) }
    }

    fn end(mut self, bytes: u64, complete: bool) {
        if let Some(report) = self.report.take() {
            report(bytes, complete);
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if let Some(report) = self.report.take() {
            report(0, false);
        }
    }
}

/// What requests share.
#[derive(Clone, Copy)]
pub struct Shares<'a> {
    /// What batches are read into.
    pub buffers: &'a Buffers,
    /// Leave to send: of the peer, over all its connections, and of the host.
    pub uploads: [&'a Semaphore; 2],
    /// Leave to read a long request: likewise.
    pub long_requests: [&'a Semaphore; 2],
}

/// Reads one request from a stream and answers it; resets the stream where it cannot.
pub async fn serve_stream(
    possession: Arc<dyn Possession>,
    config: &DataConfig,
    Shares { buffers, uploads, long_requests }: Shares<'_>,
    peer: KeyId,
    mut send: SendStream,
    mut recv: RecvStream,
) {
    let wait = Duration::from_secs(config.request_timeout_s);
    let (request, leave) = match tokio::time::timeout(wait, read_request(&mut recv, long_requests)).await {
        Ok(Ok((Ok(Request::Link { manifest }), _))) => {
            let _ = send.set_priority(PRIORITY_SHORT);
            return possession.link(peer, manifest, send, recv);
        }
        Ok(Ok((request, leave))) => {
            // A get waits for its turn with all that it asks for.
            let leave = if matches!(request, Ok(Request::Get { .. })) { leave } else { None };
            (request, leave)
        }
        Ok(Err(e)) => return debug!(%peer, error = e, "request could not be read"),
        Err(_) => {
            debug!(%peer, "a stream was opened and not used");
            let _ = send.reset(VarInt::from_u32(reset::LIMIT));
            let _ = recv.stop(VarInt::from_u32(reset::LIMIT));
            return;
        }
    };
    let refused = match request {
        Ok(Request::Get { layer, chunks }) => {
            let admitted = tokio::select! {
                pass = possession.admit(peer, layer, asked_groups(&chunks)) => pass,
                // It waits no longer.
                _ = send.stopped() => return,
                () = tokio::time::sleep(ADMIT_MAX) => None,
            };
            let Some(pass) = admitted else {
                let _ = send.reset(VarInt::from_u32(reset::LIMIT));
                return;
            };
            let Ok(_share) = uploads[0].acquire().await else { return };
            let Ok(_permit) = uploads[1].acquire().await else { return };
            // What was asked for is turned into what is sent.
            drop(leave);
            let (look, batch_bytes, buffers) = (possession.clone(), config.batch_bytes, buffers.clone());
            let open = move || {
                let reader = look.reader(&layer).ok_or_else(|| refuse("layer is not here"))?;
                Answer::new(reader, &chunks, batch_bytes, &buffers)
            };
            let (bytes, end) = match tokio::task::spawn_blocking(open).await.map_err(refuse).flatten() {
                Ok(Answer::Groups(groups)) => stream_groups(&*possession, peer, &mut send, groups).await,
                Ok(Answer::Parts(parts)) => {
                    stream(&*possession, peer, &mut send, move |batches| parts.read(batches)).await
                }
                Err(refused) => (0, Err(refused)),
            };
            if end.is_ok() {
                // What waits in buffers is still on its way: the upload lasts until the asker has taken all of it.
                let _ = send.finish();
                let _ = tokio::time::timeout(TAKE_MAX, send.stopped()).await;
            }
            // Also what was sent of an answer that was not finished: rates are charged for it.
            pass.end(bytes, end.is_ok());
            end
        }
        Ok(Request::Tree { layer }) => {
            let Ok(_share) = uploads[0].acquire().await else { return };
            let Ok(_permit) = uploads[1].acquire().await else { return };
            let (look, batch_bytes) = (possession.clone(), config.batch_bytes);
            let read = move |batches: &_| read_tree(&*look, &layer, batch_bytes, batches);
            stream(&*possession, peer, &mut send, read).await.1
        }
        Ok(Request::Observe { layer }) => {
            let _ = send.set_priority(PRIORITY_SHORT);
            observe(possession, layer, &mut send).await
        }
        Ok(Request::Doubt { layer, at }) => {
            possession.doubted(peer, layer, at);
            Ok(())
        }
        Ok(Request::Link { .. }) => Err(refuse("it was answered above")),
        Err(RequestError::Unsupported(what)) => {
            Err(Refusal { code: reset::PERMISSION, why: what.to_owned() })
        }
        Err(e) => Err(Refusal { code: reset::INTERNAL, why: e.to_string() }),
    };
    match refused {
        Ok(()) => {
            let _ = send.finish();
        }
        Err(Refusal { code, why }) => {
            debug!(%peer, why, "request refused");
            let _ = send.reset(VarInt::from_u32(code));
        }
    }
}

/// Why a request ends in a stream reset.
pub(super) struct Refusal {
    code: u32,
    why: String,
}

pub(super) fn refuse(why: impl ToString) -> Refusal {
    Refusal { code: reset::INTERNAL, why: why.to_string() }
}

/// Sends whole groups, batch by batch. What the page cache holds is read here and now, which takes microseconds; only for
/// the disk it takes a thread.
async fn stream_groups(
    possession: &dyn Possession,
    peer: KeyId,
    send: &mut SendStream,
    mut groups: Groups,
) -> (u64, Result<(), Refusal>) {
    let (mut sent, begun) = (0, Instant::now());
    let end = loop {
        let mut next = groups.next(Wait::Never);
        if matches!(next, Ok(Next::Wait)) {
            let read = move || {
                let next = groups.next(Wait::ForDisk);
                (groups, next)
            };
            (groups, next) = match tokio::task::spawn_blocking(read).await {
                Ok(read) => read,
                Err(e) => break Err(refuse(e)),
            };
        }
        match next {
            Ok(Next::Batch(batch)) => {
                sent += batch.len() as u64;
                if let Err(refused) = put(send, peer, batch, begun, sent).await {
                    break Err(refused);
                }
                // Whoever sends what was put there may wait for this very thread.
                tokio::task::yield_now().await;
            }
            Ok(Next::End) => break Ok(()),
            Ok(Next::Wait) => break Err(refuse("the disk does not answer")),
            Err(refused) => break Err(refused),
        }
    };
    possession.sent(&peer, sent);
    (sent, end)
}

/// Sends what `read` hands on, batch by batch; `read` runs on a blocking thread and ends when nobody takes more.
async fn stream(
    possession: &dyn Possession,
    peer: KeyId,
    send: &mut SendStream,
    read: impl FnOnce(&mpsc::Sender<Bytes>) -> Result<(), Refusal> + Send + 'static,
) -> (u64, Result<(), Refusal>) {
    // Two batches: one on its way to the wire, one being read.
    let (batches, mut ready) = mpsc::channel::<Bytes>(1);
    let reading = tokio::task::spawn_blocking(move || read(&batches));
    let (mut sent, mut cut, begun) = (0, Ok(()), Instant::now());
    while let Some(batch) = ready.recv().await {
        sent += batch.len() as u64;
        cut = put(send, peer, batch, begun, sent).await;
        if cut.is_err() {
            // The reader stops at its next send.
            break;
        }
    }
    drop(ready);
    possession.sent(&peer, sent);
    let read = reading.await.map_err(refuse).flatten();
    (sent, read.and(cut))
}

/// Puts bytes into a stream, as fast as the asker takes them; with them `sent` since `begun`.
async fn put(
    send: &mut SendStream,
    peer: KeyId,
    batch: Bytes,
    begun: Instant,
    sent: u64,
) -> Result<(), Refusal> {
    let slowest = TAKE_MAX + Duration::from_secs(sent / TAKEN_BYTES_PER_S_MIN);
    let left = TAKE_MAX.min(slowest.saturating_sub(begun.elapsed()));
    match tokio::time::timeout(left, send.write_chunk(batch)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(e)) => {
            // The asker lost interest or the connection.
            debug!(%peer, error = %e, "answer not finished");
            Err(refuse("the asker stopped it"))
        }
        Err(_) => Err(Refusal { code: reset::LIMIT, why: "the asker takes next to nothing".into() }),
    }
}

/// Blocking: the tree of a layer that is here as a whole, after the layer's size.
fn read_tree(
    possession: &dyn Possession,
    layer: &LayerId,
    batch_bytes: usize,
    batches: &mpsc::Sender<Bytes>,
) -> Result<(), Refusal> {
    let reader = possession.reader(layer).ok_or_else(|| refuse("layer is not here"))?;
    let (size, total) = (reader.size(), tree_bytes(reader.size()));
    if !bao::all_groups(size).is_subset(&reader.have()) {
        return Err(refuse("not all of the layer is here"));
    }
    let batch_bytes = batch_bytes.max(PAIR_BYTES) as u64;
    let mut batch = size.to_le_bytes().to_vec();
    let mut offset = 0;
    while offset < total || !batch.is_empty() {
        let len = batch_bytes.min(total - offset);
        let at = batch.len();
        batch.resize(at + len as usize, 0);
        reader.read_tree_at(&mut batch[at..], offset).map_err(refuse)?;
        offset += len;
        if batches.blocking_send(std::mem::take(&mut batch).into()).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Tells what is here of one layer until the asker stops the stream.
async fn observe(
    possession: Arc<dyn Possession>,
    layer: LayerId,
    send: &mut SendStream,
) -> Result<(), Refusal> {
    let mut grown = possession.grown();
    let mut told = GroupSet::empty();
    let mut first = true;
    loop {
        grown.borrow_and_update();
        let look = possession.clone();
        let have = tokio::task::spawn_blocking(move || look.have(&layer)).await.map_err(refuse)?;
        let (size, have) = have.unwrap_or_else(|| (0, GroupSet::empty()));
        let news = &have - &told;
        if first || !news.is_empty() {
            let item =
                ObserveItem::of_groups(&news, size).encode().ok_or_else(|| refuse("too fragmented"))?;
            match tokio::time::timeout(TAKE_MAX, send.write_all(&item)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Ok(()),
                Err(_) => {
                    return Err(Refusal { code: reset::LIMIT, why: "the asker takes nothing".into() });
                }
            }
            told = have;
            first = false;
        }
        if !wait_for_growth(&mut grown, send).await {
            return Ok(());
        }
    }
}

/// False when the asker is gone or this host stops.
async fn wait_for_growth(grown: &mut watch::Receiver<u64>, send: &mut SendStream) -> bool {
    tokio::time::sleep(UPDATE_INTERVAL).await;
    tokio::select! {
        changed = grown.changed() => changed.is_ok(),
        _ = send.stopped() => false,
    }
}
