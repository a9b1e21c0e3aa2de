//! Layer files: where they lie, how they are opened, read and proven.

pub(crate) mod damage;
pub(crate) mod describe;
pub(crate) mod have;
pub(crate) mod import;
pub(crate) mod outboard;
pub(crate) mod partial;
pub(crate) mod recover;
pub(crate) mod scrub;
pub(crate) mod seal;
pub(crate) mod take;

use std::fs::File;
use std::io::IoSliceMut;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bao_tree::TreeNode;
use blake3::Hash;
use weighlock_protocol::LayerId;
use weighlock_protocol::wire::bao::{GroupSet, all_groups};

use crate::error::{StoreError, at};
use crate::fs;
use outboard::{PAIR_BYTES, pair_of, pair_offset};
use partial::PartialLayer;

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

/// Bytes of a tree that are read at once: 64 pairs.
const WINDOW_BYTES: u64 = 64 * PAIR_BYTES;

/// Pairs of a sealed layer's tree that were read along with one that was asked for.
#[derive(Debug, Default)]
pub struct TreeWindow {
    start: u64,
    bytes: Vec<u8>,
}

impl TreeWindow {
    fn pair(&self, offset: u64) -> Option<&[u8; PAIR_BYTES as usize]> {
        let from = usize::try_from(offset.checked_sub(self.start)?).ok()?;
        self.bytes.get(from..)?.first_chunk()
    }
}

/// Reads a layer, sealed or partial, with its tree: what serving needs. Cheap to clone.
#[derive(Debug, Clone)]
pub struct LayerReader {
    inner: Arc<Inner>,
}

#[derive(Debug)]
enum Inner {
    Sealed { layer: SealedLayer, tree: Option<File>, tree_path: PathBuf },
    Partial(Arc<PartialLayer>),
}

impl LayerReader {
    /// The layer's id.
    pub fn id(&self) -> LayerId {
        match &*self.inner {
            Inner::Sealed { layer, .. } => layer.id,
            Inner::Partial(layer) => layer.id(),
        }
    }

    /// Length in bytes.
    pub fn size(&self) -> u64 {
        match &*self.inner {
            Inner::Sealed { layer, .. } => layer.size,
            Inner::Partial(layer) => layer.size(),
        }
    }

    /// The groups that can be read now.
    pub fn have(&self) -> GroupSet {
        match &*self.inner {
            Inner::Sealed { layer, .. } => all_groups(layer.size),
            Inner::Partial(layer) => layer.have(),
        }
    }

    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// A range past the end or not wholly inside [`have`](Self::have); an io error.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), StoreError> {
        match &*self.inner {
            Inner::Sealed { layer, .. } => {
                let end = offset.saturating_add(buffer.len() as u64);
                if end > layer.size {
                    return Err(StoreError::NotProven { layer: layer.id, start: offset, end });
                }
                layer.file.read_exact_at(buffer, offset).map_err(at(&layer.path, "read"))
            }
            Inner::Partial(layer) => layer.read_exact_at(buffer, offset),
        }
    }

    /// Fills `parts` one after another with the bytes from `offset`.
    ///
    /// # Errors
    /// As [`read_exact_at`](Self::read_exact_at).
    pub fn read_parts_at(&self, parts: &mut [IoSliceMut<'_>], offset: u64) -> Result<(), StoreError> {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let end = offset.saturating_add(len as u64);
        match &*self.inner {
            Inner::Sealed { layer, .. } => {
                if end > layer.size {
                    return Err(StoreError::NotProven { layer: layer.id, start: offset, end });
                }
                fs::read_all_at(&layer.file, parts, offset).map_err(at(&layer.path, "read"))
            }
            Inner::Partial(layer) => layer.read_parts_at(parts, offset, end),
        }
    }

    /// The hash pair of a tree node.
    ///
    /// # Errors
    /// A node that the tree does not have, or that is not proven yet; an io error.
    pub fn pair(&self, node: TreeNode) -> Result<(Hash, Hash), StoreError> {
        self.pair_near(node, &mut TreeWindow::default())
    }

    /// As [`pair`](Self::pair); of a sealed layer the pairs that follow in pre-order are read along with it into
    /// `window`, which is for this reader alone.
    ///
    /// # Errors
    /// As [`pair`](Self::pair).
    pub fn pair_near(&self, node: TreeNode, window: &mut TreeWindow) -> Result<(Hash, Hash), StoreError> {
        match &*self.inner {
            Inner::Sealed { layer, tree, tree_path } => {
                let (Some(tree), Some(offset)) = (tree, pair_offset(layer.size, node)) else {
                    let range = node.chunk_range();
                    return Err(StoreError::NotProven {
                        layer: layer.id,
                        start: range.start.to_bytes(),
                        end: range.end.to_bytes(),
                    });
                };
                if let Some(pair) = window.pair(offset) {
                    return Ok(pair_of(pair));
                }
                let len = WINDOW_BYTES.min(outboard::tree_bytes(layer.size) - offset);
                window.bytes.resize(usize::try_from(len).unwrap_or_default(), 0);
                window.start = offset;
                let read = tree.read_exact_at(&mut window.bytes, offset).map_err(at(tree_path, "read"));
                if let Err(e) = read {
                    window.bytes.clear();
                    return Err(e);
                }
                window.pair(offset).map(pair_of).ok_or(StoreError::NotHeld(layer.id))
            }
            // What follows may be on its way.
            Inner::Partial(layer) => layer.pair(node),
        }
    }

    /// Fills `buffer` with hash pairs of the layer's tree, which stand in pre-order; `offset` counts bytes of them.
    ///
    /// # Errors
    /// Not all of the layer is here, a range past the end of the tree, an io error.
    pub fn read_tree_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), StoreError> {
        let end = offset.saturating_add(buffer.len() as u64);
        match &*self.inner {
            _ if end > outboard::tree_bytes(self.size()) => {
                Err(StoreError::NotProven { layer: self.id(), start: 0, end: self.size() })
            }
            _ if buffer.is_empty() => Ok(()),
            Inner::Sealed { layer, tree, tree_path } => match tree {
                Some(tree) => tree.read_exact_at(buffer, offset).map_err(at(tree_path, "read")),
                None => Err(StoreError::NotProven { layer: layer.id, start: 0, end: layer.size }),
            },
            Inner::Partial(layer) => layer.read_tree_at(buffer, offset),
        }
    }

    pub(crate) fn sealed(layer: SealedLayer, tree_path: &Path) -> Result<Self, StoreError> {
        let tree = match outboard::tree_bytes(layer.size) {
            0 => None,
            _ => Some(File::open(tree_path).map_err(at(tree_path, "open"))?),
        };
        Ok(Self { inner: Arc::new(Inner::Sealed { layer, tree, tree_path: tree_path.to_owned() }) })
    }

    pub(crate) fn partial(layer: Arc<PartialLayer>) -> Self {
        Self { inner: Arc::new(Inner::Partial(layer)) }
    }
}
