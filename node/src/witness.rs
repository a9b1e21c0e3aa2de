//! Cosigns promotions where this host is a witness of the root: after a look at everything, and durably first.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;
use tracing::warn;
use weighlock_protocol::statement::Heard;

use crate::cluster::now;
use crate::daemon::Node;
use crate::fetch::blocking;
use crate::net::control::ControlEvent;

/// How often it looks without being told of a change: what waits may have become old enough.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Runs until the daemon stops.
pub(crate) async fn run(node: Arc<Node>) {
    let mut changes = node.facts.changes();
    let Ok(mut events) = node.control.events() else { return };
    loop {
        if may_vote(&node).await {
            let facts = node.facts.clone();
            if let Err(e) = blocking(move || facts.cosign_pending()).await {
                warn!(error = %e, "cannot cosign");
            }
        }
        let look = tokio::time::sleep(LOOK_INTERVAL);
        tokio::pin!(look);
        loop {
            tokio::select! {
                () = node.stop.cancelled() => return,
                () = &mut look => break,
                change = changes.recv() => match change {
                    Ok(change) if change.moves => break,
                    Ok(_) => {}
                    Err(RecvError::Lagged(_)) => break,
                    Err(RecvError::Closed) => return,
                },
                // It may have heard enough now.
                event = events.recv() => match event {
                    Ok(ControlEvent::Reconciled { .. }) => break,
                    Ok(_) => {}
                    Err(RecvError::Lagged(_)) => break,
                    Err(RecvError::Closed) => return,
                },
            }
        }
    }
}

/// A store may be an older copy of what this host signed before: it first hears what others know of that.
async fn may_vote(node: &Node) -> bool {
    let connected = node.control.peers().await.unwrap_or_default();
    let heard = Heard {
        reconciled: node.control.reconciled_with(),
        connected: connected.into_iter().map(|peer| peer.key).collect(),
        up_secs: node.started.elapsed().as_secs(),
    };
    node.facts.ledger().may_vote(&node.host, &heard, now())
}
