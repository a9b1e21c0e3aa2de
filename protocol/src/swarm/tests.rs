//! The swarm's rules, one by one.

use super::model::{Kind, Model, key, layer};
use super::*;
use crate::wire::bao::all_groups;

pub(super) fn small() -> SwarmConfig {
    SwarmConfig { piece_bytes_min: 64 << 10, piece_count_max: 100, ..SwarmConfig::default() }
}

/// One seed with all of `layers` and so many fetchers, all introduced.
fn crowd(seed: u64, fetchers: usize, layers: &[u64]) -> Model {
    let mut model = Model::new(seed, small(), layers);
    let all: Vec<u8> = (0..u8::try_from(layers.len()).expect("few")).collect();
    model.work(1, &all);
    model.host(Kind::Honest, None, &all);
    for _ in 0..fetchers {
        model.host(Kind::Honest, None, &[]);
    }
    for host in 0..=fetchers {
        model.open(host, 1);
    }
    model.introduce(1);
    model
}

#[test]
fn one_host_gets_all_from_another_in_order_and_once() {
    let mut model = crowd(1, 1, &[10, 3_000, 5 << 20]);
    assert!(model.run(600, |m| m.all_complete(1)));
    model.check_disks();
    assert_eq!(model.hosts[1].received_bytes, 10 + 3_000 + (5 << 20));
    let events = &model.hosts[1].events;
    assert_eq!(events[0], Event::LayerComplete { work: WorkId(1), layer: layer(0) });
    assert_eq!(events[events.len() - 1], Event::Complete { work: WorkId(1) });
    assert_eq!(events.len(), 4);
}

#[test]
fn the_seed_sends_each_piece_about_once() {
    let bytes = 16 << 20;
    let mut model = crowd(2, 12, &[bytes]);
    assert!(model.run(600, |m| m.all_complete(1)));
    model.check_disks();
    for host in &model.hosts[1..] {
        assert_eq!(host.received_bytes, bytes, "nothing twice");
    }
    let copies = model.hosts[0].sent_bytes as f64 / bytes as f64;
    assert!(copies < 1.6, "the seed sent {copies} copies");
}

#[test]
fn one_copy_enters_a_rack() {
    let bytes = 8 << 20;
    let mut model = Model::new(3, small(), &[bytes]);
    model.work(1, &[0]);
    model.host(Kind::Honest, Some(0), &[0]);
    for host in 0..12 {
        model.host(Kind::Honest, Some(host % 2), &[]);
    }
    for host in 0..13 {
        model.open(host, 1);
    }
    model.introduce(1);
    assert!(model.run(600, |m| m.all_complete(1)));
    model.check_disks();
    assert!(model.hosts.iter().all(|host| host.received_bytes <= bytes));
}

#[test]
fn that_nobody_has_anything_is_told_again_when_somebody_had_something_in_between() {
    // A loader that waits has pieces asked for by name as soon as somebody has them.
    for urgent in [false, true] {
        told_again(urgent);
    }
}

fn told_again(urgent: bool) {
    let size = 1 << 20;
    let mut swarm = Swarm::new(small(), 1, key(0), None);
    let mut now = Time(0);
    // How often it says so within five seconds.
    let mut stalls = |swarm: &mut Swarm, input: Input| {
        swarm.handle(now, input);
        let (end, mut told) = (now + Duration::from_secs(5), 0);
        loop {
            match swarm.poll() {
                Poll::Event(Event::Stalled { .. }) => told += 1,
                Poll::Idle { wake: Some(wake) } if wake <= end => {
                    now = wake;
                    swarm.handle(now, Input::Tick);
                }
                Poll::Idle { .. } => return told,
                _ => {}
            }
        }
    };
    let work = WorkId(1);
    let layers = vec![LayerWant { layer: layer(0), size, missing: all_groups(size) }];
    assert_eq!(stalls(&mut swarm, Input::Open { work, layers }), 1);
    assert_eq!(stalls(&mut swarm, Input::Tick), 0, "once");
    if urgent {
        let groups = vec![(layer(0), GroupSet::from(0..1))];
        assert_eq!(stalls(&mut swarm, Input::Urgent { work, groups }), 0);
    }
    let (link, peer) = (LinkId(7), key(1));
    assert_eq!(stalls(&mut swarm, Input::LinkUp { link, work, peer, rack: None, ours: true }), 0);
    let piece_bytes = swarm.space(work).expect("open").piece_bytes();
    let begin = Frame::Begin { piece_bytes, rack: None, releasing: false };
    assert_eq!(stalls(&mut swarm, Input::Frame { link, frame: begin }), 0);
    let all = Frame::Bitfield { layers: vec![(0, all_groups(size))] };
    assert_eq!(stalls(&mut swarm, Input::Frame { link, frame: all }), 0, "it has all of it");
    assert_eq!(stalls(&mut swarm, Input::LinkDown { link }), 1, "and is gone");
}

#[test]
fn urgent_pieces_come_first() {
    let mut model = crowd(4, 1, &[16 << 20]);
    let groups = vec![(layer(0), GroupSet::from(1_000..1_001))];
    model.tell(1, Input::Urgent { work: WorkId(1), groups });
    let piece = 1_000 / 16;
    let has = |m: &Model, piece| m.hosts[1].swarm.held(WorkId(1)).is_some_and(|held| held.contains(piece));
    assert!(model.run(600, |m| has(m, piece)));
    let held = model.hosts[1].swarm.held(WorkId(1)).expect("open").len();
    assert!(held < 40, "{held} of 256 pieces came before");
}

#[test]
fn a_full_disk_pauses_and_room_resumes() {
    let mut model = crowd(5, 1, &[4 << 20]);
    assert!(model.run(600, |m| m.hosts[1].received_bytes > 1 << 20));
    model.fail(1, Fault::NoSpace);
    assert!(model.hosts[1].events.iter().any(|event| matches!(event, Event::Paused { .. })));
    assert!(!model.run(60, |m| m.all_complete(1)), "nothing is asked for");
    model.tell(1, Input::Room);
    assert!(model.run(600, |m| m.all_complete(1)));
}

#[test]
fn a_failed_disk_stops_everything() {
    let mut model = crowd(6, 1, &[4 << 20]);
    assert!(model.run(600, |m| m.hosts[1].received_bytes > 1 << 20));
    model.fail(1, Fault::Local);
    assert!(matches!(model.hosts[1].events.last(), Some(Event::Stopped { .. })));
    assert!(!model.run(600, |m| m.all_complete(1)));
}

#[test]
fn layers_shared_by_two_manifests_come_once() {
    let mut model = Model::new(7, small(), &[2 << 20, 3 << 20, 1 << 20]);
    model.work(1, &[0, 1]);
    model.work(2, &[1, 2]);
    model.host(Kind::Honest, None, &[0, 1, 2]);
    model.host(Kind::Honest, None, &[]);
    for (host, work) in [(0, 1), (0, 2), (1, 1), (1, 2)] {
        model.open(host, work);
    }
    model.introduce(1);
    model.introduce(2);
    assert!(model.run(600, |m| m.all_complete(1) && m.all_complete(2)));
    model.check_disks();
    assert!(model.hosts[1].received_bytes < (6 << 20) + (512 << 10), "{}", model.hosts[1].received_bytes);
}

#[test]
fn what_is_lost_here_is_fetched_again_and_no_longer_offered() {
    let mut model = crowd(8, 2, &[4 << 20]);
    assert!(model.run(600, |m| m.all_complete(1)));
    model.rot(1, layer(0), GroupSet::from(3..9));
    assert!(!model.all_complete(1));
    assert!(model.run(600, |m| m.all_complete(1)));
}

#[test]
fn upload_and_download_rates_hold() {
    let rate = Some(1 << 20);
    for (up, up_per_peer, down) in [(rate, None, None), (None, rate, None), (None, None, rate)] {
        let mut model = Model::new(9, small(), &[8 << 20]);
        model.config.upload_bytes_per_s = up;
        model.config.upload_per_peer_bytes_per_s = up_per_peer;
        model.work(1, &[0]);
        model.host(Kind::Honest, None, &[0]);
        (model.config.upload_bytes_per_s, model.config.upload_per_peer_bytes_per_s) = (None, None);
        model.config.download_bytes_per_s = down;
        model.host(Kind::Honest, None, &[]);
        model.open(0, 1);
        model.open(1, 1);
        model.introduce(1);
        assert!(model.run(60, |m| m.all_complete(1)));
        let seconds = model.now.0 as f64 / 1e9;
        assert!((6.5..10.0).contains(&seconds), "8 MiB at 1 MiB/s took {seconds} s");
    }
}

#[test]
fn floods_and_nonsense_end_in_a_ban() {
    for (frame, times, charge) in [
        (Frame::Grant { piece: None }, 20_000, Charge::Flood),
        (Frame::News { held: vec![5_000], load: 0 }, 1, Charge::Protocol),
        (Frame::Begin { piece_bytes: 1 << 20, rack: None, releasing: false }, 1, Charge::Protocol),
        (Frame::Bitfield { layers: vec![(7, GroupSet::from(0..1))] }, 1, Charge::Protocol),
    ] {
        let mut swarm = Swarm::new(small(), 1, key(0), None);
        let want = LayerWant { layer: layer(0), size: 1 << 20, missing: all_groups(1 << 20) };
        swarm.handle(Time(1), Input::Open { work: WorkId(1), layers: vec![want] });
        let up = Input::LinkUp { link: LinkId(1), work: WorkId(1), peer: key(1), rack: None, ours: false };
        swarm.handle(Time(1), up);
        let begin = Frame::Begin { piece_bytes: 64 << 10, rack: None, releasing: false };
        swarm.handle(Time(1), Input::Frame { link: LinkId(1), frame: begin });
        let mut bans = Vec::new();
        for _ in 0..times {
            swarm.handle(Time(2), Input::Frame { link: LinkId(1), frame: frame.clone() });
            loop {
                match swarm.poll() {
                    Poll::Action(Action::Ban { charge, .. }) => bans.push(charge),
                    Poll::Idle { .. } => break,
                    _ => {}
                }
            }
        }
        assert_eq!(bans, [charge], "{frame:?}");
        assert_eq!(swarm.links(WorkId(1)), []);
    }
}

#[test]
fn near_the_end_a_piece_that_is_held_up_is_fetched_twice_and_the_slower_one_is_cancelled() {
    let mut swarm = Swarm::new(small(), 1, key(0), None);
    let want = LayerWant { layer: layer(0), size: 128 << 10, missing: all_groups(128 << 10) };
    swarm.handle(Time(1), Input::Open { work: WorkId(1), layers: vec![want] });
    for n in [1, 2] {
        let link = LinkId(n);
        let peer = key(usize::try_from(n).expect("small"));
        swarm.handle(Time(1), Input::LinkUp { link, work: WorkId(1), peer, rack: None, ours: false });
        let begin = Frame::Begin { piece_bytes: 64 << 10, rack: None, releasing: false };
        swarm.handle(Time(1), Input::Frame { link, frame: begin });
        let all = Frame::Bitfield { layers: vec![(0, all_groups(128 << 10))] };
        swarm.handle(Time(1), Input::Frame { link, frame: all });
    }
    let seconds = |n: u64| Time(n * 1_000_000_000);
    let mut granted = |at: Time, link: u32, stored: Option<(SlotId, u64)>| {
        if let Some((slot, bytes)) = stored {
            swarm.handle(at, Input::Stored { slot, bytes });
        }
        swarm.handle(at, Input::Frame { link: LinkId(link), frame: Frame::Grant { piece: None } });
        let (mut fetches, mut cancelled) = (Vec::new(), Vec::new());
        loop {
            match swarm.poll() {
                Poll::Action(Action::Fetch { slot, from, parts, .. }) => fetches.push((slot, from, parts)),
                Poll::Action(Action::Cancel { slot }) => cancelled.push(slot),
                Poll::Idle { .. } => return (fetches, cancelled),
                _ => {}
            }
        }
    };
    let (held_up, _) = granted(Time(2), 1, None);
    let (quick, _) = granted(Time(2), 2, None);
    assert_eq!((held_up.len(), quick.len()), (1, 1));
    // The second is done at once; the first sends nothing.
    let (early, _) = granted(Time(50_000_000), 2, Some((quick[0].0, 64 << 10)));
    assert_eq!(early, [], "it may be on its way");
    let (twice, _) = granted(seconds(5), 2, None);
    assert_eq!(twice.len(), 1);
    assert_eq!((twice[0].1, &twice[0].2), (key(2), &held_up[0].2), "the same piece, of the other host");
    let (_, cancelled) = granted(Time(5_050_000_000), 2, Some((twice[0].0, 64 << 10)));
    assert_eq!(cancelled, [held_up[0].0]);
}

#[test]
fn many_requests_of_one_peer_are_refused_beyond_the_limit() {
    let mut swarm = Swarm::new(small(), 1, key(0), None);
    let want = LayerWant { layer: layer(0), size: 1 << 20, missing: GroupSet::empty() };
    swarm.handle(Time(1), Input::Open { work: WorkId(1), layers: vec![want] });
    let (mut served, mut refused) = (0, 0);
    for n in 0..5_000 {
        let range = 0..u64::MAX;
        let asked = Input::Asked { request: RequestId(n), peer: key(1), layer: layer(0), range };
        swarm.handle(Time(1), asked);
        loop {
            match swarm.poll() {
                Poll::Action(Action::Serve { .. }) => served += 1,
                Poll::Action(Action::Refuse { .. }) => refused += 1,
                Poll::Idle { .. } => break,
                _ => {}
            }
        }
    }
    assert_eq!((served, refused), (2, 5_000 - 64));
}

#[test]
fn rates_are_charged_for_what_is_sent_and_not_for_what_was_asked() {
    let config = SwarmConfig { upload_bytes_per_s: Some(1 << 20), ..small() };
    let mut swarm = Swarm::new(config, 1, key(0), None);
    let want = LayerWant { layer: layer(0), size: 64 << 20, missing: GroupSet::empty() };
    swarm.handle(Time(1), Input::Open { work: WorkId(1), layers: vec![want] });
    let mut served = |at: u64, layer: LayerId, bytes: u64, complete: bool| {
        let request = RequestId(at);
        let asked = Input::Asked { request, peer: key(1), layer, range: 0..u64::MAX };
        swarm.handle(Time(at), asked);
        let mut is_served = false;
        while let Poll::Action(action) = swarm.poll() {
            is_served |= action == Action::Serve { request };
        }
        if is_served {
            swarm.handle(Time(at), Input::Served { request, bytes, complete });
            while let Poll::Action(_) = swarm.poll() {}
        }
        is_served
    };
    // A layer that nobody has: nothing is sent, so nobody waits for it.
    for n in 0..20 {
        assert!(served(10 + n, layer(9), 0, false), "{n}");
    }
    // All of a layer but for its end, which was left open: at this rate the next one waits for a minute.
    assert!(served(100, layer(0), 63 << 20, false));
    assert!(!served(30_000_000_000, layer(0), 1, true));
}

/// A host that lacks a layer of eight pieces, with one neighbour that has begun and has nothing.
fn with_a_neighbour() -> Swarm {
    let mut swarm = Swarm::new(small(), 1, key(0), None);
    let want = LayerWant { layer: layer(0), size: 512 << 10, missing: all_groups(512 << 10) };
    swarm.handle(Time(1), Input::Open { work: WorkId(1), layers: vec![want] });
    let up = Input::LinkUp { link: LinkId(1), work: WorkId(1), peer: key(1), rack: None, ours: false };
    swarm.handle(Time(1), up);
    let begin = Frame::Begin { piece_bytes: 64 << 10, rack: None, releasing: false };
    swarm.handle(Time(1), Input::Frame { link: LinkId(1), frame: begin });
    frames(&mut swarm);
    swarm
}

/// Frames that it sends now, those to everyone included.
fn frames(swarm: &mut Swarm) -> Vec<Frame> {
    let mut sent = Vec::new();
    loop {
        match swarm.poll() {
            Poll::Action(Action::Send { frame, .. } | Action::Broadcast { frame, .. }) => sent.push(frame),
            Poll::Idle { .. } => return sent,
            _ => {}
        }
    }
}

#[test]
fn a_promise_brings_the_news_and_nobody_is_told_twice() {
    let mut swarm = with_a_neighbour();
    // 64 KiB are four groups.
    swarm.handle(Time(2), Input::Grown { layer: layer(0), groups: GroupSet::from(4..8) });
    let news = |held| Frame::News { held, load: 0 };
    assert_eq!(frames(&mut swarm), [news(vec![1]), Frame::Grant { piece: None }]);
    let decline = Frame::Decline { piece: None, load: 0 };
    swarm.handle(Time(3), Input::Frame { link: LinkId(1), frame: decline });
    swarm.handle(Time(4), Input::Grown { layer: layer(0), groups: GroupSet::from(0..4) });
    assert_eq!(frames(&mut swarm), [], "it declined just now, and its news is gathered");
    // Far beyond all pauses: what it knows already goes with the rest, once.
    swarm.handle(Time(400_000_000), Input::Tick);
    let grant = Frame::Grant { piece: None };
    assert_eq!(frames(&mut swarm), [news(vec![0, 1]), grant.clone(), grant], "a promise for each");
    swarm.handle(Time(800_000_000), Input::Tick);
    assert_eq!(frames(&mut swarm), []);
}

#[test]
fn who_fetches_as_much_as_is_here_is_offered_nothing() {
    let mut swarm = with_a_neighbour();
    let tell = |swarm: &mut Swarm, at, load| {
        swarm.handle(Time(at), Input::Frame { link: LinkId(1), frame: Frame::News { held: vec![7], load } });
    };
    tell(&mut swarm, 2, 4);
    for (at, groups) in [(3, 0..4), (4, 4..8), (4, 8..12)] {
        swarm.handle(Time(at), Input::Grown { layer: layer(0), groups: GroupSet::from(groups) });
        assert_eq!(frames(&mut swarm), [], "most of its four fetches may be these pieces");
    }
    swarm.handle(Time(5), Input::Grown { layer: layer(0), groups: GroupSet::from(12..16) });
    let news = Frame::News { held: vec![0, 1, 2, 3], load: 0 };
    assert_eq!(frames(&mut swarm)[..2], [news, Frame::Grant { piece: None }], "a fourth is new to it");
}
