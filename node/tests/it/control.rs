//! Control plane between real swarms on 127.0.0.1.

mod manifest;
mod memory;
mod raw;
mod strangers;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use libp2p::identity::Keypair;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use weighlock::net::control::{ControlConfig, ControlError, ControlEvent, ControlHandle, Direction, start};
use weighlock_protocol::wire::control::{HeldManifest, HostRecord};
use weighlock_protocol::{ClusterId, KeyId, ManifestDigest, StatementId};

use memory::Memory;

const CLUSTER: ClusterId = ClusterId([7; 32]);
/// Long enough for a busy machine; no test waits for it to pass.
const PATIENCE: Duration = Duration::from_secs(120);

struct Node {
    handle: ControlHandle,
    backend: Arc<Memory>,
    cancel: CancellationToken,
    task: JoinHandle<()>,
}

impl Node {
    async fn start(adjust: impl FnOnce(&mut ControlConfig), backend: Memory) -> Node {
        let listen = vec!["127.0.0.1:0".parse().expect("an address")];
        let mut config = ControlConfig::new(Keypair::generate_ed25519(), CLUSTER, listen);
        config.mdns = false;
        // What a test sees happen comes of its own doing, not of a timer.
        config.timing.reconcile_interval = Duration::from_secs(3600);
        adjust(&mut config);
        let (backend, cancel) = (Arc::new(backend), CancellationToken::new());
        let (handle, driver) = start(config, backend.clone(), cancel.clone()).await.expect("it starts");
        Node { handle, backend, cancel, task: tokio::spawn(driver.run()) }
    }

    async fn plain() -> Node {
        Node::start(|_| {}, Memory::default()).await
    }

    fn key(&self) -> KeyId {
        self.handle.key()
    }

    fn addr(&self) -> SocketAddr {
        self.handle.listen_addrs()[0]
    }

    async fn admit(&self, others: &[KeyId]) {
        self.handle.set_members(others.iter().copied().collect()).await.expect("running");
    }

    async fn dial(&self, other: &Node) {
        self.handle.dial(other.key(), vec![other.addr()]).await.expect("running");
    }

    async fn announce(&self) {
        self.handle.announce(HostRecord::new(CLUSTER, self.key())).await.expect("a valid record");
    }

    /// Publishes a statement as the daemon does: committed first.
    async fn publish(&self, statement: &[u8], manifest: Option<&[u8]>) {
        self.backend.insert(statement);
        let manifest = manifest.map(<[u8]>::to_vec);
        self.handle.publish_statements(vec![statement.to_vec()], manifest).await.expect("running");
    }

    async fn is_connected_to(&self, other: &Node) -> bool {
        self.handle.peers().await.expect("running").iter().any(|p| p.key == other.key())
    }

    async fn connected_to(&self, other: &Node) {
        let start = Instant::now();
        while !self.is_connected_to(other).await {
            assert!(start.elapsed() < PATIENCE, "they never connected");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn stop(self) {
        self.cancel.cancel();
        self.task.await.expect("the driver ends without a panic");
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn event(
    events: &mut tokio::sync::broadcast::Receiver<ControlEvent>,
    what: &str,
    is: impl Fn(&ControlEvent) -> bool,
) -> ControlEvent {
    let wait = async {
        loop {
            let event = events.recv().await.expect("no event was lost");
            if is(&event) {
                return event;
            }
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never happened: {what}"))
}

/// Two nodes that know each other; the first dialled.
async fn pair() -> (Node, Node) {
    let (a, b) = (Node::plain().await, Node::plain().await);
    for node in [&a, &b] {
        node.admit(&[a.key(), b.key()]).await;
    }
    a.dial(&b).await;
    a.connected_to(&b).await;
    b.connected_to(&a).await;
    (a, b)
}

#[tokio::test]
async fn a_pair_knows_each_other_at_once_and_a_leaver_is_forgotten() {
    let (a, b) = (Node::plain().await, Node::plain().await);
    let mut record = HostRecord::new(CLUSTER, a.key());
    record.hardware = "cpu/x86-64-v4".into();
    record.labels.insert("rack".into(), "r1".into());
    record.hold([HeldManifest { digest: ManifestDigest([3; 32]), complete: true }]);
    a.handle.announce(record.clone()).await.expect("a valid record");
    b.announce().await;
    for node in [&a, &b] {
        node.admit(&[a.key(), b.key()]).await;
    }
    a.dial(&b).await;
    let (at_a, at_b) = (a.handle.host_records(), b.handle.host_records());
    until("both records on both sides", || at_a.borrow().len() == 2 && at_b.borrow().len() == 2).await;
    let seen = at_b.borrow().get(&a.key()).expect("it is there").record.clone();
    assert!(seen.seq > 0 && seen.control_addrs == vec![a.addr()]);
    assert_eq!((&seen.hardware, &seen.labels, &seen.held), (&record.hardware, &record.labels, &record.held));

    record.hardware = "any".into();
    a.handle.announce(record).await.expect("a valid record");
    until("the change at b", || at_b.borrow()[&a.key()].record.hardware == "any").await;

    a.connected_to(&b).await;
    let peers = a.handle.peers().await.expect("running");
    assert_eq!((peers[0].direction, peers[0].addrs.as_slice()), (Direction::Outbound, &[b.addr()][..]));
    a.stop().await;
    until("b forgets a", || at_b.borrow().keys().eq([&b.key()])).await;
    b.stop().await;
}

#[tokio::test]
async fn gossip_reaches_a_third_host_through_the_middle_and_rubbish_stops_there() {
    // Look-ups of providers would connect the outer two.
    let seek = |peers_max| {
        move |c: &mut ControlConfig| {
            c.limits.peers_max = peers_max;
            c.kad = false;
        }
    };
    let a = Node::start(seek(1), Memory::default()).await;
    let b = Node::start(seek(0), Memory::default()).await;
    let c = Node::start(seek(1), Memory::default()).await;
    for node in [&a, &b, &c] {
        node.admit(&[a.key(), b.key(), c.key()]).await;
    }
    let mut at_b = b.handle.events().expect("running");
    let mut at_c = c.handle.events().expect("running");
    let mut at_a = a.handle.events().expect("running");
    a.dial(&b).await;
    c.dial(&b).await;
    // The first reconciliation begins when the subscription is known: from then on gossip reaches.
    event(&mut at_a, "a reconciles with b", |e| matches!(e, ControlEvent::Reconciled { .. })).await;
    event(&mut at_c, "c reconciles with b", |e| matches!(e, ControlEvent::Reconciled { .. })).await;
    let mut reconciled = BTreeSet::new();
    while reconciled.len() < 2 {
        if let ControlEvent::Reconciled { peer, .. } =
            event(&mut at_b, "b reconciles with both", |e| matches!(e, ControlEvent::Reconciled { .. })).await
        {
            reconciled.insert(peer);
        }
    }
    a.publish(b"ok: publish {}", Some(b"{}")).await;
    let news = event(&mut at_c, "news at c", |e| matches!(e, ControlEvent::StatementsIngested { .. })).await;
    assert_eq!(news, ControlEvent::StatementsIngested { from: b.key(), accepted: 1 });
    assert_eq!(
        c.backend.gossiped(),
        [StatementId::of(b"ok: publish {}")],
        "by gossip, not by reconciliation"
    );
    assert_eq!(c.backend.manifests(), [ManifestDigest::of(b"{}")]);
    assert!(!a.is_connected_to(&c).await);

    // Cannot be judged by b: it goes no further, and nobody is at fault.
    a.publish(b"odd: of a later release", None).await;
    until("b ignores it", || b.handle.stats().gossip_ignored == 1).await;
    // Rubbish: it goes no further, and a is put out.
    a.publish(b"bad: forged", None).await;
    let ban = event(&mut at_b, "b bans a", |e| matches!(e, ControlEvent::Banned { .. })).await;
    assert!(matches!(ban, ControlEvent::Banned { peer, .. } if peer == a.key()));
    event(&mut at_a, "a is put out", |e| *e == ControlEvent::Disconnected(b.key())).await;
    b.publish(b"ok: afterwards", None).await;
    until("c has what came afterwards", || c.backend.has(b"ok: afterwards")).await;
    assert!(!b.backend.has(b"bad: forged") && !c.backend.has(b"bad: forged"));
    assert_eq!(c.backend.gossiped().len(), 2, "neither reached c");
    for node in [a, b, c] {
        node.stop().await;
    }
}

#[tokio::test]
async fn a_late_joiner_reconciles_both_ways() {
    let (a, b) = (Node::plain().await, Node::plain().await);
    for n in 0..1000 {
        a.backend.insert(format!("ok: old {n}").as_bytes());
    }
    for n in 0..300 {
        b.backend.insert(format!("ok: new {n}").as_bytes());
        b.backend.insert(format!("ok: old {n}").as_bytes());
    }
    let mut at_b = b.handle.events().expect("running");
    for node in [&a, &b] {
        node.admit(&[a.key(), b.key()]).await;
    }
    b.dial(&a).await;
    event(&mut at_b, "the reconciliation", |e| matches!(e, ControlEvent::Reconciled { .. })).await;
    until("equal sets", || a.backend.ids() == b.backend.ids()).await;
    assert_eq!(a.backend.ids().len(), 1300);
    let taken = a.handle.stats().statements_ingested + b.handle.stats().statements_ingested;
    until("each counted once", || {
        a.handle.stats().statements_ingested + b.handle.stats().statements_ingested == 1000
    })
    .await;
    assert!(taken <= 1000);
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn reconciliation_pages_through_a_bucket_that_fits_no_message() {
    let (a, b) = (
        Node::start(|_| {}, Memory::with_buckets(1)).await,
        Node::start(|_| {}, Memory::with_buckets(1)).await,
    );
    // More ids than one message holds, and bodies that need many messages.
    for n in 0..9000 {
        a.backend.insert(format!("ok: a {n} {}", "x".repeat(200)).as_bytes());
    }
    for n in 0..50 {
        b.backend.insert(format!("ok: b {n}").as_bytes());
    }
    for node in [&a, &b] {
        node.admit(&[a.key(), b.key()]).await;
    }
    b.dial(&a).await;
    until("equal sets", || a.backend.ids().len() == 9050 && b.backend.ids().len() == 9050).await;
    assert_eq!(a.handle.stats().offences + b.handle.stats().offences, 0);
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn manifests_are_had_for_the_asking_by_members() {
    let (a, b) = pair().await;
    let large = vec![b'x'; 3 << 20];
    let digest = b.backend.add_manifest(&large);
    assert_eq!(a.handle.request_manifest(b.key(), digest).await, Ok(large));
    let other = ManifestDigest([9; 32]);
    let missing = ControlError::NotFound { peer: b.key(), digest: other };
    assert_eq!(a.handle.request_manifest(b.key(), other).await, Err(missing));
    // A host that hands out other bytes under that name is put out.
    b.backend.lie_about(other, b"something else");
    let lie = a.handle.request_manifest(b.key(), other).await;
    assert!(matches!(lie, Err(ControlError::Request { .. })), "{lie:?}");
    until("a bans b", || a.handle.stats().offences == 1).await;
    let banned = a.handle.request_manifest(b.key(), digest).await;
    assert_eq!(banned, Err(ControlError::NotMember(b.key())));
    a.stop().await;
    assert_eq!(
        b.handle.request_manifest(KeyId([1; 32]), digest).await,
        Err(ControlError::NotMember(KeyId([1; 32])))
    );
    b.stop().await;
}

#[tokio::test]
async fn providers_are_found_through_others() {
    let one = |c: &mut ControlConfig| c.limits.peers_max = 1;
    let a = Node::start(one, Memory::default()).await;
    let b = Node::start(|c| c.limits.peers_max = 0, Memory::default()).await;
    let c = Node::start(one, Memory::default()).await;
    for node in [&a, &b, &c] {
        node.admit(&[a.key(), b.key(), c.key()]).await;
    }
    a.dial(&b).await;
    c.dial(&b).await;
    for node in [&a, &c] {
        node.connected_to(&b).await;
    }
    let digest = ManifestDigest([5; 32]);
    let start = Instant::now();
    loop {
        // Until the routing tables know each other, a record may reach nobody.
        a.handle.provide(digest).await.expect("within the limit");
        if c.handle.providers(digest).await.expect("running") == [a.key()] {
            break;
        }
        assert!(start.elapsed() < PATIENCE, "never found");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(c.handle.providers(ManifestDigest([6; 32])).await, Ok(vec![]));
    for node in [a, b, c] {
        node.stop().await;
    }
}

#[tokio::test]
async fn a_taken_port_is_an_error_and_a_stopped_plane_says_so() {
    let a = Node::plain().await;
    let addr = a.addr();
    let config = ControlConfig::new(Keypair::generate_ed25519(), CLUSTER, vec![addr]);
    let second = start(config, Arc::new(Memory::default()), CancellationToken::new()).await;
    let Err(error) = second else { panic!("two control planes on one port") };
    assert!(matches!(&error, ControlError::Listen { addr: at, .. } if *at == addr), "{error}");
    let handle = a.handle.clone();
    a.stop().await;
    assert_eq!(handle.peers().await, Err(ControlError::Stopped));
    assert!(handle.events().is_err());
}
