//! The providing side: answers get, tree, observe and interest from sealed and partial layers.

use std::sync::Arc;
use std::time::Duration;

use bao_tree::io::sync::truncate_ranges;
use bao_tree::iter::BaoChunk;
use bao_tree::{ChunkRanges, ChunkRangesRef, TreeNode};
use bytes::Bytes;
use quinn::{RecvStream, SendStream, VarInt};
use tokio::sync::{Semaphore, mpsc, watch};
use tracing::debug;
use weighlock_cache::LayerReader;
use weighlock_protocol::wire::bao::{self, GROUP_BYTES, GroupSet};
use weighlock_protocol::wire::data::{
    HaveItem, MESSAGE_BYTES_MAX, ObserveItem, Request, RequestError, reset,
};
use weighlock_protocol::wire::tree::{PAIR_BYTES, tree_bytes};
use weighlock_protocol::{KeyId, LayerId, ManifestDigest};

use super::DataConfig;

/// How often at most a change is told to those who observe.
const UPDATE_INTERVAL: Duration = Duration::from_millis(100);

/// An asker that takes nothing for this long loses its upload.
const TAKE_MAX: Duration = Duration::from_secs(30);

/// What this host has, as the data plane asks for it. Calls may read the disk.
pub trait Possession: Send + Sync + 'static {
    /// A reader over a sealed or partial layer.
    fn reader(&self, layer: &LayerId) -> Option<LayerReader>;
    /// Size of a layer and what is here of it; cheaper than a reader.
    fn have(&self, layer: &LayerId) -> Option<(u64, GroupSet)> {
        self.reader(layer).map(|reader| (reader.size(), reader.have()))
    }
    /// The layers of a manifest in `Manifest::layers` order with their sizes in bytes, if the manifest is known.
    fn layers_of(&self, manifest: &ManifestDigest) -> Option<Vec<(LayerId, u64)>>;
    /// Changes whenever any layer grew.
    fn grown(&self) -> watch::Receiver<u64>;
    /// Told of every answered get or tree, for the metrics: bytes sent.
    fn sent(&self, peer: &KeyId, bytes: u64);
}

/// Reads one request from a stream and answers it; resets the stream where it cannot.
pub async fn serve_stream(
    possession: Arc<dyn Possession>,
    config: &DataConfig,
    uploads: [&Semaphore; 2],
    peer: KeyId,
    mut send: SendStream,
    mut recv: RecvStream,
) {
    let request = match recv.read_to_end(MESSAGE_BYTES_MAX).await {
        Ok(bytes) => Request::parse(&bytes),
        Err(e) => return debug!(%peer, error = %e, "request could not be read"),
    };
    let refused = match request {
        Ok(Request::Get { layer, chunks }) => {
            let Ok(_share) = uploads[0].acquire().await else { return };
            let Ok(_permit) = uploads[1].acquire().await else { return };
            let get = Get { possession: possession.clone(), layer, chunks, batch_bytes: config.batch_bytes };
            stream(&*possession, peer, &mut send, move |batches| get.read(batches)).await
        }
        Ok(Request::Tree { layer }) => {
            let Ok(_share) = uploads[0].acquire().await else { return };
            let Ok(_permit) = uploads[1].acquire().await else { return };
            let (look, batch_bytes) = (possession.clone(), config.batch_bytes);
            let read = move |batches: &_| read_tree(&*look, &layer, batch_bytes, batches);
            stream(&*possession, peer, &mut send, read).await
        }
        Ok(Request::Observe { layer }) => observe(possession, layer, &mut send).await,
        Ok(Request::Interest { manifest }) => interest(possession, manifest, &mut send).await,
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
struct Refusal {
    code: u32,
    why: String,
}

fn refuse(why: impl ToString) -> Refusal {
    Refusal { code: reset::INTERNAL, why: why.to_string() }
}

/// Sends what `read` hands on, batch by batch; `read` runs on a blocking thread and ends when nobody takes more.
async fn stream(
    possession: &dyn Possession,
    peer: KeyId,
    send: &mut SendStream,
    read: impl FnOnce(&mpsc::Sender<Bytes>) -> Result<(), Refusal> + Send + 'static,
) -> Result<(), Refusal> {
    // Two batches: one on its way to the wire, one being read.
    let (batches, mut ready) = mpsc::channel::<Bytes>(1);
    let reading = tokio::task::spawn_blocking(move || read(&batches));
    let mut sent = 0;
    while let Some(batch) = ready.recv().await {
        sent += batch.len() as u64;
        match tokio::time::timeout(TAKE_MAX, send.write_chunk(batch)).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => {
                // The asker lost interest or the connection; the reader stops at its next send.
                debug!(%peer, error = %e, "answer not finished");
                break;
            }
            Err(_) => {
                drop(ready);
                let _ = reading.await;
                return Err(Refusal { code: reset::LIMIT, why: "the asker takes nothing".into() });
            }
        }
    }
    drop(ready);
    possession.sent(&peer, sent);
    reading.await.map_err(refuse)?
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

struct Get {
    possession: Arc<dyn Possession>,
    layer: LayerId,
    chunks: ChunkRanges,
    batch_bytes: usize,
}

impl Get {
    /// Blocking: reads and encodes, one batch at a time.
    fn read(self, batches: &mpsc::Sender<Bytes>) -> Result<(), Refusal> {
        let reader = self.possession.reader(&self.layer).ok_or_else(|| refuse("layer is not here"))?;
        let size = reader.size();
        let ranges = truncate_ranges(&self.chunks, size);
        let touched = touched_groups(ranges, size);
        if !touched.is_subset(&reader.have()) {
            return Err(refuse("not all of the range is here"));
        }
        let whole = bao::canonical_chunks(&touched, size).boundaries() == ranges.boundaries();
        let mut out =
            Batch { size: self.batch_bytes, buffer: Vec::with_capacity(self.batch_bytes + 4096), batches };
        out.buffer.extend(size.to_le_bytes());
        if !whole {
            // Parts of groups need hashes from inside the group; rare (proofs of size), so the library does it.
            let outboard = FileOutboard { reader: &reader, root: self.layer };
            return bao_tree::io::sync::encode_ranges(FileData(&reader), outboard, ranges, &mut out)
                .map_err(refuse)
                .and_then(|()| out.flush_last());
        }
        for item in bao::tree(size).ranges_pre_order_chunks_iter_ref(ranges, 0) {
            match item {
                BaoChunk::Parent { node, .. } => {
                    let (left, right) = reader.pair(node).map_err(refuse)?;
                    out.buffer.extend(left.as_bytes());
                    out.buffer.extend(right.as_bytes());
                }
                BaoChunk::Leaf { start_chunk, size, .. } => {
                    let at = out.buffer.len();
                    out.buffer.resize(at + size, 0);
                    reader.read_exact_at(&mut out.buffer[at..], start_chunk.to_bytes()).map_err(refuse)?;
                }
            }
            if out.buffer.len() >= out.size && !out.flush_batch() {
                return Ok(());
            }
        }
        out.flush_last()
    }
}

/// Groups that `ranges` touch, even in part.
fn touched_groups(ranges: &ChunkRangesRef, size: u64) -> GroupSet {
    let mut boundaries: Vec<u64> = Vec::with_capacity(ranges.boundaries().len());
    for pair in ranges.boundaries().chunks(2) {
        // Past the end means the last chunk: a proof of the size.
        let start = (pair[0].0 / bao::GROUP_CHUNKS).min(bao::group_count(size) - 1);
        let end = pair.get(1).map_or(bao::group_count(size), |end| end.0.div_ceil(bao::GROUP_CHUNKS));
        let end = end.max(start + 1);
        match boundaries.last_mut() {
            // Parts of one group, or neighbours.
            Some(last) if *last >= start => *last = end.max(*last),
            _ => boundaries.extend([start, end]),
        }
    }
    GroupSet::new(boundaries.into()).unwrap_or_else(GroupSet::empty)
}

/// Collects encoded bytes and hands them on in batches.
struct Batch<'a> {
    size: usize,
    buffer: Vec<u8>,
    batches: &'a mpsc::Sender<Bytes>,
}

impl Batch<'_> {
    /// False when nobody listens any more.
    fn flush_batch(&mut self) -> bool {
        let full =
            std::mem::replace(&mut self.buffer, Vec::with_capacity(self.size + GROUP_BYTES as usize + 4096));
        full.is_empty() || self.batches.blocking_send(full.into()).is_ok()
    }

    fn flush_last(mut self) -> Result<(), Refusal> {
        self.flush_batch();
        Ok(())
    }
}

impl std::io::Write for Batch<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= self.size && !self.flush_batch() {
            return Err(std::io::ErrorKind::BrokenPipe.into());
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

struct FileData<'a>(&'a LayerReader);

impl bao_tree::io::sync::ReadAt for FileData<'_> {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = usize::try_from(self.0.size().saturating_sub(offset)).unwrap_or(usize::MAX);
        let len = buffer.len().min(left);
        self.0.read_exact_at(&mut buffer[..len], offset).map_err(std::io::Error::other)?;
        Ok(len)
    }
}

impl bao_tree::io::sync::Size for FileData<'_> {
    fn size(&self) -> std::io::Result<Option<u64>> {
        Ok(Some(self.0.size()))
    }
}

struct FileOutboard<'a> {
    reader: &'a LayerReader,
    root: LayerId,
}

impl bao_tree::io::sync::Outboard for FileOutboard<'_> {
    fn root(&self) -> blake3::Hash {
        blake3::Hash::from_bytes(self.root.0)
    }

    fn tree(&self) -> bao_tree::BaoTree {
        bao::tree(self.reader.size())
    }

    fn load(&self, node: TreeNode) -> std::io::Result<Option<(blake3::Hash, blake3::Hash)>> {
        if bao::tree(self.reader.size()).pre_order_offset(node).is_none() {
            return Ok(None);
        }
        self.reader.pair(node).map(Some).map_err(std::io::Error::other)
    }
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
            if send.write_all(&item).await.is_err() {
                return Ok(());
            }
            told = have;
            first = false;
        }
        if !wait_for_growth(&mut grown, send).await {
            return Ok(());
        }
    }
}

/// A layer of which not all was told yet: its place in the manifest, its size, what was told.
type Untold = (u32, LayerId, u64, GroupSet);

/// The same for all layers of a manifest, in one stream, until all of each was told.
async fn interest(
    possession: Arc<dyn Possession>,
    manifest: ManifestDigest,
    send: &mut SendStream,
) -> Result<(), Refusal> {
    let mut grown = possession.grown();
    let look = possession.clone();
    let layers = tokio::task::spawn_blocking(move || look.layers_of(&manifest)).await.map_err(refuse)?;
    let layers = layers.ok_or_else(|| refuse("manifest is not known here"))?;
    let mut open: Vec<Untold> =
        layers.into_iter().zip(0..).map(|((layer, size), i)| (i, layer, size, GroupSet::empty())).collect();
    let mut first = true;
    while !open.is_empty() || first {
        grown.borrow_and_update();
        let look = possession.clone();
        let swept = tokio::task::spawn_blocking(move || sweep(&*look, open));
        let news;
        (open, news) = swept.await.map_err(refuse)?;
        if first || !news.layers.is_empty() {
            for item in news.encode() {
                if send.write_all(&item).await.is_err() {
                    return Ok(());
                }
            }
            first = false;
        }
        if !open.is_empty() && !wait_for_growth(&mut grown, send).await {
            return Ok(());
        }
    }
    Ok(())
}

/// What is new of each layer, and those of which something is still missing.
fn sweep(possession: &dyn Possession, mut open: Vec<Untold>) -> (Vec<Untold>, HaveItem) {
    let mut news = HaveItem::default();
    open.retain_mut(|(index, layer, size, told)| {
        let Some((_, have)) = possession.have(layer).filter(|(known, _)| known == size) else { return true };
        let fresh = &have - &*told;
        if !fresh.is_empty() {
            news.layers.push((*index, fresh));
        }
        *told = have;
        !bao::all_groups(*size).is_subset(told)
    });
    (open, news)
}

/// False when the asker is gone or this host stops.
async fn wait_for_growth(grown: &mut watch::Receiver<u64>, send: &mut SendStream) -> bool {
    tokio::time::sleep(UPDATE_INTERVAL).await;
    tokio::select! {
        changed = grown.changed() => changed.is_ok(),
        _ = send.stopped() => false,
    }
}
