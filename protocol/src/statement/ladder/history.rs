//! Who did what to an artifact, when, and on which grounds: for the log and for the question what ran at a time.

use std::collections::{BTreeMap, BTreeSet};

use super::super::body::{Kind, Labels};
use super::super::ledger::Ledger;
use super::super::promotion::{Channel, Follow, HARDWARE_ANY};
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
        // Clocks have seconds; within one, what can only come after stands after.
        let rank = |kind: &Kind| match kind {
            Kind::Publish(_) => 0,
            Kind::Policy(_) => 1,
            Kind::Evaluate(_) => 2,
            Kind::Verdict(_) => 3,
            kind => kind.channel().map_or(4, |channel| 5 + 10 * (channel.stage as u8)) + step(kind),
        };
        all.sort_by_key(|event| (event.time, rank(&event.kind), event.id));
        all
    }

    /// The stages that hosts follow, by rules that count: artifact, stage, and the labels that a host must have.
    pub fn follows(&self) -> Vec<Follow> {
        let mut all = Vec::new();
        for (_, line) in self.ladder.lines() {
            let mut newest: BTreeMap<(Stage, &Labels), (UnixTime, StatementId, &Follow)> = BTreeMap::new();
            for id in &line.follows {
                let Some(s) = self.statement(id) else { continue };
                let Kind::Follow(follow) = &s.kind else { continue };
                let rule = (s.time, *id, follow);
                let place = newest.entry((follow.stage, &follow.on)).or_insert(rule);
                if (rule.0, rule.1) > (place.0, place.1) {
                    *place = rule;
                }
            }
            all.extend(newest.into_values().filter(|(_, _, f)| !f.stop).map(|(_, _, f)| f.clone()));
        }
        all
    }

    /// What is the head of a stage on `hardware`, and what may be next: promotions to it that wait, and the head of the
    /// stage below.
    pub fn wanted(&self, artifact: &Artifact, stage: Stage, hardware: &str) -> BTreeSet<ManifestDigest> {
        let below = match self.policy_of(artifact).and_then(|status| status.in_force) {
            Some((.., Some(policy))) => policy.stage_before(stage),
            _ => None,
        };
        let stages = [Some(stage), below];
        let heads = stages.into_iter().flatten().filter_map(|at| self.head(artifact, at, hardware));
        let mut wanted: BTreeSet<ManifestDigest> = heads.map(|head| head.manifest).collect();
        for id in self.pending_of(artifact) {
            if let Some(Kind::Promote(p)) = self.statement(&id).map(|s| &s.kind) {
                let here = p.channel.hardware == hardware || p.channel.hardware == HARDWARE_ANY;
                if here && stages.contains(&Some(p.channel.stage)) {
                    wanted.insert(p.manifest);
                }
            }
        }
        wanted
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

    /// The channels of an artifact that have or had a head, lowest stage first.
    pub fn channels_of(&self, artifact: &Artifact) -> Vec<Channel> {
        let paths = self.ladder.line(artifact).into_iter().flat_map(|line| line.folded.paths());
        let channel = |(stage, hardware, _): (Stage, &str, _)| Channel {
            artifact: artifact.clone(),
            stage,
            hardware: hardware.to_owned(),
        };
        paths.map(channel).collect()
    }

    /// Whether a manifest is or was the head of a channel.
    pub fn was_head(&self, channel: &Channel, manifest: &ManifestDigest) -> bool {
        let path = self.ladder.line(&channel.artifact);
        let path = path.and_then(|line| line.folded.path(channel.stage, &channel.hardware));
        path.is_some_and(|path| path.nodes.iter().any(|node| node.manifest == Some(*manifest)))
    }

    /// What a promotion or rollback lacks in the eyes of the fold.
    pub fn held_by(&self, id: &StatementId) -> Option<Hold> {
        match self.status(id)? {
            Status::Pending(super::super::why::Why::Held(hold)) => Some(hold),
            _ => None,
        }
    }
}

/// The order of what is said of one promotion.
fn step(kind: &Kind) -> u8 {
    match kind {
        Kind::Approve(_) => 1,
        Kind::Promote(_) => 2,
        Kind::Cosign(_) => 3,
        Kind::Rollback(_) => 4,
        _ => 0,
    }
}
