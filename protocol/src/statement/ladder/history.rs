//! Who did what to an artifact, when, and on which grounds: for the log and for the question what ran at a time.

use super::super::body::Kind;
use super::super::ledger::Ledger;
use super::super::why::Status;
use super::Hold;
use crate::id::{KeyId, ManifestDigest, StatementId};
use crate::names::{Artifact, Stage};
use crate::time::UnixTime;

/// One statement about an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The statement.
    pub id: StatementId,
    /// Its author.
    pub by: KeyId,
    /// When, by the author's clock.
    pub time: UnixTime,
    /// What it says.
    pub kind: Kind,
    /// What it does now.
    pub status: Status,
}

impl Ledger {
    /// All that was said of an artifact that counts or waits, by time: publishes, evaluations, verdicts, policies,
    /// approvals, promotions, cosignatures, rollbacks.
    ///
    /// Walks the whole set: for people who ask, not for doors.
    pub fn history(&self, artifact: &Artifact) -> Vec<Event> {
        let of_it = |kind: &Kind| match kind {
            Kind::Policy(policy) => policy.scope.covers(artifact),
            kind => kind.artifact() == Some(artifact),
        };
        let held = self.set.iter().filter(|(_, h)| of_it(&h.statement.kind));
        let mut all: Vec<Event> = held
            .filter_map(|(id, h)| {
                Some(Event {
                    id: *id,
                    by: h.statement.by,
                    time: h.statement.time,
                    kind: h.statement.kind.clone(),
                    status: self.status(id)?,
                })
            })
            .collect();
        all.sort_by_key(|event| (event.time, event.id));
        all
    }

    /// What the head of a stage on `hardware` was at `time`, with the promotion or rollback that made it.
    pub fn head_at(
        &self,
        artifact: &Artifact,
        stage: Stage,
        hardware: &str,
        time: UnixTime,
    ) -> Option<(StatementId, ManifestDigest)> {
        let path = self.ladder.line(artifact)?.folded.path(stage, hardware)?;
        let node = path.nodes.iter().take_while(|node| node.since <= time).last()?;
        Some((node.id, node.manifest?))
    }

    /// What a promotion or rollback lacks in the eyes of the fold.
    pub fn held_by(&self, id: &StatementId) -> Option<Hold> {
        match self.status(id)? {
            Status::Pending(super::super::why::Why::Held(hold)) => Some(hold),
            _ => None,
        }
    }
}
