//! What is pinned, and when what was last used: written down seldom, since it may be lost without harm.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use weighlock_protocol::ManifestDigest;

use crate::error::StoreError;
use crate::store::Store;

/// A clock that was set back by less is not believed for the order of uses; what is further ahead is a mistake.
const SET_BACK_MAX_S: u64 = 86_400;

/// Why an artifact is pinned.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Pin {
    /// The name under which it was pinned.
    pub name: String,
    /// Why, if somebody said.
    pub reason: Option<String>,
    /// When, Unix seconds.
    pub since: u64,
}

/// When artifacts were last used.
#[derive(Debug, Default)]
pub(crate) struct Used {
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    times: BTreeMap<ManifestDigest, u64>,
    /// Not written down yet.
    dirty: BTreeSet<ManifestDigest>,
}

impl Used {
    pub(crate) fn new(times: BTreeMap<ManifestDigest, u64>) -> Self {
        Self { book: Mutex::new(Book { times, dirty: BTreeSet::new() }) }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// Notes that an artifact is used at `now`, Unix seconds. In memory; [`flush_used`](Self::flush_used) writes it.
    pub fn note_used(&self, digest: &ManifestDigest, now: u64) {
        let mut book = self.used_book().book();
        // Later than all before it also when the clock was set back: else what is in use would go first.
        let ahead =
            book.times.values().copied().filter(|time| time.saturating_sub(now) <= SET_BACK_MAX_S).max();
        let now = ahead.map_or(now, |ahead| ahead.max(now));
        let before = book.times.entry(*digest).or_default();
        if *before < now {
            *before = now;
            book.dirty.insert(*digest);
        }
    }

    /// When an artifact was last used, Unix seconds, if that is known.
    pub fn last_used(&self, digest: &ManifestDigest) -> Option<u64> {
        self.used_book().book().times.get(digest).copied()
    }

    /// Writes down what was noted, in one transaction; nothing happens if nothing was.
    ///
    /// # Errors
    /// No space, or the database failed; it is tried again with the next call.
    pub fn flush_used(&self) -> Result<(), StoreError> {
        let rows: Vec<(ManifestDigest, u64)> = {
            let mut book = self.used_book().book();
            let dirty = std::mem::take(&mut book.dirty);
            dirty.into_iter().filter_map(|digest| Some((digest, *book.times.get(&digest)?))).collect()
        };
        if rows.is_empty() {
            return Ok(());
        }
        self.meta().set_used(&rows).inspect_err(|_| {
            self.used_book().book().dirty.extend(rows.iter().map(|(digest, _)| *digest));
        })
    }

    pub(crate) fn forget_used(&self, digest: &ManifestDigest) {
        let mut book = self.used_book().book();
        book.times.remove(digest);
        book.dirty.remove(digest);
    }

    /// Keeps an artifact from being let go of, until [`unpin`](Self::unpin). It need not be here.
    ///
    /// # Errors
    /// No space, or the database failed.
    pub fn pin(&self, digest: &ManifestDigest, pin: &Pin) -> Result<(), StoreError> {
        let row = serde_json::to_vec(pin).map_err(|e| bad_pin(digest, &e))?;
        // Not in the middle of a removal: what is pinned when this returns stays.
        let _change = self.change_lock();
        self.meta().set_pin(digest, Some(&row)).map(drop)
    }

    /// Takes a pin away. False if there was none.
    ///
    /// # Errors
    /// The database failed.
    pub fn unpin(&self, digest: &ManifestDigest) -> Result<bool, StoreError> {
        self.meta().set_pin(digest, None)
    }

    /// All pins.
    ///
    /// # Errors
    /// A pin that does not read; the database failed.
    pub fn pins(&self) -> Result<BTreeMap<ManifestDigest, Pin>, StoreError> {
        let rows = self.meta().pins()?.into_iter();
        rows.map(|(digest, row)| {
            Ok((digest, serde_json::from_slice(&row).map_err(|e| bad_pin(&digest, &e))?))
        })
        .collect()
    }
}

fn bad_pin(digest: &ManifestDigest, error: &serde_json::Error) -> StoreError {
    StoreError::Setting { key: format!("pin of {digest}"), reason: error.to_string() }
}
