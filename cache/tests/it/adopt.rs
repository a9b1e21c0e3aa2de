//! Groups taken from local bytes: only those that the proven tree vouches for, and they last like fetched ones.

use proptest::prelude::*;
use weighlock_cache::StoreError;
use weighlock_protocol::wire::bao::{GROUP_BYTES, GroupSet, Verified, all_groups, group_count};
use weighlock_protocol::wire::tree::{PAIR_BYTES, TreeDecoder, tree_bytes};

use crate::support::{config, data, layer_path, open, proven};

const G: usize = GROUP_BYTES as usize;

/// The tree of `bytes` as a host that has them sends it, proven.
fn tree(bytes: &[u8]) -> Vec<Verified> {
    let size = bytes.len() as u64;
    let outboard =
        bao_tree::io::outboard::PreOrderMemOutboard::create(bytes, weighlock_protocol::wire::bao::BLOCK);
    let mut decoder = TreeDecoder::new(weighlock_protocol::LayerId(*outboard.root.as_bytes()), size);
    let nodes = outboard.data.chunks(PAIR_BYTES).map(|pair| decoder.feed(pair).expect("honest")).collect();
    assert!(decoder.complete());
    nodes
}

#[test]
fn right_groups_are_taken_and_wrong_ones_are_not() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(dir.path());
    for (seed, len) in [(1, 1), (2, G), (3, G + 1), (4, 2 * G), (5, 37 * G + 9)] {
        let bytes = data(seed, len);
        let size = len as u64;
        let (id, _) = proven(&bytes, &GroupSet::empty());
        let layer = store.partial(&id, size).expect("partial");
        if len > G {
            // Without the tree nothing is known of any place.
            assert_eq!(layer.adopt(0, &bytes).expect("no error"), GroupSet::empty(), "{len}");
            layer.write(&tree(&bytes)).expect("tree");
            assert_eq!(layer.have(), GroupSet::empty());
        }
        let last = group_count(size) - 1;
        let mut wrong = bytes.clone();
        wrong[last as usize * G] ^= 1;
        let before_last = if last == 0 { GroupSet::empty() } else { GroupSet::from(0..last) };
        assert_eq!(layer.adopt(0, &wrong).expect("no error"), before_last, "{len}");
        assert_eq!(layer.have(), before_last);
        assert_eq!(layer.adopt(0, &bytes).expect("adopted"), GroupSet::from(last..last + 1), "{len}");
        assert_eq!(layer.adopt(0, &bytes).expect("twice"), GroupSet::empty(), "{len}");
        store.seal(&layer).expect("seal");
        assert_eq!(std::fs::read(layer_path(dir.path(), &id)).expect("read"), bytes);
        assert_eq!(layer.adopt(0, &bytes).expect("after sealing"), GroupSet::empty());
        let reader = store.reader(&id).expect("reader").expect("sealed");
        let mut pairs = vec![0; tree_bytes(size) as usize];
        reader.read_tree_at(&mut pairs, 0).expect("tree");
        let outboard = bao_tree::io::outboard::PreOrderMemOutboard::create(
            &bytes[..],
            weighlock_protocol::wire::bao::BLOCK,
        );
        assert_eq!(pairs, outboard.data);
        assert!(reader.read_tree_at(&mut [0; 1], pairs.len() as u64).is_err());
    }
}

#[test]
fn bytes_that_are_not_whole_groups_are_refused() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(dir.path());
    let bytes = data(6, 3 * G + 5);
    let (id, _) = proven(&bytes, &GroupSet::empty());
    let layer = store.partial(&id, bytes.len() as u64).expect("partial");
    layer.write(&tree(&bytes)).expect("tree");
    for (first, part) in [(0, &bytes[..G - 1]), (0, &bytes[..G + 1]), (3, &bytes[..6]), (4, &bytes[..1])] {
        let refused = layer.adopt(first, part);
        assert!(matches!(refused, Err(StoreError::Misfit { .. })), "{first}: {refused:?}");
    }
    assert!(matches!(layer.adopt(u64::MAX, &bytes[..G]), Err(StoreError::Misfit { .. })));
    assert_eq!(layer.have(), GroupSet::empty());
    // The right bytes in the wrong place are wrong.
    assert_eq!(layer.adopt(1, &bytes[..2 * G]).expect("no error"), GroupSet::empty());
    // A partial layer has no tree to give, whatever it knows of it.
    let reader = store.reader(&id).expect("reader").expect("held");
    assert!(reader.read_tree_at(&mut [0; 64], 0).is_err());
}

#[test]
fn adopted_groups_survive_a_reopening_and_a_reboot_like_fetched_ones() {
    let dir = tempfile::tempdir().expect("dir");
    let bytes = data(7, 50 * G);
    let size = bytes.len() as u64;
    let (id, fetched) = proven(&bytes, &GroupSet::from(30..31));
    let have = GroupSet::from(3..20) | GroupSet::from(30..31);
    {
        let store = open(dir.path());
        let layer = store.partial(&id, size).expect("partial");
        layer.write(&tree(&bytes)).expect("tree");
        layer.write(&fetched).expect("fetched");
        assert_eq!(layer.adopt(3, &bytes[3 * G..20 * G]).expect("adopted"), GroupSet::from(3..20));
        assert_eq!(layer.have(), have);
        layer.checkpoint().expect("synced");
    }
    for boot in ["boot 1", "boot 2"] {
        let store = weighlock_cache::Store::open(dir.path(), config(boot)).expect("store opens");
        let layer = store.partial(&id, size).expect("partial");
        assert_eq!(layer.have(), have, "{boot}");
        let mut read = vec![0; 17 * G];
        let reader = store.reader(&id).expect("reader").expect("held");
        reader.read_exact_at(&mut read, 3 * GROUP_BYTES).expect("readable");
        assert!(read == bytes[3 * G..20 * G]);
    }
    // The rest comes off the wire, with proofs, and the layer is whole.
    let store = weighlock_cache::Store::open(dir.path(), config("boot 2")).expect("store opens");
    let layer = store.partial(&id, size).expect("partial");
    let (_, rest) = proven(&bytes, &layer.missing());
    layer.write(&rest).expect("written");
    store.seal(&layer).expect("seal");
    assert_eq!(std::fs::read(layer_path(dir.path(), &id)).expect("read"), bytes);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
    #[test]
    fn whatever_lies_around_only_right_groups_enter(
        len in 1usize..40 * G, seed in 0u64..100, known in 0usize..40, damage in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let dir = tempfile::tempdir().expect("dir");
        let store = open(dir.path());
        let bytes = data(seed, len);
        let size = len as u64;
        let (id, _) = proven(&bytes, &GroupSet::empty());
        let layer = store.partial(&id, size).expect("partial");
        // As much of the tree as came before its sender went away.
        let nodes = tree(&bytes);
        layer.write(&nodes[..known.min(nodes.len())]).expect("tree");
        let mut local = bytes.clone();
        let mut damaged = std::collections::BTreeSet::new();
        for at in damage {
            let at = at.index(len);
            local[at] = !local[at];
            damaged.insert((at / G) as u64);
        }
        let taken = layer.adopt(0, &local).expect("no error");
        prop_assert_eq!(&layer.have(), &taken);
        if known >= nodes.len() {
            // Twice damaged in one place is whole again, so compare.
            let right = |group: &u64| {
                let range = *group as usize * G..len.min((*group as usize + 1) * G);
                local[range.clone()] == bytes[range]
            };
            let expected = (0..group_count(size)).filter(right).fold(GroupSet::empty(), |set, g| set | GroupSet::from(g..g + 1));
            prop_assert_eq!(&taken, &expected);
            prop_assert!((0..group_count(size)).all(|group| damaged.contains(&group) || taken.contains(&group)));
        }
        let reader = store.reader(&id).expect("reader").expect("held");
        for group in 0..group_count(size) {
            let range = group as usize * G..len.min((group as usize + 1) * G);
            let mut read = vec![0; range.len()];
            let held = taken.contains(&group);
            prop_assert_eq!(reader.read_exact_at(&mut read, group * GROUP_BYTES).is_ok(), held);
            prop_assert!(!held || read == bytes[range]);
        }
        let (_, rest) = proven(&bytes, &(&all_groups(size) - &taken));
        layer.write(&rest).expect("written");
        store.seal(&layer).expect("seal");
        prop_assert!(std::fs::read(layer_path(dir.path(), &id)).expect("read") == bytes);
    }
}
