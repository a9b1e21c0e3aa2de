//! Evidence at the command line's door: keeping reports, and telling what was said of an artifact.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use weighlock_cache::{ImportOptions, inspect};
use weighlock_protocol::statement::{Channel, Said};
use weighlock_protocol::{KeyId, ManifestDigest, Reference};

use super::room::with_room;
use crate::cluster::now;
use crate::daemon::Node;
use crate::error::{Error, Result};
use crate::local::message::{KeptEvidence, SaidRow, StageRow, Weighed};
use crate::weigh::report::{LOG_FILE, REPORT_FILE, SAMPLES_FILE, SOURCE_FILE};

const RAISE: &str = "raise limits.evidence_bytes_max in its configuration";

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
    let (bytes, most) = (plan.total_bytes(), node.config.limits.evidence_bytes_max);
    if bytes > most {
        return Err(Error::invalid(format!("{bytes} bytes of evidence are more than {most}")).hint(RAISE));
    }
    let never = AtomicBool::new(false);
    let import = || node.store.import(&plan, &ImportOptions::default(), &|_| {}, &never);
    let staged = with_room(node, bytes, &never, import).map_err(Error::from)?;
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
    let stages = ledger.channels_of(&parsed.artifact).into_iter().filter_map(|channel| {
        let Channel { artifact, stage, hardware } = &channel;
        let head = ledger.heads_of(artifact).any(|head| head.channel == channel && head.manifest == digest);
        let was = ledger.was_head(&channel, &digest);
        (head || was).then(|| StageRow { stage: *stage, hardware: hardware.clone(), head })
    });
    let stages: Vec<StageRow> = stages.collect();
    Ok(Weighed {
        stages,
        cluster: node.cluster,
        artifact: parsed.artifact.clone(),
        reference: parsed.to_string(),
        digest,
        evaluations: evaluations.collect(),
        verdicts: verdicts.collect(),
        hardware: hardware.into_iter().collect(),
    })
}

/// Before any of its files is fetched: whether a manifest is evidence, and as large as was signed.
///
/// # Errors
/// No evaluation that counts has its report there, nobody has the manifest, or its size is another one or too much.
pub(super) async fn check(node: &Node, digest: ManifestDigest) -> Result<()> {
    let (said, is_artifact) = {
        let ledger = node.facts.ledger();
        (ledger.evidence_sizes(&digest), ledger.publishes_of(&digest).next().is_some())
    };
    if is_artifact {
        // Else whoever may evaluate anywhere could open anything as evidence of it.
        return Err(Error::refused(format!("{digest} is published as an artifact, so it is no evidence"))
            .hint("open it by its name"));
    }
    if said.is_empty() {
        return Err(Error::not_found(format!("{digest} holds no report of an evaluation that counts"))
            .hint("`weighlock evidence REF` lists those of an artifact"));
    }
    let manifest = node.fetcher.manifest(digest).await?;
    check_size(&digest, manifest.total_bytes(), &said, node.config.limits.evidence_bytes_max)
}

fn check_size(digest: &ManifestDigest, bytes: u64, said: &BTreeSet<u64>, most: u64) -> Result<()> {
    if !said.contains(&bytes) {
        let said: Vec<String> = said.iter().map(u64::to_string).collect();
        return Err(Error::integrity(format!(
            "the evidence {digest} has {bytes} bytes, but what was signed says {}",
            said.join(" or ")
        ))
        .hint("an admin can revoke that evaluation; evaluate again"));
    }
    if bytes > most {
        return Err(Error::refused(format!(
            "the evidence {digest} has {bytes} bytes, and this host takes at most {most}"
        ))
        .hint(RAISE));
    }
    Ok(())
}

fn row<B, T>(said: Said<B>, part: impl FnOnce(B) -> T) -> SaidRow<T> {
    SaidRow { id: said.id, by: said.by, time: said.time.0, said: part(said.body) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn evidence_is_as_large_as_was_signed_and_no_larger_than_is_taken() {
        let digest = ManifestDigest([7; 32]);
        let check = |bytes, said: &[u64], most| {
            check_size(&digest, bytes, &said.iter().copied().collect(), most).map_err(|e| (e.kind, e.message))
        };
        assert_eq!(check(10, &[10], 10), Ok(()));
        assert_eq!(check(10, &[9, 10], 10), Ok(()), "one of them was right");
        let (kind, message) = check(11, &[9, 10], 100).expect_err("another size");
        assert_eq!(kind, Kind::Integrity);
        assert!(message.contains("has 11 bytes, but what was signed says 9 or 10"), "{message}");
        let (kind, message) = check(11, &[11], 10).expect_err("too large");
        assert_eq!(kind, Kind::Refused);
        assert!(message.contains("has 11 bytes, and this host takes at most 10"), "{message}");
    }
}
