//! Dropping this host's copy of an artifact, and what speaks against it.

use std::collections::BTreeSet;

use tracing::info;
use weighlock_protocol::{ManifestDigest, Reference};

use super::list::copies_elsewhere;
use crate::cli::counted;
use crate::daemon::Node;
use crate::error::{Error, Result};
use crate::facts;
use crate::gc::kept_by;
use crate::local::message::Removed;

/// Drops it. Blocks on the disk.
///
/// # Errors
/// Nothing of it is here; or a channel, a loader, a fetch or the rest of the cluster needs it and nobody insists.
pub(super) fn remove(node: &Node, text: &str, force: bool) -> Result<Removed> {
    let reference: Reference = text.parse()?;
    let digest = node.facts.resolve(&reference)?;
    let Some(manifest) = facts::manifest(&node.store, &digest)? else {
        return Err(Error::not_found(format!("nothing of {reference} is on this host")));
    };
    // What was begun and got nothing yet is wanted all the same, until somebody says otherwise.
    let wanted = node.store.held().map_err(Error::from)?.contains(&digest);
    if !wanted && node.store.held_bytes(&manifest).map_err(Error::from)? == 0 {
        return Err(Error::not_found(format!("nothing of {reference} is on this host")));
    }
    let complete = node.store.manifest_complete(&manifest).map_err(Error::from)?;
    let last_copy = copies_elsewhere(node, &node.control.host_records(), &digest) == 0;
    if !force {
        if let Some(channel) = kept_by(node, &digest) {
            return Err(Error::refused(format!(
                "{reference} is what {channel} runs, or may be rolled back to"
            ))
            .hint("say --force to drop this host's copy all the same"));
        }
        if let Some(pin) = node.store.pins().map_err(Error::from)?.get(&digest) {
            let reason = pin.reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
            return Err(Error::refused(format!("{reference} is pinned on this host{reason}"))
                .hint(format!("`weighlock unpin {reference}`, or say --force")));
        }
        if let Some(loaders) = node.leases.open().get(&digest) {
            let loaders = counted(*loaders, "loader");
            return Err(Error::refused(format!("{reference} is open by {loaders}"))
                .hint("close them, or say --force: they keep what they have mapped"));
        }
        if node.fetcher.running().iter().any(|(running, _)| *running == digest) {
            return Err(
                Error::refused(format!("{reference} is being fetched")).hint("wait for it, or say --force")
            );
        }
        // What is left of the last copy, after damage say, is worth as much.
        if last_copy && (complete || is_begun(node, &digest)?) {
            let what = if complete { "the last known copy" } else { "what is left of the last known copy" };
            return Err(Error::refused(format!("this is {what} of {reference}"))
                .hint("open it on another host first, or say --force to lose it for good"));
        }
    }
    if force {
        node.store.unpin(&digest).map_err(Error::from)?;
    }
    let freed_bytes = node.store.remove_artifact(&digest).map_err(Error::from)?;
    // After the bytes went: who links anew before that would be told of them again.
    node.fetcher.retire(&digest);
    node.fetcher.note_change();
    info!(%reference, %digest, freed_bytes, "dropped");
    let mut also: BTreeSet<String> = {
        let ledger = node.facts.ledger();
        ledger.publishes_of(&digest).map(|p| format!("{}:{}", p.publish.artifact, p.publish.tag)).collect()
    };
    also.remove(&reference.to_string());
    Ok(Removed { digest, freed_bytes, also: also.into_iter().collect(), last_copy })
}

/// Whether some layer of it is complete here.
fn is_begun(node: &Node, digest: &ManifestDigest) -> Result<bool> {
    let holdings = node.store.holdings().map_err(Error::from)?;
    Ok(holdings.iter().any(|holding| holding.sealed && holding.manifest.digest() == *digest))
}
