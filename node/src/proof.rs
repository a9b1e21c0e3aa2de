//! SHA-256 of layers that came over the network, proven in the background: BLAKE3 let them in, OCI and Hub names
//! are only served once this agrees.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, error};
use weighlock_protocol::ManifestDigest;
use weighlock_protocol::manifest::Manifest;

use crate::daemon::Node;
use crate::error::{Error, Result};
use crate::facts;

/// Store setting with the digests of manifests whose SHA-256 names are wrong.
const SETTING_QUARANTINED: &str = "quarantined_manifests";

/// Nice value of a thread that yields to all others.
const LEAST_PRIORITY: i32 = 19;

/// Manifests whose publisher wrote SHA-256 digests that are not those of the bytes. Nothing of them opens.
///
/// # Errors
/// The store cannot be read.
pub(crate) fn quarantined(store: &weighlock_cache::Store) -> Result<BTreeSet<ManifestDigest>> {
    Ok(store.setting(SETTING_QUARANTINED).map_err(Error::from)?.unwrap_or_default())
}

/// Runs until the daemon stops.
pub(crate) async fn run(node: Arc<Node>) {
    let mut changed = node.fetcher.changed();
    loop {
        let prove = node.clone();
        if let Err(e) = in_background(move || prove_all(&prove)).await {
            debug!(error = %e, "SHA-256 not proven now");
        }
        tokio::select! {
            () = node.stop.cancelled() => return,
            woken = changed.changed() => if woken.is_err() { return },
        }
        // Loaders that waited for this fetch read the page cache first.
        tokio::select! {
            () = node.stop.cancelled() => return,
            () = tokio::time::sleep(Duration::from_secs(2)) => {}
        }
    }
}

/// Runs `work` on a thread of its own that takes only what others leave of the cores: a fetch under way and loaders
/// come first. A thread of a pool would keep the low priority for whatever it does next.
async fn in_background(work: impl FnOnce() -> Result<()> + Send + 'static) -> Result<()> {
    let (done, ended) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("sha256-proofs".into())
        .spawn(move || {
            // Of this thread alone, as Linux has it. One that may not is no worse off than before.
            if let Err(error) = rustix::process::setpriority_process(None, LEAST_PRIORITY) {
                debug!(%error, "SHA-256 is proven at normal priority");
            }
            let _ = done.send(work());
        })
        .map_err(|e| Error::internal(format!("no thread for proofs: {e}")))?;
    ended.await.map_err(|e| Error::internal(format!("the thread of proofs ended: {e}")))?
}

fn prove_all(node: &Node) -> Result<()> {
    for digest in node.store.held().map_err(Error::from)? {
        let Some(manifest) = facts::manifest(&node.store, &digest)? else {
            continue;
        };
        if let Err(e) = prove(node, &manifest) {
            debug!(%digest, error = %e, "SHA-256 not proven now");
        }
    }
    Ok(())
}

fn prove(node: &Node, manifest: &Manifest) -> Result<()> {
    for layer in manifest.layers() {
        if node.stop.is_cancelled() {
            return Ok(());
        }
        let Some(info) = node.store.layer(&layer.id).map_err(Error::from)? else {
            continue;
        };
        let proven = match info.sha256 {
            Some(sha256) => sha256,
            None => {
                let proven = node.store.prove_sha256(&layer.id);
                if matches!(proven, Err(weighlock_cache::StoreError::Corrupt { .. })) {
                    // It is set aside: others must not count on this copy, and it has to be fetched anew.
                    node.fetcher.note_change();
                }
                debug!(layer = %layer.id, proven = proven.is_ok(), "a layer was read for its SHA-256");
                proven.map_err(Error::from)?
            }
        };
        if proven != layer.sha256 {
            let digest = manifest.digest();
            let publishers: Vec<String> =
                node.facts.ledger().publishes_of(&digest).map(|published| published.by.to_string()).collect();
            error!(%digest, path = layer.path, publishers = publishers.join(" "), "the manifest lies about a SHA-256; quarantined");
            let mut all = quarantined(&node.store)?;
            if all.insert(digest) {
                node.store.set_setting(SETTING_QUARANTINED, Some(&all)).map_err(Error::from)?;
            }
        }
    }
    Ok(())
}
