//! Syncs of a layer on its way, and what follows when one fails.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use weighlock_protocol::wire::bao::group_count;

use super::PartialLayer;
use crate::error::{StoreError, at};
use crate::fs;
use crate::layers::have::{self, Bitmap};

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
            self.disclaim();
        }
        synced.and_then(|()| self.check_writes())
    }

    /// Lets the have-map claim nothing: what was written is lost. The files stay, so that their room is counted, and are
    /// written anew by whoever opens the layer next.
    pub(crate) fn disclaim(&self) {
        self.lost_writes.store(true, Ordering::Release);
        let _io = self.have_io.lock().unwrap_or_else(PoisonError::into_inner);
        let none = Bitmap::new(group_count(self.size));
        let mut pages = 0..have::page_count(self.size);
        let written = pages.try_for_each(|page| {
            have::write_page(&self.have_file, page, &have::page_image(&self.id, &none, page))
        });
        if written.and_then(|()| self.have_file.sync_data()).is_err() {
            // The error that brought us here is the one to report.
            let _ = fs::remove_file(&self.paths.have);
        }
    }

    /// # Errors
    /// A sync failed before.
    pub(crate) fn check_writes(&self) -> Result<(), StoreError> {
        if self.lost_writes.load(Ordering::Acquire) {
            let lost = std::io::Error::other(
                "the disk lost what was written before; open it again to fetch it anew, and see what `dmesg` says of the disk",
            );
            return Err(at(&self.paths.data, "sync")(lost));
        }
        Ok(())
    }
}
