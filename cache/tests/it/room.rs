//! Room is promised before the first byte and never twice; a full disk loses nothing, and what is said still goes in.

use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use weighlock_cache::{Commit, Store, StoreConfig, StoreError};
use weighlock_protocol::wire::bao::all_groups;
use weighlock_protocol::{LayerId, StatementId};

use crate::support::{add, config, data, plan, proven, stage, tree};

fn is_full(error: &StoreError) -> bool {
    matches!(error, StoreError::NoSpace { .. } | StoreError::Quota { .. })
}

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

/// A small file system of its own, unmounted on drop.
struct Disk(PathBuf);

impl Disk {
    /// `None`, and a word on standard error, where nobody may mount.
    fn new(path: &Path, bytes: u64) -> Option<Self> {
        std::fs::create_dir_all(path).expect("dir");
        // Not by a command: a fork holds the locks of all stores of this process for a moment.
        let size = std::ffi::CString::new(format!("size={bytes}")).expect("no NUL");
        if mount("tmpfs", path, "tmpfs", MountFlags::empty(), Some(size.as_c_str())).is_ok() {
            return Some(Self(path.to_owned()));
        }
        eprintln!("SKIPPED: a tmpfs cannot be mounted here (needs root), so no disk was filled");
        None
    }

    fn resize(&self, bytes: u64) {
        mount_remount(&self.0, MountFlags::empty(), format!("size={bytes}")).expect("resized");
    }

    /// Takes all space that is left.
    fn fill(&self) -> PathBuf {
        use std::io::Write;
        let path = self.0.join("filler");
        let mut file = std::fs::File::create(&path).expect("created");
        for chunk in [1 << 20, 4096] {
            while file.write_all(&vec![7; chunk]).is_ok() {}
        }
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

fn statement(n: u64) -> (StatementId, Vec<u8>) {
    let bytes = data(n, 3000);
    (StatementId::of(&bytes), bytes)
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

/// What one run of everything did before the disk was full.
#[derive(Default)]
struct Done {
    statements: u64,
    added: bool,
    sealed: bool,
    evicted: bool,
    viewed: bool,
}

/// Adds, fetches, seals, commits, lets go of and hands out, up to the first error. What is done already is not done again.
fn everything(store: &Store, dir: &Path, done: &mut Done) -> Result<(), StoreError> {
    for n in 0..20 {
        if n >= done.statements {
            store.append_statements(&[statement(n)])?;
            done.statements = n + 1;
        }
    }
    let source = plan(&dir.join("source"), &[("a", data(1, 300_000)), ("b", data(2, 5000))]);
    if !done.added {
        let staged = stage(store, &source)?;
        store.commit(Commit { staged: Some(staged), ..Commit::default() })?;
        done.added = true;
    }
    let bytes = data(3, 400_000);
    let (id, items) = proven(&bytes, &all_groups(400_000));
    if !done.sealed {
        match store.partial(&id, 400_000) {
            Err(StoreError::AlreadySealed(_)) => {}
            partial => {
                let partial = partial?;
                for part in items.chunks(5) {
                    partial.write(part)?;
                }
                partial.checkpoint()?;
                store.seal(&partial)?;
            }
        }
        done.sealed = true;
    }
    let held = store.held()?;
    let digest = held.first().copied();
    if let (false, Some(digest)) = (done.viewed, digest) {
        let bytes = store.manifest(&digest)?.expect("known");
        store.view(&weighlock_protocol::manifest::Manifest::parse(&bytes)?)?;
        done.viewed = true;
    }
    if let (false, Some(digest)) = (done.evicted, digest) {
        store.evict(&digest)?;
        done.evicted = true;
    }
    for one in store.garbage()? {
        if one.name == id.hex() {
            continue;
        }
        store.sweep(&one)?;
    }
    Ok(())
}

/// What was said to be done is there, and nothing is half-done.
fn check(store: &Store, done: &Done, when: &str) {
    for n in 0..done.statements {
        let (id, bytes) = statement(n);
        assert_eq!(store.statement(&id).expect("read"), Some(bytes), "{when}: statement {n}");
    }
    let held = store.held().expect("held");
    if done.added && !done.evicted && held.is_empty() {
        panic!("{when}: what was added is gone");
    }
    for (id, info) in store.layers().expect("layers") {
        let sealed = store.open_sealed(&id).unwrap_or_else(|e| panic!("{when}: {e}"));
        let bytes = std::fs::read(&sealed.path).expect("read");
        assert_eq!((LayerId::of(&bytes), bytes.len() as u64), (id, info.size), "{when}");
    }
    if done.sealed {
        assert!(
            store.layer(&LayerId::of(&data(3, 400_000))).expect("layer").is_some(),
            "{when}: it was sealed"
        );
    }
}

#[test]
fn a_disk_that_is_full_at_any_point_loses_nothing_and_work_goes_on_when_it_has_room() {
    let dir = tempfile::tempdir().expect("dir");
    let room = 64 << 20;
    let mut stopped = std::collections::BTreeMap::<&str, usize>::new();
    // By steps of some pages: the disk ends in every phase.
    for size in (1_000..1_700u64).step_by(20).chain((1_700..4_000).step_by(100)).map(|kib| kib << 10) {
        let Some(disk) = Disk::new(&dir.path().join("disk"), size) else { return };
        let path = disk.0.join("store");
        let mut done = Done::default();
        let open = || Store::open(&path, config("boot 1"));
        let when = format!("{size} bytes");
        match open() {
            Err(e) => {
                assert!(is_full(&e), "{when}: {e}");
                *stopped.entry("open").or_default() += 1;
            }
            Ok(store) => {
                if let Err(e) = everything(&store, dir.path(), &mut done) {
                    assert!(is_full(&e), "{when}: {e}");
                    assert!(!e.to_string().contains('\n'), "one line: {e}");
                    let phase = match &done {
                        Done { added: false, statements: 0..20, .. } => "commit",
                        Done { added: false, .. } => "add",
                        Done { sealed: false, .. } => "fetch",
                        Done { viewed: false, .. } => "view",
                        Done { evicted: false, .. } => "gc",
                        _ => "sweep",
                    };
                    *stopped.entry(phase).or_default() += 1;
                } else {
                    *stopped.entry("nowhere").or_default() += 1;
                }
                check(&store, &done, &when);
                assert!(tree(&path.join("staging")).is_empty(), "{when}: nothing half-made lies about");
                // The same process goes on once there is room.
                disk.resize(room);
                everything(&store, dir.path(), &mut done)
                    .unwrap_or_else(|e| panic!("{when}, with room: {e}"));
                check(&store, &done, &when);
            }
        }
        disk.resize(room);
        // And so does the next.
        let store = open().unwrap_or_else(|e| panic!("{when}, opened again: {e}"));
        everything(&store, dir.path(), &mut done).unwrap_or_else(|e| panic!("{when}, opened again: {e}"));
        check(&store, &done, &when);
        drop(store);
        drop(disk);
    }
    eprintln!("the disk was full in: {stopped:?}");
    for phase in ["fetch", "nowhere"] {
        assert!(stopped.contains_key(phase), "no disk ended in {phase}: {stopped:?}");
    }
}
