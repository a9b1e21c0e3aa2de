//! What a host keeps when its store is full: why something stays, and what goes first.
//!
//! Facts come from the host, the decision is made here: nothing that is protected ever goes, the rest goes least
//! recently used first, and no more than there has to be.

mod copies;

use std::collections::BTreeMap;
use std::fmt;

use crate::{LayerId, ManifestDigest};

pub use copies::{Copies, Holder, Verdict, judge_copies};

/// Why something stays.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Because {
    /// A followed channel runs it, or may be rolled back to it, or is about to run it.
    Channel {
        /// `ns/name:stage`.
        channel: String,
    },
    /// Somebody pinned it.
    Pinned {
        /// Why, as they said.
        reason: Option<String>,
    },
    /// Loaders have it open.
    Open {
        /// How many.
        loaders: usize,
    },
    /// A directory of it was handed out not long ago.
    View,
    /// It is on its way here.
    Fetching,
    /// Too few other hosts are known to hold all of it.
    Copies(Copies),
}

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Channel { channel } => write!(f, "{channel} runs it, ran it or is about to"),
            Self::Pinned { reason: Some(reason) } => write!(f, "pinned: {reason}"),
            Self::Pinned { reason: None } => f.write_str("pinned"),
            Self::Open { loaders: 1 } => f.write_str("open by 1 loader"),
            Self::Open { loaders } => write!(f, "open by {loaders} loaders"),
            Self::View => f.write_str("a directory of it was handed out not long ago"),
            Self::Fetching => f.write_str("it is on its way here"),
            Self::Copies(copies) => copies.fmt(f),
        }
    }
}

/// An artifact of which something is on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Its manifest.
    pub digest: ManifestDigest,
    /// Its distinct layers that are here, with the bytes that each takes.
    pub layers: BTreeMap<LayerId, u64>,
    /// When it was last used, Unix seconds.
    pub last_used: u64,
    /// What was begun of it and wanted by nobody for long: it goes whether there is room or not.
    pub abandoned: bool,
    /// Why it stays; it may go when this is empty.
    pub because: Vec<Because>,
}

impl Held {
    /// Whether it may go.
    pub fn may_go(&self) -> bool {
        self.because.is_empty()
    }
}

/// What a full store lets go of.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// What goes, in this order, with the bytes that each frees at its turn.
    pub go: Vec<(ManifestDigest, u64)>,
    /// Bytes that all of them free.
    pub freed_bytes: u64,
}

/// Chooses what goes so that `needed` bytes are freed: what was abandoned first, then the least recently used.
///
/// Nothing that has a reason to stay goes. A layer is freed with the last artifact that has it. What would free nothing
/// stays. If all that may go is not enough, all of it goes.
pub fn plan(held: &[Held], needed: u64) -> Plan {
    let mut users: BTreeMap<LayerId, usize> = BTreeMap::new();
    for layer in held.iter().flat_map(|one| one.layers.keys()) {
        *users.entry(*layer).or_default() += 1;
    }
    let mut order: Vec<&Held> = held.iter().filter(|one| one.may_go()).collect();
    order.sort_by_key(|one| (!one.abandoned, one.last_used, one.digest));
    let mut plan = Plan::default();
    let mut taken: Vec<&Held> = Vec::new();
    for one in order {
        if plan.freed_bytes >= needed && !one.abandoned {
            break;
        }
        let mut freed = 0u64;
        for (layer, bytes) in &one.layers {
            if let Some(users) = users.get_mut(layer) {
                *users -= 1;
                if *users == 0 {
                    freed = freed.saturating_add(*bytes);
                }
            }
        }
        plan.freed_bytes = plan.freed_bytes.saturating_add(freed);
        plan.go.push((one.digest, freed));
        taken.push(one);
    }
    // What shares everything with what stays would be lost for nothing. Newest first: of several that share, those
    // that were used last stay.
    for one in taken.into_iter().rev() {
        let frees = one.layers.keys().any(|layer| users.get(layer) == Some(&0));
        if frees || one.abandoned {
            continue;
        }
        for layer in one.layers.keys() {
            *users.entry(*layer).or_default() += 1;
        }
        plan.go.retain(|(digest, _)| *digest != one.digest);
    }
    plan
}

#[cfg(test)]
mod tests;
