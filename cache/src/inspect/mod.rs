//! Reading what model files say about themselves: which files an import takes, their tensors, their contract.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use weighlock_protocol::manifest::contract::TENSORS_MAX;
use weighlock_protocol::manifest::{LAYERS_MAX, LayerKind};

use crate::plan::{Plan, PlanFile};

mod contract;
pub mod dvc;
pub mod ggml;
pub mod gguf;
mod hf;
pub(crate) mod json;
mod kind;
pub mod safetensors;
mod scan;
#[cfg(test)]
mod testing;

/// What to take, and how much of it.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Globs over paths inside the artifact; empty takes all. `*` crosses `/`, a final `/` means all below.
    pub include: Vec<String>,
    /// Globs of what to leave out; they win over `include`.
    pub exclude: Vec<String>,
    /// Limits.
    pub limits: InspectConfig,
}

/// Limits on what is read. The defaults hold every checkpoint that we know of.
#[derive(Debug, Clone)]
pub struct InspectConfig {
    /// Most files in one artifact.
    pub files_max: usize,
    /// Most directory entries looked at, taken or not.
    pub entries_max: usize,
    /// Deepest file, in path components.
    pub depth_max: usize,
    /// Longest path inside the artifact, in bytes; 1,024 at most.
    pub path_bytes_max: usize,
    /// Largest JSON file or template that is read, and longest GGUF string, in bytes.
    pub json_bytes_max: u64,
    /// Largest safetensors header, in bytes (100,000,000 is the format's own limit).
    pub safetensors_header_bytes_max: u64,
    /// Largest GGUF header, in bytes; the vocabulary stands in it.
    pub gguf_header_bytes_max: u64,
    /// Most key-value pairs of a GGUF file.
    pub gguf_keys_max: u64,
    /// Most elements of a GGUF array.
    pub gguf_array_len_max: u64,
    /// Deepest nesting of GGUF arrays.
    pub gguf_array_depth_max: u32,
    /// Most tensors of one file, and of one artifact.
    pub tensors_max: usize,
    /// Longest name of a tensor or a GGUF key, in bytes.
    pub name_bytes_max: usize,
    /// Most dimensions of a tensor.
    pub dims_max: usize,
}

impl Default for InspectConfig {
    fn default() -> Self {
        Self {
            files_max: LAYERS_MAX - 2,
            entries_max: 1_000_000,
            depth_max: 32,
            path_bytes_max: 1024,
            json_bytes_max: 64 << 20,
            safetensors_header_bytes_max: 100_000_000,
            gguf_header_bytes_max: 256 << 20,
            gguf_keys_max: 65_536,
            gguf_array_len_max: 16 << 20,
            gguf_array_depth_max: 4,
            tensors_max: TENSORS_MAX,
            name_bytes_max: 4096,
            dims_max: 16,
        }
    }
}

/// Why a path cannot be imported. Paths are shown escaped, so a message is always one line.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it; fields are what they name")]
pub enum InspectError {
    #[error("{path:?} does not exist")]
    Missing { path: PathBuf },
    #[error("cannot read {path:?}: {error}")]
    Io { path: PathBuf, error: io::Error },
    #[error("nothing to add in {path:?}: it is empty, or --include and --exclude leave nothing")]
    Empty { path: PathBuf },
    #[error("{path:?} is neither a file nor a directory: move it away or leave it out with --exclude")]
    Special { path: PathBuf },
    #[error("the name of {path:?} is not UTF-8: rename it")]
    NotUtf8 { path: PathBuf },
    #[error("the name of {path:?} is not safe on every host (backslash or control character): rename it")]
    UnsafeName { path: PathBuf },
    #[error("the link {path:?} leads out of the directory, to {target:?}: copy the file in or --exclude it")]
    LinkLeaves { path: PathBuf, target: PathBuf },
    #[error("the link {path:?} leads to {target:?}, which does not exist: remove it or --exclude it")]
    LinkDangles { path: PathBuf, target: PathBuf },
    #[error("the link {path:?} leads back to itself or to a directory around it: remove it")]
    LinkCycle { path: PathBuf },
    #[error("{path:?} holds more than {limit} files: leave some out with --exclude")]
    Files { path: PathBuf, limit: usize },
    #[error("{path:?} holds more than {limit} entries: name a smaller directory")]
    Entries { path: PathBuf, limit: usize },
    #[error("{path:?} lies deeper than {limit} directories")]
    Depth { path: PathBuf, limit: usize },
    #[error("the path of {path:?} inside the artifact is longer than {limit} bytes")]
    PathTooLong { path: PathBuf, limit: usize },
    #[error("the glob {glob:?} is not valid: {reason}")]
    Glob { glob: String, reason: String },
    #[error("{path:?} is not valid JSON: {error}")]
    Json { path: PathBuf, error: serde_json::Error },
    #[error("{path:?} is JSON but not an object")]
    NotAnObject { path: PathBuf },
    #[error("{path:?} is not UTF-8 text")]
    TextNotUtf8 { path: PathBuf },
    #[error("{path:?} has {size} bytes, more than the limit of {limit} for such a file")]
    FileTooLong { path: PathBuf, size: u64, limit: u64 },
    #[error("{path:?} changed while it was read: try again when nothing writes to it")]
    Changed { path: PathBuf },
    #[error("{path:?} is not valid safetensors: {error}")]
    Safetensors { path: PathBuf, error: safetensors::SafetensorsError },
    #[error("{path:?} is not valid GGUF: {error}")]
    Gguf { path: PathBuf, error: gguf::GgufError },
    #[error(
        "{index:?} names the shard {shard} for tensor {tensor}, but no such file is there: complete the download"
    )]
    MissingShard { index: PathBuf, shard: String, tensor: String },
    #[error("{shard:?} does not hold tensor {tensor}, although {index:?} says so")]
    NotInShard { index: PathBuf, tensor: String, shard: PathBuf },
    #[error("{shard:?} holds tensor {tensor}, but {index:?} does not place it there")]
    NotInIndex { index: PathBuf, tensor: String, shard: PathBuf },
    #[error("tensor {tensor} stands in {first:?} and in {second:?}: choose one with --exclude")]
    TensorTwice { tensor: String, first: PathBuf, second: PathBuf },
    #[error("more than {limit} tensors in one artifact")]
    Tensors { limit: usize },
}

/// Inspects a directory or a file: finds its files, reads their headers and small files, checks that they agree.
/// The contract speaks of the files at the top of the directory.
///
/// # Errors
/// Something is missing, unreadable, over a limit, or says what is not so; nothing has been written then.
pub fn plan(path: &Path, options: &Options) -> Result<Plan, InspectError> {
    let limits = &options.limits;
    let found = scan::scan(path, options)?;
    let mut warnings = Vec::new();
    let (begun, config_dtype) = hf::contract(&found, limits, &mut warnings)?;
    let indexes = hf::shard_indexes(&found, limits)?;

    let mut files = Vec::with_capacity(found.len());
    let mut headers = BTreeMap::new();
    let mut tensor_count = 0;
    for file in found {
        let mut planned = PlanFile {
            kind: kind::of(&file.path),
            path: file.path,
            source: file.source,
            size: file.size,
            tensors: Vec::new(),
        };
        read_tensors(&mut planned, limits, &mut headers, &mut warnings)?;
        tensor_count += planned.tensors.len();
        if tensor_count > limits.tensors_max {
            return Err(InspectError::Tensors { limit: limits.tensors_max });
        }
        files.push(planned);
    }
    files.sort_by(|a, b| kind::loading_order((&a.path, a.kind), (&b.path, b.kind)));
    contract::check_shards(&files, &indexes, &mut warnings)?;
    let contract =
        contract::complete(begun, config_dtype.as_deref(), &files, &indexes, &headers, &mut warnings);
    Ok(Plan { source: path.to_owned(), files, contract, warnings })
}

/// Reads the header of a file that should have one, and says so of weights that we cannot look into.
fn read_tensors(
    file: &mut PlanFile,
    limits: &InspectConfig,
    headers: &mut BTreeMap<String, gguf::Header>,
    warnings: &mut Vec<String>,
) -> Result<(), InspectError> {
    let path = || PathBuf::from(&file.path);
    let open = || File::open(&file.source).map_err(|error| InspectError::Io { path: path(), error });
    if kind::has_extension(&file.path, "safetensors") {
        let header = safetensors::read_header(&open()?, file.size, limits)
            .map_err(|error| InspectError::Safetensors { path: path(), error })?;
        file.tensors = header.tensors;
    } else if kind::has_extension(&file.path, "gguf") {
        let header = gguf::read_header(&open()?, file.size, limits)
            .map_err(|error| InspectError::Gguf { path: path(), error })?;
        if header.trailing_bytes > 0 {
            warnings.push(format!("{}: {} bytes after the last tensor", file.path, header.trailing_bytes));
        }
        if header.str("general.type") == Some("adapter") {
            file.kind = LayerKind::Adapter;
        }
        file.tensors = header.tensors.clone();
        headers.insert(file.path.clone(), header);
    } else if kind::is_pickle(&file.path) {
        warnings.push(format!(
            "{}: may be a pickle, which can run code when loaded; its tensors are not read",
            file.path
        ));
    } else if file.kind == LayerKind::Weights {
        warnings.push(format!("{}: a format whose tensors are not read", file.path));
    }
    Ok(())
}

/// Product of the dimensions, or `None` if it does not fit. One of zero makes it zero only if nothing overflows
/// without it, so that no reader can be led astray by the order in which it multiplies.
fn element_count(shape: &[u64]) -> Option<u64> {
    let full =
        shape.iter().filter(|dim| **dim != 0).try_fold(1u64, |product, dim| product.checked_mul(*dim))?;
    Some(if shape.contains(&0) { 0 } else { full })
}

#[cfg(test)]
mod tests;
