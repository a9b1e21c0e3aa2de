//! The promotion ladder: which manifest is the head of each channel, and which may be opened, folded from what counts.
//!
//! Promotions and rollbacks of a channel form a tree: each names the one that it replaces. A promotion *stands* if
//! the promoters of its root made it, its evidence and approvals are here and more than half of its root's witnesses
//! cosigned it; a rollback stands on one promoter's word. Where several that stand replace the same head, the line
//! that was built upon furthest wins; a rollback weighs more than one promotion and less than two. So a rollback on
//! one side of a partition undoes the promotion that the other side made meanwhile, but not two of them. Two equal
//! promotions (a witness signed both) cancel each other: the channel stays where it was and raises an alarm.
//!
//! All of this is a function of the set. What depends on the present (which policy and root are in force, what the
//! clock shows, what this witness signed before) a witness asks when it cosigns, in `vote`, and nobody asks again.

mod ask;
mod fold;
mod heard;
mod history;
mod hold;
mod named;
mod open;
mod view;
mod vote;

use std::collections::{BTreeMap, BTreeSet};

pub use ask::{Draft, Head, PolicyStatus};
pub use heard::Heard;
pub use history::Event;
pub use hold::Hold;
pub use open::{Closed, Grounds};
pub use vote::{Ballot, Vote};

pub(super) use fold::Folded;
pub(super) use vote::DoubleVote;

use super::authority::{Authority, Set};
use super::body::Kind;
use super::promotion::Scope;
use super::why::Status;
use crate::id::{KeyId, StatementId};
use crate::names::Artifact;

/// What counts of each artifact's ladder, and what follows from it.
#[derive(Debug, Clone, Default)]
pub(super) struct Ladder {
    lines: BTreeMap<Artifact, Line>,
    /// Cosignatures that do not count, by author: a witness is bound by what it signed even so.
    void: BTreeMap<KeyId, BTreeSet<StatementId>>,
    /// Whose fold is out of date.
    stale: BTreeSet<Artifact>,
    /// Whose fold was made anew since somebody asked.
    refolded: BTreeSet<Artifact>,
}

/// The ladder of one artifact.
#[derive(Debug, Clone, Default)]
pub(super) struct Line {
    promotions: BTreeSet<StatementId>,
    rollbacks: BTreeSet<StatementId>,
    approvals: BTreeSet<StatementId>,
    follows: BTreeSet<StatementId>,
    /// By promotion.
    cosignatures: BTreeMap<StatementId, BTreeSet<StatementId>>,
    folded: Folded,
}

impl Ladder {
    /// Counts a statement; `fold` must follow.
    pub(super) fn insert(&mut self, id: StatementId, by: KeyId, kind: &Kind) {
        if let Some(of) = self.void.get_mut(&by) {
            of.remove(&id);
            if of.is_empty() {
                self.void.remove(&by);
            }
        }
        let Some(artifact) = kind.artifact() else { return };
        if matches!(kind, Kind::Verdict(_)) {
            // It may be what a promotion waits for.
            if self.lines.contains_key(artifact) {
                self.stale.insert(artifact.clone());
            }
            return;
        }
        if kind.channel().is_none() && !matches!(kind, Kind::Follow(_)) {
            return;
        }
        let line = match self.lines.get_mut(artifact) {
            Some(line) => line,
            None => self.lines.entry(artifact.clone()).or_default(),
        };
        match kind {
            Kind::Promote(_) => line.promotions.insert(id),
            Kind::Rollback(_) => line.rollbacks.insert(id),
            Kind::Approve(_) => line.approvals.insert(id),
            Kind::Follow(_) => line.follows.insert(id),
            Kind::Cosign(said) => line.cosignatures.entry(said.said.promotion).or_default().insert(id),
            _ => false,
        };
        self.stale.insert(artifact.clone());
    }

    /// Notes a statement that does not count.
    pub(super) fn insert_void(&mut self, id: StatementId, by: KeyId, kind: &Kind) {
        if matches!(kind, Kind::Cosign(_)) {
            self.void.entry(by).or_default().insert(id);
        }
    }

    /// No longer counts a statement; `fold` must follow.
    pub(super) fn remove(&mut self, id: StatementId, by: KeyId, kind: &Kind) {
        self.insert_void(id, by, kind);
        let Some(artifact) = kind.artifact() else { return };
        let Some(line) = self.lines.get_mut(artifact) else { return };
        line.promotions.remove(&id);
        line.rollbacks.remove(&id);
        line.approvals.remove(&id);
        line.follows.remove(&id);
        if let Kind::Cosign(said) = kind
            && let Some(of) = line.cosignatures.get_mut(&said.said.promotion)
        {
            of.remove(&id);
            if of.is_empty() {
                line.cosignatures.remove(&said.said.promotion);
            }
        }
        self.stale.insert(artifact.clone());
    }

    /// Roots changed, or the policies of these scopes.
    pub(super) fn touch(&mut self, all: bool, scopes: &[Scope]) {
        let touched = self.lines.keys().filter(|artifact| all || scopes.iter().any(|s| s.covers(artifact)));
        self.stale.extend(touched.cloned());
    }

    /// Folds what changed.
    pub(super) fn fold(&mut self, set: &Set, authority: &Authority) {
        for artifact in std::mem::take(&mut self.stale) {
            let Some(line) = self.lines.get_mut(&artifact) else { continue };
            line.folded = Folded::of(&artifact, line, set, authority);
            if line.is_empty() {
                self.lines.remove(&artifact);
            }
            self.refolded.insert(artifact);
        }
    }

    /// The artifacts whose heads may have moved since this was last asked.
    pub(super) fn take_refolded(&mut self) -> BTreeSet<Artifact> {
        std::mem::take(&mut self.refolded)
    }

    /// What became of a promotion or rollback that counts.
    pub(super) fn status(&self, artifact: &Artifact, id: &StatementId) -> Option<Status> {
        self.lines.get(artifact)?.folded.status(id)
    }

    /// Cosignatures of `witness` that do not count.
    fn void(&self, witness: &KeyId) -> impl Iterator<Item = &StatementId> {
        self.void.get(witness).into_iter().flatten()
    }

    pub(super) fn line(&self, artifact: &Artifact) -> Option<&Line> {
        self.lines.get(artifact)
    }

    pub(super) fn lines(&self) -> impl Iterator<Item = (&Artifact, &Line)> {
        self.lines.iter()
    }
}

impl Line {
    fn is_empty(&self) -> bool {
        self.promotions.is_empty()
            && self.rollbacks.is_empty()
            && self.approvals.is_empty()
            && self.follows.is_empty()
            && self.cosignatures.is_empty()
    }
}
