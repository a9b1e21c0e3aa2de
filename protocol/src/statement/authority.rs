//! Who may say what: roots, invites, admissions and revocations, folded from the set of statements.
//!
//! The fold goes in layers, so that nothing depends on itself: roots (by signatures alone), revocations (by roots
//! and chains), invites, admissions, and then, next door, publishes. No layer reads a clock; expiry is asked
//! for at query time. Invites and admissions are folded in `hosts`.
//!
//! **Rotation.** A statement is good if the present root lets its author say it, or if an older root does and the
//! root after that one settled it: a chained statement is settled by its place in its author's chain, which a
//! retired key cannot change later; an unchained one by a time not after that root's.
//!
//! **Equivocation.** Once an author has two bodies at one place, nothing that it granted at or after that place has
//! effect. Taking one of the two would need an order between hosts, and there is none. Revocations stay: whoever
//! stole an admin's key could undo them otherwise. Roots stay: they have their own numbers and their own rule for
//! forks, and rotating the key away is the way out.

mod hosts;
mod policies;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hosts::{Admission, InviteAt, KeyRevoked};
pub(super) use policies::{Policies, PolicyAt};

use super::body::{Chain, Kind, Role, Root, Statement, Target};
use super::chain::Chains;
use super::envelope::Envelope;
use super::ledger::Room;
use super::why::{Status, Why};
use crate::gate::Policy;
use crate::id::{KeyId, StatementId};
use crate::time::UnixTime;

/// One statement of the set.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) statement: Statement,
    /// Sorted.
    pub(super) signers: Vec<KeyId>,
    /// Kept for what grants authority, so that tickets and proofs can be made from it.
    pub(super) envelope: Option<Envelope>,
    /// What a policy statement's text says, if this release can read it and it is what its digest says.
    pub(super) policy: Option<Arc<Policy>>,
    /// What it takes of the ledger's room.
    pub(super) room: Room,
}

pub(super) type Set = BTreeMap<StatementId, Box<Held>>;

/// The fold's outcome.
#[derive(Debug, Clone, Default)]
pub(super) struct Authority {
    roots: Vec<RootAt>,
    fork: Option<(u32, BTreeSet<StatementId>)>,
    /// Effective revocations.
    revocations: BTreeSet<StatementId>,
    /// Statements voided one by one, and since when.
    void: BTreeMap<StatementId, UnixTime>,
    keys: BTreeMap<KeyId, Vec<KeyRevoked>>,
    invites: BTreeMap<StatementId, InviteAt>,
    hosts: BTreeMap<KeyId, Vec<Admission>>,
    statuses: BTreeMap<StatementId, Status>,
    pub(super) policies: Policies,
}

#[derive(Debug, Clone)]
struct RootAt {
    id: StatementId,
    time: UnixTime,
    root: Root,
}

impl Authority {
    /// Folds the statements `ids` of `set`. A pure function of them, of `first` (the cluster) and of `chosen`
    /// (which roots a person here decided for where versions fork).
    pub(super) fn fold(
        set: &Set,
        ids: &BTreeSet<StatementId>,
        chains: &Chains,
        first: StatementId,
        chosen: &BTreeSet<StatementId>,
    ) -> Self {
        let mut authority = Self::default();
        let held: Vec<(StatementId, &Held)> =
            ids.iter().filter_map(|id| Some((*id, &**set.get(id)?))).collect();
        authority.fold_roots(&held, first, chosen);
        let undone = authority.fold_revocations(&held, chains);
        authority.fold_invites(&held, chains, &undone);
        authority.fold_admissions(&held, set, chains, &undone);
        authority.fold_policies(&held, chains);
        authority
    }

    fn fold_roots(
        &mut self,
        held: &[(StatementId, &Held)],
        first: StatementId,
        chosen: &BTreeSet<StatementId>,
    ) {
        let roots: Vec<(StatementId, &Root, &Held)> = held
            .iter()
            .filter_map(|(id, h)| match &h.statement.kind {
                Kind::Root(root) => Some((*id, root, *h)),
                _ => None,
            })
            .collect();
        loop {
            let last = self.roots.last();
            let mut next: Vec<_> = roots
                .iter()
                .filter(|(id, root, h)| match last {
                    None => *id == first && root.admits(&h.signers),
                    Some(last) => {
                        last.root.version.checked_add(1) == Some(root.version)
                            && root.prev_root == Some(last.id)
                            && last.root.admits(&h.signers)
                            && root.admits(&h.signers)
                    }
                })
                .collect();
            if next.len() > 1 {
                let ids: BTreeSet<_> = next.iter().map(|(id, ..)| *id).collect();
                next.retain(|(id, ..)| chosen.contains(id));
                if next.len() != 1 {
                    self.fork = last.map(|last| (last.root.version.saturating_add(1), ids));
                    break;
                }
            }
            let Some((id, root, h)) = next.pop() else { break };
            self.roots.push(RootAt { id: *id, time: h.statement.time, root: (*root).clone() });
        }
        for (id, root, _) in &roots {
            let last = self.roots.last();
            let status = if self.roots.iter().any(|r| r.id == *id) {
                Status::Effective
            } else if self.fork.as_ref().is_some_and(|(_, ids)| ids.contains(id)) {
                Status::Ignored(Why::RootFork)
            } else if last.is_some_and(|l| root.version <= l.root.version) {
                Status::Ignored(Why::Superseded)
            } else if *id == first || last.is_some_and(|l| root.prev_root == Some(l.id)) {
                Status::Pending(Why::Threshold)
            } else {
                Status::Pending(Why::RootBefore)
            };
            self.statuses.insert(*id, status);
        }
    }

    fn fold_revocations(&mut self, held: &[(StatementId, &Held)], chains: &Chains) -> Undone {
        let mut undone = Undone::default();
        for (id, h) in held {
            let Kind::Revoke(revoke) = &h.statement.kind else {
                continue;
            };
            let status = self.admin_status(id, h, chains, false);
            self.statuses.insert(*id, status);
            if status != Status::Effective {
                continue;
            }
            self.revocations.insert(*id);
            let time = h.statement.time;
            match &revoke.target {
                Target::Key { key, since } => self.keys.entry(*key).or_default().push(KeyRevoked {
                    by: h.statement.by,
                    seq: h.statement.chain.map_or(0, |c| c.seq),
                    time,
                    from: since.unwrap_or(time),
                    until: None,
                }),
                Target::Invite { id, keep } => undone.entry(*id).or_default().push((time, keep.clone())),
                Target::Statement { id } => {
                    undone.entry(*id).or_default().push((time, BTreeSet::new()));
                    let void = self.void.entry(*id).or_insert(time);
                    *void = time.min(*void);
                }
            }
        }
        undone
    }

    /// A chained statement that an admin must have made.
    fn admin_status(&self, id: &StatementId, h: &Held, chains: &Chains, grants: bool) -> Status {
        let s = &h.statement;
        if !chains.is_linked(id) {
            // Which one is missing is worked out when somebody asks.
            return Status::Pending(Why::Predecessor { missing: *id });
        }
        let cut = chains.forked_at(&s.by).is_some_and(|at| s.chain.is_some_and(|c| c.seq >= at));
        if grants && cut {
            Status::Ignored(Why::Equivocation)
        } else if self.permits(Role::Admin, None, s, &h.signers) {
            Status::Effective
        } else {
            Status::Ignored(Why::NotAllowed)
        }
    }

    /// Whether a root that counts for `statement` lets its author and `signers` act in `role`.
    pub(super) fn permits(
        &self,
        role: Role,
        namespace: Option<&str>,
        statement: &Statement,
        signers: &[KeyId],
    ) -> bool {
        self.roots_for(statement.by, statement.chain, statement.time).any(|root| {
            root.roles.get(&role).is_some_and(|spec| {
                spec.keys.contains(&statement.by)
                    && namespace.is_none_or(|ns| spec.covers(ns))
                    && spec.met_by(signers)
            })
        })
    }

    /// Whether what is said of an artifact counts: whether its author may say it, not what follows from it.
    pub(super) fn said_status(&self, id: &StatementId, h: &Held) -> Status {
        let s = &h.statement;
        let Some(namespace) = s.kind.namespace() else {
            return Status::Ignored(Why::NotAllowed);
        };
        let may = match &s.kind {
            Kind::Publish(_) => return self.publish_status(id, h, namespace),
            _ if self.void.contains_key(id) || self.key_revoked_at(&s.by, s.time) => {
                return Status::Ignored(Why::Revoked);
            }
            Kind::Evaluate(_) | Kind::Verdict(_) => {
                self.permits(Role::Evaluator, Some(namespace), s, &h.signers)
            }
            // One person each; which root's promoters count is for the promotion to say.
            Kind::Approve(_) | Kind::Follow(_) => {
                (1..).map_while(|n| self.root_at(n)).any(|root| root.holds(Role::Promoter, namespace, &s.by))
            }
            Kind::Promote(said) => self.root_at(said.said.root).is_some_and(|root| {
                root.holds(Role::Promoter, namespace, &s.by)
                    && root.roles.get(&Role::Promoter).is_some_and(|role| role.met_by(&h.signers))
            }),
            Kind::Cosign(said) => {
                self.root_at(said.said.root).is_some_and(|root| root.holds(Role::Witness, namespace, &s.by))
            }
            // Any one promoter, whatever the threshold: it must work when one person is awake. A retired key may undo
            // what it could see, until its revocation says since when it is not believed.
            Kind::Rollback(said) => {
                let holds =
                    |n: u32| self.root_at(n).is_some_and(|root| root.holds(Role::Promoter, namespace, &s.by));
                let known = (said.said.root..=u32::MAX).take_while(|n| self.root_at(*n).is_some());
                // Who rolled back beside a rotation that it had not heard of is a promoter still.
                let last = known.filter(|n| holds(*n)).last();
                holds(said.said.root)
                    && last.is_some_and(|last| self.next_root_time(last).is_none_or(|next| s.time <= next))
            }
            _ => false,
        };
        if may { Status::Effective } else { Status::Ignored(Why::NotAllowed) }
    }

    /// The root of a version, if it is in force or was.
    pub(super) fn root_at(&self, version: u32) -> Option<&Root> {
        let at = usize::try_from(version).ok()?.checked_sub(1)?;
        self.roots.get(at).map(|at| &at.root)
    }

    /// When the root after `version` was made.
    fn next_root_time(&self, version: u32) -> Option<UnixTime> {
        self.roots.get(usize::try_from(version).ok()?).map(|next| next.time)
    }

    /// Whether `statement`, a publish in `namespace`, counts.
    ///
    /// A publish by a host that was revoked since counts if its time is before the revocation's `since`. Time is
    /// the author's own word, so a thief may date publishes back; but retiring a host must not take away what
    /// it published honestly, and the set alone offers no better order. `since: 0` or the revocation of single
    /// statements is the answer to a thief, and an immutable tag can be disputed by it but never moved.
    fn publish_status(&self, id: &StatementId, h: &Held, namespace: &str) -> Status {
        let s = &h.statement;
        if self.void.contains_key(id) || self.key_revoked_at(&s.by, s.time) {
            return Status::Ignored(Why::Revoked);
        }
        if self.permits(Role::Publisher, Some(namespace), s, &h.signers) {
            return Status::Effective;
        }
        let members = self
            .roots_for(s.by, s.chain, s.time)
            .filter_map(|root| root.roles.get(&Role::Publisher))
            .any(|spec| spec.members && spec.covers(namespace));
        let admissions = self.hosts.get(&s.by).map_or(&[][..], Vec::as_slice);
        if members && admissions.iter().any(|a| a.void.is_none_or(|since| s.time < since)) {
            Status::Effective
        } else if members && !admissions.is_empty() {
            Status::Ignored(Why::Revoked)
        } else {
            Status::Ignored(Why::NotAllowed)
        }
    }

    fn key_revoked_at(&self, key: &KeyId, time: UnixTime) -> bool {
        let revoked = self.keys.get(key).map_or(&[][..], Vec::as_slice);
        revoked.iter().any(|r| time >= r.from && r.until.is_none_or(|until| time < until))
    }

    fn roots_for(&self, by: KeyId, chain: Option<Chain>, time: UnixTime) -> impl Iterator<Item = &Root> {
        self.roots.iter().enumerate().filter_map(move |(i, at)| {
            let settled = self.roots.get(i + 1).is_none_or(|next| match chain {
                Some(chain) => next.root.settled.get(&by).is_some_and(|seq| chain.seq <= *seq),
                None => time <= next.time,
            });
            settled.then_some(&at.root)
        })
    }

    /// The root in force.
    pub(super) fn root(&self) -> Option<(StatementId, &Root)> {
        self.roots.last().map(|at| (at.id, &at.root))
    }

    /// The roots from the first to the one in force.
    pub(super) fn root_ids(&self) -> impl Iterator<Item = StatementId> {
        self.roots.iter().map(|at| at.id)
    }

    /// Where rotation is frozen: the version, and the roots that claim it.
    pub(super) fn root_fork(&self) -> Option<&(u32, BTreeSet<StatementId>)> {
        self.fork.as_ref()
    }

    /// What became of a statement that grants or takes authority.
    pub(super) fn status(&self, id: &StatementId) -> Option<Status> {
        self.statuses.get(id).copied()
    }

    /// Whether publishes of `author` may be judged otherwise here than by `other`, single ones aside.
    pub(super) fn differs_for(&self, other: &Self, author: &KeyId) -> bool {
        !self.root_ids().eq(other.root_ids())
            || self.keys.get(author) != other.keys.get(author)
            || self.hosts.get(author) != other.hosts.get(author)
    }

    /// The single statements that are void here or in `other` but not alike in both.
    pub(super) fn voided_differently<'a>(
        &'a self,
        other: &'a Self,
    ) -> impl Iterator<Item = StatementId> + 'a {
        let odd = |a: &'a Self, b: &'a Self| {
            let odd = a.void.iter().filter(|(id, since)| b.void.get(id) != Some(since));
            odd.map(|(id, _)| *id)
        };
        odd(self, other).chain(odd(other, self))
    }

    /// Each statement that has no effect.
    pub(super) fn idle<'a>(&'a self, set: &'a Set) -> impl Iterator<Item = &'a Held> {
        let idle = self.statuses.iter().filter(|(_, status)| **status != Status::Effective);
        idle.filter_map(|(id, _)| set.get(id)).map(|held| &**held)
    }

    /// Whether any root up to the one in force names `key` in a role.
    pub(super) fn names(&self, key: &KeyId) -> bool {
        self.roots.iter().any(|at| at.root.names(key))
    }

    /// Whether a key was revoked and not admitted since.
    pub(super) fn is_key_revoked(&self, key: &KeyId) -> bool {
        self.keys.get(key).is_some_and(|r| r.iter().any(|r| r.until.is_none()))
    }

    /// Revocations in force.
    pub(super) fn revocations(&self) -> impl Iterator<Item = StatementId> {
        self.revocations.iter().copied()
    }
}

/// Per revoked invite or statement: when, and which admissions stay.
type Undone = BTreeMap<StatementId, Vec<(UnixTime, BTreeSet<StatementId>)>>;

impl Root {
    /// Whether `key` alone is in `role` over `namespace`, whatever the threshold.
    pub(super) fn holds(&self, role: Role, namespace: &str, key: &KeyId) -> bool {
        self.roles.get(&role).is_some_and(|spec| spec.keys.contains(key) && spec.covers(namespace))
    }

    fn admits(&self, signers: &[KeyId]) -> bool {
        self.roles.get(&Role::Admin).is_some_and(|admin| admin.met_by(signers))
    }
}
