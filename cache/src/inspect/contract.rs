//! From what files say to one contract: the tensors decide, the configuration adds.

use std::collections::BTreeMap;

use weighlock_protocol::Sha256;
use weighlock_protocol::manifest::LayerKind;
use weighlock_protocol::manifest::contract::{Adapter, CONTRACT_VERSION, Contract, Format, Quantization};

use super::json::quoted;
use super::{InspectError, element_count, ggml, gguf, hf, kind};
use crate::plan::{PlanFile, TensorSpan};

/// Checks that every tensor stands where the indexes say, and that no name stands twice in one checkpoint.
pub(super) fn check_shards(
    files: &[PlanFile],
    indexes: &[hf::ShardIndex],
    warnings: &mut Vec<String>,
) -> Result<(), InspectError> {
    let mut indexed: BTreeMap<&str, &hf::ShardIndex> = BTreeMap::new();
    for index in indexes {
        let mut missing = index.shards.clone();
        let stem = index.path.trim_end_matches(".safetensors.index.json");
        let mut owned: Vec<&str> = index.shards.values().map(String::as_str).collect();
        owned.extend(
            files.iter().map(|file| file.path.as_str()).filter(|path| {
                kind::has_extension(path, "safetensors") && kind::shard_stem(path) == Some(stem)
            }),
        );
        owned.sort_unstable();
        owned.dedup();
        for file in files.iter().filter(|file| owned.binary_search(&file.path.as_str()).is_ok()) {
            indexed.insert(&file.path, index);
            for tensor in &file.tensors {
                match missing.get(&tensor.name) {
                    Some(shard) if *shard == file.path => {
                        missing.remove(&tensor.name);
                    }
                    _ => {
                        return Err(InspectError::NotInIndex {
                            index: index.path.clone().into(),
                            tensor: quoted(&tensor.name),
                            shard: file.path.clone().into(),
                        });
                    }
                }
            }
        }
        if let Some((tensor, shard)) = missing.pop_first() {
            return Err(InspectError::NotInShard {
                index: index.path.clone().into(),
                tensor: quoted(&tensor),
                shard: shard.into(),
            });
        }
    }

    // Without an index, the files of one directory are one checkpoint; GGUF files are one only if they are a split.
    let mut names: BTreeMap<(&str, &str), &str> = BTreeMap::new();
    for file in files.iter().filter(|file| file.kind == LayerKind::Weights && !file.tensors.is_empty()) {
        if indexed.contains_key(file.path.as_str()) {
            continue;
        }
        let directory = kind::directory(&file.path);
        let group = if kind::has_extension(&file.path, "gguf") {
            kind::shard_stem(&file.path).unwrap_or(&file.path)
        } else if indexes.iter().any(|index| kind::directory(&index.path) == directory) {
            warnings.push(format!("{}: no shard index names it", file.path));
            &file.path
        } else {
            directory
        };
        for tensor in &file.tensors {
            if let Some(first) = names.insert((group, &tensor.name), &file.path) {
                return Err(InspectError::TensorTwice {
                    tensor: quoted(&tensor.name),
                    first: first.into(),
                    second: file.path.clone().into(),
                });
            }
        }
    }
    Ok(())
}

/// Fills format, counts and precision of `contract`, which `hf` began, and what only GGUF keys say.
pub(super) fn complete(
    mut contract: Contract,
    config_dtype: Option<&str>,
    files: &[PlanFile],
    indexes: &[hf::ShardIndex],
    headers: &BTreeMap<String, gguf::Header>,
    warnings: &mut Vec<String>,
) -> Contract {
    contract.version = CONTRACT_VERSION;
    let carries = |extension: &'static str| {
        move |file: &&PlanFile| kind::has_extension(&file.path, extension) && !file.tensors.is_empty()
    };
    let safetensors = files.iter().any(|file| carries("safetensors")(&file));
    let has_gguf = files.iter().any(|file| kind::has_extension(&file.path, "gguf"));
    let weights: Vec<&PlanFile> = if safetensors {
        contract.format = Format::Safetensors;
        if has_gguf {
            warnings.push(
                "both safetensors and GGUF: the contract speaks of the safetensors; --exclude one".into(),
            );
        }
        main_safetensors(files.iter().filter(carries("safetensors")).collect(), indexes)
    } else if has_gguf {
        contract.format = Format::Gguf;
        let main = main_gguf(files, headers, warnings);
        if let Some(header) = main.first().and_then(|file| headers.get(&file.path)) {
            add_gguf(&mut contract, header);
        }
        main
    } else {
        return contract;
    };

    let tensors = || weights.iter().flat_map(|file| &file.tensors);
    let by_dtype = count_by_dtype(tensors());
    contract.param_count = Some(by_dtype.values().sum::<u128>().try_into().unwrap_or(u64::MAX));
    // Of equal counts the first by name, so that the answer does not depend on file order.
    let most = by_dtype.iter().rev().max_by_key(|(_, count)| **count).map(|(dtype, _)| *dtype);
    contract.precision = most.map(str::to_ascii_lowercase);
    if contract.format == Format::Gguf {
        if let Some(quantization) = &mut contract.quantization {
            quantization.bits = quantization.bits.or_else(|| most.and_then(ggml::quantized_bits));
        } else if let Some(bits) = most.and_then(ggml::quantized_bits) {
            contract.quantization = Some(gguf_quantization(None, Some(bits)));
        }
    }
    if let Some(claimed) = config_dtype.and_then(config_dtype_name) {
        let is_float = |dtype: &&str| dtype.contains('F');
        let floats: Vec<&str> = by_dtype.keys().copied().filter(is_float).collect();
        if !floats.is_empty() && !floats.contains(&claimed) {
            let found = floats.join(", ");
            warnings.push(format!(
                "config.json says {claimed}, but the float tensors are {found}; the contract says what they are"
            ));
        }
    }
    contract
}

/// The safetensors files that the contract speaks of: those of the index at the top, else those at the top, else
/// all; adapters only where there is nothing else.
fn main_safetensors<'a>(files: Vec<&'a PlanFile>, indexes: &[hf::ShardIndex]) -> Vec<&'a PlanFile> {
    let (weights, adapters): (Vec<_>, Vec<_>) =
        files.into_iter().partition(|file| file.kind == LayerKind::Weights);
    if weights.is_empty() {
        return adapters;
    }
    let top_index = indexes.iter().filter(|index| kind::directory(&index.path).is_empty());
    // `model` before `model.fp16`.
    if let Some(index) = top_index.min_by_key(|index| index.path.len()) {
        let mut shards: Vec<&str> = index.shards.values().map(String::as_str).collect();
        shards.sort_unstable();
        shards.dedup();
        return weights
            .into_iter()
            .filter(|file| shards.binary_search(&file.path.as_str()).is_ok())
            .collect();
    }
    let (top, below): (Vec<_>, Vec<_>) =
        weights.into_iter().partition(|file| kind::directory(&file.path).is_empty());
    if top.is_empty() { below } else { top }
}

/// The GGUF file, or the split, that the contract speaks of: the first in loading order that is a whole model.
fn main_gguf<'a>(
    files: &'a [PlanFile],
    headers: &BTreeMap<String, gguf::Header>,
    warnings: &mut Vec<String>,
) -> Vec<&'a PlanFile> {
    let ggufs: Vec<&PlanFile> = files.iter().filter(|file| headers.contains_key(&file.path)).collect();
    let is_part = |file: &&PlanFile| {
        let kind = headers.get(&file.path).and_then(|header| header.str("general.type"));
        matches!(kind, Some("mmproj" | "adapter" | "imatrix"))
    };
    let models: Vec<&PlanFile> = ggufs.iter().copied().filter(|file| !is_part(file)).collect();
    let Some(first) = models.first().or(ggufs.first()).copied() else {
        return Vec::new();
    };
    let stem = kind::shard_stem(&first.path);
    let in_split = |file: &&PlanFile| stem.is_some() && kind::shard_stem(&file.path) == stem;
    if models.iter().any(|file| file.path != first.path && !in_split(file)) {
        warnings.push(format!(
            "several GGUF models: the contract speaks of {}; choose with --include",
            first.path
        ));
    }
    ggufs.into_iter().filter(|file| file.path == first.path || in_split(file)).collect()
}

/// Takes from a GGUF header what the other files did not say.
fn add_gguf(contract: &mut Contract, header: &gguf::Header) {
    let architecture = header.str("general.architecture");
    if let Some(name) = architecture {
        contract.architecture.get_or_insert_with(|| name.to_owned());
        if let Some(tokens) = header.u64(&format!("{name}.context_length")) {
            contract.max_seq_len = Some(tokens);
        }
    }
    if let Some(name) = header.u64("general.file_type").and_then(ggml::file_type_name) {
        let bits = ggml::quantized_bits(name);
        contract.quantization = bits.is_some().then(|| gguf_quantization(Some(name), bits));
    }
    if let Some(hash) = header.tokenizer_sha256() {
        contract.tokenizer_sha256 = Some(hash);
    }
    if let Some(template) = header.str("tokenizer.chat_template") {
        contract.chat_template_sha256 = Some(Sha256::of(template.as_bytes()));
    }
    let base = ["general.base_model.0.repo_url", "general.base_model.0.name"];
    if let Some(base) = base.iter().find_map(|key| header.str(key)) {
        contract.base_model.get_or_insert_with(|| base.to_owned());
    }
    if header.str("general.type") == Some("adapter") {
        let alpha = match header.entries.get("adapter.lora.alpha") {
            Some(gguf::Value::Float(alpha)) => Some(alpha.to_string()),
            _ => header.u64("adapter.lora.alpha").map(|alpha| alpha.to_string()),
        };
        let lora_a = |tensor: &&TensorSpan| tensor.name.ends_with(".lora_a");
        // The first factor of a pair maps the input to `r` values.
        let r = header.tensors.iter().find(lora_a).and_then(|tensor| tensor.shape.first().copied());
        contract.adapter.get_or_insert_with(|| Adapter {
            peft_type: header.str("adapter.type").unwrap_or("unknown").to_ascii_uppercase(),
            r,
            alpha,
            target_modules: gguf_targets(header),
        });
    }
}

/// The modules that a GGUF adapter changes, without block numbers (`attn_q` for `blk.3.attn_q.weight.lora_a`).
fn gguf_targets(header: &gguf::Header) -> Vec<String> {
    let module = |tensor: &TensorSpan| {
        let name = tensor.name.strip_suffix(".lora_a")?;
        let name = name.strip_suffix(".weight").unwrap_or(name);
        Some(name.rsplit('.').next().unwrap_or(name).to_owned())
    };
    let mut modules: Vec<String> = header.tensors.iter().filter_map(module).collect();
    modules.sort();
    modules.dedup();
    modules
}

fn gguf_quantization(file_type: Option<&str>, bits: Option<u32>) -> Quantization {
    Quantization { method: "gguf".into(), bits, group_size: None, file_type: file_type.map(str::to_owned) }
}

fn count_by_dtype<'a>(tensors: impl Iterator<Item = &'a TensorSpan>) -> BTreeMap<&'a str, u128> {
    let mut counts = BTreeMap::new();
    for tensor in tensors {
        // Both readers refuse shapes whose count overflows.
        let count = element_count(&tensor.shape).unwrap_or(u64::MAX);
        *counts.entry(tensor.dtype.as_str()).or_default() += u128::from(count);
    }
    counts
}

/// The safetensors name of a dtype that `config.json` names.
fn config_dtype_name(dtype: &str) -> Option<&'static str> {
    Some(match dtype.trim_start_matches("torch.") {
        "float64" => "F64",
        "float32" | "float" => "F32",
        "float16" | "half" => "F16",
        "bfloat16" => "BF16",
        _ => return None,
    })
}
