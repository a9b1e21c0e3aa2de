//! A verdict as a person reads it at a desk.

use std::fmt;

use super::contract::ContractChange;
use super::reasons::{Severity, figure, margin_text};
use super::stats::{Call, Comparison, Method};
use super::verdict::{MetricRow, Verdict};

/// Columns that hold figures, which stand at the right.
const FIGURES: std::ops::Range<usize> = 1..6;

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.metrics.is_empty() {
            table(f, &self.metrics)?;
            writeln!(f)?;
        }
        for change in &self.contract {
            contract(f, change)?;
        }
        if !self.contract.is_empty() {
            writeln!(f)?;
        }
        for finding in &self.reasons {
            let mark = match finding.severity {
                Severity::Fail => "fail",
                Severity::NoEvidence => "no evidence",
                Severity::Warning => "warning",
            };
            writeln!(f, "{mark}: {}", finding.message)?;
        }
        write!(f, "verdict: {}", self.outcome.as_str())
    }
}

fn table(f: &mut fmt::Formatter<'_>, rows: &[MetricRow]) -> fmt::Result {
    let head = ["metric", "baseline", "candidate", "worse by", "interval", "margin", "method", "verdict"];
    let mut lines = vec![head.map(str::to_owned)];
    for row in rows {
        let outcome = if row.is_skipped() { "not judged" } else { row.outcome.as_str() };
        lines.push(line(row, row.comparison.as_ref(), row.metric.clone(), outcome.to_owned()));
        if let Some(drift) = &row.drift {
            let name = format!("{} (drift)", row.metric);
            lines.push(line(row, Some(drift), name, call(drift.call).to_owned()));
        }
    }
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    for line in &lines {
        let mut text = String::new();
        for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
            let space = " ".repeat(width - cell.chars().count());
            let (before, after) =
                if FIGURES.contains(&column) { (space, String::new()) } else { (String::new(), space) };
            text.push_str(&format!("{before}{cell}{after}  "));
        }
        writeln!(f, "{}", text.trim_end())?;
    }
    Ok(())
}

fn line(row: &MetricRow, comparison: Option<&Comparison>, name: String, outcome: String) -> [String; 8] {
    let value = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), figure);
    let Some(c) = comparison else {
        let margin = margin_text(row.max_regression);
        let none = || "-".to_owned();
        return [name, value(row.baseline), value(row.candidate), none(), none(), margin, none(), outcome];
    };
    let interval = format!("{} .. {}", figure(c.lower), figure(c.upper));
    let (baseline, candidate) = (figure(c.baseline), figure(c.candidate));
    [name, baseline, candidate, figure(c.regression), interval, figure(c.margin), method(c), outcome]
}

fn method(comparison: &Comparison) -> String {
    let name = match comparison.method {
        Method::Paired | Method::PairedBinary => "paired",
        Method::Unpaired | Method::UnpairedBinary => "unpaired",
    };
    match (comparison.samples, comparison.documents) {
        (Some(n), Some(documents)) if documents < n => format!("{name}, n {n} in {documents} documents"),
        (Some(n), _) => format!("{name}, n {n}"),
        (None, _) => name.to_owned(),
    }
}

fn call(call: Call) -> &'static str {
    match call {
        Call::NotWorse => "pass",
        Call::Worse => "fail",
        Call::Undecided(_) | Call::TooFew { .. } => "no evidence",
    }
}

/// Digests by their first digits; JSON has the whole.
fn short(value: &str) -> String {
    let hex = value.strip_prefix("sha256:").unwrap_or(value);
    let is_digest = hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit());
    if is_digest { hex[..12].to_owned() } else { value.to_owned() }
}

fn contract(f: &mut fmt::Formatter<'_>, change: &ContractChange) -> fmt::Result {
    let side = |value: &Option<String>| value.as_deref().map_or_else(|| "none".into(), short);
    let allowed = if change.allowed { "allowed" } else { "not allowed" };
    let (baseline, candidate) = (side(&change.baseline), side(&change.candidate));
    writeln!(f, "contract: {} {baseline} -> {candidate} ({allowed})", change.field.as_str())
}
