//! Trees from providers that lie: no node is believed that does not hash to the layer, and local bytes decide nothing.

use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, VarInt};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use weighlock::net::data::{DataConfig, GetError, GetOptions, tree};
use weighlock_protocol::wire::bao::{GROUP_BYTES, GroupSet, all_groups};
use weighlock_protocol::wire::data::{MESSAGE_BYTES_MAX, Request};

use crate::plane::{Disk, Honest, Host, Raw, acquaint, bytes, options, soon};

/// How an answer ends.
#[derive(Debug, Clone, Copy)]
enum End {
    Finish,
    Reset,
    Stall,
    Endless,
}

/// A connection to a provider that answers everything with `answer`.
async fn provider(answer: Vec<u8>, end: End) -> Connection {
    let raw = Raw::new();
    let answer = Arc::new(answer);
    raw.serve(move |mut send, mut recv| {
        let answer = answer.clone();
        async move {
            let request = recv.read_to_end(MESSAGE_BYTES_MAX).await.expect("a request");
            assert!(matches!(Request::parse(&request), Ok(Request::Tree { .. })));
            let _ = send.write_all(&answer).await;
            match end {
                End::Finish => drop(send.finish()),
                End::Reset => drop(send.reset(VarInt::from_u32(3))),
                End::Stall => drop(send.stopped().await),
                End::Endless => while send.write_all(&[0; 64 << 10]).await.is_ok() {},
            }
        }
    });
    Raw::new().dial(raw.key, raw.addr()).await
}

/// What a fresh partial layer makes of an answer, and which of the right bytes it takes then.
async fn asked(
    blob: &Honest,
    answer: Vec<u8>,
    end: End,
    options: GetOptions,
) -> (Result<(), GetError>, GroupSet) {
    let disk = Disk::new();
    let partial = disk.partial(blob);
    let connection = provider(answer, end).await;
    let result = soon("the answer ends", tree(&connection, partial.clone(), options)).await;
    assert_eq!(partial.have(), GroupSet::empty(), "a tree brings no bytes");
    // Wrong bytes are taken nowhere, whatever came of the tree.
    let wrong = bytes(blob.data.len(), 77);
    assert_eq!(partial.adopt(0, &wrong).expect("no error"), GroupSet::empty());
    let taken = partial.adopt(0, &blob.data).expect("no error");
    assert_eq!(disk.check(blob), taken);
    (result, taken)
}

fn honest_answer(blob: &Honest) -> Vec<u8> {
    [&blob.size().to_le_bytes(), blob.tree()].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_gives_the_tree_of_what_it_has_whole_and_of_nothing_else() {
    let (whole, part) = (Honest::new((5 << 20) + 3, 50), Honest::new(3 << 20, 51));
    let (tiny, empty) = (Honest::new(100, 52), Honest::new(0, 53));
    let config = DataConfig { batch_bytes: 1000, ..DataConfig::default() };
    let from = Host::with(Disk::new(), config, Arc::new(|_, request| Box::pin(async move { request })));
    let to = Host::start();
    acquaint(&[&from, &to]);
    from.disk.import(&[&whole, &tiny, &empty]);
    let begun = from.disk.fill(&part, &GroupSet::from(0..100));
    let connection = to.dial(&from).await;

    let partial = to.disk.partial(&whole);
    tree(&connection, partial.clone(), options()).await.expect("given");
    let sent = from.shelf.sent_bytes();
    assert_eq!(sent, 8 + whole.tree().len() as u64, "size and pairs, nothing else");
    assert_eq!(partial.adopt(0, &whole.data).expect("no error"), all_groups(whole.size()));
    to.disk.seal(&whole, &partial);

    // Layers of one group need no question.
    for blob in [&tiny, &empty] {
        let partial = to.disk.partial(blob);
        tree(&connection, partial.clone(), options()).await.expect("there is none");
    }
    assert_eq!(from.shelf.sent_bytes(), sent);
    let partial = to.disk.partial(&tiny);
    assert_eq!(partial.adopt(0, &tiny.data).expect("no error"), GroupSet::from(0..1));
    to.disk.seal(&tiny, &partial);

    for blob in [&part, &Honest::new(1 << 20, 54)] {
        let result = tree(&connection, to.disk.partial(blob), options()).await;
        assert!(matches!(result, Err(GetError::Miss(_))), "{result:?}");
    }
    // Once it has all of that, too, it gives the tree, sealed or not.
    let rest = from.disk.fill(&part, &begun.missing());
    assert!(rest.complete());
    let partial = to.disk.partial(&part);
    tree(&connection, partial.clone(), options()).await.expect("given");
    assert_eq!(partial.adopt(0, &part.data).expect("no error"), all_groups(part.size()));
    to.disk.seal(&part, &partial);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_anywhere_in_a_tree_is_found() {
    let blob = Honest::new((1 << 20) + 7, 55);
    let honest = honest_answer(&blob);
    let mut rng = ChaCha8Rng::seed_from_u64(0x7ee);
    // Every node, from the root to the last, in one of its two halves.
    let nodes: Vec<usize> =
        (8..honest.len()).step_by(64).map(|node| node + rng.random_range(0..64)).collect();
    for byte in (0..8).chain(nodes) {
        let mut answer = honest.clone();
        answer[byte] ^= 1 << rng.random_range(0..8);
        let (result, taken) = asked(&blob, answer, End::Finish, options()).await;
        if byte < 8 {
            assert!(super::names_protocol(&result) && taken.is_empty(), "byte {byte}: {result:?}");
        } else {
            assert!(super::names_verification(&result), "byte {byte}: {result:?}");
            assert_ne!(taken, all_groups(blob.size()), "byte {byte}");
        }
    }
    let (result, taken) = asked(&blob, honest, End::Finish, options()).await;
    result.expect("honest");
    assert_eq!(taken, all_groups(blob.size()));
}

#[tokio::test(flavor = "multi_thread")]
async fn trees_that_are_too_short_too_long_or_absurd_are_refused() {
    let blob = Honest::new(4 << 20, 56);
    let honest = honest_answer(&blob);
    for cut in [0, 7, 8, 9, 71, 72, honest.len() / 2, honest.len() - 64, honest.len() - 1] {
        for end in [End::Finish, End::Reset] {
            let (result, taken) = asked(&blob, honest[..cut].to_vec(), end, options()).await;
            assert!(matches!(result, Err(GetError::Miss(_))), "{cut} {end:?}: {result:?}");
            // What was proven before the end is of use.
            assert_ne!(taken, all_groups(blob.size()));
        }
    }
    for more in [1, 64, 300_000] {
        let long = [&honest[..], &vec![0; more]].concat();
        let (result, _) = asked(&blob, long, End::Finish, options()).await;
        assert!(super::names_protocol(&result), "{more}: {result:?}");
    }
    for size in [0, 1, blob.size() - 1, blob.size() + 1, 1 << 46, 1 << 63, u64::MAX] {
        let answer = [&size.to_le_bytes(), blob.tree()].concat();
        let (result, taken) = asked(&blob, answer, End::Finish, options()).await;
        assert!(super::names_protocol(&result) && taken.is_empty(), "{size}: {result:?}");
    }
    // The right tree of another layer.
    let other = Honest::new(4 << 20, 57);
    let (result, taken) = asked(&blob, honest_answer(&other), End::Finish, options()).await;
    assert!(super::names_verification(&result) && taken.is_empty(), "{result:?}");

    let (result, _) = asked(&blob, honest.clone(), End::Endless, options()).await;
    assert!(super::names_protocol(&result), "{result:?}");
    let impatient = GetOptions { stall: Duration::from_millis(300), ..options() };
    let (result, taken) = asked(&blob, honest[..honest.len() / 2].to_vec(), End::Stall, impatient).await;
    assert!(matches!(result, Err(GetError::Stalled(_))), "{result:?}");
    assert!(taken.contains(&0), "the first groups hang below proven nodes");
    assert!(blob.size() / GROUP_BYTES > taken.boundaries().iter().sum::<u64>());
    let cancelled = options();
    cancelled.cancel.cancel();
    let (result, _) = asked(&blob, honest, End::Finish, cancelled).await;
    assert!(matches!(result, Err(GetError::Cancelled)), "{result:?}");
}
