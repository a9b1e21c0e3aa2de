//! What one run of one evaluation suite measured on one artifact.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::{ManifestDigest, Sha256};
use crate::time::UnixTime;

/// Version of the report's JSON form.
pub const REPORT_VERSION: u32 = 1;
/// Largest report accepted, in bytes.
pub const REPORT_BYTES_MAX: usize = 16 << 20;
/// Most metrics in one report.
pub const METRICS_MAX: usize = 10_000;
/// Longest name of a metric, task, harness, runtime or accelerator, in bytes.
pub const REPORT_TEXT_MAX: usize = 256;

/// What one run of one suite measured. Its canonical JSON is what evidence stores; the readers of other formats
/// make one of these.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// [`REPORT_VERSION`].
    pub version: u32,
    /// What was evaluated. A report that names none is bound by the one who adds it; one that names another is
    /// refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact: Option<ManifestDigest>,
    /// What stands for the suite: tasks with their versions, prompts and data. Two reports are compared only if
    /// their suites are the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suite: Option<Sha256>,
    /// What ran the suite.
    pub harness: Harness,
    /// What ran the model.
    #[serde(default, skip_serializing_if = "Runtime::is_empty")]
    pub runtime: Runtime,
    /// Where it ran. Filled in by the one who adds it if the harness does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostProfile>,
    /// Seed of sampling and few-shot choice, as the harness writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<String>,
    /// When the run ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<UnixTime>,
    /// SHA-256 of the chat template that the harness applied; absent if it applied none or does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template_sha256: Option<Sha256>,
    /// By name: `eval_loss`, `perplexity`, or `task.metric`, with `@filter` behind it where the harness filters
    /// (`gsm8k.exact_match@strict-match`; the filter `none` is left out).
    pub metrics: BTreeMap<String, Metric>,
}

/// What ran the suite.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Harness {
    /// `lm-evaluation-harness`, or a name of one's own.
    pub name: String,
    /// Its version.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// Git commit that it names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git_hash: Option<String>,
}

/// What ran the model.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Runtime {
    /// `vllm`, `transformers`, `llama.cpp`, ...
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Its version.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// Kernels or attention back end, where they matter.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kernels: String,
}

/// Where a run happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostProfile {
    /// Hardware key: vendor/arch (`nvidia/sm_90`, `cpu/x86-64-v4`).
    pub hardware: String,
    /// The accelerator or processor by its own name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub model: String,
    /// Memory of the accelerator, or of the host where there is none, in GiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_gib: Option<u64>,
}

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metric {
    /// The figure itself; finite.
    pub value: f64,
    /// Its standard error; finite and not negative. Absent where the harness has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr: Option<f64>,
    /// Samples that it was taken over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<u64>,
    /// Samples that the suite has; more than `n` means that the run was limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_total: Option<u64>,
    /// Which way is better, if the harness says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub higher_is_better: Option<bool>,
    /// How the value comes from samples.
    #[serde(default, skip_serializing_if = "Scale::is_mean")]
    pub scale: Scale,
    /// Version of the task.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub task_version: String,
    /// Examples in the prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_shot: Option<u64>,
    /// SHA-256 of this metric's canonical samples ([`super::Samples::digest`]), where there are samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples: Option<Sha256>,
}

/// How the value of a metric comes from its samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scale {
    /// The weighted mean of the samples: `Σ w·v / Σ w`.
    #[default]
    Mean,
    /// `e` to the weighted mean: perplexity from negative log-likelihoods, with tokens, words or bytes as weights.
    ExpMean,
    /// The weighted mean over ln 2: bits per byte from negative log-likelihoods.
    MeanOverLn2,
    /// Another statistic (F1 over a corpus, BLEU, a median): samples do not give it, so it cannot be paired.
    Other,
}

/// Why a report is not accepted: one line, fit for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ReportError(pub String);

impl Runtime {
    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Scale {
    /// Whether it is the plain mean.
    pub fn is_mean(&self) -> bool {
        *self == Self::Mean
    }
}
