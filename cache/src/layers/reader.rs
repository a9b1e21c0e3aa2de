//! Reads a layer, sealed or partial, with its tree, whether or not the disk has to be waited for.

use std::fs::File;
use std::io::IoSliceMut;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bao_tree::TreeNode;
use blake3::Hash;
use weighlock_protocol::LayerId;
use weighlock_protocol::wire::bao::{GroupSet, all_groups};

use super::SealedLayer;
use super::outboard::{self, PAIR_BYTES, pair_of, pair_offset};
use super::partial::PartialLayer;
use crate::error::{StoreError, at};
use crate::fs;

/// Bytes of a tree that are read at once: 64 pairs.
const WINDOW_BYTES: u64 = 64 * PAIR_BYTES;

/// Whether a read may wait for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// As long as it takes.
    ForDisk,
    /// No: what is not in the page cache is not read.
    Never,
}

/// Pairs of a layer's tree that were read along with one that was asked for.
#[derive(Debug, Default)]
pub struct TreeWindow {
    start: u64,
    bytes: Vec<u8>,
}

impl TreeWindow {
    fn pair(&self, offset: u64) -> Option<(Hash, Hash)> {
        let from = usize::try_from(offset.checked_sub(self.start)?).ok()?;
        self.bytes.get(from..)?.first_chunk().map(pair_of)
    }

    /// Reads `len` bytes of a tree from `start`; false if they are not at hand and nobody is to wait.
    fn load(&mut self, tree: &File, (start, len): (u64, u64), wait: Wait) -> std::io::Result<bool> {
        self.start = start;
        self.bytes.resize(usize::try_from(len).unwrap_or_default(), 0);
        let read = read(tree, &mut [IoSliceMut::new(&mut self.bytes)], start, wait);
        if !matches!(read, Ok(true)) {
            self.bytes.clear();
        }
        read
    }
}

fn read(file: &File, parts: &mut [IoSliceMut<'_>], offset: u64, wait: Wait) -> std::io::Result<bool> {
    match wait {
        Wait::ForDisk => fs::read_all_at(file, parts, offset).map(|()| true),
        Wait::Never => fs::read_cached_at(file, parts, offset),
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

    /// Fills `parts` one after another with the bytes from `offset`; false if they are not at hand and nobody is to wait,
    /// and then `parts` may hold anything.
    ///
    /// # Errors
    /// As [`read_exact_at`](Self::read_exact_at).
    pub fn read_parts_at(
        &self,
        parts: &mut [IoSliceMut<'_>],
        offset: u64,
        wait: Wait,
    ) -> Result<bool, StoreError> {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let end = offset.saturating_add(len as u64);
        let (file, path) = match &*self.inner {
            Inner::Sealed { layer, .. } if end > layer.size => {
                return Err(StoreError::NotProven { layer: layer.id, start: offset, end });
            }
            Inner::Sealed { layer, .. } => (&layer.file, &layer.path),
            Inner::Partial(layer) => layer.proven_data(offset, end)?,
        };
        read(file, parts, offset, wait).map_err(at(path, "read"))
    }

    /// The hash pair of a tree node.
    ///
    /// # Errors
    /// A node that the tree does not have, or that is not proven yet; an io error.
    pub fn pair(&self, node: TreeNode) -> Result<(Hash, Hash), StoreError> {
        let pair = self.pair_near(node, &mut TreeWindow::default(), Wait::ForDisk)?;
        pair.ok_or(StoreError::NotHeld(self.id()))
    }

    /// As [`pair`](Self::pair); the pairs that follow in pre-order and are here are read along with it into `window`,
    /// which is for this reader alone. `None` if it is not at hand and nobody is to wait.
    ///
    /// # Errors
    /// As [`pair`](Self::pair).
    pub fn pair_near(
        &self,
        node: TreeNode,
        window: &mut TreeWindow,
        wait: Wait,
    ) -> Result<Option<(Hash, Hash)>, StoreError> {
        let offset = pair_offset(self.size(), node);
        if let Some(pair) = offset.and_then(|offset| window.pair(offset)) {
            return Ok(Some(pair));
        }
        let near = match (&*self.inner, offset) {
            (Inner::Sealed { layer, tree: Some(tree), tree_path }, Some(offset)) => {
                Some((tree, tree_path, offset, WINDOW_BYTES.min(outboard::tree_bytes(layer.size) - offset)))
            }
            (Inner::Partial(layer), Some(offset)) => {
                let proven = layer.proven_tree(offset, WINDOW_BYTES);
                proven.map(|(tree, path, len)| (tree, path, offset, len))
            }
            _ => None,
        };
        let Some((tree, path, offset, len)) = near else {
            let range = node.chunk_range();
            return Err(StoreError::NotProven {
                layer: self.id(),
                start: range.start.to_bytes(),
                end: range.end.to_bytes(),
            });
        };
        let is_here = window.load(tree, (offset, len), wait).map_err(at(path, "read"))?;
        Ok(if is_here { window.pair(offset) } else { None })
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
