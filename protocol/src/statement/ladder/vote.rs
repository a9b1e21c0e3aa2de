//! What a witness checks before it cosigns: all that the fold checks, and what depends on the present.

use std::collections::{BTreeMap, BTreeSet};

use super::super::body::{Kind, Role};
use super::super::ledger::Ledger;
use super::super::promotion::{Channel, Cosignature, OnChannel, Promotion};
use super::super::why::{Status, Why};
use super::fold::{Folded, Node, Path};
use super::view::{View, quorum};
use super::{Hold, Line};
use crate::gate::Outcome;
use crate::id::{KeyId, ManifestDigest, StatementId};
use crate::names::{Artifact, Stage};
use crate::time::UnixTime;

/// What a witness does with a promotion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Vote {
    /// It signs this.
    Cosign(OnChannel<Cosignature>),
    /// It has signed.
    Done,
    /// It is no witness for it, or it does not sign: why, nothing if it is no witness.
    Withheld(Vec<Hold>),
}

/// How a promotion that waits stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ballot {
    /// What it lacks, as a witness would say it now.
    pub holds: Vec<Hold>,
    /// Witnesses of its root.
    pub witnesses: BTreeSet<KeyId>,
    /// Those that have cosigned.
    pub cosigned: BTreeSet<KeyId>,
    /// How many it takes.
    pub needed: u32,
}

/// Two cosignatures by one witness where it may give one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(in super::super) struct DoubleVote {
    pub(in super::super) witness: KeyId,
    pub(in super::super) channel: Channel,
    pub(in super::super) statements: BTreeSet<StatementId>,
}

impl Ledger {
    /// Promotions that would replace a present head if they stood: what a witness looks at.
    pub fn pending_promotions(&self) -> Vec<StatementId> {
        self.ladder.lines().flat_map(|(_, line)| line.folded.pending()).copied().collect()
    }

    /// Promotions of one artifact that wait.
    pub fn pending_of(&self, artifact: &Artifact) -> Vec<StatementId> {
        self.ladder.line(artifact).into_iter().flat_map(|line| line.folded.pending()).copied().collect()
    }

    /// Whether `witness` cosigns `promotion` now. The caller must store the cosignature before it is sent anywhere:
    /// what is in this ledger is all that keeps a witness from signing twice.
    pub fn vote(&self, witness: &KeyId, promotion: &StatementId, now: UnixTime) -> Vote {
        let Some((by, time, p)) = self.counted_promotion(promotion) else {
            return Vote::Withheld(Vec::new());
        };
        let root = self.authority.root_at(p.said.root);
        let namespace = p.channel.artifact.namespace();
        if !root.is_some_and(|root| root.holds(Role::Witness, namespace, witness)) {
            return Vote::Withheld(Vec::new());
        }
        let Some(line) = self.ladder.line(&p.channel.artifact) else {
            return Vote::Withheld(Vec::new());
        };
        let view = self.view(&p.channel.artifact, line);
        let place = Place::of(&p.channel, &p.said);
        let void = self.void_votes(witness, place);
        if view.cosigners(promotion).contains_key(witness) || void.contains(promotion) {
            return Vote::Done;
        }
        let mut holds = self.holds(&view, p, by, time, now);
        let votes = self.votes(line);
        if let Some(other) = votes.get(&(*witness, place)).unwrap_or(&void).first() {
            holds.push(Hold::Voted { promotion: *other });
        }
        if self.is_revoked(witness) || self.chains.forked_at(witness).is_some() {
            holds.push(Hold::Author);
        }
        if !holds.is_empty() {
            return Vote::Withheld(holds);
        }
        let said = Cosignature {
            promotion: *promotion,
            parent: p.said.parent,
            epoch: p.said.epoch,
            root: p.said.root,
        };
        Vote::Cosign(OnChannel { channel: p.channel.clone(), manifest: p.manifest, said })
    }

    /// How a promotion that is not the head stands; `None` if it does not count.
    pub fn ballot(&self, promotion: &StatementId, now: UnixTime) -> Option<Ballot> {
        let (by, time, p) = self.counted_promotion(promotion)?;
        let line = self.ladder.line(&p.channel.artifact)?;
        let view = self.view(&p.channel.artifact, line);
        let root = self.authority.root_at(p.said.root)?;
        Some(Ballot {
            holds: self.holds(&view, p, by, time, now),
            witnesses: root.roles.get(&Role::Witness).map(|role| role.keys.clone()).unwrap_or_default(),
            cosigned: view.cosigners(promotion).into_keys().collect(),
            needed: quorum(root).unwrap_or(0),
        })
    }

    /// What depends on the present, for a promotion dated `time`.
    pub(super) fn lacks_now(
        &self,
        by: &KeyId,
        p: &OnChannel<Promotion>,
        time: UnixTime,
        now: UnixTime,
    ) -> Vec<Hold> {
        let mut holds = Vec::new();
        let artifact = &p.channel.artifact;
        match self.root(now) {
            Some(root) if root.expired => holds.push(Hold::RootExpired),
            Some(root) if root.root.version != p.said.root => holds.push(Hold::RootReplaced),
            Some(root) if quorum(root.root).is_none() => holds.push(Hold::NoWitness),
            _ => {}
        }
        let gated = self.authority.policies.scope_of(artifact).is_some();
        let in_force = self.authority.policies.in_force(artifact).map(|at| at.digest);
        if p.said.policy != in_force || (gated && in_force.is_none()) {
            holds.push(Hold::PolicyReplaced { in_force });
        }
        if !self.publishes_of(&p.manifest).any(|published| published.publish.artifact == *artifact) {
            holds.push(Hold::NotPublished);
        }
        let tolerance = self.config.clock_tolerance_secs;
        if time > now.plus(tolerance) || now > time.plus(self.config.promotion_secs_max) {
            holds.push(Hold::Clock { time });
        }
        if self.is_revoked(by) || self.chains.forked_at(by).is_some() {
            holds.push(Hold::Author);
        }
        // A candidate that failed since is not saved by an older verdict.
        let mut of_it: Vec<_> = self.verdicts_on(artifact, &p.manifest);
        of_it.retain(|v| Some(v.body.ruling.policy) == p.said.policy);
        of_it.retain(|v| {
            p.said.verdicts.iter().any(|id| {
                matches!(self.statement(id).map(|s| &s.kind), Some(Kind::Verdict(carries))
                    if carries.ruling.hardware == v.body.ruling.hardware
                        && carries.ruling.baseline == v.body.ruling.baseline)
            })
        });
        // Against each baseline by itself: that it is good enough beside another one says nothing.
        let mut newest = BTreeMap::new();
        for verdict in &of_it {
            newest.insert((&verdict.body.ruling.hardware, verdict.body.ruling.baseline), verdict);
        }
        let failed = newest.into_values().find(|v| v.body.ruling.outcome != Outcome::Pass);
        holds.extend(failed.map(|v| Hold::NotPassed { verdict: v.id }));
        holds
    }

    /// The epoch of the next promotion: one more than the head's, or more where no promotion of an epoch can win any
    /// longer because its witnesses are split.
    pub(super) fn next_epoch(
        &self,
        view: &View<'_>,
        channel: &Channel,
        head: Option<&Node>,
        root: u32,
    ) -> u64 {
        let mut epoch = head.map_or(0, |n| n.epoch).saturating_add(1);
        while self.is_split(view, channel, head.map(|n| n.id), epoch, root) {
            epoch = epoch.saturating_add(1);
        }
        epoch
    }

    pub(in super::super) fn double_votes(&self) -> Vec<DoubleVote> {
        let mut found = Vec::new();
        for (_, line) in self.ladder.lines() {
            for ((witness, place), promotions) in self.votes(line) {
                if promotions.len() > 1 {
                    let cosigned = |id: &&StatementId| {
                        self.statement(id).is_some_and(|s| {
                            s.by == witness
                                && matches!(&s.kind, Kind::Cosign(c) if promotions.contains(&c.said.promotion))
                        })
                    };
                    let of = promotions.iter().filter_map(|p| line.cosignatures.get(p)).flatten();
                    let statements = of.filter(cosigned).copied().collect();
                    found.push(DoubleVote { witness, channel: place.channel.clone(), statements });
                }
            }
        }
        found
    }

    /// Everything that keeps a promotion from being cosigned now.
    fn holds(
        &self,
        view: &View<'_>,
        p: &OnChannel<Promotion>,
        by: KeyId,
        time: UnixTime,
        now: UnixTime,
    ) -> Vec<Hold> {
        let folded = &view.line.folded;
        let head = folded.path(p.channel.stage, &p.channel.hardware).and_then(Path::head);
        if p.said.parent != head.map(|n| n.id) {
            return vec![Hold::Parent];
        }
        let mut holds = folded.lacks(view, by, p, time, head);
        holds.extend(self.lacks_now(&by, p, time, now));
        holds.extend(self.undone(folded, p, head));
        let first = head.map_or(0, |n| n.epoch).saturating_add(1);
        // A bound on the walk, should somebody claim an absurd epoch.
        let is_open = |epoch| !self.is_split(view, &p.channel, p.said.parent, epoch, p.said.root);
        if p.said.epoch > first && (first..p.said.epoch).any(is_open) {
            holds.push(Hold::EpochOpen);
        }
        holds
    }

    /// What was rolled back since, and speaks against a promotion; the fold lets a head that was made stay.
    pub(super) fn undone(&self, folded: &Folded, p: &OnChannel<Promotion>, head: Option<&Node>) -> Vec<Hold> {
        let policy = p.said.policy.and_then(|digest| self.policy_known(&p.channel.artifact, &digest));
        let stage = policy.and_then(|policy| policy.stage_before(p.channel.stage));
        let is_undone = |stage: &Stage| {
            folded.paths().any(|(at, _, path)| at == *stage && path.is_rolled_back(&p.manifest))
        };
        let stage = stage.filter(is_undone).map(|stage| Hold::StageBefore { stage });
        let expected = head.and_then(|n| n.manifest);
        let bad = p.said.verdicts.iter().find_map(|id| {
            let found = self.baseline_of(id)?;
            self.is_undone_baseline(folded, p, expected, &found).then_some(found)
        });
        let baseline = bad.map(|found| Hold::OtherBaseline { found: Some(found), expected });
        stage.into_iter().chain(baseline).collect()
    }

    /// Below production the fold takes as baseline whatever production ever ran; what was rolled back there since is none.
    pub(super) fn is_undone_baseline(
        &self,
        folded: &Folded,
        p: &OnChannel<Promotion>,
        expected: Option<ManifestDigest>,
        found: &ManifestDigest,
    ) -> bool {
        let in_production = || folded.paths().filter(|(stage, _, _)| *stage == Stage::Production);
        p.channel.stage < Stage::Production
            && expected != Some(*found)
            && expected != Some(p.manifest)
            && in_production().any(|(_, _, path)| path.is_rolled_back(found))
            && !in_production().any(|(_, _, path)| path.head().is_some_and(|n| n.manifest == Some(*found)))
    }

    pub(super) fn baseline_of(&self, verdict: &StatementId) -> Option<ManifestDigest> {
        match &self.statement(verdict)?.kind {
            Kind::Verdict(verdict) => verdict.ruling.baseline,
            _ => None,
        }
    }

    /// Whether no promotion at this place can take effect any longer: none can get cosignatures enough, or what it
    /// rests on was revoked. Where a revocation is undone after all, the later epoch wins.
    fn is_split(
        &self,
        view: &View<'_>,
        channel: &Channel,
        parent: Option<StatementId>,
        epoch: u64,
        root: u32,
    ) -> bool {
        let Some(witnesses) = self.authority.root_at(root).and_then(|root| root.roles.get(&Role::Witness))
        else {
            return false;
        };
        let place = Place { channel, parent, epoch, root };
        let mut by_promotion: BTreeMap<StatementId, usize> = BTreeMap::new();
        let mut voted: BTreeSet<KeyId> = BTreeSet::new();
        for ((witness, at), promotions) in self.votes(view.line) {
            if at == place {
                voted.insert(witness);
                for promotion in promotions.into_iter().filter(|id| !self.is_dead(view, id)) {
                    *by_promotion.entry(promotion).or_default() += 1;
                }
            }
        }
        voted.extend(witnesses.keys.iter().filter(|key| !self.void_votes(key, place).is_empty()));
        let open = witnesses.keys.len().saturating_sub(voted.len());
        let best = by_promotion.into_values().max().unwrap_or(0);
        !voted.is_empty() && best + open < witnesses.keys.len() / 2 + 1
    }

    /// Who cosigned which promotions at each place.
    fn votes<'a>(&'a self, line: &Line) -> BTreeMap<(KeyId, Place<'a>), BTreeSet<StatementId>> {
        let mut votes: BTreeMap<_, BTreeSet<StatementId>> = BTreeMap::new();
        for id in line.cosignatures.values().flatten() {
            let Some(s) = self.statement(id) else { continue };
            let Kind::Cosign(c) = &s.kind else { continue };
            votes.entry((s.by, Place::of_vote(&c.channel, &c.said))).or_default().insert(c.said.promotion);
        }
        votes
    }

    /// What `witness` cosigned at this place without effect.
    fn void_votes(&self, witness: &KeyId, place: Place<'_>) -> BTreeSet<StatementId> {
        let kinds = self.ladder.void(witness).filter_map(|id| Some(&self.statement(id)?.kind));
        kinds
            .filter_map(|kind| match kind {
                Kind::Cosign(c) if Place::of_vote(&c.channel, &c.said) == place => Some(c.said.promotion),
                _ => None,
            })
            .collect()
    }

    /// Whether a promotion was revoked, or all its verdicts for some hardware that must have one.
    fn is_dead(&self, view: &View<'_>, id: &StatementId) -> bool {
        let is_revoked = |id: &StatementId| {
            let held = self.set.get(id);
            held.is_some_and(|h| self.authority.said_status(id, h) == Status::Ignored(Why::Revoked))
        };
        let Some(p) = view.promotion(id) else { return false };
        let Some(digest) = p.said.policy.filter(|_| !is_revoked(id)) else { return is_revoked(id) };
        let policy = self.policy_known(&p.channel.artifact, &digest);
        let elsewhere = policy.as_ref().and_then(|policy| policy.stages.get(&p.channel.stage));
        let mut needed = elsewhere.into_iter().flat_map(|rule| &rule.hardware).chain([&p.channel.hardware]);
        needed.any(|hardware| {
            // One that is not here may be for this hardware.
            let may_carry = |id: &StatementId| match self.statement(id).map(|s| &s.kind) {
                Some(Kind::Verdict(verdict)) => verdict.ruling.hardware == *hardware,
                Some(_) => false,
                None => true,
            };
            let mut of_it = p.said.verdicts.iter().filter(|id| may_carry(id)).peekable();
            of_it.peek().is_some() && of_it.all(is_revoked)
        })
    }

    fn counted_promotion(&self, id: &StatementId) -> Option<(KeyId, UnixTime, &OnChannel<Promotion>)> {
        let held = self.set.get(id)?;
        let Kind::Promote(p) = &held.statement.kind else { return None };
        let counts = self.authority.said_status(id, held) == Status::Effective;
        counts.then_some((held.statement.by, held.statement.time, p))
    }
}

/// Where a witness has one vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place<'a> {
    channel: &'a Channel,
    parent: Option<StatementId>,
    epoch: u64,
    root: u32,
}

impl<'a> Place<'a> {
    fn of(channel: &'a Channel, p: &Promotion) -> Self {
        Self { channel, parent: p.parent, epoch: p.epoch, root: p.root }
    }

    fn of_vote(channel: &'a Channel, c: &Cosignature) -> Self {
        Self { channel, parent: c.parent, epoch: c.epoch, root: c.root }
    }
}
