//! Cosigns promotions where this host is a witness of the root: after a look at everything, and durably first.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;
use tracing::warn;
use weighlock_protocol::statement::Role;

use crate::cluster::now;
use crate::daemon::Node;
use crate::fetch::blocking;

/// How often it looks without being told of a change: what waits may have become old enough.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// How long the only witness waits for another member before it votes unasked.
const ALONE_PATIENCE: Duration = Duration::from_secs(30);

/// Runs until the daemon stops.
pub(crate) async fn run(node: Arc<Node>) {
    let mut changes = node.facts.changes();
    loop {
        if is_witness(&node) && has_heard(&node) {
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
                }
            }
        }
    }
}

fn is_witness(node: &Node) -> bool {
    let ledger = node.facts.ledger();
    let root = ledger.root(now());
    root.is_some_and(|root| root.root.roles.get(&Role::Witness).is_some_and(|w| w.keys.contains(&node.host)))
}

/// A store may be an older copy of what this host signed before: it first hears what others know of that.
fn has_heard(node: &Node) -> bool {
    let (others, witnesses) = {
        let ledger = node.facts.ledger();
        let root = ledger.root(now());
        let witnesses = root.and_then(|root| root.root.roles.get(&Role::Witness).map(|w| w.keys.len()));
        (ledger.members(now()).any(|member| member.key != node.host), witnesses.unwrap_or(0))
    };
    if !others || node.control.stats().reconciled > 0 {
        return true;
    }
    witnesses == 1 && node.started.elapsed() > ALONE_PATIENCE
}
