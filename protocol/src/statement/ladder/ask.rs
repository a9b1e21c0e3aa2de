//! What is asked of the ladder before something is signed: heads, policies, and drafts of what would move a head.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::super::ledger::Ledger;
use super::super::promotion::{
    Channel, HARDWARE_ANY, OnChannel, Promotion, Rollback, Scope, SetPolicy, VERDICTS_MAX,
};
use super::fold::{Folded, Node, Path};
use super::view::View;
use super::{Hold, Line};
use crate::gate::{OnExpiry, Outcome, Policy};
use crate::id::{KeyId, ManifestDigest, Sha256, StatementId};
use crate::names::{Artifact, Stage};
use crate::time::UnixTime;

/// The head of a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The promotion or rollback that made it.
    pub statement: StatementId,
    /// Where.
    pub channel: Channel,
    /// What.
    pub manifest: ManifestDigest,
    /// Counts promotions and rollbacks of the channel.
    pub epoch: u64,
    /// Since when, by the signers' clocks.
    pub since: UnixTime,
    /// Who promoted or rolled back.
    pub by: KeyId,
    /// The policy that the manifest was promoted under.
    pub policy: Option<Sha256>,
    /// When its promotion is due for renewal, if the policy says.
    pub expires: Option<UnixTime>,
    /// What becomes of it then.
    pub on_expiry: OnExpiry,
    /// Whether it was rolled back to.
    pub rolled_back: bool,
}

/// The policy of an artifact.
#[derive(Debug, Clone, PartialEq)]
pub struct PolicyStatus {
    /// For what it was set.
    pub scope: Scope,
    /// The statement, its version, and what it says; `None` while two dispute the version, or if this release cannot
    /// read it. What is gated stays gated then, and nothing is promoted.
    pub in_force: Option<(StatementId, u32, Sha256, Option<Arc<Policy>>)>,
}

/// A promotion that nobody has signed yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// What to sign.
    pub promotion: OnChannel<Promotion>,
    /// What it lacks beside cosignatures; it may be signed and waits then.
    pub holds: Vec<Hold>,
    /// A promotion that says the same and is the head, or waits for it.
    pub same: Option<StatementId>,
    /// The manifest of the head that it replaces.
    pub replaces: Option<ManifestDigest>,
}

impl Ledger {
    /// The head of a stage on `hardware`: of that key, or else of [`HARDWARE_ANY`].
    pub fn head(&self, artifact: &Artifact, stage: Stage, hardware: &str) -> Option<Head> {
        let folded = &self.ladder.line(artifact)?.folded;
        let of = |hardware: &str| {
            let node = folded.path(stage, hardware)?.head()?;
            self.as_head(artifact, stage, hardware, node)
        };
        of(hardware).or_else(|| of(HARDWARE_ANY))
    }

    /// The heads of an artifact, lowest stage first.
    pub fn heads_of<'a>(&'a self, artifact: &'a Artifact) -> impl Iterator<Item = Head> + 'a {
        let paths = self.ladder.line(artifact).into_iter().flat_map(|line| line.folded.paths());
        paths.filter_map(move |(stage, hardware, path)| self.as_head(artifact, stage, hardware, path.head()?))
    }

    /// The heads of all channels.
    pub fn heads(&self) -> impl Iterator<Item = Head> + '_ {
        self.ladder.lines().flat_map(|(artifact, _)| self.heads_of(artifact))
    }

    /// Where promotions cancel each other.
    pub(in super::super) fn head_conflicts(&self) -> impl Iterator<Item = (Channel, &BTreeSet<StatementId>)> {
        self.ladder.lines().flat_map(|(artifact, line)| {
            line.folded.paths().filter(|(_, _, path)| !path.conflict.is_empty()).map(
                move |(stage, hardware, path)| {
                    let hardware = hardware.to_owned();
                    (Channel { artifact: artifact.clone(), stage, hardware }, &path.conflict)
                },
            )
        })
    }

    /// The manifests of an artifact that a host keeps: of each channel what [`kept_in`](Self::kept_in) says.
    pub fn kept(&self, artifact: &Artifact, previous: usize) -> BTreeSet<ManifestDigest> {
        let paths = self.ladder.line(artifact).into_iter().flat_map(|line| line.folded.paths());
        paths.flat_map(|(stage, hardware, _)| self.kept_in(artifact, stage, hardware, previous)).collect()
    }

    /// The head of a channel and the `previous` heads before it that were not rolled back.
    pub fn kept_in(
        &self,
        artifact: &Artifact,
        stage: Stage,
        hardware: &str,
        previous: usize,
    ) -> BTreeSet<ManifestDigest> {
        let line = self.ladder.line(artifact);
        let of =
            |hardware| line.and_then(|line| line.folded.path(stage, hardware)).filter(|p| p.head().is_some());
        let Some(path) = of(hardware).or_else(|| of(HARDWARE_ANY)) else {
            return BTreeSet::new();
        };
        let mut kept = BTreeSet::new();
        let head = path.head();
        for manifest in path.nodes.iter().rev().filter_map(|node| node.manifest) {
            let is_head = head.is_some_and(|head| head.manifest == Some(manifest));
            let is_bad = head.is_some_and(|head| head.all_bad.contains_key(&manifest));
            if (is_head || !is_bad) && kept.len() <= previous {
                kept.insert(manifest);
            }
        }
        kept
    }

    /// Artifacts with promotions or approvals that count.
    pub fn promoted_artifacts(&self) -> impl Iterator<Item = &Artifact> {
        self.ladder.lines().map(|(artifact, _)| artifact)
    }

    /// The policy that holds for an artifact; `None` if it is ungated.
    pub fn policy_of(&self, artifact: &Artifact) -> Option<PolicyStatus> {
        let scope = self.authority.policies.scope_of(artifact)?.clone();
        Some(self.policy_status(scope, self.authority.policies.in_force(artifact)))
    }

    /// All scopes that have a policy.
    pub fn policies(&self) -> impl Iterator<Item = PolicyStatus> + '_ {
        self.authority.policies.scopes().map(|(scope, at)| self.policy_status(scope.clone(), at))
    }

    /// A policy that an artifact has or had, by its digest.
    pub fn policy_known(&self, artifact: &Artifact, digest: &Sha256) -> Option<Arc<Policy>> {
        let id = self.authority.policies.known(artifact, digest)?;
        self.set.get(&id)?.policy.clone()
    }

    /// The next policy statement of a scope.
    pub fn draft_policy(&self, scope: Scope, policy: Sha256, text: String) -> SetPolicy {
        let last = self.authority.policies.scopes().find(|(s, _)| **s == scope).and_then(|(_, at)| at);
        SetPolicy {
            scope,
            version: last.map_or(1, |at| at.version.saturating_add(1)),
            replaces: last.map(|at| at.id),
            policy,
            text,
        }
    }

    /// What `by` would sign to make `manifest` the head of `channel`, and what that lacks.
    pub fn draft_promotion(
        &self,
        by: &KeyId,
        channel: &Channel,
        manifest: ManifestDigest,
        now: UnixTime,
        note: String,
    ) -> Draft {
        let empty = Line::default();
        let line = self.ladder.line(&channel.artifact).unwrap_or(&empty);
        let view = self.view(&channel.artifact, line);
        let head = line.folded.path(channel.stage, &channel.hardware).and_then(Path::head);
        let policy = self.authority.policies.in_force(&channel.artifact);
        let rules = policy.and_then(|at| self.set.get(&at.id)?.policy.clone());
        let root = self.authority.root().map_or(0, |(_, root)| root.version);
        let before = rules.as_ref().and_then(|rules| rules.stage_before(channel.stage));
        let said = Promotion {
            parent: head.map(|n| n.id),
            epoch: self.next_epoch(&view, channel, head, root),
            root,
            policy: policy.map(|at| at.digest),
            verdicts: self.newest_verdicts(channel, &manifest),
            from: before.and_then(|stage| stood_before(&line.folded, stage, &channel.hardware, &manifest)),
            note,
        };
        let mut promotion = OnChannel { channel: channel.clone(), manifest, said };
        let expected = head.and_then(|n| n.manifest);
        let usable = |id: &StatementId| {
            let baseline = self.baseline_of(id);
            baseline.is_none_or(|found| !self.is_undone_baseline(&line.folded, &promotion, expected, &found))
        };
        let usable: BTreeSet<StatementId> = promotion.said.verdicts.iter().copied().filter(usable).collect();
        if !usable.is_empty() {
            promotion.said.verdicts = usable;
        }
        if let Some((at, rules)) = policy.zip(rules) {
            // Only those that carry it, if they do.
            let elsewhere = rules.stages.get(&channel.stage).map(|rule| &rule.hardware);
            let needed: BTreeSet<&String> =
                elsewhere.into_iter().flatten().chain([&promotion.channel.hardware]).collect();
            let found: Result<BTreeSet<StatementId>, Hold> =
                needed.into_iter().map(|h| view.verdict(&promotion, &at.digest, h, head)).collect();
            if let Ok(found) = found {
                promotion.said.verdicts = found;
            }
        }
        let mut holds = line.folded.lacks(&view, *by, &promotion, now, head);
        let now_holds = self.lacks_now(by, &promotion, now, now).into_iter();
        for hold in now_holds.chain(self.undone(&line.folded, &promotion, head)) {
            if !holds.contains(&hold) {
                holds.push(hold);
            }
        }
        let same = self.same(line, &view, &promotion, head, now);
        Draft { promotion, holds, same, replaces: head.and_then(|n| n.manifest) }
    }

    /// What to sign to undo the head of `channel`; to the last head that is not called bad, or to `to`.
    ///
    /// # Errors
    /// There is no head, or none to go back to.
    pub fn draft_rollback(
        &self,
        channel: &Channel,
        to: Option<ManifestDigest>,
        reason: String,
    ) -> Result<OnChannel<Rollback>, Hold> {
        let line = self.ladder.line(&channel.artifact).ok_or(Hold::Parent)?;
        let path = line.folded.path(channel.stage, &channel.hardware).ok_or(Hold::Parent)?;
        let head = path.head().ok_or(Hold::Parent)?;
        let bad = head.manifest.ok_or(Hold::Parent)?;
        let good = |node: &&Node| {
            node.manifest
                .is_some_and(|m| m != bad && !head.is_bad_since(&m, node) && to.is_none_or(|to| to == m))
        };
        let target = path.nodes.iter().rev().find(good).map(|node| node.id);
        if to.is_some() && target.is_none() {
            return Err(Hold::Target);
        }
        let root = self.authority.root().map_or(0, |(_, root)| root.version);
        let said = Rollback { over: head.id, to: target, root, reason };
        Ok(OnChannel { channel: channel.clone(), manifest: bad, said })
    }

    /// What the head would be after a rollback.
    pub fn target_of(&self, rollback: &OnChannel<Rollback>) -> Option<ManifestDigest> {
        let path = self.ladder.line(&rollback.channel.artifact)?;
        let path = path.folded.path(rollback.channel.stage, &rollback.channel.hardware)?;
        path.nodes.iter().find(|node| Some(node.id) == rollback.said.to)?.manifest
    }

    pub(super) fn view<'a>(&'a self, artifact: &'a Artifact, line: &'a Line) -> View<'a> {
        View { artifact, line, set: &self.set, authority: &self.authority }
    }

    fn as_head(&self, artifact: &Artifact, stage: Stage, hardware: &str, node: &Node) -> Option<Head> {
        let policy = node.policy.and_then(|digest| self.policy_known(artifact, &digest));
        let valid = policy.as_ref().and_then(|policy| policy.stages.get(&stage)?.valid_for);
        Some(Head {
            statement: node.id,
            channel: Channel { artifact: artifact.clone(), stage, hardware: hardware.to_owned() },
            manifest: node.manifest?,
            epoch: node.epoch,
            since: node.since,
            by: node.by,
            policy: node.policy,
            expires: valid.map(|secs| node.since.plus(secs)),
            on_expiry: policy.map(|policy| policy.on_expiry).unwrap_or_default(),
            rolled_back: node.bad.is_some(),
        })
    }

    fn policy_status(&self, scope: Scope, at: Option<super::super::authority::PolicyAt>) -> PolicyStatus {
        let in_force = at.map(|at| {
            let policy = self.set.get(&at.id).and_then(|held| held.policy.clone());
            (at.id, at.version, at.digest, policy)
        });
        PolicyStatus { scope, in_force }
    }

    fn newest_verdicts(&self, channel: &Channel, manifest: &ManifestDigest) -> BTreeSet<StatementId> {
        let all = self.verdicts_on(&channel.artifact, manifest);
        let (passed, failed): (Vec<_>, Vec<_>) =
            all.iter().rev().partition(|said| said.body.ruling.outcome == Outcome::Pass);
        passed.into_iter().chain(failed).take(VERDICTS_MAX).map(|said| said.id).collect()
    }

    fn same(
        &self,
        line: &Line,
        view: &View<'_>,
        draft: &OnChannel<Promotion>,
        head: Option<&Node>,
        now: UnixTime,
    ) -> Option<StatementId> {
        let Channel { artifact, stage, hardware } = &draft.channel;
        let is_due = |n: &&Node| {
            let head = self.as_head(artifact, *stage, hardware, n);
            head.and_then(|head| head.expires).is_some_and(|at| now > at)
        };
        let is_head = head
            .filter(|n| n.manifest == Some(draft.manifest) && n.policy == draft.said.policy)
            .filter(|n| !is_due(n));
        let waits = line.folded.pending().copied().find(|id| {
            view.promotion(id).is_some_and(|p| {
                p.channel == draft.channel
                    && p.manifest == draft.manifest
                    && (p.said.parent, p.said.epoch, p.said.root, p.said.policy, &p.said.verdicts)
                        == (
                            draft.said.parent,
                            draft.said.epoch,
                            draft.said.root,
                            draft.said.policy,
                            &draft.said.verdicts,
                        )
            })
        });
        is_head.map(|n| n.id).or(waits)
    }
}

fn stood_before(
    folded: &Folded,
    stage: Stage,
    hardware: &str,
    manifest: &ManifestDigest,
) -> Option<StatementId> {
    let of = |hardware: &str| folded.path(stage, hardware)?.stood(manifest);
    of(hardware).or_else(|| of(HARDWARE_ANY))
}
