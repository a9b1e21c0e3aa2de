//! Damaged layers become whole again: their bad groups are fetched like any others that are missing.

use std::sync::Arc;

use tokio::net::UnixStream;
use tracing::debug;
use weighlock_cache::StoreError;
use weighlock_protocol::{LayerId, ManifestDigest};

use crate::daemon::Node;
use crate::error::{Error, Result};
use crate::facts;
use crate::fetch::{Arrival, Step, blocking};
use crate::local::frame;
use crate::local::message::Event;

/// How often one door tries: each time all that it meets is healed.
const TRIES_MAX: usize = 4;

/// Starts to fetch what is missing of kept artifacts that have one of `layers`. Without effect if none has.
pub(crate) async fn begin(node: &Arc<Node>, layers: &[LayerId]) -> Vec<Arrival> {
    let (store, layers) = (node.store.clone(), layers.to_vec());
    let having = blocking(move || {
        let mut having = Vec::new();
        for digest in store.held().map_err(Error::from)? {
            let manifest = facts::manifest(&store, &digest)?;
            if manifest.is_some_and(|manifest| manifest.layers().any(|layer| layers.contains(&layer.id))) {
                having.push(digest);
            }
        }
        Ok(having)
    });
    let mut arrivals = Vec::new();
    for digest in having.await.unwrap_or_default() {
        match node.fetcher.begin(digest).await {
            Ok(arrival) => arrivals.push(arrival),
            Err(e) => debug!(%digest, error = %e, "healing waits"),
        }
    }
    arrivals
}

/// Whether the layer that was met damaged, or not at all, is whole by now.
async fn is_sealed(node: &Arc<Node>, met: &StoreError) -> Result<bool> {
    let (StoreError::Corrupt { layer, .. } | StoreError::NotHeld(layer)) = *met else { return Ok(false) };
    let store = node.store.clone();
    blocking(move || Ok(store.layer(&layer).map_err(Error::from)?.is_some())).await
}

/// Runs `take`, which reads sealed layers of an artifact. Where it meets a damaged one, that is healed from other hosts
/// and `take` runs again. Who waits at `stream` is told how far that is.
///
/// # Errors
/// As `take`; the damage, if no reachable host has what is missing; the daemon stops, or nobody waits any more.
pub(crate) async fn whole<T: Send + 'static>(
    node: &Arc<Node>,
    digest: ManifestDigest,
    mut stream: Option<&mut UnixStream>,
    take: impl Fn() -> std::result::Result<T, StoreError> + Clone + Send + 'static,
) -> Result<T> {
    for _ in 1..TRIES_MAX {
        let attempt = take.clone();
        let damage = match blocking(move || Ok(attempt())).await? {
            Err(damage @ StoreError::Corrupt { .. }) => damage,
            Err(gone @ StoreError::NotHeld(_)) => gone,
            done => return done.map_err(Error::from),
        };
        // Others must not count on this host's copy any more.
        node.fetcher.note_change();
        let mut arrival = node.fetcher.begin(digest).await?;
        if node.facts.members().borrow().is_empty() {
            return Err(damage.into());
        }
        loop {
            match arrival.next().await {
                Ok(Step::Here(_)) => break,
                Ok(Step::Progress(step)) => {
                    if let Some(stream) = &mut stream {
                        let told = frame::write(stream, &Event::Progress(step)).await;
                        told.map_err(|e| Error::unavailable(format!("who waited is gone: {e}")))?;
                    }
                    // The rest of the artifact may be on its way for long.
                    if is_sealed(node, &damage).await? {
                        break;
                    }
                }
                Err(e) if node.stop.is_cancelled() => return Err(e),
                Err(_) if is_sealed(node, &damage).await? => break,
                Err(e) => {
                    debug!(%digest, error = %e, "not healed");
                    return Err(damage.into());
                }
            }
        }
    }
    blocking(move || take().map_err(Error::from)).await
}
