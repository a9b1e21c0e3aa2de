//! Manifests from other hosts, some of which may keep silent.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tracing::warn;
use weighlock_protocol::manifest::Manifest;
use weighlock_protocol::{KeyId, ManifestDigest};

use super::{Fetcher, blocking};
use crate::error::{Error, Result};
use crate::facts;

/// A host that does not answer for this long is not waited for alone.
const SILENCE_MAX: Duration = Duration::from_secs(2);

/// Hosts asked at a time, at most.
const ASKED_MAX: usize = 4;

impl Fetcher {
    /// The manifest if it is here or a connected peer has it now.
    ///
    /// # Errors
    /// The store failed, or the control plane has stopped.
    pub async fn manifest_now(&self, digest: ManifestDigest) -> Result<Option<Manifest>> {
        let store = self.inner.store.clone();
        if let Some(manifest) = blocking(move || facts::manifest(&store, &digest)).await? {
            return Ok(Some(manifest));
        }
        let connected = self.inner.control.peers().await.map_err(Error::unavailable)?;
        let mut asked: Vec<KeyId> = connected.into_iter().map(|peer| peer.key).collect();
        if !self.ask_for_manifest(&asked, digest).await? {
            // Only now: where the provider table leads to a host that is gone, looking it up takes seconds.
            asked.push(self.inner.control.key());
            let mut others = self.inner.control.providers(digest).await.unwrap_or_default();
            others.retain(|provider| !asked.contains(provider));
            self.ask_for_manifest(&others, digest).await?;
        }
        let store = self.inner.store.clone();
        blocking(move || facts::manifest(&store, &digest)).await
    }

    /// Asks hosts for a manifest: the first, and another one for each that keeps silent for a while. True once it is here.
    async fn ask_for_manifest(&self, peers: &[KeyId], digest: ManifestDigest) -> Result<bool> {
        let mut waiting = peers.iter().copied();
        let mut asked = FuturesUnordered::new();
        loop {
            // At first, and whenever one has answered that it has it not, or has kept silent for long.
            if asked.len() < ASKED_MAX
                && let Some(peer) = waiting.next()
            {
                asked.push(self.inner.control.request_manifest(peer, digest));
            }
            let answer = tokio::select! {
                answer = asked.next() => answer,
                () = tokio::time::sleep(SILENCE_MAX), if !asked.is_empty() => continue,
            };
            let Some(answer) = answer else { return Ok(false) };
            let Ok(bytes) = answer else { continue };
            let store = self.inner.store.clone();
            match blocking(move || store.put_manifest(&bytes).map_err(Error::from)).await {
                Ok(_) => return Ok(true),
                // The bytes have the digest that was published, so the publisher made them.
                Err(e) => warn!(%digest, error = %e, "a published manifest is not usable"),
            }
        }
    }
}
