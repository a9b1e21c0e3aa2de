//! The database on a disk that fills.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::StorageBackend;
use redb::backends::FileBackend;

use super::*;

/// A file on a disk that others may fill.
#[derive(Debug)]
struct Disk {
    file: FileBackend,
    full: Arc<AtomicBool>,
}

impl Disk {
    fn room(&self) -> io::Result<()> {
        if self.full.load(Ordering::Relaxed) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
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

#[test]
fn a_disk_that_was_full_to_the_last_byte_is_used_again_once_it_has_room() {
    let dir = tempfile::tempdir().expect("a directory");
    let full = Arc::new(AtomicBool::new(false));
    let disk = full.clone();
    let open = move |path: &Path| {
        let file = std::fs::File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        let file = FileBackend::new(file)?;
        Database::builder().create_with_backend(Disk { file, full: disk.clone() })
    };
    let meta = Meta::open_by(dir.path().join("meta.redb"), dir.path(), Box::new(open)).expect("opened");
    meta.set_setting("kept", Some(b"1")).expect("written");
    full.store(true, Ordering::Relaxed);
    for _ in 0..3 {
        let error = meta.set_setting("lost", Some(&[7; 100_000])).expect_err("full");
        assert!(matches!(error, StoreError::NoSpace { .. }), "{error}");
    }
    full.store(false, Ordering::Relaxed);
    assert_eq!(meta.setting("kept").expect("read"), Some(b"1".to_vec()));
    assert_eq!(meta.setting("lost").expect("read"), None, "nothing half-written");
    meta.set_setting("lost", Some(b"2")).expect("written again");
    assert_eq!(meta.setting("lost").expect("read"), Some(b"2".to_vec()));
}
