//! What an artifact is: an OCI image manifest in CNCF ModelPack form whose exact bytes are its identity.

pub mod contract;
mod modelpack;

use std::sync::Arc;

pub use contract::Contract;
pub use modelpack::{ManifestError, build};

use crate::id::{LayerId, ManifestDigest, Sha256};

/// Largest manifest accepted, in bytes. A layer descriptor takes about 500 bytes.
pub const MANIFEST_BYTES_MAX: usize = 16 << 20;
/// Most layers in one manifest.
pub const LAYERS_MAX: usize = 20_000;
/// Largest contract layer accepted, in bytes.
pub const CONTRACT_BYTES_MAX: u64 = 64 << 20;

/// Media type of the contract layer.
pub const MEDIA_CONTRACT: &str = "application/vnd.weighlock.contract.v1+json";

/// What a layer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerKind {
    /// Model weights: safetensors shards, GGUF files.
    Weights,
    /// Model configuration (`config.json`, shard index, generation config).
    Config,
    /// Tokenizer files.
    Tokenizer,
    /// Chat or prompt templates.
    PromptTemplate,
    /// Adapter weights and their configuration.
    Adapter,
    /// The contract that Weighlock read from the files.
    Contract,
    /// Evaluation reports and samples.
    Report,
    /// Anything else.
    Other,
}

/// One immutable file of an artifact, under both its names.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Layer {
    /// Path inside the artifact: relative, `/`-separated, no `.` or `..` components.
    pub path: String,
    /// What it is for.
    pub kind: LayerKind,
    /// Length in bytes.
    pub size: u64,
    /// BLAKE3 root: the name that hosts exchange.
    pub id: LayerId,
    /// SHA-256: the name that OCI and the Hub use.
    pub sha256: Sha256,
}

/// A parsed manifest together with the exact bytes that are its identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    bytes: Arc<[u8]>,
    digest: ManifestDigest,
    files: Vec<Layer>,
    contract: Layer,
    config: Layer,
}

impl Manifest {
    /// Parses and checks manifest bytes from anywhere, also from an enemy.
    ///
    /// # Errors
    /// Not a manifest of ours, over a limit, a path that leaves its directory, or two layers at one path.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        modelpack::parse(bytes)
    }

    /// The exact bytes.
    pub fn bytes(&self) -> &Arc<[u8]> {
        &self.bytes
    }

    /// SHA-256 of the exact bytes.
    pub fn digest(&self) -> ManifestDigest {
        self.digest
    }

    /// The artifact's files in loading order: configuration and tokenizer first, then weights.
    pub fn files(&self) -> &[Layer] {
        &self.files
    }

    /// The contract layer.
    pub fn contract(&self) -> &Layer {
        &self.contract
    }

    /// The ModelPack config blob.
    pub fn config(&self) -> &Layer {
        &self.config
    }

    /// Everything that a complete copy holds: contract and config first, then the files in loading order.
    /// One layer may stand at several paths.
    pub fn layers(&self) -> impl Iterator<Item = &Layer> {
        [&self.contract, &self.config].into_iter().chain(&self.files)
    }

    /// Sum of the sizes of the files, in bytes.
    pub fn total_bytes(&self) -> u64 {
        self.files.iter().fold(0u64, |sum, layer| sum.saturating_add(layer.size))
    }
}

/// Whether `path` is safe to join to a directory and to print: relative, normal components only, no control characters,
/// at most 1,024 bytes.
pub fn path_is_safe(path: &str) -> bool {
    !path.is_empty()
        && path.len() <= 1024
        && !path.contains(|c: char| c == '\\' || c.is_control())
        && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}
