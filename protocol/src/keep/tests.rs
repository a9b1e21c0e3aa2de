//! Properties of what goes: never what is protected, enough if there is enough, oldest first, and never the last copy.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::KeyId;

fn digest(n: u8) -> ManifestDigest {
    ManifestDigest([n; 32])
}

fn held(n: u8, layers: &[(u8, u64)], last_used: u64, protected: bool) -> Held {
    Held {
        digest: digest(n),
        layers: layers.iter().map(|(id, bytes)| (LayerId([*id; 32]), *bytes)).collect(),
        last_used,
        abandoned: false,
        because: if protected { vec![Because::View] } else { Vec::new() },
    }
}

#[test]
fn the_least_recently_used_goes_and_no_more_than_needed() {
    let all =
        [held(1, &[(1, 10)], 30, false), held(2, &[(2, 10)], 10, false), held(3, &[(3, 10)], 20, false)];
    assert_eq!(plan(&all, 0), Plan::default());
    assert_eq!(plan(&all, 10).go, [(digest(2), 10)]);
    assert_eq!(plan(&all, 11).go, [(digest(2), 10), (digest(3), 10)]);
    assert_eq!(plan(&all, 1000).freed_bytes, 30);
}

#[test]
fn a_shared_layer_goes_with_its_last_user() {
    let shared = [held(1, &[(1, 10)], 10, false), held(2, &[(1, 10), (2, 1)], 20, false)];
    assert_eq!(plan(&shared, 5).go, [(digest(1), 0), (digest(2), 11)]);
    let kept = [held(1, &[(1, 10)], 10, false), held(2, &[(1, 10), (2, 1)], 20, true)];
    assert_eq!(plan(&kept, 5), Plan::default(), "it would free nothing");
}

#[test]
fn what_was_abandoned_goes_without_need() {
    let mut all = [held(1, &[(1, 10)], 10, false), held(2, &[(2, 7)], 20, false)];
    all[1].abandoned = true;
    assert_eq!(plan(&all, 0).go, [(digest(2), 7)]);
    all[1].because.push(Because::Open { loaders: 1 });
    assert_eq!(plan(&all, 0), Plan::default());
}

/// Up to 12 artifacts over 10 layers whose size hangs on their number.
fn stores() -> impl Strategy<Value = Vec<Held>> {
    let one = (prop::collection::btree_set(0u8..10, 0..5), 0u64..40, any::<bool>(), 0u8..8);
    prop::collection::vec(one, 0..12).prop_map(|all| {
        let make = |(n, (layers, last_used, protected, odd)): (u8, (BTreeSet<u8>, _, _, u8))| {
            let layers: Vec<(u8, u64)> = layers.into_iter().map(|id| (id, u64::from(id) * 3 + 1)).collect();
            Held { abandoned: odd == 0, ..held(n, &layers, last_used, protected) }
        };
        (0u8..).zip(all).map(make).collect()
    })
}

/// What is freed when `gone` go, counted without the plan.
fn freed(all: &[Held], gone: &BTreeSet<ManifestDigest>) -> u64 {
    let stay: BTreeSet<LayerId> = all
        .iter()
        .filter(|one| !gone.contains(&one.digest))
        .flat_map(|one| one.layers.keys().copied())
        .collect();
    let went: BTreeMap<LayerId, u64> = all
        .iter()
        .filter(|one| gone.contains(&one.digest))
        .flat_map(|one| one.layers.iter().map(|(layer, bytes)| (*layer, *bytes)))
        .collect();
    went.into_iter().filter(|(layer, _)| !stay.contains(layer)).map(|(_, bytes)| bytes).sum::<u64>()
}

proptest! {
    #[test]
    fn a_plan_takes_what_it_may_in_order_and_enough(all in stores(), needed in 0u64..200) {
        let plan = plan(&all, needed);
        let gone: BTreeSet<ManifestDigest> = plan.go.iter().map(|(digest, _)| *digest).collect();
        prop_assert_eq!(gone.len(), plan.go.len(), "nothing goes twice");
        let by = |digest: &ManifestDigest| all.iter().find(|one| one.digest == *digest).expect("one of them");
        for digest in &gone {
            prop_assert!(by(digest).may_go(), "never what is protected");
        }
        prop_assert_eq!(plan.freed_bytes, freed(&all, &gone), "it says what it frees");
        prop_assert_eq!(plan.freed_bytes, plan.go.iter().map(|(_, bytes)| bytes).sum::<u64>());
        let may: BTreeSet<ManifestDigest> = all.iter().filter(|one| one.may_go()).map(|one| one.digest).collect();
        prop_assert!(plan.freed_bytes >= needed.min(freed(&all, &may)), "enough, if there is enough");
        // Whatever may go and stays is newer than all that went for need, or would free nothing.
        let last = plan.go.iter().map(|(digest, _)| by(digest)).filter(|one| !one.abandoned)
            .map(|one| (one.last_used, one.digest)).max();
        for one in all.iter().filter(|one| one.may_go() && !gone.contains(&one.digest)) {
            let mut with = gone.clone();
            with.insert(one.digest);
            let older = last.is_some_and(|last| (one.last_used, one.digest) < last);
            prop_assert!(!older || freed(&all, &with) == plan.freed_bytes, "oldest first");
            prop_assert!(!one.abandoned, "what was abandoned goes");
        }
        // No more than needed: without the last that went there would not be enough.
        if let Some((digest, _)) = plan.go.iter().rev().find(|(digest, _)| !by(digest).abandoned) {
            let mut without = gone.clone();
            without.remove(digest);
            prop_assert!(freed(&all, &without) < needed, "no more than needed");
        }
    }

    #[test]
    fn hosts_that_all_run_full_keep_enough(
        racks in prop::collection::vec(prop::option::of(0u8..4), 1..9),
        publishers in prop::collection::btree_set(0u8..9, 0..3),
        wanted in 1usize..4,
        n in any::<u8>(),
    ) {
        let holders: Vec<Holder> = (0u8..).zip(&racks)
            .map(|(host, rack)| Holder { host: KeyId([host; 32]), rack: rack.map(|rack| format!("r{rack}")) })
            .collect();
        let publishers: BTreeSet<KeyId> = publishers.into_iter().map(|host| KeyId([host; 32])).collect();
        let keep: Vec<&Holder> = holders.iter().filter(|own| {
            let others: Vec<Holder> = holders.iter().filter(|other| other.host != own.host).cloned().collect();
            let racks = others.iter().filter_map(|other| other.rack.clone()).collect();
            judge_copies(&digest(n), own, &others, &publishers, wanted, &racks) != Verdict::MayGo
        }).collect();
        prop_assert!(!keep.is_empty(), "never the last copy");
        let publisher_holds = holders.iter().any(|holder| publishers.contains(&holder.host));
        let rest = holders.iter().filter(|holder| !publishers.contains(&holder.host)).count();
        if !publisher_holds || (rest >= wanted && racks.iter().all(Option::is_none)) {
            prop_assert!(keep.len() >= wanted.min(rest), "{keep:?}");
        }
    }
}

#[test]
fn a_publisher_alone_in_its_rack_and_the_others_do_not_each_wait_for_the_other() {
    let holder = |n: u8, rack: &str| Holder { host: KeyId([n; 32]), rack: Some(rack.into()) };
    let holders = [holder(0, "1"), holder(1, "1"), holder(2, "2"), holder(3, "1")];
    let publishers = BTreeSet::from([KeyId([2; 32])]);
    let keepers = holders.iter().filter(|own| {
        let others: Vec<Holder> = holders.iter().filter(|other| other.host != own.host).cloned().collect();
        let racks = others.iter().filter_map(|other| other.rack.clone()).collect();
        judge_copies(&digest(0), own, &others, &publishers, 2, &racks) != Verdict::MayGo
    });
    // The others are in one rack of two: the original stays.
    assert_eq!(keepers.map(|own| own.host).collect::<Vec<_>>(), [KeyId([2; 32])]);
}

#[test]
fn a_publisher_keeps_its_original_until_others_in_other_racks_hold_it() {
    let holder = |n: u8, rack: &str| Holder { host: KeyId([n; 32]), rack: Some(rack.into()) };
    let (own, publishers) = (holder(1, "a"), BTreeSet::from([KeyId([1; 32])]));
    let racks = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    let judged = |others: &[Holder], elsewhere: &[&str]| {
        judge_copies(&digest(1), &own, others, &publishers, 2, &racks(elsewhere))
    };
    let keeps = |elsewhere| Verdict::Keeps(Copies { elsewhere, wanted: 2 });
    assert_eq!(judged(&[], &["a", "b"]), keeps(0));
    assert_eq!(judged(&[holder(2, "a")], &["a", "b"]), keeps(1));
    assert_eq!(judged(&[holder(2, "a"), holder(3, "a")], &["a", "b"]), keeps(2), "both in one rack of two");
    assert_eq!(judged(&[holder(2, "a"), holder(3, "a")], &["a"]), Verdict::MayGo, "there is one rack only");
    assert_eq!(judged(&[holder(2, "a"), holder(3, "b")], &["a", "b"]), Verdict::MayGo);
    // The copy that another host fetched may go while the publisher has it.
    let others = [own.clone()];
    assert_eq!(
        judge_copies(&digest(1), &holder(2, "a"), &others, &publishers, 2, &racks(&["a"])),
        Verdict::MayGo
    );
}
