//! Taking groups from local bytes of whatever origin: the proven tree of the layer decides which of them are right.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::sync::PoisonError;

use blake3::Hash;
use rayon::prelude::*;
use weighlock_protocol::wire::bao::{GROUP_BYTES, GroupSet, group_count, subtree_hash};

use super::subtree::{ancestors, parent_of};
use super::{Batch, Fate, PartialLayer};
use crate::error::{StoreError, at};
use crate::layers::outboard::{PAIR_BYTES, pair_of};

/// Groups from which on several threads hash them.
const PARALLEL_GROUPS_MIN: usize = 16;

/// A group by number, its bytes, and the hash that the tree says it has.
type Candidate<'a> = (u64, &'a [u8], Hash);

impl PartialLayer {
    /// Writes those groups of `bytes` that hash to what the tree says of their place; `bytes` begins with group
    /// `first` and has whole groups. Groups that are wrong, that are here already, or above which not all tree nodes
    /// were given yet (by [`write`](Self::write)) are left out. Answers the groups that it wrote.
    ///
    /// # Errors
    /// Bytes that are not whole groups of this layer, no space, or an io error.
    pub fn adopt(&self, first: u64, bytes: &[u8]) -> Result<GroupSet, StoreError> {
        let offset = first.saturating_mul(GROUP_BYTES);
        let end = offset.saturating_add(bytes.len() as u64);
        if end > self.size || (!end.is_multiple_of(GROUP_BYTES) && end != self.size) {
            return Err(StoreError::Misfit { layer: self.id, offset, reason: "it is not a whole group" });
        }
        let fate = self.fate.read().unwrap_or_else(PoisonError::into_inner);
        if *fate == Fate::Sealed {
            return Ok(GroupSet::empty());
        }
        let candidates = self.expected(first, bytes)?;
        let is_root = self.size <= GROUP_BYTES;
        let holds = |(group, bytes, expected): &Candidate<'_>| {
            subtree_hash(group * GROUP_BYTES, bytes, is_root) == *expected
        };
        let proven: Vec<bool> = if candidates.len() >= PARALLEL_GROUPS_MIN {
            candidates.par_iter().map(holds).collect()
        } else {
            candidates.iter().map(holds).collect()
        };
        let mut leaves: BTreeMap<u64, &[u8]> = BTreeMap::new();
        let mut boundaries: Vec<u64> = Vec::new();
        for ((group, bytes, _), _) in candidates.iter().zip(proven).filter(|(_, holds)| *holds) {
            leaves.insert(*group, bytes);
            match boundaries.last_mut() {
                Some(end) if *end == *group => *end += 1,
                _ => boundaries.extend([*group, group + 1]),
            }
        }
        self.commit(&Batch::new(BTreeMap::new(), leaves))?;
        Ok(GroupSet::new(boundaries.into()).unwrap_or_else(GroupSet::empty))
    }

    /// The groups of `bytes` that are missing here and of which the tree says the hash, with that hash.
    fn expected<'a>(&self, first: u64, bytes: &'a [u8]) -> Result<Vec<Candidate<'a>>, StoreError> {
        let groups: Vec<(u64, &[u8])> = {
            let state = self.state();
            let count = state.have.len();
            let known = |group: u64| {
                !state.have.has(group) && ancestors(group, count).all(|node| state.nodes.has(node))
            };
            (first..).zip(bytes.chunks(GROUP_BYTES as usize)).filter(|(group, _)| known(*group)).collect()
        };
        let Some(tree) = &self.tree else {
            // The only group of a layer hashes to the layer's id.
            return Ok(groups
                .into_iter()
                .map(|(group, data)| (group, data, Hash::from_bytes(self.id.0)))
                .collect());
        };
        let mut out = Vec::with_capacity(groups.len());
        let mut last: Option<(u64, (Hash, Hash))> = None;
        for (group, data) in groups {
            let Some((node, is_right)) = parent_of(group, group_count(self.size)) else { continue };
            let pair = match last {
                Some((known, pair)) if known == node => pair,
                _ => {
                    let mut raw = [0; PAIR_BYTES as usize];
                    tree.read_exact_at(&mut raw, node * PAIR_BYTES).map_err(at(&self.paths.tree, "read"))?;
                    pair_of(&raw)
                }
            };
            last = Some((node, pair));
            out.push((group, data, if is_right { pair.1 } else { pair.0 }));
        }
        Ok(out)
    }
}
