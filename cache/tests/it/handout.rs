//! Descriptors of partial layers: read-only, zeros where nothing is proven, the same file after sealing.

use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

use weighlock_cache::{Store, StoreError};
use weighlock_protocol::wire::bao::{GROUP_BYTES, GroupSet, all_groups};

use crate::support::{add, config, data, layer_path, open, plan, proven};

const G: usize = GROUP_BYTES as usize;

fn read(file: &std::fs::File) -> Vec<u8> {
    let mut bytes = vec![0xff; file.metadata().expect("stat").len() as usize];
    file.read_exact_at(&mut bytes, 0).expect("read");
    bytes
}

#[test]
fn a_descriptor_shows_what_lands_and_nothing_else_and_outlives_the_seal() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(dir.path());
    let bytes = data(11, 9 * G + 5);
    let size = bytes.len() as u64;
    let (id, some) = proven(&bytes, &(GroupSet::from(2..4) | GroupSet::from(9..10)));
    let layer = store.partial(&id, size).expect("partial");
    // Made under a umask of 0, somebody else could reopen the descriptor for writing.
    let path = dir.path().join("partial").join(format!("{}.data", id.hex()));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).expect("chmod");
    let file = layer.open_data().expect("a descriptor");
    assert_eq!(file.metadata().expect("stat").mode() & 0o777, 0o644);
    assert_eq!(file.write_at(b"x", 0).expect_err("read-only").raw_os_error(), Some(9), "EBADF");
    assert!(file.set_len(0).is_err());

    assert_eq!(read(&file), vec![0; bytes.len()], "nothing is proven yet");
    layer.write(&some).expect("write");
    let mut expected = vec![0; bytes.len()];
    expected[2 * G..4 * G].copy_from_slice(&bytes[2 * G..4 * G]);
    expected[9 * G..].copy_from_slice(&bytes[9 * G..]);
    assert_eq!(read(&file), expected);

    let inode = layer.inode().expect("inode");
    assert_eq!(file.metadata().expect("stat").ino(), inode);
    assert_eq!(store.begun(&id).expect("looked").expect("begun").have(), layer.have(), "one state for all");
    let (_, rest) = proven(&bytes, &layer.missing());
    layer.write(&rest).expect("write");
    store.seal(&layer).expect("seal");
    assert_eq!(read(&file), bytes);
    let sealed = store.open_sealed(&id).expect("sealed");
    assert_eq!(sealed.file.metadata().expect("stat").ino(), inode, "the same file under another name");
    assert_eq!(std::fs::metadata(layer_path(dir.path(), &id)).expect("stat").mode() & 0o777, 0o440);
    assert!(matches!(layer.open_data(), Err(StoreError::NotHeld(_))), "sealed files are opened as such");
    assert!(store.begun(&id).expect("looked").is_none());
}

#[test]
fn after_a_power_loss_what_did_not_survive_reads_as_zeros() {
    let dir = tempfile::tempdir().expect("dir");
    let bytes = data(12, 20 * G + 7);
    let size = bytes.len() as u64;
    let (id, items) = proven(&bytes, &GroupSet::from(0..8));
    open(dir.path()).partial(&id, size).expect("partial").write(&items).expect("write");
    let path = dir.path().join("partial").join(format!("{}.data", id.hex()));
    let file = std::fs::File::options().write(true).open(&path).expect("open");
    // One proven group rots; what was never proven holds whatever the disk had there, up to the last byte.
    file.write_all_at(b"rot", 3 * GROUP_BYTES + 9).expect("rot");
    file.write_all_at(&vec![0xee; 3 * G], 12 * GROUP_BYTES).expect("stale");
    file.write_all_at(b"stale", size - 5).expect("stale");
    let store = Store::open(dir.path(), config("boot 2")).expect("open");
    let layer = store.begun(&id).expect("resumed").expect("begun");
    assert_eq!(layer.have(), &GroupSet::from(0..8) - &GroupSet::from(3..4));
    let mut expected = vec![0; bytes.len()];
    expected[..3 * G].copy_from_slice(&bytes[..3 * G]);
    expected[4 * G..8 * G].copy_from_slice(&bytes[4 * G..8 * G]);
    assert_eq!(read(&layer.open_data().expect("a descriptor")), expected);
    let (_, rest) = proven(&bytes, &layer.missing());
    layer.write(&rest).expect("write");
    store.seal(&layer).expect("seal");
}

#[test]
fn an_import_or_a_removal_leaves_another_file_and_it_can_be_told() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(dir.path());
    let bytes = data(13, 5 * G);
    let size = bytes.len() as u64;
    let (id, some) = proven(&bytes, &GroupSet::from(1..2));
    let layer = store.partial(&id, size).expect("partial");
    layer.write(&some).expect("write");
    let (file, inode) = (layer.open_data().expect("a descriptor"), layer.inode().expect("inode"));
    let source = tempfile::tempdir().expect("dir");
    add(&store, &plan(source.path(), &[("model.bin", bytes.clone())]));
    assert!(matches!(layer.open_data(), Err(StoreError::NotHeld(_))), "its file is not the layer any more");
    let sealed = store.open_sealed(&id).expect("sealed").file;
    assert_ne!(sealed.metadata().expect("stat").ino(), inode);
    assert_eq!(read(&sealed), bytes);
    // What was proven stays so in the old one.
    assert_eq!(read(&file)[G..2 * G], bytes[G..2 * G]);

    let (other, _) = proven(&data(14, 3 * G), &all_groups(3 * GROUP_BYTES));
    let layer = store.partial(&other, 3 * GROUP_BYTES).expect("partial");
    store.remove_partial(&other).expect("removed");
    assert!(matches!(layer.open_data(), Err(StoreError::NotHeld(_))));
    let again = store.partial(&other, 3 * GROUP_BYTES).expect("partial");
    assert_ne!(again.inode().expect("inode"), layer.inode().expect("inode"));
}
