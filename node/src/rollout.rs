//! What hosts tell each other of an artifact's rollout: which heads they have heard of, and what is open there.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use weighlock_cache::Store;
use weighlock_protocol::{Artifact, KeyId, ManifestDigest, Reference, Selector, Stage, StatementId};

use crate::facts::Facts;
use crate::follow;
use crate::loader::Leases;
use crate::net::control::ControlHandle;

/// The question, one of those about a host itself; the audit log has the others.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    rollout: Artifact,
}

/// What one host tells of an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Told {
    /// What made its heads.
    pub(crate) heads: BTreeSet<StatementId>,
    /// What loaders have open there, of this artifact.
    pub(crate) open: BTreeSet<ManifestDigest>,
    /// Heads of it that are whole there; `None` from an older release.
    #[serde(default)]
    pub(crate) holds: Option<BTreeSet<ManifestDigest>>,
    /// Its stages that somebody there told it to follow.
    #[serde(default)]
    pub(crate) follows: BTreeSet<Stage>,
}

/// The artifact that a question is about, if it is such a question.
pub(crate) fn question(bytes: &[u8]) -> Option<Artifact> {
    serde_json::from_slice::<Question>(bytes).ok().map(|question| question.rollout)
}

/// The answer to it.
pub(crate) fn answer(facts: &Facts, store: &Store, leases: &Leases, artifact: &Artifact) -> Vec<u8> {
    serde_json::to_vec(&tell(facts, store, leases, artifact)).unwrap_or_default()
}

/// What this host tells. Blocks on the disk.
pub(crate) fn tell(facts: &Facts, store: &Store, leases: &Leases, artifact: &Artifact) -> Told {
    // Before the ledger is locked: what is whole is read from the disk.
    let manifests: BTreeSet<ManifestDigest> =
        facts.ledger().heads_of(artifact).map(|head| head.manifest).collect();
    let is_whole = |digest: &ManifestDigest| {
        let manifest = crate::facts::manifest(store, digest).ok().flatten();
        manifest.is_some_and(|manifest| store.manifest_complete(&manifest).unwrap_or(false))
    };
    let holds = manifests.into_iter().filter(is_whole).collect();
    let told = follow::told(store).unwrap_or_default();
    let references = told.iter().filter_map(|text| text.parse::<Reference>().ok());
    let follows = references.filter(|reference| reference.artifact == *artifact);
    let follows = follows.filter_map(|reference| match reference.selector {
        Selector::Stage(stage) => Some(stage),
        _ => None,
    });
    let ledger = facts.ledger();
    let of_it = |digest: &ManifestDigest| {
        ledger.publishes_of(digest).any(|published| published.publish.artifact == *artifact)
    };
    Told {
        heads: ledger.heads_of(artifact).map(|head| head.statement).collect(),
        open: leases.open().into_keys().filter(of_it).collect(),
        holds: Some(holds),
        follows: follows.collect(),
    }
}

/// Asks another member; `None` if it does not tell.
pub(crate) async fn ask(control: &ControlHandle, host: KeyId, artifact: &Artifact) -> Option<Told> {
    let question = serde_json::to_vec(&Question { rollout: artifact.clone() }).ok()?;
    let answer = control.request_audit(host, question).await.ok()?;
    serde_json::from_slice(&answer).ok()
}
