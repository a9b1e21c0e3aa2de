//! Older formats of the store, carried over within the transaction that opens it: a kill leaves the old one whole.

use redb::{ReadableTable, TableDefinition, TableError, WriteTransaction};

use super::MetaError;
use super::tables::LAYERS;

/// Format 1: size, SHA-256 if proven, modification time in nanoseconds, inode.
type LayerRowV1 = (u64, Option<[u8; 32]>, i64, u64);
const LAYERS_V1: TableDefinition<[u8; 32], LayerRowV1> = TableDefinition::new("layers_v1");

/// Brings the tables of format `found` to the newest; a store without a format is new.
pub(super) fn run(txn: &WriteTransaction, found: Option<u32>) -> Result<(), MetaError> {
    if found == Some(1) {
        layers_from_v1(txn)?;
    }
    Ok(())
}

/// Format 2 remembers when a layer was proven: as far as format 1 tells, when it was sealed.
fn layers_from_v1(txn: &WriteTransaction) -> Result<(), MetaError> {
    {
        let old = match txn.open_table(LAYERS_V1) {
            Err(TableError::TableDoesNotExist(_)) => return Ok(()),
            old => old?,
        };
        let mut new = txn.open_table(LAYERS)?;
        for row in old.iter()? {
            let (id, row) = row?;
            let (size, sha256, mtime_ns, inode) = row.value();
            let proven_s = u64::try_from(mtime_ns / 1_000_000_000).unwrap_or(0);
            new.insert(id.value(), (size, sha256, mtime_ns, inode, proven_s))?;
        }
    }
    txn.delete_table(LAYERS_V1)?;
    Ok(())
}
