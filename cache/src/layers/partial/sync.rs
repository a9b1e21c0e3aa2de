//! Syncs of a layer on its way, and what follows when one fails.

use std::sync::atomic::Ordering;

use super::PartialLayer;
use crate::error::{StoreError, at};
use crate::fs;

impl PartialLayer {
    /// Makes what is held survive power loss: syncs data and tree, then the have-map.
    ///
    /// # Errors
    /// No space or an io error.
    pub fn checkpoint(&self) -> Result<(), StoreError> {
        self.sync_content()?;
        self.flush_have()?;
        self.have_file.sync_data().map_err(at(&self.paths.have, "sync"))?;
        // Their names, too: the files may be new.
        self.paths.have.parent().map_or(Ok(()), fs::sync_dir)
    }

    /// Syncs data and tree. Once that failed it fails for good, and whoever opens the layer anew begins with nothing.
    pub(crate) fn sync_content(&self) -> Result<(), StoreError> {
        let synced = self.data.sync_data().map_err(at(&self.paths.data, "sync")).and_then(|()| {
            self.tree.as_ref().map_or(Ok(()), |tree| tree.sync_data().map_err(at(&self.paths.tree, "sync")))
        });
        if synced.is_err() {
            self.lost_writes.store(true, Ordering::Release);
            // The error that made us stop is the one to report.
            let _ = fs::remove_file(&self.paths.have);
        }
        synced.and_then(|()| self.check_writes())
    }

    /// As if a sync had failed.
    #[cfg(test)]
    pub(crate) fn lose_writes(&self) {
        self.lost_writes.store(true, Ordering::Release);
    }

    /// # Errors
    /// A sync failed before.
    pub(crate) fn check_writes(&self) -> Result<(), StoreError> {
        if self.lost_writes.load(Ordering::Acquire) {
            let lost =
                std::io::Error::other("the disk lost what was written before; it has to be fetched again");
            return Err(at(&self.paths.data, "sync")(lost));
        }
        Ok(())
    }
}
