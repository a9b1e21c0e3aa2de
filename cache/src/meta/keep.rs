//! Rows about what is kept: pins, last uses, and layers whose files are being removed.

use redb::ReadableTable;
use weighlock_protocol::{LayerId, ManifestDigest};

use super::Meta;
use super::tables::{GONE, HELD, LAYERS, PINS, USED};
use crate::error::StoreError;

impl Meta {
    /// Forgets layers, and with them an artifact, in one transaction. Their files are still to be removed; until
    /// [`clear_gone`](Self::clear_gone) the next open would do it.
    pub(crate) fn drop_for_good(
        &self,
        artifact: Option<&ManifestDigest>,
        layers: &[LayerId],
    ) -> Result<(), StoreError> {
        self.urgent("let go of layers", |txn| {
            if let Some(digest) = artifact {
                txn.open_table(HELD)?.remove(digest.0)?;
                txn.open_table(USED)?.remove(digest.0)?;
            }
            let (mut table, mut gone) = (txn.open_table(LAYERS)?, txn.open_table(GONE)?);
            for id in layers {
                table.remove(id.0)?;
                gone.insert(id.0, ())?;
            }
            Ok(())
        })
    }

    pub(crate) fn clear_gone(&self, layers: &[LayerId]) -> Result<(), StoreError> {
        if layers.is_empty() {
            return Ok(());
        }
        self.urgent("forget removed layers", |txn| {
            let mut gone = txn.open_table(GONE)?;
            for id in layers {
                gone.remove(id.0)?;
            }
            Ok(())
        })
    }

    pub(crate) fn gone(&self) -> Result<Vec<LayerId>, StoreError> {
        self.read("list removed layers", |txn| {
            let table = txn.open_table(GONE)?;
            table.iter()?.map(|row| Ok(LayerId(row?.0.value()))).collect()
        })
    }

    pub(crate) fn set_used(&self, rows: &[(ManifestDigest, u64)]) -> Result<(), StoreError> {
        self.add("note last uses", |txn| {
            let (mut table, held) = (txn.open_table(USED)?, txn.open_table(HELD)?);
            for (digest, time) in rows {
                // What was let go of meanwhile needs no row.
                if held.get(digest.0)?.is_some() {
                    table.insert(digest.0, time)?;
                }
            }
            Ok(())
        })
    }

    pub(crate) fn used(&self) -> Result<Vec<(ManifestDigest, u64)>, StoreError> {
        self.read("list last uses", |txn| {
            let table = txn.open_table(USED)?;
            let mut rows = Vec::new();
            for row in table.iter()? {
                let (digest, time) = row?;
                rows.push((ManifestDigest(digest.value()), time.value()));
            }
            Ok(rows)
        })
    }

    /// Sets or removes a pin; says whether there was one.
    pub(crate) fn set_pin(&self, digest: &ManifestDigest, pin: Option<&[u8]>) -> Result<bool, StoreError> {
        let change = |txn: &redb::WriteTransaction| {
            let mut table = txn.open_table(PINS)?;
            let before = match pin {
                Some(pin) => table.insert(digest.0, pin)?.is_some(),
                None => table.remove(digest.0)?.is_some(),
            };
            Ok(before)
        };
        if pin.is_some() { self.add("pin", change) } else { self.urgent("unpin", change) }
    }

    pub(crate) fn is_pinned(&self, digest: &ManifestDigest) -> Result<bool, StoreError> {
        self.read("read a pin", |txn| Ok(txn.open_table(PINS)?.get(digest.0)?.is_some()))
    }

    pub(crate) fn pins(&self) -> Result<Vec<(ManifestDigest, Vec<u8>)>, StoreError> {
        self.read("list pins", |txn| {
            let table = txn.open_table(PINS)?;
            let mut rows = Vec::new();
            for row in table.iter()? {
                let (digest, pin) = row?;
                rows.push((ManifestDigest(digest.value()), pin.value().to_vec()));
            }
            Ok(rows)
        })
    }
}
