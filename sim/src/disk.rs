//! What a simulated host has proven and written: a bit per block, and group sets for the few blocks that are not whole.

use std::collections::BTreeMap;
use std::ops::Range;

use weighlock_protocol::wire::bao::{GroupSet, bounded};

use crate::layout::Layout;

/// Possession of one host. Survives its crashes.
#[derive(Debug, Clone)]
pub struct Disk {
    whole: Vec<u64>,
    parts: BTreeMap<u32, GroupSet>,
}

impl Disk {
    /// A disk that holds nothing.
    pub fn new(layout: &Layout) -> Self {
        Self { whole: vec![0; (layout.block_count as usize).div_ceil(64)], parts: BTreeMap::new() }
    }

    /// Adds groups of a layer. Returns the bytes that were not there before.
    pub fn add(&mut self, layout: &Layout, layer: u32, groups: &Range<u64>) -> u64 {
        let mut fresh_bytes = 0;
        for block in layout.blocks_of(layer, groups) {
            if self.has_block(block) {
                continue;
            }
            let all = layout.groups_of(layer, block);
            let now = all.start.max(groups.start)..all.end.min(groups.end);
            if now == all && !self.parts.contains_key(&block) {
                fresh_bytes += layout.span_bytes(layer, &all);
                self.set(block);
                continue;
            }
            let part = self.parts.entry(block).or_default();
            let fresh = GroupSet::from(now) - part.clone();
            let size = layout.layers[layer as usize].size;
            fresh_bytes += bounded(&fresh, size).map(|range| layout.span_bytes(layer, &range)).sum::<u64>();
            *part |= fresh;
            if GroupSet::from(all).is_subset(part) {
                self.parts.remove(&block);
                self.set(block);
            }
        }
        fresh_bytes
    }

    /// Adds a whole layer.
    pub fn fill(&mut self, layout: &Layout, layer: u32) {
        for block in layout.blocks(layer) {
            self.parts.remove(&block);
            self.set(block);
        }
    }

    /// Loses the whole blocks that groups of a layer touch. Returns the groups that are gone.
    pub fn spoil(&mut self, layout: &Layout, layer: u32, groups: &Range<u64>) -> GroupSet {
        let mut gone = GroupSet::empty();
        for block in layout.blocks_of(layer, groups) {
            if self.has_block(block) {
                self.whole[block as usize / 64] &= !(1 << (block % 64));
                gone |= GroupSet::from(layout.groups_of(layer, block));
            }
        }
        gone
    }

    /// True if it holds all of these groups.
    pub fn holds(&self, layout: &Layout, layer: u32, groups: &Range<u64>) -> bool {
        layout.blocks_of(layer, groups).all(|block| {
            if self.has_block(block) {
                return true;
            }
            let all = layout.groups_of(layer, block);
            let asked = GroupSet::from(all.start.max(groups.start)..all.end.min(groups.end));
            self.parts.get(&block).is_some_and(|part| asked.is_subset(part))
        })
    }

    /// True if it holds any of these groups.
    pub fn touches(&self, layout: &Layout, layer: u32, groups: &Range<u64>) -> bool {
        layout.blocks_of(layer, groups).any(|block| {
            let asked = || GroupSet::from(groups.clone());
            self.has_block(block) || self.parts.get(&block).is_some_and(|part| part.intersects(&asked()))
        })
    }

    /// Groups of a layer that are not there.
    pub fn missing(&self, layout: &Layout, layer: u32) -> GroupSet {
        let mut missing = GroupSet::empty();
        let mut open: Option<Range<u64>> = None;
        for block in layout.blocks(layer).filter(|block| !self.has_block(*block)) {
            let all = layout.groups_of(layer, block);
            if let Some(part) = self.parts.get(&block) {
                missing |= GroupSet::from(all) - part.clone();
            } else if let Some(run) = open.as_mut().filter(|run| run.end == all.start) {
                run.end = all.end;
            } else if let Some(run) = open.replace(all) {
                missing |= GroupSet::from(run);
            }
        }
        open.map_or(missing.clone(), |run| missing | GroupSet::from(run))
    }

    /// Bytes of these layers that are not there.
    pub fn lacks_bytes(&self, layout: &Layout, layers: &[u32]) -> u64 {
        let lacks = |layer: &u32| {
            let size = layout.layers[*layer as usize].size;
            let missing = self.missing(layout, *layer);
            bounded(&missing, size).map(|range| layout.span_bytes(*layer, &range)).sum::<u64>()
        };
        layers.iter().map(lacks).sum()
    }

    /// True if a block is whole.
    pub fn has_block(&self, block: u32) -> bool {
        self.whole[block as usize / 64] & (1 << (block % 64)) != 0
    }

    fn set(&mut self, block: u32) {
        self.whole[block as usize / 64] |= 1 << (block % 64);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use weighlock_protocol::swarm::SwarmConfig;
    use weighlock_protocol::wire::bao::{GROUP_BYTES, all_groups};

    use super::*;

    proptest! {
        #[test]
        fn a_disk_is_a_group_set(
            size in 1u64..40 * GROUP_BYTES,
            ranges in prop::collection::vec((0u64..40, 0u64..40, any::<bool>()), 1..20),
        ) {
            let config = SwarmConfig { piece_bytes_min: 4 * GROUP_BYTES, ..SwarmConfig::default() };
            let layout = Layout::new(&config, &[5, size], &[vec![0, 1]]);
            let mut disk = Disk::new(&layout);
            let (mut model, all) = (GroupSet::empty(), all_groups(size));
            for (a, b, adds) in ranges {
                let range = GroupSet::from(a.min(b)..a.max(b)) & all.clone();
                let Some(range) = bounded(&range, size).next() else { continue };
                let groups = GroupSet::from(range.clone());
                prop_assert_eq!(disk.holds(&layout, 1, &range), groups.is_subset(&model));
                prop_assert_eq!(disk.touches(&layout, 1, &range), groups.intersects(&model));
                if adds {
                    let before = disk.lacks_bytes(&layout, &[1]);
                    let fresh = disk.add(&layout, 1, &range);
                    model |= groups;
                    prop_assert_eq!(before - disk.lacks_bytes(&layout, &[1]), fresh);
                } else {
                    let gone = disk.spoil(&layout, 1, &range);
                    prop_assert!(gone.is_subset(&model));
                    model -= gone;
                }
                prop_assert_eq!(disk.missing(&layout, 1), &all - &model);
            }
            prop_assert_eq!(disk.lacks_bytes(&layout, &[0]), 5);
        }
    }
}
