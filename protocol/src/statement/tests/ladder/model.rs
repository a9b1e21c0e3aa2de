//! The ladder once more, as simply as it can be written: every line is tried, nothing is kept. Slow, and not the fold.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// What a ledger must answer for one artifact, worked out from its statements, its roots and who may say what.
pub(super) struct Model<'a> {
    artifact: Artifact,
    roots: Vec<Root>,
    /// Statements of the artifact whose authors may say them.
    said: BTreeMap<StatementId, &'a Statement>,
    policies: Vec<Policy>,
}

/// Promotions and rollbacks, each of the one before.
type Line = Vec<StatementId>;

impl<'a> Model<'a> {
    pub(super) fn of(ledger: &'a Ledger, artifact: &Artifact) -> Self {
        let counts = |id: &StatementId| {
            let status = ledger.status(id);
            !matches!(status, Some(Status::Ignored(Why::NotAllowed | Why::Revoked)))
        };
        let all: Vec<(StatementId, &Statement)> =
            ledger.statements().filter_map(|id| Some((id, ledger.statement(&id)?))).collect();
        let of_it = |s: &Statement| s.kind.artifact() == Some(artifact);
        let said = all.iter().filter(|(id, s)| of_it(s) && counts(id)).copied().collect();
        let stands = |id: &StatementId| {
            let status = ledger.status(id);
            counts(id)
                && !matches!(status, Some(Status::Pending(Why::Predecessor { .. })))
                && !matches!(status, Some(Status::Ignored(Why::BrokenChain)))
        };
        let policies = all.iter().filter(|(id, _)| stands(id)).filter_map(|(_, s)| match &s.kind {
            Kind::Policy(set) if set.scope.covers(artifact) => {
                Policy::parse(&set.text).ok().filter(|p| p.digest() == set.policy)
            }
            _ => None,
        });
        let roots = ledger.root_chain().filter_map(|e| match Statement::parse(e.payload()).ok()?.kind {
            Kind::Root(root) => Some(root),
            _ => None,
        });
        Self { artifact: artifact.clone(), roots: roots.collect(), said, policies: policies.collect() }
    }

    /// The channels that anybody spoke of moving.
    pub(super) fn channels(&self) -> BTreeSet<Channel> {
        let moves = |s: &&&Statement| matches!(s.kind, Kind::Promote(_) | Kind::Rollback(_));
        self.said.values().filter(moves).filter_map(|s| s.kind.channel().cloned()).collect()
    }

    /// What must be effective in a channel, the head last.
    pub(super) fn effective(&self, channel: &Channel) -> Line {
        let mut line = Line::new();
        loop {
            let next = self.next(channel, &line);
            let key = |id: &StatementId| {
                let after: Line = line.iter().chain([id]).copied().collect();
                let Some(root) = self.root_of(id) else { panic!("it moves a head") };
                (self.strength(channel, &after), self.rollback(id).is_some(), root, self.epoch(&after))
            };
            let Some(best) = next.iter().map(key).max() else { return line };
            let best_of: Vec<StatementId> = next.into_iter().filter(|id| key(id) == best).collect();
            if best_of.len() > 1 && !best.1 {
                return line;
            }
            line.push(best_of[0]);
        }
    }

    /// The manifest at the end of a line.
    pub(super) fn manifest(&self, line: &[StatementId]) -> Option<ManifestDigest> {
        let id = line.last()?;
        match self.rollback(id) {
            Some(r) => {
                line.iter().position(|at| Some(*at) == r.said.to).and_then(|at| self.manifest(&line[..=at]))
            }
            None => self.promotion(id).map(|p| p.manifest),
        }
    }

    /// In halves of a promotion: a line's last step and the strongest that is built upon it.
    fn strength(&self, channel: &Channel, line: &Line) -> usize {
        let own = line.last().map_or(0, |id| if self.rollback(id).is_some() { 3 } else { 2 });
        let after = self.next(channel, line).into_iter().map(|id| {
            let after: Line = line.iter().chain([&id]).copied().collect();
            self.strength(channel, &after)
        });
        own + after.max().unwrap_or(0)
    }

    /// All that may follow a line, lowest id first.
    fn next(&self, channel: &Channel, line: &Line) -> Vec<StatementId> {
        let follows = |(id, s): &(&StatementId, &&Statement)| match &s.kind {
            Kind::Promote(p) => {
                p.channel == *channel
                    && p.said.parent == line.last().copied()
                    && self.may_promote(id, s, line)
            }
            Kind::Rollback(r) => {
                r.channel == *channel
                    && Some(r.said.over) == line.last().copied()
                    && self.may_roll_back(r, line)
            }
            _ => false,
        };
        self.said.iter().filter(follows).map(|(id, _)| *id).collect()
    }

    fn may_promote(&self, id: &StatementId, s: &Statement, line: &Line) -> bool {
        let Kind::Promote(p) = &s.kind else { return false };
        let newest = line.iter().filter_map(|id| self.root_of(id)).max().unwrap_or(0);
        if p.said.epoch <= self.epoch(line) || p.said.root < newest || self.since(id).is_none() {
            return false;
        }
        let Some(digest) = p.said.policy else { return true };
        let Some(policy) = self.policies.iter().find(|policy| policy.digest() == digest) else {
            return false;
        };
        let rule = policy.stages.get(&p.channel.stage).cloned().unwrap_or_default();
        let mut hardware = rule.hardware.clone();
        hardware.insert(p.channel.hardware.clone());
        hardware.iter().all(|h| p.said.verdicts.iter().any(|v| self.carries(v, p, digest, h, line)))
            && policy.stage_before(p.channel.stage).is_none_or(|stage| self.was_in(stage, policy, p, s.time))
            && self.approvals(p, s.by) >= rule.approvals.unwrap_or(0)
    }

    fn carries(
        &self,
        verdict: &StatementId,
        p: &OnChannel<Promotion>,
        policy: Sha256,
        hardware: &str,
        line: &Line,
    ) -> bool {
        let Some(Statement { kind: Kind::Verdict(v), time, .. }) = self.said.get(verdict) else {
            return false;
        };
        let replaced = self.manifest(line);
        let runs_in_production = |found: ManifestDigest| {
            self.said.iter().any(|(id, s)| match &s.kind {
                Kind::Promote(other) => {
                    other.channel.stage == Stage::Production
                        && other.manifest == found
                        && self.since(id).is_some()
                }
                _ => false,
            })
        };
        let baseline = v.ruling.baseline;
        let is_baseline = baseline == replaced
            || replaced == Some(p.manifest)
            || (p.channel.stage != Stage::Production && baseline.is_some_and(runs_in_production));
        let ruling = (v.ruling.outcome, v.ruling.policy, v.ruling.hardware.as_str());
        v.manifest == p.manifest
            && ruling == (Outcome::Pass, policy, hardware)
            && is_baseline
            && self.called_bad(&p.manifest, line).is_none_or(|at| *time > at)
    }

    fn was_in(&self, stage: Stage, policy: &Policy, p: &OnChannel<Promotion>, time: UnixTime) -> bool {
        let Some(from) = p.said.from else { return false };
        let Some(before) = self.promotion(&from) else { return false };
        let of_it = before.manifest == p.manifest
            && before.channel.stage == stage
            && [p.channel.hardware.as_str(), "any"].contains(&before.channel.hardware.as_str());
        let rule = policy.stages.get(&stage).cloned().unwrap_or_default();
        let stayed = match rule.min_duration.unwrap_or(0) {
            0 => true,
            secs => self.since(&from).is_some_and(|since| time >= since.plus(secs)),
        };
        of_it
            && rule.min_requests.unwrap_or(0) == 0
            && stayed
            && self.stands_somewhere(&before.channel, &from, &Line::new())
    }

    /// Whether some line of a channel, strongest or not, leads to a promotion.
    fn stands_somewhere(&self, channel: &Channel, id: &StatementId, line: &Line) -> bool {
        self.next(channel, line).into_iter().any(|next| {
            let after: Line = line.iter().chain([&next]).copied().collect();
            next == *id || self.stands_somewhere(channel, id, &after)
        })
    }

    fn may_roll_back(&self, r: &OnChannel<Rollback>, line: &Line) -> bool {
        let newest = line.iter().filter_map(|id| self.root_of(id)).max().unwrap_or(0);
        if self.manifest(line) != Some(r.manifest) || r.said.root < newest {
            return false;
        }
        let Some(to) = r.said.to else { return true };
        let Some(at) = line.iter().position(|id| *id == to) else { return false };
        let Some(good) = self.manifest(&line[..=at]) else { return false };
        good != r.manifest
            && !line[at + 1..].iter().any(|id| self.rollback(id).is_some_and(|r| r.manifest == good))
    }

    /// When a manifest was last called bad on a line.
    fn called_bad(&self, manifest: &ManifestDigest, line: &Line) -> Option<UnixTime> {
        let mut last: Option<UnixTime> = None;
        for id in line.iter().filter(|id| self.rollback(id).is_some_and(|r| r.manifest == *manifest)) {
            let time = self.said[id].time;
            last = Some(last.map_or(time, |at| time.max(at.plus(1))));
        }
        last
    }

    /// When a promotion had cosignatures enough.
    fn since(&self, id: &StatementId) -> Option<UnixTime> {
        let p = self.promotion(id)?;
        let witnesses = &self.root(p.said.root)?.roles.get(&Role::Witness)?.keys;
        let times = |key: &KeyId| {
            let by_it = self.said.values().filter(|s| s.by == *key);
            let of_it = by_it.filter(|s| match &s.kind {
                Kind::Cosign(c) => {
                    (c.said.promotion, &c.channel, c.manifest) == (*id, &p.channel, p.manifest)
                        && (c.said.parent, c.said.epoch, c.said.root)
                            == (p.said.parent, p.said.epoch, p.said.root)
                }
                _ => false,
            });
            of_it.map(|s| s.time).min()
        };
        let mut all: Vec<UnixTime> = witnesses.iter().filter_map(times).collect();
        all.sort_unstable();
        all.get(witnesses.len() / 2).copied()
    }

    fn approvals(&self, p: &OnChannel<Promotion>, author: KeyId) -> u64 {
        let Some(root) = self.root(p.said.root) else { return 0 };
        let promoters = &root.roles[&Role::Promoter].keys;
        let approves = |s: &&&Statement| match &s.kind {
            Kind::Approve(a) => {
                (&a.channel, a.manifest) == (&p.channel, p.manifest)
                    && (a.said.parent, a.said.policy) == (p.said.parent, p.said.policy)
            }
            _ => false,
        };
        let who: BTreeSet<KeyId> = self.said.values().filter(approves).map(|s| s.by).collect();
        who.iter().filter(|by| **by != author && promoters.contains(by)).count() as u64
    }

    fn epoch(&self, line: &[StatementId]) -> u64 {
        match line.split_last() {
            None => 0,
            Some((id, before)) => self.promotion(id).map_or_else(|| self.epoch(before) + 1, |p| p.said.epoch),
        }
    }

    fn root_of(&self, id: &StatementId) -> Option<u32> {
        self.promotion(id).map(|p| p.said.root).or(self.rollback(id).map(|r| r.said.root))
    }

    fn root(&self, version: u32) -> Option<&Root> {
        self.roots.iter().find(|root| root.version == version)
    }

    fn promotion(&self, id: &StatementId) -> Option<&OnChannel<Promotion>> {
        match &self.said.get(id)?.kind {
            Kind::Promote(p) if p.channel.artifact == self.artifact => Some(p),
            _ => None,
        }
    }

    fn rollback(&self, id: &StatementId) -> Option<&OnChannel<Rollback>> {
        match &self.said.get(id)?.kind {
            Kind::Rollback(r) if r.channel.artifact == self.artifact => Some(r),
            _ => None,
        }
    }
}
