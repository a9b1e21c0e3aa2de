//! The contract: what the files themselves say about a model, pinned by the manifest digest.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::{LayerId, Sha256};

/// Version of the contract's JSON form.
pub const CONTRACT_VERSION: u32 = 1;
/// Most tensors in one artifact.
pub const TENSORS_MAX: usize = 2_000_000;
/// Most parameters, metrics, tags and aliases, of each, that a contract takes over from MLflow.
pub const MLFLOW_ENTRIES_MAX: usize = 256;
/// Longest key or name among them, in characters.
pub const MLFLOW_KEY_CHARS_MAX: usize = 250;
/// Longest value, in characters.
pub const MLFLOW_VALUE_CHARS_MAX: usize = 1000;
/// The tag in which MLflow keeps the commit of the training code.
pub const MLFLOW_COMMIT_TAG: &str = "mlflow.source.git.commit";

/// A small JSON layer of our own media type. Every field is read from the files; `None` means that they do not say.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Contract {
    /// [`CONTRACT_VERSION`].
    pub version: u32,
    /// Container format of the weights.
    pub format: Format,
    /// Architecture as the files name it (`LlamaForCausalLM`, `llama`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// Number of parameters: elements of all weight tensors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub param_count: Option<u64>,
    /// The dtype that holds most parameters, in lower case (`bf16`, `f32`, `q4_1`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub precision: Option<String>,
    /// Quantization, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantization: Option<Quantization>,
    /// Longest sequence, in tokens (`max_position_embeddings`, `<arch>.context_length`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_seq_len: Option<u64>,
    /// SHA-256 that stands for the tokenizer: of `tokenizer.json`, else over its files, else over GGUF keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer_sha256: Option<Sha256>,
    /// SHA-256 of the chat template's UTF-8 text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chat_template_sha256: Option<Sha256>,
    /// SHA-256 of `generation_config.json`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation_config_sha256: Option<Sha256>,
    /// The prompt schema that services code against.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_schema: Option<PromptSchema>,
    /// The model that this one was made from, as its files name it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_model: Option<String>,
    /// Adapter settings, if this is an adapter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<Adapter>,
    /// Training and evaluation data, by hash.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub datasets: Vec<DatasetRef>,
    /// Where it came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lineage: Option<Lineage>,
    /// What MLflow said of it when it was added.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mlflow: Option<MlflowOrigin>,
    /// BLAKE3 over the sorted (name, dtype, shape, data hash) of all tensors: equal over re-sharding.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tensor_root: Option<LayerId>,
    /// Per weights layer, its tensors by offset.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tensors: Vec<LayerTensors>,
}

/// Container format of the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// safetensors, sharded or not.
    Safetensors,
    /// GGUF.
    Gguf,
    /// No weights that we read: any directory.
    #[default]
    Other,
}

/// How weights were quantized.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Quantization {
    /// `gguf`, or `quant_method` of config.json (`gptq`, `awq`, `fp8`, ...).
    pub method: String,
    /// Nominal bits per weight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bits: Option<u32>,
    /// Weights that share a scale.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_size: Option<i64>,
    /// GGUF `general.file_type` by name (`Q4_1`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_type: Option<String>,
}

/// A named, versioned prompt schema.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptSchema {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// SHA-256 of the schema file.
    pub sha256: Sha256,
}

/// LoRA and its kin, from `adapter_config.json` or GGUF `adapter.*`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Adapter {
    /// `LORA`, ...
    pub peft_type: String,
    /// Rank.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r: Option<u64>,
    /// Scale numerator, as its decimal text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpha: Option<String>,
    /// Modules that it changes, sorted.
    pub target_modules: Vec<String>,
}

/// A dataset by the hash its own tool knows and by ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetRef {
    /// Path or name.
    pub name: String,
    /// MD5 as DVC writes it (`....dir` for directories), for look-up only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dvc_md5: Option<String>,
    /// SHA-256, for trust.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Sha256>,
}

/// Where a model came from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Lineage {
    /// MLflow run id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mlflow_run: Option<String>,
    /// Git commit of the training code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub git_commit: Option<String>,
}

/// A version of a registered model, as MLflow knew it when it was added. Tags and aliases may have moved since.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MlflowOrigin {
    /// Address of the tracking server, without credentials.
    pub server: String,
    /// Name of the registered model.
    pub model: String,
    /// Its version.
    pub version: String,
    /// Where MLflow keeps its files.
    pub source: String,
    /// The run that made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// Aliases of the version, sorted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// Parameters of the run.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub params: BTreeMap<String, String>,
    /// The last value of each metric, as its decimal text.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, String>,
    /// Tags of the version and the run.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
}

impl MlflowOrigin {
    /// Run and commit, where every tool looks for them.
    pub fn lineage(&self) -> Lineage {
        let git_commit = self.tags.get(MLFLOW_COMMIT_TAG).filter(|commit| !commit.is_empty()).cloned();
        Lineage { mlflow_run: self.run.clone(), git_commit }
    }

    /// Holds it against its limits.
    ///
    /// # Errors
    /// What is too long or too much.
    pub fn check(&self) -> Result<(), String> {
        let Self { server, model, version, source, run, aliases, params, metrics, tags } = self;
        let names = [server, model, version, source].into_iter().chain(run).chain(aliases);
        let over = |text: &str, max: usize| text.chars().count() > max;
        if let Some(name) = names.into_iter().find(|name| over(name, MLFLOW_VALUE_CHARS_MAX)) {
            let start: String = name.chars().take(40).collect();
            return Err(format!("{start:?}... of MLflow is longer than {MLFLOW_VALUE_CHARS_MAX} characters"));
        }
        if aliases.len() > MLFLOW_ENTRIES_MAX {
            return Err(format!("MLflow gives it more than {MLFLOW_ENTRIES_MAX} aliases"));
        }
        for (what, map) in [("parameters", params), ("metrics", metrics), ("tags", tags)] {
            if map.len() > MLFLOW_ENTRIES_MAX {
                return Err(format!("{} {what} of MLflow are more than {MLFLOW_ENTRIES_MAX}", map.len()));
            }
            let long = |(key, value): &(&String, &String)| {
                over(key, MLFLOW_KEY_CHARS_MAX) || over(value, MLFLOW_VALUE_CHARS_MAX)
            };
            if map.iter().any(|entry| long(&entry)) {
                return Err(format!("one of the {what} of MLflow is too long for a contract"));
            }
        }
        Ok(())
    }
}

/// The tensors of one weights layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerTensors {
    /// Path of the layer in the artifact.
    pub path: String,
    /// Its BLAKE3 root.
    pub layer: LayerId,
    /// Its tensors, by offset.
    pub tensors: Vec<Tensor>,
}

/// One tensor inside a weights layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tensor {
    /// Name as the file gives it.
    pub name: String,
    /// Element or block type as the file names it (`BF16`, `Q4_1`).
    pub dtype: String,
    /// Dimensions, outermost first (GGUF order is reversed on reading).
    pub shape: Vec<u64>,
    /// First byte, from the start of the file.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// BLAKE3 of the bytes.
    pub blake3: LayerId,
}

impl Contract {
    /// Hash over the sorted (name, dtype, shape, data hash) of all tensors, each field length-prefixed.
    pub fn tensor_root_of<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> LayerId {
        let mut sorted: Vec<&Tensor> = tensors.into_iter().collect();
        sorted.sort_by(|a, b| {
            (&a.name, &a.dtype, &a.shape, a.blake3).cmp(&(&b.name, &b.dtype, &b.shape, b.blake3))
        });
        let mut hasher = blake3::Hasher::new_derive_key("weighlock 2026 tensor root v1");
        let mut field = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        for tensor in sorted {
            field(tensor.name.as_bytes());
            field(tensor.dtype.as_bytes());
            let shape: Vec<u8> = tensor.shape.iter().flat_map(|dim| dim.to_le_bytes()).collect();
            field(&shape);
            field(tensor.blake3.as_bytes());
        }
        LayerId(*hasher.finalize().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_mlflow_said_is_bounded_and_absent_where_it_said_nothing() {
        let tags = BTreeMap::from([(MLFLOW_COMMIT_TAG.to_owned(), "abc".to_owned())]);
        let origin = MlflowOrigin { run: Some("r1".into()), tags, ..MlflowOrigin::default() };
        assert_eq!(origin.check(), Ok(()));
        let lineage = Lineage { mlflow_run: Some("r1".into()), git_commit: Some("abc".into()) };
        assert_eq!(origin.lineage(), lineage);
        let json = serde_json::to_string(&Contract::default()).expect("serializes");
        assert!(!json.contains("mlflow"), "contracts of before keep their bytes: {json}");
        let params: BTreeMap<_, _> =
            (0..=MLFLOW_ENTRIES_MAX).map(|n| (n.to_string(), String::new())).collect();
        assert!(MlflowOrigin { params, ..origin.clone() }.check().is_err());
        let metrics = BTreeMap::from([("m".to_owned(), "1".repeat(MLFLOW_VALUE_CHARS_MAX + 1))]);
        assert!(MlflowOrigin { metrics, ..origin.clone() }.check().is_err());
        assert!(MlflowOrigin { source: "x".repeat(2000), ..origin }.check().is_err());
    }

    fn tensor(name: &str, offset: u64) -> Tensor {
        Tensor {
            name: name.into(),
            dtype: "F32".into(),
            shape: vec![2, 3],
            offset,
            len: 24,
            blake3: LayerId::of(name.as_bytes()),
        }
    }

    #[test]
    fn tensor_root_ignores_order_and_offsets_but_not_content() {
        let root = Contract::tensor_root_of(&[tensor("a", 0), tensor("b", 24)]);
        assert_eq!(root, Contract::tensor_root_of(&[tensor("b", 100), tensor("a", 500)]));
        let mut changed = tensor("b", 24);
        changed.shape = vec![3, 2];
        assert_ne!(root, Contract::tensor_root_of(&[tensor("a", 0), changed]));
    }
}
