//! One fetch from its beginning to its end: what is missing, what local layers have of it, then the swarm.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use weighlock_cache::{Reservation, Store, StoreError};
use weighlock_protocol::LayerId;
use weighlock_protocol::manifest::Manifest;
use weighlock_protocol::swarm::LayerWant;
use weighlock_protocol::wire::bao::{GroupSet, all_groups};

use super::delta::{self, OpenLayers};
use super::happening::Happening;
use super::jobs::Job;
use super::wait::Urgent;
use super::{Inner, blocking};
use crate::error::{Error, Result};
use crate::local::message::Progress;

/// Fetches all that is missing of `manifest`. What was stored stays when it fails.
pub(super) async fn run(
    inner: &Arc<Inner>,
    manifest: &Manifest,
    progress: watch::Sender<Progress>,
    mut wanted: mpsc::Receiver<Urgent>,
    cancel: &CancellationToken,
) -> Result<()> {
    let digest = manifest.digest();
    let layers: Vec<(LayerId, u64)> = manifest.layers().map(|layer| (layer.id, layer.size)).collect();
    // The room lives as long as the fetch.
    let Begun { mut open, mut wants, _room } = begin(inner, &layers, cancel).await?;
    let reused_bytes = delta::apply(inner, manifest, &mut wants, &mut open, &progress, cancel).await;
    let mut lacks: BTreeMap<LayerId, GroupSet> =
        wants.into_iter().map(|want| (want.layer, want.missing)).collect();
    let want = |(layer, size): (LayerId, u64)| LayerWant {
        layer,
        size,
        missing: lacks.remove(&layer).unwrap_or_else(GroupSet::empty),
    };
    let layers = layers.into_iter().map(want).collect();
    let (done, mut ended) = oneshot::channel();
    let job = Job { digest, layers, open, reused_bytes, progress, done };
    let stopping = || Error::unavailable("the daemon is stopping").hint("open it again; it resumes");
    inner.swarm.send(Happening::Fetch(Box::new(job))).await.map_err(|_| stopping())?;
    loop {
        tokio::select! {
            result = &mut ended => return result.unwrap_or_else(|_| Err(stopping())),
            Some((layer, groups)) = wanted.recv() => {
                let _ = inner.swarm.send(Happening::Urgent { digest, layer, groups }).await;
            }
            () = cancel.cancelled() => {
                let (closed, wait) = oneshot::channel();
                let _ = inner.swarm.send(Happening::Close { digest, closed: Some(closed) }).await;
                let _ = wait.await;
                if inner.stop.is_cancelled() {
                    return Err(stopping());
                }
                let removed = Error::unavailable("the artifact was removed from this host while it was fetched");
                return Err(removed.hint("open it again to fetch it anew"));
            }
        }
    }
}

/// What a fetch begins with.
struct Begun {
    open: OpenLayers,
    wants: Vec<LayerWant>,
    _room: Reservation,
}

/// What is missing, with room on the disk for it: others' is let go of if need be.
async fn begin(inner: &Arc<Inner>, layers: &[(LayerId, u64)], cancel: &CancellationToken) -> Result<Begun> {
    let look = || {
        let (store, layers) = (inner.store.clone(), layers.to_vec());
        blocking(move || missing(&store, &layers))
    };
    match (look().await?, inner.room.get()) {
        (Err((needed, _)), Some(room)) => {
            // Who makes room may be the one who ends this fetch, and waits for that.
            tokio::select! {
                () = room.make(needed) => {}
                () = cancel.cancelled() => {}
            }
            look().await?.map_err(|(_, error)| error)
        }
        (begun, _) => begun.map_err(|(_, error)| error),
    }
}

/// What is missing of each distinct layer, resumed partial layers, and room on the disk for the rest; or how much room
/// is needed.
fn missing(store: &Store, layers: &[(LayerId, u64)]) -> Result<Result<Begun, (u64, Error)>> {
    let begun: BTreeSet<LayerId> =
        store.partials().map_err(Error::from)?.into_iter().map(|(layer, _)| layer).collect();
    let (mut open, mut wants, mut seen) = (BTreeMap::new(), Vec::new(), BTreeSet::new());
    let mut fresh = Vec::new();
    for (layer, size) in layers {
        if !seen.insert(*layer) || store.layer(layer).map_err(Error::from)?.is_some() {
            continue;
        }
        let missing = if begun.contains(layer) {
            let partial = match store.partial(layer, *size) {
                // Another fetch sealed it since the look above.
                Err(StoreError::AlreadySealed(_)) => continue,
                partial => partial.map_err(Error::from)?,
            };
            let missing = partial.missing();
            open.insert(*layer, partial);
            missing
        } else {
            // A begun layer has its room already.
            fresh.push((*layer, *size));
            all_groups(*size)
        };
        wants.push(LayerWant { layer: *layer, size: *size, missing });
    }
    match store.reserve(&fresh) {
        Ok(room) => Ok(Ok(Begun { open, wants, _room: room })),
        Err(e @ (StoreError::NoSpace { .. } | StoreError::Quota { .. })) => {
            let needed =
                fresh.iter().fold(0u64, |sum, (_, size)| sum.saturating_add(size.saturating_add(size / 256)));
            Ok(Err((needed, Error::from(e))))
        }
        Err(e) => Err(e.into()),
    }
}
