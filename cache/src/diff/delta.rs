//! How many bytes a fetch of B moves to a host that holds A.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use weighlock_protocol::LayerId;
use weighlock_protocol::wire::bao::GROUP_BYTES;
use weighlock_protocol::wire::tree::tree_bytes;

use super::side::{Side, SideFile};
use super::tensors::Locus;

/// Smaller files are fetched as they are. The same as the fetcher's own default.
const FILE_BYTES_MIN: u64 = 1 << 20;

/// What a fetch of B moves to a host that holds A. Equal tensors are matched by name, or by hash where both sides are
/// artifacts; only 16 KiB groups that they do not cover wholly are moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Delta {
    /// Bytes of all files of B.
    pub total_bytes: u64,
    /// Bytes that are moved, trees included; contract and manifest, a few KiB, come on top.
    pub moved_bytes: u64,
    /// Of these, hash trees that prove the bytes that are taken from A.
    pub tree_bytes: u64,
}

/// `equal` says where equal tensors of B lie in A, `whole` which files of B are equal to files of A.
pub(super) fn delta(a: &Side, b: &Side, equal: &BTreeMap<Locus, Locus>, whole: &BTreeSet<usize>) -> Delta {
    let layers: BTreeSet<LayerId> = a.files.iter().filter_map(|file| file.layer).collect();
    let hashes: BTreeSet<LayerId> =
        a.files.iter().flat_map(|file| file.hashes.iter().flatten()).copied().collect();
    let mut delta = Delta { total_bytes: b.total_bytes(), ..Delta::default() };
    for (index, file) in b.files.iter().enumerate() {
        if whole.contains(&index) || file.layer.is_some_and(|layer| layers.contains(&layer)) {
            continue;
        }
        let known = file.tensors.iter().enumerate().filter(|(tensor, _)| {
            let hash = file.hashes.as_ref().map(|of_file| of_file[*tensor]);
            equal.contains_key(&(index, *tensor)) || hash.is_some_and(|hash| hashes.contains(&hash))
        });
        let covered = covered(file, known.map(|(_, span)| (span.offset, span.offset + span.len)));
        let tree = tree_bytes(file.size);
        // The tree must be worth its bytes.
        if file.size < FILE_BYTES_MIN || covered < 2 * tree {
            delta.moved_bytes += file.size;
        } else {
            delta.moved_bytes += file.size - covered + tree;
            delta.tree_bytes += tree;
        }
    }
    delta
}

/// Bytes of the groups that known stretches, which come by offset, cover wholly; several that touch may do together.
fn covered(file: &SideFile, known: impl Iterator<Item = (u64, u64)>) -> u64 {
    let mut known = known.filter(|(start, end)| start < end).peekable();
    let mut bytes = 0;
    while let Some((start, mut end)) = known.next() {
        while let Some((_, further)) = known.next_if(|(next, _)| *next == end) {
            end = further;
        }
        let from = start.next_multiple_of(GROUP_BYTES);
        let to = if end == file.size { end } else { end / GROUP_BYTES * GROUP_BYTES };
        bytes += to.saturating_sub(from);
    }
    bytes
}
