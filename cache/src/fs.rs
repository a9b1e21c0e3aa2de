//! What the store asks of the operating system: syncs, space, modes, file system type, boot id.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::FallocateFlags;
use rustix::io::ReadWriteFlags;

use crate::error::{StoreError, at};

/// Most buffers in one vectored write (the kernel's own limit).
const IOV_MAX: usize = 1024;

/// Magic number of tmpfs (linux/magic.h).
const TMPFS_MAGIC: rustix::fs::FsWord = 0x0102_1994;

/// Files up to this are reserved everywhere.
pub(crate) const THIN_BYTES_MIN: u64 = 1 << 20;

/// Names of file systems that a store refuses, by the magic number that `statfs` gives (linux/magic.h and the
/// file systems' own headers).
pub fn network_fs(magic: u64) -> Option<&'static str> {
    Some(match magic & 0xffff_ffff {
        0x6969 => "NFS",
        0x517B => "SMB",
        0xFF53_4D42 => "CIFS",
        0xFE53_4D42 => "SMB2",
        0x0102_1997 => "9P",
        0x00C3_6400 => "Ceph",
        0x0BD0_0BD0 => "Lustre",
        0x5346_414F | 0x6B41_4653 => "AFS",
        0x4750_4653 => "GPFS",
        0x6573_5546 => "FUSE",
        0x7375_7245 => "Coda",
        0x564C => "NCP",
        0x7461_636F => "OCFS2",
        0x0116_1970 => "GFS2",
        0x1983_0326 => "BeeGFS",
        0xAAD7_AAEA => "PanFS",
        0x2003_0528 => "OrangeFS",
        0x786F_4256 => "vboxsf",
        _ => return None,
    })
}

/// Refuses `dir`, or where it will be made, if it lies on a network file system.
pub(crate) fn refuse_network_fs(dir: &Path) -> Result<(), StoreError> {
    let existing = dir.ancestors().find(|p| p.exists()).unwrap_or(Path::new("."));
    let existing = if existing.as_os_str().is_empty() { Path::new(".") } else { existing };
    let stat = rustix::fs::statfs(existing).map_err(|e| at(existing, "stat file system of")(e.into()))?;
    #[allow(
        clippy::cast_sign_loss,
        clippy::unnecessary_cast,
        reason = "the type differs by platform; only bits count"
    )]
    match network_fs(stat.f_type as u64) {
        Some(kind) => Err(StoreError::NetworkFs { path: dir.to_owned(), kind }),
        None => Ok(()),
    }
}

/// Bytes that this user may still write on the file system of `path`.
pub(crate) fn available_bytes(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// The kernel's id of this boot: page cache survives a process, not a boot.
pub(crate) fn boot_id() -> Result<String, StoreError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let text = std::fs::read_to_string(path).map_err(at(path, "read"))?;
    Ok(text.trim().to_owned())
}

/// Makes `dir` and what is missing above it with `mode`; one that exists keeps its mode.
pub(crate) fn create_dir(dir: &Path, mode: u32) -> Result<(), StoreError> {
    DirBuilder::new().recursive(true).mode(mode).create(dir).map_err(at(dir, "create directory"))
}

/// Removes a directory and all below it. It goes at once: a crash on the way leaves a name beside it that begins with
/// a dot, never half of it under its own.
pub(crate) fn remove_dir_at_once(dir: &Path) -> Result<(), StoreError> {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let mut gone = dir.with_file_name(format!(".{name}.gone"));
    if remove_dir(&gone).is_err() {
        // Root left something of its own in it, say: that stays, and this one goes all the same.
        gone = dir.with_file_name(format!(".{name}.{}.gone", unix_seconds()));
    }
    match std::fs::rename(dir, &gone) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(at(dir, "move away"))?,
    }
    if let Err(error) = remove_dir(&gone) {
        tracing::warn!(path = %gone.display(), %error, "what is left of a directory cannot be removed");
    }
    Ok(())
}

/// Syncs a directory, so that names in it survive power loss.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    let file = File::open(dir).map_err(at(dir, "open directory"))?;
    file.sync_all().map_err(at(dir, "sync directory"))
}

/// Syncs the whole file system that `path` lies on.
pub(crate) fn sync_fs(path: &Path) -> Result<(), StoreError> {
    sync_fs_of(&File::open(path).map_err(at(path, "open"))?, path)
}

/// Syncs the file system of an open file, `path`. What failed since the last time is told once to each open file.
pub(crate) fn sync_fs_of(file: &File, path: &Path) -> Result<(), StoreError> {
    rustix::fs::syncfs(file).map_err(|e| at(path, "sync file system of")(e.into()))
}

/// Seconds since 1970.
pub(crate) fn unix_seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Sets a file's mode.
pub(crate) fn chmod(path: &Path, mode: u32) -> Result<(), StoreError> {
    std::fs::set_permissions(path, Permissions::from_mode(mode)).map_err(at(path, "set mode of"))
}

/// A new file, open for reading and writing, `size` bytes long with its space reserved where the file system can.
pub(crate) fn create_reserved(path: &Path, size: u64) -> Result<File, StoreError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .map_err(at(path, "create"))?;
    reserve(&file, path, size)?;
    Ok(file)
}

/// As [`create_reserved`]; in memory (tmpfs) a large file only gets its length: there a reservation makes every page at
/// once, a quarter of a second for each GiB, before the first byte can be written. Whoever promises room counts what such
/// files still lack ([`lacking_bytes`]).
pub(crate) fn create_promised(path: &Path, size: u64) -> Result<File, StoreError> {
    let file = create_reserved(path, 0)?;
    if size > THIN_BYTES_MIN && is_in_memory(&file) {
        file.set_len(size).map_err(at(path, "extend"))?;
    } else {
        reserve(&file, path, size)?;
    }
    Ok(file)
}

/// Reserves `size` bytes of disk for `file` and makes it that long.
pub(crate) fn reserve(file: &File, path: &Path, size: u64) -> Result<(), StoreError> {
    if size == 0 {
        return Ok(());
    }
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, size) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
            file.set_len(size).map_err(at(path, "extend"))
        }
        Err(e) if crate::error::is_full(&e.into()) => Err(StoreError::NoSpace {
            path: path.to_owned(),
            needed_bytes: size,
            available_bytes: available_bytes(path).unwrap_or(0),
        }),
        Err(e) => Err(at(path, "reserve space for")(e.into())),
    }
}

/// Bytes that a file of full length has no blocks for yet; `None` if it is not there.
pub(crate) fn lacking_bytes(path: &Path) -> Option<u64> {
    Some(blockless_bytes(&std::fs::metadata(path).ok()?))
}

/// Bytes that a file has no blocks for.
pub(crate) fn blockless_bytes(meta: &std::fs::Metadata) -> u64 {
    meta.len().saturating_sub(meta.blocks().saturating_mul(512))
}

/// Makes `len` bytes at `offset` read as zeros, without giving their space back where the file system can.
pub(crate) fn zero(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let unsupported = |e: &rustix::io::Errno| {
        use rustix::io::Errno;
        matches!(*e, Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL)
    };
    match rustix::fs::fallocate(file, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, offset, len) {
        Err(e) if unsupported(&e) => {}
        other => return Ok(other?),
    }
    match rustix::fs::fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len) {
        // The hole is zeros already; its space is reserved again as it was.
        Ok(()) => return Ok(rustix::fs::fallocate(file, FallocateFlags::empty(), offset, len)?),
        Err(e) if unsupported(&e) => {}
        Err(e) => return Err(e.into()),
    }
    let zeros = vec![0; usize::try_from(len.min(1 << 20)).unwrap_or(1 << 20)];
    let mut at = offset;
    while at < offset + len {
        let step = usize::try_from(offset + len - at).unwrap_or(usize::MAX).min(zeros.len());
        file.write_all_at(&zeros[..step], at)?;
        at += step as u64;
    }
    Ok(())
}

/// Writes `parts` one after another at `offset`, in as few calls as the kernel allows.
pub(crate) fn write_all_at(file: &File, parts: &[&[u8]], mut offset: u64) -> io::Result<()> {
    if let [single] = parts {
        return file.write_all_at(single, offset);
    }
    for parts in parts.chunks(IOV_MAX) {
        let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut rest: &mut [IoSlice<'_>] = &mut slices;
        while rest.iter().any(|slice| !slice.is_empty()) {
            match rustix::io::pwritev(file, rest, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    offset += n as u64;
                    IoSlice::advance_slices(&mut rest, n);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
    Ok(())
}

/// Fills `parts` one after another from `offset`, in as few calls as the kernel allows.
pub(crate) fn read_all_at(file: &File, parts: &mut [IoSliceMut<'_>], mut offset: u64) -> io::Result<()> {
    for mut rest in parts.chunks_mut(IOV_MAX) {
        while rest.iter().any(|slice| !slice.is_empty()) {
            match rustix::io::preadv(file, rest, offset) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    offset += n as u64;
                    IoSliceMut::advance_slices(&mut rest, n);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
    Ok(())
}

/// As [`read_all_at`], if no disk has to be waited for: false if one has, and then `parts` may hold anything.
pub(crate) fn read_cached_at(file: &File, parts: &mut [IoSliceMut<'_>], mut offset: u64) -> io::Result<bool> {
    for part in parts.chunks_mut(IOV_MAX) {
        let wanted: usize = part.iter().map(|slice| slice.len()).sum();
        let read = loop {
            match rustix::io::preadv2(file, part, offset, ReadWriteFlags::NOWAIT) {
                Err(rustix::io::Errno::INTR) => {}
                read => break read,
            }
        };
        match read {
            Ok(n) if n == wanted => offset += n as u64,
            Ok(_) | Err(rustix::io::Errno::AGAIN) => return Ok(false),
            // A file system in memory does not know the question, and has no disk.
            Err(rustix::io::Errno::OPNOTSUPP) if is_in_memory(file) => {
                read_all_at(file, part, offset)?;
                offset += wanted as u64;
            }
            Err(rustix::io::Errno::OPNOTSUPP) => return Ok(false),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(true)
}

fn is_in_memory(file: &File) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|about| about.f_type == TMPFS_MAGIC)
}

/// What tells that a file was replaced or written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) size: u64,
    pub(crate) mtime_ns: i64,
    pub(crate) inode: u64,
}

impl Stamp {
    pub(crate) fn of(meta: &std::fs::Metadata) -> Self {
        Self {
            size: meta.len(),
            mtime_ns: meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec()),
            inode: meta.ino(),
        }
    }

    pub(crate) fn at(path: &Path) -> Result<Self, StoreError> {
        Ok(Self::of(&std::fs::metadata(path).map_err(at(path, "stat"))?))
    }
}

/// Removes a file; one that is not there is as good.
pub(crate) fn remove_file(path: &Path) -> Result<(), StoreError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(at(path, "remove")(e)),
        _ => Ok(()),
    }
}

/// Bytes on the disk of a file, or of all files below a directory; what goes meanwhile counts nothing.
pub(crate) fn path_bytes(path: &Path) -> Result<u64, StoreError> {
    match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => dir_bytes(path),
        Ok(meta) => Ok(meta.blocks().saturating_mul(512)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(e) => Err(at(path, "stat")(e)),
    }
}

/// As [`path_bytes`], of a directory.
pub(crate) fn dir_bytes(path: &Path) -> Result<u64, StoreError> {
    let entries = match std::fs::read_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries.map_err(at(path, "list"))?,
    };
    let mut sum = 0u64;
    for entry in entries {
        match entry {
            Ok(entry) => sum = sum.saturating_add(path_bytes(&entry.path())?),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(at(path, "list")(e)),
        }
    }
    Ok(sum)
}

/// Sets the mode of a directory and of all directories in it.
pub(crate) fn chmod_dirs(path: &Path, mode: u32) -> Result<(), StoreError> {
    for entry in std::fs::read_dir(path).map_err(at(path, "list"))? {
        let entry = entry.map_err(at(path, "list"))?;
        if entry.file_type().map_err(at(path, "list"))?.is_dir() {
            chmod_dirs(&entry.path(), mode)?;
        }
    }
    chmod(path, mode)
}

/// Removes a directory and all in it; one that is not there is as good.
pub(crate) fn remove_dir(path: &Path) -> Result<(), StoreError> {
    if path.is_dir() {
        // A read-only directory gives nothing back to anyone but root.
        chmod_dirs(path, 0o755)?;
    }
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(at(path, "remove")(e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_file_systems_are_known_by_their_magic() {
        for (magic, name) in [
            (0x6969, "NFS"),
            (0xffff_ffff_ff53_4d42, "CIFS"),
            (0xfe53_4d42, "SMB2"),
            (0x0102_1997, "9P"),
            (0x6573_5546, "FUSE"),
        ] {
            assert_eq!(network_fs(magic), Some(name));
        }
        // ext4, xfs, btrfs, tmpfs, overlayfs, zfs.
        for magic in [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0x794c_7630, 0x2fc1_2fc1] {
            assert_eq!(network_fs(magic), None, "{magic:x}");
        }
    }

    #[test]
    fn vectored_writes_land_in_order_beyond_the_kernel_limit() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("f");
        let file = create_reserved(&path, 10).expect("create");
        let parts: Vec<Vec<u8>> = (0..2500u32).map(|i| i.to_le_bytes().to_vec()).collect();
        let refs: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        write_all_at(&file, &refs, 3).expect("write");
        let got = std::fs::read(&path).expect("read");
        assert_eq!(&got[3..], parts.concat());
        write_all_at(&file, &[b"", b""], 0).expect("empty parts");
    }
}
