//! The verdict: whether what is known of a candidate is what its policy asks for.

mod compare;
mod figures;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::contract::{ContractChange, changes};
use super::policy::{MetricRule, Policy};
use super::reasons::{Reason, Severity, Side, plain};
use super::report::Report;
use super::samples::Samples;
use super::stats::{Comparison, Direction, Margin};
use crate::id::{ManifestDigest, Sha256};
use crate::manifest::contract::Contract;

/// Version of the verdict's JSON form.
pub const VERDICT_VERSION: u32 = 1;
/// Most reasons of one kind that a verdict lists for files; further ones add nothing.
const FILES_NAMED_MAX: usize = 100;
/// Endings of files that may be pickles, in lower case.
const PICKLES: [&str; 10] =
    [".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".p", ".joblib", ".dill", ".pt2"];

/// A report and the digest of its stored bytes.
#[derive(Debug, Clone, Copy)]
pub struct NamedReport<'a> {
    /// SHA-256 of the bytes that evidence stores.
    pub digest: Sha256,
    /// What they say.
    pub report: &'a Report,
}

/// What is known of one artifact.
#[derive(Debug, Clone, Default)]
pub struct Evidence<'a> {
    /// Its manifest digest, if it is an artifact and not a bare report.
    pub digest: Option<ManifestDigest>,
    /// Its contract.
    pub contract: Option<&'a Contract>,
    /// Its reports. Whoever gives a report that names no artifact vouches that it is about this one.
    pub reports: Vec<NamedReport<'a>>,
    /// Samples by the metric's name.
    pub samples: BTreeMap<String, &'a Samples>,
}

/// All that a verdict rests on.
#[derive(Debug, Clone)]
pub struct Input<'a> {
    /// What must be shown.
    pub policy: &'a Policy,
    /// What wants to run.
    pub candidate: Evidence<'a>,
    /// What runs now; `None` if nothing does.
    pub baseline: Option<Evidence<'a>>,
    /// What drift is counted from, if something is pinned.
    pub pinned: Option<Evidence<'a>>,
    /// Paths of the candidate's files, if they are known.
    pub files: Option<&'a [String]>,
}

/// What the gate says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// All that the policy asks for is shown.
    Pass,
    /// Something that must not be is shown.
    Fail,
    /// Something that must be shown is not.
    NoEvidence,
}

/// What the gate says, why, and what it rests on.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    /// [`VERDICT_VERSION`].
    pub version: u32,
    /// In one word.
    pub outcome: Outcome,
    /// Digest of the policy.
    pub policy: Sha256,
    /// The candidate.
    pub candidate: Basis,
    /// The baseline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Basis>,
    /// The pinned baseline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pinned: Option<Basis>,
    /// The suites of the reports that were used.
    pub suites: BTreeSet<Sha256>,
    /// One row for each metric of the policy.
    pub metrics: Vec<MetricRow>,
    /// Whether both contracts were known.
    pub contract_compared: bool,
    /// What changed between them.
    pub contract: Vec<ContractChange>,
    /// Why, the worst first.
    pub reasons: Vec<Finding>,
}

/// What one side of a verdict rests on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Basis {
    /// Manifest digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<ManifestDigest>,
    /// Digests of its reports, sorted.
    pub reports: BTreeSet<Sha256>,
    /// Digests of its samples, by metric.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub samples: BTreeMap<String, Sha256>,
}

/// One metric.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MetricRow {
    /// Its name.
    pub metric: String,
    /// How it came out by itself.
    pub outcome: Outcome,
    /// Whether a bound was held against it or a comparison made. Where neither was, a pass says nothing of it: it is
    /// optional and missing, or there was nothing to compare it with.
    pub judged: bool,
    /// Which way is better.
    pub direction: Direction,
    /// The candidate's value, as reported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub candidate: Option<f64>,
    /// The baseline's value, as reported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<f64>,
    /// What the policy allows against the baseline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_regression: Option<Margin>,
    /// Against the baseline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comparison: Option<Comparison>,
    /// Against the pinned baseline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drift: Option<Comparison>,
}

/// A reason with what it does and how it reads.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// What it does to the verdict.
    pub severity: Severity,
    /// The reason.
    #[serde(flatten)]
    pub reason: Reason,
    /// One line for people.
    pub message: String,
}

/// Weighs a candidate. Everything that is missing, contradictory or undecided is no evidence; a fail wins over that.
///
/// Decisions that a reader may look for:
/// - Absolute bounds are held against the value as it stands, as a person reads `max = 3.0`; where the error crosses
///   the bound, a warning says so.
/// - Runs on different hardware keys are no evidence unless the policy says `other_hardware = "warn"`; a report that
///   does not say where it ran is a warning, another runtime, too.
/// - `required = false` excuses a metric that is absent, never one that is bad or undecided.
/// - A comparison is made only if both reports name one suite. Where both sides carry samples they must match; they
///   are never dropped in favour of a weaker comparison.
/// - A bare report as baseline is compared, but its contract is not; [`Verdict::contract_compared`] tells.
/// - Each metric is judged at its own confidence. A candidate passes only if all do, so wrong passes do not add up;
///   wrong fails do, by one less the confidence for each metric.
pub fn judge(input: &Input<'_>) -> Verdict {
    let mut reasons = Reasons::default();
    let contract = check_contract(input, &mut reasons);
    check_files(input, &mut reasons);
    for (side, evidence) in sides(input) {
        check_reports(side, evidence, &mut reasons);
    }
    let mut judged = 0;
    let mut rows = Vec::new();
    for (name, rule) in &input.policy.metrics {
        let (row, rules_applied) = judge_metric(input, name, rule, &mut reasons);
        judged += rules_applied;
        rows.push(row);
    }
    let compares = input.policy.metrics.values().any(|rule| rule.max_regression.is_some());
    if input.baseline.is_none() && judged > 0 && compares {
        reasons.add(Reason::NothingCompared);
    }
    // Where something else is said already, this would only repeat it.
    if judged == 0 && reasons.outcome() == Outcome::Pass {
        reasons.add(Reason::NothingJudged { has_baseline: input.baseline.is_some() });
    }
    Verdict {
        version: VERDICT_VERSION,
        outcome: reasons.outcome(),
        policy: input.policy.digest(),
        candidate: basis(&input.candidate),
        baseline: input.baseline.as_ref().map(basis),
        pinned: input.pinned.as_ref().map(basis),
        suites: sides(input)
            .flat_map(|(_, e)| e.reports.iter().filter_map(|named| named.report.suite))
            .collect(),
        metrics: rows,
        contract_compared: contract.is_some(),
        contract: contract.unwrap_or_default(),
        reasons: reasons.findings(),
    }
}

impl Outcome {
    /// The exit code of `weighlock gate`: 0, 1 or 3.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Pass => 0,
            Self::Fail => 1,
            Self::NoEvidence => 3,
        }
    }

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::NoEvidence => "no evidence",
        }
    }
}

impl MetricRow {
    /// Whether it passed because nothing was held against it.
    pub fn is_skipped(&self) -> bool {
        self.outcome == Outcome::Pass && !self.judged
    }
}

impl Verdict {
    /// Pretty JSON with a line break.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }
}

/// Reasons as they are found, each once.
#[derive(Debug, Default)]
struct Reasons(Vec<Reason>);

impl Reasons {
    fn add(&mut self, reason: Reason) {
        if !self.0.contains(&reason) {
            self.0.push(reason);
        }
    }

    fn outcome(&self) -> Outcome {
        outcome_of(self.0.iter())
    }

    fn findings(self) -> Vec<Finding> {
        let finding =
            |reason: Reason| Finding { severity: reason.severity(), message: reason.to_string(), reason };
        let mut findings: Vec<Finding> = self.0.into_iter().map(finding).collect();
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        findings
    }
}

fn outcome_of<'a>(reasons: impl Iterator<Item = &'a Reason>) -> Outcome {
    match reasons.map(Reason::severity).max() {
        Some(Severity::Fail) => Outcome::Fail,
        Some(Severity::NoEvidence) => Outcome::NoEvidence,
        Some(Severity::Warning) | None => Outcome::Pass,
    }
}

fn sides<'i, 'a>(input: &'i Input<'a>) -> impl Iterator<Item = (Side, &'i Evidence<'a>)> {
    let others = [(Side::Baseline, &input.baseline), (Side::Pinned, &input.pinned)];
    let others =
        others.into_iter().filter_map(|(side, evidence)| evidence.as_ref().map(|evidence| (side, evidence)));
    std::iter::once((Side::Candidate, &input.candidate)).chain(others)
}

fn basis(evidence: &Evidence<'_>) -> Basis {
    Basis {
        digest: evidence.digest,
        reports: evidence.reports.iter().map(|named| named.digest).collect(),
        samples: evidence.samples.iter().map(|(name, samples)| (name.clone(), samples.digest())).collect(),
    }
}

/// The changes, if both contracts are known.
fn check_contract(input: &Input<'_>, reasons: &mut Reasons) -> Option<Vec<ContractChange>> {
    let rule = &input.policy.contract;
    let candidate = input.candidate.contract;
    if let (Some(expected), Some(contract)) = (rule.min_max_seq_len, candidate)
        && contract.max_seq_len.is_none_or(|actual| actual < expected)
    {
        reasons.add(Reason::ContextTooShort { expected, actual: contract.max_seq_len });
    }
    if candidate.is_none() {
        reasons.add(Reason::ContractUnknown);
    }
    let baseline = input.baseline.as_ref()?;
    let (Some(before), Some(after)) = (baseline.contract, candidate) else {
        if baseline.contract.is_none() {
            reasons.add(Reason::ContractNotCompared);
        }
        return None;
    };
    let changes = changes(before, after, |field| rule.allow.contains(&field));
    for change in changes.iter().filter(|change| !change.allowed) {
        reasons.add(Reason::ContractChanged {
            field: change.field,
            expected: change.baseline.clone(),
            actual: change.candidate.clone(),
        });
    }
    Some(changes)
}

fn check_files(input: &Input<'_>, reasons: &mut Reasons) {
    let rule = &input.policy.contract;
    if !rule.deny_pickle && rule.required_files.is_empty() {
        return;
    }
    let Some(files) = input.files else {
        return reasons.add(Reason::FilesUnknown);
    };
    if rule.deny_pickle {
        for path in files.iter().filter(|path| is_pickle(path)).take(FILES_NAMED_MAX) {
            reasons.add(Reason::PickleFile { path: plain(path) });
        }
    }
    let there: BTreeSet<&String> = files.iter().collect();
    for path in rule.required_files.iter().filter(|path| !there.contains(path)) {
        reasons.add(Reason::RequiredFileMissing { path: plain(path) });
    }
}

fn is_pickle(path: &str) -> bool {
    let path = path.to_ascii_lowercase();
    PICKLES.iter().any(|ending| path.ends_with(ending))
}

/// What holds for a report as a whole.
fn check_reports(side: Side, evidence: &Evidence<'_>, reasons: &mut Reasons) {
    for NamedReport { report, .. } in &evidence.reports {
        if let Some(actual) = report.artifact
            && evidence.digest != Some(actual)
        {
            reasons.add(Reason::OtherArtifact { side, expected: evidence.digest, actual });
        }
        if let (Some(actual), Some(contract)) = (report.chat_template_sha256, evidence.contract)
            && contract.chat_template_sha256 != Some(actual)
        {
            reasons.add(Reason::ChatTemplateDiffers {
                side,
                expected: contract.chat_template_sha256,
                actual,
            });
        }
    }
}

/// The row of one metric, and how many rules of the policy were applied to it.
fn judge_metric(
    input: &Input<'_>,
    name: &str,
    rule: &MetricRule,
    reasons: &mut Reasons,
) -> (MetricRow, usize) {
    // The metric's own reasons decide its row; the same reason of another metric must not hide one here.
    let mut own = Reasons::default();
    let mut row = MetricRow {
        metric: name.to_owned(),
        outcome: Outcome::Pass,
        judged: false,
        direction: rule.direction,
        candidate: None,
        baseline: None,
        max_regression: rule.max_regression,
        comparison: None,
        drift: None,
    };
    let mut judged = 0;
    let judge = compare::Metric { policy: input.policy, name, rule };
    if let Some(candidate) = judge.figure(Side::Candidate, &input.candidate, &mut own) {
        row.candidate = Some(candidate.metric.value);
        judged += judge.bounds(&candidate, &mut own);
        let drift = input.policy.drift_of(rule);
        if let Some(evidence) = &input.baseline {
            row.baseline = figures::value(evidence, name);
            if let Some(margin) = rule.max_regression {
                row.comparison = judge.against(Side::Baseline, evidence, &candidate, margin, &mut own);
            }
            if drift.is_some() && input.pinned.is_none() {
                own.add(Reason::PinnedMissing { metric: name.to_owned() });
            }
        }
        if let (Some(margin), Some(evidence)) = (drift, &input.pinned) {
            row.drift = judge.against(Side::Pinned, evidence, &candidate, margin, &mut own);
        }
        judged += usize::from(row.comparison.is_some()) + usize::from(row.drift.is_some());
    }
    row.outcome = outcome_of(own.0.iter());
    row.judged = judged > 0;
    own.0.into_iter().for_each(|reason| reasons.add(reason));
    (row, judged)
}
