//! What the small files of a Hugging Face style directory say: configuration, tokenizer, templates, shard index.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256 as Sha256State};
use weighlock_protocol::Sha256;
use weighlock_protocol::manifest::contract::{Adapter, Contract, Quantization};
use weighlock_protocol::manifest::path_is_safe;

use super::json::{self, UniqueMap, quoted};
use super::kind;
use super::scan::Found;
use super::{InspectConfig, InspectError};

/// A shard index, checked against the files that are there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ShardIndex {
    /// Path of the index in the artifact.
    pub(crate) path: String,
    /// For each tensor, the path of its shard in the artifact.
    pub(crate) shards: BTreeMap<String, String>,
}

/// Reads the files at the top of the artifact into a contract (without format, counts and precision, which the
/// tensors decide). Also gives the dtype that `config.json` claims.
pub(crate) fn contract(
    files: &[Found],
    config: &InspectConfig,
    warnings: &mut Vec<String>,
) -> Result<(Contract, Option<String>), InspectError> {
    let top = Top { files, config };
    let mut contract = Contract::default();
    let mut dtype = None;
    if let Some(settings) = top.json("config.json")? {
        dtype = ["dtype", "torch_dtype"].iter().find_map(|key| text_at(&settings, key));
        contract.architecture = settings["architectures"].get(0).and_then(Value::as_str).map(str::to_owned);
        contract.max_seq_len = max_seq_len(&settings);
        contract.quantization = quantization(&settings["quantization_config"]);
    }
    if let Some(file) = top.file("generation_config.json") {
        contract.generation_config_sha256 = Some(sha256_of(file)?);
    }
    contract.tokenizer_sha256 = tokenizer_sha256(&top)?;
    contract.chat_template_sha256 = chat_template_sha256(&top, warnings)?;
    if let Some(settings) = top.json("adapter_config.json")? {
        contract.base_model = text_at(&settings, "base_model_name_or_path");
        contract.adapter = Some(adapter(&settings));
    }
    Ok((contract, dtype))
}

/// Reads every `*.safetensors.index.json` and checks that the shards it names are among `files`.
pub(crate) fn shard_indexes(
    files: &[Found],
    config: &InspectConfig,
) -> Result<Vec<ShardIndex>, InspectError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: UniqueMap<String>,
    }
    let mut indexes = Vec::new();
    for file in files.iter().filter(|file| file.path.ends_with(".safetensors.index.json")) {
        let text = read_text(file, config.json_bytes_max)?;
        let index: Index = serde_json::from_str(&text)
            .map_err(|error| InspectError::Json { path: file.source_path(), error })?;
        let directory = kind::directory(&file.path);
        let mut shards = BTreeMap::new();
        for (tensor, shard) in index.weight_map.0 {
            let path = if directory.is_empty() { shard.clone() } else { format!("{directory}/{shard}") };
            let there = path_is_safe(&shard)
                && files.binary_search_by(|file| file.path.as_str().cmp(path.as_str())).is_ok();
            if !there {
                return Err(InspectError::MissingShard {
                    index: file.source_path(),
                    shard: quoted(&shard),
                    tensor: quoted(&tensor),
                });
            }
            shards.insert(tensor, path);
        }
        indexes.push(ShardIndex { path: file.path.clone(), shards });
    }
    Ok(indexes)
}

impl Found {
    fn source_path(&self) -> std::path::PathBuf {
        // The artifact's own name for the file: the source may be a blob without a telling name.
        Path::new(&self.path).to_owned()
    }
}

/// The files at the top of the artifact.
struct Top<'a> {
    files: &'a [Found],
    config: &'a InspectConfig,
}

impl<'a> Top<'a> {
    fn file(&self, name: &str) -> Option<&'a Found> {
        self.files.iter().find(|file| file.path == name)
    }

    fn json(&self, name: &str) -> Result<Option<Value>, InspectError> {
        let Some(file) = self.file(name) else {
            return Ok(None);
        };
        let text = read_text(file, self.config.json_bytes_max)?;
        let value = json::parse_as_python(&text)
            .map_err(|error| InspectError::Json { path: file.source_path(), error })?;
        if !value.is_object() {
            return Err(InspectError::NotAnObject { path: file.source_path() });
        }
        Ok(Some(value))
    }
}

fn read_text(file: &Found, limit: u64) -> Result<String, InspectError> {
    let path = || file.source_path();
    if file.size > limit {
        return Err(InspectError::FileTooLong { path: path(), size: file.size, limit });
    }
    let mut bytes = Vec::new();
    let read = File::open(&file.source).and_then(|open| open.take(limit + 1).read_to_end(&mut bytes));
    read.map_err(|error| InspectError::Io { path: path(), error })?;
    if bytes.len() as u64 != file.size {
        return Err(InspectError::Changed { path: path() });
    }
    String::from_utf8(bytes).map_err(|_| InspectError::TextNotUtf8 { path: path() })
}

fn sha256_of(file: &Found) -> Result<Sha256, InspectError> {
    let mut hash = Sha256State::new();
    let copied = File::open(&file.source)
        .and_then(|open| io::copy(&mut open.take(file.size.saturating_add(1)), &mut HashWriter(&mut hash)))
        .map_err(|error| InspectError::Io { path: file.source_path(), error })?;
    if copied != file.size {
        return Err(InspectError::Changed { path: file.source_path() });
    }
    Ok(Sha256(hash.finalize().into()))
}

struct HashWriter<'a>(&'a mut Sha256State);

impl io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn text_at(value: &Value, key: &str) -> Option<String> {
    value[key].as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

fn max_seq_len(settings: &Value) -> Option<u64> {
    const KEYS: [&str; 6] = [
        "max_position_embeddings",
        "n_positions",
        "max_seq_len",
        "max_sequence_length",
        "n_ctx",
        "seq_length",
    ];
    // Models of several modalities keep the language model's settings one level down.
    [settings, &settings["text_config"], &settings["llm_config"]]
        .iter()
        .find_map(|scope| KEYS.iter().find_map(|key| scope[key].as_u64()))
}

fn quantization(settings: &Value) -> Option<Quantization> {
    if !settings.is_object() {
        return None;
    }
    let flag = |key: &str| settings[key].as_bool() == Some(true);
    let bits = settings["bits"].as_u64().and_then(|bits| bits.try_into().ok());
    let bits = bits.or(match () {
        // bitsandbytes says it with flags.
        () if flag("load_in_4bit") => Some(4),
        () if flag("load_in_8bit") => Some(8),
        () => None,
    });
    Some(Quantization {
        method: text_at(settings, "quant_method").unwrap_or_else(|| "unknown".into()),
        bits,
        group_size: settings["group_size"].as_i64(),
        file_type: None,
    })
}

fn adapter(settings: &Value) -> Adapter {
    let mut target_modules = match &settings["target_modules"] {
        Value::String(module) => vec![module.clone()],
        Value::Array(modules) => modules.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    };
    target_modules.sort();
    Adapter {
        peft_type: text_at(settings, "peft_type").unwrap_or_else(|| "unknown".into()),
        r: settings["r"].as_u64(),
        alpha: settings["lora_alpha"].as_number().map(ToString::to_string),
        target_modules,
    }
}

/// `tokenizer.json` says everything; without it, a hash over the names and hashes of the files that do together.
fn tokenizer_sha256(top: &Top<'_>) -> Result<Option<Sha256>, InspectError> {
    if let Some(file) = top.file("tokenizer.json") {
        return sha256_of(file).map(Some);
    }
    const VOCABULARIES: [&str; 8] = [
        "vocab.json",
        "merges.txt",
        "vocab.txt",
        "tokenizer.model",
        "spiece.model",
        "sentencepiece.bpe.model",
        "tekken.json",
        "tokenizer.model.v3",
    ];
    const SETTINGS: [&str; 3] = ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"];
    if !VOCABULARIES.iter().any(|name| top.file(name).is_some()) {
        return Ok(None);
    }
    let mut hash = Sha256State::new();
    hash.update(b"weighlock tokenizer files v1\n");
    for name in VOCABULARIES.iter().chain(&SETTINGS) {
        if let Some(file) = top.file(name) {
            hash.update(format!("{} {name}\n", sha256_of(file)?.hex()).as_bytes());
        }
    }
    Ok(Some(Sha256(hash.finalize().into())))
}

fn chat_template_sha256(top: &Top<'_>, warnings: &mut Vec<String>) -> Result<Option<Sha256>, InspectError> {
    if let Some(file) = top.file("chat_template.jinja") {
        let text = read_text(file, top.config.json_bytes_max)?;
        return Ok(Some(Sha256::of(text.as_bytes())));
    }
    for name in ["chat_template.json", "tokenizer_config.json"] {
        let Some(settings) = top.json(name)? else {
            continue;
        };
        let template = match &settings["chat_template"] {
            Value::String(text) => Some(text.as_str()),
            // Several named templates: the one that is used when none is named.
            Value::Array(named) => {
                let default = named.iter().find(|template| template["name"] == "default");
                if default.is_none() {
                    warnings.push(format!("{name}: none of its chat templates is called `default`"));
                }
                default.and_then(|template| template["template"].as_str())
            }
            _ => None,
        };
        if let Some(text) = template {
            return Ok(Some(Sha256::of(text.as_bytes())));
        }
    }
    Ok(None)
}
