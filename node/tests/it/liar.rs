//! Providers that lie: nothing wrong is stored, whatever they send, and the lie is named.

mod daemons;
mod hostile;
mod member;
mod trees;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bao_tree::ChunkRanges;
use quinn::{Connection, RecvStream, SendStream, VarInt};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use weighlock::net::data::{GetError, GetOptions, Got, get, observe};
use weighlock_protocol::wire::bao::{GROUP_BYTES, GroupSet, all_groups};
use weighlock_protocol::wire::data::{MESSAGE_BYTES_MAX, Request};

use crate::plane::{Disk, Honest, LOOPBACK, Raw, options, soon};

/// What the provider does with its honest response, size header included.
#[derive(Debug, Clone)]
enum Lie {
    /// Sends it as it is.
    None,
    /// Flips this bit.
    Flip { byte: usize, bit: u8 },
    /// Sends this many bytes and ends in good order.
    Truncate(usize),
    /// Sends this many bytes and resets the stream.
    Reset(usize),
    /// Sends this many bytes and then nothing, with the stream open.
    Stall(usize),
    /// Sends it, and then more.
    Append(Vec<u8>),
    /// Claims another size.
    Size(u64),
    /// Sends this many bytes of it and then zeros for ever.
    Endless(usize),
    /// Sends the response to a get of the same groups shifted by some.
    Shifted(u64),
    /// Sends this instead.
    Instead(Vec<u8>),
}

/// A provider of one blob and what it is to do with the next get.
struct Liar {
    blob: Arc<Honest>,
    next: Arc<Mutex<Lie>>,
    /// Bytes that an endless stream got rid of before it was stopped.
    endless_bytes: Arc<AtomicU64>,
    raw: Raw,
}

impl Liar {
    fn start(blob: Honest) -> Self {
        let blob = Arc::new(blob);
        let next = Arc::new(Mutex::new(Lie::None));
        let endless_bytes = Arc::new(AtomicU64::new(u64::MAX));
        let raw = Raw::new();
        let state = (blob.clone(), next.clone(), endless_bytes.clone());
        raw.serve(move |send, recv| {
            let (blob, next, endless) = state.clone();
            let lie = next.lock().expect("whole").clone();
            answer(blob, lie, endless, send, recv)
        });
        Self { blob, next, endless_bytes, raw }
    }

    async fn dial(&self) -> Connection {
        Raw::new().dial(self.raw.key, self.raw.addr()).await
    }

    /// One get that is answered by `lie`.
    async fn get(
        &self,
        connection: &Connection,
        disk: &Disk,
        range: Range<u64>,
        lie: Lie,
        options: GetOptions,
    ) -> Got {
        *self.next.lock().expect("whole") = lie;
        let wanted = GroupSet::from(range);
        let got =
            soon("the get ends", get(connection, disk.partial(&self.blob), wanted.clone(), options)).await;
        assert!(got.stored.is_subset(&wanted), "stored {:?} of {wanted:?}", got.stored);
        got
    }

    fn response_len(&self, range: &Range<u64>) -> usize {
        self.blob.response(&chunks(&self.blob, range)).len()
    }
}

fn chunks(blob: &Honest, range: &Range<u64>) -> ChunkRanges {
    let Request::Get { chunks, .. } = Request::get(blob.layer, &GroupSet::from(range.clone()), blob.size())
    else {
        panic!("a get");
    };
    chunks
}

async fn answer(
    blob: Arc<Honest>,
    lie: Lie,
    endless: Arc<AtomicU64>,
    mut send: SendStream,
    mut recv: RecvStream,
) {
    let request = recv.read_to_end(MESSAGE_BYTES_MAX).await.expect("a request");
    let Ok(Request::Get { chunks, .. }) = Request::parse(&request) else {
        panic!("another request than a get");
    };
    let honest = blob.response(&chunks);
    let response = match lie.clone() {
        Lie::None => honest,
        Lie::Flip { byte, bit } => {
            let mut bytes = honest;
            bytes[byte] ^= 1 << bit;
            bytes
        }
        Lie::Truncate(len) | Lie::Reset(len) | Lie::Stall(len) | Lie::Endless(len) => honest[..len].to_vec(),
        Lie::Append(more) => [honest, more].concat(),
        Lie::Size(size) => [&size.to_le_bytes(), &honest[8..]].concat(),
        Lie::Shifted(by) => {
            let moved = chunks.boundaries().iter().map(|at| bao_tree::ChunkNum(at.0 + by * 16));
            blob.response(&ChunkRanges::new(moved.collect()).expect("in order"))
        }
        Lie::Instead(bytes) => bytes,
    };
    // The asker may stop us at any point.
    if send.write_all(&response).await.is_err() {
        return;
    }
    match lie {
        Lie::Reset(_) => {
            // What was written is to arrive first, or there is nothing for the reset to cut off.
            tokio::time::sleep(Duration::from_millis(50)).await;
            let _ = send.reset(VarInt::from_u32(3));
        }
        Lie::Stall(_) => {
            let _ = send.stopped().await;
        }
        Lie::Endless(_) => {
            let (block, mut sent) = (vec![0; 64 << 10], 0);
            while send.write_all(&block).await.is_ok() {
                sent += block.len() as u64;
            }
            endless.store(sent, Ordering::SeqCst);
        }
        _ => {
            let _ = send.finish();
        }
    }
}

/// Whether an error says that a proof failed, in its kind and for people.
fn names_verification(end: &Result<(), GetError>) -> bool {
    matches!(end, Err(e @ GetError::Verify(_)) if e.to_string().contains("fail verification"))
}

fn names_protocol(end: &Result<(), GetError>) -> bool {
    match end {
        Err(e @ GetError::Protocol(_)) => e.to_string().contains("protocol"),
        Err(GetError::Size { theirs, ours }) => theirs != ours,
        _ => false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_flipped_bits_store_nothing_wrong() {
    let liar = Liar::start(Honest::new((64 << 20) + 7, 40));
    let disk = Disk::new();
    let _open = disk.partial(&liar.blob);
    let connection = liar.dial().await;
    let mut rng = ChaCha8Rng::seed_from_u64(0x11a2);
    let groups = all_groups(liar.blob.size()).boundaries()[1];
    let mut stored = GroupSet::empty();
    let mut in_header = 0;
    for round in 0..10_000 {
        let start = rng.random_range(0..groups);
        let range = start..(start + rng.random_range(1..=4)).min(groups);
        let len = liar.response_len(&range);
        // Every tenth lie is about the size, else hardly any would be.
        let byte = rng.random_range(0..if round % 10 == 0 { 8 } else { len });
        let lie = Lie::Flip { byte, bit: rng.random_range(0..8) };
        let got = liar.get(&connection, &disk, range.clone(), lie.clone(), options()).await;
        if byte < 8 {
            in_header += 1;
            assert!(names_protocol(&got.end), "{range:?} {lie:?}: {:?}", got.end);
            assert!(got.stored.is_empty());
        } else {
            assert!(names_verification(&got.end), "{range:?} {lie:?}: {:?}", got.end);
            assert_ne!(got.stored, GroupSet::from(range));
        }
        stored |= got.stored;
    }
    assert!((1_000..2_000).contains(&in_header), "{in_header} lies about the size");
    // What came before a flip was proven and may stay; all of it is right, and there is nothing else in the file.
    assert_eq!(disk.check(&liar.blob), stored);
    assert!(!stored.is_empty() && stored != all_groups(liar.blob.size()));
    let partial = disk.partial(&liar.blob);
    let missing = GroupSet::new(partial.missing().boundaries().into()).expect("in order");
    for pair in missing.boundaries().chunks(2) {
        let got = liar.get(&connection, &disk, pair[0]..pair[1], Lie::None, options()).await;
        got.end.expect("an honest answer on the same connection");
    }
    disk.seal(&liar.blob, &partial);
}

#[tokio::test(flavor = "multi_thread")]
async fn flips_in_every_part_of_a_small_response_are_found() {
    // Two groups: 8 bytes of size, one pair, two leaves.
    let liar = Liar::start(Honest::new((16 << 10) + 100, 41));
    let disk = Disk::new();
    let _open = disk.partial(&liar.blob);
    let connection = liar.dial().await;
    let len = liar.response_len(&(0..2));
    let bytes = (0..72).chain((72..len).step_by(509)).chain(len - 4..len);
    for (n, byte) in bytes.enumerate() {
        let lie = Lie::Flip { byte, bit: (n % 8) as u8 };
        let got = liar.get(&connection, &disk, 0..2, lie.clone(), options()).await;
        let named = if byte < 8 { names_protocol(&got.end) } else { names_verification(&got.end) };
        assert!(named, "{lie:?}: {:?}", got.end);
    }
    let first_only = disk.check(&liar.blob);
    assert!(first_only.is_subset(&GroupSet::from(0..1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flip_in_an_empty_or_tiny_layer_is_found() {
    let liar = Liar::start(Honest::new(1, 42));
    let disk = Disk::new();
    let _open = disk.partial(&liar.blob);
    let connection = liar.dial().await;
    for bit in 0..8 {
        let got = liar.get(&connection, &disk, 0..1, Lie::Flip { byte: 8, bit }, options()).await;
        assert!(names_verification(&got.end) && got.stored.is_empty());
    }
    let empty = Liar::start(Honest::new(0, 43));
    let connection = empty.dial().await;
    let _open = disk.partial(&empty.blob);
    let got = empty.get(&connection, &disk, 0..1, Lie::Append(vec![0]), options()).await;
    assert!(names_protocol(&got.end), "{:?}", got.end);
    let got = empty.get(&connection, &disk, 0..1, Lie::Size(1), options()).await;
    assert!(names_protocol(&got.end), "{:?}", got.end);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_lies_end_in_errors_and_store_nothing_wrong() {
    let liar = Liar::start(Honest::new(4 << 20, 44));
    let disk = Disk::new();
    let _open = disk.partial(&liar.blob);
    let connection = liar.dial().await;
    let mut rng = ChaCha8Rng::seed_from_u64(7);

    for round in 0..60 {
        let start = rng.random_range(0..200);
        let range = start..start + rng.random_range(1..40);
        let cut = rng.random_range(0..liar.response_len(&range));
        let lie = if round % 2 == 0 { Lie::Truncate(cut) } else { Lie::Reset(cut) };
        let got = liar.get(&connection, &disk, range.clone(), lie.clone(), options()).await;
        assert!(matches!(got.end, Err(GetError::Miss(_))), "{lie:?}: {:?}", got.end);
        assert_ne!(got.stored, GroupSet::from(range));
    }
    for more in [vec![0], vec![1; 64], vec![2; 300_000]] {
        let got = liar.get(&connection, &disk, 3..9, Lie::Append(more), options()).await;
        assert!(names_protocol(&got.end), "{:?}", got.end);
    }
    for size in [0, 1, (4 << 20) - 1, (4 << 20) + 1, 1 << 46, 1 << 63, u64::MAX] {
        let got = liar.get(&connection, &disk, 3..9, Lie::Size(size), options()).await;
        assert!(names_protocol(&got.end) && got.stored.is_empty(), "{size}: {:?}", got.end);
    }
    for by in [1, 16, 100] {
        let got = liar.get(&connection, &disk, 40..56, Lie::Shifted(by), options()).await;
        assert!(got.end.is_err(), "groups of another place were taken");
        assert!(names_verification(&got.end), "{:?}", got.end);
    }
    let size = (4u64 << 20).to_le_bytes();
    for instead in [vec![], vec![0; 7], size.to_vec(), [&size[..], &[0; 500_000]].concat()] {
        let got = liar.get(&connection, &disk, 3..9, Lie::Instead(instead.clone()), options()).await;
        let long = instead.len() > 1000;
        assert!(if long { names_verification(&got.end) } else { matches!(got.end, Err(GetError::Miss(_))) });
        assert!(got.stored.is_empty());
    }
    disk.check(&liar.blob);

    // The connection that carried all this still works.
    let got = liar.get(&connection, &disk, 0..256, Lie::None, options()).await;
    got.end.expect("an honest answer");
    disk.seal(&liar.blob, &disk.partial(&liar.blob));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_stalls_is_left() {
    let liar = Liar::start(Honest::new(4 << 20, 45));
    let disk = Disk::new();
    let _open = disk.partial(&liar.blob);
    let connection = liar.dial().await;
    let impatient = || GetOptions { stall: Duration::from_millis(300), ..options() };
    let len = liar.response_len(&(0..256));
    for sent in [0, 4, 8, 1000, len / 2, len - 1] {
        let got = liar.get(&connection, &disk, 0..256, Lie::Stall(sent), impatient()).await;
        assert!(matches!(got.end, Err(GetError::Stalled(_))), "{sent}: {:?}", got.end);
    }
    let have = disk.check(&liar.blob);
    assert!(have.contains(&0), "what was proven before the stall is kept");

    // One that lets nobody open a stream is no better.
    let mute = Raw::at(LOOPBACK, |transport| {
        transport.max_concurrent_bidi_streams(0u32.into());
    });
    mute.serve(|_, _| async {});
    let connection = Raw::new().dial(mute.key, mute.addr()).await;
    let attempt = get(&connection, disk.partial(&liar.blob), GroupSet::from(0..256), impatient());
    let got = tokio::time::timeout(Duration::from_secs(30), attempt)
        .await
        .expect("a get over a connection that grants no streams ends by its stall time");
    assert!(matches!(got.end, Err(GetError::Stalled(_))), "{:?}", got.end);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endless_answer_is_stopped() {
    let liar = Liar::start(Honest::new(4 << 20, 46));
    let disk = Disk::new();
    let _open = disk.partial(&liar.blob);
    let connection = liar.dial().await;
    let range = 10..20;
    let whole = liar.response_len(&range);
    for (honest, lies) in [(whole, false), (whole / 2, true), (8, true)] {
        liar.endless_bytes.store(u64::MAX, Ordering::SeqCst);
        let got = liar.get(&connection, &disk, range.clone(), Lie::Endless(honest), options()).await;
        let named = if lies { names_verification(&got.end) } else { names_protocol(&got.end) };
        assert!(named, "{honest}: {:?}", got.end);
        let stopped = async {
            while liar.endless_bytes.load(Ordering::SeqCst) == u64::MAX {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            liar.endless_bytes.load(Ordering::SeqCst)
        };
        let sent = soon("the provider is told to stop", stopped).await;
        assert!(sent < 16 << 20, "{sent} bytes were taken of {} asked for", 10 * GROUP_BYTES);
    }
    disk.check(&liar.blob);
}

#[tokio::test(flavor = "multi_thread")]
async fn rubbish_in_declarations_is_an_error() {
    // Over the length limit, a length that never ends, malformed bodies, boundaries out of order, an absurd size.
    let absurd = postcard::to_allocvec(&(u64::MAX, vec![0u64, 16])).expect("plain data");
    let unordered = postcard::to_allocvec(&(1u64 << 20, vec![32u64, 16])).expect("plain data");
    let prefixed = |body: &[u8]| [&[body.len() as u8], body].concat();
    let rubbish = [
        vec![0x81, 0x80, 0x40],
        vec![0xff; 12],
        vec![5, 1, 2],
        vec![3, 0xff, 0xff, 0xff],
        prefixed(&absurd),
        prefixed(&unordered),
    ];
    for bytes in rubbish {
        let raw = Raw::new();
        let answer = bytes.clone();
        raw.serve(move |mut send, mut recv| {
            let answer = answer.clone();
            async move {
                let _ = recv.read_to_end(MESSAGE_BYTES_MAX).await;
                let _ = send.write_all(&answer).await;
                let _ = send.finish();
            }
        });
        let connection = Raw::new().dial(raw.key, raw.addr()).await;
        let mut observed = observe(&connection, Honest::new(1, 1).layer).await.expect("open");
        let item = soon("an end", observed.next()).await;
        assert!(item.is_err(), "{bytes:?}: {item:?}");
    }
}
