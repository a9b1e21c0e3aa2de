//! Evidence at the command line's door: keeping reports, and telling what was said of an artifact.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use weighlock_cache::{ImportOptions, inspect};
use weighlock_protocol::statement::Said;
use weighlock_protocol::{KeyId, ManifestDigest, Reference};

use crate::cluster::now;
use crate::daemon::Node;
use crate::error::{Error, Result};
use crate::local::message::{KeptEvidence, SaidRow, Weighed};
use crate::weigh::report::{LOG_FILE, REPORT_FILE, SAMPLES_FILE, SOURCE_FILE};

/// Most bytes of one report with its samples and log.
const EVIDENCE_BYTES_MAX: u64 = 4 << 30;

/// Blocking: imports a report's directory. Nothing speaks of it until the evaluator signs.
pub(super) fn add(node: &Node, reference: &str, path: &Path, by: &KeyId) -> Result<KeptEvidence> {
    let reference: Reference = reference.parse()?;
    let digest = node.facts.resolve(&reference)?;
    node.facts
        .ledger()
        .may_evaluate(by, reference.artifact.namespace(), now())
        .map_err(|e| Error::refused(e.to_string()))?;
    // What evidence consists of, and nothing else that the daemon may read.
    let include = [REPORT_FILE, SAMPLES_FILE, SOURCE_FILE, LOG_FILE].map(str::to_owned).to_vec();
    let plan = inspect::plan(path, &inspect::Options { include, ..inspect::Options::default() })
        .map_err(Error::from)?;
    if plan.total_bytes() > EVIDENCE_BYTES_MAX {
        let bytes = plan.total_bytes();
        return Err(Error::invalid(format!("{bytes} bytes of evidence are more than {EVIDENCE_BYTES_MAX}")));
    }
    let never = AtomicBool::new(false);
    let staged = node.store.import(&plan, &ImportOptions::default(), &|_| {}, &never).map_err(Error::from)?;
    let kept = KeptEvidence {
        cluster: node.cluster,
        artifact: reference.artifact,
        digest,
        evidence: staged.manifest().digest(),
        evidence_bytes: staged.manifest().total_bytes(),
    };
    node.facts.keep_evidence(staged)?;
    node.fetcher.note_change();
    Ok(kept)
}

/// What was said of an artifact.
pub(super) fn weighed(node: &Node, reference: &str) -> Result<Weighed> {
    let parsed: Reference = reference.parse()?;
    let digest = node.facts.resolve(&parsed)?;
    let records = node.control.host_records();
    let mut hardware: BTreeSet<String> =
        records.borrow().values().map(|known| known.record.hardware.clone()).collect();
    hardware.insert(node.hardware.clone());
    hardware.remove("");
    let ledger = node.facts.ledger();
    let evaluations = ledger
        .evaluations_of(&parsed.artifact, &digest)
        .into_iter()
        .map(|said| row(said, |body| body.findings));
    let verdicts =
        ledger.verdicts_on(&parsed.artifact, &digest).into_iter().map(|said| row(said, |body| body.ruling));
    Ok(Weighed {
        cluster: node.cluster,
        artifact: parsed.artifact.clone(),
        reference: parsed.to_string(),
        digest,
        evaluations: evaluations.collect(),
        verdicts: verdicts.collect(),
        hardware: hardware.into_iter().collect(),
    })
}

/// Whether a manifest holds the report of an evaluation that counts.
///
/// # Errors
/// It does not.
pub(super) fn check(node: &Node, digest: &ManifestDigest) -> Result<()> {
    if node.facts.ledger().is_evidence(digest) {
        return Ok(());
    }
    Err(Error::not_found(format!("{digest} holds no report of an evaluation that counts"))
        .hint("`weighlock evidence REF` lists those of an artifact"))
}

fn row<B, T>(said: Said<B>, part: impl FnOnce(B) -> T) -> SaidRow<T> {
    SaidRow { id: said.id, by: said.by, time: said.time.0, said: part(said.body) }
}
