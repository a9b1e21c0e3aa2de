//! A file that only takes space, given back when the disk is full: then statements can still be written, and layers
//! let go of.

use std::path::PathBuf;

use crate::error::StoreError;
use crate::fs;

/// The reserve of one database.
#[derive(Debug)]
pub(crate) struct Reserve {
    path: PathBuf,
    bytes: u64,
}

impl Reserve {
    pub(crate) fn new(path: PathBuf, bytes: u64) -> Self {
        Self { path, bytes }
    }

    /// Gives the space back. False if there was nothing to give.
    pub(crate) fn give_back(&self) -> bool {
        let given = std::fs::remove_file(&self.path).is_ok();
        if given {
            tracing::warn!(bytes = self.bytes, "the disk is full: the reserve for metadata is in use now");
        }
        given
    }

    /// Takes the space again, if there is enough beside `floor_bytes`.
    pub(crate) fn refill(&self, floor_bytes: u64) -> Result<(), StoreError> {
        if self.bytes == 0 {
            return fs::remove_file(&self.path);
        }
        let there = std::fs::metadata(&self.path).is_ok_and(|meta| meta.len() == self.bytes);
        let dir = self.path.parent().unwrap_or(&self.path);
        let available = fs::available_bytes(dir).unwrap_or(0);
        if there || available < self.bytes.saturating_add(floor_bytes) {
            return Ok(());
        }
        fs::create_reserved(&self.path, self.bytes).map(drop).inspect_err(|_| {
            // A part of it would only be in the way.
            let _ = fs::remove_file(&self.path);
        })
    }
}
