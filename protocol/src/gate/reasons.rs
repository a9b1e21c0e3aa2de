//! Why a verdict is what it is: data with stable codes, each with one line for people.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::contract::ContractField;
use super::stats::{Direction, Margin};
use crate::id::{ManifestDigest, Sha256};

/// Longest text from outside that a reason repeats, in characters.
const TEXT_SHOWN_MAX: usize = 256;

/// What a reason does to the verdict. The worst one counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Worth knowing.
    Warning,
    /// What must be shown is not shown.
    NoEvidence,
    /// What is shown must not be.
    Fail,
}

/// Whose report or contract is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// What wants to run.
    Candidate,
    /// What runs.
    Baseline,
    /// What drift is counted from.
    Pinned,
}

/// One reason. `actual` is the candidate's where no side is named.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "code", rename_all = "snake_case")]
#[expect(missing_docs, reason = "the fields are what their names say; the text tells the rest")]
pub enum Reason {
    /// Worse by more than the margin, beyond doubt.
    Worse { metric: String, than: Side, regression: f64, lower: f64, margin: f64, confidence: f64 },
    /// The value is above an absolute bound.
    AboveMax { metric: String, expected: f64, actual: f64 },
    /// The value is below an absolute bound.
    BelowMin { metric: String, expected: f64, actual: f64 },
    /// A contract field changed that must not.
    ContractChanged { field: ContractField, expected: Option<String>, actual: Option<String> },
    /// The context is shorter than the policy asks for, or not known.
    ContextTooShort { expected: u64, actual: Option<u64> },
    /// A file that runs code when it is loaded.
    PickleFile { path: String },
    /// A file that must be there is not.
    RequiredFileMissing { path: String },

    /// Neither within the margin nor beyond it for sure.
    Inconclusive {
        metric: String,
        than: Side,
        regression: f64,
        lower: f64,
        upper: f64,
        margin: f64,
        samples_needed: Option<u64>,
    },
    /// Too few independent documents to decide.
    TooFewDocuments { metric: String, than: Side, expected: u64, actual: u64 },
    /// A required metric is in no report.
    MetricMissing { metric: String, side: Side },
    /// Two reports have the metric.
    MetricAmbiguous { metric: String, side: Side },
    /// The value, its error or its size is not a possible one.
    FigureImpossible { metric: String, side: Side },
    /// No standard error and no samples.
    ErrorMissing { metric: String, side: Side },
    /// The run left samples out.
    LimitedRun { metric: String, side: Side, expected: u64, actual: Option<u64> },
    /// Fewer samples than the policy asks for.
    TooFewSamples { metric: String, side: Side, expected: u64, actual: Option<u64> },
    /// A report that does not name its suite.
    SuiteUnknown { metric: String, side: Side },
    /// Another suite than the other run's.
    SuiteDiffers { metric: String, than: Side, expected: Sha256, actual: Sha256 },
    /// A suite that the policy does not name.
    SuiteNotAllowed { metric: String, side: Side, actual: Sha256 },
    /// The harness applied another chat template than the artifact has.
    ChatTemplateDiffers { side: Side, expected: Option<Sha256>, actual: Sha256 },
    /// Only one of two runs applied a chat template.
    ChatTemplateAppliedOnce { metric: String, than: Side },
    /// A report that speaks of another artifact.
    OtherArtifact { side: Side, expected: Option<ManifestDigest>, actual: ManifestDigest },
    /// The harness says that the other way is better.
    DirectionContradicts { metric: String, side: Side, expected: Direction },
    /// The two runs measured in different ways.
    SetupDiffers { metric: String, than: Side, what: &'static str, expected: String, actual: String },
    /// The two runs were on different hardware.
    HardwareDiffers { than: Side, expected: String, actual: String, refused: bool },
    /// Pairing is required and a run has no samples.
    SamplesMissing { metric: String, side: Side },
    /// The samples are not those that the report speaks of.
    SamplesDisagree { metric: String, side: Side, what: &'static str },
    /// The two runs did not score the same samples.
    SamplesUnmatched { metric: String, than: Side, both: u64, candidate_only: u64, other_only: u64 },
    /// A sample belongs to another document in the other run.
    DocumentDiffers { metric: String, than: Side, sample: String },
    /// The value does not come from samples, and pairing is required.
    NotPairable { metric: String },
    /// The policy limits drift and there is nothing to count it from.
    PinnedMissing { metric: String },
    /// The candidate's contract is not known.
    ContractUnknown,
    /// What files the artifact has is not known, and the policy asks.
    FilesUnknown,
    /// No rule of the policy could be applied.
    NothingJudged { has_baseline: bool },

    /// The policy bounds what may get worse, and there is nothing to compare with.
    NothingCompared,
    /// The baseline's contract is not known, so changes are not seen.
    ContractNotCompared,
    /// A metric that is not required is in no report.
    OptionalMissing { metric: String, side: Side },
    /// The value keeps an absolute bound, but its error reaches beyond.
    BoundWithinError { metric: String, expected: f64, actual: f64, reach: f64 },
    /// An absolute bound was judged by a value without an error.
    BoundWithoutError { metric: String },
    /// A report does not say where it ran.
    HardwareUnknown { side: Side },
    /// The two runs used different runtimes.
    RuntimeDiffers { than: Side, expected: String, actual: String },
    /// A standard error was taken as that of a large sample.
    SampleCountUnknown { metric: String, side: Side },
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Side::Candidate => "candidate",
            Side::Baseline => "baseline",
            Side::Pinned => "pinned baseline",
        })
    }
}

impl Reason {
    /// What it does to the verdict.
    pub fn severity(&self) -> Severity {
        match self {
            Self::Worse { .. }
            | Self::AboveMax { .. }
            | Self::BelowMin { .. }
            | Self::ContractChanged { .. }
            | Self::ContextTooShort { .. }
            | Self::PickleFile { .. }
            | Self::RequiredFileMissing { .. } => Severity::Fail,
            Self::NothingCompared
            | Self::ContractNotCompared
            | Self::OptionalMissing { .. }
            | Self::BoundWithinError { .. }
            | Self::HardwareUnknown { .. }
            | Self::RuntimeDiffers { .. }
            | Self::HardwareDiffers { refused: false, .. } => Severity::Warning,
            _ => Severity::NoEvidence,
        }
    }

    /// The stable name of its kind.
    pub fn code(&self) -> String {
        // serde's tag is the one place where names are written down.
        let value = serde_json::to_value(self).unwrap_or_default();
        value.get("code").and_then(|code| code.as_str()).unwrap_or_default().to_owned()
    }

    /// The metric that it speaks of, if it speaks of one.
    pub fn metric(&self) -> Option<String> {
        let value = serde_json::to_value(self).unwrap_or_default();
        value.get("metric").and_then(|metric| metric.as_str()).map(str::to_owned)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "none".into());
        let count =
            |value: &Option<u64>| value.map_or_else(|| "an unknown number of".into(), |n| n.to_string());
        match self {
            Self::Worse { metric, than, regression, lower, margin, confidence } => write!(
                f,
                "{metric}: worse than the {than} by {}, at least {} at confidence {confidence}, and {} is allowed; train again or change the policy",
                figure(*regression), figure(*lower), figure(*margin)
            ),
            Self::AboveMax { metric, expected, actual } => {
                write!(f, "{metric}: {} is above max, {expected}; improve the model or change the policy", figure(*actual))
            }
            Self::BelowMin { metric, expected, actual } => {
                write!(f, "{metric}: {} is below min, {expected}; improve the model or change the policy", figure(*actual))
            }
            Self::ContractChanged { field, expected, actual } => write!(
                f,
                "contract: {} changed from {} to {}; undo it, or add \"{}\" to [contract] allow",
                field.as_str(), text(expected), text(actual), field.as_str()
            ),
            Self::ContextTooShort { expected, actual } => write!(
                f,
                "contract: max_seq_len is {}, below {expected}; serve a longer context or change min_max_seq_len",
                actual.map_or_else(|| "not known".into(), |n| n.to_string())
            ),
            Self::PickleFile { path } => {
                write!(f, "files: {path} may be a pickle, which runs code when it is loaded; convert it to safetensors")
            }
            Self::RequiredFileMissing { path } => {
                write!(f, "files: {path} is missing; add it, or take it off required_files")
            }
            Self::Inconclusive { metric, than, regression, lower, upper, margin, samples_needed } => {
                write!(
                    f,
                    "{metric}: not shown to be within {} of the {than}: the change for the worse is {}, between {} and {}; ",
                    figure(*margin), figure(*regression), figure(*lower), figure(*upper)
                )?;
                let is_beyond = regression > margin;
                match samples_needed {
                    Some(n) if is_beyond => write!(f, "as it stands, about {n} samples would show that it is too much"),
                    Some(n) => write!(f, "as it stands, about {n} samples would do"),
                    None => write!(f, "evaluate on more samples"),
                }
            }
            Self::TooFewDocuments { metric, than, expected, actual } => write!(
                f,
                "{metric}: {actual} independent documents are too few to compare with the {than}; evaluate on {expected} or more"
            ),
            Self::MetricMissing { metric, side } => {
                write!(f, "{metric}: no report of the {side} has it; run the suite that measures it")
            }
            Self::MetricAmbiguous { metric, side } => {
                write!(f, "{metric}: more than one report of the {side} has it; give one")
            }
            Self::FigureImpossible { metric, side } => {
                write!(f, "{metric}: the {side}'s figure is not a number, or its error or size is impossible; run the suite again")
            }
            Self::ErrorMissing { metric, side } => write!(
                f,
                "{metric}: the {side} has neither a standard error nor samples; keep samples (lm_eval --log_samples)"
            ),
            Self::LimitedRun { metric, side, expected, actual } => write!(
                f,
                "{metric}: the {side} was scored on {} of {expected} samples; run the suite without a limit",
                count(actual)
            ),
            Self::TooFewSamples { metric, side, expected, actual } => write!(
                f,
                "{metric}: the {side} was scored on {} samples, below min_n, {expected}; evaluate on more",
                count(actual)
            ),
            Self::SuiteUnknown { metric, side } => {
                write!(f, "{metric}: the {side}'s report does not name its suite; keep samples, or name the suite")
            }
            Self::SuiteDiffers { metric, than, expected, actual } => write!(
                f,
                "{metric}: the candidate ran suite {}, the {than} {}; run the same one",
                actual.short(), expected.short()
            ),
            Self::SuiteNotAllowed { metric, side, actual } => {
                write!(f, "{metric}: the {side} ran suite {actual}, which the policy does not name; run one that it names")
            }
            Self::ChatTemplateDiffers { side, expected, actual } => write!(
                f,
                "chat template: the harness applied {} to the {side}, whose files have {}; evaluate with the artifact's own",
                actual.short(),
                expected.map_or_else(|| "none".into(), |sha256| sha256.short())
            ),
            Self::ChatTemplateAppliedOnce { metric, than } => write!(
                f,
                "{metric}: only one of candidate and {than} was run with a chat template; run both alike"
            ),
            Self::OtherArtifact { side, expected, actual } => write!(
                f,
                "report: it speaks of {actual}, not of the {side}, {}; give the {side}'s own",
                expected.map_or_else(|| "whose digest is not known".into(), |digest| digest.to_string())
            ),
            Self::DirectionContradicts { metric, side, expected } => write!(
                f,
                "{metric}: the policy says that {expected}, the {side}'s harness the contrary; correct direction in the policy"
            ),
            Self::SetupDiffers { metric, than, what, expected, actual } => write!(
                f,
                "{metric}: {what} is {actual} for the candidate and {expected} for the {than}; run both alike"
            ),
            Self::HardwareDiffers { than, expected, actual, refused } => {
                write!(f, "hardware: the candidate ran on {actual}, the {than} on {expected}; ")?;
                let hint = if *refused { "run both on one, or set other_hardware = \"warn\"" } else { "the policy accepts it" };
                f.write_str(hint)
            }
            Self::SamplesMissing { metric, side } => {
                write!(f, "{metric}: the policy wants pairs and the {side} has no samples; keep them (lm_eval --log_samples)")
            }
            Self::SamplesDisagree { metric, side, what } => {
                write!(f, "{metric}: the {side}'s samples do not give the {what} of its report; give those of the same run")
            }
            Self::SamplesUnmatched { metric, than, both, candidate_only, other_only } => write!(
                f,
                "{metric}: samples do not match: {both} in both, {candidate_only} only in the candidate, {other_only} only in the {than}; run the same suite"
            ),
            Self::DocumentDiffers { metric, than, sample } => write!(
                f,
                "{metric}: sample {} belongs to another document in the {than}; run the same suite",
                sample.escape_debug().take(64).collect::<String>()
            ),
            Self::NotPairable { metric } => {
                write!(f, "{metric}: it is not a mean of samples, so it cannot be paired; set paired = \"auto\"")
            }
            Self::PinnedMissing { metric } => {
                write!(f, "{metric}: the policy limits drift and no baseline is pinned; pin one")
            }
            Self::ContractUnknown => f.write_str("contract: the candidate's is not known; give its manifest or files"),
            Self::FilesUnknown => f.write_str("files: the candidate's are not known and the policy asks; give its manifest"),
            Self::NothingJudged { has_baseline: false } => {
                f.write_str("nothing was judged: there is no baseline; give one, or an absolute bound (max, min) in the policy")
            }
            Self::NothingJudged { has_baseline: true } => {
                f.write_str("nothing was judged: no metric of the policy was compared; give a report that has one")
            }
            Self::NothingCompared => {
                f.write_str("there is no baseline, so nothing was compared; only absolute bounds were held")
            }
            Self::ContractNotCompared => f.write_str("contract: the baseline's is not known, so changes are not seen"),
            Self::OptionalMissing { metric, side } => {
                write!(f, "{metric}: no report of the {side} has it; the policy does not require it")
            }
            Self::BoundWithinError { metric, expected, actual, reach } => write!(
                f,
                "{metric}: {} keeps the bound {expected}, but its error reaches {}",
                figure(*actual), figure(*reach)
            ),
            Self::BoundWithoutError { metric } => {
                write!(f, "{metric}: has neither a standard error nor samples to hold against its bound; keep samples (lm_eval --log_samples)")
            }
            Self::HardwareUnknown { side } => write!(f, "hardware: a report of the {side} does not say where it ran"),
            Self::RuntimeDiffers { than, expected, actual } => {
                write!(f, "runtime: the candidate ran in {actual}, the {than} in {expected}")
            }
            Self::SampleCountUnknown { metric, side } => write!(
                f,
                "{metric}: the {side}'s report does not say on how many samples; add `n` to it"
            ),
        }
    }
}

/// Six significant digits, without trailing zeros.
pub(super) fn figure(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return if value == 0.0 { "0".into() } else { "unknown".into() };
    }
    let magnitude = libm::floor(libm::log10(value.abs()));
    if !(-5.0..9.0).contains(&magnitude) {
        return format!("{value:.3e}");
    }
    let decimals = (5.0 - magnitude).clamp(0.0, 12.0) as usize;
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// A text from outside, fit for one line.
pub(super) fn plain(text: &str) -> String {
    text.chars().take(TEXT_SHOWN_MAX).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// A margin as it was asked for.
pub(super) fn margin_text(margin: Option<Margin>) -> String {
    margin.map_or_else(|| "-".into(), |margin| margin.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_stable_and_texts_are_one_line_with_a_hint() {
        let reason = Reason::MetricMissing { metric: "eval_loss".into(), side: Side::Candidate };
        assert_eq!(reason.code(), "metric_missing");
        assert_eq!(reason.metric().as_deref(), Some("eval_loss"));
        assert_eq!(reason.severity(), Severity::NoEvidence);
        let text = reason.to_string();
        assert!(text.contains("; ") && !text.contains('\n'), "{text}");
        let json = serde_json::to_value(&reason).expect("JSON");
        assert_eq!(json["side"], "candidate");
    }

    #[test]
    fn figures_are_short() {
        let shown = [0.0, 1.0, 0.020_000_1, -0.123_456_789, 1234.5, 1e-7, 1e12, f64::INFINITY].map(figure);
        assert_eq!(shown, ["0", "1", "0.0200001", "-0.123457", "1234.5", "1.000e-7", "1.000e12", "unknown"]);
    }
}
