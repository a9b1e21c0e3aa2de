//! Layer files: where they lie, how they are opened, read and proven.

pub(crate) mod damage;
pub(crate) mod describe;
pub(crate) mod have;
pub(crate) mod import;
pub(crate) mod outboard;
pub(crate) mod partial;
pub(crate) mod reader;
pub(crate) mod recover;
pub(crate) mod scrub;
pub(crate) mod seal;
pub(crate) mod take;

use std::fs::File;
use std::path::PathBuf;

use weighlock_protocol::LayerId;

pub use reader::{LayerReader, TreeWindow, Wait};

/// Paths of one data directory.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub(crate) root: PathBuf,
}

impl Layout {
    pub(crate) fn meta(&self) -> PathBuf {
        self.root.join("weighlock.redb")
    }

    pub(crate) fn reserve(&self) -> PathBuf {
        self.root.join("reserve")
    }

    pub(crate) fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    pub(crate) fn partial(&self) -> PathBuf {
        self.root.join("partial")
    }

    pub(crate) fn staging(&self) -> PathBuf {
        self.root.join("staging")
    }

    pub(crate) fn quarantine(&self) -> PathBuf {
        self.root.join("quarantine")
    }

    pub(crate) fn views(&self) -> PathBuf {
        self.root.join("views")
    }

    pub(crate) fn keys(&self) -> PathBuf {
        self.root.join("keys")
    }

    pub(crate) fn run(&self) -> PathBuf {
        self.root.join("run")
    }

    pub(crate) fn layer_dir(&self, id: &LayerId) -> PathBuf {
        self.layers().join(&id.hex()[..2])
    }

    pub(crate) fn layer(&self, id: &LayerId) -> PathBuf {
        self.layer_dir(id).join(id.hex())
    }

    pub(crate) fn layer_tree(&self, id: &LayerId) -> PathBuf {
        self.layer_dir(id).join(format!("{}.obao", id.hex()))
    }
}

/// A sealed layer, open for reading. Its size, modification time and inode were as recorded, or its bytes were
/// proven again.
#[derive(Debug)]
pub struct SealedLayer {
    /// The layer's id.
    pub id: LayerId,
    /// The file, read-only.
    pub file: File,
    /// Where it lies.
    pub path: PathBuf,
    /// Length in bytes.
    pub size: u64,
}
