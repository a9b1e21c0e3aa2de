//! Reads local bytes, lets the partial layer prove them against its tree, and keeps those that hold. Blocks.

use std::collections::BTreeMap;

use tokio_util::sync::CancellationToken;
use tracing::debug;
use weighlock_cache::{LayerReader, PartialLayer, Store};
use weighlock_protocol::LayerId;
use weighlock_protocol::wire::bao::{GROUP_BYTES, GroupSet, bounded, bytes_in};

use super::DeltaLimits;
use super::plan::LayerPlan;
use crate::error::{Error, Result};

/// Written bytes after which a layer is written back, so that sealing has little left to wait for.
const WRITE_BACK_BYTES: u64 = 128 << 20;

/// Copies what holds of `candidates` into `partial`. `tell` hears the bytes of each batch. Answers the bytes copied.
///
/// # Errors
/// The disk that is written to. A source that cannot be read is left.
pub(super) fn run(
    store: &Store,
    plan: &LayerPlan,
    candidates: &GroupSet,
    partial: &PartialLayer,
    limits: &DeltaLimits,
    tell: &dyn Fn(u64),
    cancel: &CancellationToken,
) -> Result<u64> {
    let mut sources = Sources { store, open: BTreeMap::new(), open_max: limits.sources_max.max(1) };
    let batch_groups = (limits.batch_bytes as u64 / GROUP_BYTES).max(1);
    let mut buffer = Vec::new();
    let (mut copied, mut unwritten) = (0, 0);
    for run in bounded(candidates, plan.size) {
        let mut group = run.start;
        while group < run.end {
            if cancel.is_cancelled() {
                return Ok(copied);
            }
            let end = (group + batch_groups).min(run.end);
            let bytes = group * GROUP_BYTES..(end * GROUP_BYTES).min(plan.size);
            buffer.resize((bytes.end - bytes.start) as usize, 0);
            if sources.fill(&mut buffer, plan, bytes) {
                let taken = partial.adopt(group, &buffer).map_err(Error::from)?;
                let taken = bytes_in(&taken, plan.size);
                copied += taken;
                unwritten += taken;
                tell(taken);
            }
            if unwritten >= WRITE_BACK_BYTES {
                partial.checkpoint().map_err(Error::from)?;
                unwritten = 0;
            }
            group = end;
        }
    }
    Ok(copied)
}

/// Local layers that are read from.
struct Sources<'a> {
    store: &'a Store,
    /// `None` for one that cannot be read.
    open: BTreeMap<LayerId, Option<LayerReader>>,
    open_max: usize,
}

impl Sources<'_> {
    /// Fills `buffer` with what is said to belong at `range`. False if a source cannot be read.
    fn fill(&mut self, buffer: &mut [u8], plan: &LayerPlan, range: std::ops::Range<u64>) -> bool {
        plan.parts(range).all(|(at, from, start)| {
            let Some(reader) = self.reader(from) else { return false };
            match reader.read_exact_at(&mut buffer[at], start) {
                Ok(()) => true,
                Err(e) => {
                    debug!(layer = %from, error = %e, "a local layer cannot be read");
                    self.open.insert(from, None);
                    false
                }
            }
        })
    }

    fn reader(&mut self, layer: LayerId) -> Option<LayerReader> {
        if !self.open.contains_key(&layer) {
            if self.open.len() >= self.open_max {
                self.open.clear();
            }
            let reader = self.store.reader(&layer).unwrap_or_else(|e| {
                debug!(layer = %layer, error = %e, "a local layer cannot be opened");
                None
            });
            self.open.insert(layer, reader);
        }
        self.open.get(&layer).cloned().flatten()
    }
}
