//! What the daemon tells of evaluations and verdicts.

use serde::{Deserialize, Serialize};
use weighlock_protocol::statement::{Findings, Ruling};
use weighlock_protocol::{Artifact, ClusterId, KeyId, ManifestDigest, Stage, StatementId};

/// Evidence that was taken in.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KeptEvidence {
    /// The cluster.
    pub cluster: ClusterId,
    /// The artifact that was evaluated.
    pub artifact: Artifact,
    /// Its manifest.
    pub digest: ManifestDigest,
    /// The manifest that holds report and samples.
    pub evidence: ManifestDigest,
    /// Sum of its files' sizes, in bytes.
    pub evidence_bytes: u64,
}

/// Answer to [`crate::local::message::AdminRequest::Manifest`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ManifestText {
    /// The exact bytes, which are JSON.
    pub manifest: String,
}

/// What was said of an artifact.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Weighed {
    /// The cluster.
    pub cluster: ClusterId,
    /// The artifact.
    pub artifact: Artifact,
    /// As it was asked for.
    pub reference: String,
    /// Its manifest.
    pub digest: ManifestDigest,
    /// Evaluations that count, by time.
    pub evaluations: Vec<SaidRow<Findings>>,
    /// Verdicts that count, by time.
    pub verdicts: Vec<SaidRow<Ruling>>,
    /// Stages whose head it is, or was, lowest first.
    #[serde(default)]
    pub stages: Vec<StageRow>,
    /// Hardware keys of the hosts that are members and tell theirs, this one included.
    pub hardware: Vec<String>,
}

/// A channel that an artifact heads, or headed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StageRow {
    /// The stage.
    pub stage: Stage,
    /// The hardware key.
    pub hardware: String,
    /// Whether it is the head now.
    pub head: bool,
}

/// One of them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SaidRow<T> {
    /// Its statement.
    pub id: StatementId,
    /// Its author.
    pub by: KeyId,
    /// When, by the author's clock; Unix seconds.
    pub time: u64,
    /// What it says.
    #[serde(flatten)]
    pub said: T,
}
