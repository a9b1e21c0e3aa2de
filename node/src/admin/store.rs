//! Answers about the store: what goes, what is pinned, what uses the disk, who else holds a copy.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weighlock_cache::Pin;
use weighlock_protocol::keep::Because;
use weighlock_protocol::{LayerId, Reference};

use crate::cluster::now;
use crate::daemon::Node;
use crate::error::{Error, Result};
use crate::facts;
use crate::fetch::blocking;
use crate::gc::{self, What};
use crate::local::store::{CopyCount, DiskUse, PinChange, PinRow};

/// Pins, unpins, and lists what is pinned then. Blocks on the disk.
///
/// # Errors
/// A reference that means nothing, or one that is not pinned; the store failed.
pub(super) fn pin(node: &Node, change: &PinChange) -> Result<Vec<PinRow>> {
    let resolve = |references: &[String]| -> Result<Vec<(Reference, _)>> {
        let one = |text: &String| {
            let reference: Reference = text.parse()?;
            let digest = node.facts.resolve(&reference)?;
            Ok((reference, digest))
        };
        references.iter().map(one).collect()
    };
    match change {
        PinChange::List => {}
        PinChange::Add { references, reason } => {
            for (reference, digest) in resolve(references)? {
                let pin = Pin { name: reference.to_string(), reason: reason.clone(), since: now().0 };
                node.store.pin(&digest, &pin).map_err(Error::from)?;
            }
        }
        PinChange::Remove { references } => {
            let going = resolve(references)?;
            let pinned = node.store.pins().map_err(Error::from)?;
            // All of them, or none.
            if let Some((reference, _)) = going.iter().find(|(_, digest)| !pinned.contains_key(digest)) {
                return Err(Error::not_found(format!("{reference} is not pinned on this host"))
                    .hint("`weighlock pin --list` tells what is"));
            }
            for (_, digest) in going {
                node.store.unpin(&digest).map_err(Error::from)?;
            }
        }
    }
    let row = |(digest, pin): (_, Pin)| {
        let manifest = facts::manifest(&node.store, &digest)?;
        let complete = match manifest {
            Some(manifest) => node.store.manifest_complete(&manifest).map_err(Error::from)?,
            None => false,
        };
        Ok(PinRow { name: pin.name, digest, reason: pin.reason, since: pin.since, complete })
    };
    node.store.pins().map_err(Error::from)?.into_iter().map(row).collect()
}

/// What uses the store.
///
/// # Errors
/// The store failed.
pub(super) async fn disk_use(node: &Arc<Node>) -> Result<DiskUse> {
    let everything = What { all: true, dry_run: true, ..What::default() };
    let reclaimable_bytes = gc::collect(node, everything).await?.freed_bytes;
    let audit_bytes = node.audit.numbers().bytes;
    let node = node.clone();
    blocking(move || {
        let known = gc::known(&node)?;
        let bytes = |wanted: &dyn Fn(&Because) -> bool| -> u64 {
            let those = known.iter().filter(|one| one.held.because.iter().any(wanted));
            let layers: BTreeMap<LayerId, u64> =
                those.flat_map(|one| one.held.layers.iter().map(|(id, bytes)| (*id, *bytes))).collect();
            layers.values().sum()
        };
        let usage = node.store.usage().map_err(Error::from)?;
        Ok(DiskUse {
            layers: usage.layers,
            layer_bytes: usage.layer_bytes,
            shared_bytes: usage.shared_bytes,
            pinned_bytes: bytes(&|because| matches!(because, Because::Pinned { .. })),
            protected_bytes: bytes(&|_| true),
            reclaimable_bytes,
            partial_bytes: usage.partial_bytes,
            view_bytes: usage.view_bytes,
            quarantine_bytes: usage.quarantine_bytes,
            staging_bytes: usage.staging_bytes,
            audit_bytes,
            metadata_bytes: usage.metadata_bytes,
            reserve_bytes: usage.reserve_bytes,
            used_bytes: usage.used_bytes,
            quota_bytes: usage.quota_bytes,
            floor_bytes: usage.floor_bytes,
            free_bytes: usage.free_bytes,
            data_dir: node.dirs.data.clone(),
        })
    })
    .await
}

/// Which hosts hold all of an artifact, and whether others are told to follow it. Blocks on the disk.
///
/// # Errors
/// A reference that means nothing; the store failed.
pub(super) fn copies(node: &Node, text: &str) -> Result<CopyCount> {
    let reference: Reference = text.parse()?;
    let digest = node.facts.resolve(&reference)?;
    let own = match facts::manifest(&node.store, &digest)? {
        Some(manifest) => node.store.manifest_complete(&manifest).map_err(Error::from)?,
        None => false,
    };
    let records = node.control.host_records().borrow().clone();
    let ledger = node.facts.ledger();
    let (mut whole, mut begun): (BTreeSet<String>, BTreeSet<String>) = Default::default();
    for member in ledger.members(now()) {
        let complete = if member.key == node.host {
            own.then_some(true)
        } else {
            let held = records.get(&member.key).map(|known| &known.record.held);
            held.and_then(|held| held.iter().find(|one| one.digest == digest)).map(|one| one.complete)
        };
        match complete {
            Some(true) => whole.insert(member.name),
            Some(false) => begun.insert(member.name),
            None => false,
        };
    }
    let followed = ledger.follows().iter().any(|rule| rule.artifact == reference.artifact);
    Ok(CopyCount { digest, whole: whole.into_iter().collect(), begun: begun.into_iter().collect(), followed })
}
