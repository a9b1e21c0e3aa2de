//! Leases: what is in use stays. A lease is taken first, then the bytes are looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Condvar, Mutex, PoisonError};

use weighlock_protocol::manifest::Manifest;
use weighlock_protocol::{LayerId, ManifestDigest};

use crate::artifacts::layer_ids;
use crate::error::StoreError;
use crate::store::Store;

/// What is leased, and what is being let go of at this moment.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    book: Mutex<Book>,
    gone: Condvar,
}

#[derive(Debug, Default)]
struct Book {
    counts: BTreeMap<ManifestDigest, usize>,
    going: BTreeSet<ManifestDigest>,
    /// Layers that stay, with how many want that.
    layers: BTreeMap<LayerId, usize>,
}

/// Keeps an artifact from being let go of, as long as it lives. It says nothing of what is here.
#[derive(Debug)]
pub struct Lease {
    store: Store,
    digest: ManifestDigest,
}

/// Keeps layers from being swept as those of no artifact, as long as it lives: what is gathered for an artifact that is
/// not held yet.
#[derive(Debug)]
pub struct LayerLease {
    store: Store,
    layers: Mutex<BTreeSet<LayerId>>,
}

impl Store {
    /// Takes a lease. Waits while the artifact is being let go of, which takes a last look and one transaction.
    pub fn lease(&self, digest: ManifestDigest) -> Lease {
        let leases = self.leases_book();
        let mut book = leases.book.lock().unwrap_or_else(PoisonError::into_inner);
        while book.going.contains(&digest) {
            book = leases.gone.wait(book).unwrap_or_else(PoisonError::into_inner);
        }
        *book.counts.entry(digest).or_default() += 1;
        drop(book);
        Lease { store: self.clone(), digest }
    }

    /// As [`lease`](Self::lease), without waiting: `None` while it is being let go of.
    pub fn try_lease(&self, digest: ManifestDigest) -> Option<Lease> {
        let mut book = self.leases_book().book.lock().unwrap_or_else(PoisonError::into_inner);
        if book.going.contains(&digest) {
            return None;
        }
        *book.counts.entry(digest).or_default() += 1;
        drop(book);
        Some(Lease { store: self.clone(), digest })
    }

    /// Takes a lease on those of `layers` that are here and that no held artifact has. What
    /// [`take_layer`](Self::take_layer) takes in with it comes under it, too.
    ///
    /// # Errors
    /// The database failed.
    pub fn lease_layers(&self, mut layers: BTreeSet<LayerId>) -> Result<LayerLease, StoreError> {
        // Not in the middle of a sweep: what is leased when this returns stays.
        let _change = self.change_lock();
        // Layers of a held artifact go with it: otherwise no room could be made while a lease lives.
        for digest in self.held()? {
            if let Some(bytes) = self.manifest(&digest)? {
                let held = layer_ids(&Manifest::parse(&bytes)?);
                layers.retain(|id| !held.contains(id));
            }
        }
        let layers: Vec<LayerId> = layers.into_iter().collect();
        let rows = self.meta().layers_of(&layers)?;
        let lease = LayerLease { store: self.clone(), layers: Mutex::default() };
        for (id, row) in layers.into_iter().zip(rows) {
            if row.is_some() {
                lease.add(id);
            }
        }
        Ok(lease)
    }

    /// What is leased by [`lease_layers`](Self::lease_layers).
    pub(crate) fn leased_layers(&self) -> BTreeSet<LayerId> {
        let book = self.leases_book().book.lock().unwrap_or_else(PoisonError::into_inner);
        book.layers.keys().copied().collect()
    }

    /// What is leased now, with how often.
    pub fn leased(&self) -> BTreeMap<ManifestDigest, usize> {
        self.leases_book().book.lock().unwrap_or_else(PoisonError::into_inner).counts.clone()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut book = self.store.leases_book().book.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = book.counts.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                book.counts.remove(&self.digest);
            }
        }
    }
}

impl LayerLease {
    /// Takes a layer under the lease. The caller holds the change lock.
    pub(crate) fn add(&self, id: LayerId) {
        let mut own = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        if own.insert(id) {
            let mut book = self.store.leases_book().book.lock().unwrap_or_else(PoisonError::into_inner);
            *book.layers.entry(id).or_default() += 1;
        }
    }
}

impl Drop for LayerLease {
    fn drop(&mut self) {
        let own = self.layers.get_mut().unwrap_or_else(PoisonError::into_inner);
        let mut book = self.store.leases_book().book.lock().unwrap_or_else(PoisonError::into_inner);
        for id in own.iter() {
            if let Some(count) = book.layers.get_mut(id) {
                *count -= 1;
                if *count == 0 {
                    book.layers.remove(id);
                }
            }
        }
    }
}

impl Leases {
    /// Marks what is about to go, unless it is leased. Nobody gets a lease on it until the mark is dropped.
    pub(crate) fn going(&self, digest: ManifestDigest) -> Option<Going<'_>> {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        let free = !book.counts.contains_key(&digest) && book.going.insert(digest);
        free.then(|| Going { leases: self, digest })
    }
}

/// The mark of [`Leases::going`].
pub(crate) struct Going<'a> {
    leases: &'a Leases,
    digest: ManifestDigest,
}

impl Drop for Going<'_> {
    fn drop(&mut self) {
        self.leases.book.lock().unwrap_or_else(PoisonError::into_inner).going.remove(&self.digest);
        self.leases.gone.notify_all();
    }
}
