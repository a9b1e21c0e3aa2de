//! Rot: found by reading again, kept from every door, healed group by group.

use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

use weighlock_cache::{SCRUB_BLOCK_BYTES, Scrubbed, Store, StoreConfig, StoreError, VerifyOnRead};
use weighlock_protocol::LayerId;
use weighlock_protocol::wire::bao::{GROUP_BYTES, GroupSet, all_groups};

use crate::sealed::overwrite;
use crate::support::{add, config, data, layer_path, open, plan, proven};

/// Two blocks and a part of a third.
const SIZE: u64 = 2 * SCRUB_BLOCK_BYTES + 1_000_000;

fn whole(store: &Store, id: &LayerId) -> Scrubbed {
    store.scrub(id, 0, &mut |_| true).expect("read")
}

#[test]
fn a_flipped_bit_is_found_and_only_its_group_is_fetched() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(&dir.path().join("store"));
    let bytes = data(1, SIZE as usize);
    let id = LayerId::of(&bytes);
    let manifest = add(&store, &plan(&dir.path().join("source"), &[("model.bin", bytes.clone())]));
    assert_eq!(whole(&store, &id), Scrubbed::Whole { tree_rebuilt: false });
    for at in [0, SCRUB_BLOCK_BYTES - 1, SCRUB_BLOCK_BYTES, 2 * SCRUB_BLOCK_BYTES + 5, SIZE - 1] {
        let path = layer_path(store.dir(), &id);
        let inode = std::fs::metadata(&path).expect("stat").ino();
        // Somebody has it open or mapped.
        let reader = store.open_sealed(&id).expect("sealed").file;
        overwrite(&path, at, true);
        store.open_sealed(&id).expect("nothing to see");
        let Scrubbed::Damaged(damage) = whole(&store, &id) else { panic!("byte {at} is wrong") };
        let group = at / GROUP_BYTES;
        assert_eq!((damage.bad_groups, damage.groups), (1, SIZE.div_ceil(GROUP_BYTES)));
        assert_eq!(store.damaged_layers().expect("read"), [damage]);
        assert!(matches!(store.open_sealed(&id), Err(StoreError::NotHeld(_))), "no door hands it out");
        assert!(!store.manifest_complete(&manifest).expect("read"));
        assert_eq!(whole(&store, &id), Scrubbed::Gone);
        let served = store.reader(&id).expect("reader").expect("in part");
        assert_eq!(served.have(), &all_groups(SIZE) - &GroupSet::from(group..group + 1));
        let mut seen = [1; 16];
        reader.read_exact_at(&mut seen, group * GROUP_BYTES).expect("read");
        assert_eq!(seen, [0; 16], "zeros where nothing is proven");

        let partial = store.partial(&id, SIZE).expect("partial");
        let (_, items) = proven(&bytes, &partial.missing());
        partial.write(&items).expect("healed");
        store.seal(&partial).expect("sealed");
        assert_eq!(std::fs::read(&path).expect("read"), bytes);
        assert_eq!(std::fs::metadata(&path).expect("stat").ino(), inode, "the very same file");
        assert_eq!(std::fs::metadata(&path).expect("stat").permissions().mode() & 0o777, 0o440);
        reader.read_exact_at(&mut seen, group * GROUP_BYTES).expect("read");
        assert_eq!(seen, bytes[(group * GROUP_BYTES) as usize..][..16], "who has it open sees it healed");
        assert_eq!(whole(&store, &id), Scrubbed::Whole { tree_rebuilt: false });
        assert!(store.damaged_layers().expect("read").is_empty());
    }
    assert_eq!(store.healed_layers(), 5);
}

#[test]
fn a_rotten_tree_is_built_anew_and_does_not_hide_rotten_bytes() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(&dir.path().join("store"));
    let bytes = data(2, SIZE as usize);
    let id = LayerId::of(&bytes);
    add(&store, &plan(&dir.path().join("source"), &[("model.bin", bytes.clone())]));
    let (path, tree) = (layer_path(store.dir(), &id), layer_path(store.dir(), &id).with_extension("obao"));
    let good = std::fs::read(&tree).expect("read");
    // At the root, within a block, at the end.
    for at in [3, 64 * 200, good.len() as u64 - 1] {
        overwrite(&tree, at, true);
        assert_eq!(whole(&store, &id), Scrubbed::Whole { tree_rebuilt: true }, "{at}");
        assert_eq!(std::fs::read(&tree).expect("read"), good);
    }
    std::fs::remove_file(&tree).expect("removed");
    assert_eq!(whole(&store, &id), Scrubbed::Whole { tree_rebuilt: true });
    assert_eq!(std::fs::read(&tree).expect("read"), good);

    // Both wrong, in different blocks: what the tree still proves is kept.
    overwrite(&tree, good.len() as u64 - 1, true);
    overwrite(&path, 7, true);
    let Scrubbed::Damaged(damage) = whole(&store, &id) else { panic!("it is damaged") };
    assert!((3..20).contains(&damage.bad_groups), "{damage:?}");
    let partial = store.partial(&id, SIZE).expect("partial");
    let (_, items) = proven(&bytes, &partial.missing());
    partial.write(&items).expect("healed");
    store.seal(&partial).expect("sealed");
    assert_eq!(std::fs::read(&path).expect("read"), bytes);
    assert_eq!(std::fs::read(&tree).expect("read"), good);
}

#[test]
fn reading_again_can_stop_and_go_on_and_a_doubt_costs_one_block() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(&dir.path().join("store"));
    let bytes = data(3, SIZE as usize);
    let id = LayerId::of(&bytes);
    add(&store, &plan(&dir.path().join("source"), &[("model.bin", bytes)]));
    let (mut at, mut read) = (0, Vec::new());
    let done = loop {
        match store
            .scrub(&id, at, &mut |bytes| {
                read.push(bytes);
                false
            })
            .expect("read")
        {
            Scrubbed::Stopped { at: next } => at = next,
            done => break done,
        }
    };
    assert_eq!(done, Scrubbed::Whole { tree_rebuilt: false });
    assert_eq!(read, [SCRUB_BLOCK_BYTES, SCRUB_BLOCK_BYTES, SIZE - 2 * SCRUB_BLOCK_BYTES]);
    overwrite(&layer_path(store.dir(), &id), SCRUB_BLOCK_BYTES + 9, true);
    assert!(matches!(store.scrub_at(&id, 5).expect("read"), Scrubbed::Stopped { .. }), "not that block");
    let found = store.scrub_at(&id, SCRUB_BLOCK_BYTES + 100_000).expect("read");
    assert!(matches!(found, Scrubbed::Damaged(_)), "{found:?}");
    assert_eq!(store.scrub_at(&LayerId([9; 32]), 0).expect("read"), Scrubbed::Gone);
}

#[test]
fn small_layers_and_empty_ones_are_read_again_too() {
    for len in [0u64, 1, 16_384, 16_385, 100_000] {
        let dir = tempfile::tempdir().expect("dir");
        let store = open(&dir.path().join("store"));
        let bytes = data(4, len as usize);
        let id = LayerId::of(&bytes);
        add(&store, &plan(&dir.path().join("source"), &[("model.bin", bytes)]));
        assert_eq!(whole(&store, &id), Scrubbed::Whole { tree_rebuilt: false }, "{len}");
        if len > 0 {
            overwrite(&layer_path(store.dir(), &id), len - 1, true);
            assert!(matches!(whole(&store, &id), Scrubbed::Damaged(_)), "{len}");
            assert!(!layer_path(store.dir(), &id).exists(), "{len}");
        }
        let path = layer_path(store.dir(), &id);
        if path.exists() {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).expect("chmod");
        }
        std::fs::write(path, "longer than before").expect("written");
    }
}

/// What a door does with a damaged layer: an error, or not the wrong bytes.
type Door = fn(&Store, &weighlock_protocol::manifest::Manifest) -> Result<Vec<u8>, StoreError>;

/// Every way out of the store.
const DOORS: [(&str, Door); 4] = [
    ("descriptor", |store, manifest| {
        let file = store.open_sealed(&manifest.files()[0].id)?;
        Ok(std::fs::read(file.path).expect("read"))
    }),
    ("view", |store, manifest| {
        let view = store.view(manifest)?;
        Ok(std::fs::read(view.join(&manifest.files()[0].path)).expect("read"))
    }),
    ("copy", |store, manifest| {
        let to = store.dir().with_extension("copy");
        store.materialise(manifest, &to, &weighlock_cache::MaterialiseOptions::default())?;
        Ok(std::fs::read(to.join(&manifest.files()[0].path)).expect("read"))
    }),
    ("SHA-256", |store, manifest| {
        store.prove_sha256(&manifest.files()[0].id)?;
        Ok(Vec::new())
    }),
];

#[test]
fn no_door_hands_out_what_was_touched_nor_under_always_what_rotted() {
    let mut handed_out = Vec::new();
    for (verify, silent) in [(VerifyOnRead::Changed, false), (VerifyOnRead::Always, true)] {
        for (name, door) in DOORS {
            let dir = tempfile::tempdir().expect("dir");
            let settings = StoreConfig { verify_on_read: verify, ..config("boot 1") };
            let store = Store::open(dir.path().join("store"), settings).expect("open");
            let bytes = data(5, 300_000);
            let manifest = add(&store, &plan(&dir.path().join("source"), &[("model.bin", bytes.clone())]));
            let id = manifest.files()[0].id;
            overwrite(&layer_path(store.dir(), &id), 200_000, silent);
            match door(&store, &manifest) {
                Err(StoreError::Corrupt { layer, .. }) if layer == id => {}
                other => handed_out.push(format!("{name}, silent {silent}: {:?}", other.map(|b| b.len()))),
            }
            assert_eq!(store.damaged_layers().expect("read").len(), 1, "{name}");
        }
    }
    assert!(handed_out.is_empty(), "{handed_out:?}");
}

#[test]
fn a_view_that_was_touched_is_made_anew_and_under_always_a_rotten_one_too() {
    for (verify, silent) in [(VerifyOnRead::Changed, false), (VerifyOnRead::Always, true)] {
        let dir = tempfile::tempdir().expect("dir");
        let settings = StoreConfig { verify_on_read: verify, ..config("boot 1") };
        let store = Store::open(dir.path().join("store"), settings).expect("open");
        let bytes = data(6, 300_000);
        let manifest = add(&store, &plan(&dir.path().join("source"), &[("model.bin", bytes.clone())]));
        let file = store.view(&manifest).expect("view").join("model.bin");
        let inode = std::fs::metadata(&file).expect("stat").ino();
        store.view(&manifest).expect("view");
        assert_eq!(std::fs::metadata(&file).expect("stat").ino(), inode, "used again");
        overwrite(&file, 200_000, silent);
        let again = store.view(&manifest).expect("view").join("model.bin");
        assert_eq!(std::fs::read(again).expect("read"), bytes, "silent {silent}");
    }
}

#[test]
fn rot_is_no_lie_of_who_published_it() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(&dir.path().join("store"));
    let bytes = data(7, 50_000);
    let id = LayerId::of(&bytes);
    add(&store, &plan(&dir.path().join("source"), &[("model.bin", bytes)]));
    let before = store.layer(&id).expect("read").expect("sealed").sha256;
    overwrite(&layer_path(store.dir(), &id), 20_000, true);
    assert!(matches!(store.prove_sha256(&id), Err(StoreError::Corrupt { .. })));
    assert!(before.is_some() && store.layer(&id).expect("read").is_none());
}
