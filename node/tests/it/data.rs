//! The data plane as a library: many providers, losses, resumption, who may connect, and who only takes room.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use quinn::{ApplicationClose, Connection, ConnectionError, VarInt};
use tokio::sync::Semaphore;
use weighlock::net::data::{DataConfig, GetError, JoinDoor, get, observe};
use weighlock_protocol::wire::bao::{GroupSet, all_groups, bytes_in};
use weighlock_protocol::wire::data::{ALPN_DATA, ALPN_JOIN, HELLO_BYTES_MAX, Hello, Request, close};
use weighlock_protocol::{ClusterId, KeyId};

use crate::plane::{CLUSTER, Disk, Honest, Host, Raw, acquaint, options, soon};

fn echo() -> JoinDoor {
    Arc::new(|_, request| Box::pin(async move { request }))
}

fn closed_with(error: &ConnectionError, code: u32) -> bool {
    matches!(error, ConnectionError::ApplicationClosed(ApplicationClose { error_code, .. }) if *error_code == VarInt::from_u32(code))
}

/// How the other side closed a connection.
async fn ended(connection: &Connection) -> ConnectionError {
    soon("the connection ends", connection.closed()).await
}

/// Fetches one layer of two groups to see that a provider answers.
async fn answers(connection: &Connection, blob: &Honest) {
    let disk = Disk::new();
    let partial = disk.partial(blob);
    let got = soon("served", get(connection, partial.clone(), GroupSet::from(0..2), options())).await;
    got.end.expect("an honest provider");
    disk.seal(blob, &partial);
}

fn two_groups() -> Honest {
    Honest::new(20_000, 99)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_member_is_cut_off_at_once() {
    let (provider, revoked, other) = (Host::start(), Host::start(), Host::start());
    acquaint(&[&provider, &revoked, &other]);
    let blob = two_groups();
    provider.disk.import(&[&blob]);
    let (cut, kept) = (revoked.dial(&provider).await, other.dial(&provider).await);
    answers(&cut, &blob).await;
    // A stream that would stay open for ever, and a connection in the other direction.
    let mut watched = observe(&cut, Honest::new(1, 7).layer).await.expect("open");
    soon("an item", watched.next()).await.expect("valid");

    provider.revoke(&revoked.key);
    let reason = ended(&cut).await;
    assert!(closed_with(&reason, close::NOT_A_MEMBER), "{reason}");
    assert!(soon("the stream ends", watched.next()).await.is_err());
    answers(&kept, &blob).await;

    // It may knock again, and hears why it is not let in; nothing is served before that.
    let again = revoked.dial(&provider).await;
    let disk = Disk::new();
    let got = soon("refused", get(&again, disk.partial(&blob), GroupSet::from(0..2), options())).await;
    assert!(matches!(got.end, Err(GetError::Lost(_))) && got.stored.is_empty(), "{:?}", got.end);
    assert!(closed_with(&ended(&again).await, close::NOT_A_MEMBER));
    // Nor is it asked for anything.
    let refused = provider.plane.connect(revoked.key, &[revoked.addr()]).await;
    assert!(matches!(refused, Err(GetError::Lost(why)) if why.contains("not a member")));

    // Admitted again, it is served again.
    provider.admit([revoked.key]);
    answers(&revoked.dial(&provider).await, &blob).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_the_revoked_member_accepted_is_cut_too() {
    let (provider, revoked) = (Host::start(), Host::start());
    acquaint(&[&provider, &revoked]);
    let blob = two_groups();
    provider.disk.import(&[&blob]);
    // We dialled; it asks over our connection.
    let ours = provider.dial(&revoked).await;
    let theirs = revoked.dial(&provider).await;
    answers(&theirs, &blob).await;
    provider.revoke(&revoked.key);
    assert!(matches!(ended(&ours).await, ConnectionError::LocallyClosed));
    assert!(closed_with(&ended(&theirs).await, close::NOT_A_MEMBER));
    soon("no connection is left", async {
        while !provider.plane.connections().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_and_others_keys_are_refused() {
    let provider = Host::start();
    let stranger = Raw::new();
    let connection = stranger.dial(provider.key, provider.addr()).await;
    assert!(closed_with(&ended(&connection).await, close::NOT_A_MEMBER));
    // Who expects another host at an address does not connect.
    provider.admit([stranger.key]);
    let wrong = stranger.dial_as(ALPN_DATA, Raw::new().key, provider.addr()).await;
    assert!(wrong.is_err());
    let unknown = stranger.dial_as(b"weighlock/data/9", provider.key, provider.addr()).await;
    assert!(unknown.is_err());
    // One connection for one purpose: nothing is served to who came to join.
    let joiner = stranger.dial_as(ALPN_JOIN, provider.key, provider.addr()).await.expect("open to all");
    let blob = two_groups();
    provider.disk.import(&[&blob]);
    let disk = Disk::new();
    let got = soon("no layer", get(&joiner, disk.partial(&blob), GroupSet::from(0..2), options())).await;
    assert!(got.end.is_err() && got.stored.is_empty());
}

/// A door that counts who waits in it and lets them through by permits.
fn slow_door() -> (JoinDoor, Arc<Semaphore>, Arc<AtomicUsize>) {
    let (permits, inside) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let state = (permits.clone(), inside.clone());
    let door: JoinDoor = Arc::new(move |_, request| {
        let (permits, inside) = state.clone();
        Box::pin(async move {
            inside.fetch_add(1, Ordering::SeqCst);
            permits.acquire().await.expect("open").forget();
            request
        })
    });
    (door, permits, inside)
}

async fn knock(raw: &Raw, host: &Host) -> Result<Vec<u8>, ConnectionError> {
    let connection = raw.dial_as(ALPN_JOIN, host.key, host.addr()).await?;
    let exchange = async {
        let (mut send, mut recv) = connection.open_bi().await.ok()?;
        send.write_all(b"let me in").await.ok()?;
        send.finish().ok()?;
        recv.read_to_end(1000).await.ok()
    };
    match exchange.await {
        Some(answer) => Ok(answer),
        None => Err(connection.closed().await),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn join_attempts_are_limited_in_all_and_by_address() {
    let (door, permits, inside) = slow_door();
    let config = DataConfig {
        joins_max: 3,
        joins_per_address_max: 2,
        connect_timeout_s: 100,
        ..DataConfig::default()
    };
    let host = Arc::new(Host::with(Disk::new(), config, door));
    let address = |last: u8| SocketAddr::from(([127, 0, 0, last], 0));
    let mut waiting = Vec::new();
    let mut enter = |from: SocketAddr| {
        let host = host.clone();
        waiting.push(tokio::spawn(async move { knock(&Raw::at(from, |_| {}), &host).await }));
    };
    let all_inside = async |count: usize| {
        soon("they are inside", async {
            while inside.load(Ordering::SeqCst) < count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    };
    let refused = async |from: SocketAddr| {
        let answer = soon("an answer", knock(&Raw::at(from, |_| {}), &host)).await;
        assert!(matches!(&answer, Err(e) if closed_with(e, close::LIMIT)), "{from}: {answer:?}");
    };

    enter(address(1));
    enter(address(1));
    all_inside(2).await;
    refused(address(1)).await;
    enter(address(2));
    all_inside(3).await;
    // All places are taken, whoever comes.
    refused(address(2)).await;
    refused(address(3)).await;

    permits.add_permits(3);
    for one in waiting {
        let answer = soon("an answer", one).await.expect("no panic");
        assert_eq!(answer.expect("let in"), b"let me in");
    }
    permits.add_permits(2);
    for last in [1, 3] {
        soon("places are free again", async {
            while knock(&Raw::at(address(last), |_| {}), &host).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_joiner_that_says_nothing_or_too_much_loses_its_place() {
    let config = DataConfig { joins_max: 1, connect_timeout_s: 1, ..DataConfig::default() };
    let host = Host::with(Disk::new(), config, echo());
    let silent = Raw::new();
    let connection = silent.dial_as(ALPN_JOIN, host.key, host.addr()).await.expect("open to all");
    assert!(closed_with(&ended(&connection).await, close::LIMIT));

    let talker = Raw::new();
    let connection = talker.dial_as(ALPN_JOIN, host.key, host.addr()).await.expect("open to all");
    let (mut send, _recv) = connection.open_bi().await.expect("a stream");
    let flood = async {
        let mut sent = 0u64;
        while send.write_all(&[0; 65536]).await.is_ok() {
            sent += 65536;
        }
        sent
    };
    let sent = soon("the flood is stopped", flood).await;
    assert!(sent < 16 << 20, "{sent} bytes of a join request were taken");
    soon("the place is free again", async {
        while knock(&Raw::new(), &host).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_streams_than_allowed_wait_and_hurt_nobody() {
    let config = DataConfig { streams_max: 8, ..DataConfig::default() };
    let host = Host::with(Disk::new(), config, echo());
    let blob = two_groups();
    host.disk.import(&[&blob]);
    let (flooder, other) = (Raw::new(), Raw::new());
    host.admit([flooder.key, other.key]);
    let connection = flooder.dial(host.key, host.addr()).await;
    let mut held = Vec::new();
    for _ in 0..8 {
        let (mut send, recv) = soon("a stream", connection.open_bi()).await.expect("open");
        // A request that never ends.
        send.write_all(&[0]).await.expect("sent");
        held.push((send, recv));
    }
    let ninth = connection.open_bi();
    tokio::pin!(ninth);
    let calm = answers_twice(&host, &other, &blob);
    tokio::select! {
        () = calm => {}
        _ = &mut ninth => panic!("a ninth stream was granted"),
    }
    // Two go, one comes: credit is given back in portions of more than an eighth.
    for _ in 0..2 {
        let (mut send, _) = held.pop().expect("eight");
        send.finish().expect("open");
    }
    let (mut send, mut recv) = soon("a stream", ninth).await.expect("open");
    let request = Request::get(blob.layer, &GroupSet::from(0..2), blob.size());
    send.write_all(&request.encode()).await.expect("sent");
    send.finish().expect("open");
    let response = soon("served", recv.read_to_end(1 << 20)).await.expect("whole");
    assert_eq!(response.len() as u64, 8 + 64 + blob.size());
}

async fn answers_twice(host: &Host, other: &Raw, blob: &Honest) {
    let connection = other.dial(host.key, host.addr()).await;
    answers(&connection, blob).await;
    answers(&connection, blob).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_asks_and_does_not_read_starves_nobody() {
    let config = DataConfig { streams_max: 8, uploads_max: 4, ..DataConfig::default() };
    let host = Host::with(Disk::new(), config, echo());
    let (big, small) = (Honest::new(8 << 20, 5), two_groups());
    host.disk.import(&[&big, &small]);
    let (greedy, other) = (Raw::new(), Raw::new());
    host.admit([greedy.key, other.key]);
    let request = Request::get(big.layer, &all_groups(big.size()), big.size()).encode();
    let mut unread = Vec::new();
    // Its part of the uploads is one, however many connections it has.
    for _ in 0..4 {
        let connection = greedy.dial(host.key, host.addr()).await;
        for _ in 0..2 {
            let (mut send, mut recv) = connection.open_bi().await.expect("a stream");
            send.write_all(&request).await.expect("sent");
            send.finish().expect("open");
            if unread.is_empty() {
                // It is being served when its first bytes are here.
                let mut size = [0; 8];
                soon("served", recv.read_exact(&mut size)).await.expect("a size");
            }
            unread.push((connection.clone(), recv));
        }
    }
    // Not only once the greedy one was given up.
    let others = tokio::time::timeout(Duration::from_secs(20), answers_twice(&host, &other, &small));
    others.await.expect("served beside it");
    let mut size = [0; 8];
    for (_, recv) in &mut unread[1..] {
        let more = tokio::time::timeout(Duration::from_millis(50), recv.read_exact(&mut size));
        assert!(more.await.is_err(), "a second upload of one member at once");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_begins_long_requests_and_does_not_end_them_keeps_nobody_from_asking() {
    // Far longer than this test waits.
    let config = DataConfig { long_requests_max: 4, request_timeout_s: 600, ..DataConfig::default() };
    let host = Host::with(Disk::new(), config, echo());
    let (greedy, other) = (Raw::new(), Raw::new());
    host.admit([greedy.key, other.key]);
    let mut begun = Vec::new();
    for _ in 0..4 {
        let connection = greedy.dial(host.key, host.addr()).await;
        for _ in 0..4 {
            let (mut send, recv) = connection.open_bi().await.expect("a stream");
            send.write_all(&[0; 5_000]).await.expect("sent");
            begun.push((connection.clone(), send, recv));
        }
    }
    // They are being read when a short one, begun later on the same connection, is answered.
    let blob = two_groups();
    host.disk.import(&[&blob]);
    for (connection, ..) in begun.iter().step_by(4) {
        answers(connection, &blob).await;
    }
    let connection = other.dial(host.key, host.addr()).await;
    let (mut send, mut recv) = connection.open_bi().await.expect("a stream");
    send.write_all(&[0; 5_000]).await.expect("sent");
    send.finish().expect("open");
    // Of no meaning, so it is refused, which takes that it was read.
    let refused = soon("an answer", recv.read_to_end(10)).await.expect_err("refused");
    assert!(matches!(refused, quinn::ReadToEndError::Read(quinn::ReadError::Reset(_))), "{refused:?}");
}

/// Says hello with these bytes and returns the connection.
async fn greeting(raw: &Raw, host: &Host, bytes: &[u8]) -> Connection {
    let connection = raw.dial(host.key, host.addr()).await;
    let mut stream = connection.open_uni().await.expect("a stream");
    stream.write_all(bytes).await.expect("sent");
    stream.finish().expect("open");
    connection
}

#[tokio::test(flavor = "multi_thread")]
async fn hellos_of_another_cluster_or_malformed_ones_close_the_connection() {
    let host = Host::start();
    let blob = two_groups();
    host.disk.import(&[&blob]);
    let raw = Raw::new();
    host.admit([raw.key]);
    let hello =
        |cluster| Hello { version: 1, cluster, capabilities: u64::MAX, software: "99.0.0".into() }.encode();
    let over = u16::try_from(HELLO_BYTES_MAX + 1).expect("small").to_be_bytes();
    let cut = hello(CLUSTER).len() - 3;
    let bad =
        [hello(ClusterId([1; 32])), over.to_vec(), vec![0xff; 100], vec![0, 3, 0xff, 0xff, 0xff], vec![0, 0]];
    for bytes in bad {
        let connection = greeting(&raw, &host, &bytes).await;
        let reason = ended(&connection).await;
        assert!(closed_with(&reason, close::PROTOCOL), "{bytes:?}: {reason}");
    }
    for good in [hello(CLUSTER), hello(CLUSTER)[..cut].to_vec()] {
        // What is cut short claims nothing wrong.
        answers(&greeting(&raw, &host, &good).await, &blob).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_that_connect_and_say_nothing_only_take_their_places() {
    let config = DataConfig { connections_max: 3, connect_timeout_s: 1, ..DataConfig::default() };
    let host = Host::with(Disk::new(), config, echo());
    let blob = two_groups();
    host.disk.import(&[&blob]);
    let raws: Vec<Raw> = (0..4).map(|_| Raw::new()).collect();
    host.admit(raws.iter().map(|raw| raw.key));
    let mut silent =
        vec![raws[0].dial(host.key, host.addr()).await, raws[1].dial(host.key, host.addr()).await];
    let talking = raws[2].dial(host.key, host.addr()).await;
    answers(&talking, &blob).await;
    let refused = soon("an answer", raws[3].dial_as(ALPN_DATA, host.key, host.addr())).await;
    assert!(refused.is_err(), "a fourth connection was let in");
    // Longer than a hello may take: silence alone is no offence.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(silent.iter().all(|connection| connection.close_reason().is_none()));
    answers(&talking, &blob).await;

    silent.pop().expect("two").close(VarInt::from_u32(0), b"");
    let connection = soon("the place is free again", async {
        loop {
            match raws[3].dial_as(ALPN_DATA, host.key, host.addr()).await {
                Ok(connection) => break connection,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    })
    .await;
    answers(&connection, &blob).await;
    // Packets that are no QUIC at all.
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a free port");
    for n in 0..200u8 {
        socket.send_to(&crate::plane::bytes(1200, n.into()), host.addr()).expect("sent");
    }
    answers(&talking, &blob).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hosts_that_dial_each_other_at_once_both_get_through() {
    let (a, b) = (Host::start(), Host::start());
    acquaint(&[&a, &b]);
    let (from_a, from_b) = (Honest::new(300_000, 1), Honest::new(300_001, 2));
    a.disk.import(&[&from_a]);
    b.disk.import(&[&from_b]);
    let fetch = async |from: &Host, to: &Host, blob: &Honest| {
        let partial = to.disk.partial(blob);
        let all = all_groups(blob.size()).boundaries()[1];
        let tasks: Vec<_> = (0..all)
            .map(|group| {
                let (plane, key, addr) = (to.plane.clone(), from.key, from.addr());
                let partial = partial.clone();
                tokio::spawn(async move {
                    let connection = plane.connect(key, &[addr]).await.expect("it answers");
                    get(&connection, partial, GroupSet::from(group..group + 1), options()).await.end
                })
            })
            .collect();
        for task in tasks {
            soon("fetched", task).await.expect("no panic").expect("served");
        }
        assert_eq!(bytes_in(&partial.have(), blob.size()), blob.size());
        to.disk.seal(blob, &partial);
    };
    tokio::join!(fetch(&a, &b, &from_a), fetch(&b, &a, &from_b));
    let keys: Vec<KeyId> = a.plane.connections().into_iter().map(|(key, ..)| key).collect();
    assert!((1..=2).contains(&keys.len()) && keys.iter().all(|key| *key == b.key));
    a.stop().await;
    let reason = soon("b notices", async {
        while !b.plane.connections().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    reason.await;
}
