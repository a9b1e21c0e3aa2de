//! Reads the lock file strictly: every key known, every type right, and each short name equal to what it stands for.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{
    File, Kind, LOCK_BYTES_MAX, LOCK_VERSION, Lock, LockError, Package, SHOWN_CHARS_MAX, Target, one_line,
    refuse,
};
use crate::gate::{Harness, HostProfile, Metric, Runtime, Scale};
use crate::id::{ClusterId, LayerId, ManifestDigest, Sha256};
use crate::manifest::Contract;
use crate::manifest::contract::{self, CONTRACT_VERSION, Format};
use crate::names::{Artifact, Stage, Tag};

/// Characters that are shown of what the TOML reader says; it lists all known keys.
const REASON_CHARS_MAX: usize = 1_000;

pub(super) fn parse(text: &str) -> Result<Lock, LockError> {
    if text.len() > LOCK_BYTES_MAX {
        return Err(LockError::TooBig(text.len()));
    }
    // Alone and first: a newer form may have keys of any kind.
    let Head { version } = toml::from_str(text).map_err(|error| form(text, &error))?;
    match version {
        LOCK_VERSION => {}
        newer if newer > LOCK_VERSION => return Err(LockError::Newer(newer)),
        other => return Err(LockError::Version(other)),
    }
    let file: FileForm = toml::from_str(text).map_err(|error| form(text, &error))?;
    let mut lock = Lock { cluster: file.cluster, policy: file.policy, ..Lock::new(&file.generated_by) };
    for entry in file.package {
        lock.packages.push(package(entry)?);
    }
    lock.checked()
}

/// The one key that every version has.
#[derive(Deserialize)]
struct Head {
    version: i64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileForm {
    #[serde(rename = "version")]
    _version: i64,
    generated_by: String,
    cluster: Option<ClusterId>,
    policy: Option<Sha256>,
    #[serde(default)]
    package: Vec<PackageForm>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PackageForm {
    name: Artifact,
    version: Tag,
    channel: Option<Stage>,
    kind: Kind,
    digest: ManifestDigest,
    total_bytes: u64,
    format: Format,
    architecture: Option<String>,
    param_count: Option<u64>,
    precision: Option<String>,
    quantization: Option<Quantization>,
    quantization_bits: Option<u32>,
    max_seq_len: Option<u64>,
    tensor_root: Option<LayerId>,
    tokenizer_sha256: Option<Sha256>,
    chat_template_sha256: Option<Sha256>,
    generation_config_sha256: Option<Sha256>,
    prompt_schema: Option<PromptSchema>,
    adapter: Option<Adapter>,
    base_model: Option<String>,
    lineage: Option<Lineage>,
    #[serde(default)]
    datasets: Vec<DatasetRef>,
    file: Vec<File>,
    #[serde(default)]
    target: Vec<TargetForm>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TargetForm {
    hardware_profile: HardwareProfile,
    report: Sha256,
    evidence: Option<ManifestDigest>,
    suite: Option<Sha256>,
    harness: Harness,
    seed: Option<String>,
    chat_template_sha256: Option<Sha256>,
    eval_loss: Option<f64>,
    perplexity: Option<f64>,
    metric: Vec<MetricForm>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HardwareProfile {
    hardware: String,
    #[serde(default)]
    model: String,
    memory_gib: Option<u64>,
    #[serde(default)]
    runtime: String,
    #[serde(default)]
    runtime_version: String,
    #[serde(default)]
    kernels: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MetricForm {
    name: String,
    value: f64,
    stderr: Option<f64>,
    n: Option<u64>,
    n_total: Option<u64>,
    n_shot: Option<u64>,
    #[serde(default)]
    task_version: String,
    higher_is_better: Option<bool>,
    #[serde(default)]
    scale: Scale,
    samples: Option<Sha256>,
}

/// Makes a strict reader of a type whose own reader ignores keys that it does not know.
macro_rules! strict {
    ($name:ident { $($field:ident: $type:ty),* $(,)? }) => {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct $name { $($field: $type),* }

        impl From<$name> for contract::$name {
            fn from(read: $name) -> Self {
                Self { $($field: read.$field),* }
            }
        }
    };
}

strict!(Quantization { method: String, bits: Option<u32>, group_size: Option<i64>, file_type: Option<String> });
strict!(PromptSchema { name: String, version: String, sha256: Sha256 });
strict!(Adapter { peft_type: String, r: Option<u64>, alpha: Option<String>, target_modules: Vec<String> });
strict!(DatasetRef { name: String, dvc_md5: Option<String>, sha256: Option<Sha256> });
strict!(Lineage { mlflow_run: Option<String>, git_commit: Option<String> });

fn package(form: PackageForm) -> Result<Package, LockError> {
    let refused = |reason: String| refuse(format!("package {} {}: {reason}", form.name, form.version));
    let bits = form.quantization.as_ref().and_then(|quantization| quantization.bits);
    if form.quantization_bits.is_some() && form.quantization_bits != bits {
        return refused("quantization_bits and `bits` of quantization differ; lock again".into());
    }
    let mut targets = Vec::with_capacity(form.target.len());
    for entry in form.target {
        match target(entry) {
            Ok(target) => targets.push(target),
            Err(reason) => return refused(reason),
        }
    }
    let package = Package {
        name: form.name.clone(),
        version: form.version.clone(),
        channel: form.channel,
        kind: form.kind,
        digest: form.digest,
        files: form.file,
        contract: Contract {
            version: CONTRACT_VERSION,
            format: form.format,
            architecture: form.architecture,
            param_count: form.param_count,
            precision: form.precision,
            quantization: form.quantization.map(Into::into),
            max_seq_len: form.max_seq_len,
            tokenizer_sha256: form.tokenizer_sha256,
            chat_template_sha256: form.chat_template_sha256,
            generation_config_sha256: form.generation_config_sha256,
            prompt_schema: form.prompt_schema.map(Into::into),
            base_model: form.base_model,
            adapter: form.adapter.map(Into::into),
            datasets: form.datasets.into_iter().map(Into::into).collect(),
            lineage: form.lineage.map(Into::into),
            mlflow: None,
            tensor_root: form.tensor_root,
            tensors: Vec::new(),
        },
        targets,
    };
    let sum = package.total_bytes();
    if form.total_bytes != sum {
        let found = form.total_bytes;
        return refused(format!("total_bytes is {found}, but its files have {sum} bytes; lock again"));
    }
    Ok(package)
}

fn target(form: TargetForm) -> Result<Target, String> {
    let hardware = one_line(&form.hardware_profile.hardware, SHOWN_CHARS_MAX);
    let mut metrics = BTreeMap::new();
    for entry in form.metric {
        let metric = Metric {
            value: entry.value,
            stderr: entry.stderr,
            n: entry.n,
            n_total: entry.n_total,
            higher_is_better: entry.higher_is_better,
            scale: entry.scale,
            task_version: entry.task_version,
            n_shot: entry.n_shot,
            samples: entry.samples,
        };
        let name = one_line(&entry.name, SHOWN_CHARS_MAX);
        if metrics.insert(entry.name, metric).is_some() {
            return Err(format!("target {hardware}: metric {name} is there twice; keep one, or lock again"));
        }
    }
    for (short, value) in [("eval_loss", form.eval_loss), ("perplexity", form.perplexity)] {
        let Some(value) = value else { continue };
        match metrics.get(short).map(|metric| metric.value) {
            // What is not finite is refused by the check of metrics, in its words.
            Some(full) if full == value || !full.is_finite() => {}
            Some(full) => {
                return Err(format!(
                    "target {hardware}: {short} is {value}, but its metric says {full}; lock again"
                ));
            }
            None => return Err(format!("target {hardware}: {short} has no metric of that name; lock again")),
        }
    }
    let profile = form.hardware_profile;
    Ok(Target {
        host: HostProfile {
            hardware: profile.hardware,
            model: profile.model,
            memory_gib: profile.memory_gib,
        },
        runtime: Runtime {
            name: profile.runtime,
            version: profile.runtime_version,
            kernels: profile.kernels,
        },
        report_sha256: form.report,
        evidence: form.evidence,
        suite: form.suite,
        harness: form.harness,
        seed: form.seed,
        chat_template_sha256: form.chat_template_sha256,
        metrics,
    })
}

fn form(text: &str, error: &toml::de::Error) -> LockError {
    let at = error.span().map_or(0, |span| span.start.min(text.len()));
    let line = 1 + text.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count();
    let hint = if error.message().starts_with("unknown field") {
        "remove that key, or update weighlock if a newer one wrote it"
    } else {
        "correct it, or lock again"
    };
    LockError::Form { line, reason: format!("{}; {hint}", one_line(error.message(), REASON_CHARS_MAX)) }
}
