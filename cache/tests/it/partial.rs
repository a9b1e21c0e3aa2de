//! Partial layers: what is written stays, what is not proven never shows, after kills and reboots too.

use std::os::unix::fs::FileExt;

use bao_tree::io::outboard::PreOrderMemOutboard;
use bao_tree::io::sync::Outboard;
use proptest::prelude::*;
use weighlock_cache::{Store, StoreError};
use weighlock_protocol::LayerId;
use weighlock_protocol::wire::bao::{BLOCK, GROUP_BYTES, GroupSet, Verified, all_groups, group_count, tree};

use crate::support::{config, data, layer_path, open, proven, proven_as};

const G: usize = GROUP_BYTES as usize;

fn set(ranges: &[std::ops::Range<u64>]) -> GroupSet {
    ranges.iter().fold(GroupSet::empty(), |set, range| set | GroupSet::from(range.clone()))
}

fn partial_file(dir: &std::path::Path, id: &LayerId, ext: &str) -> std::path::PathBuf {
    dir.join("partial").join(format!("{}.{ext}", id.hex()))
}

#[test]
fn layers_of_awkward_sizes_go_in_and_seal() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(dir.path());
    for len in [0, 1, G - 1, G, G + 1, 2 * G, 5 * G + 3, 64 * G + 1] {
        let bytes = data(len as u64, len);
        let size = len as u64;
        let (id, items) = proven(&bytes, &all_groups(size));
        let layer = store.partial(&id, size).expect("partial");
        assert!(matches!(store.seal(&layer), Err(StoreError::NotHeld(_))));
        layer.write(&items).expect("write");
        assert!(layer.complete(), "{len}");
        let info = store.seal(&layer).expect("seal");
        assert_eq!(store.seal(&layer).expect("twice"), info);
        assert_eq!(info.size, size);
        assert_eq!(std::fs::read(layer_path(dir.path(), &id)).expect("read"), bytes);
        assert!(matches!(store.partial(&id, size), Err(StoreError::AlreadySealed(_))));

        let reader = store.reader(&id).expect("reader").expect("held");
        let outboard = PreOrderMemOutboard::create(&bytes, BLOCK);
        for node in tree(size).pre_order_nodes_iter() {
            match outboard.load(node).expect("memory") {
                Some(pair) => assert_eq!(reader.pair(node).expect("pair"), pair),
                None => assert!(reader.pair(node).is_err()),
            }
        }
        let mut got = vec![0; len];
        reader.read_exact_at(&mut got, 0).expect("read");
        assert_eq!(got, bytes);
        assert!(reader.read_exact_at(&mut [0; 2], size.saturating_sub(1)).is_err());
    }
    assert!(crate::support::tree(&dir.path().join("partial")).is_empty());
}

#[test]
fn only_proven_ranges_are_readable() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(dir.path());
    let bytes = data(1, 40 * G + 9);
    let size = bytes.len() as u64;
    let groups = set(&[3..6, 40..41]);
    let (id, items) = proven(&bytes, &groups);
    let layer = store.partial(&id, size).expect("partial");
    layer.write(&items).expect("write");
    let reader = store.reader(&id).expect("reader").expect("held");
    assert_eq!(reader.have(), groups);
    let mut got = vec![0; 3 * G];
    reader.read_exact_at(&mut got, 3 * GROUP_BYTES).expect("proven");
    assert_eq!(got, bytes[3 * G..6 * G]);
    assert!(matches!(reader.read_exact_at(&mut got, 4 * GROUP_BYTES), Err(StoreError::NotProven { .. })));
    let outboard = PreOrderMemOutboard::create(&bytes, BLOCK);
    let (mut known, mut unknown) = (0, 0);
    for node in tree(size).pre_order_nodes_iter() {
        match (reader.pair(node), outboard.load(node).expect("memory")) {
            (Ok(pair), expected) => {
                assert_eq!(Some(pair), expected);
                known += 1;
            }
            (Err(_), _) => unknown += 1,
        }
    }
    assert!(known > 5 && unknown > 20, "{known} {unknown}");
    let raw = std::fs::read(partial_file(dir.path(), &id, "data")).expect("read");
    assert!(raw[6 * G..40 * G].iter().all(|byte| *byte == 0));
    assert_eq!(layer.missing(), &all_groups(size) - &groups);
    assert!(store.reader(&LayerId::of(b"none")).expect("reader").is_none());
}

#[test]
fn items_that_do_not_belong_are_refused() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(dir.path());
    let (one, two) = (data(1, 8 * G), data(2, 8 * G));
    let (id, items) = proven(&one, &all_groups(8 * GROUP_BYTES));
    let (_, other) = proven(&two, &all_groups(8 * GROUP_BYTES));
    let layer = store.partial(&id, 8 * GROUP_BYTES).expect("partial");
    assert!(matches!(layer.write(&other), Err(StoreError::Misfit { .. })));
    let leaves: Vec<Verified> =
        items.iter().filter(|item| matches!(item, Verified::Leaf(_))).cloned().collect();
    assert!(matches!(layer.write(&leaves), Err(StoreError::Misfit { .. })));
    assert_eq!(layer.have(), GroupSet::empty());
    // Parents first, leaves in a later call: fine.
    let parents: Vec<Verified> =
        items.iter().filter(|item| matches!(item, Verified::Parent(_))).cloned().collect();
    layer.write(&parents).expect("parents");
    layer.write(&leaves).expect("leaves");
    assert!(layer.complete());
    assert!(matches!(store.partial(&id, 8 * GROUP_BYTES + 1), Err(StoreError::SizeMismatch { .. })));
}

#[test]
fn a_size_that_nothing_was_proven_under_gives_way() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(dir.path());
    let bytes = data(1, 3 * G);
    let (id, items) = proven(&bytes, &all_groups(3 * GROUP_BYTES));
    drop(store.partial(&id, 70 * GROUP_BYTES).expect("wrong size"));
    let layer = store.partial(&id, 3 * GROUP_BYTES).expect("right size");
    layer.write(&items).expect("write");
    store.seal(&layer).expect("seal");
    assert!(store.partial(&LayerId::of(b"x"), u64::MAX).is_err());
}

#[test]
fn a_wrong_size_gives_way_until_the_end_is_proven() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(dir.path());
    let bytes = data(2, 8 * G);
    // The first half of the tree is the same with a group less.
    let (id, wrong) = proven_as(&bytes, &GroupSet::from(0..4), 7 * GROUP_BYTES);
    let layer = store.partial(&id, 7 * GROUP_BYTES).expect("begun");
    layer.write(&wrong).expect("write");
    assert_eq!(layer.have_count(), 4);
    let mismatch = |size| matches!(store.partial(&id, size), Err(StoreError::SizeMismatch { .. }));
    assert!(mismatch(8 * GROUP_BYTES), "it is being fetched");
    drop(layer);
    let layer = store.partial(&id, 8 * GROUP_BYTES).expect("nobody needs the other");
    layer.write(&proven(&bytes, &GroupSet::from(6..8)).1).expect("write");
    drop(layer);
    assert!(mismatch(7 * GROUP_BYTES), "its end is proven");
    let layer = store.partial(&id, 8 * GROUP_BYTES).expect("it goes on");
    assert_eq!(layer.have_count(), 2);
    layer.write(&proven(&bytes, &GroupSet::from(0..6)).1).expect("write");
    store.seal(&layer).expect("seal");
}

#[test]
fn all_callers_share_one_layer_and_may_write_at_once() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(dir.path());
    let bytes = data(1, 200 * G + 1);
    let size = bytes.len() as u64;
    let id = LayerId::of(&bytes);
    std::thread::scope(|scope| {
        for part in 0..8u64 {
            let (store, bytes) = (&store, &bytes);
            scope.spawn(move || {
                for first in (part..201).step_by(8) {
                    let (_, items) = proven(bytes, &GroupSet::from(first..first + 1));
                    let layer = store.partial(&id, size).expect("partial");
                    layer.write(&items).expect("write");
                }
            });
        }
    });
    drop(store);
    let store = open(dir.path());
    assert_eq!(store.recovery().sealed, [id]);
    assert_eq!(std::fs::read(layer_path(dir.path(), &id)).expect("read"), bytes);
}

#[test]
fn after_a_kill_the_have_map_counts_and_after_a_reboot_the_bytes_do() {
    let dir = tempfile::tempdir().expect("dir");
    let bytes = data(7, 50 * G + 77);
    let size = bytes.len() as u64;
    let groups = set(&[0..20, 30..51]);
    let (id, items) = proven(&bytes, &groups);
    {
        let store = open(dir.path());
        store.partial(&id, size).expect("partial").write(&items).expect("write");
    }
    // Two groups rot while the machine is off, and one tree node.
    let file =
        std::fs::File::options().write(true).open(partial_file(dir.path(), &id, "data")).expect("open");
    file.write_all_at(b"x", 4 * GROUP_BYTES + 5).expect("rot");
    file.write_all_at(b"x", 50 * GROUP_BYTES).expect("rot");
    {
        let store = open(dir.path());
        assert_eq!(store.recovery().resumable, [(id, size)]);
        assert_eq!(store.partial(&id, size).expect("partial").have(), groups, "same boot: taken as it is");
    }
    let store = Store::open(dir.path(), config("boot 2")).expect("open");
    assert_eq!(store.partials().expect("list"), [(id, size)]);
    let layer = store.partial(&id, size).expect("partial");
    let left = &(&groups - &GroupSet::from(4..5)) - &GroupSet::from(50..51);
    assert_eq!(layer.have(), left);
    // What is missing is fetched again, and the layer completes.
    let (_, rest) = proven(&bytes, &layer.missing());
    layer.write(&rest).expect("write");
    store.seal(&layer).expect("seal");
    assert_eq!(std::fs::read(layer_path(dir.path(), &id)).expect("read"), bytes);
}

#[test]
fn a_rotten_tree_node_takes_what_is_below_it_along() {
    let dir = tempfile::tempdir().expect("dir");
    let bytes = data(7, 16 * G);
    let size = bytes.len() as u64;
    let (id, items) = proven(&bytes, &all_groups(size));
    {
        let store = open(dir.path());
        store.partial(&id, size).expect("partial").write(&items).expect("write");
        // Not sealed: the process is killed here.
    }
    // Node 1 in pre-order is the left half.
    let file =
        std::fs::File::options().write(true).open(partial_file(dir.path(), &id, "obao")).expect("open");
    file.write_all_at(b"rot", 64).expect("rot");
    let store = Store::open(dir.path(), config("boot 2")).expect("open");
    let layer = store.partial(&id, size).expect("partial");
    assert_eq!(layer.have(), GroupSet::from(8..16));
    let (_, rest) = proven(&bytes, &layer.missing());
    layer.write(&rest).expect("write");
    assert!(layer.complete());
    drop((layer, store));
    // The new boot has vouched for the pages: no second proof.
    let store = Store::open(dir.path(), config("boot 2")).expect("open");
    assert_eq!(store.recovery().sealed, [id]);
}

#[test]
fn corrupt_pages_of_the_have_map_lose_and_claim_nothing() {
    let dir = tempfile::tempdir().expect("dir");
    let bytes = data(3, 9 * G);
    let size = bytes.len() as u64;
    let (id, items) = proven(&bytes, &GroupSet::from(0..5));
    {
        let store = open(dir.path());
        let layer = store.partial(&id, size).expect("partial");
        layer.write(&items).expect("write");
        layer.checkpoint().expect("checkpoint");
    }
    let have = partial_file(dir.path(), &id, "have");
    let file = std::fs::File::options().write(true).open(&have).expect("open");
    file.write_all_at(&[0xff], 4096 + 1).expect("corrupt");
    {
        let store = open(dir.path());
        let layer = store.partial(&id, size).expect("partial");
        assert_eq!(
            layer.have(),
            GroupSet::from(0..5),
            "what is here is proven again; 8 and 9 were never there"
        );
        layer.write(&items).expect("write");
        assert_eq!(layer.have(), GroupSet::from(0..5));
    }
    // A header that does not check: no partial layer, and its files go.
    file.write_all_at(&[0xff; 8], 0).expect("corrupt");
    let store = open(dir.path());
    assert!(store.partials().expect("list").is_empty());
    assert!(crate::support::tree(&dir.path().join("partial")).is_empty());
    assert_eq!(store.partial(&id, size).expect("partial").have(), GroupSet::empty());
}

#[test]
fn a_kill_in_the_middle_of_sealing_is_put_right() {
    let bytes = data(5, 20 * G + 5);
    let size = bytes.len() as u64;
    let (id, items) = proven(&bytes, &all_groups(size));
    // How many of the two renames were done before the kill.
    for renames in 0..=2 {
        let dir = tempfile::tempdir().expect("dir");
        {
            let store = open(dir.path());
            store.partial(&id, size).expect("partial").write(&items).expect("write");
        }
        let target = layer_path(dir.path(), &id);
        std::fs::create_dir_all(target.parent().expect("dir")).expect("dir");
        if renames > 0 {
            let to = target.with_extension("obao");
            std::fs::rename(partial_file(dir.path(), &id, "obao"), to).expect("rename");
        }
        if renames > 1 {
            std::fs::rename(partial_file(dir.path(), &id, "data"), &target).expect("rename");
        }
        let store = open(dir.path());
        let report = store.recovery();
        assert_eq!(report.sealed.len() + report.registered.len(), 1, "{renames} {report:?}");
        let mut got = vec![0; bytes.len()];
        let reader = store.reader(&id).expect("reader").expect("held");
        reader.read_exact_at(&mut got, 0).expect("read");
        assert_eq!(got, bytes);
        assert!(crate::support::tree(&dir.path().join("partial")).is_empty());
    }
}

#[test]
fn a_removed_partial_layer_is_gone() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(dir.path());
    let bytes = data(5, 2 * G);
    let (id, items) = proven(&bytes, &all_groups(2 * GROUP_BYTES));
    let old = store.partial(&id, 2 * GROUP_BYTES).expect("partial");
    store.remove_partial(&id).expect("remove");
    old.write(&items).expect("to nowhere");
    assert!(store.reader(&id).expect("reader").is_none());
    assert!(store.seal(&old).is_err());
    assert!(store.layer(&id).expect("layer").is_none());
    let new = store.partial(&id, 2 * GROUP_BYTES).expect("new");
    assert_eq!(new.have(), GroupSet::empty());
    // The old one is complete, but the files under its names are the new one's.
    assert!(old.complete() && store.seal(&old).is_err());
    assert!(!layer_path(dir.path(), &id).exists());
    new.write(&items).expect("write");
    store.seal(&new).expect("seal");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Random subsets, in random order, over several lives of the process, are there as exactly their union.
    #[test]
    fn what_was_written_is_what_is_there(
        len in 0usize..60 * G,
        lives in prop::collection::vec(prop::collection::vec((0u64..62, 1u64..9), 0..5), 1..4),
        reboot in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().expect("dir");
        let bytes = data(len as u64, len);
        let size = len as u64;
        let id = LayerId::of(&bytes);
        let mut expected = GroupSet::empty();
        for (life, writes) in lives.iter().enumerate() {
            let boot = format!("boot {}", if reboot { life } else { 0 });
            let store = Store::open(dir.path(), config(&boot)).expect("open");
            if store.layer(&id).expect("layer").is_some() {
                break;
            }
            let layer = store.partial(&id, size).expect("partial");
            prop_assert_eq!(layer.have(), expected.clone());
            for (start, count) in writes {
                let groups = &GroupSet::from(*start..start + count) & &all_groups(size);
                let (_, items) = proven(&bytes, &groups);
                layer.write(&items).expect("write");
                expected |= groups;
            }
            prop_assert_eq!(layer.have(), expected.clone());
            prop_assert_eq!(layer.complete(), expected == all_groups(size));
            let reader = store.reader(&id).expect("reader").expect("held");
            for group in (0..group_count(size)).filter(|group| expected.contains(group)) {
                let offset = group * GROUP_BYTES;
                let mut got = vec![0; GROUP_BYTES.min(size - offset) as usize];
                reader.read_exact_at(&mut got, offset).expect("read");
                prop_assert_eq!(&got[..], &bytes[offset as usize..offset as usize + got.len()]);
            }
        }
    }
}

#[test]
fn many_complete_layers_of_a_killed_fetch_are_sealed_when_the_store_opens() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(dir.path());
    let mut ids = Vec::new();
    for n in 0..600 {
        let bytes = data(n, 100);
        let (id, items) = proven(&bytes, &all_groups(100));
        let partial = store.partial(&id, 100).expect("partial");
        partial.write(&items).expect("written");
        ids.push(id);
    }
    ids.sort();
    drop(store);
    let store = open(dir.path());
    let mut sealed = store.recovery().sealed;
    sealed.sort();
    assert!(sealed == ids && store.recovery().resumable.is_empty());
    assert!(crate::support::tree(&dir.path().join("partial")).is_empty());
    for id in &ids {
        store.open_sealed(id).expect("whole");
    }
}
