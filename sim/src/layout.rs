//! What is spread: the manifests of a run and their layers, and the blocks that possession is kept in.

use std::ops::Range;

use weighlock_protocol::LayerId;
use weighlock_protocol::swarm::{SwarmConfig, piece_bytes};
use weighlock_protocol::wire::bao::{GROUP_BYTES, group_count};

/// A layer.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Its name; the last four bytes are its number.
    pub id: LayerId,
    /// Bytes.
    pub size: u64,
    /// Its first block.
    pub first_block: u32,
}

/// A manifest.
#[derive(Debug, Clone)]
pub struct Model {
    /// Its layers by number, in loading order.
    pub layers: Vec<u32>,
    /// Bytes of all of them.
    pub bytes: u64,
}

/// All layers and manifests of a run.
#[derive(Debug, Clone)]
pub struct Layout {
    /// Layers by number.
    pub layers: Vec<Layer>,
    /// Manifests by number, which is also their `WorkId`.
    pub models: Vec<Model>,
    /// Blocks of all layers.
    pub block_count: u32,
    block_groups: u64,
}

impl Layout {
    /// Layers by size in bytes, manifests by the numbers of their layers. Blocks are as long as the shortest piece
    /// of the manifests.
    pub fn new(config: &SwarmConfig, sizes: &[u64], models: &[Vec<u32>]) -> Self {
        let models: Vec<Model> = models
            .iter()
            .map(|layers| Model {
                layers: layers.clone(),
                bytes: layers.iter().map(|layer| sizes[*layer as usize]).sum(),
            })
            .collect();
        let shortest = models.iter().map(|model| piece_bytes(config, model.bytes)).min();
        let block_groups = shortest.unwrap_or(GROUP_BYTES).div_ceil(GROUP_BYTES);
        let mut block_count = 0;
        let layer = |(number, size): (u32, &u64)| {
            let mut id = *blake3::hash(&number.to_le_bytes()).as_bytes();
            id[28..].copy_from_slice(&number.to_be_bytes());
            let first_block = block_count;
            block_count += u32::try_from(group_count(*size).div_ceil(block_groups)).unwrap_or(u32::MAX);
            Layer { id: LayerId(id), size: *size, first_block }
        };
        let layers = (0..).zip(sizes).map(layer).collect();
        Self { layers, models, block_count, block_groups }
    }

    /// Number of the layer that an id names.
    pub fn index_of(&self, id: &LayerId) -> Option<u32> {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&id.0[28..]);
        let number = u32::from_be_bytes(bytes);
        self.layers.get(number as usize).filter(|layer| layer.id == *id).map(|_| number)
    }

    /// Bytes in a range of groups of a layer.
    pub fn span_bytes(&self, layer: u32, groups: &Range<u64>) -> u64 {
        let size = self.layers[layer as usize].size;
        (groups.end * GROUP_BYTES).min(size).saturating_sub(groups.start * GROUP_BYTES)
    }

    /// Blocks of a layer.
    pub fn blocks(&self, layer: u32) -> Range<u32> {
        let layer = &self.layers[layer as usize];
        let count = group_count(layer.size).div_ceil(self.block_groups);
        layer.first_block..layer.first_block + u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// Blocks that a range of groups touches.
    pub fn blocks_of(&self, layer: u32, groups: &Range<u64>) -> Range<u32> {
        let first = self.layers[layer as usize].first_block;
        let at = |group: u64| first + u32::try_from(group / self.block_groups).unwrap_or(u32::MAX);
        if groups.is_empty() {
            at(groups.start)..at(groups.start)
        } else {
            at(groups.start)..at(groups.end - 1) + 1
        }
    }

    /// Groups of a block of a layer.
    pub fn groups_of(&self, layer: u32, block: u32) -> Range<u64> {
        let layer = &self.layers[layer as usize];
        let start = u64::from(block - layer.first_block) * self.block_groups;
        start..(start + self.block_groups).min(group_count(layer.size))
    }
}
