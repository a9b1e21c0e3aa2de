//! Single files taken in as layers: what was taken stays until it belongs to something, whatever else goes meanwhile.

use std::collections::BTreeSet;
use std::path::Path;

use weighlock_cache::{GarbageKind, LayerLease, Store, Taken, Wanted};
use weighlock_protocol::LayerId;
use weighlock_protocol::manifest::Manifest;

use crate::support::{add, data, open, plan, tree};

/// What another tool has of a model, and the model's manifest, as a host knows it that holds nothing of it.
fn known(dir: &Path, store: &Store, seeds: [u64; 2]) -> (Manifest, [LayerId; 2]) {
    let files = seeds.map(|seed| data(seed, 40_000));
    let names = seeds.map(|seed| format!("file-{seed}"));
    let source = plan(
        &dir.join("files"),
        &[(names[0].as_str(), files[0].clone()), (names[1].as_str(), files[1].clone())],
    );
    let origin = open(&dir.join(format!("origin-{}-{}", seeds[0], seeds[1])));
    let manifest = add(&origin, &source);
    store.put_manifest(manifest.bytes()).expect("known");
    (manifest, [LayerId::of(&files[0]), LayerId::of(&files[1])])
}

fn take(dir: &Path, store: &Store, seed: u64, lease: &LayerLease) -> Option<Taken> {
    let layers = BTreeSet::from([LayerId::of(&data(seed, 40_000))]);
    let file = dir.join("files").join(format!("file-{seed}"));
    store.take_layer(&file, &Wanted { layers, dry_run: false }, lease).expect("taken")
}

fn is_here(store: &Store, id: &LayerId) -> bool {
    store.layer(id).expect("read").is_some()
}

/// All that may go goes, as under `gc --all`. Returns the layers that went.
fn sweep(store: &Store) -> Vec<String> {
    let garbage = store.garbage().expect("garbage");
    assert!(garbage.iter().all(|one| one.kind == GarbageKind::Layer), "{garbage:?}");
    garbage.into_iter().filter(|one| store.sweep(one).expect("swept").is_some()).map(|one| one.name).collect()
}

#[test]
fn what_was_taken_stays_until_the_artifact_is_held() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(&dir.path().join("store"));
    let (manifest, [one, two]) = known(dir.path(), &store, [1, 2]);
    let lease = store.lease_layers(BTreeSet::new()).expect("lease");
    assert_eq!(take(dir.path(), &store, 1, &lease).map(|taken| taken.layer), Some(one));
    assert_eq!(sweep(&store), [""; 0], "the adoption is under way");
    assert!(is_here(&store, &one));
    take(dir.path(), &store, 2, &lease).expect("it is the layer");
    // From here on the artifact keeps them.
    store.begin(&manifest).expect("begun");
    drop(lease);
    assert_eq!(sweep(&store), [""; 0]);
    assert!(is_here(&store, &one) && is_here(&store, &two));
}

#[test]
fn what_belongs_to_nothing_after_the_lease_goes_and_each_lease_counts() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(&dir.path().join("store"));
    let (_, [one, two]) = known(dir.path(), &store, [1, 2]);
    let first = store.lease_layers(BTreeSet::new()).expect("lease");
    take(dir.path(), &store, 1, &first).expect("it is the layer");
    // Listed as garbage between two adoptions; then the second begins, and counts on what the first one left.
    drop(first);
    let garbage = store.garbage().expect("garbage");
    assert_eq!(garbage.iter().map(|one| one.name.clone()).collect::<Vec<_>>(), [one.hex()]);
    let second = store.lease_layers(BTreeSet::from([one, two])).expect("lease");
    let third = store.lease_layers(BTreeSet::new()).expect("lease");
    assert!(take(dir.path(), &store, 1, &third).is_some(), "it is here already");
    assert_eq!(store.sweep(&garbage[0]).expect("asked"), None, "what was listed before does not go either");
    drop(second);
    assert_eq!(sweep(&store), [""; 0], "somebody else counts on it, too");
    drop(third);
    assert_eq!(sweep(&store), [one.hex()]);
    assert!(!is_here(&store, &one) && tree(&store.dir().join("staging")).is_empty());
}

#[test]
fn an_artifact_that_goes_takes_nothing_that_was_taken_and_frees_what_it_held_before() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(&dir.path().join("store"));
    let held = add(&store, &plan(&dir.path().join("held"), &[("own", data(7, 50_000))]));
    let own = LayerId::of(&data(7, 50_000));
    // Of this one a fetch has begun.
    let (begun, [one, two]) = known(dir.path(), &store, [1, 2]);
    store.hold(&begun.digest()).expect("held");
    let lease = store.lease_layers(BTreeSet::from([own, one, two])).expect("lease");
    take(dir.path(), &store, 1, &lease).expect("it is the layer");
    store.evict(&begun.digest()).expect("evicted").expect("nobody has it open");
    assert!(is_here(&store, &one), "it was taken in a moment ago");
    assert_eq!(sweep(&store), [""; 0]);
    // Else an adoption could make no room for itself.
    assert!(store.evict(&held.digest()).expect("evicted").expect("not open") > 50_000);
    assert!(!is_here(&store, &own));
    drop(lease);
    assert_eq!(sweep(&store), [one.hex()]);
}
