//! Tests of the reader of our own reports.

use proptest::prelude::*;

use super::*;
use crate::id::Sha256;

fn why(text: &str) -> String {
    read(text.as_bytes()).expect_err("refused").0
}

#[test]
fn five_lines_are_enough_for_a_report() {
    let (report, samples) = read(br#"{"metrics": {"eval_loss": 2.31}}"#).expect("short form");
    assert_eq!((report.version, report.harness.name.as_str()), (REPORT_VERSION, "custom"));
    assert_eq!(report.metrics["eval_loss"].value, 2.31);
    assert!(samples.is_empty());
    let text = r#"{"metrics": {"eval_loss": {"value": 2.31, "stderr": 0.02, "n": 500, "n_total": 1000}}}"#;
    let (report, _) = read(text.as_bytes()).expect("long form");
    let metric = &report.metrics["eval_loss"];
    // A limited run is for the gate to refuse.
    assert_eq!((metric.stderr, metric.n, metric.n_total), (Some(0.02), Some(500), Some(1000)));
}

#[test]
fn what_a_report_writes_it_reads() {
    let text = r#"{"metrics": {"acc": {"value": 0.5, "samples": [
        {"id": "a", "value": 1, "cluster": "d"}, {"id": "b", "value": 0}]},
        "perplexity": {"value": 2.718281828459045, "scale": "exp_mean", "samples": [
        {"id": "a", "value": 0.5, "weight": 3}, {"id": "b", "value": 2.5}]}},
        "host": {"hardware": "any"}, "runtime": {"name": "vllm"}, "seed": "7", "time": 1795372377}"#;
    let (report, samples) = read(text.as_bytes()).expect("report");
    assert_eq!(report.metrics["acc"].n, Some(2));
    assert_eq!(report.metrics["acc"].samples, Some(samples["acc"].digest()));
    assert_eq!(samples["perplexity"].mean(), Some(1.0));
    let canonical = serde_json::to_vec(&report).expect("JSON");
    assert_eq!(read(&canonical).expect("canonical form").0, report);
}

#[test]
fn what_is_no_finite_number_is_refused_with_its_metric() {
    assert!(why(r#"{"metrics": {"loss": NaN}}"#).starts_with("metric \"loss\": its value is NaN"));
    assert!(why(r#"{"metrics": {"loss": {"value": -Infinity}}}"#).contains("-Infinity"));
    assert!(why(r#"{"metrics": {"loss": "2.31"}}"#).contains("the text \"2.31\", not a finite number"));
    assert!(why(r#"{"metrics": {"loss": {"value": 1e999}}}"#).contains("number out of range"));
    assert!(why(r#"{"metrics": {"loss": {"stderr": 1}}}"#).contains("no `value`"));
    let stderr = |text: &str| why(&format!(r#"{{"metrics": {{"loss": {{"value": 1, "stderr": {text}}}}}}}"#));
    assert!(stderr("\"N/A\"").ends_with("leave it out if there is none"));
    assert!(stderr("-0.1").contains("its stderr is -0.1"));
    assert!(stderr("NaN").contains("its stderr is NaN"));
    let sample = r#"{"metrics": {"loss": {"value": 1, "samples": [{"id": "a", "value": NaN}]}}}"#;
    assert!(why(sample).contains("sample 1: its value is NaN"));
}

#[test]
fn what_is_unknown_repeated_or_broken_is_refused_by_name() {
    assert!(why(r#"{"metrics": {"loss": {"value": 1, "valeu": 2}}}"#).contains("unknown field `valeu`"));
    assert!(why(r#"{"metrics": {"loss": 1}, "extra": 2}"#).contains("unknown field `extra`"));
    assert!(why(r#"{"metrics": {"loss": 1, "loss": 2}}"#).contains("\"loss\" stands twice"));
    assert!(why(r#"{"metrics": {"loss": 1}"#).contains("EOF"));
    assert!(why("[]").contains("no JSON object"));
    assert!(why("{}").contains("no object `metrics`"));
    assert!(why(r#"{"metrics": {}}"#).contains("0 metrics"));
    assert!(why(r#"{"version": 2, "metrics": {"a": 1}}"#).contains("version 2"));
    assert!(why(r#"{"metrics": {"a b": 1}}"#).contains("the name is empty"));
    assert!(why(r#"{"metrics": {"": 1}}"#).contains("the name is empty"));
    assert!(
        why(r#"{"metrics": {"a": {"value": 1, "n": 3, "n_total": 2}}}"#).contains("more than its n_total")
    );
    assert!(why(r#"{"metrics": {"a": {"value": 1, "n": 0}}}"#).contains("nothing was measured"));
    assert!(why(r#"{"harness": {"name": "a\nb"}, "metrics": {"a": 1}}"#).contains("`harness.name`"));
    assert!(why(&"{\"metrics\":".repeat(10_000)).contains("recursion limit"));
    let nonsense = vec![b'['; 100 << 20];
    assert!(read(&nonsense).is_err_and(|e| e.0.contains("more than the 16777216 accepted")));
    assert!(read_samples(&nonsense).is_err_and(|e| e.0.contains("line 1 of the samples is longer")));
}

#[test]
fn samples_must_give_the_value_and_be_as_many_as_it_says() {
    let report = |fields: &str| {
        format!(
            r#"{{"metrics": {{"acc": {{{fields}, "samples": [{{"id": "a", "value": 1}}, {{"id": "b", "value": 0}}]}}}}}}"#
        )
    };
    assert!(read(report(r#""value": 0.5, "n": 2"#).as_bytes()).is_ok());
    assert!(read(report(r#""value": 0.5000002"#).as_bytes()).is_ok(), "rounding");
    assert!(
        why(&report(r#""value": 0.50001"#))
            .contains("samples do not match the results: its value is 0.50001")
    );
    assert!(why(&report(r#""value": 0.5, "n": 3"#)).contains("n is 3, but there are 2 samples"));
    assert!(why(&report(r#""value": 0.5, "scale": "other""#)).contains("scale is `other`"));
    assert!(why(&report(r#""value": 0.5, "scale": "exp_mean""#)).contains("give 1.64"));
    assert!(why(&report(r#""value": 0.5, "scale": "guess""#)).contains("unknown variant `guess`"));
}

#[test]
fn samples_in_lines_are_bound_to_their_report() {
    let lines = br#"{"metric": "acc", "id": "b", "value": 0}

        {"metric": "acc", "id": "a", "value": 1, "cluster": "doc", "weight": 2}
        {"metric": "loss", "id": "a", "value": 0.25}
"#;
    let samples = read_samples(lines).expect("samples");
    assert_eq!((samples["acc"].len(), samples["loss"].len()), (2, 1));
    let bind = |text: &str| {
        let mut report = read(text.as_bytes()).expect("report").0;
        attach(&mut report, &samples).map(|()| report)
    };
    let report = bind(r#"{"metrics": {"acc": 0.6666666667, "loss": 0.25}}"#).expect("they match");
    assert_eq!(report.metrics["acc"].samples, Some(samples["acc"].digest()));
    assert!(bind(r#"{"metrics": {"acc": 0.6666666667}}"#).is_err_and(|e| e.0.contains("no such metric")));
    let digest = Sha256::of(b"other");
    let named = format!(
        r#"{{"metrics": {{"loss": 0.25, "acc": {{"value": 0.6666666667, "samples": "{digest}"}}}}}}"#
    );
    assert!(bind(&named).is_err_and(|e| e.0.contains("the report names sha256:")));

    let why = |line: &str| {
        let text = format!("{{\"metric\": \"a\", \"id\": \"x\", \"value\": 1}}\n\n{line}\n");
        read_samples(text.as_bytes()).expect_err("refused").0
    };
    assert!(why("{\"metric\":").starts_with("line 3 of the samples is not a sample: EOF"));
    assert!(
        why(r#"{"metric": "a", "id": "y", "value": NaN}"#)
            .contains("line 3 of the samples: a sample of metric \"a\" has NaN")
    );
    assert!(why(r#"{"metric": "a", "id": "y", "value": 1, "wieght": 1}"#).contains("unknown field `wieght`"));
    assert!(why(r#"{"metric": "a", "id": "y", "value": 1, "value": 2}"#).contains("duplicate field `value`"));
    assert!(why(r#"{"metric": "a", "id": "x", "value": 1}"#).contains("sample x is there twice"));
    assert!(why(r#"{"metric": "a", "id": "y", "value": 1, "weight": 0}"#).contains("not above 0"));
}

proptest! {
    #[test]
    fn every_number_survives_writing_and_reading(value in proptest::num::f64::NORMAL, weight in 1e-9f64..1e9) {
        let report = format!(
            r#"{{"metrics": {{"a": {{"value": {value:e}, "samples": [{{"id": "x", "value": {value:e}, "weight": {weight:e}}}]}}}}}}"#
        );
        // Sums of huge numbers overflow, and then no sample gives them.
        if let Ok((report, samples)) = read(report.as_bytes()) {
            let again = read(&serde_json::to_vec(&report).expect("JSON")).expect("canonical").0;
            prop_assert_eq!(again.metrics["a"].value.to_bits(), value.to_bits());
            let line = serde_json::to_value(samples["a"].iter().next()).expect("JSON");
            let line = serde_json::json!({"metric": "a", "id": "x", "value": line["value"], "weight": line["weight"]});
            let read = read_samples(line.to_string().as_bytes()).expect("a sample");
            prop_assert_eq!(read["a"].digest(), samples["a"].digest());
        }
    }

    #[test]
    fn any_metric_object_is_read_or_refused(text in "\\{\"value\": ?[-0-9.e]{1,6}(,\"(n|stderr|samples|scale)\": ?[\\[\\]{}a-z0-9\",-]{0,8}){0,2}\\}") {
        let report = format!(r#"{{"metrics": {{"a": {text}}}}}"#);
        if let Ok((report, _)) = read(report.as_bytes()) {
            prop_assert!(check(&report).is_ok());
        }
        let _ = read_samples(text.as_bytes());
    }
}
