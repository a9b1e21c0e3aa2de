//! A manifest that nobody has now: asked for again as hosts connect, given up at once where there is nobody.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tokio::sync::watch;
use weighlock::error::Kind;
use weighlock::fetch::{FetchLimits, Fetcher};
use weighlock_cache::inspect;

use super::*;
use crate::plane::{Disk, Host, soon};

/// A fetcher with nothing in its store, over real planes.
fn fetcher(node: &Node, host: &Host, members: &watch::Sender<Arc<BTreeSet<KeyId>>>) -> Fetcher {
    let limits = FetchLimits {
        swarm: Default::default(),
        stall: PATIENCE,
        patience: PATIENCE,
        silent_patience: PATIENCE,
        // A test that waited for it to pass would fail before.
        manifest_patience: 10 * PATIENCE,
        room_bytes_min: 1 << 20,
        delta: Default::default(),
    };
    Fetcher::new(
        host.disk.store.clone(),
        node.handle.clone(),
        host.plane.clone(),
        limits,
        members.subscribe(),
        &Default::default(),
        watch::Sender::new(0),
        node.cancel.clone(),
    )
}

/// The bytes of a manifest as `weighlock add` makes it.
fn manifest() -> Vec<u8> {
    let disk = Disk::new();
    let source = disk.dir.path().join("notes.txt");
    std::fs::write(&source, "some bytes").expect("written");
    let plan = inspect::plan(&source, &Default::default()).expect("a plan");
    let staged = disk.store.import(&plan, &Default::default(), &|_| {}, &AtomicBool::new(false));
    staged.expect("imported").manifest().bytes().to_vec()
}

#[tokio::test]
async fn a_manifest_is_asked_for_again_when_a_host_connects() {
    let bytes = manifest();
    let (a, b) = (Node::plain().await, Node::plain().await);
    let digest = b.backend.add_manifest(&bytes);
    for node in [&a, &b] {
        node.admit(&[a.key(), b.key()]).await;
    }
    let host = Host::start();
    let members = watch::Sender::new(Arc::new(BTreeSet::from([b.key()])));
    let fetcher = fetcher(&a, &host, &members);
    assert!(fetcher.manifest_now(digest).await.expect("asked").is_none(), "nobody is connected");
    let asking = tokio::spawn({
        let fetcher = fetcher.clone();
        async move { fetcher.manifest(digest).await }
    });
    a.dial(&b).await;
    let found = soon("the manifest comes", asking).await.expect("no panic").expect("b has it");
    assert_eq!((found.digest(), found.bytes().as_ref()), (digest, &bytes[..]));
    assert!(host.disk.store.manifest(&digest).expect("store").is_some(), "it stays");
    host.stop().await;
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn a_host_that_is_alone_asks_nobody() {
    let a = Node::plain().await;
    let host = Host::start();
    let members = watch::Sender::new(Arc::default());
    let fetcher = fetcher(&a, &host, &members);
    let missing = soon("it gives up", fetcher.manifest(ManifestDigest([3; 32]))).await;
    let error = missing.expect_err("there is nobody");
    assert!(error.kind == Kind::Unavailable && error.message.contains("alone"), "{error}");

    // With a member that is away it waits, until the daemon stops.
    members.send_replace(Arc::new(BTreeSet::from([KeyId([1; 32])])));
    let waiting = tokio::spawn({
        let fetcher = fetcher.clone();
        async move { fetcher.manifest(ManifestDigest([3; 32])).await }
    });
    a.cancel.cancel();
    let error = soon("it ends", waiting).await.expect("no panic").expect_err("nobody came");
    assert_eq!(error.kind, Kind::Unavailable, "{error}");
    host.stop().await;
    a.stop().await;
}
