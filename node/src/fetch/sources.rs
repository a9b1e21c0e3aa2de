//! Finding hosts that have a manifest and hearing what each of them declares, while a fetch runs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::debug;
use weighlock_protocol::wire::bao::GroupSet;
use weighlock_protocol::{KeyId, ManifestDigest};

use super::Inner;
use crate::net::data::{self, GetError};

/// How often hosts are looked for.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Look-ups in the provider table come once in this many rounds, and in the first.
const TABLE_ROUNDS: u64 = 20;
/// Pause before a host that could not be reached is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// A host that has declared nothing for this long makes room for another.
const IDLE_MAX: Duration = Duration::from_secs(10);

/// What is heard of a source.
#[derive(Debug)]
pub(super) enum Heard {
    /// It has these groups of some layers, by place in `Manifest::layers`, beside what it declared before.
    Declared { peer: KeyId, layers: Vec<(u32, GroupSet)> },
    /// It cannot be reached any more.
    Gone { peer: KeyId },
}

/// Looks for hosts until the fetch that listens at the other end of `heard` is dropped.
pub(super) async fn look(
    inner: Arc<Inner>,
    digest: ManifestDigest,
    heard: mpsc::Sender<Heard>,
    mut again: mpsc::UnboundedReceiver<KeyId>,
) {
    let mut watching: BTreeMap<KeyId, tokio::task::AbortHandle> = BTreeMap::new();
    let mut watchers: JoinSet<KeyId> = JoinSet::new();
    let mut listed: BTreeSet<KeyId> = BTreeSet::new();
    let mut table: JoinSet<Vec<KeyId>> = JoinSet::new();
    for round in 0u64.. {
        // Beside the rest: a member that is down makes the look-up wait.
        if round % TABLE_ROUNDS == 0 && table.is_empty() {
            let inner = inner.clone();
            table.spawn(async move { inner.control.providers(digest).await.unwrap_or_default() });
        }
        while let Some(providers) = table.try_join_next() {
            listed = providers.unwrap_or_default().into_iter().collect();
        }
        for peer in ranked(&inner, &digest, &listed) {
            if watching.len() >= inner.limits.sources_max {
                break;
            }
            if watching.contains_key(&peer) || inner.banned_until(&peer).is_some() {
                continue;
            }
            let handle = watchers.spawn(watch(inner.clone(), peer, digest, heard.clone()));
            watching.insert(peer, handle);
        }
        let pause = tokio::time::sleep(LOOK_INTERVAL);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = heard.closed() => return,
                () = &mut pause => break,
                Some(ended) = watchers.join_next() => if let Ok(peer) = ended { watching.remove(&peer); },
                Some(peer) = again.recv() => if let Some(watcher) = watching.remove(&peer) { watcher.abort(); },
            }
        }
    }
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

/// Hears what one host declares until it ends; then waits a little, so that it is not tried at once again.
async fn watch(inner: Arc<Inner>, peer: KeyId, digest: ManifestDigest, heard: mpsc::Sender<Heard>) -> KeyId {
    let result = listen(&inner, peer, digest, &heard).await;
    match result {
        // It has all of it and said so; the stream's end is no loss. It stays a source as long as it lives.
        Ok(connection) => {
            connection.closed().await;
        }
        Err(e) => debug!(%peer, %digest, error = %e, "source not usable"),
    }
    let _ = heard.send(Heard::Gone { peer }).await;
    tokio::time::sleep(RETRY).await;
    peer
}

async fn listen(
    inner: &Inner,
    peer: KeyId,
    digest: ManifestDigest,
    heard: &mpsc::Sender<Heard>,
) -> Result<quinn::Connection, GetError> {
    let connection = inner.data.connect(peer, &addresses(inner, &peer)).await?;
    let mut declared = data::possession(&connection, digest).await?;
    let mut useful = false;
    loop {
        let next = if useful {
            declared.next().await
        } else {
            let idle = || GetError::Lost("it has nothing of this yet".into());
            tokio::time::timeout(IDLE_MAX, declared.next()).await.map_err(|_| idle())?
        };
        let Some(item) = next? else { break };
        useful |= !item.layers.is_empty();
        if heard.send(Heard::Declared { peer, layers: item.layers }).await.is_err() {
            break;
        }
    }
    Ok(connection)
}
