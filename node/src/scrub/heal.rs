//! Damaged layers become whole again: their bad groups are fetched like any others that are missing.

use std::sync::Arc;

use tracing::debug;
use weighlock_cache::StoreError;
use weighlock_protocol::{LayerId, ManifestDigest};

use crate::daemon::Node;
use crate::error::{Error, Result};
use crate::facts;
use crate::fetch::{Arrival, blocking};

/// How often one door tries: each time all that it meets is healed.
const TRIES_MAX: usize = 4;

/// Whether a door waits until what it wants is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// It hands out whole layers only.
    Wait,
    /// It hands out layers that are on their way.
    Partial,
}

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

/// Runs `take`, which reads sealed layers of an artifact. Where it meets a damaged one, that is healed from other hosts
/// and `take` runs again.
///
/// # Errors
/// As `take`; the damage, if no reachable host has what is missing.
pub(crate) async fn whole<T: Send + 'static>(
    node: &Arc<Node>,
    digest: ManifestDigest,
    patience: Patience,
    take: impl Fn() -> std::result::Result<T, StoreError> + Clone + Send + 'static,
) -> Result<T> {
    for _ in 1..TRIES_MAX {
        let attempt = take.clone();
        let damage = match blocking(move || Ok(attempt())).await? {
            Err(damage @ StoreError::Corrupt { .. }) => damage,
            Err(gone @ StoreError::NotHeld(_)) if patience == Patience::Wait => gone,
            done => return done.map_err(Error::from),
        };
        // Others must not count on this host's copy any more.
        node.fetcher.note_change();
        let mut arrival = node.fetcher.begin(digest).await?;
        if patience == Patience::Partial {
            continue;
        }
        if node.facts.members().borrow().is_empty() {
            return Err(damage.into());
        }
        if let Err(e) = arrival.ended().await {
            debug!(%digest, error = %e, "not healed");
            return Err(damage.into());
        }
    }
    blocking(move || take().map_err(Error::from)).await
}
