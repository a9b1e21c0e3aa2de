//! A layer on its way: proven groups go to their place in a file of full length, and a have-map remembers which.
//!
//! **Architecture invariant:** only `Verified` items get in, and local bytes that hash to what `Verified` tree nodes
//! say; a group counts as held once its bytes and all the tree nodes above it are written. Write order: data, tree,
//! have-map.

mod adopt;
mod handout;
mod prove;
pub(super) mod subtree;
mod sync;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use weighlock_protocol::LayerId;
use weighlock_protocol::wire::bao::{GROUP_BYTES, GroupSet, Verified, all_groups, group_count};

use super::have::{self, Bitmap, Header};
use super::outboard::{PAIR_BYTES, pair_offset, tree_bytes};
use crate::error::{StoreError, at, is_unreadable};
use crate::fs;
use subtree::{ancestors, mark_ancestors};

/// Mode of files that are written to: the daemon writes, its group reads.
pub(crate) const OPEN_MODE: u32 = 0o640;

/// Paths of the files of a partial layer.
#[derive(Debug, Clone)]
pub(crate) struct PartialPaths {
    pub(crate) data: PathBuf,
    pub(crate) tree: PathBuf,
    pub(crate) have: PathBuf,
}

impl PartialPaths {
    pub(crate) fn new(dir: &Path, layer: &LayerId) -> Self {
        let hex = layer.hex();
        Self {
            data: dir.join(format!("{hex}.data")),
            tree: dir.join(format!("{hex}.obao")),
            have: dir.join(format!("{hex}.have")),
        }
    }

    /// Removes the files, the have-map first: without it the others claim nothing.
    pub(crate) fn remove(&self) -> Result<(), StoreError> {
        fs::remove_file(&self.have)?;
        fs::remove_file(&self.tree)?;
        fs::remove_file(&self.data)
    }
}

/// A layer of which some groups are proven and written. Shared by all who write to it or serve from it.
#[derive(Debug)]
pub struct PartialLayer {
    id: LayerId,
    size: u64,
    paths: PartialPaths,
    data: File,
    tree: Option<File>,
    have_file: File,
    state: Mutex<State>,
    /// Held while groups are written: the kernel lets only one at a time write to a file, and those who wait there spin.
    data_io: Mutex<()>,
    /// Held while pages of the have-map are written, so that an older image never follows a newer one.
    have_io: Mutex<()>,
    /// Shared by writers, held alone by who seals or removes: nothing is written to a file that was sealed.
    pub(crate) fate: RwLock<Fate>,
    /// A sync failed. The kernel says so once, and what it could not write reads as if it had: nothing of the file can be
    /// believed any more.
    lost_writes: AtomicBool,
}

/// What became of the files of a partial layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// They lie under their names.
    Open,
    /// They are the sealed layer now, or one like it took their place.
    Sealed,
    /// They were removed; other files may lie under their names.
    Removed,
}

#[derive(Debug)]
struct State {
    have: Bitmap,
    /// Tree nodes written, by their number in pre-order.
    nodes: Bitmap,
    /// Pages of the have-map that differ from the file.
    dirty: BTreeSet<u64>,
}

impl PartialLayer {
    /// The layer's id.
    pub fn id(&self) -> LayerId {
        self.id
    }

    /// Length in bytes as the manifest says; proven with the last group.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The groups that are proven and written.
    pub fn have(&self) -> GroupSet {
        self.state().have.to_set()
    }

    /// The groups that are not.
    pub fn missing(&self) -> GroupSet {
        &all_groups(self.size) - &self.have()
    }

    /// Number of groups that are proven and written.
    pub fn have_count(&self) -> u64 {
        self.state().have.count()
    }

    /// Whether the last group is proven, and with it the size.
    pub(crate) fn has_end(&self) -> bool {
        let last = group_count(self.size).saturating_sub(1);
        self.state().have.has(last)
    }

    /// Whether all groups are proven and written.
    pub fn complete(&self) -> bool {
        self.state().have.is_full()
    }

    /// Writes proven items: data, then tree, then the have-map. Neighbouring groups go out in one call. A group
    /// counts once all tree nodes above it were given, in this call or an earlier one. Items that are already here
    /// are skipped. Callers may write from several threads.
    ///
    /// # Errors
    /// An item of another layer, a group without its parents, no space, or an io error. What was written before
    /// the error and counts is kept.
    pub fn write(&self, items: &[Verified]) -> Result<(), StoreError> {
        let fate = self.fate.read().unwrap_or_else(PoisonError::into_inner);
        let batch = self.batch(items)?;
        if *fate == Fate::Sealed {
            return Ok(());
        }
        self.commit(&batch)
    }

    /// Writes what was proven, in the order that the invariant asks for. The caller holds `fate`.
    fn commit(&self, batch: &Batch<'_>) -> Result<(), StoreError> {
        {
            let _io = self.data_io.lock().unwrap_or_else(PoisonError::into_inner);
            for (first, parts) in &batch.runs {
                fs::write_all_at(&self.data, parts, first * GROUP_BYTES)
                    .map_err(at(&self.paths.data, "write"))?;
            }
        }
        if let Some(tree) = &self.tree {
            for (first, bytes) in runs_of_pairs(&batch.pairs) {
                tree.write_all_at(&bytes, first * PAIR_BYTES).map_err(at(&self.paths.tree, "write"))?;
            }
        }
        {
            let mut state = self.state();
            for node in batch.pairs.keys() {
                state.nodes.set(*node);
            }
            for (first, parts) in &batch.runs {
                for group in *first..first + parts.len() as u64 {
                    if state.have.set(group) {
                        state.dirty.insert(have::page_of(group));
                    }
                }
            }
        }
        self.flush_have()
    }

    /// Writes changed pages of the have-map. After kill -9 what stands there counts; after power loss it is proven
    /// again. [`write`](Self::write) calls this.
    ///
    /// # Errors
    /// No space or an io error; the pages stay marked.
    pub fn flush_have(&self) -> Result<(), StoreError> {
        let _io = self.have_io.lock().unwrap_or_else(PoisonError::into_inner);
        if self.check_writes().is_err() {
            // It claims nothing any more.
            return Ok(());
        }
        loop {
            let (page, have) = {
                let mut state = self.state();
                let Some(page) = state.dirty.pop_first() else {
                    return Ok(());
                };
                (page, have::page_image(&self.id, &state.have, page))
            };
            if let Err(e) = have::write_page(&self.have_file, page, &have) {
                self.state().dirty.insert(page);
                return Err(at(&self.paths.have, "write")(e));
            }
        }
    }

    /// Creates the files of a layer, with their space reserved. The have-map comes last: files without one are not
    /// a partial layer.
    pub(crate) fn create(
        paths: PartialPaths,
        id: LayerId,
        size: u64,
        boot_id: &str,
    ) -> Result<Self, StoreError> {
        let made = (|| {
            let data = fs::create_promised(&paths.data, size)?;
            let tree = match tree_bytes(size) {
                0 => None,
                len => Some(fs::create_reserved(&paths.tree, len)?),
            };
            let temp = paths.have.with_extension("new");
            let have_file = fs::create_reserved(&temp, (have::page_count(size) + 1) * 4096)?;
            let header = Header { layer: id, size, boot_id: boot_id.to_owned() };
            have::write_header(&have_file, &header).map_err(at(&temp, "write"))?;
            std::fs::rename(&temp, &paths.have).map_err(at(&temp, "rename"))?;
            Ok((data, tree, have_file))
        })();
        let (data, tree, have_file) = made.inspect_err(|_: &StoreError| {
            // The error that made us stop is the one to report.
            let _ = paths.remove();
            let _ = fs::remove_file(&paths.have.with_extension("new"));
        })?;
        let have = Bitmap::new(group_count(size));
        Ok(Self::assemble(paths, id, size, (data, tree, have_file), have))
    }

    /// Opens the files of a layer again. Under the boot id that wrote them the have-map is trusted, else every group
    /// that it claims is proven from the root down. `None` if the files are no partial layer.
    pub(crate) fn resume(paths: PartialPaths, boot_id: &str) -> Result<Option<Self>, StoreError> {
        let try_open = |path: &Path| OpenOptions::new().read(true).write(true).open(path);
        let open = |path: &Path| {
            let opened = match try_open(path) {
                // A seal that was cut short had made it read-only already.
                Err(e) if e.kind() == ErrorKind::PermissionDenied => {
                    fs::chmod(path, OPEN_MODE).map_err(|_| e).and_then(|()| try_open(path))
                }
                opened => opened,
            };
            match opened {
                Ok(file) => Ok(Some(file)),
                Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
                Err(e) => Err(at(path, "open")(e)),
            }
        };
        let Some(have_file) = open(&paths.have)? else {
            return Ok(None);
        };
        let Some(header) = header_of(&have_file, &paths.have)? else {
            return Ok(None);
        };
        let Header { layer: id, size, .. } = header;
        let Some(data) = open(&paths.data)? else {
            return Ok(None);
        };
        let tree = match tree_bytes(size) {
            0 => None,
            len => match open(&paths.tree)? {
                Some(tree) if file_len(&tree, &paths.tree)? == len => Some(tree),
                _ => return Ok(None),
            },
        };
        if file_len(&data, &paths.data)? != size {
            return Ok(None);
        }
        let (mut claimed, bad_pages) =
            have::read_bitmap(&have_file, &id, size).map_err(at(&paths.have, "read"))?;
        if !bad_pages.is_empty() {
            // A write that was torn by a power loss, most likely: the tree tells what is here.
            tracing::warn!(layer = %id.short(), "a have-map does not check; proving the layer again");
        }
        let trusted = header.boot_id == boot_id && bad_pages.is_empty();
        for group in bad_pages.into_iter().flatten() {
            claimed.set(group);
        }
        let have = if trusted { claimed.clone() } else { Bitmap::new(claimed.len()) };
        let layer = Self::assemble(paths, id, size, (data, tree, have_file), have);
        if !trusted {
            layer.prove_again(&claimed, boot_id)?;
        }
        Ok(Some(layer))
    }

    /// The header of a have-map, if it is there and whole.
    pub(crate) fn peek(path: &Path) -> Result<Option<Header>, StoreError> {
        let file = match File::open(path) {
            // Sealed or removed since the directory was listed.
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(at(path, "open"))?,
        };
        header_of(&file, path)
    }

    /// Removes the files. Whoever still writes writes to nowhere, and can no longer seal.
    pub(crate) fn remove(&self) -> Result<(), StoreError> {
        let mut fate = self.fate.write().unwrap_or_else(PoisonError::into_inner);
        if *fate == Fate::Open {
            *fate = Fate::Removed;
            self.paths.remove()?;
        }
        Ok(())
    }

    pub(crate) fn paths(&self) -> &PartialPaths {
        &self.paths
    }

    /// Reads proven bytes.
    pub(crate) fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), StoreError> {
        self.check_proven(offset, offset.saturating_add(buffer.len() as u64))?;
        self.data.read_exact_at(buffer, offset).map_err(at(&self.paths.data, "read"))
    }

    /// The data file, and where it lies, to read from `offset` to `end`, if that is proven.
    pub(crate) fn proven_data(&self, offset: u64, end: u64) -> Result<(&File, &PathBuf), StoreError> {
        self.check_proven(offset, end)?;
        Ok((&self.data, &self.paths.data))
    }

    fn check_proven(&self, start: u64, end: u64) -> Result<(), StoreError> {
        let proven = end <= self.size
            && (start == end || self.state().have.all(start / GROUP_BYTES, end.div_ceil(GROUP_BYTES)));
        if proven { Ok(()) } else { Err(StoreError::NotProven { layer: self.id, start, end }) }
    }

    /// The tree file, where it lies, and how many bytes from `offset` on, up to `max`, are of pairs that are proven; none if
    /// the first is not. What is proven later may not be in bytes that are read from now on.
    pub(crate) fn proven_tree(&self, offset: u64, max: u64) -> Option<(&File, &PathBuf, u64)> {
        let first = offset / PAIR_BYTES;
        let run = {
            let state = self.state();
            (first..first + max / PAIR_BYTES).take_while(|node| state.nodes.has(*node)).count() as u64
        };
        let tree = self.tree.as_ref().filter(|_| run > 0)?;
        Some((tree, &self.paths.tree, run * PAIR_BYTES))
    }

    /// Reads the tree file of a layer that is complete: hash pairs in pre-order.
    pub(crate) fn read_tree_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), StoreError> {
        match &self.tree {
            Some(tree) if self.complete() => {
                tree.read_exact_at(buffer, offset).map_err(at(&self.paths.tree, "read"))
            }
            _ => Err(StoreError::NotProven { layer: self.id, start: 0, end: self.size }),
        }
    }

    fn assemble(
        paths: PartialPaths,
        id: LayerId,
        size: u64,
        (data, tree, have_file): (File, Option<File>, File),
        have: Bitmap,
    ) -> Self {
        let groups = group_count(size);
        let mut nodes = Bitmap::new(groups - 1);
        mark_ancestors(&have, &mut nodes, 0, groups, 0);
        Self {
            id,
            size,
            paths,
            data,
            tree,
            have_file,
            state: Mutex::new(State { have, nodes, dirty: BTreeSet::new() }),
            data_io: Mutex::new(()),
            have_io: Mutex::new(()),
            fate: RwLock::new(Fate::Open),
            lost_writes: AtomicBool::new(false),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change under the lock is whole on its own, so a panic elsewhere leaves nothing torn.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sorts items into what is to be written, after checking that they belong here.
    fn batch<'a>(&self, items: &'a [Verified]) -> Result<Batch<'a>, StoreError> {
        let misfit =
            |offset: u64, reason: &'static str| StoreError::Misfit { layer: self.id, offset, reason };
        let state = self.state();
        let mut pairs = BTreeMap::new();
        let mut leaves: BTreeMap<u64, &'a [u8]> = BTreeMap::new();
        for item in items {
            match item {
                Verified::Parent(parent) => {
                    let start = parent.node().chunk_range().start.to_bytes();
                    if parent.layer() != self.id || parent.layer_size() != self.size {
                        return Err(misfit(start, "it was proven for another layer"));
                    }
                    let position = pair_offset(self.size, parent.node())
                        .ok_or_else(|| misfit(start, "the tree has no such node"))?;
                    let node = position / PAIR_BYTES;
                    if !state.nodes.has(node) {
                        let (left, right) = parent.pair();
                        let mut bytes = [0; PAIR_BYTES as usize];
                        bytes[..32].copy_from_slice(left.as_bytes());
                        bytes[32..].copy_from_slice(right.as_bytes());
                        pairs.insert(node, bytes);
                    }
                }
                Verified::Leaf(leaf) => {
                    let (offset, data) = (leaf.offset(), leaf.data());
                    if leaf.layer() != self.id || leaf.layer_size() != self.size {
                        return Err(misfit(offset, "it was proven for another layer"));
                    }
                    let group = offset / GROUP_BYTES;
                    let len = GROUP_BYTES.min(self.size.saturating_sub(offset));
                    if offset % GROUP_BYTES != 0 || group >= state.have.len() || data.len() as u64 != len {
                        return Err(misfit(offset, "it is not a whole group"));
                    }
                    if state.have.has(group) {
                        continue;
                    }
                    let known = |node: u64| state.nodes.has(node) || pairs.contains_key(&node);
                    if !ancestors(group, state.have.len()).all(known) {
                        return Err(misfit(offset, "tree nodes above it were not given"));
                    }
                    leaves.insert(group, data);
                }
            }
        }
        Ok(Batch::new(pairs, leaves))
    }
}

/// What one call writes.
struct Batch<'a> {
    /// Pairs by the number of their node in pre-order.
    pairs: BTreeMap<u64, [u8; PAIR_BYTES as usize]>,
    /// Neighbouring groups: the first one's number and the bytes of each.
    runs: Vec<(u64, Vec<&'a [u8]>)>,
}

impl<'a> Batch<'a> {
    fn new(pairs: BTreeMap<u64, [u8; PAIR_BYTES as usize]>, leaves: BTreeMap<u64, &'a [u8]>) -> Self {
        let mut runs: Vec<(u64, Vec<&'a [u8]>)> = Vec::new();
        for (group, data) in leaves {
            match runs.last_mut() {
                Some((first, parts)) if *first + parts.len() as u64 == group => parts.push(data),
                _ => runs.push((group, vec![data])),
            }
        }
        Self { pairs, runs }
    }
}

/// Pairs joined where their places in the file touch.
fn runs_of_pairs(pairs: &BTreeMap<u64, [u8; PAIR_BYTES as usize]>) -> Vec<(u64, Vec<u8>)> {
    let mut runs: Vec<(u64, Vec<u8>)> = Vec::new();
    for (node, bytes) in pairs {
        match runs.last_mut() {
            Some((first, run)) if *first + run.len() as u64 / PAIR_BYTES == *node => run.extend(bytes),
            _ => runs.push((*node, bytes.to_vec())),
        }
    }
    runs
}

/// What cannot be read claims nothing.
fn header_of(file: &File, path: &Path) -> Result<Option<Header>, StoreError> {
    match have::read_header(file) {
        Err(e) if is_unreadable(&e) => Ok(None),
        read => read.map_err(at(path, "read")),
    }
}

fn file_len(file: &File, path: &Path) -> Result<u64, StoreError> {
    Ok(file.metadata().map_err(at(path, "stat"))?.len())
}
