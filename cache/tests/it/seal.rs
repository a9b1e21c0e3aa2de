//! Seals that fail half way: nothing that was fetched is lost, and nobody sees half of it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use weighlock_protocol::LayerId;
use weighlock_protocol::wire::bao::all_groups;

use crate::support::{config, data, layer_path, open, proven, tree};

const SIZE: u64 = 100_000;

/// Two layers whose bytes are all here, in the order in which they are sealed.
fn complete(store: &weighlock_cache::Store) -> [LayerId; 2] {
    let mut ids = [1, 2].map(|seed| {
        let (id, items) = proven(&data(seed, SIZE as usize), &all_groups(SIZE));
        store.partial(&id, SIZE).expect("partial").write(&items).expect("written");
        id
    });
    ids.sort();
    assert_ne!(ids[0].0[0], ids[1].0[0], "they lie in two directories");
    ids
}

/// Puts a file where the directory of a layer has to be.
fn block(dir: &Path, id: &LayerId) -> PathBuf {
    let at = layer_path(dir, id).parent().expect("a directory").to_owned();
    std::fs::write(&at, "").expect("written");
    at
}

#[test]
fn a_seal_that_fails_half_way_keeps_what_was_fetched() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(dir.path());
    let ids = complete(&store);
    let blocked = block(dir.path(), &ids[1]);
    let layers = ids.map(|id| store.begun(&id).expect("read").expect("begun"));
    store.seal_all(&layers).expect_err("the second has no place");
    // Who fetched them lets go.
    drop(layers);
    assert!(!layer_path(dir.path(), &ids[0]).exists(), "the first is not left where nobody counts it");
    for id in ids {
        assert!(store.layer(&id).expect("read").is_none());
        let begun = store.partial(&id, SIZE).expect("begun");
        assert!(begun.complete(), "nothing is to be fetched again");
    }
    // Nor does it keep the store from opening.
    drop(store);
    let store = open(dir.path());
    assert_eq!(store.recovery().resumable.len(), 2, "{:?}", store.recovery());
    std::fs::remove_file(blocked).expect("removed");
    let layers = ids.map(|id| store.begun(&id).expect("read").expect("begun"));
    store.seal_all(&layers).expect("sealed");
    for id in ids {
        assert_eq!(store.open_sealed(&id).expect("whole").size, SIZE);
    }
    assert!(tree(&dir.path().join("partial")).is_empty());
}

#[test]
fn a_seal_that_was_killed_after_it_made_files_read_only_goes_on() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(dir.path());
    let ids = complete(&store);
    drop(store);
    let mut files = Vec::new();
    for id in ids {
        for ext in ["data", "obao"] {
            let path = dir.path().join("partial").join(format!("{}.{ext}", id.hex()));
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o440)).expect("chmod");
            files.push(path);
        }
    }
    // After a reboot they are not sealed at once.
    let store = weighlock_cache::Store::open(dir.path(), config("boot 2")).expect("opened");
    for id in ids {
        let partial = store.partial(&id, SIZE).expect("opened for writing");
        assert!(partial.complete());
        store.seal(&partial).expect("sealed");
    }
    assert!(files.iter().all(|path| !path.exists()));
}

#[test]
fn a_layer_that_was_let_go_of_does_not_keep_others_from_being_sealed() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(dir.path());
    let ids = complete(&store);
    let layers = ids.map(|id| store.begun(&id).expect("read").expect("begun"));
    store.remove_partial(&ids[0]).expect("removed");
    store.seal_all(&layers).expect("sealed");
    assert!(store.layer(&ids[0]).expect("read").is_none());
    assert!(store.layer(&ids[1]).expect("read").is_some());
}
