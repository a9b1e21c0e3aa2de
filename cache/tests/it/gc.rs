//! What is in use stays while everything else goes; what nobody needs goes; pins and last uses survive a restart.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use weighlock_cache::{Commit, Garbage, GarbageKind, Pin, Store, StoreConfig, StoreError};
use weighlock_protocol::manifest::Manifest;
use weighlock_protocol::wire::bao::{GROUP_BYTES, all_groups};
use weighlock_protocol::{LayerId, ManifestDigest};

use crate::support::{add, config, data, layer_path, open, plan, proven, stage, tree};

fn kinds(garbage: &[Garbage]) -> Vec<(GarbageKind, bool)> {
    garbage.iter().map(|one| (one.kind, one.due)).collect()
}

#[test]
fn a_leased_artifact_stays_and_shared_layers_stay_with_who_has_them() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(&dir.path().join("store"));
    let (shared, own) = (data(1, 90_000), data(2, 50_000));
    let one = add(&store, &plan(&dir.path().join("one"), &[("base", shared.clone()), ("own", own.clone())]));
    let two = add(&store, &plan(&dir.path().join("two"), &[("base", shared.clone())]));
    let lease = store.lease(one.digest());
    assert_eq!(store.evict(&one.digest()).expect("asked"), None);
    assert_eq!(store.leased().get(&one.digest()), Some(&1));
    drop(lease);
    let freed = store.evict(&one.digest()).expect("gone").expect("not leased");
    assert!((50_000..60_000).contains(&freed), "{freed}");
    assert!(store.layer(&LayerId::of(&own)).expect("layer").is_none());
    assert!(!layer_path(store.dir(), &LayerId::of(&own)).exists());
    assert!(store.manifest_complete(&two).expect("complete"));
    assert_eq!(store.held().expect("held"), [two.digest()]);
    assert!(tree(&store.dir().join("staging")).is_empty());
    assert!(matches!(store.evict(&ManifestDigest::of(b"?")), Err(StoreError::NoManifest(_))));
    assert!(store.garbage().expect("garbage").is_empty());
}

#[test]
fn leftovers_are_found_and_go_and_nothing_else() {
    let dir = tempfile::tempdir().expect("dir");
    let old = StoreConfig { partial_keep_s: 0, view_keep_s: 3600, ..config("boot 1") };
    let store = Store::open(dir.path().join("store"), old).expect("opens");
    let kept = add(&store, &plan(&dir.path().join("kept"), &[("a", data(1, 40_000))]));
    let begun = data(2, 3 * GROUP_BYTES as usize);
    let (id, items) = proven(&begun, &all_groups(begun.len() as u64));
    {
        let partial = store.partial(&id, begun.len() as u64).expect("partial");
        partial.write(&items).expect("write");
        assert!(store.garbage().expect("garbage").is_empty(), "somebody has it open");
        store.seal(&partial).expect("seal");
    }
    let (other, _) = proven(&data(3, 50_000), &all_groups(50_000));
    drop(store.partial(&other, 50_000).expect("partial"));
    let view = store.view(&kept).expect("view");
    std::thread::sleep(Duration::from_millis(1100));
    let garbage = store.garbage().expect("garbage");
    assert_eq!(kinds(&garbage), [(GarbageKind::Partial, true), (GarbageKind::Layer, true)]);
    for one in &garbage {
        assert!(store.sweep(one).expect("swept").expect("not needed") > 0);
        let again = if one.kind == GarbageKind::Layer { 0 } else { one.bytes };
        assert_eq!(store.sweep(one).expect("swept"), Some(again));
    }
    assert!(store.layer(&id).expect("layer").is_none());
    assert!(tree(&store.dir().join("partial")).is_empty());
    assert!(view.exists() && store.manifest_complete(&kept).expect("complete"));

    // A directory goes once it is idle: when room is needed, or at once when it is a copy of nothing that is here.
    let hour_ago = std::time::SystemTime::now() - Duration::from_secs(7200);
    let marker = std::fs::File::open(view.join(".weighlock/digest")).expect("marker");
    marker.set_modified(hour_ago).expect("set");
    assert_eq!(kinds(&store.garbage().expect("garbage")), [(GarbageKind::View, false)]);
    store.remove_layer(&kept.files()[0].id).expect("removed");
    let garbage = store.garbage().expect("garbage");
    assert_eq!(kinds(&garbage), [(GarbageKind::View, true)]);
    store.sweep(&garbage[0]).expect("swept");
    assert!(!view.exists());
}

#[test]
fn a_directory_that_is_handed_out_again_before_it_goes_stays() {
    let dir = tempfile::tempdir().expect("dir");
    let an_hour = StoreConfig { view_keep_s: 3600, ..config("boot 1") };
    let store = Store::open(dir.path().join("store"), an_hour).expect("opens");
    let kept = add(&store, &plan(&dir.path().join("kept"), &[("a", data(1, 40_000))]));
    let view = store.view(&kept).expect("view");
    let idle = || {
        let marker = std::fs::File::open(view.join(".weighlock/digest")).expect("marker");
        marker.set_modified(std::time::SystemTime::now() - Duration::from_secs(7200)).expect("set");
    };
    idle();
    let garbage = store.garbage().expect("garbage");
    assert_eq!(kinds(&garbage), [(GarbageKind::View, false)]);
    assert_eq!(store.view(&kept).expect("view"), view);
    assert_eq!(store.sweep(&garbage[0]).expect("asked"), None);
    assert!(view.join("a").exists());
    idle();
    assert!(store.sweep(&garbage[0]).expect("swept").is_some());
    assert!(!view.exists());
    assert_eq!(store.sweep(&garbage[0]).expect("asked"), None, "gone already");
}

#[test]
fn what_is_needed_again_at_the_last_moment_stays() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(&dir.path().join("store"));
    let one = add(&store, &plan(&dir.path().join("one"), &[("a", data(1, 40_000))]));
    let digest = one.digest();
    // It became the head of a channel, say, after it was chosen.
    let asked = store.evict_if(&digest, || {
        assert!(store.try_lease(digest).is_none(), "nobody opens it until that is decided");
        Ok::<_, StoreError>(false)
    });
    assert_eq!(asked.expect("asked"), None);
    // A pin is a change, and does not wait for who looks.
    let pin = Pin { name: "acme/bot:1.0.0".into(), reason: None, since: 7 };
    let asked = store.evict_if(&digest, || store.pin(&digest, &pin).map(|()| true));
    assert_eq!(asked.expect("asked"), None);
    assert!(store.unpin(&digest).expect("unpinned"));
    // Nobody can tell.
    let asked = store.evict_if(&digest, || Err(StoreError::NoManifest(digest)));
    assert!(matches!(asked, Err(StoreError::NoManifest(_))), "{asked:?}");
    assert_eq!(store.held().expect("held"), [digest]);
    assert!(store.manifest_complete(&one).expect("complete"));
    // Somebody has it open: then there is nothing to ask.
    let lease = store.try_lease(digest).expect("the mark was taken away each time");
    let asked = store.evict_if(&digest, || -> Result<bool, StoreError> { panic!("it is leased") });
    assert_eq!(asked.expect("asked"), None);
    drop(lease);
    let gone = store.evict_if(&digest, || Ok::<_, StoreError>(true)).expect("asked");
    assert!(gone.is_some_and(|bytes| bytes >= 40_000), "{gone:?}");
    assert!(store.held().expect("held").is_empty());
}

#[test]
fn quarantine_is_bounded_by_age_and_bytes() {
    let dir = tempfile::tempdir().expect("dir");
    let bounded = StoreConfig { quarantine_bytes_max: 100_000, quarantine_keep_s: 3600, ..config("boot 1") };
    let store = Store::open(dir.path().join("store"), bounded).expect("opens");
    for name in ["older", "newer"] {
        std::fs::write(store.dir().join("quarantine").join(name), data(1, 60_000)).expect("written");
        // Longer than a tick of the clock that file systems go by.
        std::thread::sleep(Duration::from_millis(50));
    }
    let due = |store: &Store| {
        let garbage = store.garbage().expect("garbage");
        ["older", "newer"].map(|name| garbage.iter().find(|one| one.name == name).map(|one| one.due))
    };
    assert_eq!(due(&store), [Some(true), Some(false)], "too many bytes");
    drop(store);
    let kept_for = |quarantine_keep_s: u64| {
        let config = StoreConfig { quarantine_keep_s, ..config("boot 1") };
        Store::open(dir.path().join("store"), config).expect("opens")
    };
    std::thread::sleep(Duration::from_millis(1100));
    assert_eq!(due(&kept_for(3600)), [Some(false), Some(false)]);
    assert_eq!(due(&kept_for(0)), [Some(true), Some(true)], "too old");
}

#[test]
fn pins_and_last_uses_survive_and_go_with_their_artifact() {
    let dir = tempfile::tempdir().expect("dir");
    let pin = Pin { name: "acme/bot:1.0.0".into(), reason: Some("audit".into()), since: 7 };
    let digest = {
        let store = open(&dir.path().join("store"));
        let digest = add(&store, &plan(&dir.path().join("one"), &[("a", data(1, 40_000))])).digest();
        store.note_used(&digest, 2000);
        store.note_used(&digest, 1000);
        store.note_used(&ManifestDigest::of(b"not here"), 1000);
        store.flush_used().expect("flushed");
        store.pin(&digest, &pin).expect("pinned");
        digest
    };
    let store = open(&dir.path().join("store"));
    assert_eq!(store.last_used(&digest), Some(2000));
    assert_eq!(store.last_used(&ManifestDigest::of(b"not here")), None, "only what is held has a row");
    assert_eq!(store.holdings().expect("held")[0].last_used, 2000);
    assert_eq!(store.pins().expect("pins").get(&digest), Some(&pin));
    assert_eq!(store.evict(&digest).expect("asked"), None, "it is pinned");
    assert!(store.unpin(&digest).expect("unpinned"));
    assert!(!store.unpin(&digest).expect("unpinned"));
    store.evict(&digest).expect("evicted");
    drop(store);
    assert_eq!(open(&dir.path().join("store")).last_used(&digest), None);
}

#[test]
fn a_removal_that_was_cut_is_finished_at_the_next_open() {
    type Row = (u64, Option<[u8; 32]>, i64, u64, u64);
    const LAYERS: redb::TableDefinition<'_, [u8; 32], Row> = redb::TableDefinition::new("layers_v2");
    const GONE: redb::TableDefinition<'_, [u8; 32], ()> = redb::TableDefinition::new("gone_v1");
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("store");
    let (kept, lost) = {
        let store = open(&path);
        let one =
            add(&store, &plan(&dir.path().join("one"), &[("a", data(1, 40_000)), ("b", data(2, 40_000))]));
        (one.files()[0].id, one.files()[1].id)
    };
    {
        // As after the transaction and before the files went; one of both has come back since.
        let db = redb::Database::open(path.join("weighlock.redb")).expect("open");
        let txn = db.begin_write().expect("begin");
        txn.open_table(LAYERS).expect("table").remove(lost.0).expect("removed");
        let mut gone = txn.open_table(GONE).expect("table");
        gone.insert(lost.0, ()).expect("inserted");
        gone.insert(kept.0, ()).expect("inserted");
        drop(gone);
        txn.commit().expect("commit");
    }
    let store = open(&path);
    assert!(!layer_path(&path, &lost).exists(), "its file went");
    assert!(store.open_sealed(&kept).is_ok());
    assert!(store.recovery().registered.is_empty() && store.recovery().lost.is_empty());
}

/// Layers with their bytes.
type Layers = Vec<(LayerId, Vec<u8>)>;

/// Collects all the time while others open, fetch and add what shares layers: what they lease stays whole until they
/// let go of it, and each finds what it opened.
#[test]
fn nothing_in_use_disappears_beside_a_collector_that_never_rests() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(&dir.path().join("store"));
    let base = data(99, 5 * GROUP_BYTES as usize);
    let artifacts: Vec<(Manifest, Layers)> = (0..4u64)
        .map(|n| {
            let own = data(n, 3 * GROUP_BYTES as usize + n as usize);
            let source =
                plan(&dir.path().join(format!("s{n}")), &[("base", base.clone()), ("own", own.clone())]);
            let manifest = add(&store, &source);
            let read = |layer: &weighlock_protocol::manifest::Layer| {
                (layer.id, std::fs::read(layer_path(store.dir(), &layer.id)).expect("read"))
            };
            let layers = manifest.layers().map(read).collect();
            (manifest, layers)
        })
        .collect();
    let stop = AtomicBool::new(false);
    let (evicted, refused, opened) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    // Pauses from a small generator of each thread's own.
    let pause = |seed: &mut u64| {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        std::thread::sleep(Duration::from_micros((*seed >> 33) % 1500));
        *seed >> 33
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut seed = 1;
            while !stop.load(Ordering::Relaxed) {
                let n = pause(&mut seed);
                match store.evict(&artifacts[n as usize % 4].0.digest()).expect("evict") {
                    Some(_) => evicted.fetch_add(1, Ordering::Relaxed),
                    None => refused.fetch_add(1, Ordering::Relaxed),
                };
                for one in store.garbage().expect("garbage") {
                    store.sweep(&one).expect("sweep");
                }
            }
        });
        for worker in 0..3u64 {
            let (store, artifacts, stop, opened) = (&store, &artifacts, &stop, &opened);
            scope.spawn(move || {
                let mut seed = worker + 10;
                while !stop.load(Ordering::Relaxed) {
                    let n = pause(&mut seed);
                    let (manifest, layers) = &artifacts[n as usize % 4];
                    // The lease first, then the look.
                    let lease = store.lease(manifest.digest());
                    let (_, complete) = store.begin(manifest).expect("begin");
                    for (id, bytes) in layers.iter().filter(|_| !complete) {
                        let partial = match store.partial(id, bytes.len() as u64) {
                            Err(StoreError::AlreadySealed(_)) => continue,
                            partial => partial.expect("partial"),
                        };
                        let (_, items) = proven(bytes, &partial.missing());
                        partial.write(&items).expect("write");
                        pause(&mut seed);
                        // Another worker may have sealed the same.
                        match store.seal(&partial) {
                            Ok(_) | Err(StoreError::NotHeld(_)) => {}
                            Err(e) => panic!("{e}"),
                        }
                    }
                    pause(&mut seed);
                    for (id, bytes) in layers {
                        let sealed = store.open_sealed(id).unwrap_or_else(|e| panic!("leased, and {e}"));
                        assert_eq!(&std::fs::read(&sealed.path).expect("read"), bytes);
                    }
                    pause(&mut seed);
                    assert!(store.manifest_complete(manifest).expect("complete"), "all that time");
                    if n % 7 == 0 {
                        assert!(store.view(manifest).expect("view").join("own").exists());
                    }
                    drop(lease);
                    opened.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let (store, stop, dir) = (&store, &stop, dir.path());
        scope.spawn(move || {
            let (mut seed, mut n) = (77, 0);
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                let source = plan(&dir.join("added"), &[("base", data(99, 5 * GROUP_BYTES as usize))]);
                let staged = stage(store, &source).expect("import");
                let manifest = staged.manifest().clone();
                let lease = store.lease(manifest.digest());
                store.commit(Commit { staged: Some(staged), ..Commit::default() }).expect("commit");
                pause(&mut seed);
                assert!(store.manifest_complete(&manifest).expect("complete"), "add {n}");
                drop(lease);
                store.evict(&manifest.digest()).expect("evict");
            }
        });
        let began = Instant::now();
        let enough = || evicted.load(Ordering::Relaxed) > 40 && opened.load(Ordering::Relaxed) > 60;
        while (!enough() || began.elapsed() < Duration::from_secs(3))
            && began.elapsed() < Duration::from_secs(60)
        {
            std::thread::sleep(Duration::from_millis(20));
        }
        stop.store(true, Ordering::Relaxed);
    });
    let counts = [&evicted, &refused, &opened].map(|count| count.load(Ordering::Relaxed));
    assert!(counts[0] > 10 && counts[1] > 0 && counts[2] > 10, "it did something: {counts:?}");
    // What the store says is what lies there.
    let recorded: BTreeSet<String> = store.layers().expect("layers").iter().map(|(id, _)| id.hex()).collect();
    let there: BTreeSet<String> = tree(&store.dir().join("layers"))
        .into_iter()
        .filter(|name| !name.ends_with(".obao"))
        .map(|name| name.rsplit('/').next().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(recorded, there);
    assert!(tree(&store.dir().join("staging")).is_empty());
}

#[test]
fn what_is_used_after_the_clock_was_set_back_does_not_go_first() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(&dir.path().join("store"));
    let of = |n: u64| ManifestDigest::of(&n.to_le_bytes());
    store.note_used(&of(1), 1_000_000);
    store.note_used(&of(2), 1_000_000 - 3600);
    assert_eq!(store.last_used(&of(2)), Some(1_000_000));
    store.note_used(&of(3), 1_000_010);
    assert_eq!(store.last_used(&of(3)), Some(1_000_010));
    // One that was years ahead by mistake does not drag all others along.
    store.note_used(&of(4), 90_000_000);
    store.note_used(&of(5), 1_000_020);
    assert_eq!(store.last_used(&of(5)), Some(1_000_020));
}
