//! The audit log at the command line's door: this host's, or another member's over the control plane.

use std::sync::Arc;

use weighlock_protocol::wire::capability;
use weighlock_protocol::{KeyId, Reference, Selector};

use crate::audit::{Page, Query};
use crate::cluster::now;
use crate::daemon::Node;
use crate::error::{Error, Result};
use crate::fetch::blocking;

/// Asks the log of this host, or that of `host`, given by name or key.
pub(super) async fn answer(node: &Arc<Node>, host: Option<&str>, query: Query) -> Result<Page> {
    let host = host.map(|host| member(node, host)).transpose()?;
    let query = with_digest(node, query);
    let Some(host) = host.filter(|host| *host != node.host) else {
        let node = node.clone();
        return blocking(move || node.audit.answer(&query)).await;
    };
    let known = node.control.host_records().borrow().get(&host).cloned();
    if let Some(known) = known.filter(|known| known.record.capabilities & capability::AUDIT == 0) {
        return Err(Error::refused(format!(
            "{host} runs release {}, which does not answer about its audit log",
            known.record.version
        ))
        .hint("ask on that host, or upgrade it"));
    }
    let bytes = serde_json::to_vec(&query).map_err(Error::internal)?;
    let answer = node.control.request_audit(host, bytes).await.map_err(|e| {
        Error::unavailable(format!("no answer about the audit log of {host}: {e}"))
            .hint("an older release does not answer it: ask on that host; `weighlock peers` tells whether it is connected")
    })?;
    let answer: Result<Page> = serde_json::from_slice(&answer).map_err(|e| {
        Error::unavailable(format!("the answer of {host} is not understood: {e}"))
            .hint("ask on that host, if it runs another release")
    })?;
    answer
}

/// What was opened under another name of the same artifact is meant, too. Not so for a channel, which moves.
fn with_digest(node: &Node, mut query: Query) -> Query {
    if let Query::Events { filter, .. } | Query::Open { filter, .. } = &mut query
        && let Some(reference) = filter.reference.as_deref().and_then(|text| text.parse::<Reference>().ok())
        && !matches!(reference.selector, Selector::Stage(_))
    {
        filter.digest = node.facts.resolve(&reference).ok();
    }
    query
}

fn member(node: &Node, host: &str) -> Result<KeyId> {
    let ledger = node.facts.ledger();
    if let Ok(key) = host.parse::<KeyId>() {
        return Ok(key);
    }
    let named: Vec<KeyId> =
        ledger.members(now()).filter(|member| member.name == host).map(|member| member.key).collect();
    match named[..] {
        [key] => Ok(key),
        [] => Err(Error::not_found(format!("no member is named {host}")).hint("see `weighlock member list`")),
        _ => Err(Error::invalid(format!("several hosts are named {host}")).hint("give the key, ed25519:...")),
    }
}
