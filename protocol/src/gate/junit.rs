//! A verdict as JUnit XML, so that any CI shows it: one test case for each metric, one for the contract and the rest.

use std::fmt::Write as _;

use super::reasons::Severity;
use super::verdict::{Finding, MetricRow, Outcome, Verdict};

/// The name of the case for all that belongs to no metric.
const ARTIFACT: &str = "artifact";

/// JUnit XML (the dialect that Jenkins and GitLab read): *fail* is a `failure`, *no evidence* an `error`, a metric that
/// nothing was held against is `skipped`, and warnings go to `system-out`.
pub fn junit(verdict: &Verdict) -> String {
    let mut cases = vec![Case::new(ARTIFACT, verdict, None)];
    cases.extend(verdict.metrics.iter().map(|row| Case::new(&row.metric, verdict, Some(row))));
    let count = |wanted: Outcome| cases.iter().filter(|case| case.outcome == wanted).count();
    let (failures, errors) = (count(Outcome::Fail), count(Outcome::NoEvidence));
    let skipped = cases.iter().filter(|case| case.skipped).count();
    let head = format!(
        "name=\"weighlock gate\" tests=\"{}\" failures=\"{failures}\" errors=\"{errors}\" skipped=\"{skipped}\"",
        cases.len()
    );
    let mut out =
        format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites {head}>\n  <testsuite {head}>\n");
    for case in &cases {
        case.write(&mut out);
    }
    out.push_str("  </testsuite>\n</testsuites>\n");
    out
}

struct Case<'a> {
    name: &'a str,
    outcome: Outcome,
    skipped: bool,
    findings: Vec<&'a Finding>,
}

impl<'a> Case<'a> {
    fn new(name: &'a str, verdict: &'a Verdict, row: Option<&'a MetricRow>) -> Self {
        let names: Vec<&str> = verdict.metrics.iter().map(|row| row.metric.as_str()).collect();
        let belongs = |finding: &&Finding| {
            let of = finding.reason.metric();
            let of = of.as_deref().filter(|of| names.contains(of));
            of == row.map(|row| row.metric.as_str())
        };
        let findings: Vec<&Finding> = verdict.reasons.iter().filter(belongs).collect();
        let worst = findings.iter().map(|finding| finding.severity).max();
        let of_findings = match worst {
            Some(Severity::Fail) => Outcome::Fail,
            Some(Severity::NoEvidence) => Outcome::NoEvidence,
            Some(Severity::Warning) | None => Outcome::Pass,
        };
        Self { name, outcome: of_findings, skipped: row.is_some_and(MetricRow::is_skipped), findings }
    }

    fn write(&self, out: &mut String) {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "    <testcase classname=\"weighlock.gate\" name=\"{}\">", escaped(self.name));
        if self.skipped {
            out.push_str("      <skipped message=\"not judged\"/>\n");
        }
        for finding in &self.findings {
            let (message, code) = (escaped(&finding.message), finding.reason.code());
            let element = match finding.severity {
                Severity::Fail => "failure",
                Severity::NoEvidence => "error",
                Severity::Warning => {
                    let _ = writeln!(out, "      <system-out>warning: {message}</system-out>");
                    continue;
                }
            };
            let _ =
                writeln!(out, "      <{element} type=\"{code}\" message=\"{message}\">{message}</{element}>");
        }
        out.push_str("    </testcase>\n");
    }
}

/// Fit for an attribute or a text of XML 1.0, which has no way to write most control characters.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_xml_cannot_hold_is_escaped_or_replaced() {
        assert_eq!(
            escaped("a<b & \"c\" 'd'>\u{0}\n\u{ffff}ü"),
            "a&lt;b &amp; &quot;c&quot; &apos;d&apos;&gt;\u{fffd}\u{fffd}\u{fffd}ü"
        );
    }
}
