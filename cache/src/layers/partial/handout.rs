//! Handing a partial layer's data file to readers outside: read-only, under a mode that keeps it so, and with zeros
//! wherever nothing is proven.

use std::fs::{File, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::PoisonError;

use weighlock_protocol::wire::bao::{GROUP_BYTES, all_groups, bounded, group_count};

use super::{Fate, PartialLayer};
use crate::error::{StoreError, at};
use crate::fs;
use crate::layers::have::Bitmap;

/// Mode bits that would let another user reopen a descriptor for writing.
const OTHERS_WRITE: u32 = 0o022;

impl PartialLayer {
    /// A read-only descriptor of the data file. It has its full length; ranges outside [`have`](Self::have) read as
    /// zeros, or as proven bytes that are about to be declared. Sealing renames this very file, so the descriptor and
    /// its mappings stay right, unless an import brought the same bytes first or the layer was removed: then
    /// [`inode`](Self::inode) differs from that of the file that is here.
    ///
    /// # Errors
    /// [`StoreError::NotHeld`] once another file took its place; an io error.
    pub fn open_data(&self) -> Result<File, StoreError> {
        let fate = self.fate.read().unwrap_or_else(PoisonError::into_inner);
        if *fate != Fate::Open {
            return Err(StoreError::NotHeld(self.id));
        }
        let path = &self.paths.data;
        let mode = self.data.metadata().map_err(at(path, "stat"))?.mode();
        if mode & OTHERS_WRITE != 0 {
            // Made under a lax umask.
            let kept = Permissions::from_mode(mode & 0o777 & !OTHERS_WRITE);
            self.data.set_permissions(kept).map_err(at(path, "set mode of"))?;
        }
        // By the open file, not by name: a seal that was cut short may have moved the name already.
        let own = format!("/proc/self/fd/{}", self.data.as_raw_fd());
        let file = File::open(Path::new(&own)).map_err(at(path, "open"))?;
        drop(fate);
        Ok(file)
    }

    /// Inode of the data file: tells whether a descriptor that was handed out is still of the file that is here.
    ///
    /// # Errors
    /// An io error.
    pub fn inode(&self) -> Result<u64, StoreError> {
        Ok(self.data.metadata().map_err(at(&self.paths.data, "stat"))?.ino())
    }

    /// Bytes of what is missing that have no room on the disk yet: where space cannot be reserved, or is not, since that
    /// takes long in memory (tmpfs).
    ///
    /// # Errors
    /// An io error.
    pub fn roomless_bytes(&self) -> Result<u64, StoreError> {
        let meta = self.data.metadata().map_err(at(&self.paths.data, "stat"))?;
        let missing = (group_count(self.size) - self.have_count()).saturating_mul(GROUP_BYTES);
        Ok(fs::blockless_bytes(&meta).min(missing))
    }

    /// Zeroes all that is not in `proven`: after a power loss the disk may hold anything there.
    pub(super) fn blank_all_but(&self, proven: &Bitmap) -> Result<(), StoreError> {
        let unproven = &all_groups(self.size) - &proven.to_set();
        for groups in bounded(&unproven, self.size) {
            let start = groups.start * GROUP_BYTES;
            let end = (groups.end * GROUP_BYTES).min(self.size);
            if start < end {
                fs::zero(&self.data, start, end - start).map_err(at(&self.paths.data, "blank"))?;
            }
        }
        Ok(())
    }
}
