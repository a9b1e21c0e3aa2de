//! What can go wrong in the store, each in one line that says where and what to do.

mod unreadable;

use std::io;
use std::path::{Path, PathBuf};

use weighlock_protocol::manifest::ManifestError;
use weighlock_protocol::{LayerId, ManifestDigest};

pub(crate) use unreadable::is_unreadable;

/// An error of the store. Messages are for users: what is wrong, where, what to do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system is full, or would be below the floor.
    #[error("{}", no_space(path, *needed_bytes, *available_bytes))]
    NoSpace {
        /// Where the bytes were to go.
        path: PathBuf,
        /// Bytes that were to be written, the configured floor included; 0 where a write met the end unforeseen.
        needed_bytes: u64,
        /// Bytes that the file system had left.
        available_bytes: u64,
    },
    /// The store has as many bytes as it may.
    #[error(
        "the quota of {} is used up: {needed_bytes} bytes more are needed, {used_bytes} of {quota_bytes} are used; `weighlock gc --dry-run` says what could go, store.quota_bytes sets the quota",
        path.display()
    )]
    Quota {
        /// The data directory.
        path: PathBuf,
        /// Bytes that were to come.
        needed_bytes: u64,
        /// Bytes that are used or promised.
        used_bytes: u64,
        /// The quota.
        quota_bytes: u64,
    },
    /// Another process has this store open.
    #[error("store {} is in use by process {pid}; stop it, or choose another --data-dir", path.display())]
    Locked {
        /// The data directory.
        path: PathBuf,
        /// Process id that the holder wrote, `unknown` if it wrote none.
        pid: String,
    },
    /// The directory lies on a file system whose locks and syncs cannot be trusted.
    #[error("store {} is on {kind}, a network or user-space file system; put --data-dir on a local disk", path.display())]
    NetworkFs {
        /// The data directory.
        path: PathBuf,
        /// Name of the file system type.
        kind: &'static str,
    },
    /// A layer's bytes are not what its name says; nothing hands them out any more.
    #[error(
        "layer {layer} is damaged on disk: {reason}; it was set aside and heals by itself once a host that has it is connected, see `weighlock status`"
    )]
    Corrupt {
        /// The layer.
        layer: LayerId,
        /// What was found.
        reason: String,
    },
    /// The store was written by a newer version.
    #[error("store {} has format {found}, this version knows up to {supported}; update weighlock", path.display())]
    Newer {
        /// The data directory.
        path: PathBuf,
        /// Format found.
        found: u32,
        /// Newest format known.
        supported: u32,
    },
    /// A source file changed during import.
    #[error("{} changed while it was read ({what}); add it again when nothing writes to it", path.display())]
    ChangedWhileRead {
        /// The source file.
        path: PathBuf,
        /// What differed.
        what: &'static str,
    },
    /// The import was cancelled by the caller.
    #[error("import was cancelled; nothing was added")]
    Cancelled,
    /// A layer was asked for that is not here, or not whole.
    #[error("layer {0} is not held completely on this host")]
    NotHeld(LayerId),
    /// A partial layer was asked for where the layer is complete.
    #[error("layer {0} is held completely on this host already; open it instead")]
    AlreadySealed(LayerId),
    /// Bytes or tree nodes of a partial layer were asked for that are not proven.
    #[error("bytes {start}..{end} of layer {layer} are not proven on this host yet")]
    NotProven {
        /// The layer.
        layer: LayerId,
        /// First byte asked for.
        start: u64,
        /// End of the bytes asked for.
        end: u64,
    },
    /// A layer is known with another size than the one given.
    #[error(
        "layer {layer} has {known} bytes here, but {given} were given; the manifest that says so is wrong"
    )]
    SizeMismatch {
        /// The layer.
        layer: LayerId,
        /// Size on record.
        known: u64,
        /// Size given.
        given: u64,
    },
    /// Proven items arrived that do not belong to this layer, or before their parents.
    #[error("item at byte {offset} does not fit layer {layer}: {reason}")]
    Misfit {
        /// The layer written to.
        layer: LayerId,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// A manifest is not in the store.
    #[error("manifest {0} is not in this store")]
    NoManifest(ManifestDigest),
    /// A setting whose value is not of the expected form.
    #[error("setting `{key}` in the store does not read: {reason}; it may stem from a newer version")]
    Setting {
        /// Its key.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// Manifest bytes that do not parse, or cannot be built.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The target of a materialised tree is taken.
    #[error("{} exists and is not a copy of this artifact; choose an empty directory, or say force", path.display())]
    TargetExists {
        /// The target.
        path: PathBuf,
    },
    /// The embedded database failed.
    #[error("metadata in {}: {op} failed: {source}", path.display())]
    Meta {
        /// The database file.
        path: PathBuf,
        /// What was tried.
        op: &'static str,
        /// Why it failed.
        source: Box<redb::Error>,
    },
    /// A file operation failed.
    #[error("{op} {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried, as a verb.
        op: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

impl StoreError {
    /// The number of the system's error behind it, if there is one.
    pub fn os_error(&self) -> Option<i32> {
        match self {
            Self::Io { source, .. } => source.raw_os_error(),
            Self::Meta { source, .. } => match &**source {
                redb::Error::Io(source) => source.raw_os_error(),
                _ => None,
            },
            _ => None,
        }
    }
}

fn no_space(path: &Path, needed_bytes: u64, available_bytes: u64) -> String {
    let needed = match needed_bytes {
        0 => "the disk is full".to_owned(),
        needed => format!("{needed} bytes needed"),
    };
    let path = path.display();
    format!(
        "no space at {path}: {needed}, {available_bytes} available; free space or choose another --data-dir"
    )
}

/// Maps an io error to a [`StoreError`] that names the path and the operation; a full disk becomes `NoSpace`.
pub(crate) fn at<'a>(path: &'a Path, op: &'static str) -> impl Fn(io::Error) -> StoreError + 'a {
    move |source| {
        if is_full(&source) {
            return StoreError::NoSpace {
                path: path.to_owned(),
                needed_bytes: 0,
                available_bytes: available_near(path),
            };
        }
        StoreError::Io { path: path.to_owned(), op, source }
    }
}

/// Whether an error says that the disk or the quota is full.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Free bytes on the file system of the nearest directory of `path` that exists; 0 if none can be asked.
fn available_near(path: &Path) -> u64 {
    path.ancestors().find_map(|p| crate::fs::available_bytes(p).ok()).unwrap_or(0)
}
