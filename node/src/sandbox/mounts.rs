//! What the file system looks like inside: the host's, read-only, with a few places of its own.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, open, statx};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, mount, mount_bind, mount_bind_recursive, mount_change, mount_remount,
};

use super::message::Setup;

/// More sockets than this are not covered; the run then fails rather than leave some open.
const SOCKETS_MAX: usize = 4096;
/// What stays of /run besides the model and the work directory: where drivers and programs of some systems lie.
const RUN_KEPT: &[&str] =
    &["/run/opengl-driver", "/run/opengl-driver-32", "/run/current-system", "/run/nvidia"];
/// Links that programs expect in /dev.
const DEV_LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// A step that failed, and why.
pub(super) type Failed = (String, io::Error);

/// Sockets that programs of this network namespace listen on, by their absolute paths: a read-only mount does not
/// keep anybody from connecting to them.
pub(super) fn sockets() -> io::Result<Vec<PathBuf>> {
    let table = fs::read("/proc/self/net/unix")?;
    let mut found = Vec::new();
    for line in table.split(|byte| *byte == b'\n') {
        // Num RefCount Protocol Flags Type St Inode Path; the path may have spaces.
        let Some(start) = line.iter().position(|byte| *byte == b'/') else { continue };
        found.push(PathBuf::from(std::ffi::OsString::from_vec(line[start..].to_vec())));
    }
    found.sort();
    found.dedup();
    if found.len() > SOCKETS_MAX {
        return Err(io::Error::other(format!("there are more than {SOCKETS_MAX} sockets to cover")));
    }
    Ok(found)
}

/// Rearranges the mounts of this process's own namespace. True when it has a /proc of its own.
pub(super) fn arrange(
    setup: &Setup,
    own_pids: bool,
    sockets: &[PathBuf],
    devices: &[PathBuf],
) -> Result<bool, Failed> {
    step(
        "cutting off mounts",
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC),
    )?;
    let writable = [setup.out.as_path(), setup.tmp.as_path()];
    for dir in writable {
        step_at("binding", dir, mount_bind_recursive(dir, dir))?;
    }
    let mut kept: Vec<PathBuf> = writable.iter().map(|dir| dir.to_path_buf()).collect();
    kept.push(setup.model.clone());

    private_dev(setup, devices)?;
    let run: Vec<PathBuf> = kept.iter().cloned().chain(RUN_KEPT.iter().map(PathBuf::from)).collect();
    cover(Path::new("/run"), &run)?;
    for path in &setup.hidden {
        cover(path, &kept)?;
    }
    for socket in sockets {
        let is_socket = fs::symlink_metadata(socket).is_ok_and(|meta| meta.file_type().is_socket());
        if is_socket {
            step_at("covering", socket, mount_bind("/dev/null", socket))?;
        }
    }
    let own_proc = own_pids && {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::RDONLY;
        // Containers mask parts of theirs, and then may not mount another.
        mount("proc", "/proc", "proc", flags, None).is_ok()
    };
    let own = ["/dev/shm", "/dev/pts"].map(Path::new);
    make_read_only(&[&writable[..], &own[..]].concat())?;
    Ok(own_proc)
}

/// Lays an empty directory over `dir`, or nothing over a file, but for what is kept of it.
fn cover(dir: &Path, kept: &[PathBuf]) -> Result<(), Failed> {
    let Ok(dir) = fs::canonicalize(dir) else {
        return Ok(());
    };
    if !dir.is_dir() {
        return step_at("covering", &dir, mount_bind("/dev/null", &dir));
    }
    let mut inside = Vec::new();
    for path in kept.iter().filter(|path| path.starts_with(&dir) && path.exists()) {
        if *path == dir {
            return Ok(());
        }
        inside.push((path, step_at("opening", path, opened(path))?));
    }
    empty(&dir, c"mode=755,size=1m")?;
    for (path, was) in inside {
        bind_again(&was, path)?;
    }
    Ok(())
}

/// A /dev with nothing but what the evaluator may use, shared memory and terminals of its own.
fn private_dev(setup: &Setup, devices: &[PathBuf]) -> Result<(), Failed> {
    let dev = Path::new("/dev");
    let mut nodes = Vec::new();
    for path in devices.iter().filter(|path| path.starts_with(dev)) {
        nodes.push((path, step_at("opening", path, opened(path))?));
    }
    for path in [&setup.out, &setup.tmp, &setup.model].into_iter().filter(|path| path.starts_with(dev)) {
        nodes.push((path, step_at("opening", path, opened(path))?));
    }
    empty(dev, c"mode=755,size=1m")?;
    let shm = dev.join("shm");
    step_at("making", &shm, fs::create_dir(&shm))?;
    // Of what the evaluator may have in memory; the rest of the bound is looked after by the supervisor.
    let size = format!("mode=1777,size={}", setup.limits.memory() / 2);
    let size = step("sizing /dev/shm", std::ffi::CString::new(size).map_err(io::Error::from))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    step_at("mounting", &shm, mount("tmpfs", &shm, "tmpfs", flags, size.as_c_str()))?;
    for (path, was) in nodes {
        bind_again(&was, path)?;
    }
    for (name, target) in DEV_LINKS {
        step_at("linking", &dev.join(name), symlink(target, dev.join(name)))?;
    }
    let pts = dev.join("pts");
    step_at("making", &pts, fs::create_dir(&pts))?;
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    // Few evaluators want a terminal: one that cannot be had is no reason not to run.
    if mount("devpts", &pts, "devpts", flags, c"newinstance,ptmxmode=0666,mode=620").is_ok() {
        step_at("linking", &dev.join("ptmx"), symlink("pts/ptmx", dev.join("ptmx")))?;
    }
    Ok(())
}

fn empty(dir: &Path, options: &std::ffi::CStr) -> Result<(), Failed> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    step_at("covering", dir, mount("tmpfs", dir, "tmpfs", flags, options))
}

fn opened(path: &Path) -> rustix::io::Result<OwnedFd> {
    open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

/// Puts what was open at `path` back there, after the directory above was covered.
fn bind_again(was: &OwnedFd, path: &Path) -> Result<(), Failed> {
    let source = PathBuf::from(format!("/proc/self/fd/{}", was.as_raw_fd()));
    let is_dir = source.is_dir();
    let made = if is_dir {
        fs::create_dir_all(path)
    } else {
        path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| File::create(path).map(drop))
    };
    step_at("making", path, made)?;
    let bound = if is_dir { mount_bind_recursive(&source, path) } else { mount_bind(&source, path) };
    step_at("binding", path, bound)
}

/// Remounts everything that can be reached, but for `writable`, as read-only.
fn make_read_only(writable: &[&Path]) -> Result<(), Failed> {
    let table = step("reading the mounts", fs::read("/proc/self/mountinfo"))?;
    for entry in table.split(|byte| *byte == b'\n').filter_map(Mounted::parse) {
        if entry.read_only || writable.contains(&entry.at.as_path()) {
            continue;
        }
        // Another mount may lie over it, or a directory on the way be closed to this user and so to the evaluator.
        match mount_id(&entry.at) {
            Ok(id) if id == entry.id => {}
            Ok(_) | Err(Errno::ACCESS | Errno::NOENT | Errno::NOTDIR) => continue,
            Err(e) => return Err((format!("looking at {}", entry.at.display()), e.into())),
        }
        let flags = entry.flags | MountFlags::BIND | MountFlags::RDONLY;
        step_at("making read-only", &entry.at, mount_remount(&entry.at, flags, ""))?;
    }
    Ok(())
}

fn mount_id(path: &Path) -> rustix::io::Result<u64> {
    Ok(statx(CWD, path, AtFlags::NO_AUTOMOUNT, StatxFlags::MNT_ID)?.stx_mnt_id)
}

/// A line of mountinfo, see proc_pid_mountinfo(5).
struct Mounted {
    id: u64,
    at: PathBuf,
    read_only: bool,
    /// What a remount has to repeat: the kernel refuses to lose them in a user namespace.
    flags: MountFlags,
}

impl Mounted {
    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b' ');
        let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
        let at = PathBuf::from(std::ffi::OsString::from_vec(unescape(fields.nth(3)?)));
        let options = std::str::from_utf8(fields.next()?).ok()?;
        let mut flags = MountFlags::empty();
        let mut read_only = false;
        let mut times = MountFlags::STRICTATIME;
        for option in options.split(',') {
            match option {
                "ro" => read_only = true,
                "nosuid" => flags |= MountFlags::NOSUID,
                "nodev" => flags |= MountFlags::NODEV,
                "noexec" => flags |= MountFlags::NOEXEC,
                "nodiratime" => flags |= MountFlags::NODIRATIME,
                "noatime" => times = MountFlags::NOATIME,
                "relatime" => times = MountFlags::RELATIME,
                _ => {}
            }
        }
        Some(Self { id, at, read_only, flags: flags | times })
    }
}

/// Undoes the octal escapes of spaces, tabs, newlines and backslashes.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        match tail {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] if *first == b'\\' => {
                plain.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    plain
}

fn step<T, E: Into<io::Error>>(what: &str, done: Result<T, E>) -> Result<T, Failed> {
    done.map_err(|e| (what.to_owned(), e.into()))
}

fn step_at<T, E: Into<io::Error>>(what: &str, path: &Path, done: Result<T, E>) -> Result<T, Failed> {
    done.map_err(|e| (format!("{what} {}", path.display()), e.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_mountinfo_is_read_with_its_escapes_and_flags() {
        let line = br"36 35 98:0 /mnt1 /mnt/a\040b\134c rw,nosuid,noatime shared:1 - ext4 /dev/root rw,errors=continue";
        let entry = Mounted::parse(line).expect("parsed");
        assert_eq!((entry.id, entry.at.as_path(), entry.read_only), (36, Path::new(r"/mnt/a b\c"), false));
        assert_eq!(entry.flags, MountFlags::NOSUID | MountFlags::NOATIME);
        let plain = Mounted::parse(b"1 0 0:1 / / ro - tmpfs t rw").expect("parsed");
        assert!(plain.read_only);
        assert_eq!(plain.flags, MountFlags::STRICTATIME);
        for broken in [&b""[..], b"36", b"x 35 98:0 / / rw", b"36 35 98:0 /"] {
            assert!(Mounted::parse(broken).is_none());
        }
    }

    #[test]
    fn escapes_that_are_none_stay() {
        for (field, plain) in
            [(&br"a\b"[..], &br"a\b"[..]), (br"\04", br"\04"), (br"\0401", b" 1"), (br"\777", br"\777")]
        {
            assert_eq!(unescape(field), plain);
        }
    }
}
