//! Which policy is in force for each namespace or artifact, folded from the policy statements of admins.
//!
//! A policy that an admin made stays *known* whatever its key does later: heads were promoted under it, and a
//! namespace must never lose its gate because somebody stole a key. To be *in force*, for new promotions, it must also
//! be the last of an unbroken line of versions.

use std::collections::{BTreeMap, BTreeSet};

use super::super::body::{Kind, Role};
use super::super::chain::Chains;
use super::super::promotion::{Scope, SetPolicy};
use super::super::why::{Status, Why};
use super::{Authority, Held};
use crate::gate::policy::Publish;
use crate::id::{Sha256, StatementId};
use crate::names::Artifact;

/// The policies of all scopes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in super::super) struct Policies {
    scopes: BTreeMap<Scope, OfScope>,
    /// The same by name, since every open asks.
    namespaces: BTreeMap<String, Scope>,
    artifacts: BTreeMap<Artifact, Scope>,
}

/// The policies of one scope.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct OfScope {
    /// By digest: the statements that made it a policy here.
    known: BTreeMap<Sha256, BTreeSet<StatementId>>,
    in_force: Option<PolicyAt>,
    conflict: BTreeSet<StatementId>,
    is_strict: bool,
}

/// A policy in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct PolicyAt {
    pub(in super::super) id: StatementId,
    pub(in super::super) version: u32,
    pub(in super::super) digest: Sha256,
}

impl Policies {
    /// The narrowest scope with a policy that `artifact` is in.
    pub(in super::super) fn scope_of(&self, artifact: &Artifact) -> Option<&Scope> {
        self.of(artifact).map(|(scope, _)| scope)
    }

    /// What is in force for `artifact`.
    pub(in super::super) fn in_force(&self, artifact: &Artifact) -> Option<PolicyAt> {
        self.of(artifact).and_then(|(_, of)| of.in_force)
    }

    /// A statement that made `digest` a policy for `artifact`, in its narrowest scope or in a wider one.
    pub(in super::super) fn known(&self, artifact: &Artifact, digest: &Sha256) -> Option<StatementId> {
        let scopes = [self.artifacts.get(artifact), self.namespaces.get(artifact.namespace())];
        let known = scopes
            .into_iter()
            .flatten()
            .filter_map(|scope| self.scopes.get(scope)?.known.get(digest)?.first());
        known.copied().next()
    }

    /// Whether names of `artifact` mean only what the gate has passed. Without a policy in force (all were revoked, or
    /// two dispute a version) the strictest of those that are known holds, and one that this release cannot read is
    /// taken to be strict.
    pub(in super::super) fn is_strict(&self, artifact: &Artifact) -> bool {
        self.of(artifact).is_some_and(|(_, of)| of.is_strict)
    }

    /// The scopes that have policies, with what is in force.
    pub(in super::super) fn scopes(&self) -> impl Iterator<Item = (&Scope, Option<PolicyAt>)> {
        self.scopes.iter().map(|(scope, of)| (scope, of.in_force))
    }

    /// Where two policies claim one version.
    pub(in super::super) fn conflicts(&self) -> impl Iterator<Item = (&Scope, &BTreeSet<StatementId>)> {
        self.scopes.iter().map(|(scope, of)| (scope, &of.conflict)).filter(|(_, ids)| !ids.is_empty())
    }

    /// The scopes whose policies are not the same in `before`.
    pub(in super::super) fn changed_from(&self, before: &Self) -> Vec<Scope> {
        let odd = |a: &Self, b: &Self| {
            let odd = a.scopes.iter().filter(|(scope, of)| b.scopes.get(scope) != Some(of));
            odd.map(|(scope, _)| scope.clone()).collect::<Vec<_>>()
        };
        let mut all = odd(self, before);
        all.extend(odd(before, self));
        all
    }

    fn of(&self, artifact: &Artifact) -> Option<(&Scope, &OfScope)> {
        let own = self.artifacts.get(artifact).or_else(|| self.namespaces.get(artifact.namespace()));
        self.scopes.get_key_value(own?)
    }

    fn insert(&mut self, scope: Scope, of: OfScope) {
        match &scope {
            Scope::Namespace(namespace) => self.namespaces.insert(namespace.clone(), scope.clone()),
            Scope::Artifact(artifact) => self.artifacts.insert(artifact.clone(), scope.clone()),
        };
        self.scopes.insert(scope, of);
    }
}

impl Authority {
    pub(super) fn fold_policies(&mut self, held: &[(StatementId, &Held)], chains: &Chains) {
        /// A policy statement that an admin was allowed to make.
        struct Said<'a> {
            id: StatementId,
            policy: &'a SetPolicy,
            is_new: bool,
            is_strict: bool,
        }
        let mut scopes: BTreeMap<Scope, Vec<Said<'_>>> = BTreeMap::new();
        for (id, h) in held {
            let Kind::Policy(policy) = &h.statement.kind else {
                continue;
            };
            if !chains.is_linked(id) {
                self.statuses.insert(*id, Status::Pending(Why::Predecessor { missing: *id }));
            } else if !self.permits(Role::Admin, None, &h.statement, &h.signers) {
                self.statuses.insert(*id, Status::Ignored(Why::NotAllowed));
            } else {
                let cut = chains
                    .forked_at(&h.statement.by)
                    .is_some_and(|at| h.statement.chain.is_some_and(|c| c.seq >= at));
                let rules = h.policy.as_ref();
                let is_strict = rules.is_none_or(|rules| rules.publish == Publish::RequiresVerdict);
                let said = Said { id: *id, policy, is_new: !cut, is_strict };
                scopes.entry(policy.scope.clone()).or_default().push(said);
            }
        }
        for (scope, said) in scopes {
            let mut of = OfScope::default();
            let good = |s: &&Said<'_>| !self.void.contains_key(&s.id);
            for one in said.iter().filter(good) {
                of.known.entry(one.policy.policy).or_default().insert(one.id);
            }
            // Revoked versions still lead to those that replaced them.
            let mut last: Option<(u32, StatementId)> = None;
            loop {
                let (version, replaces) = last.map_or((1, None), |(v, id)| (v.saturating_add(1), Some(id)));
                let mut next: Vec<&Said<'_>> = said
                    .iter()
                    .filter(|s| s.is_new && s.policy.version == version && s.policy.replaces == replaces)
                    .collect();
                if next.iter().filter(|s| good(s)).count() > 1 {
                    of.conflict = next.iter().filter(|s| good(s)).map(|s| s.id).collect();
                    break;
                }
                next.sort_by_key(|s| (!good(s), s.id));
                let Some(one) = next.first() else { break };
                if good(one) {
                    of.in_force = Some(PolicyAt { id: one.id, version, digest: one.policy.policy });
                }
                if last == Some((version, one.id)) {
                    break;
                }
                last = Some((version, one.id));
            }
            of.is_strict = match of.in_force {
                Some(at) => said.iter().any(|one| one.id == at.id && one.is_strict),
                None if said.iter().any(|one| good(&one)) => {
                    said.iter().filter(good).any(|one| one.is_strict)
                }
                None => said.iter().any(|one| one.is_strict),
            };
            for one in &said {
                let status = if self.void.contains_key(&one.id) {
                    Status::Ignored(Why::Revoked)
                } else if of.in_force.is_some_and(|at| at.id == one.id) {
                    Status::Effective
                } else if of.conflict.contains(&one.id) {
                    Status::Ignored(Why::PolicyConflict)
                } else if !one.is_new {
                    Status::Ignored(Why::Equivocation)
                } else if last.is_some_and(|(version, _)| one.policy.version <= version) {
                    Status::Ignored(Why::Superseded)
                } else {
                    Status::Pending(Why::Held(crate::statement::Hold::PolicyBefore))
                };
                self.statuses.insert(one.id, status);
            }
            // Also where all of them were revoked: what is gated stays gated, and a new first policy opens the way.
            self.policies.insert(scope, of);
        }
    }
}
