//! What this host has and why it keeps it: the facts that the decision is made from.

use std::collections::{BTreeMap, BTreeSet};

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
    let (pins, leases) = (node.store.pins().map_err(Error::from)?, node.store.leased());
    let (channels, now) = (follow::wanted(node)?, now().0);
    let moving: BTreeSet<ManifestDigest> = moving(node);
    let mut all = Vec::new();
    for holding in node.store.holdings().map_err(Error::from)? {
        let digest = holding.manifest.digest();
        if moving.contains(&digest) {
            node.store.note_used(&digest, now);
        }
        let mut because = Vec::new();
        if let Some(pin) = pins.get(&digest) {
            because.push(Because::Pinned { reason: pin.reason.clone() });
        }
        // What is followed may be wanted before it is a head; heads and what they may be rolled back to stay in any case.
        if let Some(channel) = channels.get(&digest).cloned().or_else(|| kept_by(node, &digest)) {
            because.push(Because::Channel { channel });
        }
        if let Some(loaders) = leases.get(&digest) {
            because.push(Because::Open { loaders: *loaders });
        }
        let viewed = node.store.view_used(&digest);
        if viewed.is_some_and(|used| now.saturating_sub(used) <= node.config.store.view_keep_s) {
            because.push(Because::View);
        }
        let idle = now.saturating_sub(holding.last_used) > node.config.store.partial_keep_s;
        if !holding.complete && (!idle || moving.contains(&digest)) {
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
    let wanted = published.iter().map(|published| min_copies(node, published.publish.artifact.namespace()));
    let wanted = wanted.max().unwrap_or_else(|| min_copies(node, "*"));
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

/// How many hosts should hold what is in a namespace: as the longest glob that covers it says.
pub(crate) fn min_copies(node: &Node, namespace: &str) -> usize {
    let rules = node.config.store.min_copies.iter();
    let covers = |glob: &str| glob.parse::<NamespaceGlob>().is_ok_and(|glob| glob.matches(namespace));
    let best =
        rules.filter(|(glob, _)| covers(glob)).max_by_key(|(glob, _)| (!glob.ends_with('*'), glob.len()));
    best.map_or(MIN_COPIES, |(_, copies)| *copies)
}

/// The first name of a manifest, or its digest.
pub(crate) fn name(ledger: &Ledger, digest: &ManifestDigest) -> String {
    let names = ledger.publishes_of(digest).map(|p| format!("{}:{}", p.publish.artifact, p.publish.tag));
    names.min().unwrap_or_else(|| digest.to_string())
}

/// Fetches that got bytes since the last look.
fn moving(node: &Node) -> BTreeSet<ManifestDigest> {
    let running: BTreeMap<ManifestDigest, u64> =
        node.fetcher.running().into_iter().map(|(digest, progress)| (digest, progress.done_bytes)).collect();
    let mut before = node.gc.moved();
    let moving = running.iter().filter(|(digest, done)| before.get(*digest) != Some(*done));
    let moving = moving.map(|(digest, _)| *digest).collect();
    *before = running;
    moving
}

/// Racks of different zones may have the same name.
fn rack(labels: &BTreeMap<String, String>) -> Option<String> {
    let zone = labels.get("zone").map_or("", String::as_str);
    labels.get("rack").map(|rack| format!("{zone}/{rack}"))
}
