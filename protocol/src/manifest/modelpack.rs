//! Writing and strictly reading the ModelPack form of an OCI image manifest.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    CONTRACT_BYTES_MAX, LAYERS_MAX, Layer, LayerKind, MANIFEST_BYTES_MAX, MEDIA_CONTRACT, Manifest,
    path_is_safe,
};
use crate::id::{LayerId, ManifestDigest, Sha256};
use crate::wire::bao::LAYER_BYTES_MAX;

const MEDIA_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const ARTIFACT_TYPE: &str = "application/vnd.cncf.model.manifest.v1+json";
const MEDIA_CONFIG: &str = "application/vnd.cncf.model.config.v1+json";
const NOTE_PATH: &str = "org.cncf.model.filepath";
const NOTE_BLAKE3: &str = "dev.weighlock.blake3";
const NOTE_KIND: &str = "dev.weighlock.kind";
/// The path that the contract layer carries; the leading dot keeps it out of the way of model files.
const CONTRACT_PATH: &str = ".weighlock/contract.json";

/// Why bytes are not a manifest that this host takes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Over a named limit.
    #[error("manifest is over the limit of {limit} {what}")]
    TooBig {
        /// What is counted.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// Not JSON of the expected form.
    #[error("manifest does not parse: {0}")]
    Json(String),
    /// JSON, but not a Weighlock ModelPack manifest.
    #[error("manifest is not a ModelPack manifest with a Weighlock contract: {0}")]
    Form(String),
    /// A path that would leave its directory.
    #[error("manifest names an unsafe path {0:?}")]
    Path(String),
    /// Two layers at one path.
    #[error("manifest has two layers at {0:?}")]
    Twice(String),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Doc {
    schema_version: u32,
    media_type: String,
    artifact_type: String,
    config: Descriptor,
    layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: Sha256,
    size: u64,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// The manifest of `files` (in loading order), with its contract and ModelPack config blob. The same input always
/// gives the same bytes; `path` of `contract` and `config` is set here.
///
/// # Errors
/// The same that [`Manifest::parse`] finds.
pub fn build(files: &[Layer], contract: &Layer, config: &Layer) -> Result<Manifest, ManifestError> {
    let mut layers: Vec<Descriptor> = files.iter().map(descriptor).collect();
    layers.push(descriptor(&Layer {
        path: CONTRACT_PATH.into(),
        kind: LayerKind::Contract,
        ..contract.clone()
    }));
    let doc = Doc {
        schema_version: 2,
        media_type: MEDIA_MANIFEST.into(),
        artifact_type: ARTIFACT_TYPE.into(),
        config: Descriptor {
            media_type: MEDIA_CONFIG.into(),
            digest: config.sha256,
            size: config.size,
            annotations: [(NOTE_BLAKE3.to_owned(), config.id.to_string())].into(),
        },
        layers,
        annotations: BTreeMap::new(),
    };
    let bytes = serde_json::to_vec(&doc).map_err(|e| ManifestError::Json(e.to_string()))?;
    parse(&bytes)
}

pub(super) fn parse(bytes: &[u8]) -> Result<Manifest, ManifestError> {
    if bytes.len() > MANIFEST_BYTES_MAX {
        return Err(ManifestError::TooBig { what: "bytes", limit: MANIFEST_BYTES_MAX as u64 });
    }
    let doc: Doc = serde_json::from_slice(bytes).map_err(|e| ManifestError::Json(e.to_string()))?;
    let form = |what: &str| ManifestError::Form(what.to_owned());
    if doc.schema_version != 2 || doc.media_type != MEDIA_MANIFEST || doc.artifact_type != ARTIFACT_TYPE {
        return Err(form("schemaVersion, mediaType or artifactType differ"));
    }
    if doc.layers.len() > LAYERS_MAX {
        return Err(ManifestError::TooBig { what: "layers", limit: LAYERS_MAX as u64 });
    }
    if doc.config.media_type != MEDIA_CONFIG {
        return Err(form("the config blob has another media type"));
    }
    let config = Layer {
        path: ".weighlock/config.json".into(),
        kind: LayerKind::Other,
        size: doc.config.size,
        id: blake3_note(&doc.config)?,
        sha256: doc.config.digest,
    };
    let mut contract = None;
    let mut files = Vec::with_capacity(doc.layers.len());
    let mut paths = std::collections::BTreeSet::new();
    for descriptor in &doc.layers {
        let layer = layer(descriptor)?;
        if !paths.insert(layer.path.clone()) {
            return Err(ManifestError::Twice(layer.path));
        }
        if descriptor.media_type == MEDIA_CONTRACT {
            if contract.replace(layer).is_some() {
                return Err(form("it has two contracts"));
            }
        } else if layer.path.starts_with(OWN_DIR) {
            // Where directories of an artifact keep what they are.
            return Err(ManifestError::Path(layer.path));
        } else {
            files.push(layer);
        }
    }
    let contract = contract.ok_or_else(|| form("it has no contract layer"))?;
    if contract.size > CONTRACT_BYTES_MAX || config.size > CONTRACT_BYTES_MAX {
        return Err(ManifestError::TooBig { what: "contract bytes", limit: CONTRACT_BYTES_MAX });
    }
    // A file may not also be a directory of another one: views could not hold both.
    for path in &paths {
        let mut at = path.as_str();
        while let Some((parent, _)) = at.rsplit_once('/') {
            if paths.contains(parent) {
                return Err(ManifestError::Twice(parent.to_owned()));
            }
            at = parent;
        }
    }
    Ok(Manifest { bytes: bytes.into(), digest: ManifestDigest::of(bytes), files, contract, config })
}

fn descriptor(layer: &Layer) -> Descriptor {
    let kind = serde_json::to_value(layer.kind).ok().and_then(|v| v.as_str().map(str::to_owned));
    Descriptor {
        media_type: media_type(layer.kind).to_owned(),
        digest: layer.sha256,
        size: layer.size,
        annotations: [
            (NOTE_PATH.to_owned(), layer.path.clone()),
            (NOTE_BLAKE3.to_owned(), layer.id.to_string()),
            (NOTE_KIND.to_owned(), kind.unwrap_or_default()),
        ]
        .into(),
    }
}

/// Directory in which an artifact's own layers stand, and the mark of a directory of it.
const OWN_DIR: &str = ".weighlock/";

fn layer(descriptor: &Descriptor) -> Result<Layer, ManifestError> {
    let path = descriptor
        .annotations
        .get(NOTE_PATH)
        .ok_or_else(|| ManifestError::Form(format!("a layer has no {NOTE_PATH} annotation")))?;
    if !path_is_safe(path) {
        return Err(ManifestError::Path(path.chars().take(200).collect()));
    }
    if descriptor.size > LAYER_BYTES_MAX {
        return Err(ManifestError::TooBig { what: "bytes in a layer", limit: LAYER_BYTES_MAX });
    }
    // An unknown kind comes from a newer version: still a file that we can carry.
    let kind = descriptor
        .annotations
        .get(NOTE_KIND)
        .and_then(|kind| serde_json::from_value(kind.clone().into()).ok())
        .unwrap_or(LayerKind::Other);
    Ok(Layer {
        path: path.clone(),
        kind,
        size: descriptor.size,
        id: blake3_note(descriptor)?,
        sha256: descriptor.digest,
    })
}

fn blake3_note(descriptor: &Descriptor) -> Result<LayerId, ManifestError> {
    descriptor
        .annotations
        .get(NOTE_BLAKE3)
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| ManifestError::Form(format!("a layer has no valid {NOTE_BLAKE3} annotation")))
}

fn media_type(kind: LayerKind) -> &'static str {
    match kind {
        LayerKind::Weights | LayerKind::Adapter => "application/vnd.cncf.model.weight.v1.raw",
        LayerKind::Config | LayerKind::Tokenizer | LayerKind::PromptTemplate => {
            "application/vnd.cncf.model.weight.config.v1.raw"
        }
        LayerKind::Contract => MEDIA_CONTRACT,
        LayerKind::Report | LayerKind::Other => "application/vnd.cncf.model.doc.v1.raw",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str) -> Layer {
        Layer {
            path: path.into(),
            kind: LayerKind::Weights,
            size: 3,
            id: LayerId::of(path.as_bytes()),
            sha256: Sha256::of(path.as_bytes()),
        }
    }

    #[test]
    fn bytes_are_stable_and_parse_back() {
        let files = [file("config.json"), file("sub/model.safetensors")];
        let one = build(&files, &file("c"), &file("m")).expect("valid");
        let two = build(&files, &file("c"), &file("m")).expect("valid");
        assert_eq!(one.bytes(), two.bytes());
        assert_eq!(one.digest(), ManifestDigest::of(one.bytes()));
        assert_eq!(one.files(), files);
        assert_eq!(one.contract().id, file("c").id);
        assert_eq!(one.layers().count(), 4);
        assert_eq!(one.total_bytes(), 6);
    }

    #[test]
    fn unsafe_or_doubled_paths_are_refused() {
        for path in [
            "../x",
            "/x",
            "a//b",
            "a/./b",
            "",
            "a\0b",
            "a\u{1b}[2Jb",
            ".weighlock/contract.json",
            ".weighlock/stamps",
        ] {
            assert!(build(&[file(path)], &file("c"), &file("m")).is_err(), "{path:?} was accepted");
        }
        assert!(build(&[file("a"), file("a")], &file("c"), &file("m")).is_err());
        assert!(build(&[file("a"), file("a/b")], &file("c"), &file("m")).is_err());
        let huge = Layer { size: LAYER_BYTES_MAX + 1, ..file("a") };
        let error = build(&[huge], &file("c"), &file("m")).expect_err("no layer is that large");
        assert!(matches!(error, ManifestError::TooBig { .. }), "{error}");
        assert!(Manifest::parse(b"{}").is_err());
        assert!(Manifest::parse(&vec![b' '; MANIFEST_BYTES_MAX + 1]).is_err());
    }
}
