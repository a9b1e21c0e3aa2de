//! What the fold reads of the set for one artifact: promotions, their evidence, approvals and cosignatures.

use std::collections::{BTreeMap, BTreeSet};

use super::super::authority::{Authority, Held, Set};
use super::super::body::{Kind, Role, Root};
use super::super::promotion::{Approval, OnChannel, Promotion, Rollback};
use super::super::why::Status;
use super::fold::Node;
use super::{Hold, Line};
use crate::gate::{Outcome, Policy};
use crate::id::{KeyId, ManifestDigest, Sha256, StatementId};
use crate::names::{Artifact, Stage};
use crate::time::UnixTime;

/// Read access for the fold.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) artifact: &'a Artifact,
    pub(super) line: &'a Line,
    pub(super) set: &'a Set,
    pub(super) authority: &'a Authority,
}

impl<'a> View<'a> {
    pub(super) fn held(&self, id: &StatementId) -> Option<&'a Held> {
        self.set.get(id).map(|held| &**held)
    }

    pub(super) fn promotion(&self, id: &StatementId) -> Option<&'a OnChannel<Promotion>> {
        match &self.held(id)?.statement.kind {
            Kind::Promote(p) => Some(p),
            _ => None,
        }
    }

    pub(super) fn rollback(&self, id: &StatementId) -> Option<&'a OnChannel<Rollback>> {
        match &self.held(id)?.statement.kind {
            Kind::Rollback(r) => Some(r),
            _ => None,
        }
    }

    /// A policy that this artifact has or had.
    pub(super) fn policy(&self, digest: &Sha256) -> Result<&'a Policy, Hold> {
        let id = self.authority.policies.known(self.artifact, digest).ok_or(Hold::PolicyMissing)?;
        self.held(&id).and_then(|held| held.policy.as_deref()).ok_or(Hold::PolicyUnreadable)
    }

    /// Witnesses that have cosigned, with the time of each. Of one that did so twice the first time counts, so that
    /// no second word of it makes a head younger than others have taken it for.
    pub(super) fn cosigners(&self, promotion: &StatementId) -> BTreeMap<KeyId, UnixTime> {
        let mut first = BTreeMap::new();
        let Some(p) = self.promotion(promotion) else { return first };
        for id in self.line.cosignatures.get(promotion).into_iter().flatten() {
            let Some(Held { statement: s, .. }) = self.held(id) else { continue };
            let Kind::Cosign(c) = &s.kind else { continue };
            let of_it = c.channel == p.channel
                && c.manifest == p.manifest
                && (c.said.parent, c.said.epoch, c.said.root) == (p.said.parent, p.said.epoch, p.said.root);
            if of_it {
                let at = first.entry(s.by).or_insert(s.time);
                *at = s.time.min(*at);
            }
        }
        first
    }

    /// When the cosignatures became enough.
    pub(super) fn cosigned(&self, promotion: &StatementId, root: u32) -> Result<UnixTime, Hold> {
        let root = self.authority.root_at(root).ok_or(Hold::Root)?;
        let needed = quorum(root).ok_or(Hold::NoWitness)?;
        let mut times: Vec<UnixTime> = self.cosigners(promotion).into_values().collect();
        times.sort_unstable();
        let have = u32::try_from(times.len()).unwrap_or(u32::MAX);
        let last = usize::try_from(needed - 1).ok().and_then(|n| times.get(n));
        last.copied().ok_or(Hold::Cosignatures { have, needed })
    }

    /// People other than the promotion's author who approved it.
    pub(super) fn approvals(&self, p: &OnChannel<Promotion>, author: KeyId, root: &Root) -> u64 {
        let of_it = |a: &OnChannel<Approval>| {
            a.channel == p.channel
                && a.manifest == p.manifest
                && (a.said.parent, a.said.policy) == (p.said.parent, p.said.policy)
        };
        let who: BTreeSet<KeyId> = self
            .line
            .approvals
            .iter()
            .filter_map(|id| self.held(id))
            .filter(|h| matches!(&h.statement.kind, Kind::Approve(a) if of_it(a)))
            .map(|h| h.statement.by)
            .filter(|by| *by != author && root.holds(Role::Promoter, self.artifact.namespace(), by))
            .collect();
        who.len() as u64
    }

    /// What the verdicts of a promotion lack.
    pub(super) fn evidence(
        &self,
        p: &OnChannel<Promotion>,
        policy: &Sha256,
        rules: &Policy,
        before: Option<&Node>,
    ) -> Vec<Hold> {
        let elsewhere = rules.stages.get(&p.channel.stage).map(|rule| &rule.hardware);
        let elsewhere = elsewhere.into_iter().flatten().filter(|h| **h != p.channel.hardware);
        let own = self.verdict(p, policy, &p.channel.hardware, before).err();
        let others = elsewhere.filter_map(|h| match self.verdict(p, policy, h, before) {
            Ok(_) => None,
            Err(Hold::NoVerdict) => Some(Hold::NoVerdictElsewhere),
            Err(hold) => Some(hold),
        });
        own.into_iter().chain(others.collect::<BTreeSet<_>>()).collect()
    }

    /// One verdict that carries a promotion on `hardware`, or what is wrong with the nearest.
    pub(super) fn verdict(
        &self,
        p: &OnChannel<Promotion>,
        policy: &Sha256,
        hardware: &str,
        before: Option<&Node>,
    ) -> Result<StatementId, Hold> {
        let replaced = before.and_then(|n| n.manifest);
        let bad = before.and_then(|n| n.all_bad.get(&p.manifest)).copied();
        let mut nearest = Hold::NoVerdict;
        for id in &p.said.verdicts {
            let Some(held) = self.held(id) else { continue };
            let Kind::Verdict(verdict) = &held.statement.kind else { continue };
            let ruling = &verdict.ruling;
            let of_it = verdict.artifact == *self.artifact && verdict.manifest == p.manifest;
            if !of_it
                || ruling.hardware != hardware
                || self.authority.said_status(id, held) != Status::Effective
            {
                continue;
            }
            let hold = if ruling.outcome != Outcome::Pass {
                Hold::NotPassed { verdict: *id }
            } else if ruling.policy != *policy {
                Hold::OtherPolicy { policy: ruling.policy }
            } else if !self.is_baseline(p, ruling.baseline, replaced) {
                Hold::OtherBaseline { found: ruling.baseline, expected: replaced }
            } else if let Some(at) = bad.filter(|at| held.statement.time <= *at) {
                Hold::RolledBack { at }
            } else {
                return Ok(*id);
            };
            nearest = nearest.max(hold);
        }
        Err(nearest)
    }

    /// Whether a verdict against `found` says something about replacing `replaced`.
    fn is_baseline(
        &self,
        p: &OnChannel<Promotion>,
        found: Option<ManifestDigest>,
        replaced: Option<ManifestDigest>,
    ) -> bool {
        if found == replaced || replaced == Some(p.manifest) {
            return true;
        }
        // Below production a candidate may as well be held against what production runs, whatever was tried there last.
        p.channel.stage < Stage::Production
            && found.is_some_and(|found| {
                self.line.promotions.iter().any(|id| {
                    self.promotion(id).is_some_and(|other| {
                        other.channel.stage == Stage::Production
                            && other.manifest == found
                            && self.cosigned(id, other.said.root).is_ok()
                    })
                })
            })
    }
}

/// How many cosignatures a promotion under `root` takes: more than half of its witnesses.
pub(super) fn quorum(root: &Root) -> Option<u32> {
    let witnesses = root.roles.get(&Role::Witness).map_or(0, |role| role.keys.len());
    (witnesses > 0).then(|| u32::try_from(witnesses / 2 + 1).unwrap_or(u32::MAX))
}
