//! Verdicts as statements: ours, which a cluster folds, and in-toto's test result, which other tools read.

use serde_json::{Value, json};
use weighlock_protocol::gate::verdict::Finding;
use weighlock_protocol::gate::{Outcome, Severity, Verdict};
use weighlock_protocol::statement::body::NOTE_LEN_MAX;
use weighlock_protocol::statement::weighed::{self, LINES_MAX};
use weighlock_protocol::statement::{Envelope, Keypair, Kind, Ruling, Statement};
use weighlock_protocol::{Artifact, ClusterId, ManifestDigest, Sha256};

use super::side::Side;
use crate::cluster::now;
use crate::error::{Error, Result};

/// in-toto's predicate for test results (in-toto attestation framework, `test-result` v0.1).
const TEST_RESULT: &str = "https://in-toto.io/attestation/test-result/v0.1";

/// What a verdict is about, beside itself.
pub(crate) struct About<'a> {
    pub(crate) artifact: &'a Artifact,
    pub(crate) manifest: ManifestDigest,
    pub(crate) candidate: &'a Side,
    pub(crate) baseline: Option<&'a Side>,
    pub(crate) pinned: Option<&'a Side>,
}

/// Signs a verdict for a cluster.
pub(crate) fn sign(verdict: &Verdict, about: &About<'_>, cluster: ClusterId, key: &Keypair) -> Envelope {
    let why = |finding: &&Finding| finding.severity != Severity::Warning;
    let reasons = verdict.reasons.iter().filter(why).take(LINES_MAX);
    let ruling = Ruling {
        outcome: verdict.outcome,
        policy: verdict.policy,
        baseline: about.baseline.and_then(|side| side.digest),
        pinned: about.pinned.and_then(|side| side.digest),
        hardware: about.candidate.hardware().unwrap_or("any").to_owned(),
        reports: about.candidate.report_digests().collect(),
        baseline_reports: about.baseline.into_iter().flat_map(Side::report_digests).collect(),
        verdict: Sha256::of(verdict.to_json().as_bytes()),
        reasons: reasons.map(|finding| short(&finding.message)).collect(),
    };
    let said = weighed::Verdict { artifact: about.artifact.clone(), manifest: about.manifest, ruling };
    let statement = Statement {
        cluster: Some(cluster),
        by: key.key_id(),
        time: now(),
        chain: None,
        kind: Kind::Verdict(said),
    };
    statement.sign(&[key])
}

/// A verdict as in-toto's test result: signed where there is a key.
///
/// # Errors
/// It does not fit an envelope.
pub(crate) fn test_result(verdict: &Verdict, about: &About<'_>, key: Option<&Keypair>) -> Result<String> {
    let warned: Vec<&str> = verdict
        .reasons
        .iter()
        .filter(|finding| finding.severity == Severity::Warning)
        .map(|finding| finding.message.as_str())
        .collect();
    let named = |outcome: Outcome| -> Vec<&str> {
        let judged = verdict.metrics.iter().filter(|row| !row.is_skipped());
        judged.filter(|row| row.outcome == outcome).map(|row| row.metric.as_str()).collect()
    };
    // What is not decided is not passed; the predicate knows no third word.
    let mut failed = named(Outcome::Fail);
    failed.extend(named(Outcome::NoEvidence));
    let result = match (verdict.outcome, warned.is_empty()) {
        (Outcome::Pass, true) => "PASSED",
        (Outcome::Pass, false) => "WARNED",
        _ => "FAILED",
    };
    let resource = |name: &str, digest: &Sha256| json!({"name": name, "digest": {"sha256": digest.hex()}});
    let mut configuration = vec![resource("gate.toml", &verdict.policy)];
    configuration
        .extend(about.candidate.report_digests().map(|digest| resource("candidate report", &digest)));
    let baseline = about.baseline.into_iter().flat_map(Side::report_digests);
    configuration.extend(baseline.map(|digest| resource("baseline report", &digest)));
    let statement = json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [resource(&about.artifact.to_string(), &Sha256(about.manifest.0))],
        "predicateType": TEST_RESULT,
        "predicate": {
            "result": result,
            "configuration": configuration,
            "passedTests": named(Outcome::Pass),
            "warnedTests": warned,
            "failedTests": failed,
        },
    });
    signed(&statement, key)
}

fn signed(statement: &Value, key: Option<&Keypair>) -> Result<String> {
    let bytes = match key {
        Some(key) => Envelope::sign(statement.to_string().into_bytes(), &[key]).to_json(),
        None => statement.to_string().into_bytes(),
    };
    String::from_utf8(bytes).map_err(Error::internal)
}

/// Statements have a bound on each line.
fn short(text: &str) -> String {
    let plain: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let end =
        plain.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= NOTE_LEN_MAX).last();
    plain[..end.unwrap_or(0)].to_owned()
}
