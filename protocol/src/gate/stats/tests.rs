//! Tests of comparisons against numbers worked out by other means, and of what must not matter.

use proptest::prelude::*;

use super::*;
use crate::gate::report::Metric;
use crate::gate::samples::{Sample, Samples};

fn question(margin: Margin) -> Question {
    Question { direction: Direction::Lower, scale: Scale::Mean, margin, confidence: 0.95 }
}

fn samples(values: &[f64], document: impl Fn(usize) -> usize, weight: impl Fn(usize) -> f64) -> Samples {
    let sample = |(i, value): (usize, &f64)| Sample {
        id: format!("{i:04}"),
        cluster: format!("d{}", document(i)),
        value: *value,
        weight: weight(i),
    };
    Samples::new(values.iter().enumerate().map(sample).collect()).expect("good samples")
}

fn alone(values: &[f64]) -> Samples {
    samples(values, |i| i, |_| 1.0)
}

fn compare(question: &Question, candidate: &Samples, baseline: &Samples) -> Comparison {
    compare_paired(question, candidate, baseline, 1.0).expect("comparable")
}

/// Even and odd values around `middle`, no two alike.
fn spread(n: usize, middle: f64, width: f64) -> Vec<f64> {
    (0..n).map(|i| middle + width * (i as f64 - 0.5 * (n - 1) as f64) / n as f64).collect()
}

#[test]
fn a_symmetric_paired_comparison_is_close_to_the_t_interval() {
    let before = spread(101, 3.0, 1.0);
    // Changes of -0.1, 0 and 0.1 in turn around 0.05: the t interval is 0.05 ± 1.660 · 0.0820 / sqrt(101).
    let after: Vec<f64> =
        before.iter().enumerate().map(|(i, x)| x + 0.05 + 0.1 * (i % 3) as f64 - 0.1).collect();
    let found = compare(&question(Margin::Absolute(0.07)), &alone(&after), &alone(&before));
    assert!((found.regression - 0.05).abs() < 0.002, "{found:?}");
    let half = 0.5 * (found.upper - found.lower);
    assert!((0.01355..0.0143).contains(&half), "{half}");
    assert_eq!((found.call, found.method), (Call::NotWorse, Method::Paired));
}

#[test]
fn samples_of_one_document_count_once() {
    // 200 samples in 40 documents whose samples all change alike are worth 40.
    let before = spread(200, 3.0, 1.0);
    let change = |document: usize| 0.1 * (document % 4) as f64;
    let after: Vec<f64> = before.iter().enumerate().map(|(i, x)| x + change(i / 5)).collect();
    let margin = question(Margin::Absolute(0.2));
    let clustered =
        compare(&margin, &samples(&after, |i| i / 5, |_| 1.0), &samples(&before, |i| i / 5, |_| 1.0));
    let small: Vec<f64> = (0..40).map(|document| 3.0 + change(document)).collect();
    let by_document = compare(&margin, &alone(&small), &alone(&spread(40, 3.0, 1e-9)));
    assert!((clustered.upper - by_document.upper).abs() < 1e-6, "{clustered:?} {by_document:?}");
    let as_if_alone = compare(&margin, &alone(&after), &alone(&before));
    assert!(clustered.upper - clustered.regression > 2.0 * (as_if_alone.upper - as_if_alone.regression));
    assert_eq!((clustered.samples, clustered.documents), (Some(200), Some(40)));
}

#[test]
fn few_documents_decide_nothing_and_equal_ones_do() {
    let before = spread(100, 3.0, 1.0);
    let after: Vec<f64> = before.iter().map(|x| x + 5.0).collect();
    let five = |values: &[f64]| samples(values, |i| i / 20, |_| 1.0);
    let few = compare(&question(Margin::Absolute(0.1)), &five(&after), &five(&before));
    assert_eq!(few.call, Call::TooFew { have: 5, need: 20 });
    let same = compare(&question(Margin::Absolute(0.0)), &alone(&before), &alone(&before));
    assert_eq!((same.call, same.upper), (Call::NotWorse, 0.0));
    // One document that weighs as much as all others together is not many.
    let heavy = |values: &[f64]| samples(values, |i| i, |i| if i == 0 { 99.0 } else { 1.0 });
    let one = compare(&question(Margin::Absolute(0.1)), &heavy(&after), &heavy(&before));
    assert_eq!(one.call, Call::TooFew { have: 3, need: 20 });
}

#[test]
fn right_or_wrong_answers_that_all_agree_are_no_proof_of_no_change() {
    let answers: Vec<f64> = (0..200).map(|i| f64::from(u8::from(i % 4 == 0))).collect();
    let same = |margin| compare(&question(Margin::Absolute(margin)), &alone(&answers), &alone(&answers)).call;
    assert_eq!(same(0.05), Call::NotWorse);
    assert!(matches!(same(0.005), Call::Undecided(Some(400..4_000))), "{:?}", same(0.005));
    assert!(matches!(same(0.0), Call::Undecided(None)));
}

#[test]
fn a_constant_score_is_no_proof_in_any_unit() {
    let ask = |margin| question(Margin::Absolute(margin));
    for unit in [1.0, 5.0, 100.0] {
        let all = alone(&[unit; 20]);
        let found = compare(&ask(0.01 * unit), &all, &all);
        assert!(matches!(found.call, Call::Undecided(_)), "{unit}: {found:?}");
        let many = alone(&vec![unit; 2_000]);
        assert_eq!(compare(&ask(0.01 * unit), &many, &many).call, Call::NotWorse, "{unit}");
    }
    assert!(Estimate::of_samples(&alone(&[100.0; 50]), Scale::Mean).is_none());
    // Right all along, five samples a document: as much as its documents say.
    let right = |n: usize| Estimate::of_samples(&samples(&vec![1.0; n], |i| i / 5, |_| 1.0), Scale::Mean);
    let (few, many) = (right(200).expect("an error"), right(20_000).expect("an error"));
    let higher = Question { direction: Direction::Higher, ..ask(0.01) };
    assert!(matches!(compare_unpaired(&higher, &few, &few).call, Call::Undecided(_)));
    assert_eq!(compare_unpaired(&higher, &many, &many).call, Call::NotWorse);
}

#[test]
fn a_change_of_all_answers_is_found_however_many_there_are() {
    let ask = Question { direction: Direction::Higher, ..question(Margin::Absolute(0.01)) };
    for n in [20, 29, 30, 200, 5_000] {
        let (right, wrong) = (alone(&vec![1.0; n]), alone(&vec![0.0; n]));
        let worse = compare(&ask, &wrong, &right);
        assert_eq!(worse.call, Call::Worse, "{n}: {worse:?}");
        assert_eq!(compare(&ask, &right, &wrong).call, Call::NotWorse, "{n}");
    }
}

#[test]
fn a_measured_baseline_counts_by_how_much_it_moves_the_limit() {
    // The condition is c <= log(e^b + m) or c >= log(e^b - m); its slope in b, by a small step.
    let base = 2.0f64;
    for (direction, sign) in [(Direction::Lower, 1.0), (Direction::Higher, -1.0)] {
        let margin = 0.1 * base.exp();
        let limit = |b: f64| (b.exp() + sign * margin).ln();
        let slope = (limit(base + 1e-6) - limit(base - 1e-6)) / 2e-6;
        let ask = Question { direction, scale: Scale::ExpMean, ..question(Margin::Absolute(margin)) };
        let test = Test::new(&ask, base);
        assert!((sign * (test.sign + test.tilt) - slope).abs() < 1e-6, "{direction:?}: {test:?} {slope}");
    }
}

#[test]
fn a_perplexity_is_compared_by_its_logarithm_in_its_own_unit() {
    let before = spread(200, 2.0, 0.5);
    let after: Vec<f64> = before.iter().enumerate().map(|(i, x)| x + 0.01 + 0.001 * (i % 2) as f64).collect();
    let ask = |margin| Question { scale: Scale::ExpMean, ..question(margin) };
    let base = 2.0f64.exp();
    let relative = compare(&ask(Margin::Relative(0.02)), &alone(&after), &alone(&before));
    assert_eq!(relative.call, Call::NotWorse);
    assert!((relative.baseline - base).abs() < 1e-9 && (relative.margin - 0.02 * base).abs() < 1e-9);
    assert!((relative.regression - base * 0.0105f64.exp_m1()).abs() < 1e-9);
    let absolute = compare(&ask(Margin::Absolute(0.02 * base)), &alone(&after), &alone(&before));
    assert!((absolute.margin - relative.margin).abs() < 1e-9 && absolute.call == Call::NotWorse);
    let tight = compare(&ask(Margin::Relative(0.01)), &alone(&after), &alone(&before));
    assert_eq!(tight.call, Call::Worse);
}

#[test]
fn a_relative_margin_is_a_share_of_the_value_without_its_sign() {
    for (sign, direction) in [(1.0, Direction::Lower), (-1.0, Direction::Higher), (-1.0, Direction::Lower)] {
        let before = spread(100, sign * 10.0, 1.0);
        let ask = Question { direction, ..question(Margin::Relative(0.05)) };
        let worse = if direction == Direction::Lower { 1.0 } else { -1.0 };
        let shifted = |by: f64| alone(&before.iter().map(|x| x + worse * by).collect::<Vec<f64>>());
        let found = compare(&ask, &shifted(0.4), &alone(&before));
        assert!((found.margin - 0.5).abs() < 1e-9 && (found.regression - 0.4).abs() < 1e-9, "{found:?}");
        assert_eq!(found.call, Call::NotWorse);
        assert_eq!(compare(&ask, &shifted(0.6), &alone(&before)).call, Call::Worse);
    }
}

#[test]
fn reports_alone_are_compared_by_both_errors() {
    let metric = |value, stderr, n| Metric {
        value,
        stderr: Some(stderr),
        n,
        n_total: None,
        higher_is_better: None,
        scale: Scale::Mean,
        task_version: String::new(),
        n_shot: None,
        samples: None,
    };
    let estimate = |value, stderr, n| Estimate::of_report(&metric(value, stderr, n)).expect("an error");
    let ask = question(Margin::Absolute(0.2));
    let found = compare_unpaired(&ask, &estimate(3.1, 0.03, None), &estimate(3.0, 0.04, None));
    assert!((found.upper - (0.1 + 1.644_854 * 0.05)).abs() < 1e-6, "{found:?}");
    assert_eq!((found.call, found.samples), (Call::NotWorse, None));
    let few = compare_unpaired(&ask, &estimate(3.1, 0.03, Some(10)), &estimate(3.0, 0.04, Some(1_000)));
    assert_eq!(few.call, Call::TooFew { have: 10, need: 20 });
    // An error of 0 is believed of nothing else.
    assert!(Estimate::of_report(&metric(0.5, 0.0, Some(1_000))).is_none());
    assert!(Estimate::of_report(&metric(1.0, 0.0, None)).is_none());
    // All 50 right twice: a standard error of 0 does not mean that there is none.
    let ask = Question { direction: Direction::Higher, ..question(Margin::Absolute(0.01)) };
    let perfect = compare_unpaired(&ask, &estimate(1.0, 0.0, Some(50)), &estimate(1.0, 0.0, Some(50)));
    assert_eq!((perfect.method, matches!(perfect.call, Call::Undecided(_))), (Method::UnpairedBinary, true));
}

proptest! {
    #[test]
    fn order_ids_and_unit_of_weight_do_not_matter(
        changes in prop::collection::vec(-1.0..1.0f64, 40), factor in 0.1..10.0f64,
    ) {
        let before = spread(40, 3.0, 1.0);
        let after: Vec<f64> = before.iter().zip(&changes).map(|(x, change)| x + change).collect();
        let ask = question(Margin::Absolute(0.1));
        let weight = |i: usize| 1.0 + (i % 5) as f64;
        let plain = compare(&ask, &samples(&after, |i| i, weight), &samples(&before, |i| i, weight));
        let scaled = |i: usize| factor * weight(i);
        let same = compare(&ask, &samples(&after, |i| i, scaled), &samples(&before, |i| i, scaled));
        prop_assert!((plain.upper - same.upper).abs() < 1e-9 && (plain.lower - same.lower).abs() < 1e-9);
        prop_assert!(plain.lower <= plain.regression && plain.regression <= plain.upper);
    }
}
