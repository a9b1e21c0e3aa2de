//! The policy of a namespace (`gate.toml`): what a candidate must show before it replaces what runs.

mod parse;
mod read;
mod text;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::contract::ContractField;
use super::stats::{Direction, Margin};
use crate::id::Sha256;
use crate::names::Stage;

/// Version of the policy's canonical form.
pub const POLICY_VERSION: u32 = 1;
/// Largest policy file accepted, in bytes.
pub const POLICY_BYTES_MAX: usize = 1 << 20;
/// Most metrics, guards, suites, files or hardware keys that a policy names, each.
pub const POLICY_ENTRIES_MAX: usize = 1_000;
/// Longest name in a policy, in bytes.
pub const POLICY_TEXT_MAX: usize = 256;
/// Longest duration in a policy: a year, in seconds.
pub const POLICY_DURATION_MAX_S: u64 = 366 * 86_400;
/// Confidence of a metric that names none.
pub const CONFIDENCE_DEFAULT: f64 = 0.95;
/// Share of wrong rollbacks that live guards together may cause if the policy names none.
pub const ALPHA_DEFAULT: f64 = 0.01;

/// A parsed policy. Its [`Policy::digest`] depends on what it says, not on comments, order or layout.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Policy {
    /// [`POLICY_VERSION`].
    pub version: u32,
    /// Who may publish versions of the namespace.
    pub publish: Publish,
    /// The only suites whose reports count; any if empty.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub suites: BTreeSet<Sha256>,
    /// What becomes of a comparison whose two runs were on different hardware keys.
    pub other_hardware: OtherHardware,
    /// By the metric's name.
    #[serde(rename = "metric", skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, MetricRule>,
    /// What the artifact itself must keep to.
    pub contract: ContractRule,
    /// How far each metric may drift in all from the pinned baseline; a metric's own `max_drift` goes first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_drift: Option<Margin>,
    /// By stage: what it takes to enter it.
    #[serde(rename = "stage", skip_serializing_if = "BTreeMap::is_empty")]
    pub stages: BTreeMap<Stage, StageRule>,
    /// The stages that a candidate goes through, lowest first; the last is production.
    #[serde(skip_serializing_if = "is_whole_ladder")]
    pub ladder: Vec<Stage>,
    /// What becomes of a head whose promotion has expired.
    #[serde(skip_serializing_if = "OnExpiry::is_serve")]
    pub on_expiry: OnExpiry,
    /// Whether a host may open what has no evidence if it is asked to (`--ungated`); it is logged.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub allow_ungated: bool,
    /// Guards that watch the candidate while it answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub live: Option<LiveRule>,
}

/// What becomes of a head whose promotion has expired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnExpiry {
    /// It is served on, with an alarm.
    #[default]
    Serve,
    /// It no longer opens.
    Stop,
}

impl OnExpiry {
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
    fn is_serve(&self) -> bool {
        *self == Self::Serve
    }
}

fn is_whole_ladder(ladder: &[Stage]) -> bool {
    ladder == Stage::ALL
}

/// Who may publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Publish {
    /// Any publisher; the gate stands before stages.
    #[default]
    Open,
    /// Only what has a passing verdict.
    RequiresVerdict,
}

/// What becomes of a comparison across hardware keys, whose kernels differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OtherHardware {
    /// It is no evidence.
    #[default]
    Refuse,
    /// It counts, and the verdict says so.
    Warn,
}

/// Whether samples of the two runs are paired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Pairing {
    /// Where both runs carry samples.
    #[default]
    Auto,
    /// Always; a run without samples is no evidence.
    Required,
    /// Never.
    Never,
}

/// What one metric must show. At least one of `max`, `min`, `max_regression` and `max_drift` is there.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MetricRule {
    /// Which way is better.
    pub direction: Direction,
    /// Largest value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
    /// Smallest value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    /// How much worse than the baseline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_regression: Option<Margin>,
    /// How much worse than the pinned baseline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_drift: Option<Margin>,
    /// Of each one-sided test, in (0.5, 1).
    pub confidence: f64,
    /// Whether a report without it is no evidence.
    pub required: bool,
    /// Fewest samples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_n: Option<u64>,
    /// Whether samples are paired.
    pub paired: Pairing,
    /// Share of all samples that both runs must have, in (0, 1]; the rest is left out.
    pub min_overlap: f64,
}

/// What the artifact itself must keep to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ContractRule {
    /// Fields that may change from the baseline, beside those that always may ([`ContractField::is_free`]).
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub allow: BTreeSet<ContractField>,
    /// Whether files that run code when they are loaded are refused.
    pub deny_pickle: bool,
    /// Paths of files that must be there.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub required_files: BTreeSet<String>,
    /// Shortest context that the model must accept, in tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_max_seq_len: Option<u64>,
}

/// What it takes to enter a stage.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct StageRule {
    /// Requests served in this stage before the next one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_requests: Option<u64>,
    /// Time in this stage before the next one, in seconds.
    #[serde(rename = "min_duration_s", skip_serializing_if = "Option::is_none")]
    pub min_duration: Option<u64>,
    /// People who must approve.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approvals: Option<u64>,
    /// Hardware keys that must have evidence of their own.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub hardware: BTreeSet<String>,
    /// How long a promotion to this stage holds before it must be renewed, in seconds.
    #[serde(rename = "valid_for_s", skip_serializing_if = "Option::is_none")]
    pub valid_for: Option<u64>,
}

/// Guards that watch while a candidate answers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LiveRule {
    /// Share of wrong alarms of all guards together, in (0, 0.5).
    pub alpha: f64,
    /// By the name of the live metric.
    pub guards: BTreeMap<String, Guard>,
}

/// How far a live metric may move from the baseline's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Guard {
    /// Candidate over baseline; above 0.
    MaxRatio(f64),
    /// Candidate less baseline; 0 or more.
    MaxDelta(f64),
}

/// Why a text is not a policy: one line, the hint after its last `; `.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PolicyError(pub String);

impl Policy {
    /// Parses the TOML text of a `gate.toml`.
    ///
    /// # Errors
    /// Not TOML, an unknown key, a value that is impossible, or a policy that asks for nothing; the line is named.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        parse::policy(text)
    }

    /// SHA-256 over the [canonical form](Self::canonical_json): the policy's identity.
    pub fn digest(&self) -> Sha256 {
        use sha2::Digest as _;
        Sha256(sha2::Sha256::digest(self.canonical_json()).into())
    }

    /// JSON with sorted keys, no spaces, defaults written out, options that are not set left out.
    pub fn canonical_json(&self) -> String {
        let value = serde_json::to_value(self).unwrap_or_default();
        let mut out = String::new();
        write_sorted(&value, &mut out);
        out
    }

    /// The stage that a candidate must have been in before `stage`.
    pub fn stage_before(&self, stage: Stage) -> Option<Stage> {
        self.ladder.iter().copied().take_while(|rung| *rung < stage).last()
    }

    /// How far `metric` may drift from the pinned baseline.
    pub fn drift_of(&self, metric: &MetricRule) -> Option<Margin> {
        metric.max_drift.or(self.max_drift)
    }
}

/// `serde_json` keeps or sorts the order of keys as some crate in the build asks for, so keys are sorted here.
fn write_sorted(value: &serde_json::Value, out: &mut String) {
    use serde_json::Value;
    match value {
        Value::Object(map) => {
            let sorted: BTreeMap<_, _> = map.iter().collect();
            for (i, (key, value)) in sorted.into_iter().enumerate() {
                out.push(if i == 0 { '{' } else { ',' });
                out.push_str(&Value::String(key.clone()).to_string());
                out.push(':');
                write_sorted(value, out);
            }
            out.push_str(if map.is_empty() { "{}" } else { "}" });
        }
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                out.push(if i == 0 { '[' } else { ',' });
                write_sorted(item, out);
            }
            out.push_str(if items.is_empty() { "[]" } else { "]" });
        }
        plain => out.push_str(&plain.to_string()),
    }
}
