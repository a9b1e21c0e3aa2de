//! Why two sides cannot be compared.

use std::io;
use std::path::{Path, PathBuf};

use crate::inspect::InspectError;

/// An error of a comparison: one line, what to do behind the last semicolon.
#[derive(Debug, thiserror::Error)]
pub enum DiffError {
    /// A side cannot be read as what it claims to be.
    #[error(transparent)]
    Inspect(#[from] InspectError),
    /// A file cannot be read.
    #[error("cannot {op} {path:?}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried, as a verb.
        op: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A file is not what it was when the comparison began.
    #[error("{path:?} changed while it was compared; compare again when nothing writes to it")]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The index of a contract speaks of other files than those that are there.
    #[error("{path:?} is not laid out as its contract says; `weighlock pull` writes a fresh copy")]
    Index {
        /// The file, by its path in the artifact.
        path: String,
    },
    /// The threads that compare cannot be started.
    #[error("cannot start threads: {0}; raise the limit of processes")]
    Threads(#[from] rayon::ThreadPoolBuildError),
    /// The caller cancelled it.
    #[error("the comparison was cancelled")]
    Cancelled,
}

/// Maps an io error to one that names the path and the operation; a file that became shorter has changed.
pub(super) fn at<'a>(path: &'a Path, op: &'static str) -> impl Fn(io::Error) -> DiffError + 'a {
    move |source| match source.kind() {
        io::ErrorKind::UnexpectedEof => DiffError::Changed { path: path.to_owned() },
        _ => DiffError::Io { path: path.to_owned(), op, source },
    }
}
