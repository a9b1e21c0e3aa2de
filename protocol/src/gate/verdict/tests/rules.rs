//! Each rule of the gate by itself.

use super::*;

#[test]
fn a_candidate_within_the_margin_passes_and_one_beyond_it_fails() {
    let policy = policy("max_regression = 0.02\nmax = 3.0");
    let baseline = Run::new(1, &losses(0.0));
    let good = weigh(&policy, &Run::new(2, &losses(0.01)), Some(&baseline));
    assert_eq!((good.outcome, good.outcome.exit_code()), (Outcome::Pass, 0), "{good}");
    assert!(good.reasons.is_empty(), "{good}");
    let bad = weigh(&policy, &Run::new(2, &losses(0.05)), Some(&baseline));
    assert_eq!((bad.outcome, bad.outcome.exit_code()), (Outcome::Fail, 1), "{bad}");
    assert_eq!(codes(&bad), ["worse"]);
    assert_eq!(bad.candidate.digest, Some(ManifestDigest([2; 32])));
    assert_eq!(bad.policy, policy.digest());
}

#[test]
fn between_the_two_is_no_evidence_and_says_how_much_would_decide() {
    let baseline = Run::new(1, &losses(0.0));
    let noise: Vec<f64> =
        losses(0.01).iter().enumerate().map(|(i, x)| x + 0.2 * (i % 2) as f64 - 0.1).collect();
    let verdict = weigh(&policy("max_regression = 0.02"), &Run::new(2, &noise), Some(&baseline));
    assert_eq!((verdict.outcome, verdict.outcome.exit_code()), (Outcome::NoEvidence, 3));
    let Reason::Inconclusive { samples_needed: Some(needed), .. } = verdict.reasons[0].reason else {
        panic!("{verdict}");
    };
    assert!((200..2_000).contains(&needed), "{needed}");
}

#[test]
fn what_is_missing_or_contradicts_is_no_evidence() {
    type Harm = fn(&mut Run, &mut Run);
    let harms: [(&str, &str, Harm); 19] = [
        ("", "metric_missing", |c, _| c.report.metrics.clear()),
        ("", "metric_missing", |_, b| b.report.metrics.clear()),
        ("", "figure_impossible", |c, _| c.metric().value = f64::NAN),
        ("", "limited_run", |c, _| c.metric().n_total = Some(61)),
        ("", "limited_run", |_, b| b.metric().n_total = Some(61)),
        ("min_n = 61", "too_few_samples", |_, _| {}),
        ("", "suite_unknown", |c, _| c.report.suite = None),
        ("", "suite_differs", |c, _| c.report.suite = Some(Sha256([8; 32]))),
        ("", "other_artifact", |c, _| c.report.artifact = Some(ManifestDigest([7; 32]))),
        ("", "other_artifact", |_, b| b.report.artifact = Some(ManifestDigest([7; 32]))),
        ("", "direction_contradicts", |c, _| c.metric().higher_is_better = Some(true)),
        ("", "setup_differs", |c, _| c.metric().n_shot = Some(5)),
        ("", "hardware_differs", |c, _| {
            c.report.host.as_mut().expect("a host").hardware = "nvidia/sm_90".into()
        }),
        ("", "samples_disagree", |c, _| c.metric().value += 0.001),
        ("", "samples_disagree", |c, _| c.metric().samples = Some(Sha256([1; 32]))),
        ("paired = \"required\"", "samples_missing", |c, _| c.samples.clear()),
        ("", "error_missing", |c, _| {
            c.samples.clear();
            c.metric().stderr = None;
        }),
        ("", "chat_template_differs", |c, _| c.report.chat_template_sha256 = Some(Sha256([1; 32]))),
        ("", "chat_template_applied_once", |c, _| {
            c.report.chat_template_sha256 = Some(Sha256([1; 32]));
            c.contract.chat_template_sha256 = Some(Sha256([1; 32]));
        }),
    ];
    for (extra, code, harm) in harms {
        let policy = policy(&format!("max_regression = 0.02\n{extra}"));
        let (mut candidate, mut baseline) = (Run::new(2, &losses(0.0)), Run::new(1, &losses(0.0)));
        harm(&mut candidate, &mut baseline);
        let verdict = weigh(&policy, &candidate, Some(&baseline));
        assert!(codes(&verdict).iter().any(|found| found == code), "{code} is not in:\n{verdict}");
        let expected = if code == "chat_template_applied_once" { Outcome::Fail } else { Outcome::NoEvidence };
        assert_eq!(verdict.outcome, expected, "{code}:\n{verdict}");
    }
}

#[test]
fn samples_must_be_the_same_unless_the_policy_allows_a_share() {
    let baseline = Run::new(1, &losses(0.0));
    let candidate = Run::new(2, &losses(0.0)[..57]);
    let strict = weigh(&policy("max_regression = 0.02"), &candidate, Some(&baseline));
    assert_eq!(codes(&strict), ["samples_unmatched"]);
    let share = weigh(&policy("max_regression = 0.02\nmin_overlap = 0.95"), &candidate, Some(&baseline));
    assert_eq!(share.outcome, Outcome::Pass, "{share}");
}

#[test]
fn contract_changes_fail_unless_the_policy_allows_them() {
    let baseline = Run::new(1, &losses(0.0));
    let mut candidate = Run::new(2, &losses(0.0));
    candidate.contract.tokenizer_sha256 = Some(Sha256([1; 32]));
    candidate.contract.tensor_root = Some(crate::id::LayerId([1; 32]));
    let refused = weigh(&policy("max_regression = 0.02"), &candidate, Some(&baseline));
    assert_eq!((refused.outcome, codes(&refused)), (Outcome::Fail, vec!["contract_changed".into()]));
    let allowed = policy("max_regression = 0.02\n[contract]\nallow = [\"tokenizer\"]");
    let verdict = weigh(&allowed, &candidate, Some(&baseline));
    assert_eq!((verdict.outcome, verdict.contract.len()), (Outcome::Pass, 2), "{verdict}");
    // A bare report has no contract: that is said, and the verdict records it.
    let mut bare = baseline.evidence();
    bare.contract = None;
    let input = Input {
        policy: &allowed,
        candidate: candidate.evidence(),
        baseline: Some(bare),
        pinned: None,
        files: None,
    };
    let verdict = judge(&input);
    assert_eq!((verdict.outcome, verdict.contract_compared), (Outcome::Pass, false));
    assert_eq!(codes(&verdict), ["contract_not_compared"]);
    let mut unknown = candidate.evidence();
    unknown.contract = None;
    let verdict = judge(&Input {
        policy: &policy("max = 3"),
        candidate: unknown,
        baseline: None,
        pinned: None,
        files: None,
    });
    assert_eq!((verdict.outcome, codes(&verdict)), (Outcome::NoEvidence, vec!["contract_unknown".into()]));
}

#[test]
fn without_a_baseline_absolute_bounds_decide_and_one_is_needed() {
    let candidate = Run::new(2, &losses(0.0));
    let verdict = weigh(&policy("max_regression = 0.02"), &candidate, None);
    assert_eq!((verdict.outcome, codes(&verdict)), (Outcome::NoEvidence, vec!["nothing_judged".into()]));
    assert_eq!(weigh(&policy("max = 3"), &candidate, None).outcome, Outcome::Pass);
    let verdict = weigh(&policy("max = 2"), &candidate, None);
    assert_eq!((verdict.outcome, codes(&verdict)), (Outcome::Fail, vec!["above_max".into()]));
    // The mean is 2.29 with an error of about 0.025.
    let verdict = weigh(&policy("max = 2.3"), &candidate, None);
    assert_eq!((verdict.outcome, codes(&verdict)), (Outcome::Pass, vec!["bound_within_error".into()]));
}

#[test]
fn leaving_figures_out_makes_nothing_pass() {
    let (baseline, candidate) = (Run::new(1, &losses(0.0)), Run::new(2, &losses(-0.1)));
    let bare = |run: &Run, with: fn(&mut Metric)| {
        let mut run =
            Run { samples: Default::default(), report: run.report.clone(), ..Run::new(2, &losses(-0.1)) };
        run.metric().samples = None;
        with(run.metric());
        run
    };
    let without_error = bare(&candidate, |metric| metric.stderr = None);
    let verdict = weigh(&policy("max = 3.0"), &without_error, None);
    assert_eq!(
        (verdict.outcome, codes(&verdict)),
        (Outcome::NoEvidence, vec!["bound_without_error".to_owned()])
    );
    let without_count = bare(&candidate, |metric| (metric.n, metric.n_total) = (None, None));
    let verdict = weigh(&policy("max_regression = 0.5"), &without_count, Some(&baseline));
    assert_eq!(verdict.outcome, Outcome::NoEvidence, "{verdict}");
    assert!(codes(&verdict).contains(&"sample_count_unknown".to_owned()), "{verdict}");
    // A lock file has the digest of samples only; the same run needs no more.
    let mut pinned = Run::new(1, &losses(0.0));
    pinned.samples.clear();
    let verdict = weigh(&policy("max_regression = 0.02"), &baseline, Some(&pinned));
    assert_eq!(verdict.outcome, Outcome::Pass, "{verdict}");
}

#[test]
fn drift_is_counted_from_the_pinned_baseline() {
    let (pinned, baseline, candidate) =
        (Run::new(1, &losses(0.0)), Run::new(2, &losses(0.03)), Run::new(3, &losses(0.045)));
    let policy = policy("max_regression = 0.02\nmax_drift = 0.04");
    let mut input = Input {
        policy: &policy,
        candidate: candidate.evidence(),
        baseline: Some(baseline.evidence()),
        pinned: Some(pinned.evidence()),
        files: None,
    };
    let verdict = judge(&input);
    assert_eq!(verdict.outcome, Outcome::Fail, "{verdict}");
    assert!(matches!(verdict.reasons[0].reason, Reason::Worse { than: Side::Pinned, .. }));
    input.pinned = None;
    let verdict = judge(&input);
    assert_eq!((verdict.outcome, codes(&verdict)), (Outcome::NoEvidence, vec!["pinned_missing".into()]));
}

#[test]
fn files_are_held_against_the_policy() {
    let policy = policy("max = 3\n[contract]\ndeny_pickle = true\nrequired_files = [\"tokenizer.json\"]");
    let candidate = Run::new(2, &losses(0.0));
    let judged = |files: Option<&[String]>| {
        judge(&Input {
            policy: &policy,
            candidate: candidate.evidence(),
            baseline: None,
            pinned: None,
            files,
        })
    };
    assert_eq!(codes(&judged(None)), ["files_unknown"]);
    let files = ["model.safetensors".to_owned(), "sub/Optimizer.PT".to_owned()];
    assert_eq!(codes(&judged(Some(&files))), ["pickle_file", "required_file_missing"]);
    let files = ["model.safetensors".to_owned(), "tokenizer.json".to_owned()];
    assert_eq!(judged(Some(&files)).outcome, Outcome::Pass);
}

#[test]
fn a_verdict_reads_as_a_table_as_json_and_as_junit() {
    let mut candidate = Run::new(2, &losses(0.05));
    candidate.contract.architecture = Some("<Llama & \"Co\">\u{7}".into());
    let policy = policy("max_regression = 0.02\n[metric.\"a<b\"]\ndirection = \"higher\"\nmin = 1");
    let verdict = weigh(&policy, &candidate, Some(&Run::new(1, &losses(0.0))));
    let text = verdict.to_string();
    assert!(text.starts_with("metric "), "{text}");
    assert!(text.contains("paired, n 60") && text.ends_with("verdict: fail"), "{text}");
    assert!(text.contains("contract: architecture none -> <Llama"), "{text}");
    assert!(!text.contains('\u{7}'), "{text}");
    let json: serde_json::Value = serde_json::from_str(&verdict.to_json()).expect("JSON");
    assert_eq!(json["outcome"], "fail");
    assert_eq!(json["reasons"][0]["severity"], "fail");
    assert_eq!(json["metrics"][1]["comparison"]["call"], "worse");
    let xml = crate::gate::junit::junit(&verdict);
    assert!(xml.contains("tests=\"3\" failures=\"2\" errors=\"1\""), "{xml}");
    assert!(xml.contains("name=\"a&lt;b\"") && xml.contains("&lt;Llama &amp; &quot;Co&quot;&gt;"), "{xml}");
    assert!(xml.contains("<failure type=\"worse\""), "{xml}");
}

#[test]
fn what_nothing_was_held_against_is_skipped_and_not_passed() {
    let optional = "\n[metric.perplexity]\ndirection = \"lower\"\nmax = 9.0\nrequired = false\n";
    let verdict = weigh(&policy(&format!("max = 3.0\n{optional}")), &Run::new(2, &losses(0.0)), None);
    assert_eq!(verdict.outcome, Outcome::Pass, "{verdict}");
    let rows = |verdict: &Verdict| -> Vec<(bool, bool)> {
        verdict.metrics.iter().map(|row| (row.judged, row.is_skipped())).collect()
    };
    assert_eq!(rows(&verdict), [(true, false), (false, true)]);
    assert!(verdict.to_string().contains("not judged"), "{verdict}");
    let xml = crate::gate::junit::junit(&verdict);
    assert!(xml.contains("tests=\"3\" failures=\"0\" errors=\"0\" skipped=\"1\""), "{xml}");
    let case = xml.split("name=\"perplexity\">\n").nth(1).expect("its case");
    assert!(case.trim_start().starts_with("<skipped message=\"not judged\"/>"), "{xml}");
    let nothing_to_compare = weigh(&policy("max_regression = 0.02"), &Run::new(2, &losses(0.0)), None);
    assert_eq!(rows(&nothing_to_compare), [(false, true)]);
    // What must be there and is not, is no evidence and nothing milder.
    let mut missing = Run::new(2, &losses(0.0));
    missing.report.metrics.clear();
    assert_eq!(rows(&weigh(&policy("max = 3.0"), &missing, None)), [(false, false)]);
}
