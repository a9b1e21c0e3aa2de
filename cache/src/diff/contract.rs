//! Contracts and header keys, field by field: what it was, what it is.

use std::collections::BTreeMap;

use serde::Serialize;
use weighlock_protocol::manifest::Contract;
use weighlock_protocol::manifest::contract::{Adapter, Format, Quantization};

/// A field that is not the same on both sides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FieldChange {
    /// Its name.
    pub field: String,
    /// Its value in A, if it has one there.
    pub before: Option<String>,
    /// Its value in B, if it has one there.
    pub after: Option<String>,
}

/// Fields of the contract that differ. The tensor index is not one of them: tensors are compared themselves.
pub(super) fn contract_changes(a: &Contract, b: &Contract) -> Vec<FieldChange> {
    let (a, b) = (fields(a), fields(b));
    let pairs = a.into_iter().zip(b).filter(|((_, before), (_, after))| before != after);
    pairs.map(|((field, before), (_, after))| FieldChange { field: field.into(), before, after }).collect()
}

/// Keys that differ, by name.
pub(super) fn key_changes(a: &BTreeMap<String, String>, b: &BTreeMap<String, String>) -> Vec<FieldChange> {
    let mut keys: Vec<&String> = a.keys().chain(b.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    keys.into_iter()
        .filter(|key| a.get(*key) != b.get(*key))
        .map(|key| FieldChange {
            field: key.clone(),
            before: a.get(key).cloned(),
            after: b.get(key).cloned(),
        })
        .collect()
}

fn fields(c: &Contract) -> Vec<(&'static str, Option<String>)> {
    let prompt = c.prompt_schema.as_ref();
    let lineage = c.lineage.as_ref();
    vec![
        ("format", Some(format_name(c.format).to_owned())),
        ("architecture", c.architecture.clone()),
        ("parameters", c.param_count.map(|n| n.to_string())),
        ("precision", c.precision.clone()),
        ("quantization", c.quantization.as_ref().map(quantization)),
        ("max_seq_len", c.max_seq_len.map(|n| n.to_string())),
        ("tokenizer", c.tokenizer_sha256.map(|d| d.to_string())),
        ("chat template", c.chat_template_sha256.map(|d| d.to_string())),
        ("generation config", c.generation_config_sha256.map(|d| d.to_string())),
        ("prompt schema", prompt.map(|p| format!("{} {}, {}", p.name, p.version, p.sha256))),
        ("base model", c.base_model.clone()),
        ("adapter", c.adapter.as_ref().map(adapter)),
        ("datasets", (!c.datasets.is_empty()).then(|| datasets(c))),
        ("MLflow run", lineage.and_then(|l| l.mlflow_run.clone())),
        ("MLflow model", c.mlflow.as_ref().map(|m| format!("models:/{}/{}", m.model, m.version))),
        ("git commit", lineage.and_then(|l| l.git_commit.clone())),
    ]
}

fn format_name(format: Format) -> &'static str {
    match format {
        Format::Safetensors => "safetensors",
        Format::Gguf => "gguf",
        Format::Other => "other",
    }
}

fn quantization(q: &Quantization) -> String {
    let mut parts = vec![q.method.clone()];
    parts.extend(q.bits.map(|bits| format!("{bits} bits")));
    parts.extend(q.group_size.map(|size| format!("groups of {size}")));
    parts.extend(q.file_type.clone());
    parts.join(", ")
}

fn adapter(a: &Adapter) -> String {
    let mut parts = vec![a.peft_type.clone()];
    parts.extend(a.r.map(|r| format!("rank {r}")));
    parts.extend(a.alpha.as_ref().map(|alpha| format!("alpha {alpha}")));
    if !a.target_modules.is_empty() {
        parts.push(format!("on {}", a.target_modules.join(" ")));
    }
    parts.join(", ")
}

fn datasets(c: &Contract) -> String {
    let one = |d: &weighlock_protocol::manifest::contract::DatasetRef| {
        let hash = d.sha256.map(|hash| hash.short()).or_else(|| d.dvc_md5.clone());
        hash.map_or_else(|| d.name.clone(), |hash| format!("{} {hash}", d.name))
    };
    c.datasets.iter().map(one).collect::<Vec<_>>().join(", ")
}
