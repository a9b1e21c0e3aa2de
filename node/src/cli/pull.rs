//! `weighlock pull REF --to DIR`: a loader client that writes files by reflink or copy.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use weighlock_protocol::{ManifestDigest, Reference};

use super::output::{bytes, counted};
use super::{Context, absolute, connect};
use crate::error::{Error, Result};
use crate::local::frame::{Client, FRAME_FDS_MAX};
use crate::local::message::{Event, FdsWanted, LoaderRequest, Opened};

/// How a directory is called while it is being filled.
const PREFIX: &str = ".weighlock-pull-";
/// Directories of pulls that were killed go after this.
const STALE_AGE: Duration = Duration::from_secs(60);

/// Fetch an artifact and write it to a directory, which appears whole or not at all.
#[derive(Debug, Args)]
pub(super) struct Pull {
    /// ns/name:tag or ns/name@sha256:...
    reference: String,
    /// The directory to make; fetches only, when absent
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
    /// Also without evidence, where the policy allows that; it is logged
    #[arg(long)]
    ungated: bool,
}

#[derive(Serialize)]
struct Pulled {
    reference: String,
    digest: ManifestDigest,
    files: usize,
    total_bytes: u64,
    path: Option<PathBuf>,
    reflinked: bool,
    /// Taken from other artifacts of this host rather than fetched.
    reused_bytes: u64,
}

impl Pull {
    pub(super) fn run(self, context: &Context) -> Result<()> {
        let reference: Reference = self.reference.parse()?;
        let target = self.to.map(absolute).transpose()?;
        if let Some(target) = &target
            && fs::symlink_metadata(target).is_ok()
            && !fs::read_dir(target).is_ok_and(|mut entries| entries.next().is_none())
        {
            return Err(Error::refused(format!("{} exists and is not an empty directory", target.display()))
                .hint("name a new directory with --to"));
        }
        let mut client = connect(&context.dirs.loader_socket())?;
        let (opened, reused_bytes) = open(context, &mut client, &reference, self.ungated)?;
        let mut reflinked = false;
        if let Some(target) = &target {
            reflinked = write(&mut client, &opened, target)?;
        }
        let pulled = Pulled {
            reference: opened.reference,
            digest: opened.digest,
            files: opened.files.len(),
            total_bytes: opened.files.iter().map(|file| file.size).sum(),
            path: target,
            reflinked,
            reused_bytes,
        };
        context.output.print(&pulled, |p| {
            let (at, how) = match &p.path {
                Some(path) => {
                    (format!(" in {}", path.display()), if p.reflinked { ", reflinked" } else { "" })
                }
                None => (" on this host".into(), ""),
            };
            let files = counted(p.files, "file");
            let reused = match p.reused_bytes {
                0 => String::new(),
                reused => format!(", {} of it from what was here", bytes(reused)),
            };
            format!("{} {}\n{} in {files}{how}{at}{reused}\n", p.reference, p.digest, bytes(p.total_bytes))
        })
    }
}

/// Opens a reference over the loader socket, showing progress. Answers also the bytes that need not be fetched because
/// other artifacts of this host had them.
fn open(
    context: &Context,
    client: &mut Client,
    reference: &Reference,
    ungated: bool,
) -> Result<(Opened, u64)> {
    let request = LoaderRequest::Open {
        reference: reference.to_string(),
        fds: FdsWanted::None,
        partial: false,
        ungated,
        client: Some(concat!("weighlock ", env!("CARGO_PKG_VERSION")).into()),
        copy: true,
        contract: false,
    };
    client.send(&request).map_err(|e| super::lost(&e))?;
    let mut bar = context.progress();
    let mut reused_bytes = 0;
    loop {
        match client.recv::<Event>().map_err(|e| super::lost(&e))?.0 {
            Event::Progress(step) => {
                reused_bytes = step.reused_bytes;
                bar.show(&step);
            }
            Event::Opened(opened) => return Ok((*opened, reused_bytes)),
            Event::Error(error) => return Err(error),
            _ => return Err(Error::internal("the daemon sent an answer of the wrong kind")),
        }
    }
}

/// Writes all files into a directory beside `target`, then renames it. True when the file system shared the bytes.
fn write(client: &mut Client, opened: &Opened, target: &Path) -> Result<bool> {
    let fail = |what: &Path, e: std::io::Error| {
        let error = Error::unavailable(format!("cannot write {}: {e}", what.display()));
        if e.kind() == std::io::ErrorKind::StorageFull {
            error.hint("free some space and pull again")
        } else {
            error
        }
    };
    let parent = target.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(parent).map_err(|e| fail(parent, e))?;
    remove_stale(parent, STALE_AGE);
    let fresh = tempfile::Builder::new()
        .prefix(PREFIX)
        .permissions(fs::Permissions::from_mode(0o755))
        .tempdir_in(parent)
        .map_err(|e| fail(parent, e))?;
    // Whoever finds the directory without its lock knows that nobody fills it any more.
    let _lock = File::open(fresh.path()).inspect(|dir| drop(dir.lock()));
    let mut reflinked = !opened.files.is_empty();
    for files in opened.files.chunks(FRAME_FDS_MAX) {
        let paths: Vec<String> = files.iter().map(|file| file.path.clone()).collect();
        let fds = descriptors(client, opened.digest, paths)?;
        for (file, fd) in files.iter().zip(fds) {
            if !weighlock_protocol::manifest::path_is_safe(&file.path) {
                return Err(Error::integrity(format!("the manifest names an unsafe path {:?}", file.path)));
            }
            let path = fresh.path().join(&file.path);
            let dir = path.parent().unwrap_or(fresh.path());
            fs::create_dir_all(dir).map_err(|e| fail(dir, e))?;
            let mut out = File::create_new(&path).map_err(|e| fail(&path, e))?;
            let mut source = File::from(fd);
            if file.size > 0 && rustix::fs::ioctl_ficlone(&out, &source).is_err() {
                reflinked = false;
                let copied = std::io::copy(&mut source, &mut out).map_err(|e| fail(&path, e))?;
                if copied != file.size {
                    return Err(Error::integrity(format!(
                        "{} has {copied} bytes instead of {}",
                        file.path, file.size
                    )));
                }
            }
        }
    }
    if target.exists() {
        fs::remove_dir(target).map_err(|e| fail(target, e))?;
    }
    let fresh = fresh.keep();
    fs::rename(&fresh, target).map_err(|e| {
        let _ = fs::remove_dir_all(&fresh);
        fail(target, e)
    })?;
    Ok(reflinked)
}

/// Removes what pulls into `parent` left behind that were killed more than `age` ago. What cannot go stays.
fn remove_stale(parent: &Path, age: Duration) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_old = || entry.metadata().ok()?.modified().ok()?.elapsed().ok().map(|since| since >= age);
        if entry.file_name().to_string_lossy().starts_with(PREFIX)
            && entry.file_type().is_ok_and(|kind| kind.is_dir())
            // One that was made a moment ago may not have its lock yet.
            && is_old() == Some(true)
            && File::open(&path).is_ok_and(|dir| dir.try_lock().is_ok())
        {
            let _ = fs::remove_dir_all(&path);
        }
    }
}

fn descriptors(client: &mut Client, digest: ManifestDigest, paths: Vec<String>) -> Result<Vec<OwnedFd>> {
    let wanted = paths.len();
    client.send(&LoaderRequest::Fds { digest, paths }).map_err(|e| super::lost(&e))?;
    let mut got = Vec::with_capacity(wanted);
    while got.len() < wanted {
        match client.recv::<Event>().map_err(|e| super::lost(&e))? {
            (Event::Fds { .. }, fds) => got.extend(fds),
            // Damage is being healed first.
            (Event::Progress(_), _) => {}
            (Event::Error(error), _) => return Err(error),
            _ => return Err(Error::internal("the daemon sent an answer of the wrong kind")),
        }
    }
    Ok(got)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_pull_left_behind_goes_and_what_is_being_filled_stays() {
        let parent = tempfile::tempdir().expect("a directory");
        let make = |name: &str| {
            let path = parent.path().join(name);
            fs::create_dir_all(path.join("below")).expect("made");
            path
        };
        let (left, filled, other) =
            (make(".weighlock-pull-1"), make(".weighlock-pull-2"), make("weighlock-pull"));
        let dir = File::open(&filled).expect("opened");
        dir.lock().expect("locked");
        remove_stale(parent.path(), STALE_AGE);
        assert!(left.exists(), "it may be about to be locked");
        remove_stale(parent.path(), Duration::ZERO);
        assert!(!left.exists() && filled.exists() && other.exists());
        drop(dir);
        remove_stale(parent.path(), Duration::ZERO);
        assert!(!filled.exists());
    }
}
