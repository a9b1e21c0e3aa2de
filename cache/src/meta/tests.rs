//! The database on a disk that fills.

use std::io;
use std::sync::atomic::{AtomicI64, Ordering};

use redb::StorageBackend;
use redb::backends::FileBackend;

use super::*;

/// A file on a disk that others may fill.
#[derive(Debug)]
struct Disk {
    file: FileBackend,
    /// Writes that still go through.
    left: Arc<AtomicI64>,
}

impl Disk {
    fn room(&self) -> io::Result<()> {
        let left = self.left.fetch_sub(1, Ordering::Relaxed);
        if left <= 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.room()?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.room()?;
        self.file.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }
}

/// A database in `dir` that writes as often as `left` says.
fn open(dir: &Path, left: &Arc<AtomicI64>) -> Meta {
    let disk = left.clone();
    let open = move |path: &Path| {
        let file = std::fs::File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        let file = FileBackend::new(file)?;
        Database::builder().create_with_backend(Disk { file, left: disk.clone() })
    };
    let reserve = Reserve::new(dir.join("reserve"), 0);
    Meta::open_by(dir.join("meta.redb"), dir, Box::new(open), reserve).expect("opened")
}

#[test]
fn a_disk_that_was_full_to_the_last_byte_is_used_again_once_it_has_room() {
    let dir = tempfile::tempdir().expect("a directory");
    let left = Arc::new(AtomicI64::new(i64::MAX));
    let meta = open(dir.path(), &left);
    meta.set_setting("kept", Some(b"1")).expect("written");
    left.store(0, Ordering::Relaxed);
    for _ in 0..3 {
        let error = meta.set_setting("lost", Some(&[7; 100_000])).expect_err("full");
        assert!(matches!(error, StoreError::NoSpace { .. }), "{error}");
    }
    left.store(i64::MAX, Ordering::Relaxed);
    assert_eq!(meta.setting("kept").expect("read"), Some(b"1".to_vec()));
    assert_eq!(meta.setting("lost").expect("read"), None, "nothing half-written");
    meta.set_setting("lost", Some(b"2")).expect("written again");
    assert_eq!(meta.setting("lost").expect("read"), Some(b"2".to_vec()));
}

/// A rollback with its head, a pin, a last use, an artifact that goes: each all there or not at all.
fn steps(meta: &Meta) -> [Result<(), StoreError>; 4] {
    let (layer, digest) = (LayerId([7; 32]), ManifestDigest([8; 32]));
    let info = LayerInfo { size: 5, sha256: None, mtime_ns: 0, inode: 1, proven_s: 0 };
    let said = [(StatementId([1; 32]), vec![1; 20_000])];
    [
        meta.commit(&[], &[], &said, &[("head".to_owned(), Some(b"one".to_vec()))]),
        meta.commit(&[(layer, info)], &[(digest, b"manifest", true)], &[], &[]),
        meta.set_pin(&digest, Some(b"pin")).map(drop),
        meta.drop_for_good(Some(&digest), &[layer]),
    ]
}

#[test]
fn a_disk_that_is_full_at_any_write_loses_nothing_that_was_acknowledged() {
    let mut stopped = 0;
    for writes in 0.. {
        let dir = tempfile::tempdir().expect("a directory");
        let left = Arc::new(AtomicI64::new(i64::MAX));
        let meta = open(dir.path(), &left);
        left.store(writes, Ordering::Relaxed);
        let done = steps(&meta).map(|step| match step {
            Ok(()) => true,
            Err(StoreError::NoSpace { .. }) => false,
            Err(e) => panic!("after {writes} writes: {e}"),
        });
        left.store(i64::MAX, Ordering::Relaxed);
        let there = |meta: &Meta| {
            let statement = meta.statement(&StatementId([1; 32])).expect("read").is_some();
            let head = !meta.heads().expect("read").is_empty();
            assert_eq!(statement, head, "both or neither, after {writes} writes");
            let pin = meta.is_pinned(&ManifestDigest([8; 32])).expect("read");
            let held = meta.is_held(&ManifestDigest([8; 32])).expect("read");
            let layer = meta.layer(&LayerId([7; 32])).expect("read").is_some();
            assert_eq!(held, layer, "both or neither, after {writes} writes");
            (statement, pin, held, meta.gone().expect("read").len())
        };
        let (statement, pin, held, gone) = there(&meta);
        assert!(statement || !done[0], "after {writes} writes");
        assert!(pin || !done[2], "after {writes} writes");
        assert!(!held || !done[3], "after {writes} writes");
        assert!(gone == 1 || !done[3]);
        drop(meta);
        // The next process finds the same, and goes on.
        let meta = open(dir.path(), &left);
        assert_eq!(there(&meta), (statement, pin, held, gone), "after {writes} writes");
        assert!(steps(&meta).iter().all(Result::is_ok), "after {writes} writes");
        if done == [true; 4] {
            break;
        }
        stopped += 1;
    }
    assert!(stopped > 8, "each write was met: {stopped}");
}
