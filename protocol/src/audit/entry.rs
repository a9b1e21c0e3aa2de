//! What a line of the audit log says.

use serde::{Deserialize, Serialize};

use super::checkpoint::SignedCheckpoint;
use crate::id::{ClusterId, KeyId, ManifestDigest, StatementId};

/// Longest text that comes from outside (a reference, the name of a process, what a client says of itself), in
/// characters.
pub const TEXT_CHARS_MAX: usize = 256;
/// Longest reason, in characters.
pub const REASON_CHARS_MAX: usize = 512;

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// The daemon started. What was open before it died is closed by the lines before this one.
    Start {
        /// Software version.
        version: String,
    },
    /// The daemon stopped in order.
    Stop {},
    /// An artifact was opened; it stays open until a [`Closed`] of the same session and digest.
    Open(Entry),
    /// A copy was handed out, or a directory that stays readable: nothing tells how long it is used.
    Taken(Entry),
    /// An artifact was not opened.
    Refused(Entry),
    /// An artifact is open no more.
    Close(Closed),
    /// Events that could not be written, for want of space as a rule.
    Gap(Gap),
    /// The first line of a file.
    Segment(Segment),
    /// The host's signature over everything before.
    Checkpoint {
        /// A DSSE envelope of a [`Checkpoint`](super::Checkpoint).
        envelope: SignedCheckpoint,
    },
    /// Something that a later release writes.
    #[serde(other)]
    Other,
}

/// Who got what, or did not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Number of the connection, unique in the log of a host.
    pub session: u64,
    /// The reference as it was asked for.
    pub reference: String,
    /// What it meant, where it meant something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<ManifestDigest>,
    /// Where it was asked.
    pub door: Door,
    /// Who asked.
    #[serde(flatten)]
    pub caller: Caller,
    /// Why it was allowed; none where it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grounds: Option<Grounds>,
    /// Why it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Set where a new file repeats an open that goes on: when it was opened, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<u64>,
}

/// A process, as the kernel tells of it at the moment that it connects, and as it tells of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Caller {
    /// User id (SO_PEERCRED).
    pub uid: Option<u32>,
    /// Group id (SO_PEERCRED).
    pub gid: Option<u32>,
    /// Process id as the daemon sees it; none across process namespaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Name of the process (`/proc/PID/comm`, 15 bytes at most).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
    /// Uid of its Kubernetes pod, out of its control group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Id of its container, out of its control group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// What it says of itself, such as `weighlock-python 0.1.0 vllm 0.6.3`. Nothing proves it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
}

/// A way by which bytes leave a daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Door {
    /// `loader.sock`: descriptors, for as long as the connection lasts.
    Loader,
    /// `weighlock pull`: a copy.
    Pull,
    /// `weighlock path` and commands that read files as it does: a directory.
    #[default]
    Path,
    /// `weighlock eval`: a directory, for an evaluator.
    Eval,
    /// The report of an evaluation, for a command that weighs.
    Evidence,
    /// One that a later release has.
    #[serde(other)]
    Other,
}

impl Door {
    /// Its name, as in the log.
    pub fn name(self) -> &'static str {
        match self {
            Door::Loader => "loader",
            Door::Pull => "pull",
            Door::Path => "path",
            Door::Eval => "eval",
            Door::Evidence => "evidence",
            Door::Other => "other",
        }
    }
}

/// Why an artifact may be opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Grounds {
    /// Its namespace has no policy.
    Ungated,
    /// It is, or was, the head of a channel.
    Promoted {
        /// The promotion.
        statement: StatementId,
        /// The name of the channel's stage.
        stage: String,
        /// The channel's hardware key.
        hardware: String,
    },
    /// An evaluator may open candidates.
    Evaluator {
        /// Its key.
        key: KeyId,
    },
    /// The policy lets this through without evidence.
    Exempt {
        /// The policy's statement.
        statement: StatementId,
    },
}

/// An end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closed {
    /// As in the [`Entry`].
    pub session: u64,
    /// As in the [`Entry`].
    pub digest: ManifestDigest,
    /// The reference by which it was opened first.
    pub reference: String,
    /// `closed`, `socket closed`, `daemon stopped`, or one of these with `(written late)`.
    pub reason: String,
}

/// What is missing here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// Events that were not written.
    pub lost: u64,
    /// When the first was lost, in milliseconds since 1970.
    pub from_ms: u64,
    /// When the last was lost.
    pub until_ms: u64,
    /// What the system said.
    pub reason: String,
}

/// The beginning of a file. Whatever is still open is repeated right after it, so that a file tells by itself what was
/// open at any time within it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// The cluster.
    pub cluster: ClusterId,
    /// The host that writes.
    pub host: KeyId,
    /// Number of the oldest line that the host keeps at this time: what is older went by its limits.
    pub kept_from: u64,
    /// Opens that go on and are repeated.
    pub carried: u64,
    /// Opens that go on and are not, for want of room.
    pub not_carried: u64,
}

impl Event {
    /// What was opened, taken or refused.
    pub fn entry(&self) -> Option<&Entry> {
        match self {
            Event::Open(entry) | Event::Taken(entry) | Event::Refused(entry) => Some(entry),
            _ => None,
        }
    }
}

/// A text from outside as the log takes it: control characters replaced, cut to `chars_max` characters.
pub fn bounded(text: &str, chars_max: usize) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(chars_max).collect()
}
