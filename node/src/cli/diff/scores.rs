//! The scores of two reports side by side. Says what was measured, and judges nothing: that is the gate's.

use std::collections::BTreeSet;

use serde::Serialize;
use weighlock_protocol::gate::{Metric, Report};

use super::text::figure;
use crate::cli::output::table;

/// Two reports, metric by metric.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Scores {
    /// Whether every metric has the same value in both.
    pub(super) same: bool,
    /// Why the figures may not be comparable, each in one line.
    warnings: Vec<String>,
    metrics: Vec<Score>,
}

/// One metric in both reports.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Score {
    metric: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    a: Option<Figure>,
    #[serde(skip_serializing_if = "Option::is_none")]
    b: Option<Figure>,
    /// B - A, where both have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    difference: Option<f64>,
    /// Standard error of the difference, as if the runs were independent.
    #[serde(skip_serializing_if = "Option::is_none")]
    stderr: Option<f64>,
    /// Where a direction is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    change: Option<Direction>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Direction {
    Better,
    Worse,
    Same,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Figure {
    value: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    stderr: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    n: Option<u64>,
}

impl Scores {
    /// All metrics of both, by name.
    pub(super) fn of(a: &Report, b: &Report) -> Self {
        let names: BTreeSet<&String> = a.metrics.keys().chain(b.metrics.keys()).collect();
        let metrics: Vec<Score> =
            names.into_iter().map(|name| Score::of(name, a.metrics.get(name), b.metrics.get(name))).collect();
        let same = metrics.iter().all(|score| score.difference == Some(0.0));
        Self { same, warnings: warnings(a, b), metrics }
    }

    pub(super) fn text(&self) -> String {
        let side = |side: &Option<Figure>| match side {
            None => ["-".to_owned(), String::new()],
            Some(it) => [
                match it.stderr {
                    Some(stderr) => format!("{} ± {}", value(it.value), figure(stderr)),
                    None => value(it.value),
                },
                it.n.map_or(String::new(), |n| n.to_string()),
            ],
        };
        let row = |score: &Score| {
            let ([a, n_a], [b, n_b]) = (side(&score.a), side(&score.b));
            let difference = match (score.difference, score.stderr) {
                (None, _) => "-".into(),
                (Some(by), None) => signed(by),
                (Some(by), Some(stderr)) => format!("{} ± {}", signed(by), figure(stderr)),
            };
            let change = match score.change {
                Some(Direction::Better) => "better",
                Some(Direction::Worse) => "worse",
                Some(Direction::Same) => "same",
                None => "",
            };
            let name = score.metric.chars().filter(|c| !c.is_control()).collect();
            vec![name, a, n_a, b, n_b, difference, change.into()]
        };
        let rows: Vec<_> = self.metrics.iter().map(row).collect();
        let head = ["METRIC", "A", "N", "B", "N", "B - A", ""];
        let mut out = table(&head, &[1, 2, 3, 4, 5], &rows);
        for warning in &self.warnings {
            out += &format!("warning: {warning}\n");
        }
        out
    }
}

impl Score {
    fn of(name: &str, a: Option<&Metric>, b: Option<&Metric>) -> Self {
        let figure = |m: &Metric| Figure { value: m.value, stderr: m.stderr, n: m.n };
        let both = a.zip(b);
        let difference = both.map(|(a, b)| b.value - a.value);
        let stderr = both.and_then(|(a, b)| Some(a.stderr?.hypot(b.stderr?)));
        let higher = both.and_then(|(a, b)| match (a.higher_is_better, b.higher_is_better) {
            (Some(a), Some(b)) if a != b => None,
            (a, b) => a.or(b),
        });
        let change = difference.zip(higher).map(|(by, higher)| {
            if by == 0.0 {
                Direction::Same
            } else if (by > 0.0) == higher {
                Direction::Better
            } else {
                Direction::Worse
            }
        });
        Self { metric: name.to_owned(), a: a.map(figure), b: b.map(figure), difference, stderr, change }
    }
}

/// What keeps two reports from being comparable.
fn warnings(a: &Report, b: &Report) -> Vec<String> {
    let mut out = Vec::new();
    match (a.suite, b.suite) {
        (Some(x), Some(y)) if x != y => {
            out.push("the suites differ: tasks, prompts or data are others".into())
        }
        (Some(_), Some(_)) => {}
        _ => out.push("it is not known whether both ran the same suite".into()),
    }
    if (&a.harness.name, &a.harness.version) != (&b.harness.name, &b.harness.version) {
        let name = |r: &Report| format!("{} {}", r.harness.name, r.harness.version);
        out.push(format!("the harnesses differ: {}, {}", name(a).trim(), name(b).trim()));
    }
    if a.chat_template_sha256 != b.chat_template_sha256 {
        out.push("the harness applied another chat template, or none".into());
    }
    for (side, report) in [("A", a), ("B", b)] {
        let limited = |m: &Metric| m.n.zip(m.n_total).is_some_and(|(n, total)| n < total);
        let count = report.metrics.values().filter(|m| limited(m)).count();
        if count > 0 {
            out.push(format!("in {side}, {count} metrics were taken over a part of the samples only"));
        }
    }
    out
}

/// Five significant digits, without an exponent where it is not needed.
fn value(x: f64) -> String {
    let size = x.abs();
    if x == 0.0 {
        return "0".into();
    }
    if !(1e-3..1e7).contains(&size) {
        return format!("{x:.4e}");
    }
    let digits = 4 - size.log10().floor() as i32;
    format!("{x:.*}", usize::try_from(digits).unwrap_or(0))
}

fn signed(by: f64) -> String {
    let sign = if by > 0.0 { "+" } else { "" };
    format!("{sign}{}", figure(by))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn report(metrics: serde_json::Value) -> Report {
        let harness = json!({"name": "lm-evaluation-harness", "version": "0.4.13"});
        serde_json::from_value(json!({"version": 1, "harness": harness, "metrics": metrics}))
            .expect("a report")
    }

    #[test]
    fn metrics_stand_side_by_side_with_their_errors_and_direction() {
        let a = report(json!({
            "acc": {"value": 0.5, "stderr": 0.03, "n": 400, "higher_is_better": true},
            "loss": {"value": 2.0, "higher_is_better": false},
            "gone": {"value": 1.0},
        }));
        let b = report(json!({
            "acc": {"value": 0.55, "stderr": 0.04, "n": 400, "higher_is_better": true},
            "loss": {"value": 2.5, "higher_is_better": false},
            "new": {"value": 0.0},
        }));
        let scores = Scores::of(&a, &b);
        assert!(!scores.same);
        let [acc, gone, loss, new] = &scores.metrics[..] else { panic!("{scores:?}") };
        assert!((acc.difference.expect("both") - 0.05).abs() < 1e-12);
        assert!((acc.stderr.expect("both") - 0.05).abs() < 1e-12);
        assert_eq!((acc.change, loss.change), (Some(Direction::Better), Some(Direction::Worse)));
        assert_eq!((loss.stderr, gone.b, new.a, gone.difference), (None, None, None, None));
        let text = scores.text();
        let line =
            |start: &str| text.lines().find(|line| line.starts_with(start)).expect("a line").to_owned();
        assert!(line("acc").contains("0.50000 ± 0.0300"), "{text}");
        assert!(line("acc").contains("+0.0500 ± 0.0500") && line("acc").ends_with("better"), "{text}");
        assert!(line("loss").contains("+0.500") && line("loss").ends_with("worse"), "{text}");
        assert!(line("warning").contains("same suite"), "{text}");
    }

    #[test]
    fn equal_reports_are_the_same_and_directions_that_clash_say_nothing() {
        let a = report(json!({"m": {"value": 1.0, "higher_is_better": true}}));
        assert!(Scores::of(&a, &a).same);
        assert_eq!(Scores::of(&a, &a).metrics[0].change, Some(Direction::Same));
        let b = report(json!({"m": {"value": 2.0, "higher_is_better": false}}));
        assert_eq!(Scores::of(&a, &b).metrics[0].change, None);
    }

    #[test]
    fn what_keeps_reports_from_being_comparable_is_said() {
        let mut a = report(json!({"m": {"value": 1.0, "n": 10, "n_total": 100}}));
        let mut b = report(json!({"m": {"value": 1.0}}));
        a.suite = Some(weighlock_protocol::Sha256::of(b"one"));
        b.suite = Some(weighlock_protocol::Sha256::of(b"two"));
        b.harness.version = "0.4.12".into();
        b.chat_template_sha256 = a.suite;
        let told = Scores::of(&a, &b).warnings.join("\n");
        for word in ["suites", "0.4.12", "chat template", "in A, 1 metrics"] {
            assert!(told.contains(word), "{word}: {told}");
        }
    }
}
