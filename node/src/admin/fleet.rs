//! What the command line changes of a daemon as one of a fleet: hosts that are gone, and this one when it is to go.

use std::sync::Arc;

use weighlock_protocol::KeyId;

use crate::cluster::{self, now};
use crate::daemon::Node;
use crate::error::{Error, Result};
use crate::fetch::blocking;
use crate::local::fleet::{Draining, Forgotten};

/// Begins or ends to drain this host, if asked to, and tells how far that is.
pub(super) async fn drain(node: &Arc<Node>, on: Option<bool>) -> Draining {
    if let Some(on) = on {
        node.drain(on).await;
    }
    Draining {
        draining: node.is_draining(),
        fetches: node.fetcher.running().len(),
        sending: node.data.sending(),
        open: node.leases.open().len(),
    }
}

/// Drops a host from this one's lists, records and address book until it speaks again.
///
/// # Errors
/// No member, this host, or one that is connected.
pub(super) async fn forget(node: &Arc<Node>, host: KeyId) -> Result<Forgotten> {
    let member = node.facts.ledger().member(&host, now());
    let Some(member) = member else {
        return Err(Error::not_found(format!("{host} is no member")).hint("see `weighlock member list`"));
    };
    if host == node.host {
        return Err(Error::refused("this is the host that you are on")
            .hint("run it on another host; a host forgets only others"));
    }
    if node.control.peers().await.unwrap_or_default().iter().any(|peer| peer.key == host) {
        return Err(Error::refused(format!("{} is connected, so it is not gone", member.name))
            .hint("`weighlock member revoke` shuts out a host for good"));
    }
    node.control.forget(host).await.map_err(Error::unavailable)?;
    let copy = node.clone();
    blocking(move || {
        cluster::drop_contact(&copy.store, &host)?;
        copy.forgotten.add(host)
    })
    .await?;
    Ok(Forgotten { host, name: member.name, admitted_until: member.expires.0 })
}
