//! Verified streams: right ones with wrong bytes in them. Whatever comes out as proven is what the layer has.
#![no_main]

use bao_tree::io::outboard::PreOrderMemOutboard;
use bao_tree::io::sync::encode_ranges;
use bytes::Bytes;
use libfuzzer_sys::arbitrary::{self, Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use weighlock_protocol::LayerId;
use weighlock_protocol::wire::bao::{self, BLOCK, Decoder, GroupSet, Verified, canonical_chunks};
use weighlock_protocol::wire::tree::{PAIR_BYTES, TreeDecoder, tree_bytes};

#[derive(Debug)]
struct Case {
    size: usize,
    groups: GroupSet,
    /// What the decoder is told, which may be a lie.
    claimed_size: u64,
    claimed_groups: GroupSet,
    /// Changes to the stream: where, and what.
    changes: Vec<Change>,
    cut: Option<usize>,
}

#[derive(Debug, Arbitrary)]
enum Change {
    Flip(u32, u8),
    Remove(u32, u8),
    Insert(u32, Vec<u8>),
    Swap(u32, u32),
}

fn set(u: &mut Unstructured<'_>) -> arbitrary::Result<GroupSet> {
    let mut groups = GroupSet::empty();
    for _ in 0..u.int_in_range(0..=4)? {
        let start: u64 = u.int_in_range(0..=40)?;
        let len: u64 = u.int_in_range(1..=20)?;
        groups |= GroupSet::from(start..start + len);
    }
    Ok(groups)
}

impl<'a> Arbitrary<'a> for Case {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let size = match u.int_in_range(0..=4)? {
            0 => u.int_in_range(0..=20_000)?,
            1 => 16_384 * u.int_in_range(0..=20)?,
            2 => 16_384 * u.int_in_range(0..=20)? + 1,
            3 => 16_384 * u.int_in_range(1..=20)? - 1,
            _ => u.int_in_range(0..=400_000)?,
        };
        let groups = set(u)?;
        let claimed_groups = if u.ratio(1, 4)? { set(u)? } else { groups.clone() };
        let claimed_size =
            if u.ratio(1, 8)? { u.int_in_range(0..=bao::LAYER_BYTES_MAX)? } else { size as u64 };
        Ok(Case { size, groups, claimed_size, claimed_groups, changes: u.arbitrary()?, cut: u.arbitrary()? })
    }
}

fn data(len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(b"fuzz").finalize_xof().fill(&mut out);
    out
}

fn changed(mut wire: Vec<u8>, case: &Case) -> Vec<u8> {
    let honest = wire.clone();
    for change in case.changes.iter().take(8) {
        let at = |place: &u32| *place as usize % wire.len().max(1);
        match change {
            _ if wire.is_empty() => break,
            Change::Flip(place, bits) => {
                let at = at(place);
                wire[at] ^= bits;
            }
            Change::Remove(place, count) => {
                let at = at(place);
                let end = (at + *count as usize).min(wire.len());
                wire.drain(at..end);
            }
            Change::Insert(place, bytes) => {
                let at = at(place);
                wire.splice(at..at, bytes.iter().copied());
            }
            Change::Swap(one, other) => {
                let (one, other) = (at(one), at(other));
                wire.swap(one, other);
            }
        }
    }
    if let Some(cut) = case.cut.filter(|_| honest != wire) {
        wire.truncate(cut);
    }
    wire
}

fuzz_target!(|case: Case| {
    let data = data(case.size);
    let outboard = PreOrderMemOutboard::create(&data, BLOCK);
    let root = LayerId(*outboard.root.as_bytes());
    let mut wire = Vec::new();
    encode_ranges(&data[..], &outboard, &canonical_chunks(&case.groups, data.len() as u64), &mut wire)
        .expect("in memory");
    let honest = case.changes.is_empty()
        && case.claimed_size == case.size as u64
        && case.claimed_groups == case.groups;
    let mut rest = Bytes::from(changed(wire, &case));

    let mut decoder = Decoder::new(root, case.claimed_size, &case.claimed_groups);
    let mut broke = false;
    while let Some(need) = decoder.need() {
        if need > rest.len() {
            broke = true;
            break;
        }
        match decoder.feed(rest.split_to(need)) {
            Ok(Verified::Leaf(leaf)) => {
                let start = leaf.offset() as usize;
                assert_eq!(leaf.data()[..], data[start..start + leaf.data().len()], "proven, and wrong");
            }
            Ok(Verified::Parent(_)) => {}
            Err(_) => {
                broke = true;
                break;
            }
        }
    }
    assert!(!(honest && broke), "an honest stream is taken");

    let mut rest = &changed(outboard.data.clone(), &case)[..];
    let mut decoder = TreeDecoder::new(root, case.claimed_size);
    let mut proven = 0;
    while !decoder.complete() && rest.len() >= PAIR_BYTES {
        let (pair, after) = rest.split_at(PAIR_BYTES);
        rest = after;
        match decoder.feed(pair) {
            Ok(_) => {
                assert_eq!(*pair, outboard.data[proven..proven + PAIR_BYTES], "proven, and wrong");
                proven += PAIR_BYTES;
            }
            Err(_) => break,
        }
    }
    if honest {
        assert_eq!(proven as u64, tree_bytes(case.claimed_size));
    }
});
