//! What an import says about its files: the contract layer and the ModelPack config blob.

use serde::Serialize;
use weighlock_protocol::Sha256;
use weighlock_protocol::manifest::contract::{CONTRACT_VERSION, Format, LayerTensors, TENSORS_MAX, Tensor};
use weighlock_protocol::manifest::{CONTRACT_BYTES_MAX, Contract, LAYERS_MAX, ManifestError};

use super::import::Hashed;
use crate::error::StoreError;
use crate::plan::{Plan, PlanFile};

/// The contract of a plan with what the full read gave: version, tensors and their root.
pub(crate) fn contract(plan: &Plan, hashed: &[Hashed]) -> Result<Contract, StoreError> {
    if plan.files.iter().map(|file| file.tensors.len()).sum::<usize>() > TENSORS_MAX {
        return Err(ManifestError::TooBig { what: "tensors", limit: TENSORS_MAX as u64 }.into());
    }
    let mut contract = plan.contract.clone();
    contract.version = CONTRACT_VERSION;
    contract.tensors = plan
        .files
        .iter()
        .zip(hashed)
        .filter(|(file, _)| !file.tensors.is_empty())
        .map(|(file, hashed)| LayerTensors {
            path: file.path.clone(),
            layer: hashed.layer.id,
            tensors: file
                .tensors
                .iter()
                .zip(&hashed.tensors)
                .map(|(span, blake3)| Tensor {
                    name: span.name.clone(),
                    dtype: span.dtype.clone(),
                    shape: span.shape.clone(),
                    offset: span.offset,
                    len: span.len,
                    blake3: *blake3,
                })
                .collect(),
        })
        .collect();
    contract.tensor_root = (!contract.tensors.is_empty())
        .then(|| Contract::tensor_root_of(contract.tensors.iter().flat_map(|layer| &layer.tensors)));
    Ok(contract)
}

/// The ModelPack config blob: `application/vnd.cncf.model.config.v1+json` of the CNCF model specification.
#[derive(Debug, Serialize)]
pub(crate) struct ModelConfig {
    descriptor: Descriptor,
    config: Config,
    modelfs: ModelFs,
}

#[derive(Debug, Serialize)]
struct Descriptor {
    #[serde(skip_serializing_if = "Option::is_none")]
    family: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    #[serde(skip_serializing_if = "Option::is_none")]
    architecture: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    format: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    param_size: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    precision: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    quantization: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ModelFs {
    r#type: &'static str,
    diff_ids: Vec<Sha256>,
}

/// The config blob for a contract; `diff_ids` are the SHA-256 of all layers in the order of the manifest. The same
/// input gives the same bytes: no time stands in it.
pub(crate) fn model_config(contract: &Contract, diff_ids: impl Iterator<Item = Sha256>) -> ModelConfig {
    let quantization = contract.quantization.as_ref();
    ModelConfig {
        descriptor: Descriptor { family: contract.base_model.clone() },
        config: Config {
            architecture: contract.architecture.clone(),
            format: match contract.format {
                Format::Safetensors => Some("safetensors"),
                Format::Gguf => Some("gguf"),
                Format::Other => None,
            },
            param_size: contract.param_count.map(param_size),
            precision: contract.precision.clone(),
            quantization: quantization.map(|q| q.file_type.clone().unwrap_or_else(|| q.method.clone())),
        },
        modelfs: ModelFs { r#type: "layers", diff_ids: diff_ids.collect() },
    }
}

/// JSON of something that becomes a layer, within the size that every host accepts.
pub(crate) fn to_json(value: &impl Serialize) -> Result<Vec<u8>, StoreError> {
    let bytes = serde_json::to_vec(value).map_err(|e| ManifestError::Json(e.to_string()))?;
    if bytes.len() as u64 > CONTRACT_BYTES_MAX {
        return Err(ManifestError::TooBig { what: "contract bytes", limit: CONTRACT_BYTES_MAX }.into());
    }
    Ok(bytes)
}

/// Refuses a plan that no manifest can describe, before its files are read.
pub(crate) fn check(plan: &Plan) -> Result<(), StoreError> {
    // The contract is a layer as well.
    if plan.files.len() >= LAYERS_MAX {
        return Err(ManifestError::TooBig { what: "layers", limit: LAYERS_MAX as u64 }.into());
    }
    plan.files.iter().try_for_each(check_spans)
}

/// Refuses tensors that overlap, are out of order or leave their file.
fn check_spans(file: &PlanFile) -> Result<(), StoreError> {
    let mut at = 0;
    for span in &file.tensors {
        let end = span.offset.checked_add(span.len).filter(|end| *end <= file.size);
        let Some(end) = end.filter(|_| span.offset >= at) else {
            let name: String = span.name.chars().take(200).collect();
            return Err(ManifestError::Form(format!(
                "tensor {name:?} of {} overlaps another or leaves its file",
                file.path
            ))
            .into());
        };
        at = end;
    }
    Ok(())
}

/// `8.0b`, `135m`: as the specification writes sizes.
fn param_size(count: u64) -> String {
    let (unit, suffix) = match count {
        1_000_000_000.. => (1_000_000_000, "b"),
        1_000_000.. => (1_000_000, "m"),
        1_000.. => (1_000, "k"),
        _ => return count.to_string(),
    };
    let tenths = (count / (unit / 10)) % 10;
    match tenths {
        0 => format!("{}{suffix}", count / unit),
        _ => format!("{}.{tenths}{suffix}", count / unit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameter_counts_read_as_people_write_them() {
        for (count, text) in [
            (7, "7"),
            (12_000, "12k"),
            (134_515_008, "134.5m"),
            (8_030_261_248, "8b"),
            (1_540_000_000, "1.5b"),
        ] {
            assert_eq!(param_size(count), text);
        }
    }
}
