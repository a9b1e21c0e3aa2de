//! What changed between two contracts, field by field.

use serde::Serialize;

use crate::manifest::contract::{Adapter, Contract, DatasetRef, Format, Lineage, PromptSchema, Quantization};

/// Longest rendering of one field, in bytes.
const SHOWN_MAX: usize = 512;

/// A field of a contract, by the name that `[contract] allow` uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ContractField {
    /// Container format of the weights.
    Format,
    /// Architecture.
    Architecture,
    /// Number of parameters.
    ParamCount,
    /// The dtype that holds most parameters.
    Precision,
    /// Quantization.
    Quantization,
    /// Longest sequence.
    MaxSeqLen,
    /// Tokenizer.
    Tokenizer,
    /// Chat template.
    ChatTemplate,
    /// Generation config.
    GenerationConfig,
    /// Prompt schema.
    PromptSchema,
    /// The model that it was made from.
    BaseModel,
    /// Adapter settings.
    Adapter,
    /// Datasets.
    Datasets,
    /// Training run and commit.
    Lineage,
    /// Tensor contents.
    Weights,
}

/// One field that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ContractChange {
    /// Which.
    pub field: ContractField,
    /// What the baseline has; absent if its files do not say.
    pub baseline: Option<String>,
    /// What the candidate has.
    pub candidate: Option<String>,
    /// Whether the policy allows it, or needs not.
    pub allowed: bool,
}

impl ContractField {
    /// All of them.
    pub const ALL: [ContractField; 15] = [
        Self::Format,
        Self::Architecture,
        Self::ParamCount,
        Self::Precision,
        Self::Quantization,
        Self::MaxSeqLen,
        Self::Tokenizer,
        Self::ChatTemplate,
        Self::GenerationConfig,
        Self::PromptSchema,
        Self::BaseModel,
        Self::Adapter,
        Self::Datasets,
        Self::Lineage,
        Self::Weights,
    ];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Format => "format",
            Self::Architecture => "architecture",
            Self::ParamCount => "param_count",
            Self::Precision => "precision",
            Self::Quantization => "quantization",
            Self::MaxSeqLen => "max_seq_len",
            Self::Tokenizer => "tokenizer",
            Self::ChatTemplate => "chat_template",
            Self::GenerationConfig => "generation_config",
            Self::PromptSchema => "prompt_schema",
            Self::BaseModel => "base_model",
            Self::Adapter => "adapter",
            Self::Datasets => "datasets",
            Self::Lineage => "lineage",
            Self::Weights => "weights",
        }
    }

    /// Whether it may always change: what a fine-tune changes, and nobody codes against.
    pub fn is_free(self) -> bool {
        matches!(self, Self::Datasets | Self::Lineage | Self::Weights)
    }

    /// What a contract says of it, for people; `None` if nothing.
    fn of(self, contract: &Contract) -> Option<String> {
        match self {
            Self::Format => Some(format_name(contract.format).to_owned()),
            Self::Architecture => contract.architecture.clone(),
            Self::ParamCount => contract.param_count.map(|n| n.to_string()),
            Self::Precision => contract.precision.clone(),
            Self::Quantization => contract.quantization.as_ref().map(quantization),
            Self::MaxSeqLen => contract.max_seq_len.map(|n| n.to_string()),
            Self::Tokenizer => contract.tokenizer_sha256.map(|sha256| sha256.to_string()),
            Self::ChatTemplate => contract.chat_template_sha256.map(|sha256| sha256.to_string()),
            Self::GenerationConfig => contract.generation_config_sha256.map(|sha256| sha256.to_string()),
            Self::PromptSchema => contract.prompt_schema.as_ref().map(prompt_schema),
            Self::BaseModel => contract.base_model.clone(),
            Self::Adapter => contract.adapter.as_ref().map(adapter),
            Self::Datasets => (!contract.datasets.is_empty()).then(|| datasets(&contract.datasets)),
            Self::Lineage => contract.lineage.as_ref().map(lineage),
            Self::Weights => contract.tensor_root.map(|root| root.to_string()),
        }
    }

    /// Whether two contracts say the same of it. Compared as they are, not as they are shown.
    fn is_same(self, a: &Contract, b: &Contract) -> bool {
        match self {
            Self::Quantization => a.quantization == b.quantization,
            Self::PromptSchema => a.prompt_schema == b.prompt_schema,
            Self::Adapter => a.adapter == b.adapter,
            Self::Datasets => a.datasets == b.datasets,
            Self::Lineage => a.lineage == b.lineage,
            _ => self.of(a) == self.of(b),
        }
    }
}

/// The fields that differ, in the order of [`ContractField::ALL`]; `is_allowed` says which the policy allows beside
/// the [free](ContractField::is_free) ones.
pub fn changes(
    baseline: &Contract,
    candidate: &Contract,
    is_allowed: impl Fn(ContractField) -> bool,
) -> Vec<ContractChange> {
    let changed = ContractField::ALL.into_iter().filter(|field| !field.is_same(baseline, candidate));
    changed
        .map(|field| ContractChange {
            field,
            baseline: field.of(baseline).map(shortened),
            candidate: field.of(candidate).map(shortened),
            allowed: field.is_free() || is_allowed(field),
        })
        .collect()
}

/// A field may hold anything that a file held.
fn shortened(text: String) -> String {
    let mut text = text.replace(char::is_control, "\u{fffd}");
    if text.len() > SHOWN_MAX {
        text.truncate(text.floor_char_boundary(SHOWN_MAX - 3));
        text.push_str("...");
    }
    text
}

fn format_name(format: Format) -> &'static str {
    match format {
        Format::Safetensors => "safetensors",
        Format::Gguf => "gguf",
        Format::Other => "other",
    }
}

fn quantization(quantization: &Quantization) -> String {
    let mut parts = vec![quantization.method.clone()];
    parts.extend(quantization.file_type.clone());
    parts.extend(quantization.bits.map(|bits| format!("{bits} bits")));
    parts.extend(quantization.group_size.map(|size| format!("groups of {size}")));
    parts.join(", ")
}

fn prompt_schema(schema: &PromptSchema) -> String {
    format!("{} {} ({})", schema.name, schema.version, schema.sha256)
}

fn adapter(adapter: &Adapter) -> String {
    let mut parts = vec![adapter.peft_type.clone()];
    parts.extend(adapter.r.map(|r| format!("r {r}")));
    parts.extend(adapter.alpha.as_ref().map(|alpha| format!("alpha {alpha}")));
    parts.extend((!adapter.target_modules.is_empty()).then(|| adapter.target_modules.join(" ")));
    parts.join(", ")
}

fn datasets(datasets: &[DatasetRef]) -> String {
    datasets.iter().map(|dataset| dataset.name.as_str()).collect::<Vec<_>>().join(", ")
}

fn lineage(lineage: &Lineage) -> String {
    let run = lineage.mlflow_run.as_ref().map(|run| format!("MLflow run {run}"));
    let commit = lineage.git_commit.as_ref().map(|commit| format!("commit {commit}"));
    run.into_iter().chain(commit).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{LayerId, Sha256};

    #[test]
    fn a_fine_tune_changes_what_is_free_and_a_quantization_does_not() {
        let baseline = Contract {
            architecture: Some("LlamaForCausalLM".into()),
            precision: Some("bf16".into()),
            tensor_root: Some(LayerId([1; 32])),
            ..Contract::default()
        };
        let tuned = Contract {
            tensor_root: Some(LayerId([2; 32])),
            datasets: vec![DatasetRef { name: "tickets".into(), dvc_md5: None, sha256: None }],
            ..baseline.clone()
        };
        assert!(changes(&baseline, &tuned, |_| false).iter().all(|change| change.allowed));
        let packed = Contract {
            precision: Some("q4_1".into()),
            quantization: Some(Quantization { method: "gguf".into(), ..Quantization::default() }),
            ..tuned
        };
        let refused: Vec<ContractField> =
            changes(&baseline, &packed, |field| field == ContractField::Precision)
                .into_iter()
                .filter(|change| !change.allowed)
                .map(|change| change.field)
                .collect();
        assert_eq!(refused, [ContractField::Quantization]);
    }

    #[test]
    fn each_field_that_differs_is_named_and_a_long_one_is_cut() {
        let long = "ü".repeat(1_000);
        let other = Contract {
            format: Format::Gguf,
            architecture: Some(long),
            param_count: Some(1),
            precision: Some("f32".into()),
            quantization: Some(Quantization::default()),
            max_seq_len: Some(1),
            tokenizer_sha256: Some(Sha256([1; 32])),
            chat_template_sha256: Some(Sha256([1; 32])),
            generation_config_sha256: Some(Sha256([1; 32])),
            prompt_schema: Some(PromptSchema {
                name: "n".into(),
                version: "1".into(),
                sha256: Sha256([1; 32]),
            }),
            base_model: Some("base".into()),
            adapter: Some(Adapter::default()),
            datasets: vec![DatasetRef { name: "d".into(), dvc_md5: None, sha256: None }],
            lineage: Some(Lineage::default()),
            tensor_root: Some(LayerId([1; 32])),
            ..Contract::default()
        };
        let all = changes(&Contract::default(), &other, |_| false);
        assert_eq!(all.iter().map(|change| change.field).collect::<Vec<_>>(), ContractField::ALL);
        assert!(
            all.iter().all(|change| change.candidate.as_ref().is_some_and(|text| text.len() <= SHOWN_MAX))
        );
        assert!(changes(&other, &other, |_| false).is_empty());
    }
}
