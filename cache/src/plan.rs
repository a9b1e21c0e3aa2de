//! What an import is about to take: files, their kinds, and where tensors lie in them.

use std::path::PathBuf;

use weighlock_protocol::manifest::{Contract, LayerKind};

/// An inspected directory or file, ready for import. Making it reads headers and small files only.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What the user named.
    pub source: PathBuf,
    /// The files in loading order: configuration, tokenizer, templates, then weights in shard order, then the rest.
    pub files: Vec<PlanFile>,
    /// The contract without what needs a full read: `tensors` and `tensor_root` are filled by the import.
    pub contract: Contract,
    /// Things worth telling the user that are not errors (pickle files, unknown formats).
    pub warnings: Vec<String>,
}

/// One file of a [`Plan`].
#[derive(Debug, Clone)]
pub struct PlanFile {
    /// Path inside the artifact, safe by `weighlock_protocol::manifest::path_is_safe`.
    pub path: String,
    /// Where to read it, links resolved.
    pub source: PathBuf,
    /// What it is for.
    pub kind: LayerKind,
    /// Length in bytes when it was inspected; another length at import is an error.
    pub size: u64,
    /// Tensors by offset, without overlap; empty for files that carry none.
    pub tensors: Vec<TensorSpan>,
}

/// Where one tensor lies in its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpan {
    /// Name as the file gives it.
    pub name: String,
    /// Element or block type as the file names it (`BF16`, `Q4_1`).
    pub dtype: String,
    /// Dimensions, outermost first.
    pub shape: Vec<u64>,
    /// First byte, from the start of the file.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

impl Plan {
    /// Sum of the sizes of all files, in bytes.
    pub fn total_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }
}
