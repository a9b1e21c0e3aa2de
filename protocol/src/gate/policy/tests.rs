//! Tests of policies: what is read, what is refused and how, and what the digest depends on.

use proptest::prelude::*;

use super::*;

const DESIGN: &str = r#"
[metric.eval_loss]
direction = "lower"
max = 3.0
max_regression = 0.02
confidence = 0.99
required = true

[metric."mmlu.acc"]
direction = "higher"
max_regression = "0.5%"

[contract]
allow = ["quantization"]
deny_pickle = true

[stage.shadow]
min_requests = 500
min_duration = "10m"

[stage.production]
approvals = 1

[live.latency_p99]
max_ratio = 1.2

[live]
alpha = 0.01   # over all guards together
"#;

#[test]
fn the_policy_of_the_design_is_read() {
    let policy = Policy::parse(DESIGN).expect("a policy");
    let loss = &policy.metrics["eval_loss"];
    assert_eq!((loss.max, loss.max_regression), (Some(3.0), Some(Margin::Absolute(0.02))));
    assert_eq!((loss.confidence, loss.required, loss.paired), (0.99, true, Pairing::Auto));
    let mmlu = &policy.metrics["mmlu.acc"];
    assert_eq!((mmlu.direction, mmlu.confidence), (Direction::Higher, CONFIDENCE_DEFAULT));
    assert_eq!(mmlu.max_regression.map(|margin| margin.to_string()), Some("0.5 %".into()));
    assert!(policy.contract.deny_pickle && policy.contract.allow.contains(&ContractField::Quantization));
    assert_eq!(policy.stages[&Stage::Shadow].min_duration, Some(600));
    assert_eq!(policy.stages[&Stage::Production].approvals, Some(1));
    let live = policy.live.as_ref().expect("guards");
    assert_eq!((live.alpha, live.guards["latency_p99"]), (0.01, Guard::MaxRatio(1.2)));
    let text = policy.to_string();
    assert!(text.contains("metric eval_loss: lower is better, at most 3, at most 0.02 worse"), "{text}");
}

#[test]
fn a_mistake_is_named_with_its_line_and_a_way_out() {
    let metric = |line: &str| format!("[metric.a]\ndirection = \"lower\"\nmax = 1\n{line}\n");
    let bad = [
        (
            metric("max_regresion = 1"),
            "line 4: unknown key `max_regresion` in [metric.a]; did you mean `max_regression`?",
        ),
        (metric("max_regression = -0.1"), "line 4: metric.a.max_regression is negative"),
        (metric("max_regression = nan"), "line 4: metric.a.max_regression is nan, not a finite number"),
        (metric("max_regression = \"1\""), "is \"1\", not a percentage"),
        (metric("max_regression = \"-1%\""), "is negative"),
        (metric("max_regression = \"inf%\""), "not a percentage"),
        (
            metric("confidence = 0.5"),
            "line 4: metric.a.confidence is 0.5; give a number above 0.5 and below 1",
        ),
        (metric("confidence = 1"), "metric.a.confidence is 1"),
        (metric("min = 2"), "line 3: metric.a.max is 1, below min, 2; swap them"),
        (metric("min_n = 0"), "not above 0"),
        (metric("min_n = 1.5"), "not a whole number"),
        (metric("paired = \"requred\""), "did you mean \"required\"?"),
        (metric("min_overlap = 0"), "metric.a.min_overlap is 0"),
        (
            "[metric.a]\ndirection = \"up\"\nmax = 1".into(),
            "is \"up\", which is not known; use one of: lower, higher",
        ),
        ("[metric.a]\nmax = 1".into(), "metric.a does not say which way is better"),
        ("[metric.a]\ndirection = \"lower\"".into(), "metric.a has no rule"),
        ("[metric]\na = 3".into(), "metric.a is not a table"),
        ("[metric.\"a\\nb\"]\nmax = 1".into(), "not plain text"),
        ("[contract]\nallow = [\"quantisation\"]".into(), "did you mean \"quantization\"?"),
        ("[stage.prod]\napprovals = 1".into(), "unknown key `prod` in [stage]; did you mean `production`?"),
        ("[stage.shadow]\nmin_duration = \"10\"".into(), "not a duration"),
        ("[stage.shadow]\nmin_duration = \"99999999d\"".into(), "longer than"),
        ("[stage.shadow]".into(), "asks for nothing"),
        ("[stage.shadow]\nhardware = [\"h100\"]".into(), "not a hardware key"),
        ("[live]\nalpha = 0.01".into(), "has no guard"),
        ("[live.p99]\nmax_ratio = 1\nmax_delta = 1".into(), "one of max_ratio and max_delta"),
        ("[live.p99]\nmax_ratio = 0".into(), "not above 0"),
        ("publish = \"closed\"".into(), "which is not known"),
        ("suites = [\"abc\"]".into(), "must start with `sha256:`"),
        ("".into(), "asks for nothing"),
        ("publish = \"open\"".into(), "asks for nothing"),
        ("[metric.a".into(), "line 1: not TOML"),
    ];
    for (text, expected) in bad {
        let error = Policy::parse(&text).expect_err(&text).to_string();
        assert!(error.contains(expected), "{text}\ngave: {error}\nnot: {expected}");
        assert!(!error.contains('\n') && error.contains("; "), "{error}");
    }
}

#[test]
fn drift_of_all_metrics_is_a_rule_for_each() {
    let policy = Policy::parse("[drift]\nmax_regression = \"2%\"\n[metric.a]\ndirection = \"lower\"")
        .expect("a policy");
    assert_eq!(policy.drift_of(&policy.metrics["a"]), Some(Margin::Relative(0.02)));
}

#[test]
fn the_digest_is_that_of_what_is_said_not_of_how() {
    let one = Policy::parse(
        "publish = \"open\"\n[metric.b]\ndirection = \"lower\"\nmax = 3\n[metric.a]\ndirection = \"higher\"\nmin = 1.0",
    );
    let two = Policy::parse(
        "# the same\nmetric.a = { min = 1, direction = \"higher\", confidence = 0.95 }\n[metric.b]\nmax = 3.0\ndirection = \"lower\"",
    );
    let other = Policy::parse(
        "[metric.b]\ndirection = \"lower\"\nmax = 3.1\n[metric.a]\ndirection = \"higher\"\nmin = 1",
    );
    let [one, two, other] = [one, two, other].map(|policy| policy.expect("a policy"));
    assert_eq!(one, two);
    assert_eq!(one.digest(), two.digest());
    assert_ne!(one.digest(), other.digest());
    // Pinned: a change of it would make every policy on record another one.
    assert_eq!(
        one.canonical_json(),
        "{\"contract\":{\"deny_pickle\":false},\"metric\":{\
         \"a\":{\"confidence\":0.95,\"direction\":\"higher\",\"min\":1.0,\"min_overlap\":1.0,\"paired\":\"auto\",\"required\":true},\
         \"b\":{\"confidence\":0.95,\"direction\":\"lower\",\"max\":3.0,\"min_overlap\":1.0,\"paired\":\"auto\",\"required\":true}},\
         \"other_hardware\":\"refuse\",\"publish\":\"open\",\"version\":1}"
    );
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "\\PC{0,80}", key in "[a-z_.\"]{0,12}", value in "[-0-9a-z.\"%\\[\\]{}=]{0,12}") {
        let _ = Policy::parse(&text);
        let _ = Policy::parse(&format!("[metric.a]\ndirection = \"lower\"\n{key} = {value}"));
        let _ = Policy::parse(&format!("[live.a]\n{key} = {value}\n[stage.shadow]\nmin_duration = \"{value}\""));
    }
}
