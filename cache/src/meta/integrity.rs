//! Layers that are damaged: on record from when that is found until they are whole again or removed.

use std::sync::atomic::Ordering;

use redb::ReadableTable;
use serde::{Deserialize, Serialize};
use weighlock_protocol::LayerId;

use super::tables::{DAMAGED, LAYERS};
use super::{Meta, MetaError};
use crate::error::StoreError;

/// What is on record about a damaged layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DamageRow {
    pub(crate) size: u64,
    pub(crate) found_s: u64,
    pub(crate) reason: String,
    pub(crate) bad_groups: u64,
    pub(crate) groups: u64,
}

impl Meta {
    /// Forgets sealed layers and writes down that they are damaged, in one transaction.
    pub(crate) fn set_aside(&self, layers: &[(LayerId, DamageRow)]) -> Result<(), StoreError> {
        if layers.is_empty() {
            return Ok(());
        }
        // On a full disk, too, a damaged layer must leave.
        self.urgent("set layers aside", |txn| {
            let (mut sealed, mut damaged) = (txn.open_table(LAYERS)?, txn.open_table(DAMAGED)?);
            for (id, row) in layers {
                sealed.remove(id.0)?;
                damaged.insert(id.0, to_json(row)?.as_slice())?;
            }
            Ok(())
        })
    }

    /// Corrects what is on record about a damaged layer, if it still is.
    pub(crate) fn set_damage(&self, id: &LayerId, row: &DamageRow) -> Result<(), StoreError> {
        self.urgent("record damage", |txn| {
            let mut damaged = txn.open_table(DAMAGED)?;
            if damaged.get(id.0)?.is_some() {
                damaged.insert(id.0, to_json(row)?.as_slice())?;
            }
            Ok(())
        })
    }

    pub(crate) fn damaged(&self) -> Result<Vec<(LayerId, DamageRow)>, StoreError> {
        self.read("list damaged layers", |txn| {
            let table = txn.open_table(DAMAGED)?;
            let rows = table.iter()?.map(|row| {
                let (id, row) = row?;
                let row = serde_json::from_slice(row.value()).map_err(corrupted)?;
                Ok((LayerId(id.value()), row))
            });
            rows.collect()
        })
    }

    /// Damage of one layer, if it is known and not healed.
    pub(crate) fn damage(&self, id: &LayerId) -> Result<Option<DamageRow>, StoreError> {
        self.read("read damage", |txn| {
            let row = txn.open_table(DAMAGED)?.get(id.0)?;
            row.map(|row| serde_json::from_slice(row.value()).map_err(corrupted)).transpose()
        })
    }

    /// A damaged layer was removed, or is not wanted any more.
    pub(crate) fn forget_damage(&self, id: &LayerId) -> Result<(), StoreError> {
        let known = self.read("read damage", |txn| Ok(txn.open_table(DAMAGED)?.get(id.0)?.is_some()))?;
        if !known {
            return Ok(());
        }
        self.urgent("forget damage", |txn| {
            txn.open_table(DAMAGED)?.remove(id.0)?;
            Ok(())
        })
    }

    /// Damaged layers that became whole again since the store was opened.
    pub(crate) fn healed(&self) -> u64 {
        self.healed.load(Ordering::Relaxed)
    }
}

fn to_json(row: &DamageRow) -> Result<Vec<u8>, MetaError> {
    serde_json::to_vec(row).map_err(corrupted)
}

fn corrupted(e: serde_json::Error) -> MetaError {
    MetaError(redb::Error::Corrupted(format!("a damaged layer's record: {e}")))
}
