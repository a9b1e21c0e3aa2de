//! Room on the disk and under the quota: promised before the first byte, and never twice.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use weighlock_protocol::LayerId;

use crate::error::{StoreError, at};
use crate::fs;
use crate::layers::outboard::tree_bytes;
use crate::layers::partial::PartialPaths;
use crate::store::Store;

/// What was promised and is not there yet.
#[derive(Debug, Default)]
pub(crate) struct Promises {
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    /// By layer: bytes until it is begun, and how many wait for it.
    layers: BTreeMap<LayerId, (u64, usize)>,
    /// Bytes of imports that are not on the disk yet.
    coming: u64,
    /// Bytes of imports that are on the disk and not on record yet.
    staged: u64,
    /// Data files that were begun where the file system reserves nothing: what they lack is still to come.
    thin: BTreeMap<LayerId, PathBuf>,
}

impl Book {
    /// Bytes that were promised and have no file yet.
    fn coming(&self) -> u64 {
        self.layers.values().fold(self.coming, |sum, (bytes, _)| sum.saturating_add(*bytes))
    }

    /// Bytes that begun files still take from the disk. The quota has them already: it counts such files at full length.
    fn lacking(&mut self) -> u64 {
        let mut sum = 0u64;
        self.thin.retain(|_, path| {
            // Sealed or removed: its name is gone.
            let lacking = fs::lacking_bytes(path).unwrap_or(0);
            sum = sum.saturating_add(lacking);
            lacking > 0
        });
        sum
    }

    fn begun(&mut self, id: &LayerId, size: u64, data: PathBuf) {
        if size > fs::THIN_BYTES_MIN && fs::lacking_bytes(&data).is_some_and(|bytes| bytes > 0) {
            self.thin.insert(*id, data);
        }
    }
}

/// Room that was promised. Dropping it gives back what was not used.
#[derive(Debug)]
pub struct Reservation {
    store: Store,
    layers: Vec<LayerId>,
    /// Of an import: what is still to come, and what came.
    import: Mutex<(u64, u64)>,
}

impl Store {
    /// Promises room for layers that are to be fetched, those aside that were begun or promised already.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`], [`StoreError::Quota`]; the database failed. Nothing is promised then.
    pub fn reserve(&self, layers: &[(LayerId, u64)]) -> Result<Reservation, StoreError> {
        let mut book = self.promises();
        let sizes: BTreeMap<LayerId, u64> = layers.iter().copied().collect();
        let fresh = sizes.iter().filter(|(id, _)| !book.layers.contains_key(id));
        let needed = fresh.fold(0u64, |sum, (_, size)| sum.saturating_add(taken(*size)));
        self.check_room(&mut book, needed, needed)?;
        for (id, size) in &sizes {
            book.layers.entry(*id).or_insert((taken(*size), 0)).1 += 1;
        }
        drop(book);
        Ok(Reservation { store: self.clone(), layers: sizes.into_keys().collect(), import: Mutex::default() })
    }

    /// Bytes that have to go so that `more` bytes fit: under the quota, and above the floor. 0 when there is room.
    ///
    /// # Errors
    /// The file system cannot be asked, the database failed.
    pub fn short_bytes(&self, more: u64) -> Result<u64, StoreError> {
        let (coming, lacking, staged) = {
            let mut book = self.promises();
            (book.coming(), book.lacking(), book.staged)
        };
        let wanted = coming.saturating_add(more);
        let disk = wanted.saturating_add(lacking).saturating_add(self.config().free_floor_bytes);
        let disk = disk.saturating_sub(self.free_bytes()?);
        let quota = match self.config().quota_bytes {
            0 => 0,
            quota => self.used_bytes()?.saturating_add(staged).saturating_add(wanted).saturating_sub(quota),
        };
        Ok(disk.max(quota))
    }

    /// Bytes that the file system has left for this user, the floor included.
    ///
    /// # Errors
    /// It cannot be asked.
    pub fn free_bytes(&self) -> Result<u64, StoreError> {
        fs::available_bytes(self.dir()).map_err(at(self.dir(), "ask for free space of"))
    }

    /// Room for an import: bytes that it writes, and bytes that it will be counted with.
    pub(crate) fn reserve_import(&self, written: u64, counted: u64) -> Result<Reservation, StoreError> {
        let mut book = self.promises();
        self.check_room(&mut book, written, counted)?;
        let shared = counted.saturating_sub(written);
        book.coming = book.coming.saturating_add(written);
        book.staged = book.staged.saturating_add(shared);
        drop(book);
        Ok(Reservation { store: self.clone(), layers: Vec::new(), import: Mutex::new((written, shared)) })
    }

    /// Begins a layer with `make`, in the room that was promised for it, or in what is free.
    pub(crate) fn in_room<T>(
        &self,
        id: &LayerId,
        size: u64,
        make: impl FnOnce() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        // Under the lock, so that what is made is counted once: as promised, or as made.
        let mut book = self.promises();
        if book.layers.get(id).is_none_or(|(bytes, _)| *bytes == 0) {
            self.check_room(&mut book, taken(size), taken(size))?;
        }
        let made = make()?;
        book.begun(id, size, self.partial_data(id));
        if let Some((bytes, _)) = book.layers.get_mut(id) {
            *bytes = 0;
        }
        Ok(made)
    }

    /// A layer that was begun earlier is open again.
    pub(crate) fn resumed(&self, id: &LayerId, size: u64) {
        self.promises().begun(id, size, self.partial_data(id));
    }

    fn partial_data(&self, id: &LayerId) -> PathBuf {
        PartialPaths::new(&self.layout().partial(), id).data
    }

    fn check_room(&self, book: &mut Book, written: u64, counted: u64) -> Result<(), StoreError> {
        let coming = book.coming();
        let available = self.free_bytes()?.saturating_sub(coming).saturating_sub(book.lacking());
        let needed = written.saturating_add(self.config().free_floor_bytes);
        if available < needed {
            let path = self.dir().to_owned();
            return Err(StoreError::NoSpace { path, needed_bytes: needed, available_bytes: available });
        }
        let quota_bytes = self.config().quota_bytes;
        if quota_bytes > 0 {
            let used_bytes = self.used_bytes()?.saturating_add(coming).saturating_add(book.staged);
            if used_bytes.saturating_add(counted) > quota_bytes {
                let path = self.dir().to_owned();
                return Err(StoreError::Quota { path, needed_bytes: counted, used_bytes, quota_bytes });
            }
        }
        Ok(())
    }

    fn promises(&self) -> MutexGuard<'_, Book> {
        self.promises_book().book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reservation {
    /// Bytes of the import are on the disk now.
    pub(crate) fn arrived(&self, bytes: u64) {
        let mut book = self.store.promises();
        let mut import = self.import.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = bytes.min(import.0);
        *import = (import.0 - bytes, import.1.saturating_add(bytes));
        book.coming = book.coming.saturating_sub(bytes);
        book.staged = book.staged.saturating_add(bytes);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut book = self.store.promises();
        let (coming, staged) = *self.import.lock().unwrap_or_else(PoisonError::into_inner);
        book.coming = book.coming.saturating_sub(coming);
        book.staged = book.staged.saturating_sub(staged);
        for id in &self.layers {
            if let Some((_, waiting)) = book.layers.get_mut(id) {
                *waiting -= 1;
                if *waiting == 0 {
                    book.layers.remove(id);
                }
            }
        }
    }
}

/// Bytes that a layer takes on the disk, with its tree.
pub(crate) fn taken(size: u64) -> u64 {
    size.saturating_add(tree_bytes(size))
}
