//! A disk that is full at any write of any phase: nothing is lost, nothing shows by halves, and work goes on with room.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use weighlock_cache::{Commit, Store, StoreConfig, StoreError, Wanted};
use weighlock_protocol::manifest::Manifest;
use weighlock_protocol::wire::bao::{GROUP_BYTES, GroupSet};
use weighlock_protocol::{LayerId, StatementId};

use crate::support::{config, data, layer_path, plan, proven, stage, tree};

pub(crate) fn is_full(error: &StoreError) -> bool {
    matches!(error, StoreError::NoSpace { .. } | StoreError::Quota { .. })
}

/// Opens a store that this process has just let go of. A fork for another test's command holds all locks for a moment.
fn open_again(path: &Path, config: &impl Fn() -> StoreConfig) -> Result<Store, StoreError> {
    let patience = std::time::Instant::now() + std::time::Duration::from_secs(10);
    loop {
        match Store::open(path, config()) {
            Err(StoreError::Locked { .. }) if std::time::Instant::now() < patience => {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            opened => return opened,
        }
    }
}

/// A small file system of its own, unmounted on drop.
pub(crate) struct Disk(pub(crate) PathBuf);

impl Disk {
    /// `None`, and a word on standard error, where nobody may mount.
    pub(crate) fn new(path: &Path, bytes: u64) -> Option<Self> {
        std::fs::create_dir_all(path).expect("dir");
        // Not by a command: a fork holds the locks of all stores of this process for a moment.
        let size = std::ffi::CString::new(format!("size={bytes}")).expect("no NUL");
        if mount("tmpfs", path, "tmpfs", MountFlags::empty(), Some(size.as_c_str())).is_ok() {
            return Some(Self(path.to_owned()));
        }
        eprintln!("SKIPPED: a tmpfs cannot be mounted here (needs root), so no disk was filled");
        None
    }

    /// Takes all space that is left.
    pub(crate) fn fill(&self) -> PathBuf {
        self.fill_but(0)
    }

    /// Takes all space that is left but `spare` bytes.
    fn fill_but(&self, spare: u64) -> PathBuf {
        use std::io::Write;
        let path = self.0.join("filler");
        let mut file = std::fs::File::create(&path).expect("created");
        for chunk in [1 << 20, 4096] {
            while file.write_all(&vec![7; chunk]).is_ok() {}
        }
        let len = file.metadata().expect("there").len();
        file.set_len(len.saturating_sub(spare)).expect("cut");
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

pub(crate) fn statement(n: u64) -> (StatementId, Vec<u8>) {
    let bytes = data(n, 3000);
    (StatementId::of(&bytes), bytes)
}

const ROOM: u64 = 16 << 20;
const PAGE: u64 = 4096;
/// What a store does, in this order. Each can be done again.
const PHASES: [&str; 9] = ["commit", "add", "fetch", "view", "set aside", "heal", "let go", "sweep", "adopt"];
const COMMIT: usize = 0;
const ADD: usize = 1;
const FETCH: usize = 2;
const SET_ASIDE: usize = 4;
const HEAL: usize = 5;
const LET_GO: usize = 6;
const ADOPT: usize = 8;

/// One life of a store.
struct Life {
    sources: PathBuf,
    fetched: Vec<u8>,
    id: LayerId,
    /// What another tool has brought, in a file of its own.
    found: PathBuf,
    found_id: LayerId,
}

impl Life {
    fn new(sources: &Path) -> Self {
        let (fetched, found) = (data(3, 100_000), data(4, 60_000));
        std::fs::create_dir_all(sources).expect("dir");
        let path = sources.join("found");
        std::fs::write(&path, &found).expect("written");
        Self {
            sources: sources.to_owned(),
            id: LayerId::of(&fetched),
            fetched,
            found: path,
            found_id: LayerId::of(&found),
        }
    }

    fn files() -> [(&'static str, Vec<u8>); 2] {
        [("a", data(1, 60_000)), ("b", data(2, 5000))]
    }

    fn act(&self, store: &Store, phase: usize) -> Result<(), StoreError> {
        let held = || -> Result<Option<Manifest>, StoreError> {
            let Some(digest) = store.held()?.first().copied() else { return Ok(None) };
            let bytes = store.manifest(&digest)?.expect("known");
            Ok(Some(Manifest::parse(&bytes)?))
        };
        match phase {
            COMMIT => (0..5).try_for_each(|n| store.append_statements(&[statement(n)])),
            ADD => {
                let staged = stage(store, &plan(&self.sources, &Self::files()))?;
                store.commit(Commit { staged: Some(staged), ..Commit::default() })
            }
            FETCH | HEAL => match store.partial(&self.id, self.fetched.len() as u64) {
                Err(StoreError::AlreadySealed(_)) => Ok(()),
                partial => {
                    let partial = partial?;
                    for part in proven(&self.fetched, &partial.missing()).1.chunks(2) {
                        partial.write(part)?;
                    }
                    partial.checkpoint()?;
                    store.seal(&partial).map(drop)
                }
            },
            3 => store.view(&held()?.expect("added")).map(drop),
            SET_ASIDE => {
                let path = layer_path(store.dir(), &self.id);
                if store.layer(&self.id)?.is_some() {
                    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).expect("opened");
                    let file = std::fs::File::options().write(true).open(&path).expect("opened");
                    file.write_all_at(&[self.fetched[50_000] ^ 1], 50_000).expect("written over");
                }
                store.scrub(&self.id, 0, &mut |_| true).map(drop)
            }
            LET_GO => held()?.map_or(Ok(()), |manifest| store.evict(&manifest.digest()).map(drop)),
            ADOPT => {
                let lease = store.lease_layers(BTreeSet::new())?;
                let wanted = Wanted { layers: BTreeSet::from([self.found_id]), dry_run: false };
                store.take_layer(&self.found, &wanted, &lease)?.expect("it is the layer");
                Ok(())
            }
            _ => {
                let healed = self.id.hex();
                let unneeded = store.garbage()?.into_iter().filter(|one| one.name != healed);
                unneeded.map(|one| store.sweep(&one)).try_for_each(|swept| swept.map(drop))
            }
        }
    }

    /// What was done is there, and nothing is half-done. `done` phases came to their end, the next one may have begun.
    fn check(&self, store: &Store, done: usize, when: &str) {
        for n in (0..5).filter(|_| done > COMMIT) {
            let (id, bytes) = statement(n);
            assert_eq!(store.statement(&id).expect("read"), Some(bytes), "{when}: statement {n}");
        }
        let complete = |digest| {
            let bytes = store.manifest(digest).expect("read").expect("known");
            store.manifest_complete(&Manifest::parse(&bytes).expect("a manifest")).expect("read")
        };
        let held = store.held().expect("held");
        assert!(held.iter().all(complete), "{when}: an artifact by halves");
        assert!(held.len() == 1 || !(ADD + 1..LET_GO).contains(&done), "{when}: what was added is gone");
        let rots = done == SET_ASIDE;
        for (id, info) in
            store.layers().expect("layers").into_iter().filter(|(id, _)| *id != self.id || !rots)
        {
            let sealed = store.open_sealed(&id).unwrap_or_else(|e| panic!("{when}: {e}"));
            let bytes = std::fs::read(&sealed.path).expect("read");
            assert_eq!((LayerId::of(&bytes), bytes.len() as u64), (id, info.size), "{when}");
        }
        let adopted = store.layer(&self.found_id).expect("read").is_some();
        assert!(adopted || done <= ADOPT, "{when}: what was adopted is gone");
        let sealed = store.layer(&self.id).expect("read").is_some();
        if done > HEAL || (FETCH + 1..=SET_ASIDE).contains(&done) && !rots {
            assert!(sealed, "{when}: it was sealed");
        }
        if done == HEAL {
            assert!(!sealed || store.open_sealed(&self.id).is_ok(), "{when}: wrong bytes are handed out");
        }
        for view in std::fs::read_dir(store.dir().join("views")).expect("listed").flatten() {
            let hidden = view.file_name().to_string_lossy().starts_with('.');
            for (name, bytes) in Self::files() {
                let read = std::fs::read(view.path().join(name)).ok();
                assert!(hidden || read == Some(bytes), "{when}: a view by halves");
            }
        }
    }
}

/// Bytes that are left when a phase begins: each page at first, as far as files are written, then what the database wants.
fn spares() -> impl Iterator<Item = u64> {
    (0..48).map(|pages| pages * PAGE).chain((0..16).map(|n| (256 << 10) + n * (128 << 10)))
}

#[test]
fn a_disk_that_is_full_at_any_write_loses_nothing_and_work_goes_on_when_it_has_room() {
    let dir = tempfile::tempdir().expect("dir");
    let life = Life::new(&dir.path().join("sources"));
    let mut stopped = BTreeMap::<(&str, bool), Vec<u64>>::new();
    for (phase, reserve) in (0..PHASES.len()).flat_map(|phase| [(phase, 0), (phase, 1 << 20)]) {
        let mut well = 0;
        for spare in spares() {
            let Some(disk) = Disk::new(&dir.path().join("disk"), ROOM) else { return };
            let path = disk.0.join("store");
            let config = || StoreConfig { metadata_reserve_bytes: reserve, ..config("boot 1") };
            let store = Store::open(&path, config()).expect("opens");
            for before in 0..phase {
                life.act(&store, before).expect("there is room");
            }
            let filler = disk.fill_but(spare);
            let when = format!("{}, {spare} bytes left, {reserve} in reserve", PHASES[phase]);
            let done = match life.act(&store, phase) {
                Ok(()) => phase + 1,
                Err(e) => {
                    assert!(is_full(&e) && !e.to_string().contains('\n'), "{when}: {e}");
                    stopped.entry((PHASES[phase], reserve > 0)).or_default().push(spare);
                    phase
                }
            };
            well = if done > phase { well + 1 } else { 0 };
            life.check(&store, done, &when);
            let left = tree(&path.join("staging"));
            assert!(left.is_empty(), "{when}: {left:?} lies about");
            // The same process goes on once there is room; or another one, which may have tried before.
            let store = if spare % (2 * PAGE) == 0 {
                std::fs::remove_file(filler).expect("removed");
                store
            } else {
                drop(store);
                match open_again(&path, &config) {
                    Ok(store) => life.check(&store, done, &format!("{when}, opened again")),
                    Err(e) => assert!(is_full(&e), "{when}, opened again: {e}"),
                }
                std::fs::remove_file(filler).expect("removed");
                open_again(&path, &config).unwrap_or_else(|e| panic!("{when}, opened with room: {e}"))
            };
            life.check(&store, done, &format!("{when}, with room"));
            for (next, phase) in PHASES.iter().enumerate().skip(done) {
                life.act(&store, next).unwrap_or_else(|e| panic!("{when}, then {phase}: {e}"));
                life.check(&store, next + 1, &format!("{when}, then {phase}"));
            }
            if well > 1 {
                break;
            }
        }
    }
    eprintln!("the disk was full with so many bytes left: {stopped:?}");
    for phase in ["commit", "add", "fetch", "view", "set aside", "heal", "adopt"] {
        assert!(stopped.contains_key(&(phase, false)), "no disk ended in {phase}: {stopped:?}");
    }
    // What must work on a full disk does, with the reserve.
    for phase in ["commit", "set aside", "let go"] {
        assert_eq!(stopped.get(&(phase, true)), None, "{phase}");
    }
    let first = |phase| stopped.get(&(phase, true)).map(Vec::len);
    for phase in ["add", "fetch", "view", "adopt"] {
        assert!(first(phase) > Some(10), "{phase}: {stopped:?}");
    }
}

#[test]
fn what_was_begun_in_memory_tells_how_much_room_it_still_needs() {
    let dir = tempfile::tempdir().expect("dir");
    let Some(disk) = Disk::new(&dir.path().join("disk"), 64 << 20) else { return };
    let bytes = data(1, 8 << 20);
    let size = bytes.len() as u64;
    let id = LayerId::of(&bytes);
    for (path, thin) in [(disk.0.join("store"), true), (dir.path().join("store"), false)] {
        let store = Store::open(&path, config("boot")).expect("opened");
        let partial = store.partial(&id, size).expect("begun");
        // A real disk reserves it all, if it can.
        let at_first = partial.roomless_bytes().expect("stat");
        assert!(if thin { at_first == size } else { at_first == 0 || at_first == size }, "{at_first}");
        let half = GroupSet::from(0..size / GROUP_BYTES / 2);
        partial.write(&proven(&bytes, &half).1).expect("written");
        assert_eq!(partial.roomless_bytes().expect("stat"), at_first / 2, "thin: {thin}");
        partial.write(&proven(&bytes, &partial.missing()).1).expect("written");
        assert_eq!(partial.roomless_bytes().expect("stat"), 0, "thin: {thin}");
    }
}
