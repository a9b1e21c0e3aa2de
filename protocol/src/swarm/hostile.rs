//! Whoever lies, boasts, floods or falls silent stops no honest host: one by one and under drawn conditions.

use std::ops::Range;

use proptest::prelude::*;

use super::model::{Kind, Model, key, layer};
use super::tests::small;
use super::*;
use crate::wire::bao::all_groups;

#[test]
fn a_rack_mate_that_declares_all_and_grants_nothing_stops_nobody() {
    for seed in 0..4 {
        let mut model = Model::new(seed, small(), &[3_000_000]);
        model.work(1, &[0]);
        let silent = model.host(Kind::Silent, Some(0), &[0]);
        let fast = model.host(Kind::Honest, Some(1), &[0]);
        let waiting = model.host(Kind::Honest, Some(0), &[]);
        for host in [silent, fast, waiting] {
            model.open(host, 1);
        }
        model.introduce(1);
        // At a piece for each rescue it would take minutes.
        assert!(model.run(40, |m| m.all_complete(1)), "{:?}", model.hosts[waiting].swarm.status(WorkId(1)));
    }
}

#[test]
fn one_that_grants_nothing_stops_nobody_wherever_it_stands() {
    // Beside a first holder that releases the same piece, and between the racks.
    for (silent, racks) in [(Some(0), &[1][..]), (None, &[1, 1, 1]), (Some(1), &[1, 1, 0])] {
        for (seed, size) in (0..8).zip([0, 0, 70_000, 3_000_000].into_iter().cycle()) {
            let mut model = Model::new(seed, small(), &[size]);
            model.work(1, &[0]);
            model.host(Kind::Honest, Some(0), &[0]);
            model.host(Kind::Silent, silent, &[0]);
            for rack in racks {
                model.host(Kind::Honest, Some(*rack), &[]);
            }
            (0..model.hosts.len()).for_each(|host| model.open(host, 1));
            model.introduce(1);
            assert!(model.run(120, |m| m.all_complete(1)), "{silent:?} {racks:?} {seed} {size}");
        }
    }
}

#[test]
fn that_only_a_silent_host_has_it_is_told() {
    for racks in [[None, None], [Some(0), Some(1)], [Some(0), Some(0)]] {
        let mut model = Model::new(1, small(), &[1 << 20]);
        model.work(1, &[0]);
        let silent = model.host(Kind::Silent, racks[0], &[0]);
        let waiting = model.host(Kind::Honest, racks[1], &[]);
        model.open(silent, 1);
        model.open(waiting, 1);
        model.introduce(1);
        assert!(!model.run(120, |m| m.all_complete(1)));
        let told =
            |wanted: fn(&Event) -> bool| model.hosts[waiting].events.iter().filter(|e| wanted(e)).count();
        assert_eq!(told(|event| matches!(event, Event::Silent { .. })), 1, "{racks:?}: who is silent");
        // Once before they were linked, and once since.
        let stalls = told(|event| matches!(event, Event::Stalled { .. }));
        assert!((1..=2).contains(&stalls), "{racks:?}: told {stalls} times");
        let status = model.hosts[waiting].swarm.links(WorkId(1));
        assert!(status.iter().all(|link| link.silent), "{racks:?}: {status:?}");
    }
}

#[test]
fn more_ranges_than_anybody_declares_are_not_remembered() {
    let config = SwarmConfig { declared_max: 100, ..small() };
    let mut swarm = Swarm::new(config, 1, key(0), None);
    let (work, size) = (WorkId(1), 64 << 20);
    let want = LayerWant { layer: layer(0), size, missing: all_groups(size) };
    swarm.handle(Time(1), Input::Open { work, layers: vec![want] });
    let up = Input::LinkUp { link: LinkId(1), work, peer: key(1), rack: None, ours: false };
    swarm.handle(Time(1), up);
    let piece_bytes = swarm.space(work).expect("open").piece_bytes();
    let begin = Frame::Begin { piece_bytes, rack: None, releasing: false };
    swarm.handle(Time(1), Input::Frame { link: LinkId(1), frame: begin });
    let every_other = |groups: Range<u64>| {
        let boundaries: Vec<u64> = groups.filter(|group| group % 2 == 0).flat_map(|g| [g, g + 1]).collect();
        GroupSet::new(boundaries.into()).expect("in order")
    };
    let mut remembered = |groups: GroupSet| {
        let frame = Frame::Bitfield { layers: vec![(0, groups)] };
        swarm.handle(Time(1), Input::Frame { link: LinkId(1), frame });
        swarm.works.get(&work).expect("open").links()[0]
            .partial()
            .values()
            .flatten()
            .map(|have| have.boundaries().len())
            .sum::<usize>()
    };
    assert_eq!(remembered(every_other(0..80)), 80);
    assert_eq!(remembered(every_other(80..2_000)), 80, "beyond what it may declare");
    assert_eq!(remembered(GroupSet::from(2_048..2_112)), 80);
    assert!(swarm.links(work)[0].have > 0, "what is whole counts all the same");
}

fn kinds() -> impl Strategy<Value = Kind> {
    prop_oneof![
        6 => Just(Kind::Honest),
        1 => (1..4u32).prop_map(Kind::Liar),
        1 => Just(Kind::Boaster),
        1 => Just(Kind::Mute),
        1 => Just(Kind::Silent),
    ]
}

/// Whatever others do, honest hosts end with everything, ask for nothing they have, and ban no honest host.
fn all_finish(seed: u64, sizes: &[u64], others: &[(Kind, Option<u64>)], loss_percent: u32, racks: bool) {
    let mut model = Model::new(seed, small(), sizes);
    model.loss_percent = loss_percent;
    let all: Vec<u8> = (0..u8::try_from(sizes.len()).expect("few")).collect();
    model.work(1, &all);
    model.host(Kind::Honest, racks.then_some(0), &all);
    for (kind, rack) in others {
        let has: &[u8] = if matches!(kind, Kind::Liar(_) | Kind::Mute) { &all } else { &[] };
        model.host(*kind, rack.filter(|_| racks), has);
    }
    for host in 0..model.hosts.len() {
        model.open(host, 1);
    }
    model.introduce(1);
    let done = model.run(3_600, |m| m.all_complete(1));
    let status: Vec<_> = model.hosts.iter().map(|host| host.swarm.status(WorkId(1))).collect();
    assert!(done, "not all finished: {status:?}");
    model.check_disks();
}

#[test]
fn one_piece_that_was_lost_makes_nobody_worse_than_who_never_answers() {
    let others =
        [(Kind::Silent, Some(0)), (Kind::Honest, Some(0)), (Kind::Liar(1), None), (Kind::Honest, Some(1))];
    all_finish(11_252_232_296_294_605_854, &[720_897, 0, 0], &others, 12, true);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn honest_hosts_finish(
        seed in any::<u64>(),
        sizes in prop::collection::vec(prop_oneof![0..40_000u64, 100_000..3_000_000u64], 1..5),
        others in prop::collection::vec((kinds(), prop::option::of(0..2u64)), 1..8),
        loss_percent in 0..20u32,
        racks in any::<bool>(),
    ) {
        all_finish(seed, &sizes, &others, loss_percent, racks);
    }
}
