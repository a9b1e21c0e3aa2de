//! Which ranges of an artifact's files are proven on this host: what is new since the last look, layer by layer.

use std::sync::Arc;

use weighlock_cache::{PartialLayer, Store, StoreError};
use weighlock_protocol::LayerId;
use weighlock_protocol::manifest::Layer;
use weighlock_protocol::wire::bao::{GROUP_BYTES, GroupSet, all_groups, bounded, group_count};

use crate::error::{Error, Result};

/// Files that are looked at, with what was told of each. A look costs a read of the layer table for each that is
/// not done, and a few system calls for those that were not begun.
#[derive(Debug)]
pub(crate) struct Readiness {
    store: Store,
    files: Vec<Followed>,
}

#[derive(Debug)]
struct Followed {
    path: String,
    layer: LayerId,
    size: u64,
    /// Shared with who writes to it, once it was begun.
    partial: Option<Arc<PartialLayer>>,
    /// The file that `told` is about.
    inode: Option<u64>,
    told: GroupSet,
    told_count: u64,
    /// Sealed, and all of it told.
    done: bool,
}

/// Ranges of one file that became ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Grown {
    /// Path in the manifest.
    pub(crate) path: String,
    /// Of the file that has them. When it changes, nothing of what was told before counts.
    pub(crate) inode: u64,
    /// Bytes, each with a start and an end, ascending, not touching each other.
    pub(crate) ready: Vec<(u64, u64)>,
}

impl Readiness {
    /// Nothing was told yet.
    pub(crate) fn of<'a>(store: Store, files: impl IntoIterator<Item = &'a Layer>) -> Self {
        let files = files.into_iter().map(|layer| Followed {
            path: layer.path.clone(),
            layer: layer.id,
            size: layer.size,
            partial: None,
            inode: None,
            told: GroupSet::empty(),
            told_count: 0,
            done: false,
        });
        Self { store, files: files.collect() }
    }

    /// What became ready since the last look. Blocks on the disk.
    ///
    /// # Errors
    /// The store failed.
    pub(crate) fn look(&mut self) -> Result<Vec<Grown>> {
        let mut grown = Vec::new();
        for file in self.files.iter_mut().filter(|file| !file.done) {
            grown.extend(file.look(&self.store).map_err(Error::from)?);
        }
        Ok(grown)
    }

    /// Whether every file is sealed and all of it was told.
    pub(crate) fn is_done(&self) -> bool {
        self.files.iter().all(|file| file.done)
    }

    /// The inode of the first file, once all of `wanted` of it was told.
    pub(crate) fn first_has(&self, wanted: &GroupSet) -> Option<u64> {
        let file = self.files.first()?;
        file.inode.filter(|_| (wanted - &file.told).is_empty())
    }

    /// The layers that are not done, with their sizes in bytes.
    pub(crate) fn open(&self) -> impl Iterator<Item = (LayerId, u64)> + '_ {
        self.files.iter().filter(|file| !file.done).map(|file| (file.layer, file.size))
    }
}

impl Followed {
    fn look(&mut self, store: &Store) -> Result<Option<Grown>, StoreError> {
        // As on record: who hands out the file proves it if it changed since.
        if let Some(sealed) = store.layer(&self.layer)? {
            self.done = true;
            self.partial = None;
            return Ok(self.tell(sealed.inode, all_groups(self.size)));
        }
        if self.partial.is_none() {
            self.partial = store.begun(&self.layer)?;
        }
        let Some(partial) = &self.partial else { return Ok(None) };
        if partial.have_count() == self.told_count && self.inode.is_some() {
            return Ok(None);
        }
        let (inode, have) = (partial.inode()?, partial.have());
        Ok(self.tell(inode, have))
    }

    fn tell(&mut self, inode: u64, have: GroupSet) -> Option<Grown> {
        if self.inode != Some(inode) {
            (self.inode, self.told) = (Some(inode), GroupSet::empty());
        }
        let new = &have - &self.told;
        self.told_count = bounded(&have, self.size).map(|range| range.end - range.start).sum();
        self.told = have;
        let bytes = |group: u64| (group * GROUP_BYTES).min(self.size);
        let ready: Vec<(u64, u64)> =
            bounded(&new, self.size).map(|range| (bytes(range.start), bytes(range.end))).collect();
        (!ready.is_empty()).then(|| Grown { path: self.path.clone(), inode, ready })
    }
}

/// The groups that `start..end` touches in a layer of `size` bytes; `None` for a range that is empty or passes the
/// end.
pub(crate) fn groups_of(start: u64, end: u64, size: u64) -> Option<GroupSet> {
    (start < end && end <= size)
        .then(|| GroupSet::from(start / GROUP_BYTES..end.div_ceil(GROUP_BYTES).min(group_count(size))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_become_groups_and_absurd_ones_nothing() {
        let size = 5 * GROUP_BYTES + 9;
        let cases = [
            ((0, 1), Some(0..1)),
            ((0, GROUP_BYTES), Some(0..1)),
            ((GROUP_BYTES - 1, GROUP_BYTES + 1), Some(0..2)),
            ((5 * GROUP_BYTES, size), Some(5..6)),
            ((0, size), Some(0..6)),
            ((3, 3), None),
            ((4, 3), None),
            ((0, size + 1), None),
            ((0, u64::MAX), None),
            ((u64::MAX - 1, u64::MAX), None),
        ];
        for ((start, end), expected) in cases {
            assert_eq!(groups_of(start, end, size), expected.map(GroupSet::from), "{start}..{end}");
        }
        assert_eq!(groups_of(0, 0, 0), None);
    }
}
