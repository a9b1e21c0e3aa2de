//! One store per process; manifests, statements and settings that survive it; layers that go with their artifact.

use weighlock_cache::{Commit, Store, StoreError};
use weighlock_protocol::manifest::Manifest;
use weighlock_protocol::wire::bao::{GROUP_BYTES, GroupSet};
use weighlock_protocol::{LayerId, ManifestDigest, StatementId};

use crate::support::{add, config, data, layer_path, open, plan, proven, stage, tree};

fn statement(text: &str) -> (StatementId, Vec<u8>) {
    (StatementId::of(text.as_bytes()), text.as_bytes().to_vec())
}

#[test]
fn a_second_store_on_one_directory_is_refused_with_the_pid() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(dir.path());
    let error = Store::open(dir.path(), config("boot 1")).expect_err("locked");
    let pid = std::process::id().to_string();
    assert!(matches!(&error, StoreError::Locked { pid: found, .. } if *found == pid), "{error}");
    assert!(error.to_string().contains(&pid));
    let clone = store.clone();
    drop(store);
    assert!(Store::open(dir.path(), config("boot 1")).is_err(), "a clone still has it");
    drop(clone);
    open(dir.path());
}

#[test]
fn statements_keep_their_order_and_come_once() {
    let dir = tempfile::tempdir().expect("dir");
    let (a, b, c, d) = (statement("a"), statement("b"), statement("c"), statement("d"));
    {
        let store = open(dir.path());
        store.append_statements(&[c.clone(), a.clone()]).expect("append");
        store.append_statements(&[a.clone(), b.clone(), c.clone()]).expect("append");
        store.set_setting("peers", Some(&vec!["10.0.0.1:7000"])).expect("set");
        store.set_setting("gone", Some(&1)).expect("set");
        store.set_setting::<u32>("gone", None).expect("remove");
    }
    let store = open(dir.path());
    let commit = Commit { statements: vec![d.clone()], ..Commit::default() };
    store.commit(commit).expect("commit");
    assert_eq!(store.statements().expect("list"), [c, a.clone(), b, d]);
    assert_eq!(store.statement(&a.0).expect("get"), Some(a.1));
    assert_eq!(store.statement(&StatementId::of(b"?")).expect("get"), None);
    let peers: Option<Vec<String>> = store.setting("peers").expect("get");
    assert_eq!(peers, Some(vec!["10.0.0.1:7000".to_owned()]));
    assert_eq!(store.setting::<u32>("gone").expect("get"), None);
    assert!(matches!(store.setting::<u32>("peers"), Err(StoreError::Setting { .. })));
}

#[test]
fn a_commit_is_all_or_nothing() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(&dir.path().join("store"));
    let source = plan(&dir.path().join("source"), &[("a", data(1, 100_000))]);
    let staged = stage(&store, &source).expect("import");
    let manifest = staged.manifest().clone();
    let commit = Commit {
        staged: Some(staged),
        manifests: vec![b"not a manifest".as_slice().into()],
        statements: vec![statement("a")],
        heads: vec![("acme/bot:production on any".to_owned(), Some(b"one".to_vec()))],
    };
    assert!(matches!(store.commit(commit), Err(StoreError::Manifest(_))));
    assert!(store.statements().expect("list").is_empty());
    assert!(store.heads().expect("list").is_empty());
    assert!(store.layers().expect("list").is_empty());
    assert!(store.manifest(&manifest.digest()).expect("get").is_none());
    assert!(tree(&store.dir().join("layers")).is_empty());
    assert!(tree(&store.dir().join("staging")).is_empty());

    // Killed between the renames and the transaction: the layers are there at the next open, the manifest is not.
    add(&store, &source);
    drop(store);
    let meta = dir.path().join("store/weighlock.redb");
    std::fs::remove_file(meta).expect("remove");
    let store = open(&dir.path().join("store"));
    assert_eq!(store.recovery().registered.len(), 3);
    assert!(store.manifests().expect("list").is_empty());
    assert_eq!(store.unreferenced_layers().expect("list").len(), 3);
    assert!(store.manifest_complete(&manifest).expect("complete"));
}

#[test]
fn heads_are_written_with_the_statements_that_move_them() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(&dir.path().join("store"));
    let head = |text: &str| Some(text.as_bytes().to_vec());
    let moved = |n: &str, heads: &[(&str, Option<Vec<u8>>)]| {
        let heads = heads.iter().map(|(channel, head)| ((*channel).to_owned(), head.clone())).collect();
        store.commit(Commit { statements: vec![statement(n)], heads, ..Commit::default() }).expect("commit");
    };
    moved("a", &[("one", head("a")), ("two", head("a"))]);
    moved("b", &[("one", head("b")), ("two", None), ("three", None)]);
    let heads = store.heads().expect("list");
    assert_eq!(heads, [("one".to_owned(), b"b".to_vec())]);
    drop(store);
    assert_eq!(open(&dir.path().join("store")).heads().expect("list"), heads);
}

#[test]
fn manifests_are_metadata_until_their_layers_are_here() {
    let dir = tempfile::tempdir().expect("dir");
    let bytes = data(1, 4 * GROUP_BYTES as usize);
    let manifest = {
        let other = open(&dir.path().join("other"));
        add(&other, &plan(&dir.path().join("source"), &[("a", bytes.clone())]))
    };
    let store = open(&dir.path().join("store"));
    assert!(store.put_manifest(b"{}").is_err());
    assert_eq!(store.put_manifest(manifest.bytes()).expect("put"), manifest.digest());
    assert_eq!(store.manifests().expect("list"), [manifest.digest()]);
    assert_eq!(store.manifest(&manifest.digest()).expect("get").as_ref(), Some(manifest.bytes()));
    assert!(!store.manifest_complete(&manifest).expect("complete"));
    assert!(store.held().expect("held").is_empty());
    let (id, items) = proven(&bytes, &GroupSet::from(1..3));
    {
        let layer = store.partial(&id, bytes.len() as u64).expect("partial");
        layer.write(&items).expect("write");
        assert_eq!(store.held_bytes(&manifest).expect("held"), 2 * GROUP_BYTES);
    }
    assert_eq!(store.held_bytes(&manifest).expect("from the file"), 2 * GROUP_BYTES);
    assert!(store.remove_manifest(&manifest.digest()).expect("remove"));
    assert!(!store.remove_manifest(&manifest.digest()).expect("remove"));
    assert!(store.manifest(&manifest.digest()).expect("get").is_none());
}

#[test]
fn removing_an_artifact_keeps_what_others_use() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(&dir.path().join("store"));
    let (shared, own) = (data(1, 90_000), data(2, 50_000));
    let one = plan(&dir.path().join("one"), &[("base", shared.clone()), ("own", own.clone())]);
    let two = plan(&dir.path().join("two"), &[("renamed", shared.clone()), ("more", b"more".to_vec())]);
    let (one, two) = (add(&store, &one), add(&store, &two));
    let view = store.view(&one).expect("view");
    assert_eq!(store.held().expect("held").len(), 2);
    let freed = store.remove_artifact(&one.digest()).expect("remove");
    let tree_bytes = 64 * (50_000u64.div_ceil(GROUP_BYTES) - 1);
    assert_eq!(one.contract().id, two.contract().id, "neither says anything");
    assert_eq!(freed, 50_000 + tree_bytes + one.config().size);
    assert!(!view.exists());
    assert!(store.manifest_complete(&two).expect("complete"));
    assert!(store.layer(&LayerId::of(&own)).expect("layer").is_none());
    assert!(!layer_path(store.dir(), &LayerId::of(&own)).exists());
    assert!(store.manifests().expect("list").contains(&one.digest()), "stays as metadata");
    assert_eq!(store.held().expect("held"), [two.digest()]);
    store.remove_artifact(&two.digest()).expect("remove");
    assert!(tree(&store.dir().join("layers")).is_empty());
    assert!(matches!(store.remove_artifact(&ManifestDigest::of(b"?")), Err(StoreError::NoManifest(_))));
    assert_eq!(Manifest::parse(one.bytes()), Ok(one));
}

#[test]
fn a_commit_takes_the_place_of_a_partial_layer() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(&dir.path().join("store"));
    let bytes = data(1, 90_000);
    let (id, items) = proven(&bytes, &GroupSet::from(0..6));
    let layer = store.partial(&id, 90_000).expect("partial");
    add(&store, &plan(&dir.path().join("source"), &[("a", bytes.clone())]));
    assert!(tree(&store.dir().join("partial")).is_empty());
    // The fetch that was under way ends well.
    layer.write(&items).expect("write");
    assert_eq!(store.seal(&layer).expect("seal").size, 90_000);
    assert_eq!(std::fs::read(layer_path(store.dir(), &id)).expect("read"), bytes);
}
