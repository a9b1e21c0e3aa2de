//! Our wire against unmodified iroh-blobs, in both directions, over plain QUIC with libp2p certificates.

mod streams;

use std::collections::BTreeMap;

use bao_tree::io::BaoContentItem;
use bao_tree::{ChunkNum, ChunkRanges};
use iroh_blobs::Hash;
use iroh_blobs::api::Store as Blobs;
use iroh_blobs::get::{StreamPair, fsm};
use iroh_blobs::protocol::{
    self as iroh, ChunkRangesExt, ChunkRangesSeq, GetManyRequest, GetRequest, ObserveRequest, PushRequest,
};
use iroh_blobs::provider::{self, events::EventSender};
use iroh_blobs::store::fs::FsStore;
use iroh_blobs::store::mem::MemStore;
use quinn::{Connection, ReadError, ReadToEndError, RecvStream, SendStream};
use weighlock::net::data::{GetError, get, observe};
use weighlock_protocol::wire::bao::{GROUP_BYTES, GroupSet, all_groups};
use weighlock_protocol::wire::data::{Request, reset};

use crate::plane::{Disk, Honest, Host, Raw, options, soon};
use streams::{Recv, Send};

/// Layer sizes that meet every edge of the group size: none, one byte, one group, one more, many and an odd rest.
const SIZES: [usize; 5] = [0, 1, 16384, 16385, (3 << 20) + 7];

fn blobs() -> Vec<Honest> {
    (0..).zip(SIZES).map(|(seed, len)| Honest::new(len, seed)).collect()
}

fn hash(blob: &Honest) -> Hash {
    Hash::from_bytes(blob.layer.0)
}

/// A host of ours with all of them imported, and a stranger's connection to it.
async fn our_provider(blobs: &[Honest]) -> (Host, Raw, Connection) {
    let host = Host::start();
    if !blobs.is_empty() {
        host.disk.import(&blobs.iter().collect::<Vec<_>>());
    }
    let raw = Raw::new();
    host.admit([raw.key]);
    let connection = raw.dial(host.key, host.addr()).await;
    (host, raw, connection)
}

async fn open(connection: &Connection) -> StreamPair<Recv, Send> {
    let (send, recv) = connection.open_bi().await.expect("a stream");
    StreamPair::new(connection.stable_id() as u64, Recv(recv), Send(send))
}

/// Runs the stock state machine: the size that the provider claims, and leaves by offset.
async fn stock_get(
    connection: &Connection,
    request: GetRequest,
) -> Result<(u64, BTreeMap<u64, Vec<u8>>), String> {
    let pair = open(connection).await;
    let connected = fsm::AtConnected::new(pair.t0, pair.recv, pair.send, request, Default::default());
    let fsm::ConnectedNext::StartRoot(root) = connected.next().await.map_err(|e| e.to_string())? else {
        return Err("the request names no root".into());
    };
    let (mut content, size) = root.next().next().await.map_err(|e| e.to_string())?;
    let mut leaves = BTreeMap::new();
    let end = loop {
        match content.next().await {
            fsm::BlobContentNext::More((next, item)) => {
                if let BaoContentItem::Leaf(leaf) = item.map_err(|e| e.to_string())? {
                    leaves.insert(leaf.offset, leaf.data.to_vec());
                }
                content = next;
            }
            fsm::BlobContentNext::Done(end) => break end,
        }
    };
    let fsm::EndBlobNext::Closing(closing) = end.next() else {
        return Err("more than one blob".into());
    };
    closing.next().await.map_err(|e| e.to_string())?;
    Ok((size, leaves))
}

/// Asserts that the leaves are exactly the chunks of `chunks` that exist, with the right bytes.
fn assert_leaves(blob: &Honest, chunks: &ChunkRanges, leaves: &BTreeMap<u64, Vec<u8>>) {
    let mut got = ChunkRanges::empty();
    for (offset, bytes) in leaves {
        let at = *offset as usize;
        assert!(blob.data[at..at + bytes.len()] == bytes[..], "wrong bytes at {offset}");
        assert_eq!(offset % 1024, 0);
        got |= ChunkRanges::from(
            ChunkNum(offset / 1024)..ChunkNum((offset + bytes.len() as u64).div_ceil(1024)),
        );
    }
    let exist = ChunkRanges::from(..ChunkNum(blob.size().div_ceil(1024)));
    assert_eq!(got, chunks & &exist, "asked for {chunks:?}");
}

/// How a stream of ours ended for who asked raw.
async fn ending(connection: &Connection, request: Vec<u8>) -> Result<Vec<u8>, ReadToEndError> {
    let (mut send, mut recv) = connection.open_bi().await.expect("a stream");
    send.write_all(&request).await.expect("sent");
    send.finish().expect("open");
    soon("the answer ends", recv.read_to_end(1 << 20)).await
}

fn is_reset(ending: &Result<Vec<u8>, ReadToEndError>, code: u32) -> bool {
    matches!(ending, Err(ReadToEndError::Read(ReadError::Reset(found))) if *found == quinn::VarInt::from_u32(code))
}

fn encoded(request: impl Into<iroh::Request>) -> Vec<u8> {
    postcard::to_allocvec(&request.into()).expect("plain data")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stock_getter_reads_whole_layers_from_us() {
    let blobs = blobs();
    let (host, _raw, connection) = our_provider(&blobs).await;
    for blob in &blobs {
        let (size, leaves) = stock_get(&connection, GetRequest::blob(hash(blob))).await.expect("served");
        assert_eq!(size, blob.size());
        assert!(leaves.into_values().flatten().eq(blob.data.iter().copied()));
    }
    let payload: u64 = blobs.iter().map(Honest::size).sum();
    assert!(host.shelf.sent_bytes() > payload, "what was sent is counted, proofs too");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stock_getter_reads_any_ranges_from_us() {
    let blobs = blobs();
    let (_host, _raw, connection) = our_provider(&blobs).await;
    let big = blobs.last().expect("five");
    let end = big.size().div_ceil(1024);
    let ranges = [
        // Whole groups: one, several, the first, the short last one.
        ChunkRanges::chunks(16..32),
        ChunkRanges::chunks(0..16),
        ChunkRanges::chunks(64..1024),
        ChunkRanges::chunks(16..32) | ChunkRanges::chunks(320..336) | ChunkRanges::chunks(1600..1632),
        ChunkRanges::chunks(end / 16 * 16..end),
        ChunkRanges::chunks(1024..),
        // Parts of groups: inside one, across borders, single chunks, the last chunk by number.
        ChunkRanges::chunks(3..5),
        ChunkRanges::chunks(15..17),
        ChunkRanges::chunks(7..1000),
        ChunkRanges::chunk(0) | ChunkRanges::chunk(31) | ChunkRanges::chunk(2000),
        ChunkRanges::bytes(100_000..104_000),
        ChunkRanges::chunk(end - 1),
        ChunkRanges::chunks(end - 20..end),
        // Past the end.
        ChunkRanges::chunks(end - 5..end + 1000),
    ];
    for chunks in ranges {
        let request = GetRequest::blob_ranges(hash(big), chunks.clone());
        let (size, leaves) = stock_get(&connection, request).await.expect("served");
        assert_eq!(size, big.size());
        assert_leaves(big, &chunks, &leaves);
    }
    // Every split of a layer of one group and a byte.
    let small = &blobs[3];
    for start in 0..17 {
        for stop in start + 1..=17 {
            let chunks = ChunkRanges::chunks(start..stop);
            let request = GetRequest::blob_ranges(hash(small), chunks.clone());
            let (_, leaves) = stock_get(&connection, request).await.expect("served");
            assert_leaves(small, &chunks, &leaves);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stock_getter_proves_sizes_by_the_last_chunk_from_us() {
    let blobs = blobs();
    let (_host, _raw, connection) = our_provider(&blobs).await;
    for blob in &blobs {
        let request = GetRequest::blob_ranges(hash(blob), ChunkRanges::last_chunk());
        let (size, leaves) = stock_get(&connection, request).await.expect("served");
        assert_eq!(size, blob.size());
        let start = blob.size().saturating_sub(1) / 1024 * 1024;
        let last = leaves.values().next_back().expect("a leaf").as_slice();
        assert!(blob.data[start as usize..].ends_with(last) && (blob.data.is_empty() || !last.is_empty()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stock_store_fills_from_us_in_parts() {
    let blobs = blobs();
    let (_host, _raw, connection) = our_provider(&blobs).await;
    let memory = MemStore::new();
    for blob in &blobs {
        let request = GetRequest::blob(hash(blob));
        let fetched = memory.remote().execute_get(open(&connection).await, request).complete();
        soon("fetched", fetched).await.expect("served");
        assert!(memory.get_bytes(hash(blob)).await.expect("complete") == blob.data[..]);
    }

    let dir = tempfile::tempdir().expect("a directory");
    let files = FsStore::load(dir.path()).await.expect("a new store");
    let big = blobs.last().expect("five");
    for chunks in [
        ChunkRanges::chunks(512..1024),
        ChunkRanges::chunks(2048..),
        ChunkRanges::chunks(..512),
        ChunkRanges::chunks(1024..2048),
    ] {
        let request = GetRequest::blob_ranges(hash(big), chunks.clone());
        let fetched = files.remote().execute_get(open(&connection).await, request).complete();
        let stats = soon("fetched", fetched).await.expect("served");
        let exist = ChunkRanges::from(..ChunkNum(big.size().div_ceil(1024)));
        let asked = &chunks & &exist;
        let bytes: u64 = asked
            .boundaries()
            .chunks(2)
            .map(|pair| (pair[1].0 * 1024).min(big.size()) - pair[0].0 * 1024)
            .sum();
        assert_eq!(stats.payload_bytes_read, bytes);
        let there = files.observe(hash(big)).await.expect("observed");
        assert!(there.ranges.is_superset(&asked));
    }
    assert!(files.get_bytes(hash(big)).await.expect("complete") == big.data[..]);
    files.shutdown().await.expect("closed");
}

/// Reads what an observe stream of ours says, by the stock type.
async fn stock_item(recv: &mut RecvStream) -> iroh::ObserveItem {
    let mut len = 0;
    for shift in (0..).step_by(7) {
        let mut byte = [0];
        recv.read_exact(&mut byte).await.expect("a length");
        len |= usize::from(byte[0] & 0x7f) << shift;
        if byte[0] & 0x80 == 0 {
            break;
        }
    }
    let mut body = vec![0; len];
    recv.read_exact(&mut body).await.expect("an item");
    postcard::from_bytes(&body).expect("the stock form")
}

async fn stock_observe(connection: &Connection, blob: &Honest) -> (SendStream, RecvStream) {
    let (mut send, recv) = connection.open_bi().await.expect("a stream");
    let request = encoded(ObserveRequest::new(hash(blob)));
    send.write_all(&request).await.expect("sent");
    send.finish().expect("open");
    (send, recv)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stock_observer_sees_what_we_have_and_how_it_grows() {
    let blobs = blobs();
    let (host, _raw, connection) = our_provider(&blobs).await;
    for blob in &blobs {
        let (_send, mut recv) = stock_observe(&connection, blob).await;
        let item = soon("an item", stock_item(&mut recv)).await;
        assert_eq!(item.size, blob.size());
        assert!(item.ranges.is_superset(&ChunkRanges::from(..ChunkNum(blob.size().div_ceil(1024)))));
    }

    let partial = Honest::new(1_000_003, 77);
    let (_send, mut unknown) = stock_observe(&connection, &partial).await;
    let item = soon("an item", stock_item(&mut unknown)).await;
    assert!(item.ranges.is_empty(), "nothing is said of a layer that is not here");

    host.disk.fill(&partial, &(GroupSet::from(1..4) | GroupSet::from(60..62)));
    let (_send, mut recv) = stock_observe(&connection, &partial).await;
    let item = soon("an item", stock_item(&mut recv)).await;
    assert_eq!(item.size, partial.size());
    let end = partial.size().div_ceil(1024);
    assert_eq!(item.ranges, ChunkRanges::chunks(16..64) | ChunkRanges::chunks(960..end));

    let fill = host.disk.fill(&partial, &GroupSet::from(10..12));
    host.shelf.grew();
    let item = soon("an item", stock_item(&mut recv)).await;
    assert_eq!(item.ranges, ChunkRanges::chunks(160..192), "what was added, as a stock provider says it");
    // Those who watched before anything was here hear of it too.
    let item = soon("an item", stock_item(&mut unknown)).await;
    assert_eq!(item.size, partial.size());
    assert!(item.ranges.is_superset(&ChunkRanges::chunks(160..192)));
    drop(fill);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_we_do_not_have_ends_in_a_reset() {
    let (host, _raw, connection) = our_provider(&[]).await;
    let blob = Honest::new(500_000, 5);
    let _partial = host.disk.fill(&blob, &GroupSet::from(4..12));

    let wanted = [
        (ChunkRanges::chunks(64..192), true),
        (ChunkRanges::chunks(70..80), true),
        // Before, across the edges, one chunk over, far after, all.
        (ChunkRanges::chunks(0..16), false),
        (ChunkRanges::chunks(60..70), false),
        (ChunkRanges::chunks(64..193), false),
        (ChunkRanges::chunks(300..310), false),
        (ChunkRanges::all(), false),
        (ChunkRanges::last_chunk(), false),
    ];
    for (chunks, here) in wanted {
        let request = GetRequest::blob_ranges(hash(&blob), chunks.clone());
        let raw = ending(&connection, encoded(request.clone())).await;
        assert_eq!(is_reset(&raw, reset::INTERNAL), !here, "{chunks:?}: {raw:?}");
        match stock_get(&connection, request).await {
            Ok((_, leaves)) => {
                assert!(here, "{chunks:?} came");
                assert_leaves(&blob, &chunks, &leaves);
            }
            Err(error) => assert!(!here && error.contains("reset"), "{chunks:?}: {error}"),
        }
    }
    let unknown = GetRequest::blob(Hash::from_bytes([3; 32]));
    assert!(is_reset(&ending(&connection, encoded(unknown)).await, reset::INTERNAL));
}

#[tokio::test(flavor = "multi_thread")]
async fn other_stock_requests_are_refused_and_the_connection_lives() {
    let blobs = blobs();
    let (_host, _raw, connection) = our_provider(&blobs).await;
    let blob = &blobs[3];
    let many = GetManyRequest::new(vec![hash(blob), hash(&blobs[1])], ChunkRangesSeq::all());
    let sequence = GetRequest::all(hash(blob));
    let child = GetRequest::builder().child(2, ChunkRanges::all()).build(hash(blob));
    for request in [encoded(many), encoded(sequence), encoded(child)] {
        let ended = ending(&connection, request).await;
        assert!(is_reset(&ended, reset::PERMISSION), "{ended:?}");
    }

    // A push carries a length before its request and a blob after it, small or larger than any request.
    let request =
        postcard::to_allocvec(&PushRequest::new(hash(blob), ChunkRangesSeq::root())).expect("plain data");
    let mut push = vec![8];
    push.extend(postcard::to_allocvec(&(request.len() as u64)).expect("plain data"));
    push.extend(request);
    let response = blob.response(&ChunkRanges::all());
    let ended = ending(&connection, [&push[..], &response].concat()).await;
    assert!(is_reset(&ended, reset::PERMISSION), "{ended:?}");
    let (mut send, _recv) = connection.open_bi().await.expect("a stream");
    send.write_all(&push).await.expect("sent");
    let flood = async {
        let block = vec![7; 64 << 10];
        let mut sent = 0u64;
        while send.write_all(&block).await.is_ok() {
            sent += block.len() as u64;
        }
        sent
    };
    let sent = soon("the flood is stopped", flood).await;
    assert!(sent < 64 << 20, "{sent} bytes of a push were taken");

    let garbage = [&[][..], &[255], &[0, 1, 2], &[1; 20], &[2], &[0x40]];
    for request in garbage {
        let ended = ending(&connection, request.to_vec()).await;
        assert!(is_reset(&ended, reset::INTERNAL), "{request:?}: {ended:?}");
    }
    let (_, leaves) = stock_get(&connection, GetRequest::blob(hash(blob))).await.expect("served");
    assert!(leaves.into_values().flatten().eq(blob.data.iter().copied()));
}

/// Serves a stock store by the stock handler.
fn stock_provider(store: &Blobs) -> Raw {
    let raw = Raw::new();
    let store = store.clone();
    raw.serve(move |send, recv| {
        let pair = provider::StreamPair::new(0, Recv(recv), Send(send), EventSender::DEFAULT);
        let store = store.clone();
        async move {
            let _ = provider::handle_stream(pair, store).await;
        }
    });
    raw
}

#[tokio::test(flavor = "multi_thread")]
async fn we_fetch_from_a_stock_provider() {
    let store = MemStore::new();
    let blobs = blobs();
    for blob in &blobs {
        store.add_slice(&blob.data).await.expect("added");
    }
    let provider = stock_provider(&store);
    let asker = Raw::new();
    let connection = asker.dial(provider.key, provider.addr()).await;
    let disk = Disk::new();
    for blob in &blobs {
        let partial = disk.partial(blob);
        let groups = all_groups(blob.size()).boundaries()[1];
        // Out of order, overlapping at the seams, the last range past the end.
        let mut starts: Vec<u64> = (0..groups).step_by(37).collect();
        starts.reverse();
        for start in starts {
            let range = start..(start + 40).min(groups);
            let got =
                soon("fetched", get(&connection, partial.clone(), GroupSet::from(range.clone()), options()))
                    .await;
            got.end.expect("an honest provider");
            assert_eq!(got.stored, GroupSet::from(range));
        }
        assert!(partial.complete());
        disk.check(blob);
        disk.seal(blob, &partial);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn we_observe_and_fetch_from_a_stock_provider_that_is_incomplete() {
    let blob = Honest::new((2 << 20) + 9, 21);
    let origin = MemStore::new();
    origin.add_slice(&blob.data).await.expect("added");
    let first = stock_provider(&origin);
    let dir = tempfile::tempdir().expect("a directory");
    let files = FsStore::load(dir.path()).await.expect("a new store");
    let second = stock_provider(&files);
    let asker = Raw::new();
    let to_first = asker.dial(first.key, first.addr()).await;
    let to_second = asker.dial(second.key, second.addr()).await;
    let relay = async |chunks: ChunkRanges| {
        let request = GetRequest::blob_ranges(hash(&blob), chunks);
        let fetched = files.remote().execute_get(open(&to_first).await, request).complete();
        soon("relayed", fetched).await.expect("served");
    };

    let mut complete = observe(&to_first, blob.layer).await.expect("open");
    let item = soon("an item", complete.next()).await.expect("valid").expect("one");
    assert_eq!((item.size, item.groups(blob.size())), (blob.size(), all_groups(blob.size())));

    relay(ChunkRanges::chunks(160..480)).await;
    let mut watched = observe(&to_second, blob.layer).await.expect("open");
    let item = soon("an item", watched.next()).await.expect("valid").expect("one");
    let there = GroupSet::from(10..30);
    assert_eq!(item.groups(blob.size()), there);

    let disk = Disk::new();
    let partial = disk.partial(&blob);
    let got = soon("fetched", get(&to_second, partial.clone(), there.clone(), options())).await;
    got.end.expect("it has these");
    assert_eq!((disk.check(&blob), got.bytes), (there.clone(), 20 * GROUP_BYTES));
    for miss in [0..10, 28..32, 100..129] {
        let got =
            soon("refused", get(&to_second, partial.clone(), GroupSet::from(miss.clone()), options())).await;
        assert!(matches!(got.end, Err(GetError::Miss(_))), "{miss:?}: {:?}", got.end);
        assert!(got.stored.is_subset(&GroupSet::from(28..30)));
    }
    assert_eq!(disk.check(&blob), there, "a miss leaves nothing behind");

    relay(ChunkRanges::chunks(480..)).await;
    let mut seen = there.clone();
    while seen != (&there | &GroupSet::from(30..129)) {
        let item = soon("an item", watched.next()).await.expect("valid").expect("one");
        seen |= item.groups(blob.size());
    }
    relay(ChunkRanges::all()).await;
    for range in [0..10, 30..129] {
        let got = soon("fetched", get(&to_second, partial.clone(), GroupSet::from(range), options())).await;
        got.end.expect("it has these by now");
    }
    disk.seal(&blob, &partial);
    files.shutdown().await.expect("closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn our_requests_are_the_stock_bytes() {
    let blob = Honest::new(1 << 20, 1);
    for groups in [GroupSet::from(0..64), GroupSet::from(3..9), GroupSet::from(1..2) | GroupSet::from(63..64)]
    {
        let Request::Get { layer, chunks } = Request::get(blob.layer, &groups, blob.size()) else {
            panic!("a get");
        };
        let stock = GetRequest::blob_ranges(Hash::from_bytes(layer.0), chunks);
        assert_eq!(Request::get(blob.layer, &groups, blob.size()).encode(), encoded(stock));
    }
    let observe = Request::Observe { layer: blob.layer };
    assert_eq!(observe.encode(), encoded(ObserveRequest::new(hash(&blob))));
}
