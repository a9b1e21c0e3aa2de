//! What this host has and why it keeps it: the facts that the decision is made from.

use std::collections::{BTreeMap, BTreeSet};

use weighlock_cache::{Holding, Pin};
use weighlock_protocol::keep::{Because, Held, Holder, Verdict, judge_copies};
use weighlock_protocol::statement::{Channel, Ledger, NamespaceGlob};
use weighlock_protocol::{KeyId, ManifestDigest};

use crate::cluster::now;
use crate::daemon::Node;
use crate::error::{Error, Result};
use crate::follow;

/// Hosts that should hold an artifact, where nothing else is said.
pub(crate) const MIN_COPIES: usize = 2;

/// An artifact of which something is here.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    /// The facts.
    pub(crate) held: Held,
    /// Its first name, or its digest.
    pub(crate) name: String,
    /// Whether all of it is here.
    pub(crate) complete: bool,
}

/// All artifacts of which something is here. Blocks on the disk.
///
/// # Errors
/// The store failed.
pub(crate) fn known(node: &Node) -> Result<Vec<Known>> {
    let running = running(node);
    let moving = {
        let mut before = node.gc.moved();
        let moving = moving(&before, &running);
        *before = running;
        moving
    };
    let reasons = Reasons::look(node, moving)?;
    let mut all = Vec::new();
    for holding in node.store.holdings().map_err(Error::from)? {
        let digest = holding.manifest.digest();
        if reasons.moving.contains(&digest) {
            node.store.note_used(&digest, reasons.now);
        }
        let because = reasons.to_keep(&holding);
        all.push(Known {
            held: Held {
                digest,
                layers: holding.layers,
                last_used: holding.last_used,
                abandoned: !holding.complete && because.is_empty(),
                because,
            },
            name: name(&node.facts.ledger(), &digest),
            complete: holding.complete,
        });
    }
    all.sort_by_key(|one| (one.held.last_used, one.held.digest));
    Ok(all)
}

/// Whether there is no reason to keep an artifact now, by the same rule as [`known`] goes by. Blocks on the disk.
///
/// # Errors
/// The store failed.
pub(crate) fn may_go(node: &Node, digest: &ManifestDigest) -> Result<bool> {
    let holdings = node.store.holdings().map_err(Error::from)?;
    let Some(holding) = holdings.iter().find(|holding| holding.manifest.digest() == *digest) else {
        return Ok(true);
    };
    // How far they were stays as it was noted with the plan: a second look would find that nothing moves.
    let running = running(node);
    let moving = moving(&node.gc.moved(), &running);
    Ok(Reasons::look(node, moving)?.to_keep(holding).is_empty())
}

/// What reasons to keep something are told from. Who plans what goes asks it, and who asks again before it goes.
struct Reasons<'a> {
    node: &'a Node,
    pins: BTreeMap<ManifestDigest, Pin>,
    leases: BTreeMap<ManifestDigest, usize>,
    /// What followed channels want, each with one of them.
    channels: BTreeMap<ManifestDigest, String>,
    /// Fetches that get bytes.
    moving: BTreeSet<ManifestDigest>,
    now: u64,
}

impl<'a> Reasons<'a> {
    fn look(node: &'a Node, moving: BTreeSet<ManifestDigest>) -> Result<Self> {
        let (pins, leases) = (node.store.pins().map_err(Error::from)?, node.store.leased());
        let (channels, now) = (follow::wanted(node)?, now().0);
        Ok(Self { node, pins, leases, channels, moving, now })
    }

    fn to_keep(&self, holding: &Holding) -> Vec<Because> {
        let (node, now, digest) = (self.node, self.now, holding.manifest.digest());
        let mut because = Vec::new();
        if let Some(pin) = self.pins.get(&digest) {
            because.push(Because::Pinned { reason: pin.reason.clone() });
        }
        // What is followed may be wanted before it is a head; heads and what they may be rolled back to stay in any case.
        if let Some(channel) = self.channels.get(&digest).cloned().or_else(|| kept_by(node, &digest)) {
            because.push(Because::Channel { channel });
        }
        if let Some(loaders) = self.leases.get(&digest) {
            because.push(Because::Open { loaders: *loaders });
        }
        let viewed = node.store.view_used(&digest);
        if viewed.is_some_and(|used| now.saturating_sub(used) <= node.config.store.view_keep_s) {
            because.push(Because::View);
        }
        let idle = now.saturating_sub(holding.last_used) > node.config.store.partial_keep_s;
        if !holding.complete && (!idle || self.moving.contains(&digest)) {
            because.push(Because::Fetching);
        }
        let copies = {
            let ledger = node.facts.ledger();
            copies(node, &ledger, &digest)
        };
        match copies {
            // What is left of the last copy is worth as much.
            Verdict::Keeps(copies) if holding.complete || holding.sealed && copies.elsewhere == 0 => {
                because.push(Because::Copies(copies));
            }
            _ => {}
        }
        because
    }
}

/// Whether this host may let go of its whole copy, by what host records say of the others.
pub(crate) fn copies(node: &Node, ledger: &Ledger, digest: &ManifestDigest) -> Verdict {
    let records = node.control.host_records().borrow().clone();
    let others: Vec<Holder> = records
        .iter()
        .filter(|(host, known)| {
            let whole = known.record.held.iter().any(|held| held.digest == *digest && held.complete);
            **host != node.host && whole
        })
        .map(|(host, known)| Holder { host: *host, rack: rack(&known.record.labels) })
        .collect();
    let elsewhere = records.iter().filter(|(host, _)| **host != node.host);
    let racks: BTreeSet<String> = elsewhere.filter_map(|(_, known)| rack(&known.record.labels)).collect();
    let published: Vec<_> = ledger.publishes_of(digest).collect();
    let publishers: BTreeSet<KeyId> = published.iter().map(|published| published.by).collect();
    let rules = &node.config.store.min_copies;
    let wanted = published.iter().map(|published| min_copies(rules, published.publish.artifact.namespace()));
    let wanted = wanted.max().unwrap_or_else(|| min_copies(rules, "*"));
    let own = Holder { host: node.host, rack: rack(&node.config.labels) };
    judge_copies(digest, &own, &others, &publishers, wanted, &racks)
}

/// A channel whose head, or one of the two before, is this manifest.
pub(crate) fn kept_by(node: &Node, digest: &ManifestDigest) -> Option<String> {
    let ledger = node.facts.ledger();
    let artifacts: BTreeSet<_> = ledger.publishes_of(digest).map(|p| p.publish.artifact).collect();
    let channels = artifacts.iter().flat_map(|artifact| ledger.heads_of(artifact)).map(|head| head.channel);
    let keeps = |channel: &Channel| {
        let Channel { artifact, stage, hardware } = channel;
        ledger.kept_in(artifact, *stage, hardware, follow::PREVIOUS_HEADS).contains(digest)
    };
    channels.filter(keeps).last().map(|channel| channel.to_string())
}

/// How many hosts should hold what is in a namespace: as its own name says, or else the longest glob that covers it.
fn min_copies(rules: &BTreeMap<String, usize>, namespace: &str) -> usize {
    let covers = |glob: &str| glob.parse::<NamespaceGlob>().is_ok_and(|glob| glob.matches(namespace));
    let covering = rules.iter().filter(|(glob, _)| covers(glob));
    let best = covering.max_by_key(|(glob, _)| (!glob.ends_with('*'), glob.len()));
    best.map_or(MIN_COPIES, |(_, copies)| *copies)
}

/// The first name of a manifest, or its digest.
pub(crate) fn name(ledger: &Ledger, digest: &ManifestDigest) -> String {
    let names = ledger.publishes_of(digest).map(|p| format!("{}:{}", p.publish.artifact, p.publish.tag));
    names.min().unwrap_or_else(|| digest.to_string())
}

/// How far each fetch is.
fn running(node: &Node) -> BTreeMap<ManifestDigest, u64> {
    node.fetcher.running().into_iter().map(|(digest, progress)| (digest, progress.done_bytes)).collect()
}

/// Fetches that got bytes since they were as `before`, and those that began.
fn moving(
    before: &BTreeMap<ManifestDigest, u64>,
    running: &BTreeMap<ManifestDigest, u64>,
) -> BTreeSet<ManifestDigest> {
    let moving = running.iter().filter(|(digest, done)| before.get(*digest) != Some(*done));
    moving.map(|(digest, _)| *digest).collect()
}

/// Racks of different zones may have the same name.
fn rack(labels: &BTreeMap<String, String>) -> Option<String> {
    let zone = labels.get("zone").map_or("", String::as_str);
    labels.get("rack").map(|rack| format!("{zone}/{rack}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(rules: &[(&str, usize)]) -> BTreeMap<String, usize> {
        rules.iter().map(|(glob, copies)| ((*glob).to_owned(), *copies)).collect()
    }

    #[test]
    fn the_name_itself_says_how_many_copies_then_the_longest_glob() {
        let all = rules(&[("*", 3), ("acme-*", 4), ("acme-prod", 5), ("acme-prod*", 6)]);
        assert_eq!(min_copies(&all, "acme-prod"), 5, "though a glob that covers it is longer");
        assert_eq!(min_copies(&all, "acme-prod-eu"), 6, "the longer one of two globs");
        assert_eq!(min_copies(&all, "acme-test"), 4);
        assert_eq!(min_copies(&all, "acme"), 3, "no dash");
        assert_eq!(min_copies(&all, "other"), 3);
        // A manifest of which no name is known.
        assert_eq!(min_copies(&all, "*"), 3);
    }

    #[test]
    fn where_nothing_is_said_two_hosts_keep_a_copy() {
        assert_eq!(min_copies(&rules(&[]), "acme"), 2);
        assert_eq!(min_copies(&rules(&[("acme", 5), ("acme-*", 4)]), "other"), 2);
        assert_eq!(min_copies(&rules(&[("acme", 1)]), "acme"), 1, "fewer, if somebody says so");
    }

    #[test]
    fn a_fetch_moves_that_got_bytes_or_began() {
        let digest = |n: u8| ManifestDigest([n; 32]);
        let before = BTreeMap::from([(digest(1), 10), (digest(2), 10), (digest(4), 10)]);
        let running = BTreeMap::from([(digest(1), 10), (digest(2), 11), (digest(3), 0)]);
        assert_eq!(moving(&before, &running), BTreeSet::from([digest(2), digest(3)]));
    }
}
