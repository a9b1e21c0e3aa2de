//! Reading sealed layers again, block by block at the pace of the caller, against the tree from its root down.
//!
//! It reads past the page cache where the file system can: that shows what is on the disk, and leaves the pages of
//! models in use where they are.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::PoisonError;

use blake3::Hash;
use rustix::fs::OFlags;
use weighlock_protocol::LayerId;
use weighlock_protocol::wire::bao::{GROUP_BYTES, group_count, parent_hash};

use super::damage::Damage;
use super::outboard::{PAIR_BYTES, hash_block, pair_of, tree_bytes};
use super::partial::subtree::Subtree;
use crate::error::{StoreError, at, is_unreadable};
use crate::fs::{self, Stamp};
use crate::meta::LayerInfo;
use crate::store::Store;

/// Groups that are read and hashed at once: 4 MiB.
const BLOCK_GROUPS: u64 = 256;
/// Bytes of a whole block.
pub const SCRUB_BLOCK_BYTES: u64 = BLOCK_GROUPS * GROUP_BYTES;
/// What reads past the page cache must be aligned to.
const ALIGN: usize = 4096;

/// What came of reading a layer again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scrubbed {
    /// All of it is what its name says. Its tree was not, if it was rebuilt.
    Whole {
        /// Whether the tree was written anew.
        tree_rebuilt: bool,
    },
    /// Bytes of it are wrong: it was set aside, and what of it holds is kept.
    Damaged(Damage),
    /// The caller stopped it; it can go on at this byte.
    Stopped {
        /// Bytes before it were read.
        at: u64,
    },
    /// It is not sealed here, or no longer as it was when the reading began: somebody else found it first, removed it or
    /// made it whole.
    Gone,
}

/// What is wrong with a block.
enum Block {
    Whole,
    WrongBytes(String),
    WrongTree,
}

impl Store {
    /// Reads a sealed layer again from byte `from`, a multiple of [`SCRUB_BLOCK_BYTES`], to its end and proves it.
    /// `pace` is called after every block with its bytes; it may sleep, and ends the reading by answering false.
    ///
    /// # Errors
    /// The database failed; an io error other than in reading the layer, which counts as damage.
    pub fn scrub(
        &self,
        id: &LayerId,
        from: u64,
        pace: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Scrubbed, StoreError> {
        let done = self.scrub_blocks(id, from, pace)?;
        if done == (Scrubbed::Whole { tree_rebuilt: false }) {
            self.meta().update_layer(id, |row| row.proven_s = fs::unix_seconds())?;
        }
        Ok(done)
    }

    /// Proves the one block of a sealed layer that holds byte `at`, without more ado: somebody says that it is wrong.
    ///
    /// # Errors
    /// As [`scrub`](Self::scrub).
    pub fn scrub_at(&self, id: &LayerId, at: u64) -> Result<Scrubbed, StoreError> {
        self.scrub_blocks(id, at, &mut |_| false)
    }

    fn scrub_blocks(
        &self,
        id: &LayerId,
        from: u64,
        pace: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Scrubbed, StoreError> {
        let Some(info) = self.meta().layer(id)? else { return Ok(Scrubbed::Gone) };
        let path = self.layout().layer(id);
        let mut source = match Source::open(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                // The door that finds it so writes it down.
                let _ = self.open_sealed(id);
                return Ok(Scrubbed::Gone);
            }
            source => source.map_err(at(&path, "open"))?,
        };
        let len = source.file.metadata().map_err(at(&path, "stat"))?.len();
        if len != info.size {
            return self.found_damaged(
                id,
                info.stamp(),
                format!("it has {len} bytes instead of {}", info.size),
                0..0,
            );
        }
        let tree = Tree::open(&self.layout().layer_tree(id), id, info.size);
        let mut block = from / SCRUB_BLOCK_BYTES;
        while block * BLOCK_GROUPS < group_count(info.size) {
            let start = block * SCRUB_BLOCK_BYTES;
            let len = SCRUB_BLOCK_BYTES.min(info.size - start);
            match check(&mut source, &tree, info.size, block).map_err(at(&path, "read"))? {
                Block::Whole => {}
                Block::WrongBytes(reason) => {
                    return self.found_damaged(id, info.stamp(), reason, start..start + len);
                }
                // The tree cannot say which bytes are right; the layer as a whole can.
                Block::WrongTree => return self.rebuild(id),
            }
            block += 1;
            if !pace(len) && block * BLOCK_GROUPS < group_count(info.size) {
                return Ok(Scrubbed::Stopped { at: start + len });
            }
        }
        Ok(Scrubbed::Whole { tree_rebuilt: false })
    }

    /// `read` was on record when the reading began; `at` are the bytes that were read wrong.
    fn found_damaged(
        &self,
        id: &LayerId,
        read: Stamp,
        reason: String,
        at: Range<u64>,
    ) -> Result<Scrubbed, StoreError> {
        Ok(self.set_aside_read(id, read, reason, at)?.map_or(Scrubbed::Gone, Scrubbed::Damaged))
    }

    /// Proves a layer without its tree, and writes that anew.
    fn rebuild(&self, id: &LayerId) -> Result<Scrubbed, StoreError> {
        let slot = self.slot(id);
        let mut live = slot.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(info) = self.meta().layer(id)? else { return Ok(Scrubbed::Gone) };
        let path = self.layout().layer(id);
        let file = File::open(&path).map_err(at(&path, "open"))?;
        let stamp = Stamp::of(&file.metadata().map_err(at(&path, "stat"))?);
        match self.prove(id, &file, &path, info.size, true)? {
            Ok(()) => {
                tracing::warn!(layer = %id, "the tree of a layer was damaged; it was built anew");
                self.meta().update_layer(id, |row| *row = LayerInfo::new(stamp, row.sha256))?;
                Ok(Scrubbed::Whole { tree_rebuilt: true })
            }
            Err(reason) => self.set_aside(id, &mut live, reason, 0..0).map(Scrubbed::Damaged),
        }
    }
}

/// # Errors
/// The disk gives no answer: that says nothing of what is on it.
fn check(source: &mut Source, tree: &Tree, size: u64, block: u64) -> std::io::Result<Block> {
    let Some((top, at)) = tree.expected(block) else { return Ok(Block::WrongTree) };
    let start = block * SCRUB_BLOCK_BYTES;
    let len = SCRUB_BLOCK_BYTES.min(size - start) as usize;
    let bytes = match source.read(start, len) {
        Ok(bytes) => bytes,
        Err(e) if is_unreadable(&e) => {
            let end = start + len as u64;
            return Ok(Block::WrongBytes(format!("reading bytes {start}..{end}: {e}")));
        }
        Err(e) => return Err(e),
    };
    let (found, part) = hash_block(start, bytes, group_count(size) <= BLOCK_GROUPS, true);
    if found != top {
        let end = start + len as u64;
        return Ok(Block::WrongBytes(format!("bytes {start}..{end} hash to something else")));
    }
    let stored = tree.read(at, part.len());
    Ok(if stored.is_some_and(|stored| stored == part) { Block::Whole } else { Block::WrongTree })
}

/// The tree file of a layer; nothing of it is believed before it hashes to the layer's id.
struct Tree {
    file: Option<File>,
    root: Hash,
    size: u64,
}

impl Tree {
    fn open(path: &Path, id: &LayerId, size: u64) -> Self {
        let whole = |file: &File| file.metadata().is_ok_and(|meta| meta.len() == tree_bytes(size));
        Self { file: File::open(path).ok().filter(whole), root: Hash::from_bytes(id.0), size }
    }

    /// The hash of a block, proven from the root down, and where its part of the tree begins, in pairs. `None` if the
    /// tree is wrong on the way.
    fn expected(&self, block: u64) -> Option<(Hash, u64)> {
        let mut at = Subtree::whole(group_count(self.size));
        let (mut hash, mut is_root) = (self.root, true);
        while at.groups > BLOCK_GROUPS {
            let bytes = self.read(at.node, PAIR_BYTES as usize)?;
            let pair = pair_of(bytes.as_slice().try_into().ok()?);
            if parent_hash(&pair, is_root) != hash {
                return None;
            }
            let (left, right) = at.children();
            (at, hash) = if block * BLOCK_GROUPS < right.first { (left, pair.0) } else { (right, pair.1) };
            is_root = false;
        }
        Some((hash, at.node))
    }

    fn read(&self, node: u64, len: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; len];
        if len > 0 {
            self.file.as_ref()?.read_exact_at(&mut bytes, node * PAIR_BYTES).ok()?;
        }
        Some(bytes)
    }
}

/// A file read in blocks, past the page cache where that works.
struct Source {
    file: File,
    direct: bool,
    buffer: Vec<u8>,
}

impl Source {
    fn open(path: &Path) -> std::io::Result<Self> {
        let direct = OFlags::DIRECT.bits().cast_signed();
        let (file, direct) = match OpenOptions::new().read(true).custom_flags(direct).open(path) {
            Ok(file) => (file, true),
            Err(e) if e.kind() == ErrorKind::InvalidInput => (File::open(path)?, false),
            Err(e) => return Err(e),
        };
        Ok(Self { file, direct, buffer: vec![0; SCRUB_BLOCK_BYTES as usize + ALIGN] })
    }

    fn read(&mut self, offset: u64, len: usize) -> std::io::Result<&[u8]> {
        let begin = self.buffer.as_ptr().align_offset(ALIGN);
        let asked = len.next_multiple_of(ALIGN);
        let mut done = 0;
        while done < len {
            let into = &mut self.buffer[begin + done..begin + asked];
            match self.file.read_at(into, offset + done as u64) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(n) => done += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                // Alignment that this device wants otherwise, or the odd rest after a short read.
                Err(e) if e.kind() == ErrorKind::InvalidInput && self.direct => {
                    rustix::fs::fcntl_setfl(&self.file, OFlags::empty())?;
                    self.direct = false;
                }
                Err(e) => return Err(e),
            }
        }
        Ok(&self.buffer[begin..begin + len])
    }
}
