//! What the control plane needs of the store and the ledger behind it.

use std::sync::Arc;

use weighlock_protocol::{KeyId, ManifestDigest, StatementId};

/// Statements and manifests as the control plane sees them: opaque bytes under ids.
///
/// Every method may block; all are called on blocking threads. Peers are admitted members, but what they
/// send is unverified until [`Backend::ingest`] or [`Backend::validate_gossip`] says otherwise.
///
/// A set of statements is split into up to 256 numbered buckets by a function of the id that all hosts
/// share. Two sets with equal summaries are equal.
pub trait Backend: Send + Sync + 'static {
    /// Summary of the whole statement set, at most
    /// [`SUMMARY_BYTES_MAX`](weighlock_protocol::wire::control::SUMMARY_BYTES_MAX).
    fn summary(&self) -> Vec<u8>;

    /// Buckets in which this host's set differs from the one that a peer summarised. The error says why
    /// the peer's bytes are no summary.
    fn differing(&self, summary: &[u8]) -> Result<Vec<u8>, String>;

    /// Ids of all statements in the given buckets, in any order.
    fn ids_in(&self, buckets: &[u8]) -> Vec<StatementId>;

    /// Exact bytes of the statements with these ids, in that order, those that are not here left out.
    fn statements(&self, ids: &[StatementId]) -> Vec<Vec<u8>>;

    /// Verifies and commits statements before it returns. Those already known are neither accepted nor
    /// refused.
    fn ingest(&self, from: KeyId, statements: Vec<Vec<u8>>) -> IngestReport;

    /// Whether a gossip message may be passed on: cheap checks only, nothing is stored. `manifest` came
    /// along with `statements` and should be named by one of them.
    fn validate_gossip(&self, from: KeyId, statements: &[Vec<u8>], manifest: Option<&[u8]>) -> Acceptance;

    /// Exact bytes of a manifest.
    fn manifest(&self, digest: &ManifestDigest) -> Option<Arc<[u8]>>;

    /// Takes a manifest that came along with statements that were accepted; keeps it if it is wanted.
    fn put_manifest(&self, from: KeyId, bytes: Vec<u8>);

    /// Answers a question about this host's audit log. Question and answer are JSON, opaque to the control plane; an
    /// answer over [`AUDIT_ANSWER_BYTES_MAX`](weighlock_protocol::wire::control::AUDIT_ANSWER_BYTES_MAX) is not sent.
    fn audit(&self, from: KeyId, query: &[u8]) -> Vec<u8>;
}

/// What became of a batch of statements.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IngestReport {
    /// How many were valid and new. They are committed.
    pub accepted: usize,
    /// Why some were refused as rubbish that no honest host would have sent. The sender is disconnected
    /// for a while, so statements that merely cannot be judged yet do not belong here.
    pub refused: Option<String>,
    /// Some could not be committed for a reason of this host's own, such as a full disk. They are to be asked for again,
    /// and not passed on.
    pub failed: bool,
}

/// Verdict over a gossip message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Acceptance {
    /// Take it in, and pass it on once it is committed.
    Accept,
    /// Neither store it nor pass it on; nobody is at fault.
    Ignore,
    /// Rubbish in every possible state of an honest host. Whoever passed it on is disconnected for a while.
    Reject,
}
