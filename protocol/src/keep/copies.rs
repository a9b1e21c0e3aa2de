//! How many hosts hold an artifact, and which of them may let go of it without asking each other.

use std::collections::BTreeSet;
use std::fmt;

use crate::{KeyId, ManifestDigest};

/// A host that is known to hold all of an artifact.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    /// The host.
    pub host: KeyId,
    /// Where it stands, if it says so.
    pub rack: Option<String>,
}

/// Copies of an artifact on other hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Copies {
    /// Other hosts that are known to hold all of it.
    pub elsewhere: usize,
    /// Hosts that should.
    pub wanted: usize,
}

impl fmt::Display for Copies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { elsewhere, wanted } = self;
        match elsewhere {
            0 => f.write_str("no other host is known to hold all of it"),
            1 => write!(f, "one of the {wanted} copies that are wanted; 1 other host is known to hold it"),
            n => {
                write!(f, "one of the {wanted} copies that are wanted; {n} other hosts are known to hold it")
            }
        }
    }
}

/// Whether a host may let go of its copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Others keep enough.
    MayGo,
    /// It is one of those that keep it.
    Keeps(Copies),
}

/// Whether `own` may let go of its whole copy of `digest` while the others decide by the same rule.
///
/// Hosts that see the same holders never let go of too many at once, however many of them run out of space together.
/// While fewer than `wanted` others hold it, a publisher keeps it, and other hosts' copies may go. Once enough others
/// do, or where no publisher holds it, `wanted` of them keep it: in different racks as far as there are any, then in an
/// order that a hash gives.
///
/// `others` hold all of it; `racks_elsewhere` are the places of all other hosts of the cluster, those that say none
/// left out: where everything stands in one rack, one rack is enough.
pub fn judge_copies(
    digest: &ManifestDigest,
    own: &Holder,
    others: &[Holder],
    publishers: &BTreeSet<KeyId>,
    wanted: usize,
    racks_elsewhere: &BTreeSet<String>,
) -> Verdict {
    let copies = Copies { elsewhere: others.len(), wanted };
    if others.is_empty() {
        return Verdict::Keeps(copies);
    }
    let all: BTreeSet<&Holder> = others.iter().chain([own]).collect();
    let (publishing, mut rest): (Vec<&Holder>, Vec<&Holder>) =
        all.into_iter().partition(|holder| publishers.contains(&holder.host));
    // Of the whole cluster, this host's own among them: all must judge by the same number.
    let racks: BTreeSet<&str> =
        racks_elsewhere.iter().map(String::as_str).chain(own.rack.as_deref()).collect();
    let spread = places(&rest) >= wanted.min(racks.len());
    if !publishing.is_empty() && (rest.len() < wanted || !spread) {
        // One publisher is enough where several publish the same.
        let keeper = publishing.iter().min_by_key(|holder| rank(digest, &holder.host));
        return match keeper.is_some_and(|keeper| keeper.host == own.host) {
            true => Verdict::Keeps(copies),
            false => Verdict::MayGo,
        };
    }
    rest.sort_by_key(|holder| rank(digest, &holder.host));
    match keepers(&rest, wanted.max(1)).contains(&own.host) {
        true => Verdict::Keeps(copies),
        false => Verdict::MayGo,
    }
}

/// The first of each rack, then the first of the others, until there are enough.
fn keepers(ranked: &[&Holder], wanted: usize) -> BTreeSet<KeyId> {
    let mut racks: BTreeSet<&str> = BTreeSet::new();
    let mut chosen: BTreeSet<KeyId> = BTreeSet::new();
    for holder in ranked {
        let fresh = holder.rack.as_deref().is_none_or(|rack| racks.insert(rack));
        if fresh && chosen.len() < wanted {
            chosen.insert(holder.host);
        }
    }
    for holder in ranked {
        if chosen.len() < wanted {
            chosen.insert(holder.host);
        }
    }
    chosen
}

/// Different places; a host that says none is a place of its own.
fn places(holders: &[&Holder]) -> usize {
    let racks: BTreeSet<&str> = holders.iter().filter_map(|holder| holder.rack.as_deref()).collect();
    racks.len() + holders.iter().filter(|holder| holder.rack.is_none()).count()
}

/// Other hosts come first for other artifacts.
fn rank(digest: &ManifestDigest, host: &KeyId) -> ([u8; 32], KeyId) {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&digest.0).update(&host.0);
    (*hasher.finalize().as_bytes(), *host)
}
