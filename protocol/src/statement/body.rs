//! What a statement says: in-toto Statement v1 bodies, one predicate per kind.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::envelope::StatementError;
use super::glob::NamespaceGlob;
use super::promotion::{Approval, Channel, Cosignature, Follow, OnChannel, Promotion, Rollback, SetPolicy};
use super::weighed::{Evaluate, Verdict};
use crate::id::{ClusterId, KeyId, ManifestDigest, StatementId};
use crate::names::{Artifact, Tag};
use crate::time::UnixTime;

/// What every predicate type of ours starts with; `<kind>/v<version>` follows.
pub const PREDICATE_PREFIX: &str = "https://weighlock.dev/";

/// Longest host or cluster name, label key or label value, in bytes.
pub const LABEL_LEN_MAX: usize = 256;
/// Longest note or reason, in bytes.
pub const NOTE_LEN_MAX: usize = 1024;
/// Most labels on one host.
pub const LABELS_MAX: usize = 64;
/// Most keys or namespace globs in one role.
pub const ROLE_ENTRIES_MAX: usize = 256;
/// Most authors that one root settles.
pub const SETTLED_MAX: usize = 1024;
/// Most admissions that the revocation of an invite can keep.
pub const KEEP_MAX: usize = 1500;

/// Labels of a host, such as `rack=r12`.
pub type Labels = BTreeMap<String, String>;

/// One statement: who says what, when, in which cluster, at which place of its own chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// The cluster; only the first root, whose id *is* the cluster, has none.
    pub cluster: Option<ClusterId>,
    /// The author. Its signature is required, its chain is meant; other signatures endorse.
    pub by: KeyId,
    /// When, by the author's clock.
    pub time: UnixTime,
    /// Its place in the author's chain; statements that change authority have one, others do not.
    pub chain: Option<Chain>,
    /// What is said.
    pub kind: Kind,
}

/// A place in an author's chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Chain {
    /// 0 for the author's first chained statement, then one more each.
    pub seq: u64,
    /// The statement before; `None` exactly where `seq` is 0.
    pub prev: Option<StatementId>,
}

/// What is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Who may do what in the cluster.
    Root(Root),
    /// A ticket key may admit hosts.
    Invite(Invite),
    /// A host is a member.
    Admit(Admit),
    /// Something said before no longer holds.
    Revoke(Revoke),
    /// A tag of an artifact means this manifest.
    Publish(Publish),
    /// Somebody measured an artifact.
    Evaluate(Evaluate),
    /// The gate weighed an artifact.
    Verdict(Verdict),
    /// What a namespace or an artifact asks of candidates.
    Policy(SetPolicy),
    /// Somebody agrees to a promotion.
    Approve(OnChannel<Approval>),
    /// A manifest is to become a channel's head.
    Promote(OnChannel<Promotion>),
    /// A witness has checked a promotion.
    Cosign(OnChannel<Cosignature>),
    /// A channel's head is bad.
    Rollback(OnChannel<Rollback>),
    /// Hosts keep what a stage runs.
    Follow(Follow),
    /// A kind, or a version of a kind, that this release does not know: kept and passed on, without effect.
    Unknown {
        /// The full predicate type.
        predicate_type: String,
    },
}

/// What a key can be trusted with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Roots, invites, admissions, revocations.
    Admin,
    /// Publishes.
    Publisher,
    /// Evaluations and verdicts.
    Evaluator,
    /// Approvals, promotions, rollbacks.
    Promoter,
    /// Cosignatures of promotions.
    Witness,
}

impl Role {
    /// All roles.
    pub const ALL: [Role; 5] = [Role::Admin, Role::Publisher, Role::Evaluator, Role::Promoter, Role::Witness];

    /// The lower-case name.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Admin => "admin",
            Role::Publisher => "publisher",
            Role::Evaluator => "evaluator",
            Role::Promoter => "promoter",
            Role::Witness => "witness",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Role {
    type Err = StatementError;

    fn from_str(s: &str) -> Result<Self, StatementError> {
        Self::ALL.into_iter().find(|role| role.as_str() == s).ok_or_else(|| StatementError::Body {
            reason: format!("`{s}` is no role; there are admin, publisher, evaluator, promoter, witness"),
        })
    }
}

/// Who holds a role, and over which namespaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleSpec {
    /// The keys that hold it.
    pub keys: BTreeSet<KeyId>,
    /// How many different ones of them must sign, from 1.
    pub threshold: u32,
    /// Where it counts.
    pub namespaces: Vec<NamespaceGlob>,
    /// Whether any admitted host may act in it with its own key. Has a meaning for publishers only.
    #[serde(default)]
    pub members: bool,
}

/// Who may do what, in the manner of TUF. Version n+1 needs the admin thresholds of n and of n+1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// 1 for the first, then one more each.
    pub version: u32,
    /// The root before; `None` exactly in version 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prev_root: Option<StatementId>,
    /// The cluster's name, for people.
    pub name: String,
    /// Roles; a role that is absent is held by nobody.
    pub roles: BTreeMap<Role, RoleSpec>,
    /// When a new root is due.
    pub expires: UnixTime,
    /// Per author, the last place of its chain that is judged by the roots before this one. Without it a rotation
    /// would either undo all that a retired key ever said, or let that key say more.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settled: BTreeMap<KeyId, u64>,
}

/// The holder of a ticket key may admit hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invite {
    /// The ephemeral key that the ticket carries.
    pub ticket: KeyId,
    /// Until when it admits.
    pub expires: UnixTime,
    /// How many hosts it admits; best effort while hosts cannot see each other.
    pub uses: u32,
    /// Longest admission that it gives, in seconds.
    pub admit_secs_max: u64,
    /// Labels of the hosts that it admits; these win over what a host says of itself.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: Labels,
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// A host is a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admit {
    /// The host's key.
    pub host: KeyId,
    /// The host's name, for people; nothing makes it unique.
    pub name: String,
    /// The host's labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: Labels,
    /// Until when.
    pub expires: UnixTime,
    /// The invite whose ticket key signs this; without it an admin signs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invite: Option<StatementId>,
}

/// Something said before no longer holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoke {
    /// What.
    pub target: Target,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// What a revocation is aimed at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// A host is no longer a member, and what this key publishes no longer counts.
    Key {
        /// The key.
        key: KeyId,
        /// Publishes by it at or after this time are void; without it, the time of the revocation. 0 voids all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        since: Option<UnixTime>,
    },
    /// An invite admits no more, and what it admitted is undone but for a list.
    Invite {
        /// The invite.
        id: StatementId,
        /// Admissions by it that stay.
        #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
        keep: BTreeSet<StatementId>,
    },
    /// One statement of any other kind. Roots and revocations cannot be revoked.
    Statement {
        /// The statement.
        id: StatementId,
    },
}

/// A tag of an artifact means this manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// `ns/name`.
    pub artifact: Artifact,
    /// The tag.
    pub tag: Tag,
    /// The manifest. It is the statement's subject.
    pub manifest: ManifestDigest,
    /// Sum of the files' sizes, in bytes.
    pub total_bytes: u64,
}

impl Statement {
    /// What must hold for a statement alone, without knowing any other.
    pub(super) fn check_form(&self) -> Result<(), &'static str> {
        let first_root = matches!(&self.kind, Kind::Root(root) if root.version == 1);
        if first_root != self.cluster.is_none() {
            return Err("every statement but the first root names its cluster");
        }
        match (&self.kind, self.chain) {
            (Kind::Unknown { .. }, _) => {}
            (kind, chain) if kind.is_chained() != chain.is_some() => {
                return Err(if chain.is_some() {
                    "this kind must not name a place in its author's chain"
                } else {
                    "this kind must name its place in its author's chain"
                });
            }
            _ => {}
        }
        if self.chain.is_some_and(|c| (c.seq == 0) != c.prev.is_none()) {
            return Err("the first of a chain names none before it, and every other names one");
        }
        match &self.kind {
            Kind::Root(root) => root.check_form(),
            Kind::Invite(invite) => {
                labels(&invite.labels)?;
                text(&invite.note, NOTE_LEN_MAX, "its note is too long or holds control characters")
            }
            Kind::Admit(admit) => {
                labels(&admit.labels)?;
                text(&admit.name, LABEL_LEN_MAX, "the host's name is too long or holds control characters")
            }
            Kind::Revoke(revoke) => {
                if matches!(&revoke.target, Target::Invite { keep, .. } if keep.len() > KEEP_MAX) {
                    return Err("it keeps more admissions than one statement may list");
                }
                text(&revoke.reason, NOTE_LEN_MAX, "its reason is too long or holds control characters")
            }
            Kind::Evaluate(said) => said.findings.check_form(),
            Kind::Verdict(said) => said.ruling.check_form(),
            Kind::Policy(policy) => policy.check_form(),
            Kind::Approve(said) => said.check_form(),
            Kind::Promote(said) => said.check_form(),
            Kind::Cosign(said) => said.check_form(),
            Kind::Rollback(said) => said.check_form(),
            Kind::Follow(follow) => labels(&follow.on),
            Kind::Publish(_) | Kind::Unknown { .. } => Ok(()),
        }
    }
}

impl Kind {
    /// The artifact that it speaks of: of what is published, measured, judged, approved, promoted, cosigned, rolled
    /// back or followed. These stand in no chain.
    pub fn artifact(&self) -> Option<&Artifact> {
        match self {
            Kind::Publish(said) => Some(&said.artifact),
            Kind::Evaluate(said) => Some(&said.artifact),
            Kind::Verdict(said) => Some(&said.artifact),
            Kind::Follow(said) => Some(&said.artifact),
            kind => kind.channel().map(|channel| &channel.artifact),
        }
    }

    /// The channel that it speaks of.
    pub fn channel(&self) -> Option<&Channel> {
        match self {
            Kind::Approve(said) => Some(&said.channel),
            Kind::Promote(said) => Some(&said.channel),
            Kind::Cosign(said) => Some(&said.channel),
            Kind::Rollback(said) => Some(&said.channel),
            _ => None,
        }
    }

    /// The namespace of [`artifact`](Self::artifact).
    pub fn namespace(&self) -> Option<&str> {
        self.artifact().map(Artifact::namespace)
    }

    /// `https://weighlock.dev/<kind>/v1`.
    pub fn predicate_type(&self) -> String {
        let name = match self {
            Kind::Root(_) => "root",
            Kind::Invite(_) => "invite",
            Kind::Admit(_) => "admit",
            Kind::Revoke(_) => "revoke",
            Kind::Publish(_) => "publish",
            Kind::Evaluate(_) => "evaluate",
            Kind::Verdict(_) => "verdict",
            Kind::Policy(_) => "policy",
            Kind::Approve(_) => "approve",
            Kind::Promote(_) => "promote",
            Kind::Cosign(_) => "cosign",
            Kind::Rollback(_) => "rollback",
            Kind::Follow(_) => "follow",
            Kind::Unknown { predicate_type } => return predicate_type.clone(),
        };
        format!("{PREDICATE_PREFIX}{name}/v1")
    }

    /// Whether it takes a place in its author's chain. For unknown kinds the statement itself tells.
    pub fn is_chained(&self) -> bool {
        match self {
            Kind::Root(_) | Kind::Invite(_) | Kind::Revoke(_) | Kind::Policy(_) => true,
            Kind::Admit(admit) => admit.invite.is_none(),
            // Parallel jobs share a key, and whoever rolls back at night does so on the side of a partition where
            // the host is: a place in a chain would make theft of both. What moves heads names what it replaces.
            Kind::Publish(_)
            | Kind::Evaluate(_)
            | Kind::Verdict(_)
            | Kind::Approve(_)
            | Kind::Promote(_)
            | Kind::Cosign(_)
            | Kind::Rollback(_)
            | Kind::Follow(_)
            | Kind::Unknown { .. } => false,
        }
    }
}

impl Root {
    /// Whether it names `key` in a role.
    pub fn names(&self, key: &KeyId) -> bool {
        self.roles.values().any(|role| role.keys.contains(key))
    }

    fn check_form(&self) -> Result<(), &'static str> {
        if self.version == 0 || (self.version == 1) != self.prev_root.is_none() {
            return Err("version 1 names no root before it, and every later version names one");
        }
        text(&self.name, LABEL_LEN_MAX, "the cluster's name is too long or holds control characters")?;
        if self.roles.get(&Role::Admin).is_none_or(|admin| admin.keys.is_empty()) {
            return Err("it has no admin");
        }
        if self.settled.len() > SETTLED_MAX {
            return Err("it settles more authors than one root may");
        }
        for role in self.roles.values() {
            if role.keys.len() > ROLE_ENTRIES_MAX || role.namespaces.len() > ROLE_ENTRIES_MAX {
                return Err("a role has more keys or namespaces than are accepted");
            }
            let threshold = usize::try_from(role.threshold).unwrap_or(usize::MAX);
            if threshold == 0 || (threshold > role.keys.len() && !role.keys.is_empty()) {
                return Err("the threshold of a role lies outside 1 to the number of its keys");
            }
        }
        Ok(())
    }
}

impl RoleSpec {
    /// Whether the role covers `namespace`.
    pub fn covers(&self, namespace: &str) -> bool {
        self.namespaces.iter().any(|glob| glob.matches(namespace))
    }

    /// Whether enough different holders are among `signers`.
    pub fn met_by<'a>(&self, signers: impl IntoIterator<Item = &'a KeyId>) -> bool {
        let holders: BTreeSet<&KeyId> = signers.into_iter().filter(|k| self.keys.contains(k)).collect();
        holders.len() >= usize::try_from(self.threshold).unwrap_or(usize::MAX)
    }
}

/// Names and notes reach terminals, so control characters stay out.
pub(super) fn text(s: &str, len_max: usize, error: &'static str) -> Result<(), &'static str> {
    if s.len() > len_max || s.chars().any(char::is_control) {
        return Err(error);
    }
    Ok(())
}

fn labels(labels: &Labels) -> Result<(), &'static str> {
    if labels.len() > LABELS_MAX {
        return Err("it has too many labels");
    }
    for (key, value) in labels {
        for part in [key, value] {
            text(part, LABEL_LEN_MAX, "a label is too long or holds control characters")?;
        }
    }
    Ok(())
}
