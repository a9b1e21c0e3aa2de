//! A small file system of a test's own, to fill to its last byte.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A tmpfs, unmounted on drop. Declare it before the hosts whose stores lie on it.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// One of `bytes` bytes at `path`. `None`, and a word on standard error, where nobody may mount.
    ///
    /// # Panics
    /// The directory cannot be made.
    pub fn new(path: &Path, bytes: u64) -> Option<Self> {
        fs::create_dir_all(path).expect("a directory");
        let size = format!("size={bytes}");
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(path).output();
        if done.is_ok_and(|done| done.status.success()) {
            return Some(Self { path: path.to_owned() });
        }
        eprintln!("SKIPPED: a tmpfs cannot be mounted here (needs root), so no disk was filled");
        None
    }

    /// A path on it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Takes all space that is left but `spare` bytes.
    ///
    /// # Panics
    /// The file cannot be made.
    pub fn fill(&self, spare: u64) {
        let path = self.path("filler");
        let mut file = File::options().create(true).append(true).open(&path).expect("a file");
        for chunk in [1 << 20, 4096] {
            while file.write_all(&vec![7; chunk]).is_ok() {}
        }
        let length = file.metadata().expect("a length").len();
        file.set_len(length.saturating_sub(spare)).expect("cut");
    }

    /// Gives back what [`fill`](Self::fill) took.
    ///
    /// # Panics
    /// It cannot be removed.
    pub fn empty(&self) {
        fs::remove_file(self.path("filler")).expect("removed");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.path).status();
    }
}
