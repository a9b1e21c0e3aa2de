//! One side of a comparison: its files, where their tensors lie, what their headers say, and open files to read from.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use weighlock_protocol::manifest::{Contract, LayerKind};
use weighlock_protocol::{LayerId, Sha256};

use super::error::{DiffError, at};
use crate::fs::Stamp;
use crate::inspect::{self, gguf, safetensors};
use crate::plan::{PlanFile, TensorSpan};

/// Files of one side that are open at once.
const OPEN_MAX: usize = 256;
/// Longest value of a header key that is kept whole, in bytes. A longer one is told by its beginning and its hash.
const VALUE_BYTES_MAX: usize = 4096;

/// One side of a comparison. Making it reads headers and small files only.
#[derive(Debug)]
pub struct Side {
    /// What the user named.
    pub(super) name: String,
    /// Whether that is one file rather than a directory.
    pub(super) is_file: bool,
    pub(super) files: Vec<SideFile>,
    pub(super) contract: Contract,
    /// Chat templates in headers, by name; `default` is the unnamed one.
    pub(super) header_templates: BTreeMap<String, String>,
    /// Other keys of headers.
    pub(super) header: BTreeMap<String, String>,
    open: Mutex<BTreeMap<usize, Arc<File>>>,
}

/// One file of a side.
#[derive(Debug)]
pub(super) struct SideFile {
    /// Path inside the artifact.
    pub(super) path: String,
    pub(super) source: PathBuf,
    pub(super) kind: LayerKind,
    pub(super) size: u64,
    /// Tensors by offset.
    pub(super) tensors: Vec<TensorSpan>,
    /// BLAKE3 of each tensor, where a contract says.
    pub(super) hashes: Option<Vec<LayerId>>,
    /// BLAKE3 of the file, where a manifest says.
    pub(super) layer: Option<LayerId>,
    /// Device and inode: one file under two names is read only once.
    pub(super) identity: (u64, u64),
    stamp: Stamp,
}

impl Side {
    /// Opens a directory or a file, as an import would take it.
    ///
    /// # Errors
    /// As [`inspect::plan`]; a file that changes meanwhile.
    pub fn open(path: &Path, options: &inspect::Options) -> Result<Self, DiffError> {
        let plan = inspect::plan(path, options)?;
        let mut side = Self {
            name: path.display().to_string(),
            is_file: path.is_file(),
            files: Vec::with_capacity(plan.files.len()),
            contract: plan.contract,
            header_templates: BTreeMap::new(),
            header: BTreeMap::new(),
            open: Mutex::default(),
        };
        for file in plan.files {
            let opened = open(&file.source)?;
            let meta = opened.metadata().map_err(at(&file.source, "stat"))?;
            if meta.len() != file.size {
                return Err(DiffError::Changed { path: file.source });
            }
            side.read_header(&file, &opened, options)?;
            side.files.push(SideFile {
                path: file.path,
                source: file.source,
                kind: file.kind,
                size: file.size,
                tensors: file.tensors,
                hashes: None,
                layer: None,
                identity: (meta.dev(), meta.ino()),
                stamp: Stamp::of(&meta),
            });
        }
        Ok(side)
    }

    /// Takes what the contract and the manifest of the artifact say: equal hashes need no reading. `layers` are the
    /// BLAKE3 roots of the files by path.
    ///
    /// # Errors
    /// The contract's index does not fit the files.
    pub fn with_index(
        mut self,
        contract: Contract,
        layers: &BTreeMap<String, LayerId>,
    ) -> Result<Self, DiffError> {
        for file in &mut self.files {
            file.layer = layers.get(&file.path).copied();
            let Some(index) = contract.tensors.iter().find(|index| index.path == file.path) else { continue };
            let fits = index.tensors.len() == file.tensors.len()
                && index.tensors.iter().zip(&file.tensors).all(|(tensor, span)| {
                    (&tensor.name, &tensor.dtype, &tensor.shape, tensor.offset, tensor.len)
                        == (&span.name, &span.dtype, &span.shape, span.offset, span.len)
                });
            if !fits {
                return Err(DiffError::Index { path: file.path.clone() });
            }
            file.hashes = Some(index.tensors.iter().map(|tensor| tensor.blake3).collect());
        }
        self.contract = contract;
        Ok(self)
    }

    /// Goes by another name than its path.
    #[must_use]
    pub fn named(mut self, name: String) -> Self {
        self.name = name;
        self
    }

    /// Bytes of all files.
    pub fn total_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    pub(super) fn find(&self, path: &str) -> Option<&SideFile> {
        self.files.iter().find(|file| file.path == path)
    }

    /// Fills `buffer` from a file.
    pub(super) fn read(&self, file: usize, offset: u64, buffer: &mut [u8]) -> Result<(), DiffError> {
        let source = &self.files[file].source;
        self.opened(file)?.read_exact_at(buffer, offset).map_err(at(source, "read"))
    }

    /// All of a small file.
    pub(super) fn read_all(&self, file: &SideFile) -> Result<Vec<u8>, DiffError> {
        let mut bytes = vec![0; usize::try_from(file.size).unwrap_or(usize::MAX)];
        file.open()?.read_exact_at(&mut bytes, 0).map_err(at(&file.source, "read"))?;
        Ok(bytes)
    }

    /// Tells a file that is not what it was when this side was opened.
    pub(super) fn check_unchanged(&self) -> Result<(), DiffError> {
        self.files.iter().try_for_each(|file| file.open().map(drop))
    }

    fn opened(&self, file: usize) -> Result<Arc<File>, DiffError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = open.get(&file) {
            return Ok(Arc::clone(file));
        }
        if open.len() >= OPEN_MAX {
            open.clear();
        }
        let opened = Arc::new(self.files[file].open()?);
        open.insert(file, Arc::clone(&opened));
        Ok(opened)
    }

    /// Keeps what the header says beside the tensors, which must still be those of the plan.
    fn read_header(
        &mut self,
        file: &PlanFile,
        opened: &File,
        options: &inspect::Options,
    ) -> Result<(), DiffError> {
        if file.tensors.is_empty() {
            return Ok(());
        }
        let path = || PathBuf::from(&file.path);
        let is_gguf = file.path.to_ascii_lowercase().ends_with(".gguf");
        let tensors = if is_gguf {
            let header = gguf::read_header(opened, file.size, &options.limits)
                .map_err(|error| inspect::InspectError::Gguf { path: path(), error })?;
            for (key, value) in header.entries {
                match (key.strip_prefix(TEMPLATE_KEY), value) {
                    (Some(name), gguf::Value::String(text)) => {
                        let name = if name.is_empty() { "default" } else { name.trim_start_matches('.') };
                        self.header_templates.entry(name.to_owned()).or_insert(text);
                    }
                    (_, value) => {
                        self.header.entry(key).or_insert_with(|| shown(value));
                    }
                }
            }
            header.tensors
        } else {
            let header = safetensors::read_header(opened, file.size, &options.limits)
                .map_err(|error| inspect::InspectError::Safetensors { path: path(), error })?;
            for (key, value) in header.metadata {
                self.header.entry(key).or_insert_with(|| cut(value));
            }
            header.tensors
        };
        if tensors == file.tensors { Ok(()) } else { Err(DiffError::Changed { path: file.source.clone() }) }
    }
}

/// Key of the chat template in GGUF; named ones follow behind a dot.
const TEMPLATE_KEY: &str = "tokenizer.chat_template";

impl SideFile {
    /// Opens the file if it is still what it was.
    fn open(&self) -> Result<File, DiffError> {
        let file = open(&self.source)?;
        let meta = file.metadata().map_err(at(&self.source, "stat"))?;
        if Stamp::of(&meta) != self.stamp || (meta.dev(), meta.ino()) != self.identity {
            return Err(DiffError::Changed { path: self.source.clone() });
        }
        Ok(file)
    }
}

/// Opens without waiting: a pipe put in the place of a file must not hang the comparison.
fn open(path: &Path) -> Result<File, DiffError> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(at(path, "open"))
}

fn shown(value: gguf::Value) -> String {
    match value {
        gguf::Value::Unsigned(n) => n.to_string(),
        gguf::Value::Signed(n) => n.to_string(),
        gguf::Value::Float(x) => x.to_string(),
        gguf::Value::Bool(b) => b.to_string(),
        gguf::Value::String(text) => cut(text),
        gguf::Value::Array { len, sha256, .. } => format!("{len} values, sha256 {}", sha256.short()),
    }
}

fn cut(text: String) -> String {
    if text.len() <= VALUE_BYTES_MAX {
        return text;
    }
    let head = &text[..text.floor_char_boundary(VALUE_BYTES_MAX)];
    format!("{head}... ({} bytes, sha256 {})", text.len(), Sha256::of(text.as_bytes()).short())
}
