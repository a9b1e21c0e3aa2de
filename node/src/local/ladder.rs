//! What the daemon tells of policies, promotions and heads, and what it drafts for people to sign.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use weighlock_protocol::Stage;
use weighlock_protocol::statement::Role;
use weighlock_protocol::{Artifact, ClusterId, KeyId, ManifestDigest, Sha256, StatementId};

/// Something that a person may sign.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum DraftOf {
    /// A policy.
    Policy {
        /// `ns` or `ns/name`.
        scope: String,
        /// The text of `gate.toml`.
        text: String,
    },
    /// A promotion, one for each kind of hardware with a passing verdict unless one is named.
    Promote {
        /// What.
        reference: String,
        /// Where to.
        to: Stage,
        /// For which hardware.
        hardware: Option<String>,
        /// For people.
        note: String,
    },
    /// An approval of the same.
    Approve {
        /// What.
        reference: String,
        /// Where to.
        to: Stage,
        /// For which hardware.
        hardware: Option<String>,
        /// For people.
        note: String,
    },
    /// A rollback of the head of a stage, on every kind of hardware that has the same head.
    Rollback {
        /// `ns/name` or `ns/name:stage`.
        name: String,
        /// For which hardware.
        hardware: Option<String>,
        /// Back to this reference; to the last good head if it is not said.
        to: Option<String>,
        /// What is bad; the head, whatever it is, if it is not said.
        #[serde(default)]
        bad: Option<String>,
        /// Whether a head that was rolled back to is meant.
        #[serde(default)]
        again: bool,
        /// Why.
        reason: String,
    },
    /// A rule that hosts follow a channel.
    Follow {
        /// `ns/name:stage`.
        reference: String,
        /// Labels that they must have, all of them.
        on: BTreeMap<String, String>,
        /// Whether they no longer do.
        stop: bool,
    },
    /// The next root.
    Root {
        /// What is other in it.
        change: RootChange,
    },
}

/// What a new root changes.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "kebab-case")]
pub enum RootChange {
    /// Keys get a role.
    Grant {
        /// The role.
        role: Role,
        /// Keys, or names of hosts.
        keys: Vec<String>,
        /// Where the whole role counts from now on; as before if empty.
        namespaces: Vec<String>,
    },
    /// Keys lose a role.
    Remove {
        /// The role.
        role: Role,
        /// Keys, or names of hosts.
        keys: Vec<String>,
    },
    /// How many must sign.
    Threshold {
        /// The role.
        role: Role,
        /// How many.
        threshold: u32,
    },
    /// Only a later expiry.
    Renew,
}

/// What to sign.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Drafted {
    /// One statement each.
    pub items: Vec<DraftItem>,
}

/// One statement that nobody has signed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DraftItem {
    /// The payload to sign, JSON.
    pub payload: String,
    /// What it is about, for people: a channel, a scope.
    pub about: String,
    /// What it makes the head, or approves.
    pub digest: Option<ManifestDigest>,
    /// What is the head now.
    pub replaces: Option<ManifestDigest>,
    /// What it lacks to take effect, beside cosignatures.
    pub lacks: Vec<String>,
    /// Whether it may be signed all the same: it lacks nothing that cannot come later.
    pub waits: bool,
    /// A statement that says the same and stands or waits already.
    pub same: Option<StatementId>,
    /// What the signer should know.
    pub warnings: Vec<String>,
    /// Hosts that hold all of what becomes the head.
    pub holders: usize,
}

/// Answer to [`Standing`](crate::local::message::AdminRequest::Standing).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Standing {
    /// The statement.
    pub statement: StatementId,
    /// What it does.
    pub status: StandingKind,
    /// Why it has no effect, or not yet.
    pub why: Vec<String>,
    /// Of a promotion.
    pub ballot: Option<Ballot>,
}

/// What a statement does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StandingKind {
    /// It counts.
    Effective,
    /// It waits.
    Pending,
    /// It does not count.
    Ignored,
    /// It is not here.
    Unknown,
}

/// How far the witnesses of a promotion are.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ballot {
    /// Hosts that have cosigned, by name or key.
    pub cosigned: Vec<String>,
    /// Witnesses that have not.
    pub missing: Vec<String>,
    /// How many it takes.
    pub needed: u32,
}

/// Answer to [`Ladder`](crate::local::message::AdminRequest::Ladder).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LadderStatus {
    /// The artifact.
    pub artifact: Artifact,
    /// This host's hardware key.
    pub hardware: String,
    /// Its policy; none if it is ungated.
    pub policy: Option<PolicyInfo>,
    /// Its heads, lowest stage first.
    pub heads: Vec<HeadInfo>,
    /// Promotions that wait.
    pub pending: Vec<PendingRow>,
}

/// A policy that holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PolicyInfo {
    /// For what it was set.
    pub scope: String,
    /// Its statement, while one is in force.
    pub statement: Option<StatementId>,
    /// Its version.
    pub version: Option<u32>,
    /// Its digest.
    pub digest: Option<Sha256>,
    /// What it asks for, for people.
    pub text: String,
}

/// A head.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HeadInfo {
    /// The stage.
    pub stage: Stage,
    /// The hardware key.
    pub hardware: String,
    /// What.
    pub digest: ManifestDigest,
    /// Its tags.
    pub tags: Vec<String>,
    /// The promotion or rollback.
    pub statement: StatementId,
    /// Counts moves of the channel.
    pub epoch: u64,
    /// Since when, Unix seconds.
    pub since: u64,
    /// Who promoted or rolled back.
    pub by: String,
    /// Whether it was rolled back to.
    pub rolled_back: bool,
    /// When it is due for renewal, Unix seconds.
    pub expires: Option<u64>,
    /// Why it does not open on this host, if it does not.
    pub closed: Option<String>,
}

/// A promotion that waits.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PendingRow {
    /// The promotion.
    pub statement: StatementId,
    /// Where to.
    pub stage: Stage,
    /// The hardware key.
    pub hardware: String,
    /// What.
    pub digest: ManifestDigest,
    /// Its tags.
    pub tags: Vec<String>,
    /// Who promotes.
    pub by: String,
    /// When, Unix seconds.
    pub time: u64,
    /// What it waits for.
    pub why: Vec<String>,
    /// Its witnesses.
    pub ballot: Option<Ballot>,
}

/// Answer to [`Log`](crate::local::message::AdminRequest::Log).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Logged {
    /// The artifact.
    pub artifact: Artifact,
    /// The heads at the time that was asked for.
    pub heads: Vec<LogHead>,
    /// What was said, oldest first, up to that time.
    pub events: Vec<LogEvent>,
}

/// A head at a time.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LogHead {
    /// The stage.
    pub stage: Stage,
    /// The hardware key.
    pub hardware: String,
    /// What.
    pub digest: ManifestDigest,
    /// Its tags.
    pub tags: Vec<String>,
    /// The promotion or rollback that made it.
    pub statement: StatementId,
    /// The verdicts that it rests on.
    pub verdicts: Vec<StatementId>,
    /// Digest of the policy that it was promoted under.
    pub policy: Option<Sha256>,
}

/// One statement about an artifact.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LogEvent {
    /// The statement.
    pub statement: StatementId,
    /// When, by the author's clock; Unix seconds.
    pub time: u64,
    /// The author's key.
    pub by: KeyId,
    /// Who that is, for people.
    pub who: String,
    /// `publish`, `promote`, ...
    pub kind: String,
    /// What it says, in words.
    pub text: String,
    /// Why it has no effect, if it has none.
    pub without_effect: Option<String>,
}

/// Answer to [`Keys`](crate::local::message::AdminRequest::Keys).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KeyRoles {
    /// The cluster.
    pub cluster: ClusterId,
    /// Version of the root in force.
    pub version: u32,
    /// When a new one is due, Unix seconds.
    pub expires: u64,
    /// Its roles.
    pub roles: BTreeMap<Role, RoleRow>,
    /// Names of the hosts among the keys.
    pub names: BTreeMap<KeyId, String>,
}

/// Who holds a role.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RoleRow {
    /// Its keys.
    pub keys: Vec<KeyId>,
    /// How many must sign.
    pub threshold: u32,
    /// Where it counts.
    pub namespaces: Vec<String>,
    /// Whether every member holds it.
    pub members: bool,
}

/// Answer to [`Rollout`](crate::local::message::AdminRequest::Rollout).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RolloutHosts {
    /// Members, this host first.
    pub hosts: Vec<HostState>,
}

/// How far a host is with an artifact.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HostState {
    /// Its key.
    pub host: KeyId,
    /// Its name.
    pub name: String,
    /// Whether it is the host that answers.
    pub this_host: bool,
    /// Connected on the control plane.
    pub connected: bool,
    /// Whether it has the same heads as this host.
    pub heard: bool,
    /// Heads that it holds whole, as `version:stage`.
    pub holds: Vec<String>,
    /// Versions that loaders have open there; `None` if it does not tell.
    pub open: Option<Vec<String>>,
    /// Why it is not done, if it is not: the first reason of its stages.
    pub lags: Option<String>,
    /// How far it is with each stage that has a head for its hardware, lowest first.
    #[serde(default)]
    pub stages: Vec<HostStage>,
}

/// How far a host is with one stage.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HostStage {
    /// The stage.
    pub stage: Stage,
    /// The head for this host's hardware.
    pub digest: ManifestDigest,
    /// Whether the host has it as its head too.
    pub heard: bool,
    /// Whether it follows the channel.
    pub follows: bool,
    /// Whether it holds all of the head.
    pub holds: bool,
    /// Why it is not done, if it is not.
    pub lags: Option<String>,
}

/// Answer to [`Follow`](crate::local::message::AdminRequest::Follow).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Following {
    /// What this host follows.
    pub here: Vec<FollowedRow>,
    /// The rules of the cluster.
    pub rules: Vec<FollowRule>,
}

/// A channel that this host follows.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FollowedRow {
    /// `ns/name:stage`.
    pub channel: String,
    /// Whether a rule says so rather than somebody on this host.
    pub by_rule: bool,
}

/// A rule.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FollowRule {
    /// `ns/name:stage`.
    pub channel: String,
    /// Labels that a host must have, all of them.
    pub on: BTreeMap<String, String>,
}

/// What the head of a channel is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelHead {
    /// The channel.
    #[serde(rename = "ref")]
    pub reference: String,
    /// Its head.
    pub digest: Option<ManifestDigest>,
    /// The promotion or rollback that made it.
    pub statement: Option<StatementId>,
    /// Since when, Unix seconds by the signers' clocks.
    pub since: Option<u64>,
    /// Whether it was rolled back to.
    pub rolled_back: bool,
    /// Why it does not open on this host, if it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed: Option<String>,
}

impl ChannelHead {
    /// A channel without a head.
    pub(crate) fn none(reference: &weighlock_protocol::Reference) -> Self {
        Self {
            reference: reference.to_string(),
            digest: None,
            statement: None,
            since: None,
            rolled_back: false,
            closed: None,
        }
    }
}

/// What something is opened for.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(tag = "for", rename_all = "kebab-case")]
pub enum OpenFor {
    /// To be used.
    #[default]
    Use,
    /// To be used without evidence, where the policy allows that.
    Ungated,
    /// Only so that its contract is here; the answer names no place.
    Metadata,
    /// To be evaluated.
    Evaluation {
        /// An evaluator's signature over the digest, this host and the time (DSSE JSON as text).
        proof: String,
    },
}
