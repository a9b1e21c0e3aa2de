//! Writes the lock file's canonical text: a fixed order of keys, one line for each file and metric.

use std::fmt::{Display, Write as _};

use toml_writer::{ToTomlValue as _, TomlStringBuilder};

use super::{File, Kind, LOCK_VERSION, Lock, Package, Target};
use crate::gate::{Harness, HostProfile, Metric, Runtime, Scale};
use crate::manifest::Contract;
use crate::manifest::contract::{Adapter, DatasetRef, Format, Lineage, PromptSchema, Quantization};

/// A value as TOML writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// On the line of its key.
    Plain(String),
    /// An array with a line for each element.
    Lines(Vec<String>),
}

pub(super) fn lock(lock: &Lock) -> String {
    let mut out = String::from("# Written by `weighlock lock`; run it again to change what is pinned.\n");
    let mut keys = Keys(&mut out);
    keys.put("version", LOCK_VERSION);
    keys.put("generated_by", text(lock.generated_by()));
    keys.put_some("cluster", lock.cluster.map(quoted));
    keys.put_some("policy", lock.policy.map(quoted));
    out.push_str(&packages(lock.packages()));
    out
}

/// All that stands below the header.
pub(super) fn packages(packages: &[Package]) -> String {
    let mut out = String::new();
    for entry in packages {
        package(&mut out, entry);
    }
    out
}

/// What the contract says, in the order of the file: every key but the tensor index, with its value if it is set.
pub(super) fn contract_fields(contract: &Contract) -> Vec<(&'static str, Option<Value>)> {
    // Named one by one: a field that is added must find its place here.
    let Contract {
        version: _,
        format,
        architecture,
        param_count,
        precision,
        quantization,
        max_seq_len,
        tokenizer_sha256,
        chat_template_sha256,
        generation_config_sha256,
        prompt_schema,
        base_model,
        adapter,
        datasets,
        lineage,
        // Long, and no part of what is pinned.
        mlflow: _,
        tensor_root,
        tensors: _,
    } = contract;
    let string = |value: &Option<String>| value.as_deref().map(text);
    let plain = [
        ("format", Some(quoted(format_name(*format)))),
        ("architecture", string(architecture)),
        ("param_count", param_count.map(|count| count.to_string())),
        ("precision", string(precision)),
        ("quantization", quantization.as_ref().map(quantization_table)),
        ("max_seq_len", max_seq_len.map(|tokens| tokens.to_string())),
        ("tensor_root", tensor_root.map(quoted)),
        ("tokenizer_sha256", tokenizer_sha256.map(quoted)),
        ("chat_template_sha256", chat_template_sha256.map(quoted)),
        ("generation_config_sha256", generation_config_sha256.map(quoted)),
        ("prompt_schema", prompt_schema.as_ref().map(prompt_schema_table)),
        ("adapter", adapter.as_ref().map(adapter_table)),
        ("base_model", string(base_model)),
        ("lineage", lineage.as_ref().map(lineage_table)),
    ];
    let mut fields: Vec<_> = plain.into_iter().map(|(key, value)| (key, value.map(Value::Plain))).collect();
    let lines = || Value::Lines(datasets.iter().map(dataset_table).collect());
    fields.push(("datasets", (!datasets.is_empty()).then(lines)));
    fields
}

impl Display for Value {
    /// On one line.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Plain(value) => f.write_str(value),
            Self::Lines(elements) => write!(f, "[{}]", elements.join(", ")),
        }
    }
}

fn package(out: &mut String, package: &Package) {
    out.push_str("\n[[package]]\n");
    let mut keys = Keys(out);
    keys.put("name", quoted(&package.name));
    keys.put("version", quoted(&package.version));
    keys.put_some("channel", package.channel.map(quoted));
    keys.put("kind", quoted(kind_name(package.kind)));
    keys.put("digest", quoted(package.digest));
    keys.put("total_bytes", package.total_bytes());
    for (key, value) in contract_fields(package.contract()) {
        match value {
            Some(Value::Plain(value)) => keys.put(key, value),
            Some(Value::Lines(elements)) => keys.lines(key, elements),
            None => {}
        }
        if key == "quantization" {
            let bits = package.contract().quantization.as_ref().and_then(|quantization| quantization.bits);
            keys.put_some("quantization_bits", bits);
        }
    }
    keys.lines("file", package.files.iter().map(file_table));
    for entry in &package.targets {
        target(out, entry);
    }
}

fn target(out: &mut String, target: &Target) {
    out.push_str("\n[[package.target]]\n");
    let mut keys = Keys(out);
    keys.put("hardware_profile", hardware_profile_table(&target.host, &target.runtime));
    keys.put("report", quoted(target.report_sha256));
    keys.put_some("evidence", target.evidence.map(quoted));
    keys.put_some("suite", target.suite.map(quoted));
    keys.put("harness", harness_table(&target.harness));
    keys.put_some("seed", target.seed.as_deref().map(text));
    keys.put_some("chat_template_sha256", target.chat_template_sha256.map(quoted));
    for short in ["eval_loss", "perplexity"] {
        keys.put_some(short, target.metrics.get(short).map(|metric| float(metric.value)));
    }
    keys.lines("metric", target.metrics.iter().map(|(name, metric)| metric_table(name, metric)));
}

/// Writes `key = value` lines.
struct Keys<'a>(&'a mut String);

impl Keys<'_> {
    fn put(&mut self, key: &str, value: impl Display) {
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "{key} = {value}");
    }

    fn put_some(&mut self, key: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.put(key, value);
        }
    }

    fn lines(&mut self, key: &str, elements: impl IntoIterator<Item = String>) {
        let _ = writeln!(self.0, "{key} = [");
        for element in elements {
            let _ = writeln!(self.0, "  {element},");
        }
        self.0.push_str("]\n");
    }
}

/// Builds `{ key = value, ... }`.
#[derive(Default)]
struct Inline(String);

impl Inline {
    fn with(mut self, key: &str, value: impl Display) -> Self {
        let comma = if self.0.is_empty() { "" } else { ", " };
        let _ = write!(self.0, "{comma}{key} = {value}");
        self
    }

    fn maybe(self, key: &str, value: Option<impl Display>) -> Self {
        match value {
            Some(value) => self.with(key, value),
            None => self,
        }
    }

    /// Leaves an empty text out.
    fn filled(self, key: &str, value: &str) -> Self {
        self.maybe(key, (!value.is_empty()).then(|| text(value)))
    }

    fn end(self) -> String {
        if self.0.is_empty() { "{}".into() } else { format!("{{ {} }}", self.0) }
    }
}

fn file_table(file: &File) -> String {
    let File { path, size, sha256, blake3 } = file;
    Inline::default()
        .with("path", text(path))
        .with("size", size)
        .with("sha256", quoted(sha256))
        .with("blake3", quoted(blake3))
        .end()
}

fn quantization_table(quantization: &Quantization) -> String {
    let Quantization { method, bits, group_size, file_type } = quantization;
    Inline::default()
        .with("method", text(method))
        .maybe("bits", *bits)
        .maybe("group_size", *group_size)
        .maybe("file_type", file_type.as_deref().map(text))
        .end()
}

fn prompt_schema_table(schema: &PromptSchema) -> String {
    let PromptSchema { name, version, sha256 } = schema;
    Inline::default()
        .with("name", text(name))
        .with("version", text(version))
        .with("sha256", quoted(sha256))
        .end()
}

fn adapter_table(adapter: &Adapter) -> String {
    let Adapter { peft_type, r, alpha, target_modules } = adapter;
    let modules: Vec<String> = target_modules.iter().map(|module| text(module)).collect();
    Inline::default()
        .with("peft_type", text(peft_type))
        .maybe("r", *r)
        .maybe("alpha", alpha.as_deref().map(text))
        .with("target_modules", format!("[{}]", modules.join(", ")))
        .end()
}

fn dataset_table(dataset: &DatasetRef) -> String {
    let DatasetRef { name, dvc_md5, sha256 } = dataset;
    Inline::default()
        .with("name", text(name))
        .maybe("dvc_md5", dvc_md5.as_deref().map(text))
        .maybe("sha256", sha256.map(quoted))
        .end()
}

fn lineage_table(lineage: &Lineage) -> String {
    let Lineage { mlflow_run, git_commit } = lineage;
    Inline::default()
        .maybe("mlflow_run", mlflow_run.as_deref().map(text))
        .maybe("git_commit", git_commit.as_deref().map(text))
        .end()
}

fn hardware_profile_table(host: &HostProfile, runtime: &Runtime) -> String {
    let HostProfile { hardware, model, memory_gib } = host;
    let Runtime { name, version, kernels } = runtime;
    Inline::default()
        .with("hardware", text(hardware))
        .filled("model", model)
        .maybe("memory_gib", *memory_gib)
        .filled("runtime", name)
        .filled("runtime_version", version)
        .filled("kernels", kernels)
        .end()
}

fn harness_table(harness: &Harness) -> String {
    let Harness { name, version, git_hash } = harness;
    Inline::default()
        .with("name", text(name))
        .filled("version", version)
        .maybe("git_hash", git_hash.as_deref().map(text))
        .end()
}

fn metric_table(name: &str, metric: &Metric) -> String {
    let Metric { value, stderr, n, n_total, higher_is_better, scale, task_version, n_shot, samples } = metric;
    Inline::default()
        .with("name", text(name))
        .with("value", float(*value))
        .maybe("stderr", stderr.map(float))
        .maybe("n", *n)
        .maybe("n_total", *n_total)
        .maybe("n_shot", *n_shot)
        .filled("task_version", task_version)
        .maybe("higher_is_better", *higher_is_better)
        .maybe("scale", scale_name(*scale).map(quoted))
        .maybe("samples", samples.map(quoted))
        .end()
}

/// A basic string: on one line, whatever is in it.
fn text(value: &str) -> String {
    TomlStringBuilder::new(value).as_basic().to_toml_value()
}

/// For what has no character that TOML escapes: digests, names, words of ours.
fn quoted(value: impl Display) -> String {
    format!("\"{value}\"")
}

/// The shortest text that reads back as the same number; 0 and -0 are one.
fn float(value: f64) -> String {
    format!("{:?}", value + 0.0)
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Base => "base",
        Kind::Adapter => "adapter",
        Kind::Tokenizer => "tokenizer",
        Kind::Prompt => "prompt",
        Kind::Dataset => "dataset",
        Kind::EvalSuite => "eval-suite",
        Kind::Judge => "judge",
    }
}

fn format_name(format: Format) -> &'static str {
    match format {
        Format::Safetensors => "safetensors",
        Format::Gguf => "gguf",
        Format::Other => "other",
    }
}

fn scale_name(scale: Scale) -> Option<&'static str> {
    match scale {
        Scale::Mean => None,
        Scale::ExpMean => Some("exp_mean"),
        Scale::MeanOverLn2 => Some("mean_over_ln2"),
        Scale::Other => Some("other"),
    }
}
