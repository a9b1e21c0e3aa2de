//! Data sets as DVC pins them: reads `.dvc` files and `dvc.lock`, and hashes the data that lies beside them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use weighlock_protocol::manifest::contract::DatasetRef;

mod hash;

/// Largest `.dvc` file or `dvc.lock`, in bytes.
pub const DVC_BYTES_MAX: u64 = 16 << 20;
/// Most data sets of one file.
pub const DATASETS_MAX: usize = 10_000;
/// Most files below one directory of data.
pub const DATASET_FILES_MAX: usize = 1_000_000;
/// The one `dvc.lock` format since DVC 2.
const LOCK_SCHEMA: &str = "2.0";

/// Why a DVC file does not say what data there is. Each is one line; paths are shown escaped.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it; fields are what they name")]
pub enum DvcError {
    #[error("cannot read {path:?}: {error}")]
    Io { path: PathBuf, error: io::Error },
    #[error("{path:?} is no file that DVC writes; name a .dvc file or dvc.lock")]
    Name { path: PathBuf },
    #[error("{path:?} is larger than {DVC_BYTES_MAX} bytes, which no DVC file is")]
    TooLong { path: PathBuf },
    #[error("{path:?} is not the YAML that DVC writes: {reason}")]
    Yaml { path: PathBuf, reason: String },
    #[error("{path:?} names no data; run `dvc add`, or `dvc repro` for dvc.lock")]
    NoData { path: PathBuf },
    #[error(
        "{path:?} has schema {found:?}, this program reads {LOCK_SCHEMA}; run `dvc repro` with DVC 2 or newer"
    )]
    Schema { path: PathBuf, found: String },
    #[error("{path:?} names more than {DATASETS_MAX} data sets")]
    TooMany { path: PathBuf },
    #[error("{path:?} names {name:?}, which is not inside its directory; data is read only from there")]
    Leaves { path: PathBuf, name: String },
    #[error("{path:?} gives no MD5 of {name:?}; add the data with `dvc add`, so that DVC hashes it")]
    NoMd5 { path: PathBuf, name: String },
    #[error(
        "{path:?} gives {md5:?} as the MD5 of {name:?}, which is none; run `dvc add` or `dvc repro` again"
    )]
    Md5 { path: PathBuf, name: String, md5: String },
    #[error("{path:?} gives two MD5s of {name:?}, so it is not known which data was used; run `dvc repro`")]
    Twice { path: PathBuf, name: String },
    #[error(
        "{data:?} is not what {path:?} says ({what}); run `dvc checkout`, or `dvc add` or `dvc repro` again"
    )]
    Changed { path: PathBuf, data: PathBuf, what: String },
    #[error("{data:?} is neither a file nor a directory, or its name is not UTF-8")]
    Special { data: PathBuf },
    #[error("{data:?} holds more than {DATASET_FILES_MAX} files")]
    Files { data: PathBuf },
}

/// Reads a `.dvc` file (its outs) or a `dvc.lock` (all deps and outs of all stages, each path once), sorted by path.
///
/// Each data set is named by its path from the directory of the file. Where it lies there on disk, it is proven to
/// have DVC's MD5 and gets a SHA-256: that of the file's bytes, or, of a directory, that over `weighlock dataset files
/// v1\n` and, for each file below it sorted by relative path, the path's length (u64, little endian), the path with
/// `/`, and the 32 bytes of the file's SHA-256. Where it does not, there is none. What DVC 2 wrote has MD5s of text
/// with other line ends; there, sizes and numbers of files alone are compared.
///
/// # Errors
/// See [`DvcError`].
pub fn read(path: &Path) -> Result<Vec<DatasetRef>, DvcError> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let text = read_text(path)?;
    let entries = match name {
        "dvc.lock" => lock_entries(path, &text)?,
        name if name.ends_with(".dvc") => file_entries(path, &text)?,
        _ => return Err(DvcError::Name { path: path.to_owned() }),
    };
    let mut by_name: BTreeMap<String, Entry> = BTreeMap::new();
    for mut entry in entries {
        let name = inside(path, &entry.path)?;
        let Some(md5) = entry.md5.take() else {
            return Err(DvcError::NoMd5 { path: path.to_owned(), name });
        };
        if !is_md5(&md5) {
            return Err(DvcError::Md5 { path: path.to_owned(), name, md5 });
        }
        entry.md5 = Some(md5);
        match by_name.get(&name) {
            Some(known) if known.md5 != entry.md5 => {
                return Err(DvcError::Twice { path: path.to_owned(), name });
            }
            Some(_) => {}
            None if by_name.len() == DATASETS_MAX => return Err(DvcError::TooMany { path: path.to_owned() }),
            None => {
                by_name.insert(name, entry);
            }
        }
    }
    if by_name.is_empty() {
        return Err(DvcError::NoData { path: path.to_owned() });
    }
    let root = path.parent().unwrap_or(Path::new(""));
    let refs = by_name.into_iter().map(|(name, entry)| {
        let sha256 = hash::proven(path, &root.join(&name), &entry)?;
        Ok(DatasetRef { name, dvc_md5: entry.md5, sha256 })
    });
    refs.collect()
}

/// One dep or out. Keys that say nothing about the data are passed over.
#[derive(Debug, Deserialize)]
struct Entry {
    path: String,
    #[serde(default)]
    md5: Option<String>,
    /// `md5` since DVC 3.
    #[serde(default)]
    hash: Option<String>,
    #[serde(default)]
    size: Option<u64>,
    #[serde(default)]
    nfiles: Option<u64>,
}

fn file_entries(path: &Path, text: &str) -> Result<Vec<Entry>, DvcError> {
    #[derive(Deserialize)]
    struct DvcFile {
        #[serde(default)]
        outs: Vec<Entry>,
        #[serde(default)]
        wdir: Option<String>,
    }
    let file: DvcFile = yaml(path, text)?;
    let mut outs = file.outs;
    if let Some(wdir) = file.wdir {
        for out in &mut outs {
            out.path = format!("{wdir}/{}", out.path);
        }
    }
    Ok(outs)
}

fn lock_entries(path: &Path, text: &str) -> Result<Vec<Entry>, DvcError> {
    #[derive(Deserialize)]
    struct Lock {
        // Format 1 has stages in its place.
        #[serde(default)]
        schema: String,
        #[serde(default)]
        stages: BTreeMap<String, Stage>,
    }
    #[derive(Deserialize)]
    struct Stage {
        #[serde(default)]
        deps: Vec<Entry>,
        #[serde(default)]
        outs: Vec<Entry>,
    }
    let lock: Lock = yaml(path, text)?;
    if lock.schema != LOCK_SCHEMA {
        return Err(DvcError::Schema { path: path.to_owned(), found: lock.schema });
    }
    Ok(lock.stages.into_values().flat_map(|stage| stage.deps.into_iter().chain(stage.outs)).collect())
}

fn yaml<T: for<'de> Deserialize<'de>>(path: &Path, text: &str) -> Result<T, DvcError> {
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let reason = error.to_string().lines().map(str::trim).collect::<Vec<_>>().join(" ");
        DvcError::Yaml { path: path.to_owned(), reason }
    })
}

fn read_text(path: &Path) -> Result<String, DvcError> {
    let io = |error| DvcError::Io { path: path.to_owned(), error };
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(DVC_BYTES_MAX + 1).read_to_end(&mut bytes)).map_err(io)?;
    if bytes.len() as u64 > DVC_BYTES_MAX {
        return Err(DvcError::TooLong { path: path.to_owned() });
    }
    let not_text = |_| DvcError::Yaml { path: path.to_owned(), reason: "it is not UTF-8 text".into() };
    String::from_utf8(bytes).map_err(not_text)
}

/// The path from the DVC file's directory, if it stays inside.
fn inside(file: &Path, name: &str) -> Result<String, DvcError> {
    let leaves = || DvcError::Leaves { path: file.to_owned(), name: name.to_owned() };
    let mut parts = Vec::new();
    for component in Path::new(name).components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str().ok_or_else(leaves)?),
            Component::CurDir => {}
            Component::ParentDir if !parts.is_empty() => {
                parts.pop();
            }
            _ => return Err(leaves()),
        }
    }
    // `s3://bucket/data` is a path, too.
    if parts.is_empty() || name.contains("://") || name.contains(char::is_control) {
        return Err(leaves());
    }
    Ok(parts.join("/"))
}

/// 32 lower-case hex digits, with `.dir` behind them for a directory.
fn is_md5(text: &str) -> bool {
    let hex = text.strip_suffix(".dir").unwrap_or(text);
    hex.len() == 32 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests;
