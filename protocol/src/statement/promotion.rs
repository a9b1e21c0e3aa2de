//! What moves a channel's head: policies, approvals, promotions, cosignatures and rollbacks.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::body::{LABEL_LEN_MAX, Labels, NOTE_LEN_MAX, text};
use crate::id::{ManifestDigest, Sha256, StatementId};
use crate::names::{Artifact, NAME_LEN_MAX, NameError, Stage};

/// Largest text of a policy that a statement carries, in bytes.
pub const POLICY_TEXT_BYTES_MAX: usize = 64 << 10;
/// Most verdicts that a promotion rests on.
pub const VERDICTS_MAX: usize = 64;
/// The hardware key of what is the same on all hardware.
pub const HARDWARE_ANY: &str = "any";

/// Where a head stands: one stage of an artifact, on one kind of hardware.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Channel {
    /// `ns/name`.
    pub artifact: Artifact,
    /// The stage.
    pub stage: Stage,
    /// Hardware key: vendor/arch, or [`HARDWARE_ANY`].
    pub hardware: String,
}

/// What a policy is for. The narrower one wins.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Every artifact of a namespace that has no policy of its own.
    Namespace(String),
    /// One artifact.
    Artifact(Artifact),
}

/// The policy of a scope from now on. Versions form a chain of their own, so that two admins who set one at the same
/// time are noticed: neither is then in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetPolicy {
    /// For what.
    pub scope: Scope,
    /// 1 for the first of the scope, then one more each.
    pub version: u32,
    /// The policy statement that it replaces; `None` exactly in version 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<StatementId>,
    /// Digest of what the text says ([`Policy::digest`](crate::gate::Policy::digest)).
    pub policy: Sha256,
    /// The text of `gate.toml`.
    pub text: String,
}

/// Something that is said of a manifest in a channel. The manifest is the statement's subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnChannel<T> {
    /// Where.
    pub channel: Channel,
    /// Of what.
    pub manifest: ManifestDigest,
    /// What.
    pub said: T,
}

/// A person agrees that the manifest becomes the head. Holds for this step only: another parent or policy needs
/// another approval.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    /// The head that it would replace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<StatementId>,
    /// Digest of the policy that asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Sha256>,
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// The manifest is to become the head.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promotion {
    /// The promotion or rollback that it replaces; `None` if the channel has had no head.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<StatementId>,
    /// Above the parent's, by one unless a vote was split; 1 for the first.
    pub epoch: u64,
    /// Version of the root whose promoters and witnesses it counts on.
    pub root: u32,
    /// Digest of the policy that it was made under; `None` where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Sha256>,
    /// The verdicts that it rests on.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub verdicts: BTreeSet<StatementId>,
    /// The promotion of the same manifest to the stage before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<StatementId>,
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// A witness has checked a promotion. It signs at most one for each channel, parent, epoch and root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cosignature {
    /// The promotion.
    pub promotion: StatementId,
    /// As the promotion says, so that two votes are a proof without the promotions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<StatementId>,
    /// As the promotion says.
    pub epoch: u64,
    /// As the promotion says.
    pub root: u32,
}

/// The manifest is bad: back to one that was good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollback {
    /// The head that it undoes, whose manifest is the statement's subject.
    pub over: StatementId,
    /// The earlier head whose manifest becomes the head again; `None` if no earlier one was good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<StatementId>,
    /// Version of the root whose promoters it counts on.
    pub root: u32,
    /// Why, for people.
    pub reason: String,
}

impl SetPolicy {
    pub(super) fn check_form(&self) -> Result<(), &'static str> {
        if self.version == 0 || (self.version == 1) != self.replaces.is_none() {
            return Err("version 1 of a policy replaces none, and every later version replaces one");
        }
        if self.text.len() > POLICY_TEXT_BYTES_MAX {
            return Err("its policy is too long");
        }
        Ok(())
    }
}

/// Hosts with these labels keep what a stage runs and what is about to. Of several rules with the same labels the
/// newest counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Follow {
    /// `ns/name`.
    pub artifact: Artifact,
    /// The stage.
    pub stage: Stage,
    /// Labels that a host must have, all of them; every host if empty.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub on: Labels,
    /// Whether they no longer do.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stop: bool,
}

impl Channel {
    fn check_form(&self) -> Result<(), &'static str> {
        if is_hardware_key(&self.hardware) {
            Ok(())
        } else {
            Err("its hardware key is not vendor/arch or `any`")
        }
    }
}

impl OnChannel<Approval> {
    pub(super) fn check_form(&self) -> Result<(), &'static str> {
        self.channel.check_form()?;
        text(&self.said.note, NOTE_LEN_MAX, "its note is too long or holds control characters")
    }
}

impl OnChannel<Promotion> {
    pub(super) fn check_form(&self) -> Result<(), &'static str> {
        self.channel.check_form()?;
        if self.said.epoch == 0 || self.said.root == 0 {
            return Err("epochs and roots count from 1");
        }
        if self.said.verdicts.len() > VERDICTS_MAX {
            return Err("it rests on more verdicts than are accepted");
        }
        text(&self.said.note, NOTE_LEN_MAX, "its note is too long or holds control characters")
    }
}

impl OnChannel<Cosignature> {
    pub(super) fn check_form(&self) -> Result<(), &'static str> {
        self.channel.check_form()?;
        if self.said.epoch == 0 || self.said.root == 0 {
            Err("epochs and roots count from 1")
        } else {
            Ok(())
        }
    }
}

impl OnChannel<Rollback> {
    pub(super) fn check_form(&self) -> Result<(), &'static str> {
        self.channel.check_form()?;
        if self.said.root == 0 {
            return Err("roots count from 1");
        }
        text(&self.said.reason, NOTE_LEN_MAX, "its reason is too long or holds control characters")
    }
}

/// Whether `key` is `vendor/arch` or `any`, in the letters that such keys have.
pub fn is_hardware_key(key: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    key.len() <= LABEL_LEN_MAX
        && (key == HARDWARE_ANY
            || key.split_once('/').is_some_and(|(vendor, arch)| part(vendor) && part(arch)))
}

impl Scope {
    /// The namespace that it is, or lies in.
    pub fn namespace(&self) -> &str {
        match self {
            Scope::Namespace(namespace) => namespace,
            Scope::Artifact(artifact) => artifact.namespace(),
        }
    }

    /// Whether `artifact` is in it.
    pub fn covers(&self, artifact: &Artifact) -> bool {
        match self {
            Scope::Namespace(namespace) => artifact.namespace() == namespace,
            Scope::Artifact(one) => one == artifact,
        }
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{} on {}", self.artifact, self.stage, self.hardware)
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scope::Namespace(namespace) => f.write_str(namespace),
            Scope::Artifact(artifact) => artifact.fmt(f),
        }
    }
}

impl FromStr for Scope {
    type Err = NameError;

    /// `ns` or `ns/name`.
    fn from_str(s: &str) -> Result<Self, NameError> {
        if s.contains('/') || s.len() > NAME_LEN_MAX {
            return s.parse().map(Scope::Artifact);
        }
        // A namespace is whatever may stand before a name.
        let artifact: Artifact = format!("{s}/x").parse()?;
        Ok(Scope::Namespace(artifact.namespace().to_owned()))
    }
}

impl Serialize for Scope {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Scope {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}
