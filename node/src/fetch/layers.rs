//! Partial layers of all fetches: opened once, written back as they grow, sealed in batches.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::task::JoinSet;
use tracing::debug;
use weighlock_cache::{PartialLayer, Store, StoreError};
use weighlock_protocol::LayerId;

use super::blocking;
use super::delta::OpenLayers;
use crate::error::{Error, Result};

/// Layers sealed together: one sync of the file system for many small files.
const SEAL_BATCH_MAX: usize = 256;

/// A layer is written back to the disk each time that this many bytes came, so that sealing has little left to wait
/// for.
const WRITE_BACK_BYTES: u64 = 128 << 20;

/// Owns the open partial layers.
pub(super) struct Layers {
    store: Store,
    open: BTreeMap<LayerId, Arc<PartialLayer>>,
    unsealed: Vec<LayerId>,
    sealing: JoinSet<(Vec<LayerId>, Result<()>)>,
    write_back: JoinSet<()>,
    unwritten_bytes: u64,
}

impl Layers {
    pub(super) fn new(store: Store) -> Self {
        Self {
            store,
            open: BTreeMap::new(),
            unsealed: Vec::new(),
            sealing: JoinSet::new(),
            write_back: JoinSet::new(),
            unwritten_bytes: 0,
        }
    }

    /// Takes over layers that are open already. One that is open here too stays as it is: both share their state.
    pub(super) fn adopt(&mut self, open: OpenLayers) {
        for (layer, partial) in open {
            self.open.entry(layer).or_insert(partial);
        }
    }

    /// The layer's files, created or resumed, quickly.
    pub(super) fn open(
        &mut self,
        layer: LayerId,
        size: u64,
    ) -> std::result::Result<Arc<PartialLayer>, StoreError> {
        if let Some(partial) = self.open.get(&layer) {
            return Ok(partial.clone());
        }
        let partial = self.store.partial(&layer, size)?;
        self.open.insert(layer, partial.clone());
        Ok(partial)
    }

    pub(super) fn is_open(&self, layer: &LayerId) -> Option<&Arc<PartialLayer>> {
        self.open.get(layer)
    }

    /// Nobody fetches the layer any more.
    pub(super) fn close(&mut self, layer: &LayerId) {
        if !self.unsealed.contains(layer) {
            self.open.remove(layer);
        }
    }

    /// The layer is complete: it is sealed with the next batch.
    pub(super) fn complete(&mut self, layer: LayerId) {
        if !self.unsealed.contains(&layer) {
            self.unsealed.push(layer);
        }
    }

    /// Seals complete layers in the background, one batch at a time.
    pub(super) fn seal(&mut self) {
        if self.unsealed.is_empty() || !self.sealing.is_empty() {
            return;
        }
        let batch: Vec<LayerId> = self.unsealed.drain(..self.unsealed.len().min(SEAL_BATCH_MAX)).collect();
        let partials: Vec<Arc<PartialLayer>> =
            batch.iter().filter_map(|layer| self.open.remove(layer)).collect();
        let store = self.store.clone();
        self.sealing.spawn(async move {
            let sealed = blocking(move || store.seal_all(&partials).map_err(Error::from)).await;
            (batch, sealed)
        });
    }

    /// Waits for the next batch: its layers, and whether they are sealed. Never ends while nothing is being sealed.
    pub(super) async fn sealed(&mut self) -> (Vec<LayerId>, Result<()>) {
        match self.sealing.join_next().await {
            Some(Ok(sealed)) => sealed,
            Some(Err(e)) => (Vec::new(), Err(Error::internal(format!("a worker ended: {e}")))),
            None => std::future::pending().await,
        }
    }

    /// Bytes came: starts to write the layer back, one at a time.
    pub(super) fn written(&mut self, layer: &LayerId, bytes: u64) {
        self.unwritten_bytes += bytes;
        while self.write_back.try_join_next().is_some() {}
        if self.unwritten_bytes < WRITE_BACK_BYTES || !self.write_back.is_empty() {
            return;
        }
        if let Some(partial) = self.open.get(layer).cloned() {
            self.unwritten_bytes = 0;
            self.write_back.spawn_blocking(move || {
                if let Err(e) = partial.checkpoint() {
                    debug!(error = %e, "not written back; sealing will say why");
                }
            });
        }
    }

    /// Waits for what is under way.
    pub(super) async fn wind_down(&mut self) {
        while self.sealing.join_next().await.is_some() {}
        while self.write_back.join_next().await.is_some() {}
    }
}
