//! The simple scheduler by hand-made cases.

use std::collections::BTreeSet;

use super::*;
use crate::wire::bao::all_groups;

const MS: u64 = 1_000_000;

pub(super) fn layer(n: u8) -> LayerId {
    LayerId([n; 32])
}

pub(super) fn peer(n: u8) -> KeyId {
    KeyId([n; 32])
}

fn want(n: u8, groups: u64) -> LayerWant {
    let size = groups * crate::wire::bao::GROUP_BYTES;
    LayerWant { layer: layer(n), size, missing: all_groups(size) }
}

pub(super) fn small() -> FetchConfig {
    FetchConfig { piece_bytes_min: 64 << 10, head_bytes_max: 0, ..FetchConfig::default() }
}

fn declare(fetch: &mut SimpleFetch, now: Time, who: u8, what: u8, have: Range<u64>) {
    let (peer, layer, have) = (peer(who), layer(what), GroupSet::from(have));
    fetch.handle(now, Input::Declared { peer, layer, have, connections: 1 });
}

fn drain(fetch: &mut SimpleFetch) -> (Vec<Poll>, Option<Time>) {
    let mut all = Vec::new();
    loop {
        match fetch.poll() {
            Poll::Idle { wake } => return (all, wake),
            other => all.push(other),
        }
    }
}

fn fetches(polls: &[Poll]) -> Vec<(SlotId, KeyId, Range<u64>)> {
    let pick = |poll: &Poll| match poll {
        Poll::Action(Action::Fetch { slot, from, range, .. }) => Some((*slot, *from, range.clone())),
        _ => None,
    };
    polls.iter().filter_map(pick).collect()
}

#[test]
fn nothing_missing_is_done_at_once() {
    let mut fetch =
        SimpleFetch::new(small(), 1, vec![LayerWant { missing: GroupSet::empty(), ..want(1, 9) }]);
    assert_eq!(drain(&mut fetch), (vec![Poll::Event(Event::Done)], None));
}

#[test]
fn a_lone_provider_is_asked_in_order_within_its_slots() {
    let mut fetch = SimpleFetch::new(small(), 1, vec![want(1, 1), want(2, 40)]);
    declare(&mut fetch, Time(0), 7, 1, 0..1);
    declare(&mut fetch, Time(0), 7, 2, 0..40);
    let (polls, wake) = drain(&mut fetch);
    let ranges: Vec<_> = fetches(&polls).into_iter().map(|(_, _, range)| range).collect();
    assert_eq!(ranges, [0..1, 0..4, 4..8, 8..12]);
    assert_eq!(wake, Some(Time(10_000 * MS)), "the first deadline");
    fetch.handle(Time(5 * MS), Input::Stored { slot: SlotId(0), bytes: 16_384 });
    let (polls, _) = drain(&mut fetch);
    assert_eq!(polls[0], Poll::Event(Event::LayerComplete(layer(1))));
    assert_eq!(fetches(&polls)[0].2, 12..16);
}

#[test]
fn providers_work_on_different_pieces() {
    let mut fetch = SimpleFetch::new(small(), 1, vec![want(1, 64)]);
    for who in 0..4 {
        declare(&mut fetch, Time(0), who, 1, 0..64);
    }
    let asked = fetches(&drain(&mut fetch).0);
    assert_eq!(asked.len(), 16);
    let distinct: BTreeSet<_> = asked.iter().map(|(_, _, range)| range.start).collect();
    assert_eq!(distinct.len(), 16, "no piece twice");
    for who in 0..4 {
        assert_eq!(asked.iter().filter(|(_, from, _)| *from == peer(who)).count(), 4);
    }
}

#[test]
fn a_liar_is_banned_its_fetches_end_and_what_was_proven_stays() {
    let mut fetch = SimpleFetch::new(small(), 1, vec![want(1, 16)]);
    declare(&mut fetch, Time(0), 1, 1, 0..16);
    let asked = fetches(&drain(&mut fetch).0);
    let (slot, _, range) = asked[0].clone();
    let stored = GroupSet::from(range.start..range.start + 3);
    fetch.handle(Time(MS), Input::Failed { slot, fault: Fault::Verify, stored });
    let (polls, _) = drain(&mut fetch);
    let until = Time(MS) + Duration::from_millis(small().ban_ms);
    assert_eq!(polls[0], Poll::Action(Action::Ban { peer: peer(1), layer: layer(1), until }));
    assert_eq!(polls.len(), 4, "the ban and three cancels: {polls:?}");
    for (slot, _, _) in &asked[1..] {
        let stored = GroupSet::empty();
        fetch.handle(Time(2 * MS), Input::Failed { slot: *slot, fault: Fault::Cancelled, stored });
    }
    let (polls, wake) = drain(&mut fetch);
    assert_eq!(polls, [Poll::Event(Event::Stalled { missing_bytes: 13 * 16_384 })]);
    assert_eq!(wake, Some(until));
    fetch.handle(Time(3 * MS), Input::PeerGone { peer: peer(1) });
    declare(&mut fetch, Time(3 * MS), 1, 1, 0..16);
    assert!(fetches(&drain(&mut fetch).0).is_empty(), "dialling again does not lift the ban");
    declare(&mut fetch, Time(3 * MS), 2, 1, 0..16);
    let again = fetches(&drain(&mut fetch).0);
    assert!(again.iter().all(|(_, from, _)| *from == peer(2)));
    assert!(again.iter().any(|(_, _, asked)| *asked == (range.start + 3..range.end)), "{again:?}");
}

#[test]
fn a_piece_that_is_held_up_near_the_end_is_asked_of_a_second_peer_and_the_first_result_wins() {
    let mut fetch = SimpleFetch::new(small(), 1, vec![want(1, 4)]);
    declare(&mut fetch, Time(0), 1, 1, 0..4);
    let first = fetches(&drain(&mut fetch).0);
    declare(&mut fetch, Time(0), 2, 1, 0..4);
    let (polls, wake) = drain(&mut fetch);
    assert!(polls.is_empty());
    let due = Time(small().hedge_ms_min * MS);
    assert_eq!(wake, Some(due));
    fetch.handle(due, Input::Tick);
    let second = fetches(&drain(&mut fetch).0);
    assert_eq!(second.len(), 1);
    assert_eq!(second[0].1, peer(2));
    fetch.handle(Time(due.0 + MS), Input::Stored { slot: second[0].0, bytes: 65_536 });
    let (polls, _) = drain(&mut fetch);
    assert_eq!(
        polls,
        [
            Poll::Event(Event::LayerComplete(layer(1))),
            Poll::Event(Event::Done),
            Poll::Action(Action::Cancel { slot: first[0].0 }),
        ]
    );
}

#[test]
fn a_miss_forgets_the_declaration_and_a_late_fetch_keeps_what_it_stored() {
    let mut fetch = SimpleFetch::new(small(), 1, vec![want(1, 4)]);
    declare(&mut fetch, Time(0), 1, 1, 0..4);
    let (slot, ..) = fetches(&drain(&mut fetch).0)[0].clone();
    fetch.handle(Time(MS), Input::Failed { slot, fault: Fault::Miss, stored: GroupSet::empty() });
    let stall = Poll::Event(Event::Stalled { missing_bytes: 65_536 });
    assert_eq!(drain(&mut fetch).0, [stall]);
    let later = Time(1_000 * MS);
    declare(&mut fetch, later, 1, 1, 0..4);
    let (polls, wake) = drain(&mut fetch);
    let (slot, ..) = fetches(&polls)[0].clone();
    let deadline = wake.expect("a deadline");
    fetch.handle(deadline, Input::Tick);
    assert_eq!(drain(&mut fetch).0, [Poll::Action(Action::Cancel { slot })]);
    fetch.handle(deadline, Input::Failed { slot, fault: Fault::Cancelled, stored: GroupSet::from(0..3) });
    assert_eq!(fetches(&drain(&mut fetch).0)[0].2, 3..4);
}

#[test]
fn a_disk_failure_stops_everything() {
    let mut fetch = SimpleFetch::new(small(), 1, vec![want(1, 64)]);
    declare(&mut fetch, Time(0), 1, 1, 0..64);
    let asked = fetches(&drain(&mut fetch).0);
    fetch.handle(Time(1), Input::Failed { slot: asked[0].0, fault: Fault::Local, stored: GroupSet::empty() });
    let (polls, wake) = drain(&mut fetch);
    assert_eq!(polls.len(), 4);
    assert_eq!(polls[3], Poll::Event(Event::Stopped { missing_bytes: 1 << 20 }));
    assert_eq!(wake, None);
    declare(&mut fetch, Time(2), 2, 1, 0..64);
    assert!(drain(&mut fetch).0.is_empty());
}

#[test]
pub(super) fn peers_beyond_the_limit_are_ignored_and_bytes_in_flight_are_bounded() {
    let config = FetchConfig { peers_max: 2, in_flight_bytes_max: 200 << 10, ..small() };
    let mut fetch = SimpleFetch::new(config, 1, vec![want(1, 64)]);
    for who in 1..=3 {
        declare(&mut fetch, Time(0), who, 1, 0..64);
    }
    let asked = fetches(&drain(&mut fetch).0);
    assert_eq!(asked.len(), 3, "three pieces of 64 KiB");
    assert_eq!(fetch.bytes_in_flight(), 192 << 10);
    assert!(asked.iter().all(|(_, from, _)| *from != peer(3)));
}
