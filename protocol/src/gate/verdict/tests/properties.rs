//! What holds for all verdicts.

use proptest::prelude::*;

use super::*;
use crate::gate::report::Harness;

fn values() -> impl Strategy<Value = Vec<f64>> {
    prop_oneof![
        prop::collection::vec(-1e3..1e3f64, 1..80),
        prop::collection::vec(prop::sample::select(vec![0.0, 1.0]), 1..80),
        prop::collection::vec(
            any::<f64>().prop_filter("finite", |x| x.is_finite() && x.abs() < 1e100),
            1..40
        ),
    ]
}

fn scale() -> impl Strategy<Value = Scale> {
    prop::sample::select(vec![Scale::Mean, Scale::ExpMean, Scale::MeanOverLn2, Scale::Other])
}

fn rule() -> impl Strategy<Value = String> {
    let margin = prop::sample::select(vec!["0", "0.02", "\"1%\"", "1e9", "\"200%\""]);
    let paired = prop::sample::select(vec!["auto", "required", "never"]);
    let confidence = prop::sample::select(vec!["0.6", "0.95", "0.9999999"]);
    (margin, paired, confidence).prop_map(|(margin, paired, confidence)| {
        format!("max_regression = {margin}\npaired = \"{paired}\"\nconfidence = {confidence}")
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_finite_input_makes_it_panic_and_all_of_it_can_be_shown(
        before in values(), after in values(), scale in scale(), rule in rule(), higher in any::<bool>(),
        keep in any::<bool>(), stderr in prop::option::of(0.0..1e200f64), n in prop::option::of(any::<u64>()),
    ) {
        let direction = if higher { "higher" } else { "lower" };
        let policy = Policy::parse(&format!("[metric.m]\ndirection = \"{direction}\"\nmax = 5\n{rule}")).expect("a policy");
        let (mut candidate, mut baseline) = (Run::new(2, &losses(0.0)), Run::new(1, &losses(0.0)));
        candidate.set("m", scale, &after);
        baseline.set("m", scale, &before);
        if !keep {
            candidate.samples.clear();
            let metric = candidate.report.metrics.get_mut("m").expect("set");
            (metric.stderr, metric.n, metric.n_total) = (stderr, n, None);
        }
        let verdict = weigh(&policy, &candidate, Some(&baseline));
        prop_assert!(!verdict.to_string().is_empty());
        prop_assert!(serde_json::from_str::<serde_json::Value>(&verdict.to_json()).is_ok());
        prop_assert!(crate::gate::junit::junit(&verdict).ends_with("</testsuites>\n"));
        prop_assert_eq!(verdict.outcome == Outcome::Pass, verdict.reasons.iter().all(|f| f.severity == Severity::Warning));
    }

    #[test]
    fn nothing_passes_without_a_required_metric(before in values(), max in any::<bool>()) {
        let extra = if max { "max = 1e300" } else { "max_regression = 1e300" };
        let policy = Policy::parse(&format!(
            "[metric.eval_loss]\ndirection = \"lower\"\n{extra}\n[metric.gone]\ndirection = \"higher\"\nmin = 0\n"
        )).expect("a policy");
        let run = Run::new(1, &before);
        prop_assert_ne!(weigh(&policy, &run, Some(&run)).outcome, Outcome::Pass);
        prop_assert_ne!(weigh(&policy, &run, None).outcome, Outcome::Pass);
    }

    #[test]
    fn a_run_without_samples_never_passes_where_pairs_are_required(before in values()) {
        let policy = policy("max_regression = 1e300\npaired = \"required\"");
        let baseline = Run::new(1, &before);
        let mut candidate = Run { digest: ManifestDigest([2; 32]), ..baseline.clone() };
        candidate.report.artifact = Some(candidate.digest);
        candidate.samples.clear();
        prop_assert_ne!(weigh(&policy, &candidate, Some(&baseline)).outcome, Outcome::Pass);
    }

    #[test]
    fn swapping_the_sides_mirrors_an_absolute_comparison(shifts in prop::collection::vec(-1.0..1.0f64, 60)) {
        let baseline = Run::new(1, &losses(0.0));
        let changed: Vec<f64> = losses(0.0).iter().zip(&shifts).map(|(x, shift)| x + shift).collect();
        let candidate = Run::new(2, &changed);
        let policy = policy("max_regression = 0.05");
        let comparison = |a: &Run, b: &Run| weigh(&policy, a, Some(b)).metrics[0].comparison.expect("compared");
        let (there, back) = (comparison(&candidate, &baseline), comparison(&baseline, &candidate));
        prop_assert!((there.regression + back.regression).abs() < 1e-9);
        prop_assert!((there.lower + back.upper).abs() < 1e-9);
        prop_assert!((there.upper + back.lower).abs() < 1e-9);
    }

    #[test]
    fn noise_that_changes_no_mean_never_turns_a_fail_into_a_pass(
        noise in prop::collection::vec(0.0..5.0f64, 30), shift in 0.0..0.2f64,
    ) {
        let policy = policy("max_regression = 0.02");
        let baseline = Run::new(1, &losses(0.0));
        let plain = losses(shift);
        // What one sample gains the next one loses.
        let noisy: Vec<f64> = plain.iter().enumerate().map(|(i, x)| x + noise[i / 2] * if i % 2 == 0 { 1.0 } else { -1.0 }).collect();
        let before = weigh(&policy, &Run::new(2, &plain), Some(&baseline)).outcome;
        let after = weigh(&policy, &Run::new(2, &noisy), Some(&baseline)).outcome;
        prop_assert!(before != Outcome::Fail || after != Outcome::Pass);
    }

    #[test]
    fn more_room_never_turns_a_pass_into_something_else(shift in -0.1..0.1f64, margin in 0.0..0.1f64, more in 0.0..0.1f64) {
        let (baseline, mut candidate) = (Run::new(1, &losses(0.0)), Run::new(2, &losses(shift)));
        candidate.report.harness = Harness::default();
        let outcome = |margin: f64| weigh(&policy(&format!("max_regression = {margin:?}")), &candidate, Some(&baseline)).outcome;
        prop_assert!(outcome(margin) != Outcome::Pass || outcome(margin + more) == Outcome::Pass);
    }
}
