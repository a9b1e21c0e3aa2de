//! `ls`: artifacts of the cluster and what of them is here.

use std::collections::BTreeSet;

use tokio::sync::watch;
use weighlock_protocol::ManifestDigest;
use weighlock_protocol::statement::Resolution;

use crate::daemon::Node;
use crate::error::{Error, Result};
use crate::facts;
use crate::local::message::*;

pub(super) fn list(node: &Node) -> Result<Vec<ArtifactRow>> {
    let published = facts::published(&node.facts.ledger());
    let records = node.control.host_records();
    let mut rows = Vec::with_capacity(published.len());
    for (artifact, tag, resolution) in published {
        let (digest, problem) = match resolution {
            Resolution::Resolved(digest) => (Some(digest), None),
            Resolution::Unproven(digest) => (
                Some(digest),
                Some("its policy asks for a verdict that passed it, and none is here".to_owned()),
            ),
            Resolution::Conflict { digests } => {
                let who = |(digest, keys): (&ManifestDigest, &BTreeSet<_>)| {
                    let keys: Vec<String> = keys.iter().map(ToString::to_string).collect();
                    format!("{} by {}", digest.short(), keys.join(" and "))
                };
                let all: Vec<String> = digests.iter().map(who).collect();
                (None, Some(format!("published twice with different contents: {}", all.join("; "))))
            }
            Resolution::Unknown => continue,
        };
        let mut row = ArtifactRow {
            artifact: artifact.to_string(),
            tag: tag.to_string(),
            digest,
            files: None,
            total_bytes: 0,
            held_bytes: 0,
            complete: false,
            copies_elsewhere: 0,
            publisher: node.host,
            published: 0,
            problem,
        };
        if let Some(digest) = digest {
            if let Some(first) = node.facts.ledger().publishes_of(&digest).next() {
                (row.publisher, row.published, row.total_bytes) =
                    (first.by, first.time.0, first.publish.total_bytes);
            }
            if let Some(manifest) = facts::manifest(&node.store, &digest)? {
                row.files = Some(manifest.files().len());
                row.total_bytes = manifest.total_bytes();
                row.held_bytes = file_bytes_held(node, &manifest)?;
                row.complete = node.store.manifest_complete(&manifest).map_err(Error::from)?;
            }
            row.copies_elsewhere = copies_elsewhere(node, &records, &digest);
        }
        rows.push(row);
    }
    Ok(rows)
}

/// Held bytes without those of the contract and configuration blob, so that they compare with the total.
pub(super) fn file_bytes_held(node: &Node, manifest: &weighlock_protocol::manifest::Manifest) -> Result<u64> {
    Ok(node.store.held_bytes(manifest).map_err(Error::from)?.min(manifest.total_bytes()))
}

pub(super) fn copies_elsewhere(
    node: &Node,
    records: &watch::Receiver<crate::net::control::HostRecords>,
    digest: &ManifestDigest,
) -> usize {
    let holds = |record: &weighlock_protocol::wire::control::HostRecord| {
        record.held.iter().any(|held| held.digest == *digest && held.complete)
    };
    records.borrow().iter().filter(|(host, known)| **host != node.host && holds(&known.record)).count()
}
