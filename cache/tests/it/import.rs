//! Imports: the right names for the right bytes, nothing visible before commit, nothing left after an error.

use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use weighlock_cache::plan::{Plan, PlanFile};
use weighlock_cache::{ImportOptions, ImportProgress, Store, StoreConfig, StoreError};
use weighlock_protocol::manifest::contract::{Contract, Format};
use weighlock_protocol::manifest::{LayerKind, Manifest, ManifestError};
use weighlock_protocol::{LayerId, Sha256, StatementId};

use crate::support::{add, config, data, layer_path, open, plan, span, stage, tree};

/// Runs `hook` once, at the first progress report.
fn import_with(store: &Store, plan: &Plan, hook: impl FnOnce() + Send) -> Result<(), StoreError> {
    let hook = Mutex::new(Some(hook));
    let progress = |_: ImportProgress| {
        if let Some(hook) = hook.lock().expect("no panic").take() {
            hook();
        }
    };
    let options = ImportOptions::default();
    store.import(plan, &options, &progress, &AtomicBool::new(false)).map(drop)
}

/// A model of awkward sizes: empty, tiny, one group, one block, many blocks.
fn model(dir: &std::path::Path) -> Plan {
    let mut plan = plan(
        dir,
        &[
            ("config.json", b"{}".to_vec()),
            ("empty", Vec::new()),
            ("sub/group.bin", data(1, 16_384)),
            ("block.safetensors", data(2, 65_536)),
            ("many.safetensors", data(3, 1_000_003)),
        ],
    );
    plan.files[3].tensors = vec![span("all", 8, 65_528)];
    plan.files[4].tensors = vec![
        span("none", 0, 0),
        span("first", 100, 900),
        span("across", 1000, 499_000),
        span("hollow", 500_000, 0),
        span("last", 600_000, 400_003),
        span("end", 1_000_003, 0),
    ];
    plan.contract.format = Format::Safetensors;
    plan.contract.param_count = Some(134_515_008);
    plan
}

#[test]
fn names_equal_the_hashes_of_the_source() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(&dir.path().join("store"));
    let plan = model(&dir.path().join("source"));
    let staged = stage(&store, &plan).expect("import");
    let manifest = staged.manifest().clone();
    let contract = staged.contract().clone();
    for (planned, layer) in plan.files.iter().zip(manifest.files()) {
        let bytes = std::fs::read(&planned.source).expect("read");
        assert_eq!(layer.path, planned.path);
        assert_eq!(layer.kind, LayerKind::Weights);
        assert_eq!(layer.id, LayerId::of(&bytes), "{}", layer.path);
        assert_eq!(layer.sha256, Sha256::of(&bytes), "{}", layer.path);
        assert_eq!(layer.size, bytes.len() as u64);
        assert!(store.layer(&layer.id).expect("layer").is_none(), "visible before commit");
    }
    assert!(store.manifests().expect("list").is_empty());
    let commit = weighlock_cache::Commit { staged: Some(staged), ..Default::default() };
    store.commit(commit).expect("commit");
    assert!(store.manifest_complete(&manifest).expect("complete"));
    assert!(tree(&store.dir().join("staging")).is_empty());
    for layer in manifest.layers() {
        let stored = std::fs::read(layer_path(store.dir(), &layer.id)).expect("read");
        assert_eq!(LayerId::of(&stored), layer.id);
        assert_eq!(store.layer(&layer.id).expect("layer").expect("held").sha256, Some(layer.sha256));
    }

    let stored = std::fs::read(layer_path(store.dir(), &manifest.contract().id)).expect("read");
    let read: Contract = serde_json::from_slice(&stored).expect("contract");
    assert_eq!(read, contract);
    assert_eq!(read.version, 1);
    let many = std::fs::read(&plan.files[4].source).expect("read");
    let tensors = &read.tensors[1].tensors;
    assert_eq!(tensors.len(), 6);
    for tensor in tensors {
        let bytes = &many[tensor.offset as usize..(tensor.offset + tensor.len) as usize];
        assert_eq!(tensor.blake3, LayerId::of(bytes), "{}", tensor.name);
    }
    let all = read.tensors.iter().flat_map(|layer| &layer.tensors);
    assert_eq!(read.tensor_root, Some(Contract::tensor_root_of(all)));

    let config = std::fs::read(layer_path(store.dir(), &manifest.config().id)).expect("read");
    let config: serde_json::Value = serde_json::from_slice(&config).expect("config");
    assert_eq!(config["config"]["paramSize"], "134.5m");
    assert_eq!(config["modelfs"]["type"], "layers");
    let expected: Vec<String> =
        manifest.files().iter().chain([manifest.contract()]).map(|layer| layer.sha256.to_string()).collect();
    assert_eq!(config["modelfs"]["diffIds"], serde_json::json!(expected));

    // Another store with other blocks and more threads makes the same artifact.
    let other = StoreConfig { import_block_bytes: 512 << 10, import_files_max: 5, ..config_of() };
    let other = Store::open(dir.path().join("other"), other).expect("open");
    assert_eq!(add(&other, &plan), manifest);
    // And once more into the first: nothing new.
    let before = tree(store.dir());
    assert_eq!(add(&store, &plan), manifest);
    assert_eq!(tree(store.dir()), before);
}

fn config_of() -> StoreConfig {
    config("boot 1")
}

#[test]
fn equal_files_are_stored_once() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(&dir.path().join("store"));
    let bytes = data(1, 200_000);
    let plan = plan(
        &dir.path().join("source"),
        &[("a", bytes.clone()), ("b/c", bytes.clone()), ("d", b"x".to_vec()), ("e", b"x".to_vec())],
    );
    let staged = stage(&store, &plan).expect("import");
    assert_eq!(staged.layers().len(), 4, "two contents, contract, config");
    assert_eq!(staged.manifest().files().len(), 4);
    drop(staged);
    assert!(tree(&store.dir().join("staging")).is_empty(), "dropped without commit");
    let manifest = add(&store, &plan);
    assert_eq!(store.layers().expect("list").len(), 4);
    let distinct = 200_000 + 1 + manifest.contract().size + manifest.config().size;
    assert_eq!(store.held_bytes(&manifest).expect("held"), distinct);
}

#[test]
fn a_file_that_changes_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(&dir.path().join("store"));
    let source = dir.path().join("source");
    let target = source.join("model.bin");
    let fresh = || plan(&source, &[("model.bin", data(1, 2_000_000))]);
    type Hook<'a> = &'a (dyn Fn() + Sync);
    let cases: [(&str, Hook<'_>); 5] = [
        ("grows", &|| {
            use std::io::Write;
            let mut file = std::fs::File::options().append(true).open(&target).expect("open");
            file.write_all(b"more").expect("write");
        }),
        ("shrinks", &|| {
            let file = std::fs::File::options().write(true).open(&target).expect("open");
            file.set_len(1_000_000).expect("cut");
        }),
        ("is written to", &|| {
            let later = std::time::SystemTime::now() + std::time::Duration::from_secs(2);
            let file = std::fs::File::options().write(true).open(&target).expect("open");
            std::os::unix::fs::FileExt::write_all_at(&file, b"other", 1_900_000).expect("write");
            file.set_modified(later).expect("times");
        }),
        ("is replaced", &|| {
            std::fs::write(source.join("new"), data(1, 2_000_000)).expect("write");
            std::fs::rename(source.join("new"), &target).expect("rename");
        }),
        ("is removed", &|| std::fs::remove_file(&target).expect("remove")),
    ];
    for (what, hook) in cases {
        let plan = fresh();
        let error = import_with(&store, &plan, hook).expect_err(what);
        assert!(
            matches!(&error, StoreError::ChangedWhileRead { path, .. } if *path == target),
            "{what}: {error}"
        );
        assert!(tree(&store.dir().join("staging")).is_empty(), "{what}");
    }
    let mut plan = fresh();
    plan.files[0].size -= 1;
    assert!(matches!(stage(&store, &plan), Err(StoreError::ChangedWhileRead { .. })));
    plan.files[0].size += 1;
    plan.files[0].tensors = vec![span("a", 0, 10), span("b", 9, 10)];
    assert!(matches!(stage(&store, &plan), Err(StoreError::Manifest(_))));
    plan.files[0].tensors = vec![span("a", 1_999_999, 2)];
    assert!(matches!(stage(&store, &plan), Err(StoreError::Manifest(_))));
    plan.files[0].tensors = Vec::new();
    stage(&store, &plan).expect("the store is as good as before");
}

#[test]
fn cancelling_leaves_nothing() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(&dir.path().join("store"));
    let plan = model(&dir.path().join("source"));
    let cancel = AtomicBool::new(false);
    let progress = |progress: ImportProgress| {
        if progress.done_bytes > 200_000 {
            cancel.store(true, Ordering::Relaxed);
        }
    };
    let result = store.import(&plan, &ImportOptions::default(), &progress, &cancel);
    assert!(matches!(result, Err(StoreError::Cancelled)));
    assert!(tree(&store.dir().join("staging")).is_empty());
    assert!(store.layers().expect("list").is_empty());
}

#[test]
fn many_small_files_go_in_and_progress_reaches_the_end() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(&dir.path().join("store"));
    let names: Vec<String> = (0..300).map(|i| format!("d{}/f{i}", i % 7)).collect();
    let files: Vec<(&str, Vec<u8>)> =
        names.iter().enumerate().map(|(i, name)| (name.as_str(), data(i as u64, i * 37))).collect();
    let plan = plan(&dir.path().join("source"), &files);
    let last = Mutex::new(None);
    let progress = |now: ImportProgress| {
        if now.syncing {
            *last.lock().expect("no panic") = Some(now);
        }
    };
    let staged =
        store.import(&plan, &ImportOptions::default(), &progress, &AtomicBool::new(false)).expect("import");
    let last = last.into_inner().expect("no panic").expect("reported");
    assert_eq!((last.done_bytes, last.done_files), (plan.total_bytes(), 300));
    let manifest = staged.manifest().clone();
    let commit = weighlock_cache::Commit { staged: Some(staged), ..Default::default() };
    store.commit(commit).expect("commit");
    assert!(store.manifest_complete(&manifest).expect("complete"));
    assert_eq!(
        Manifest::parse(&store.manifest(&manifest.digest()).expect("get").expect("known")),
        Ok(manifest)
    );
}

/// A small file system of its own, unmounted on drop. Needs root.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn new(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().expect("dir");
        let done = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(dir.path())
            .output();
        match done {
            Ok(output) if output.status.success() => Some(Self(dir)),
            other => {
                eprintln!(
                    "NOT RUN: a full disk cannot be tried here, mounting a tmpfs needs root: {other:?}"
                );
                assert!(std::env::var_os("CI").is_none(), "CI has to run this test as root");
                None
            }
        }
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_is_a_clear_error_and_loses_nothing() {
    let Some(disk) = Tmpfs::new("12m") else {
        return;
    };
    let dir = tempfile::tempdir().expect("dir");
    let store = open(&disk.0.path().join("store"));
    let kept = add(&store, &plan(&dir.path().join("kept"), &[("a", data(9, 1 << 20))]));

    // Known from the start: said before the first byte.
    let big = plan(&dir.path().join("big"), &[("a", data(1, 20 << 20))]);
    match stage(&store, &big) {
        Err(StoreError::NoSpace { needed_bytes, available_bytes, .. }) => {
            assert!(needed_bytes > available_bytes && available_bytes < 12 << 20);
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(store.partial(&LayerId::of(b"x"), 20 << 20), Err(StoreError::NoSpace { .. })));
    assert!(tree(&store.dir().join("partial")).is_empty());

    // Met in the middle: somebody else fills the disk while we read.
    let files: Vec<(String, Vec<u8>)> = (0..8).map(|i| (format!("f{i}"), data(i, 700_000))).collect();
    let files: Vec<(&str, Vec<u8>)> =
        files.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
    let middle = plan(&dir.path().join("middle"), &files);
    let filler = disk.0.path().join("filler");
    let error = import_with(&store, &middle, || {
        // As much as fits.
        let _ = std::fs::write(&filler, vec![1; 12 << 20]);
    })
    .expect_err("full");
    assert!(matches!(error, StoreError::NoSpace { .. }), "{error}");
    assert!(tree(&store.dir().join("staging")).is_empty());
    assert!(store.manifest_complete(&kept).expect("complete"));
    // Metadata waits too, and works again once there is space. What the import had taken is free: fill that too.
    let rest = disk.0.path().join("rest");
    let _ = std::fs::write(&rest, vec![1; 12 << 20]);
    let statement = [(StatementId::of(b"s"), b"s".to_vec())];
    let refused = store.append_statements(&statement);
    assert!(matches!(refused, Err(StoreError::NoSpace { .. })), "{refused:?}");

    std::fs::remove_file(&filler).expect("remove");
    std::fs::remove_file(&rest).expect("remove");
    store.append_statements(&statement).expect("append");
    let manifest = add(&store, &middle);
    assert!(store.manifest_complete(&manifest).expect("complete"));
}

#[test]
fn more_files_than_a_manifest_takes_are_refused_before_any_is_read() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(&dir.path().join("store"));
    let mut plan = plan(&dir.path().join("source"), &[("one", b"1".to_vec())]);
    let one = plan.files[0].clone();
    plan.files = (0..20_000)
        .map(|n| PlanFile { path: format!("{n}"), source: dir.path().join("nowhere"), ..one.clone() })
        .collect();
    let error = stage(&store, &plan).expect_err("too many");
    assert!(matches!(error, StoreError::Manifest(ManifestError::TooBig { what: "layers", .. })), "{error}");
    plan.files.pop();
    let error = stage(&store, &plan).expect_err("their source is missing");
    assert!(matches!(error, StoreError::Io { .. }), "{error}");
}
