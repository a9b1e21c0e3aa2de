//! Proving a partial layer again from the root down, after its have-map lost its credit.

use std::ops::Range;
use std::os::unix::fs::FileExt;

use blake3::Hash;
use weighlock_protocol::LayerId;
use weighlock_protocol::wire::bao::{GROUP_BYTES, group_count, parent_hash, subtree_hash};

use super::subtree::{Subtree, mark_ancestors};
use super::{PartialLayer, PartialPaths};
use crate::error::{StoreError, at, is_unreadable};
use crate::fs;
use crate::layers::have::{self, Bitmap, Header};
use crate::layers::outboard::{PAIR_BYTES, pair_of};

/// Groups below which a subtree is proven again on one thread.
const PARALLEL_GROUPS_MIN: u64 = 512;

impl PartialLayer {
    /// Writes a have-map that claims every group, under no boot id: whoever opens the layer first proves what of it
    /// holds. Data and tree need not be in their places yet.
    pub(crate) fn claim_all(paths: &PartialPaths, id: &LayerId, size: u64) -> Result<(), StoreError> {
        let temp = paths.have.with_extension("new");
        let made = (|| {
            let file = fs::create_reserved(&temp, (have::page_count(size) + 1) * 4096)?;
            let mut all = Bitmap::new(group_count(size));
            for group in 0..all.len() {
                all.set(group);
            }
            for page in 0..have::page_count(size) {
                let image = have::page_image(id, &all, page);
                have::write_page(&file, page, &image).map_err(at(&temp, "write"))?;
            }
            let header = Header { layer: *id, size, boot_id: String::new() };
            have::write_header(&file, &header).map_err(at(&temp, "write"))?;
            file.sync_all().map_err(at(&temp, "sync"))?;
            std::fs::rename(&temp, &paths.have).map_err(at(&temp, "rename"))
        })();
        if made.is_err() {
            // The error that made us stop is the one to report.
            let _ = fs::remove_file(&temp);
        }
        made
    }

    /// Writes proven groups of a byte range to the disk once more, from the page cache.
    pub(crate) fn rewrite(&self, bytes: Range<u64>) -> Result<(), StoreError> {
        for group in bytes.start / GROUP_BYTES..bytes.end.div_ceil(GROUP_BYTES) {
            let offset = group * GROUP_BYTES;
            let mut data = vec![0; GROUP_BYTES.min(self.size.saturating_sub(offset)) as usize];
            if self.state().have.has(group) {
                self.read_exact_at(&mut data, offset)?;
                self.data.write_all_at(&data, offset).map_err(at(&self.paths.data, "write"))?;
            }
        }
        Ok(())
    }

    /// Proves every claimed group from the root down, keeps what holds, and takes the layer over into this boot.
    pub(super) fn prove_again(&self, claimed: &Bitmap, boot_id: &str) -> Result<(), StoreError> {
        let groups = claimed.len();
        let root = Hash::from_bytes(self.id.0);
        let proven = self.prove_below(claimed, Subtree::whole(groups), root, true)?;
        let mut have = Bitmap::new(groups);
        for group in proven {
            have.set(group);
        }
        // Before anyone can get a descriptor: what did not survive must not be read through one.
        self.blank_all_but(&have)?;
        {
            let mut state = self.state();
            let dropped = claimed.count() - have.count();
            if dropped > 0 {
                tracing::warn!(layer = %self.id.short(), dropped, "groups of a partial layer did not survive; fetching them again");
            }
            let mut nodes = Bitmap::new(groups - 1);
            mark_ancestors(&have, &mut nodes, 0, groups, 0);
            state.dirty = (0..have::page_count(self.size)).collect();
            state.have = have;
            state.nodes = nodes;
        }
        self.flush_have()?;
        // Only now may the new boot's id vouch for the pages.
        let header = Header { layer: self.id, size: self.size, boot_id: boot_id.to_owned() };
        have::write_header(&self.have_file, &header).map_err(at(&self.paths.have, "write"))
    }

    /// The claimed groups of a subtree that hold against `expected`.
    fn prove_below(
        &self,
        claimed: &Bitmap,
        subtree: Subtree,
        expected: Hash,
        is_root: bool,
    ) -> Result<Vec<u64>, StoreError> {
        let Subtree { first, groups, node } = subtree;
        if !claimed.any(first, first + groups) {
            return Ok(Vec::new());
        }
        if groups == 1 {
            let offset = first * GROUP_BYTES;
            let mut bytes = vec![0; GROUP_BYTES.min(self.size - offset) as usize];
            // A bad sector is one more way for a group not to have survived.
            let read = match self.data.read_exact_at(&mut bytes, offset) {
                Err(e) if !is_unreadable(&e) => return Err(at(&self.paths.data, "read")(e)),
                read => read,
            };
            let holds = read.is_ok() && subtree_hash(offset, &bytes, is_root) == expected;
            return Ok(if holds { vec![first] } else { Vec::new() });
        }
        let mut bytes = [0; PAIR_BYTES as usize];
        let read = match self.tree.as_ref().map(|tree| tree.read_exact_at(&mut bytes, node * PAIR_BYTES)) {
            Some(Err(e)) if !is_unreadable(&e) => return Err(at(&self.paths.tree, "read")(e)),
            read => read,
        };
        let pair = pair_of(&bytes);
        if !matches!(read, Some(Ok(()))) || parent_hash(&pair, is_root) != expected {
            return Ok(Vec::new());
        }
        let (left, right) = subtree.children();
        let left = || self.prove_below(claimed, left, pair.0, false);
        let right = || self.prove_below(claimed, right, pair.1, false);
        let (left, right) =
            if groups >= PARALLEL_GROUPS_MIN { rayon::join(left, right) } else { (left(), right()) };
        let mut proven = left?;
        proven.extend(right?);
        Ok(proven)
    }
}
