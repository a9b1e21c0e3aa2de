//! What a ledger answers: members, tags, permissions, alarms, and the place of each statement.

use std::collections::{BTreeMap, BTreeSet};

use super::body::{Chain, Invite, Kind, Labels, Revoke, Role, Root, Statement};
use super::chain::Place;
use super::envelope::Envelope;
use super::ledger::{Checked, Ledger};
use super::summary::{Entry, Summary};
use super::tags::{Published, Resolution};
use super::why::{Status, Why};
use crate::id::{ClusterId, KeyId, ManifestDigest, StatementId};
use crate::names::{Artifact, Tag};
use crate::time::UnixTime;

/// A host that is a member now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its key, on both planes.
    pub key: KeyId,
    /// Its name, for people.
    pub name: String,
    /// Its labels; an invite's win over its own.
    pub labels: Labels,
    /// The admission that name and labels come from: an admin's before a ticket's, then the newest.
    pub admitted_by: StatementId,
    /// The time of its first admission that still stands.
    pub since: UnixTime,
    /// When the last of its admissions ends.
    pub expires: UnixTime,
}

/// An invite in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InviteStatus {
    /// Its statement.
    pub id: StatementId,
    /// The admin who made it.
    pub by: KeyId,
    /// What it says.
    pub invite: Invite,
    /// Hosts that it admitted, at most `invite.uses`.
    pub used: u32,
    /// Whether it has expired.
    pub expired: bool,
}

/// A revocation in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    /// Its statement.
    pub id: StatementId,
    /// The admin who made it.
    pub by: KeyId,
    /// When.
    pub time: UnixTime,
    /// What it says.
    pub revoke: Revoke,
}

/// Why a key may not do something now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The root chain is not here.
    #[error("the cluster's root is not here yet; wait for a peer or join again with a ticket")]
    NoRoot,
    /// The root has expired.
    #[error("the cluster's root expired at {expired}; an admin must sign a new one")]
    RootExpired {
        /// When.
        expired: UnixTime,
    },
    /// The key was revoked.
    #[error("{key} was revoked; an admin must admit it again")]
    Revoked {
        /// The key.
        key: KeyId,
    },
    /// The key holds no role for this and is no member that may do without.
    #[error("{key} may not publish in `{namespace}`: it holds no publisher role there; ask an admin")]
    NotPublisher {
        /// The key.
        key: KeyId,
        /// The namespace.
        namespace: String,
    },
    /// The key holds no role for this.
    #[error("{key} may not evaluate in `{namespace}`: it holds no evaluator role there; ask an admin")]
    NotEvaluator {
        /// The key.
        key: KeyId,
        /// The namespace.
        namespace: String,
    },
    /// Not an admission by a ticket of an invite that is in force here.
    #[error("the ticket's invite is not in force here: {why}")]
    Invite {
        /// Why.
        why: Why,
    },
    /// The joiner's clock disagrees.
    #[error("the admission is dated {time}, it is {now} here; set the joining host's clock")]
    Clock {
        /// What it says.
        time: UnixTime,
        /// This host's time.
        now: UnixTime,
    },
}

/// The root in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootStatus<'a> {
    /// Its statement.
    pub id: StatementId,
    /// What it says.
    pub root: &'a Root,
    /// Whether it has expired, tolerance included.
    pub expired: bool,
}

impl Ledger {
    /// The cluster.
    pub fn cluster(&self) -> ClusterId {
        self.config.cluster
    }

    /// The root in force.
    pub fn root(&self, now: UnixTime) -> Option<RootStatus<'_>> {
        let (id, root) = self.authority.root()?;
        let expired = now > root.expires.plus(self.config.clock_tolerance_secs);
        Some(RootStatus { id, root, expired })
    }

    /// The roots from the first to the one in force, as a ticket or bundle carries them.
    pub fn root_chain(&self) -> impl Iterator<Item = &Envelope> {
        self.authority.root_ids().filter_map(|id| self.envelope(&id))
    }

    /// Members now, by key.
    pub fn members(&self, now: UnixTime) -> impl Iterator<Item = Member> {
        self.authority.hosts().filter_map(move |key| self.member(key, now))
    }

    /// One member.
    pub fn member(&self, key: &KeyId, now: UnixTime) -> Option<Member> {
        self.authority.member(key, &self.set, now, self.config.clock_tolerance_secs)
    }

    /// Whether `key` is a member now: what both planes ask of everyone who connects.
    pub fn is_member(&self, key: &KeyId, now: UnixTime) -> bool {
        self.authority.is_member(key, now, self.config.clock_tolerance_secs)
    }

    /// Invites in force, expired ones included and marked.
    pub fn invites(&self, now: UnixTime) -> impl Iterator<Item = InviteStatus> {
        self.authority.invites().filter_map(move |id| {
            let Statement { kind, by, .. } = self.statement(&id)?;
            let Kind::Invite(invite) = kind else { return None };
            Some(InviteStatus {
                id,
                by: *by,
                invite: invite.clone(),
                used: self.authority.invite(&id, None)?.0,
                expired: now > invite.expires.plus(self.config.clock_tolerance_secs),
            })
        })
    }

    /// Revocations in force.
    pub fn revocations(&self) -> impl Iterator<Item = Revocation> {
        self.authority.revocations().filter_map(|id| {
            let s = self.statement(&id)?;
            let Kind::Revoke(revoke) = &s.kind else {
                return None;
            };
            Some(Revocation { id, by: s.by, time: s.time, revoke: revoke.clone() })
        })
    }

    /// Whether `key` was revoked and not admitted by an admin since.
    pub fn is_revoked(&self, key: &KeyId) -> bool {
        self.authority.is_key_revoked(key)
    }

    /// Artifacts with at least one publish that counts.
    pub fn artifacts(&self) -> impl Iterator<Item = &Artifact> {
        self.tags.artifacts()
    }

    /// The tags of an artifact, and what each means.
    pub fn tags(&self, artifact: &Artifact) -> impl Iterator<Item = (&Tag, Resolution)> {
        self.tags.tags(artifact).map(|(tag, meaning)| (tag, self.named(artifact, meaning)))
    }

    /// What a tag means.
    pub fn resolve_tag(&self, artifact: &Artifact, tag: &Tag) -> Resolution {
        self.named(artifact, self.tags.resolve(artifact, tag))
    }

    /// The publishes of a manifest that count.
    pub fn publishes_of(&self, manifest: &ManifestDigest) -> impl Iterator<Item = Published> {
        self.tags.publishes_of(manifest).filter_map(|id| {
            let s = self.statement(&id)?;
            let Kind::Publish(publish) = &s.kind else {
                return None;
            };
            Some(Published { id, by: s.by, time: s.time, publish: publish.clone() })
        })
    }

    /// Whether `key` may author a publish of `artifact` now.
    ///
    /// This asks more than the fold does: an expired root lets nobody publish, though what is published stays.
    ///
    /// # Errors
    /// Why it may not.
    pub fn may_publish(&self, key: &KeyId, artifact: &Artifact, now: UnixTime) -> Result<(), Denied> {
        let status = self.root(now).ok_or(Denied::NoRoot)?;
        if status.expired {
            return Err(Denied::RootExpired { expired: status.root.expires });
        }
        if self.is_revoked(key) {
            return Err(Denied::Revoked { key: *key });
        }
        let namespace = artifact.namespace();
        let role = status.root.roles.get(&Role::Publisher).filter(|r| r.covers(namespace));
        if role.is_some_and(|r| r.keys.contains(key) || (r.members && self.is_member(key, now))) {
            return Ok(());
        }
        Err(Denied::NotPublisher { key: *key, namespace: namespace.to_owned() })
    }

    /// Whether a ticket's admission should be let in now: what a member asks before it applies what a stranger
    /// brings. The fold alone cannot refuse an expired ticket whose holder sets its clock back.
    ///
    /// # Errors
    /// Why not.
    pub fn may_join(&self, admission: &Checked, now: UnixTime) -> Result<(), Denied> {
        let denied = |why| Err(Denied::Invite { why });
        let s = admission.statement();
        let Kind::Admit(admit) = &s.kind else {
            return denied(Why::NotAllowed);
        };
        let Some(id) = admit.invite else {
            return denied(Why::NotAllowed);
        };
        let Some(Kind::Invite(invite)) = self.statement(&id).map(|s| &s.kind) else {
            return denied(Why::Invite);
        };
        let Some((used, known)) = self.authority.invite(&id, Some(&admit.host)) else {
            return denied(match self.status(&id) {
                Some(Status::Pending(why) | Status::Ignored(why)) => why,
                Some(Status::Effective) | None => Why::Invite,
            });
        };
        let tolerance = self.config.clock_tolerance_secs;
        if s.by != invite.ticket {
            return denied(Why::NotAllowed);
        }
        if self.is_revoked(&admit.host) {
            return Err(Denied::Revoked { key: admit.host });
        }
        // A host that this ticket admitted before may say so again for as long as that admission lasts.
        if known && self.status(&admission.id()) == Some(Status::Effective) {
            return Ok(());
        }
        if now > invite.expires.plus(tolerance) || s.time > invite.expires {
            return denied(Why::InviteExpired);
        }
        if s.time > now.plus(tolerance) || now > s.time.plus(invite.admit_secs_max) || now > admit.expires {
            return Err(Denied::Clock { time: s.time, now });
        }
        if !known && used >= invite.uses {
            return denied(Why::InviteUsed);
        }
        Ok(())
    }

    /// Whether `key` may say what it measured, or what the gate said, in `namespace` now.
    ///
    /// # Errors
    /// Why it may not.
    pub fn may_evaluate(&self, key: &KeyId, namespace: &str, now: UnixTime) -> Result<(), Denied> {
        let status = self.root(now).ok_or(Denied::NoRoot)?;
        if status.expired {
            return Err(Denied::RootExpired { expired: status.root.expires });
        }
        if self.is_revoked(key) {
            return Err(Denied::Revoked { key: *key });
        }
        let role = status.root.roles.get(&Role::Evaluator).filter(|r| r.covers(namespace));
        if role.is_some_and(|r| r.keys.contains(key)) {
            return Ok(());
        }
        Err(Denied::NotEvaluator { key: *key, namespace: namespace.to_owned() })
    }

    /// The place for `key`'s next chained statement.
    pub fn next_chain(&self, key: &KeyId) -> Chain {
        self.chains.next(key)
    }

    /// For a new root: the last place of every admin's chain that is here, so that rotation undoes nothing.
    pub fn settled(&self) -> BTreeMap<KeyId, u64> {
        let authors: BTreeSet<KeyId> = self
            .authority_ids
            .iter()
            .filter(|id| self.status(id) == Some(Status::Effective))
            .filter_map(|id| self.statement(id))
            .filter(|s| s.chain.is_some())
            .map(|s| s.by)
            .collect();
        authors
            .into_iter()
            .filter_map(|key| Some((key, self.chains.next(&key).seq.checked_sub(1)?)))
            .collect()
    }

    /// What a statement of the set does now; `None` if it is not here.
    pub fn status(&self, id: &StatementId) -> Option<Status> {
        let held = self.set.get(id)?;
        match &held.statement.kind {
            kind if kind.namespace().is_some() => Some(match self.authority.said_status(id, held) {
                Status::Effective => kind
                    .artifact()
                    .and_then(|artifact| self.ladder.status(artifact, id))
                    .unwrap_or(Status::Effective),
                other => other,
            }),
            Kind::Unknown { .. } => Some(Status::Ignored(Why::UnknownKind)),
            _ => match self.authority.status(id)? {
                Status::Pending(Why::Predecessor { .. }) => match self.chains.place(id)? {
                    Place::Waits { missing } => Some(Status::Pending(Why::Predecessor { missing })),
                    Place::Broken => Some(Status::Ignored(Why::BrokenChain)),
                    Place::Linked => Some(Status::Effective),
                },
                status => Some(status),
            },
        }
    }

    /// All statements of the set, whatever they do, by id.
    pub fn statements(&self) -> impl Iterator<Item = StatementId> {
        self.set.keys().copied()
    }

    /// How many statements the set has.
    pub fn len(&self) -> usize {
        self.set.len()
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty()
    }

    /// Whether a statement is in the set.
    pub fn contains(&self, id: &StatementId) -> bool {
        self.set.contains_key(id)
    }

    /// What a statement of the set says.
    pub fn statement(&self, id: &StatementId) -> Option<&Statement> {
        self.set.get(id).map(|h| &h.statement)
    }

    /// The envelope of a root, invite, admission or revocation. Of the many others only the store has them.
    pub fn envelope(&self, id: &StatementId) -> Option<&Envelope> {
        self.set.get(id).and_then(|h| h.envelope.as_ref())
    }

    /// Adds to a stored envelope the signatures of another one of the same statement, as the set did when it took
    /// that one; `true` if there were any.
    pub fn merge(&self, stored: &mut Envelope, new: &Envelope) -> bool {
        match self.set.get(&new.id()) {
            Some(held) => stored.merge(new, |key| self.prefers(&held.statement, key)),
            None => false,
        }
    }

    /// What to compare with another host's set.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// The statements of one bucket of the summary, by id.
    pub fn ids_in(&self, bucket: u8) -> impl Iterator<Item = Entry> {
        let (mut low, mut high) = ([0; 32], [0xff; 32]);
        (low[0], high[0]) = (bucket, bucket);
        self.set.range(StatementId(low)..=StatementId(high)).map(|(id, h)| Entry::new(*id, &h.signers))
    }
}
