//! Hosts that have something of an artifact: who they are, where they are, in which rack.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use weighlock_protocol::swarm::{Candidate, RackId};
use weighlock_protocol::wire::host::HostRecord;
use weighlock_protocol::{KeyId, LayerId, ManifestDigest};

use super::happening::Happening;
use super::{Inner, blocking};
use crate::error::Error;
use crate::facts;

/// Hosts that take part in an artifact and are not banned, as their records or the provider table say. Those that hold
/// more than they list may, too.
pub(super) fn candidates(inner: &Inner, digest: &ManifestDigest, listed: &BTreeSet<KeyId>) -> Vec<Candidate> {
    let records = inner.control.host_records();
    let records = records.borrow();
    let mut found: BTreeMap<KeyId, Candidate> = BTreeMap::new();
    for peer in listed {
        let rack = records.get(peer).and_then(|known| rack_id(&known.record));
        found.insert(*peer, Candidate { peer: *peer, rack, complete: false });
    }
    for (peer, known) in records.iter() {
        let record = &known.record;
        let held = record.held.iter().find(|held| held.digest == *digest);
        if held.is_some() || record.held_truncated {
            let complete = held.is_some_and(|held| held.complete);
            found.insert(*peer, Candidate { peer: *peer, rack: rack_id(record), complete });
        }
    }
    found.remove(&inner.control.key());
    found.into_values().filter(|host| inner.banned_until(&host.peer).is_none()).collect()
}

/// Asks the provider table who has an artifact and tells the loop, beside the rest: a member that is down makes the
/// look-up wait.
pub(super) fn look_up(inner: &Arc<Inner>, digest: ManifestDigest) {
    let asking = inner.clone();
    inner.tasks.spawn(async move {
        let hosts = tokio::select! {
            hosts = asking.control.providers(digest) => hosts.unwrap_or_default().into_iter().collect(),
            () = asking.stop.cancelled() => return,
        };
        let _ = asking.swarm.send(Happening::Listed { digest, hosts }).await;
    });
}

/// Hosts that may have something of an artifact: those that say they have all of it come first, then those that are
/// `listed` as providers, those that may have some of it last.
pub(super) fn ranked(inner: &Inner, digest: &ManifestDigest, listed: &BTreeSet<KeyId>) -> Vec<KeyId> {
    let mut ranked: BTreeMap<KeyId, u8> = listed.iter().map(|host| (*host, 1)).collect();
    for (host, known) in inner.control.host_records().borrow().iter() {
        let record = &known.record;
        match record.held.iter().find(|held| held.digest == *digest) {
            Some(held) => ranked.insert(*host, if held.complete { 0 } else { 2 }),
            None if record.held_truncated => Some(*ranked.entry(*host).or_insert(3)),
            None => None,
        };
    }
    let own = inner.control.key();
    ranked.remove(&own);
    // Among equals each host starts elsewhere, or everybody would crowd the same few.
    let mut hosts: Vec<KeyId> = ranked.keys().copied().collect();
    hosts.sort_by_key(|host| (ranked[host], distance(&own, host)));
    hosts
}

/// The rack that a host says it is in.
pub(super) fn rack_of(inner: &Inner, peer: &KeyId) -> Option<RackId> {
    inner.control.host_records().borrow().get(peer).and_then(|known| rack_id(&known.record))
}

fn rack_id(record: &HostRecord) -> Option<RackId> {
    rack(&record.labels)
}

/// The rack that labels name: racks of different zones may have the same name.
pub(super) fn rack(labels: &BTreeMap<String, String>) -> Option<RackId> {
    let rack = labels.get("rack")?;
    let zone = labels.get("zone").map_or("", String::as_str);
    let hash = blake3::hash(format!("{zone}\0{rack}").as_bytes());
    let mut id = [0; 8];
    id.copy_from_slice(&hash.as_bytes()[..8]);
    Some(RackId(u64::from_le_bytes(id)))
}

/// The layers of an artifact, in loading order, if all of it is here and may be given to others.
pub(super) async fn complete_layers(inner: &Inner, digest: ManifestDigest) -> Option<Vec<(LayerId, u64)>> {
    let store = inner.store.clone();
    let look = move || {
        let Some(manifest) = facts::manifest(&store, &digest)? else { return Ok(None) };
        let complete = store.manifest_complete(&manifest).map_err(Error::from)?;
        let layers = manifest.layers().map(|layer| (layer.id, layer.size)).collect();
        Ok(complete.then_some(layers))
    };
    blocking(look).await.ok().flatten()
}

/// A random-looking order of hosts that differs from host to host.
fn distance(own: &KeyId, other: &KeyId) -> [u8; 32] {
    let mut both = [0; 64];
    both[..32].copy_from_slice(&own.0);
    both[32..].copy_from_slice(&other.0);
    *blake3::hash(&both).as_bytes()
}

/// Addresses of a host's data plane, as its record says, or as they were when it was last heard.
pub(super) fn addresses(inner: &Inner, peer: &KeyId) -> Vec<SocketAddr> {
    let records = inner.control.host_records();
    if let Some(known) = records.borrow().get(peer) {
        return known.record.data_addrs.clone();
    }
    let remembered = crate::cluster::contacts(&inner.store).unwrap_or_default();
    remembered
        .into_iter()
        .find(|contact| contact.host == *peer)
        .map(|contact| contact.data)
        .unwrap_or_default()
}
