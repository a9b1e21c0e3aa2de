//! Whole runs, small enough for the dev profile.

use super::*;
use crate::scenario::Scenario;

fn small(hosts: usize, seed: u64) -> Options {
    let mut options = Options::flash_crowd(hosts, 32 << 20, seed);
    options.piece_bytes_min = 256 << 10;
    options.head_bytes_max = 256 << 10;
    options
}

#[test]
fn the_same_seed_gives_the_same_run_and_another_seed_another() {
    let hostile = |seed| {
        let mut options = small(12, seed);
        options.loss_permille = 50;
        options.crashes = 4;
        World::new(options).run()
    };
    let (one, again, other) = (hostile(1), hostile(1), hostile(2));
    assert_eq!(one, again);
    assert_ne!(one.trace, other.trace);
    assert!(one.counts.lost > 0 && one.counts.crashes > 0, "the faults happened: {:?}", one.counts);
}

#[test]
fn sixty_four_hosts_finish_without_waste() {
    let report = World::new(small(64, 3)).run();
    assert_eq!(report.violations, []);
    assert_eq!(report.finished_ns.len(), 64);
    assert!(report.wire_over_needed() < 1.05, "{report}");
    assert!(report.last_over_bound().is_some_and(|ratio| (1.0..4.0).contains(&ratio)), "{report}");
    assert!(report.seed_copies() < 8.0, "hosts serve while they fetch: {report}");
}

#[test]
fn a_poisoned_peer_is_banned_and_everyone_else_finishes() {
    let mut options = small(16, 4);
    options.liars = 2;
    Scenario::PoisonedPeer.apply(&mut options);
    let report = World::new(options).run();
    assert_eq!(report.violations, []);
    assert_eq!(report.finished_ns.len(), 16);
    assert!(report.counts.refuted > 0 && report.counts.bans > 0, "{report}");
}

#[test]
fn fifty_seeds_of_small_hostile_worlds() {
    let mut seen = Counts::default();
    for seed in 1..=50 {
        for scenario in Scenario::ALL {
            let report = World::new(Options::draw(scenario, seed)).run();
            assert_eq!(report.violations, [], "replay {seed} --scenario {scenario}");
            seen.lost += report.counts.lost;
            seen.crashes += report.counts.crashes;
            seen.bans += report.counts.bans;
        }
    }
    assert!(seen.lost > 100 && seen.crashes > 100 && seen.bans > 100, "{seen:?}");
}
