//! The directories that the evaluator writes to: made, measured while it runs, and gone through afterwards.

use std::fs::{self, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use walkdir::WalkDir;

/// Directories deeper than this are over the limit: their paths become longer than any call takes.
const DEPTH_MAX: usize = 64;
/// More refused entries than this are not listed.
const REFUSED_MAX: usize = 100;

/// A regular file that the evaluator left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutFile {
    /// Below the result directory, with slashes.
    pub path: String,
    /// Length in bytes.
    pub bytes: u64,
}

/// Something else that it left, which must not be opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Below the result directory; bytes that are not UTF-8 are replaced.
    pub path: String,
    /// What it is.
    pub why: String,
}

/// How full a directory is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Use {
    /// On disk, holes not counted.
    pub(super) bytes: u64,
    pub(super) entries: u64,
    /// Something is too deep, or closed to the owner, and so cannot be measured.
    pub(super) evades: bool,
}

/// The directories of one run.
#[derive(Debug, Clone)]
pub(super) struct Dirs {
    pub(super) work: PathBuf,
    pub(super) out: PathBuf,
    pub(super) tmp: PathBuf,
    /// Device and inode of `out`.
    identity: (u64, u64),
}

impl Dirs {
    /// Makes them below `work`, which must be absent or empty.
    pub(super) fn make(work: &Path) -> io::Result<Self> {
        fs::create_dir_all(work)?;
        let work = fs::canonicalize(work)?;
        if fs::read_dir(&work)?.next().is_some() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it is not empty"));
        }
        let (out, tmp) = (work.join("out"), work.join("tmp"));
        for (dir, mode) in [(&out, 0o755), (&tmp, 0o700)] {
            fs::create_dir(dir)?;
            fs::set_permissions(dir, Permissions::from_mode(mode))?;
        }
        let identity = identity(&fs::symlink_metadata(&out)?);
        Ok(Self { work, out, tmp, identity })
    }

    /// Removes the temporary directory, whatever modes it has got. To be called when nothing runs any more.
    pub(super) fn clear_tmp(&self) -> io::Result<()> {
        unlock(&self.tmp);
        fs::remove_dir_all(&self.tmp)
    }

    /// What was left in `out`: at most `files_max` files of together `bytes_max`; what is above is refused. To be
    /// called when nothing runs any more.
    pub(super) fn list(&self, files_max: u64, bytes_max: u64) -> (Vec<OutFile>, Vec<Refused>) {
        let (mut files, mut refused, mut bytes) = (Vec::new(), Vec::new(), 0u64);
        let mut refuse = |path: String, why: String| {
            if refused.len() < REFUSED_MAX {
                refused.push(Refused { path, why });
            }
        };
        let same = fs::symlink_metadata(&self.out).is_ok_and(|meta| identity(&meta) == self.identity);
        if !same {
            refuse(String::new(), "the result directory was replaced".to_owned());
            return (files, refused);
        }
        unlock(&self.out);
        let walk = WalkDir::new(&self.out).min_depth(1).max_depth(DEPTH_MAX).sort_by_file_name();
        for entry in walk.into_iter().take(usize::try_from(files_max).unwrap_or(usize::MAX).saturating_add(1))
        {
            let name = |path: &Path| {
                let below = path.strip_prefix(&self.out).unwrap_or(path);
                below.to_str().map(str::to_owned).ok_or_else(|| below.to_string_lossy().into_owned())
            };
            let (path, meta) = match entry.map(|entry| (name(entry.path()), entry.metadata())) {
                Ok((path, Ok(meta))) => (path, meta),
                Ok((path, Err(e))) => {
                    refuse(path.unwrap_or_else(|lossy| lossy), e.to_string());
                    continue;
                }
                Err(e) => {
                    let path = e.path().map(name).unwrap_or(Ok(String::new()));
                    refuse(path.unwrap_or_else(|lossy| lossy), e.to_string());
                    continue;
                }
            };
            match path {
                Err(lossy) => refuse(lossy, "a name that is not UTF-8".to_owned()),
                Ok(_) if meta.is_dir() => {}
                Ok(path) if !meta.is_file() => refuse(path, kind(&meta).to_owned()),
                Ok(path)
                    if bytes.saturating_add(meta.len()) > bytes_max || files.len() as u64 >= files_max =>
                {
                    refuse(path, "over the limit of the result directory".to_owned());
                }
                Ok(path) => {
                    bytes += meta.len();
                    files.push(OutFile { path, bytes: meta.len() });
                }
            }
        }
        (files, refused)
    }
}

/// Measures a directory, stopping soon after `entries_max` entries.
pub(super) fn measure(dir: &Path, entries_max: u64) -> Use {
    let mut used = Use::default();
    for entry in WalkDir::new(dir).min_depth(1).max_depth(DEPTH_MAX + 1) {
        match entry {
            Ok(entry) => {
                used.entries += 1;
                used.bytes += entry.metadata().map_or(0, |meta| meta.blocks() * 512);
                used.evades |= entry.depth() > DEPTH_MAX;
            }
            // What is gone by now is fine.
            Err(e) => used.evades |= e.io_error().is_none_or(|e| e.kind() != io::ErrorKind::NotFound),
        }
        if used.entries > entries_max {
            break;
        }
    }
    used
}

/// Gives the owner every right over the directories below, so that they can be read and removed.
fn unlock(dir: &Path) {
    let mut next = vec![(dir.to_path_buf(), 0)];
    while let Some((dir, depth)) = next.pop() {
        let _ = fs::set_permissions(&dir, Permissions::from_mode(0o755));
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        if depth < DEPTH_MAX {
            let dirs = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            next.extend(dirs.map(|entry| (entry.path(), depth + 1)));
        }
    }
}

fn identity(meta: &Metadata) -> (u64, u64) {
    (meta.dev(), meta.ino())
}

fn kind(meta: &Metadata) -> &'static str {
    let kind = meta.file_type();
    if kind.is_symlink() {
        "a symbolic link"
    } else if kind.is_fifo() {
        "a named pipe"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;

    use super::*;

    fn dirs() -> (tempfile::TempDir, Dirs) {
        let dir = tempfile::tempdir().expect("tempdir");
        let dirs = Dirs::make(&dir.path().join("work")).expect("made");
        (dir, dirs)
    }

    #[test]
    fn files_are_listed_and_everything_else_is_refused() {
        let (_keep, dirs) = dirs();
        fs::create_dir(dirs.out.join("sub")).expect("made");
        fs::write(dirs.out.join("sub/report.json"), "{}").expect("written");
        fs::write(dirs.out.join(std::ffi::OsStr::from_bytes(b"\xff")), "x").expect("written");
        symlink("/etc/passwd", dirs.out.join("link")).expect("linked");
        let socket = std::os::unix::net::UnixListener::bind(dirs.out.join("socket")).expect("bound");
        fs::set_permissions(dirs.out.join("sub"), Permissions::from_mode(0o000)).expect("locked");
        let (files, refused) = dirs.list(100, 100);
        assert_eq!(files, [OutFile { path: "sub/report.json".into(), bytes: 2 }]);
        let why: Vec<&str> = refused.iter().map(|refused| refused.why.as_str()).collect();
        assert_eq!(why, ["a symbolic link", "a socket", "a name that is not UTF-8"]);
        drop(socket);
    }

    #[test]
    fn number_and_size_are_bounded() {
        let (_keep, dirs) = dirs();
        for name in ["a", "b", "c"] {
            fs::write(dirs.out.join(name), "12345").expect("written");
        }
        assert_eq!(dirs.list(2, 100).0.len(), 2);
        let (files, refused) = dirs.list(3, 12);
        assert_eq!((files.len(), refused.len()), (2, 1));
        let used = measure(&dirs.out, 100);
        assert_eq!((used.entries, used.evades), (3, false));
        assert!(measure(&dirs.out, 1).entries <= 2);
    }

    #[test]
    fn a_replaced_directory_is_not_followed_and_a_used_one_not_taken() {
        let (keep, dirs) = dirs();
        assert!(Dirs::make(&dirs.work).is_err());
        fs::remove_dir(&dirs.out).expect("removed");
        fs::write(keep.path().join("secret"), "x").expect("written");
        symlink(keep.path(), &dirs.out).expect("linked");
        let (files, refused) = dirs.list(100, 100);
        assert_eq!((files.len(), refused.len()), (0, 1));
    }

    #[test]
    fn nesting_without_end_is_noticed_and_can_be_removed() {
        let (_keep, dirs) = dirs();
        let mut deep = dirs.tmp.clone();
        for _ in 0..DEPTH_MAX + 2 {
            deep.push("d");
            fs::create_dir(&deep).expect("made");
        }
        assert!(measure(&dirs.tmp, 1000).evades);
        fs::set_permissions(dirs.tmp.join("d/d"), Permissions::from_mode(0o500)).expect("locked");
        dirs.clear_tmp().expect("removed");
        assert!(!dirs.tmp.exists());
    }
}
