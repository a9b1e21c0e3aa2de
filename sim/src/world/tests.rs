//! Whole runs, small enough for the dev profile.

use super::*;
use crate::draw::draw;
use crate::scenario::Scenario;

/// Worlds that once violated an invariant: a scenario and a seed per line, what went wrong after it.
const CORPUS: &str = include_str!("../../corpus.txt");

fn small(scenario: Scenario, hosts: usize, seed: u64) -> Options {
    let mut options = Options::new(hosts, 64 << 20, seed);
    options.limits.piece_bytes_min = 1 << 20;
    options.up_bytes_per_s = 20_000_000;
    options.down_bytes_per_s = 20_000_000;
    options.shards = 3;
    scenario.apply(&mut options);
    options.pace();
    options
}

#[track_caller]
fn clean(options: Options) -> Report {
    let report = World::new(options).run();
    assert_eq!(report.violations, [], "{}\n{report}", report.options);
    assert_eq!(report.times.unfinished, 0);
    report
}

#[test]
fn the_same_seed_gives_the_same_run_and_another_seed_another() {
    let hostile = |seed| {
        let mut options = small(Scenario::FlashCrowd, 12, seed);
        options.faults.cut_permille = 50;
        options.faults.crashes = 4;
        World::new(options).run()
    };
    let (one, again, other) = (hostile(1), hostile(1), hostile(2));
    assert_eq!(one, again);
    assert_ne!(one.trace, other.trace);
    assert!(one.counts.lost > 0 && one.counts.crashes > 0, "the faults happened: {:?}", one.counts);
}

#[test]
fn sixty_four_hosts_finish_without_waste() {
    let mut options = small(Scenario::FlashCrowd, 64, 3);
    options.limits.piece_bytes_min = 256 << 10;
    options.pace();
    let report = clean(options);
    assert!(report.wire_over_needed() < 1.02, "{report}");
    assert!(report.last_over_bound().is_some_and(|ratio| (1.0..2.0).contains(&ratio)), "{report}");
    assert!(report.seed_copies() < 1.3, "hosts serve while they fetch: {report}");
    let last = report.curve.points.last().expect("points");
    assert_eq!((last.1, last.2), (64, report.times.lacked_bytes), "the curve ends where all have all");
}

#[test]
fn little_crosses_racks() {
    let mut options = small(Scenario::FlashCrowd, 60, 4);
    options.racks = 4;
    options.oversubscription_percent = 400;
    let report = clean(options);
    assert!(report.crossing_share() < 0.3, "three racks of four get their copy from outside: {report}");
}

#[test]
fn a_slow_rack_holds_up_itself_alone() {
    let report = clean(small(Scenario::SlowRack, 40, 5));
    assert!(report.counts.crossing_bytes > 0, "{report}");
}

#[test]
fn a_poisoned_peer_is_banned_and_everyone_else_finishes() {
    let mut options = small(Scenario::PoisonedPeer, 16, 4);
    options.hostile.liars = 2;
    let report = clean(options);
    assert!(report.counts.refuted > 0 && report.counts.bans > 0, "{report}");
}

#[test]
fn other_hostile_hosts_are_banned_too() {
    let mut options = small(Scenario::FlashCrowd, 16, 4);
    options.hostile.false_announcers = 1;
    options.hostile.garblers = 1;
    options.hostile.greedy = 1;
    let report = clean(options);
    assert!(report.counts.missed > 0 && report.counts.bans > 0 && report.counts.harm > 0, "{report}");
}

#[test]
fn seeds_may_die_once_everything_is_out_and_earlier_if_they_return() {
    let for_good = clean(small(Scenario::SeedDies, 16, 6));
    assert!(for_good.counts.crashes > 0, "{for_good}");
    let returning = clean(small(Scenario::SeedDies, 16, 701));
    assert!(returning.counts.crashes > 0, "{returning}");
}

#[test]
fn late_hosts_need_little_more_than_their_own_download() {
    let report = clean(small(Scenario::LateJoiners, 24, 7));
    assert!(report.times.early_hosts < 24 && report.times.last_ns > report.bound_ns * 5 / 4, "{report}");
}

#[test]
fn a_rolling_deploy_moves_only_what_is_new() {
    let report = clean(small(Scenario::RollingDeploy, 16, 8));
    assert!(report.times.lacked_bytes < 16 * report.options.total_bytes * 4 / 5, "{report}");
    assert!(report.wire_over_needed() < 1.02, "{report}");
}

#[test]
fn several_manifests_get_fair_shares() {
    let report = clean(small(Scenario::ManyModels, 16, 9));
    assert!(report.options.models > 1 && report.options.is_calm());
}

#[test]
fn churn_and_slow_hosts_hold_nobody_else_up() {
    let mut options = small(Scenario::FlashCrowd, 40, 10);
    options.churn_permille = 200;
    options.slow_permille = 50;
    let report = clean(options);
    assert!(report.counts.left > 0 && report.times.early_hosts < 40, "{report}");
}

#[test]
fn worlds_that_once_went_wrong_go_well() {
    for line in CORPUS.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let mut words = line.split_whitespace();
        let scenario = words.next().expect("a scenario");
        let scenario =
            Scenario::ALL.into_iter().find(|one| one.to_string() == scenario).expect("a known scenario");
        let seed = words.next().and_then(|seed| seed.parse().ok()).expect("a seed");
        let report = World::new(draw(scenario, seed)).run();
        assert_eq!(report.violations, [], "replay {seed} --scenario {scenario}: {line}");
    }
}

#[test]
fn a_small_sweep_of_hostile_worlds() {
    let mut seen = Counts::default();
    // Silent hosts come with the later ones.
    for seed in (1..=10).chain(1_000..=1_003) {
        for scenario in Scenario::ALL {
            let report = World::new(draw(scenario, seed)).run();
            assert_eq!(report.violations, [], "replay {seed} --scenario {scenario}");
            seen.lost += report.counts.lost;
            seen.crashes += report.counts.crashes;
            seen.bans += report.counts.bans;
            seen.partitions += report.counts.partitions;
        }
    }
    assert!(seen.lost > 100 && seen.crashes > 20 && seen.bans > 20 && seen.partitions > 5, "{seen:?}");
}
