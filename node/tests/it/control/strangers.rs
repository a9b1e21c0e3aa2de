//! What a stranger, a former member and a member that misbehaves get: nothing.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use libp2p::identity::Keypair;
use weighlock::net::control::{ControlEvent, keypair_id, quic_addr, tcp_addr};
use weighlock_protocol::StatementId;
use weighlock_protocol::wire::control::{Request, Response};

use super::memory::{self, Memory};
use super::raw::{Outcome, Raw};
use super::{CLUSTER, Node, PATIENCE, event, pair, until};

#[tokio::test]
async fn a_stranger_gets_nothing_on_either_transport() {
    let (a, b) = pair().await;
    a.publish(b"ok: secret", None).await;
    until("b has it", || b.backend.has(b"ok: secret")).await;
    let requests = [
        Request::Summary { summary: memory::empty_summary().into() },
        Request::Statements { ids: vec![StatementId::of(b"ok: secret")] },
        Request::Push { statements: vec![b"ok: planted".to_vec().into()] },
    ];
    let mut refused = 0;
    for addr in [quic_addr(a.addr()), tcp_addr(a.addr())] {
        for request in &requests {
            // A valid identity that knows every protocol name, but is not admitted.
            let mut stranger = Raw::new(Keypair::generate_ed25519(), CLUSTER);
            let outcome = stranger.ask(a.key(), addr.clone(), request.encode()).await;
            assert_eq!(outcome, Outcome::Refused, "{addr} {request:?}");
            assert!(stranger.gossip.is_empty(), "no gossip either");
            refused += 1;
            until("the refusal is counted", || a.handle.stats().strangers_refused >= refused).await;
        }
    }
    // A whole daemon of the same cluster that believes itself admitted.
    let stranger = Node::plain().await;
    stranger.admit(&[a.key(), b.key(), stranger.key()]).await;
    stranger.announce().await;
    stranger.publish(b"ok: planted", None).await;
    stranger.dial(&a).await;
    until("it is refused too", || a.handle.stats().strangers_refused > refused).await;
    // The other way round: a member told to dial a key that is not admitted does not.
    a.dial(&stranger).await;
    a.publish(b"ok: more", None).await;
    until("b has it", || b.backend.has(b"ok: more")).await;
    assert!(stranger.backend.ids() == BTreeSet::from([StatementId::of(b"ok: planted")]));
    assert!(stranger.handle.host_records().borrow().keys().eq([&stranger.key()]));
    for node in [&a, &b] {
        assert!(!node.backend.has(b"ok: planted"));
        assert_eq!(node.handle.peers().await.expect("running").len(), 1);
    }
    for node in [a, b, stranger] {
        node.stop().await;
    }
}

#[tokio::test]
async fn the_raw_peer_is_answered_once_it_is_admitted() {
    // So that the refusals above show something.
    let a = Node::plain().await;
    a.backend.insert(b"ok: one");
    let keypair = Keypair::generate_ed25519();
    a.admit(&[keypair_id(&keypair).expect("an Ed25519 pair")]).await;
    for addr in [quic_addr(a.addr()), tcp_addr(a.addr())] {
        let mut raw = Raw::new(keypair.clone(), CLUSTER);
        let request = Request::Statements { ids: vec![StatementId::of(b"ok: one")] };
        let Outcome::Answer(bytes) = raw.ask(a.key(), addr, request.encode()).await else {
            panic!("no answer");
        };
        let statements = vec![b"ok: one".to_vec().into()];
        assert_eq!(Response::decode(&bytes), Ok(Response::Statements { statements, done: 1 }));
    }
    a.stop().await;
}

#[tokio::test]
async fn a_member_that_sends_rubbish_is_put_out_for_a_while() {
    let rubbish: [(&str, Vec<u8>); 4] = [
        ("no message", vec![1, 250, 3]),
        ("a lying length", [vec![1, 4], vec![0xff; 9]].concat()),
        ("an invalid summary", Request::Summary { summary: vec![1, 2].into() }.encode()),
        ("an invalid statement", Request::Push { statements: vec![b"bad: x".to_vec().into()] }.encode()),
    ];
    for (what, bytes) in rubbish {
        let a = Node::start(|c| c.timing.ban = Duration::from_secs(2), Memory::default()).await;
        let mut events = a.handle.events().expect("running");
        let keypair = Keypair::generate_ed25519();
        let key = keypair_id(&keypair).expect("an Ed25519 pair");
        a.admit(&[key]).await;
        let mut raw = Raw::new(keypair.clone(), CLUSTER);
        raw.ask(a.key(), quic_addr(a.addr()), bytes).await;
        let banned = event(&mut events, what, |e| matches!(e, ControlEvent::Banned { .. })).await;
        assert!(matches!(banned, ControlEvent::Banned { peer, .. } if peer == key), "{what}");
        assert_eq!(a.handle.stats().offences, 1, "{what}");
        assert!(a.backend.ids().is_empty(), "{what}");
        // It may come back when the ban has run out.
        let start = Instant::now();
        let request = Request::Statements { ids: vec![] }.encode();
        loop {
            let mut raw = Raw::new(keypair.clone(), CLUSTER);
            if matches!(raw.ask(a.key(), quic_addr(a.addr()), request.clone()).await, Outcome::Answer(_)) {
                break;
            }
            assert!(start.elapsed() < PATIENCE, "{what}: never let in again");
        }
        a.stop().await;
    }
}

#[tokio::test]
async fn removing_a_member_closes_its_connections() {
    let (a, b) = pair().await;
    let (mut at_a, mut at_b) = (a.handle.events().expect("running"), b.handle.events().expect("running"));
    a.announce().await;
    b.announce().await;
    let records = a.handle.host_records();
    until("a knows b", || records.borrow().contains_key(&b.key())).await;
    a.admit(&[a.key()]).await;
    event(&mut at_a, "a lets go", |e| *e == ControlEvent::Disconnected(b.key())).await;
    event(&mut at_b, "b is cut off", |e| *e == ControlEvent::Disconnected(a.key())).await;
    assert!(records.borrow().keys().eq([&a.key()]), "its record is gone too");
    a.publish(b"ok: after the removal", None).await;
    // b still believes in a, dials again, and is refused.
    until("b is refused", || a.handle.stats().strangers_refused >= 1).await;
    assert!(!b.backend.has(b"ok: after the removal"));
    a.admit(&[a.key(), b.key()]).await;
    until("b catches up once it is back", || b.backend.has(b"ok: after the removal")).await;
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn garbage_on_both_ports_changes_nothing() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let (a, b) = pair().await;
    let before = a.handle.peers().await.expect("running").len();
    let udp = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    let mut noise: Vec<u8> = (0..60_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for round in 0..50usize {
        noise.rotate_left(7);
        udp.send_to(&noise[..1 + (round * 29) % 1400], a.addr()).await.expect("sent");
        // Looks like the start of a QUIC connection.
        noise[0] = 0xc3;
        noise[1..5].copy_from_slice(&[0, 0, 0, 1]);
        udp.send_to(&noise[..1200], a.addr()).await.expect("sent");
    }
    for prefix in [&b""[..], b"GET / HTTP/1.1\r\n\r\n", b"\x13/multistream/1.0.0\n\x07/noise\n", &[0xff; 64]]
    {
        let mut tcp = tokio::net::TcpStream::connect(a.addr()).await.expect("it listens");
        let junk = [prefix, &noise[..]].concat();
        // The other side may hang up at any point; what counts is that it does, and survives.
        let _ = tcp.write_all(&junk).await;
        let _ = tcp.shutdown().await;
        let mut rest = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, tcp.read_to_end(&mut rest)).await.expect("it hangs up");
    }
    assert_eq!(a.handle.peers().await.expect("running").len(), before);
    assert_eq!(a.handle.stats().offences, 0);
    assert!(a.backend.ids().is_empty());
    b.publish(b"ok: as usual", None).await;
    until("a still listens", || a.backend.has(b"ok: as usual")).await;
    a.stop().await;
    b.stop().await;
}
