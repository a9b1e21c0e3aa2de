//! Leases: what is in use stays. A lease is taken first, then the bytes are looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Condvar, Mutex, PoisonError};

use weighlock_protocol::ManifestDigest;

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
}

/// Keeps an artifact from being let go of, as long as it lives. It says nothing of what is here.
#[derive(Debug)]
pub struct Lease {
    store: Store,
    digest: ManifestDigest,
}

impl Store {
    /// Takes a lease. Waits while the artifact is being let go of, which takes one transaction.
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
