//! Room is promised before the first byte and never twice; a full disk loses nothing, and what is said still goes in.

use weighlock_cache::{Commit, Store, StoreConfig, StoreError};
use weighlock_protocol::LayerId;

use crate::full::{Disk, is_full, statement};
use crate::support::{add, config, data, plan, stage};

#[test]
fn two_are_never_promised_the_same_room() {
    let dir = tempfile::tempdir().expect("dir");
    let quota = StoreConfig { quota_bytes: 1 << 20, ..config("boot 1") };
    let store = Store::open(dir.path().join("store"), quota).expect("opens");
    let (a, b) = (data(1, 600_000), data(2, 600_000));
    let layer = |bytes: &[u8]| (LayerId::of(bytes), bytes.len() as u64);
    let first = store.reserve(&[layer(&a)]).expect("room");
    let error = store.reserve(&[layer(&b)]).expect_err("promised already");
    assert!(matches!(error, StoreError::Quota { quota_bytes: 1_048_576, .. }), "{error}");
    assert!(store.short_bytes(layer(&b).1).expect("short") > 100_000);
    let again = store.reserve(&[layer(&a)]).expect("the same layer takes no room twice");
    drop(first);
    assert!(store.reserve(&[layer(&b)]).is_err(), "somebody still waits for it");
    // Begun: what was promised is there now, and counts once.
    drop(store.partial(&layer(&a).0, layer(&a).1).expect("in the room that was promised"));
    assert!(store.reserve(&[layer(&b)]).is_err());
    assert!(store.partial(&layer(&b).0, layer(&b).1).is_err(), "nor without a promise");
    let source = plan(&dir.path().join("b"), &[("b", b.clone())]);
    assert!(matches!(stage(&store, &source), Err(StoreError::Quota { .. })));
    drop(again);
    store.remove_partial(&layer(&a).0).expect("removed");
    let staged = stage(&store, &source).expect("there is room again");
    assert!(store.reserve(&[layer(&a)]).is_err(), "what is staged counts");
    store.commit(Commit { staged: Some(staged), ..Commit::default() }).expect("commit");
    assert!(store.reserve(&[layer(&a)]).is_err(), "once");
    assert_eq!(store.short_bytes(0).expect("short"), 0);
    drop(store.reserve(&[(LayerId([7; 32]), 300_000)]).expect("and what is left is free"));
}

#[test]
fn what_is_said_goes_in_on_a_full_disk_and_layers_can_be_let_go_of() {
    let dir = tempfile::tempdir().expect("dir");
    let Some(disk) = Disk::new(&dir.path().join("disk"), 16 << 20) else { return };
    let reserve = StoreConfig { metadata_reserve_bytes: 4 << 20, ..config("boot 1") };
    let store = Store::open(disk.0.join("store"), reserve.clone()).expect("opens");
    let kept = add(&store, &plan(&dir.path().join("a"), &[("a", data(1, 2 << 20))]));
    assert_eq!(store.usage().expect("usage").reserve_bytes, 4 << 20);
    let filler = disk.fill();
    assert_eq!(store.free_bytes().expect("free"), 0);
    let error = stage(&store, &plan(&dir.path().join("b"), &[("b", data(2, 100_000))])).expect_err("full");
    assert!(is_full(&error) && !error.to_string().contains('\n'), "{error}");
    assert!(store.set_setting("x", Some(&1)).is_err_and(|e| is_full(&e)), "what can wait does");

    // A rollback and its head.
    let (id, bytes) = statement(1);
    let heads = vec![("acme/bot:production on any".to_owned(), Some(b"one".to_vec()))];
    let commit = Commit { statements: vec![(id, bytes.clone())], heads, ..Commit::default() };
    store.commit(commit).expect("goes in from the reserve");
    assert_eq!(store.usage().expect("usage").reserve_bytes, 0);
    store.refill_reserve();
    assert_eq!(store.usage().expect("usage").reserve_bytes, 0, "there is no room for it");
    std::fs::File::options()
        .append(true)
        .open(&filler)
        .map(|mut file| {
            use std::io::Write;
            while file.write_all(&[7; 4096]).is_ok() {}
        })
        .expect("filled again");

    // Filled again after the reserve was used, nothing can be written; with room it can.
    assert!(store.evict(&kept.digest()).is_err_and(|e| is_full(&e)));
    std::fs::remove_file(filler).expect("removed");
    assert!(store.evict(&kept.digest()).expect("evicted").is_some());
    store.refill_reserve();
    assert_eq!(store.usage().expect("usage").reserve_bytes, 4 << 20);
    drop(store);
    let store = Store::open(disk.0.join("store"), reserve).expect("opens again");
    assert_eq!(store.statement(&id).expect("read"), Some(bytes));
    assert_eq!(store.heads().expect("heads").len(), 1);
}

#[test]
fn what_begun_layers_lack_in_memory_is_promised_once_and_counted_once() {
    let dir = tempfile::tempdir().expect("dir");
    let Some(disk) = Disk::new(&dir.path().join("disk"), 16 << 20) else { return };
    let quota = StoreConfig { quota_bytes: 11 << 20, ..config("boot 1") };
    let store = Store::open(disk.0.join("store"), quota).expect("opens");
    let free = store.free_bytes().expect("free");
    let room = store.reserve(&[(LayerId([7; 32]), 6 << 20)]).expect("room");
    let begun = store.partial(&LayerId([7; 32]), 6 << 20).expect("begun");
    assert!(store.free_bytes().expect("free") > free - (1 << 20), "its pages come with its bytes");
    // The quota has all of it once, so 4 MiB more fit and 5 do not.
    drop(store.reserve(&[(LayerId([8; 32]), 4 << 20)]).expect("under the quota"));
    let over = store.reserve(&[(LayerId([8; 32]), 5 << 20)]).expect_err("over the quota");
    assert!(matches!(over, StoreError::Quota { .. }), "{over}");
    assert_eq!(store.short_bytes(4 << 20).expect("short"), 0);
    drop((room, begun, store));
    // So has the disk, also for who opens the layer again later.
    let store = Store::open(disk.0.join("store"), config("boot 1")).expect("opens again");
    let begun = store.begun(&LayerId([7; 32])).expect("read").expect("it was begun");
    let left = store.free_bytes().expect("free") - (6 << 20);
    let over = store.reserve(&[(LayerId([8; 32]), left + (1 << 20))]).expect_err("promised to the other");
    assert!(matches!(over, StoreError::NoSpace { .. }), "{over}");
    drop((store.reserve(&[(LayerId([8; 32]), left - (1 << 20))]).expect("and what is left is free"), begun));
}
