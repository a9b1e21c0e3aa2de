//! Small model files with known tensors.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use crate::diff::{Diff, DiffConfig, DiffError, Side, TensorDiff, diff};
use crate::inspect::Options;

/// One tensor: name, dtype, shape, bytes.
pub(super) type Tensor<'a> = (&'a str, &'a str, &'a [u64], Vec<u8>);

pub(super) fn f32s(numbers: impl IntoIterator<Item = f32>) -> Vec<u8> {
    numbers.into_iter().flat_map(f32::to_le_bytes).collect()
}

/// A safetensors file.
pub(super) fn safetensors(path: &Path, tensors: &[Tensor<'_>]) {
    noted(path, tensors, None);
}

/// The same with an entry in its metadata.
pub(super) fn noted(path: &Path, tensors: &[Tensor<'_>], note: Option<&str>) {
    let mut header = serde_json::Map::new();
    if let Some(note) = note {
        header.insert("__metadata__".into(), serde_json::json!({ "note": note }));
    }
    let mut data = Vec::new();
    for (name, dtype, shape, bytes) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        header.insert(
            (*name).into(),
            serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}),
        );
        data.extend(bytes);
    }
    let header = serde_json::Value::from(header).to_string();
    let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat();
    fs::create_dir_all(path.parent().expect("a directory")).expect("made");
    fs::write(path, bytes).expect("written");
}

/// A GGUF file: text keys, then tensors by ggml type id and dimensions, innermost first.
pub(super) fn gguf(path: &Path, keys: &[(&str, &str)], tensors: &[(&str, u32, &[u64], Vec<u8>)]) {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend((keys.len() as u64).to_le_bytes());
    for (key, value) in keys {
        bytes.extend([text(key), 8u32.to_le_bytes().into(), text(value)].concat());
    }
    let mut data: Vec<u8> = Vec::new();
    for (name, kind, dims, content) in tensors {
        bytes.extend([text(name), (dims.len() as u32).to_le_bytes().into()].concat());
        bytes.extend(dims.iter().flat_map(|dim| dim.to_le_bytes()));
        bytes.extend(kind.to_le_bytes());
        bytes.extend((data.len() as u64).to_le_bytes());
        data.extend(content);
        data.resize(data.len().next_multiple_of(32), 0);
    }
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    bytes.extend(data);
    fs::write(path, bytes).expect("written");
}

pub(super) fn open(path: &Path) -> Side {
    Side::open(path, &Options::default()).expect("it can be read")
}

pub(super) fn try_diff(a: &Side, b: &Side, config: &DiffConfig) -> Result<Diff, DiffError> {
    diff(a, b, config, &|_| {}, &AtomicBool::new(false))
}

pub(super) fn compare(a: &Path, b: &Path) -> Diff {
    try_diff(&open(a), &open(b), &DiffConfig::default()).expect("comparable")
}

/// The difference of two files with these tensors.
pub(super) fn compare_tensors(a: &[Tensor<'_>], b: &[Tensor<'_>]) -> Diff {
    let dir = tempfile::tempdir().expect("a directory");
    let paths = ["a.safetensors", "b.safetensors"].map(|name| dir.path().join(name));
    safetensors(&paths[0], a);
    safetensors(&paths[1], b);
    compare(&paths[0], &paths[1])
}

/// The only tensor that differs.
pub(super) fn only(diff: &Diff) -> &TensorDiff {
    assert_eq!(diff.tensors.differing.len(), 1, "{diff:?}");
    &diff.tensors.differing[0]
}

/// Directories `a` and `b` below a fresh one.
pub(super) fn pair() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().expect("a directory");
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    fs::create_dir(&a).expect("made");
    fs::create_dir(&b).expect("made");
    (dir, a, b)
}
