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

/// Signs a verdict for a cluster, in the name of the first of the keys.
///
/// # Errors
/// There is none.
pub(crate) fn sign(
    verdict: &Verdict,
    about: &About<'_>,
    cluster: ClusterId,
    keys: &[&Keypair],
) -> Result<Envelope> {
    let by = keys.first().ok_or_else(|| Error::internal("nobody signs"))?.key_id();
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
        sandbox: short(&about.candidate.sandbox),
        reasons: reasons.map(|finding| short(&finding.message)).collect(),
    };
    let said = weighed::Verdict { artifact: about.artifact.clone(), manifest: about.manifest, ruling };
    let statement =
        Statement { cluster: Some(cluster), by, time: now(), chain: None, kind: Kind::Verdict(said) };
    Ok(statement.sign(keys))
}

/// A verdict as in-toto's test result: signed where there are keys.
///
/// # Errors
/// It does not fit an envelope.
pub(crate) fn test_result(verdict: &Verdict, about: &About<'_>, keys: &[&Keypair]) -> Result<String> {
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
    signed(&statement, keys)
}

fn signed(statement: &Value, keys: &[&Keypair]) -> Result<String> {
    let bytes = match keys {
        [] => statement.to_string().into_bytes(),
        keys => Envelope::sign(statement.to_string().into_bytes(), keys).to_json(),
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

#[cfg(test)]
mod tests {
    use weighlock_protocol::gate::{Input, Policy, judge, ours};
    use weighlock_protocol::manifest::Contract;

    use super::*;
    use crate::weigh::report::Loaded;

    /// The verdict on a candidate with one figure of two that a policy names.
    fn judged(candidate: &Side) -> Verdict {
        let policy = "[metric.eval_loss]\ndirection = \"lower\"\nmax = 3.0\n\n\
                      [metric.acc]\ndirection = \"higher\"\nmin = 0.5\nrequired = false\n";
        let policy = Policy::parse(policy).expect("a policy");
        let input = Input {
            policy: &policy,
            candidate: candidate.evidence(),
            baseline: None,
            pinned: None,
            files: None,
        };
        judge(&input)
    }

    fn candidate() -> Side {
        let report = br#"{"metrics": {"eval_loss": {"value": 2.0, "stderr": 0.1, "n": 100}}}"#;
        let (report, samples) = ours::read(report).expect("a report");
        let contract = Some(Contract::default());
        let mut side = Side { digest: Some(ManifestDigest([1; 32])), contract, ..Side::default() };
        side.add_report(Loaded { report, samples, source: None }, None).expect("added");
        side
    }

    fn about<'a>(artifact: &'a Artifact, candidate: &'a Side) -> About<'a> {
        About { artifact, manifest: ManifestDigest([1; 32]), candidate, baseline: None, pinned: None }
    }

    #[test]
    fn a_signed_verdict_names_the_whole_one_and_how_the_evaluator_was_shut_in() {
        let mut candidate = candidate();
        candidate.sandbox = "sandbox: no network; missing: landlock".into();
        let verdict = judged(&candidate);
        let artifact = "acme/bot".parse().expect("a name");
        let about = about(&artifact, &candidate);
        let key = Keypair::from_seed([7; 32]);
        let signed = sign(&verdict, &about, ClusterId([3; 32]), &[&key]).expect("signed");
        let Kind::Verdict(said) = Statement::parse(signed.payload()).expect("reads").kind else {
            panic!("a verdict");
        };
        assert_eq!(said.ruling.sandbox, candidate.sandbox);
        assert_eq!(said.ruling.verdict, Sha256::of(verdict.to_json().as_bytes()));
    }

    #[test]
    fn a_test_result_does_not_name_as_passed_what_was_not_judged() {
        let candidate = candidate();
        let verdict = judged(&candidate);
        assert_eq!(verdict.outcome, Outcome::Pass, "{verdict}");
        let artifact = "acme/bot".parse().expect("a name");
        let about = about(&artifact, &candidate);
        let result: Value =
            serde_json::from_str(&test_result(&verdict, &about, &[]).expect("made")).expect("JSON");
        assert_eq!(result["predicate"]["passedTests"], json!(["eval_loss"]), "{result}");
        assert_eq!(result["predicate"]["failedTests"], json!([]));
    }
}
