//! What can be seen from this host: who holds an artifact, what moves now, and the other hosts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use weighlock_protocol::statement::Member;
use weighlock_protocol::swarm::LinkStatus;
use weighlock_protocol::wire::capability;
use weighlock_protocol::{KeyId, ManifestDigest, Reference};

use crate::cluster::now;
use crate::daemon::Node;
use crate::error::{Error, Result};
use crate::facts;
use crate::fetch::{WorkReport, blocking};
use crate::local::message::*;

/// How long the provider table is asked; what records say is told without it.
const PROVIDERS_PATIENCE: Duration = Duration::from_secs(2);

/// Who holds an artifact.
///
/// # Errors
/// The reference means nothing, or nobody is known to hold it.
pub(super) async fn whereabouts(node: &Arc<Node>, text: &str) -> Result<Whereabouts> {
    let reference: Reference = text.parse()?;
    let digest = node.facts.resolve(&reference)?;
    let work = node.fetcher.works().await.into_iter().find(|work| work.digest == digest);
    let connected = connected(node).await;
    // A table that does not answer in time only leaves out those whose records are not here.
    let listed = tokio::time::timeout(PROVIDERS_PATIENCE, node.control.providers(digest)).await;
    let listed: BTreeSet<KeyId> = listed.ok().and_then(Result::ok).unwrap_or_default().into_iter().collect();
    let copy = node.clone();
    let own = blocking(move || own_copy(&copy, &digest)).await?;
    let records = node.control.host_records().borrow().clone();
    let ledger = node.facts.ledger();
    let pieces = work.as_ref().map(|work| work.status.pieces).filter(|pieces| *pieces > 0);

    let holder = |member: Member| {
        let this_host = member.key == node.host;
        let known = records.get(&member.key);
        let link = work.as_ref().and_then(|work| work.links.iter().find(|link| link.peer == member.key));
        let share = if this_host {
            let held_pieces = work.as_ref().map(|work| work.status.held);
            own.share(held_pieces)
        } else {
            let record = known.map(|known| Declared {
                complete: known
                    .record
                    .held
                    .iter()
                    .find(|held| held.digest == digest)
                    .map(|held| held.complete),
                all: !known.record.held_truncated,
            });
            share(record, listed.contains(&member.key), link.map(|link| link.have), pieces)
        }?;
        let data = known.map(|known| known.record.data_addrs.clone()).unwrap_or_default();
        let labels = known.map(|known| &known.record.labels).filter(|labels| !labels.is_empty());
        Some(Holder {
            host: member.key,
            this_host,
            connected: this_host || connected.contains(&member.key),
            complete: share.complete,
            held_percent: share.percent,
            held_bytes: this_host.then_some(own.held_bytes),
            held_pieces: share.pieces,
            pieces,
            told_by: share.told_by,
            near: link.map(|link| link.near),
            labels: labels.cloned().unwrap_or(member.labels),
            data,
            record_age_s: known.filter(|_| !this_host).map(|known| known.heard.elapsed().as_secs()),
            banned_s: banned_s(node, &member.key),
            name: member.name,
        })
    };
    let listed = ledger.members(now()).filter(|member| !node.forgotten.contains(&member.key));
    let mut holders: Vec<Holder> = listed.filter_map(holder).collect();
    if holders.is_empty() {
        return Err(Error::not_found(format!("no host is known to hold {reference}, or a part of it")).hint(
            "add it again where its files are, or see `weighlock peers`: those who hold it may be away",
        ));
    }
    let part = |holder: &Holder| holder.held_percent.unwrap_or(0.0);
    holders.sort_by(|a, b| {
        b.complete.cmp(&a.complete).then(part(b).total_cmp(&part(a))).then_with(|| a.name.cmp(&b.name))
    });
    let stated = ledger.publishes_of(&digest).next().map_or(0, |published| published.publish.total_bytes);
    Ok(Whereabouts {
        reference: reference.to_string(),
        digest,
        total_bytes: own.total_bytes.unwrap_or(stated),
        loaders_here: node.leases.open().get(&digest).copied().unwrap_or_default(),
        holders,
    })
}

/// Counters and states at this moment.
///
/// # Errors
/// None now; what cannot be asked is left out.
pub(super) async fn activity(node: &Arc<Node>) -> Result<Activity> {
    let works = node.fetcher.works().await;
    let connected = connected(node).await;
    let traffic = node.fetcher.traffic();
    let shared = shared(&works);
    let leases = node.leases.open();
    let running: BTreeMap<ManifestDigest, Progress> = node.fetcher.running().into_iter().collect();
    let works: BTreeMap<ManifestDigest, WorkReport> =
        works.into_iter().map(|work| (work.digest, work)).collect();
    let ledger = node.facts.ledger();

    let digests: BTreeSet<ManifestDigest> = running.keys().chain(works.keys()).copied().collect();
    let artifact = |digest: ManifestDigest| {
        let published: Vec<_> = ledger.publishes_of(&digest).collect();
        let names: BTreeSet<String> =
            published.iter().map(|p| format!("{}:{}", p.publish.artifact, p.publish.tag)).collect();
        let work = works.get(&digest);
        let progress = running.get(&digest).cloned().unwrap_or_else(|| {
            let total_bytes = published.first().map_or(0, |p| p.publish.total_bytes);
            let missing = work.map_or(0, |work| work.status.missing_bytes);
            let done_bytes = total_bytes.saturating_sub(missing);
            Progress { phase: "serve".into(), done_bytes, total_bytes, ..Progress::default() }
        });
        ArtifactActivity {
            digest,
            names: names.into_iter().collect(),
            phase: progress.phase,
            done_bytes: progress.done_bytes,
            total_bytes: progress.total_bytes,
            reused_bytes: progress.reused_bytes,
            sources: progress.sources,
            sources_now: work.map_or(0, |work| work.status.sources),
            links: work.map_or(0, |work| work.status.links),
            in_flight: work.map_or(0, |work| work.status.in_flight),
            uploads: work.map_or(0, |work| work.links.iter().map(|link| u64::from(link.uploads)).sum()),
            held_pieces: work.map_or(0, |work| work.status.held),
            pieces: work.map_or(0, |work| work.status.pieces),
            loaders: leases.get(&digest).copied().unwrap_or_default(),
        }
    };
    let peer = |member: Member| {
        let counts = traffic.get(&member.key).copied().unwrap_or_default();
        PeerActivity {
            host: member.key,
            name: member.name,
            connected: connected.contains(&member.key),
            shared: shared.get(&member.key).cloned().unwrap_or_default(),
            banned_s: banned_s(node, &member.key),
            fetched_bytes: counts.fetched_bytes,
            sent_bytes: counts.sent_bytes,
        }
    };
    let quiet = |peer: &PeerActivity| {
        !peer.connected
            && peer.shared.shared.is_empty()
            && peer.banned_s.is_none()
            && peer.fetched_bytes + peer.sent_bytes == 0
    };
    let members = ledger.members(now()).filter(|member| member.key != node.host);
    Ok(Activity {
        at_ms: u64::try_from(node.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        host: node.host,
        name: node.name.clone(),
        fetched_bytes: node.fetcher.fetched_bytes(),
        sent_bytes: traffic.values().map(|counts| counts.sent_bytes).sum(),
        artifacts: digests.into_iter().map(artifact).collect(),
        peers: members.map(peer).filter(|peer| !quiet(peer)).collect(),
    })
}

/// The other hosts of the cluster.
///
/// # Errors
/// None now; what cannot be asked is left out.
pub(super) async fn peers(node: &Arc<Node>) -> Result<Vec<PeerRow>> {
    let connected: BTreeMap<_, _> =
        node.control.peers().await.unwrap_or_default().into_iter().map(|peer| (peer.key, peer)).collect();
    let data = node.data.connections();
    let traffic = node.fetcher.traffic();
    let shared = shared(&node.fetcher.works().await);
    let records = node.control.host_records().borrow().clone();
    let ledger = node.facts.ledger();
    let row = |member: Member| {
        let known = records.get(&member.key);
        let links: Vec<_> = data.iter().filter(|(key, ..)| *key == member.key).collect();
        let counts = traffic.get(&member.key).copied().unwrap_or_default();
        PeerRow {
            host: member.key,
            name: member.name.clone(),
            connected: connected.contains_key(&member.key),
            rtt_ms: connected.get(&member.key).and_then(|peer| peer.rtt_ms),
            hardware: known.map_or_else(|| "?".into(), |known| known.record.hardware.clone()),
            labels: member.labels.clone(),
            version: known.map_or_else(String::new, |known| known.record.version.clone()),
            capabilities: known.map_or_else(Vec::new, |known| capability::names(known.record.capabilities)),
            data: known.map(|known| known.record.data_addrs.clone()).unwrap_or_default(),
            data_connections: links.len(),
            mtu: links.first().map(|(_, _, _, mtu)| *mtu),
            held: known.map_or(0, |known| known.record.held.len()),
            shared: shared.get(&member.key).cloned().unwrap_or_default(),
            record_age_s: known.map(|known| known.heard.elapsed().as_secs()),
            banned_s: banned_s(node, &member.key),
            fetched_bytes: counts.fetched_bytes,
            sent_bytes: counts.sent_bytes,
        }
    };
    let listed = |member: &Member| member.key != node.host && !node.forgotten.contains(&member.key);
    Ok(ledger.members(now()).filter(listed).map(row).collect())
}

async fn connected(node: &Node) -> BTreeSet<KeyId> {
    node.control.peers().await.unwrap_or_default().into_iter().map(|peer| peer.key).collect()
}

fn banned_s(node: &Node, host: &KeyId) -> Option<u64> {
    let until = node.fetcher.banned_until(host)?;
    Some(until.saturating_duration_since(Instant::now()).as_secs())
}

/// What each neighbour is to this host, over all swarms.
fn shared(works: &[WorkReport]) -> BTreeMap<KeyId, Shared> {
    let mut all: BTreeMap<KeyId, Shared> = BTreeMap::new();
    let links = works.iter().flat_map(|work| work.links.iter().map(|link| (work.digest, link)));
    for (digest, link) in links {
        let LinkStatus { peer, near, in_flight, uploads, .. } = link;
        let one = all.entry(*peer).or_default();
        one.shared.push(digest);
        one.in_flight += u64::from(*in_flight);
        one.uploads += u64::from(*uploads);
        one.near = Some(*near);
    }
    all
}

/// What this host has of an artifact.
struct Own {
    held_bytes: u64,
    /// Not known before the manifest is here.
    total_bytes: Option<u64>,
    complete: bool,
}

/// Blocking.
fn own_copy(node: &Node, digest: &ManifestDigest) -> Result<Own> {
    let Some(manifest) = facts::manifest(&node.store, digest)? else {
        return Ok(Own { held_bytes: 0, total_bytes: None, complete: false });
    };
    let complete = node.store.manifest_complete(&manifest).map_err(Error::from)?;
    Ok(Own {
        held_bytes: super::list::file_bytes_held(node, &manifest)?,
        total_bytes: Some(manifest.total_bytes()),
        complete,
    })
}

impl Own {
    fn share(&self, pieces: Option<usize>) -> Option<Share> {
        if self.held_bytes == 0 && !self.complete {
            return None;
        }
        let percent = percent(self.held_bytes, self.total_bytes.unwrap_or_default(), self.complete);
        Some(Share { complete: self.complete, percent: Some(percent), pieces, told_by: Evidence::Store })
    }
}

/// What a host's record says.
#[derive(Debug, Clone, Copy)]
struct Declared {
    /// Whether it holds all of the artifact; `None` where the record does not list it.
    complete: Option<bool>,
    /// The record lists all that the host holds.
    all: bool,
}

/// How much a host holds.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Share {
    complete: bool,
    percent: Option<f64>,
    pieces: Option<usize>,
    told_by: Evidence,
}

/// How much another host holds, of all that is heard of it; `None` where that is nothing. `have` are the whole pieces
/// that it declares as a neighbour, of `pieces`.
fn share(
    record: Option<Declared>,
    listed: bool,
    have: Option<usize>,
    pieces: Option<usize>,
) -> Option<Share> {
    let declared = record.and_then(|record| record.complete);
    if let (Some(have), Some(pieces)) = (have, pieces)
        && have > 0
    {
        // Newer than the record, which follows a completion by a moment.
        let complete = have >= pieces || declared == Some(true);
        let percent = if complete { 100.0 } else { percent(have as u64, pieces as u64, false) };
        return Some(Share {
            complete,
            percent: Some(percent),
            pieces: Some(have),
            told_by: Evidence::Swarm,
        });
    }
    let none = Share { complete: false, percent: None, pieces: None, told_by: Evidence::Record };
    match declared {
        Some(true) => Some(Share { complete: true, percent: Some(100.0), ..none }),
        // It wants the artifact, and tells as a neighbour that it has nothing yet.
        Some(false) if have.is_some() => None,
        Some(false) => Some(none),
        // The table forgets slowly: a record that lists all wins.
        None if listed && record.is_none_or(|record| !record.all) => {
            Some(Share { told_by: Evidence::Providers, ..none })
        }
        None => None,
    }
}

/// In tenths, rounded down, and 100 only where nothing is missing.
fn percent(done: u64, total: u64, complete: bool) -> f64 {
    if complete {
        return 100.0;
    }
    let tenths = u128::from(done) * 1000 / u128::from(total.max(1));
    u32::try_from(tenths.min(999)).map_or(0.0, f64::from) / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_only_said_of_all() {
        assert_eq!(percent(0, 10, false), 0.0);
        assert_eq!(percent(1, 3, false), 33.3);
        assert_eq!(percent(u64::MAX - 1, u64::MAX, false), 99.9);
        assert_eq!(percent(10, 10, false), 99.9, "the files are here, the contract is not");
        assert_eq!(percent(0, 0, true), 100.0, "empty files");
        assert_eq!(percent(0, 0, false), 0.0);
    }

    #[test]
    fn what_a_host_holds_is_told_by_the_best_witness() {
        let says = |complete, all| Some(Declared { complete, all });
        let told = |record, listed, have, pieces| {
            share(record, listed, have, pieces).map(|one| (one.complete, one.percent, one.told_by))
        };
        use Evidence::{Providers, Record, Swarm};
        assert_eq!(told(says(Some(true), true), true, None, None), Some((true, Some(100.0), Record)));
        assert_eq!(told(says(Some(false), true), true, None, None), Some((false, None, Record)));
        // A neighbour tells more, and sooner, than its record.
        assert_eq!(told(says(Some(false), true), true, Some(3), Some(4)), Some((false, Some(75.0), Swarm)));
        assert_eq!(told(says(Some(false), true), true, Some(4), Some(4)), Some((true, Some(100.0), Swarm)));
        assert_eq!(told(says(None, true), false, Some(1), Some(4)), Some((false, Some(25.0), Swarm)));
        // It has begun.
        assert_eq!(told(says(Some(false), true), true, Some(0), Some(4)), None);
        // It has not told its neighbours yet.
        assert_eq!(told(says(Some(true), true), false, Some(0), Some(4)), Some((true, Some(100.0), Record)));
        // The table counts where the record is silent.
        assert_eq!(told(says(None, true), true, None, None), None);
        assert_eq!(told(says(None, false), true, None, None), Some((false, None, Providers)));
        assert_eq!(told(None, true, None, None), Some((false, None, Providers)));
        assert_eq!(told(None, false, None, None), None);
    }

    #[test]
    fn links_of_several_swarms_add_up() {
        let (peer, other) = (KeyId([1; 32]), KeyId([2; 32]));
        let link = |peer, in_flight, uploads| LinkStatus {
            link: weighlock_protocol::swarm::LinkId(1),
            peer,
            near: true,
            have: 1,
            in_flight,
            uploads,
            silent: false,
        };
        let status = weighlock_protocol::swarm::WorkStatus {
            pieces: 1,
            held: 1,
            missing_bytes: 0,
            links: 1,
            in_flight: 1,
            sources: 1,
        };
        let work = |n, links| WorkReport { digest: ManifestDigest([n; 32]), status: status.clone(), links };
        let all =
            shared(&[work(1, vec![link(peer, 2, 0), link(other, 0, 1)]), work(2, vec![link(peer, 1, 4)])]);
        let both = vec![ManifestDigest([1; 32]), ManifestDigest([2; 32])];
        assert_eq!(all[&peer], Shared { shared: both, in_flight: 3, uploads: 4, near: Some(true) });
        assert_eq!((all[&other].in_flight, all[&other].uploads), (0, 1));
        assert_eq!(all.len(), 2);
    }
}
