//! What is here as a whole: the usual case when a loader opens, which begins no fetch.

use weighlock_protocol::ManifestDigest;
use weighlock_protocol::manifest::Manifest;

use super::Fetcher;
use crate::error::{Error, Result};
use crate::facts;

/// Longest manifest that is parsed by whoever opens it; longer ones go to a worker.
const MANIFEST_BYTES_HERE: usize = 64 << 10;

impl Fetcher {
    /// A manifest that [`Fetcher::begin`] has nothing to do for, the usual case when a loader opens. Read here and not by a
    /// worker, since the hop there and back takes longer than these few rows, which are in memory.
    pub(super) fn whole(&self, digest: &ManifestDigest) -> Result<Option<Manifest>> {
        let store = &self.inner.store;
        let bytes = store.manifest(digest).map_err(Error::from)?;
        let Some(bytes) = bytes.filter(|bytes| bytes.len() <= MANIFEST_BYTES_HERE) else { return Ok(None) };
        let manifest = facts::stored_manifest(digest, &bytes)?;
        Ok(store.is_begun_and_whole(&manifest).map_err(Error::from)?.then_some(manifest))
    }
}
