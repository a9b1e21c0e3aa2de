//! What other hosts hear of this one: its record, what it holds, and what it says.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tracing::warn;
use weighlock_protocol::wire::capability;
use weighlock_protocol::wire::host::{HeldManifest, HostRecord};

use super::{MANIFESTS_AT_ONCE_MAX, Node};
use crate::error::{Error, Result};
use crate::fetch::blocking;

/// How long a word to others may take while the daemon stops.
const LEAVE_MAX: Duration = Duration::from_millis(500);

/// Tells other hosts about this one: on change, and what it holds in the provider table. One that is being drained says
/// that it leaves and offers nothing.
pub(super) async fn announce(node: Arc<Node>, data_addr: SocketAddr) {
    let mut changed = node.fetcher.changed();
    let mut labels = node.live.labels();
    let mut drained = node.drained.subscribe();
    let mut provided = BTreeSet::new();
    loop {
        let leaving = *drained.borrow_and_update();
        let _ = labels.borrow_and_update();
        let gather = node.clone();
        match blocking(move || gather.held()).await {
            Ok(held) => {
                let now: BTreeSet<_> = held.iter().map(|one| one.digest).filter(|_| !leaving).collect();
                for digest in provided.difference(&now) {
                    let _ = node.control.stop_providing(*digest).await;
                }
                for digest in now.difference(&provided) {
                    if let Err(e) = node.control.provide(*digest).await {
                        tracing::debug!(%digest, error = %e, "not in the provider table");
                    }
                }
                provided = now;
                let record = HostRecord { leaving, ..record(&node, data_addr, held) };
                if let Err(e) = node.control.announce(record).await {
                    warn!(error = %e, "this host's record was not announced");
                }
            }
            Err(e) => warn!(error = %e, "cannot tell what is held here"),
        }
        // The control plane repeats the record by itself.
        tokio::select! {
            () = node.stop.cancelled() => return,
            woken = changed.changed() => if woken.is_err() { return },
            Ok(()) = labels.changed() => {}
            Ok(()) = drained.changed() => {}
        }
        // Many changes at once are one announcement.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Tells others that this host leaves, before it stops to serve them.
pub(super) async fn leave(node: &Arc<Node>, data_addr: SocketAddr) {
    let say = async {
        let gather = node.clone();
        let held = blocking(move || gather.held()).await.unwrap_or_default();
        let record = HostRecord { leaving: true, ..record(node, data_addr, held) };
        let _ = node.control.announce(record).await;
    };
    let _ = tokio::time::timeout(LEAVE_MAX, say).await;
}

/// What this host says of itself.
fn record(node: &Node, data_addr: SocketAddr, held: Vec<HeldManifest>) -> HostRecord {
    let mut record = HostRecord::new(node.cluster, node.host);
    record.data_addrs = node.data_addrs(data_addr);
    record.control_addrs = node.control_addrs();
    record.hardware.clone_from(&node.hardware);
    record.labels.clone_from(&node.live.labels().borrow());
    record.version = env!("CARGO_PKG_VERSION").into();
    record.capabilities = capability::OURS;
    record.hold(held);
    record
}

/// Pushes what this host said, after it is committed, and fetches manifests that were published elsewhere.
pub(super) async fn spread(node: Arc<Node>) {
    let mut changes = node.facts.changes();
    // Beside the loop: a manifest that nobody has now must not hold up what this host says.
    let mut fetching = JoinSet::new();
    loop {
        let change = tokio::select! {
            () = node.stop.cancelled() => return,
            change = changes.recv() => change,
        };
        match change {
            Ok(change) if change.ours => {
                let manifest = change.manifest.and_then(|digest| node.store.manifest(&digest).ok().flatten());
                let manifest = manifest.map(|bytes| bytes.to_vec());
                if let Err(e) = node.control.publish_statements(vec![change.bytes.to_vec()], manifest).await {
                    warn!(error = %e, "a statement was not pushed; others get it when they reconcile");
                }
            }
            Ok(change) => {
                if let Some(digest) = change.manifest {
                    while fetching.try_join_next().is_some() {}
                    if fetching.len() < MANIFESTS_AT_ONCE_MAX {
                        let node = node.clone();
                        fetching.spawn(async move {
                            if let Err(e) = node.fetcher.manifest_now(digest).await {
                                tracing::debug!(%digest, error = %e, "manifest not here yet");
                            }
                        });
                    }
                }
            }
            Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {
                let _ = node.control.reconcile_now().await;
            }
            Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
        }
    }
}

impl Node {
    /// Artifacts that this host keeps, and whether they are whole. Blocks on the disk.
    fn held(&self) -> Result<Vec<HeldManifest>> {
        let mut held = Vec::new();
        for digest in self.store.held().map_err(Error::from)? {
            if let Some(manifest) = crate::facts::manifest(&self.store, &digest)? {
                let complete = self.store.manifest_complete(&manifest).map_err(Error::from)?;
                held.push(HeldManifest { digest, complete });
            }
        }
        Ok(held)
    }
}
