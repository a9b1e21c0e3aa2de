//! Stores of older formats open and are carried over; newer ones are refused as they are.

use std::path::Path;

use redb::{Database, ReadableDatabase, TableDefinition, TableHandle};
use weighlock_cache::StoreError;
use weighlock_protocol::{LayerId, Sha256};

use crate::support::{config, open};

/// The database of a store that the release before format 2 wrote, as its blocks that are not zeros: the length of the
/// file, then offset and 512 bytes of each. It holds an artifact of two files and what a cluster of one host says.
const FORMAT_1: &[u8] = include_bytes!("../fixtures/format-1.blocks");
const BLOCK: usize = 512;

const META: TableDefinition<'_, &str, u32> = TableDefinition::new("meta_v1");

fn unpack(packed: &[u8], path: &Path) {
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
    let (len, blocks) = packed.split_at(8);
    let mut image = vec![0; usize::try_from(number(len)).expect("small")];
    for block in blocks.chunks_exact(8 + BLOCK) {
        let at = usize::try_from(number(&block[..8])).expect("small");
        image[at..at + BLOCK].copy_from_slice(&block[8..]);
    }
    std::fs::write(path, image).expect("written");
}

#[test]
fn a_store_of_format_1_opens_with_all_that_it_knew() {
    let dir = tempfile::tempdir().expect("dir");
    unpack(FORMAT_1, &dir.path().join("weighlock.redb"));
    // The files of its layers: two of the artifact, one missing, one as it was.
    let weights = vec![b'w'; 40_000];
    let id = LayerId::of(&weights);
    let place = crate::support::layer_path(dir.path(), &id);
    std::fs::create_dir_all(place.parent().expect("a parent")).expect("made");
    std::fs::write(&place, &weights).expect("written");

    let store = open(dir.path());
    let layer = store.layer(&id).expect("read").expect("on record");
    assert_eq!(layer.sha256, Some(Sha256::of(&weights)));
    assert_eq!(layer.proven_s, u64::try_from(layer.mtime_ns).expect("after 1970") / 1_000_000_000);
    assert_eq!(store.layers().expect("read").len(), 1);
    assert_eq!(store.recovery().lost.len(), 3, "their files were not kept with the fixture");
    let manifests = store.manifests().expect("read");
    assert_eq!(manifests, store.held().expect("read"));
    assert_eq!(manifests.len(), 1);
    assert!(store.manifest(&manifests[0]).expect("read").is_some());
    assert!(store.statements().expect("read").len() >= 2, "a root and a publish");
    drop(store);

    let db = Database::open(dir.path().join("weighlock.redb")).expect("opened");
    let txn = db.begin_read().expect("read");
    let names: Vec<String> =
        txn.list_tables().expect("listed").map(|table| table.name().to_owned()).collect();
    assert!(!names.contains(&"layers_v1".to_owned()), "{names:?}");
    let format = txn.open_table(META).expect("opened").get("format").expect("read").expect("there").value();
    assert_eq!(format, 2);
    drop((txn, db));
    // Once is enough.
    assert_eq!(open(dir.path()).layers().expect("read").len(), 1);
}

#[test]
fn a_store_of_a_newer_format_is_refused_and_not_written_to() {
    let dir = tempfile::tempdir().expect("dir");
    drop(open(dir.path()));
    let path = dir.path().join("weighlock.redb");
    let db = Database::open(&path).expect("opened");
    let txn = db.begin_write().expect("begun");
    txn.open_table(META).expect("opened").insert("format", 99).expect("written");
    txn.delete_table(TableDefinition::<[u8; 32], &[u8]>::new("damaged_v1")).expect("deleted");
    txn.commit().expect("committed");
    drop(db);
    let error = weighlock_cache::Store::open(dir.path(), config("boot 1")).expect_err("newer");
    assert!(matches!(&error, StoreError::Newer { found: 99, supported: 2, .. }), "{error}");
    assert!(error.to_string().contains("update weighlock"), "{error}");
    let db = Database::open(&path).expect("opened");
    let txn = db.begin_read().expect("read");
    let names: Vec<String> =
        txn.list_tables().expect("listed").map(|table| table.name().to_owned()).collect();
    assert!(!names.contains(&"damaged_v1".to_owned()), "nothing was made in it: {names:?}");
}
