//! Sealed layers: found after a crash, proven when they changed, set aside when they are wrong.

use std::fs::{File, FileTimes};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use weighlock_cache::{Store, StoreConfig, StoreError, VerifyOnRead};
use weighlock_protocol::wire::bao::{GroupSet, all_groups};
use weighlock_protocol::{LayerId, Sha256};

use crate::support::{add, config, data, layer_path, open, plan};

/// A store with one layer of 100,000 bytes.
fn with_layer(dir: &Path) -> (Store, LayerId, Vec<u8>) {
    let store = open(&dir.join("store"));
    let bytes = data(1, 100_000);
    add(&store, &plan(&dir.join("source"), &[("model.bin", bytes.clone())]));
    (store, LayerId::of(&bytes), bytes)
}

pub(crate) fn overwrite(path: &Path, at: u64, keep_mtime: bool) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o640)).expect("chmod");
    let file = File::options().read(true).write(true).open(path).expect("open");
    let mtime = file.metadata().expect("stat").modified().expect("mtime");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("read");
    file.write_all_at(&[byte[0] ^ 1], at).expect("write");
    let mtime = if keep_mtime { mtime } else { mtime + std::time::Duration::from_secs(1) };
    file.set_times(FileTimes::new().set_modified(mtime)).expect("times");
}

#[test]
fn sealed_files_are_read_only_and_private_directories_private() {
    let dir = tempfile::tempdir().expect("dir");
    let (_store, id, _) = with_layer(dir.path());
    let mode = |path: &Path| std::fs::metadata(path).expect("stat").permissions().mode() & 0o7777;
    let path = layer_path(&dir.path().join("store"), &id);
    assert_eq!(mode(&path), 0o440);
    assert_eq!(mode(&path.with_extension("obao")), 0o440);
    for private in ["keys", "partial", "staging", "quarantine"] {
        assert_eq!(mode(&dir.path().join("store").join(private)), 0o700, "{private}");
    }
    assert_eq!(mode(&dir.path().join("store")) & 0o007, 0);
}

#[test]
fn a_touched_layer_is_proven_again_and_recorded_anew() {
    let dir = tempfile::tempdir().expect("dir");
    let (store, id, bytes) = with_layer(dir.path());
    let path = layer_path(store.dir(), &id);
    let before = store.layer(&id).expect("layer").expect("held");
    // The same bytes as a new file: another inode, another time, and its tree is lost.
    std::fs::remove_file(&path).expect("remove");
    std::fs::remove_file(path.with_extension("obao")).expect("remove");
    std::fs::write(&path, &bytes).expect("write");
    let layer = store.open_sealed(&id).expect("proven again");
    assert_eq!(layer.size, 100_000);
    let after = store.layer(&id).expect("layer").expect("held");
    assert_eq!(after.sha256, Some(Sha256::of(&bytes)));
    assert!(after.inode != before.inode || after.mtime_ns != before.mtime_ns);
    assert!(path.with_extension("obao").exists(), "the tree was built again");
}

#[test]
fn a_changed_layer_is_set_aside() {
    let dir = tempfile::tempdir().expect("dir");
    let (store, id, _) = with_layer(dir.path());
    overwrite(&layer_path(store.dir(), &id), 70_000, false);
    let error = store.open_sealed(&id).expect_err("corrupt");
    assert!(matches!(&error, StoreError::Corrupt { layer, .. } if *layer == id), "{error}");
    assert!(store.layer(&id).expect("layer").is_none());
    assert!(!layer_path(store.dir(), &id).exists());
    // What of it holds is served, and the rest can be fetched.
    let reader = store.reader(&id).expect("reader").expect("in part");
    assert_eq!(reader.have(), &all_groups(100_000) - &GroupSet::from(4..5));
    assert_eq!(store.partial(&id, 100_000).expect("partial").missing(), GroupSet::from(4..5));
}

#[test]
fn silent_rot_is_found_when_always_verifying() {
    let dir = tempfile::tempdir().expect("dir");
    let (store, id, _) = with_layer(dir.path());
    overwrite(&layer_path(store.dir(), &id), 5, true);
    store.open_sealed(&id).expect("nothing to see");
    drop(store);
    let always = StoreConfig { verify_on_read: VerifyOnRead::Always, ..config("boot 1") };
    let store = Store::open(dir.path().join("store"), always).expect("open");
    assert!(matches!(store.open_sealed(&id), Err(StoreError::Corrupt { .. })));
}

#[test]
fn a_layer_whose_file_is_gone_or_cut_is_forgotten() {
    let dir = tempfile::tempdir().expect("dir");
    let (store, id, _) = with_layer(dir.path());
    let path = layer_path(store.dir(), &id);
    std::fs::remove_file(&path).expect("remove");
    assert!(matches!(store.open_sealed(&id), Err(StoreError::NotHeld(_))));
    assert!(store.layer(&id).expect("layer").is_none());
    drop(store);

    let dir = tempfile::tempdir().expect("dir");
    let (store, id, _) = with_layer(dir.path());
    let path = layer_path(store.dir(), &id);
    drop(store);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).expect("chmod");
    File::options().write(true).open(&path).map(|f| f.set_len(99)).expect("open").expect("cut");
    let store = open(&dir.path().join("store"));
    assert_eq!(store.recovery().lost, [id]);
    assert!(store.layer(&id).expect("layer").is_none());
    assert!(!path.exists() && !path.with_extension("obao").exists());
}

#[test]
fn files_without_a_record_are_proven_or_removed() {
    let dir = tempfile::tempdir().expect("dir");
    drop(open(dir.path()));
    let bytes = data(4, 50_000);
    let (good, bad, lone) = (LayerId::of(&bytes), LayerId::of(b"bad"), LayerId::of(b"lone"));
    for id in [good, bad, lone] {
        std::fs::create_dir_all(layer_path(dir.path(), &id).parent().expect("dir")).expect("dir");
    }
    std::fs::write(layer_path(dir.path(), &good), &bytes).expect("write");
    std::fs::write(layer_path(dir.path(), &bad), &bytes).expect("write");
    std::fs::write(layer_path(dir.path(), &lone).with_extension("obao"), b"tree").expect("write");
    let left = dir.path().join("staging/import-0");
    std::fs::create_dir_all(&left).expect("dir");
    std::fs::write(left.join("0.data"), b"half").expect("write");
    let store = open(dir.path());
    let report = store.recovery();
    assert_eq!(report.registered, [good]);
    assert_eq!(report.removed.len(), 2);
    assert!(store.layer(&bad).expect("layer").is_none() && !layer_path(dir.path(), &bad).exists());
    assert!(!left.exists());
    let mut got = vec![0; bytes.len()];
    let reader = store.reader(&good).expect("reader").expect("held");
    reader.read_exact_at(&mut got, 0).expect("read");
    assert_eq!(got, bytes);
    assert_eq!(store.layer(&good).expect("layer").expect("held").sha256, None);
    assert_eq!(store.prove_sha256(&good).expect("sha"), Sha256::of(&bytes));
    assert_eq!(store.layer(&good).expect("layer").expect("held").sha256, Some(Sha256::of(&bytes)));
    drop(store);
    assert_eq!(open(dir.path()).recovery().registered, [], "once is enough");
}
