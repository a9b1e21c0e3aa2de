//! Stores in temporary directories, bytes from a seed, proven items of them.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use bao_tree::io::outboard::PreOrderMemOutboard;
use bao_tree::io::sync::encode_ranges;
use bytes::Bytes;
use weighlock_cache::plan::{Plan, PlanFile, TensorSpan};
use weighlock_cache::{Commit, ImportOptions, Staged, Store, StoreConfig, StoreError};
use weighlock_protocol::LayerId;
use weighlock_protocol::manifest::contract::Contract;
use weighlock_protocol::manifest::{LayerKind, Manifest};
use weighlock_protocol::wire::bao::{BLOCK, Decoder, GroupSet, Verified, canonical_chunks};

/// Bytes that follow from a seed.
pub(crate) fn data(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

/// Small blocks and no floor, under the given boot id.
pub(crate) fn config(boot_id: &str) -> StoreConfig {
    StoreConfig {
        boot_id: Some(boot_id.into()),
        import_block_bytes: 64 << 10,
        import_files_max: 2,
        free_floor_bytes: 0,
        ..StoreConfig::default()
    }
}

pub(crate) fn open(dir: &Path) -> Store {
    Store::open(dir, config("boot 1")).expect("store opens")
}

/// Proven items of `groups`, the way they come off the wire.
pub(crate) fn proven(data: &[u8], groups: &GroupSet) -> (LayerId, Vec<Verified>) {
    proven_as(data, groups, data.len() as u64)
}

/// As somebody takes them who was told that the layer has `said` bytes.
pub(crate) fn proven_as(data: &[u8], groups: &GroupSet, said: u64) -> (LayerId, Vec<Verified>) {
    let outboard = PreOrderMemOutboard::create(data, BLOCK);
    let size = data.len() as u64;
    let mut wire = Vec::new();
    encode_ranges(data, &outboard, &canonical_chunks(groups, size), &mut wire).expect("in memory");
    let id = LayerId(*outboard.root.as_bytes());
    let mut decoder = Decoder::new(id, said, groups);
    let mut rest = Bytes::from(wire);
    let mut items = Vec::new();
    while let Some(need) = decoder.need() {
        items.push(decoder.feed(rest.split_to(need)).expect("honest"));
    }
    (id, items)
}

/// Where a sealed layer lies.
pub(crate) fn layer_path(dir: &Path, id: &LayerId) -> PathBuf {
    dir.join("layers").join(&id.hex()[..2]).join(id.hex())
}

/// Writes files below `dir` and plans their import.
pub(crate) fn plan(dir: &Path, files: &[(&str, Vec<u8>)]) -> Plan {
    let files = files.iter().map(|(path, bytes)| {
        let source = dir.join(path);
        std::fs::create_dir_all(source.parent().expect("has a parent")).expect("dir");
        std::fs::write(&source, bytes).expect("write");
        PlanFile {
            path: (*path).into(),
            source,
            kind: LayerKind::Weights,
            size: bytes.len() as u64,
            tensors: Vec::new(),
        }
    });
    Plan { source: dir.into(), files: files.collect(), contract: Contract::default(), warnings: Vec::new() }
}

pub(crate) fn span(name: &str, offset: u64, len: u64) -> TensorSpan {
    TensorSpan { name: name.into(), dtype: "U8".into(), shape: vec![len], offset, len }
}

pub(crate) fn stage(store: &Store, plan: &Plan) -> Result<Staged, StoreError> {
    store.import(plan, &ImportOptions::default(), &|_| {}, &AtomicBool::new(false))
}

/// Imports and commits.
pub(crate) fn add(store: &Store, plan: &Plan) -> Manifest {
    let staged = stage(store, plan).expect("import");
    let manifest = staged.manifest().clone();
    let commit = Commit { staged: Some(staged), ..Commit::default() };
    store.commit(commit).expect("commit");
    manifest
}

/// Names of all files below a directory, sorted.
pub(crate) fn tree(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = walkdir::WalkDir::new(dir)
        .into_iter()
        .map(|entry| entry.expect("walk"))
        .filter(|entry| !entry.file_type().is_dir())
        .map(|entry| entry.path().strip_prefix(dir).expect("below").display().to_string())
        .collect();
    names.sort();
    names
}
