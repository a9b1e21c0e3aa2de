//! Whole runs of the statement world, small enough for the dev profile.

use super::*;

/// Seeds that once failed, each with what it found.
const CORPUS: &[(u64, &str)] = &[
    (35, "one batch brought more junk than a ledger had room for"),
    (139, "junk kept out a root that its admins had signed and a newcomer had written"),
    (
        316,
        "a ledger that was read again refused what it had held: the root that made room came later in the order",
    ),
];

#[test]
fn the_same_seed_gives_the_same_run_and_another_seed_another() {
    let (one, again, other) =
        (run(FoldOptions::draw(1)), run(FoldOptions::draw(1)), run(FoldOptions::draw(2)));
    assert_eq!(one, again);
    assert_ne!(one.trace, other.trace);
}

#[test]
fn seeds_that_once_failed() {
    for (seed, found) in CORPUS {
        let report = run(FoldOptions::draw(*seed));
        assert_eq!(report.violations, [], "{found}: {}\n{report}", report.options);
    }
}

#[test]
fn dozens_of_seeds_of_small_hostile_worlds() {
    let mut seen = FoldCounts::default();
    // In 1118 two admins rotate to different roots of one version, with different witnesses; in 1302 a stolen key of a
    // witness carries two heads in two epochs.
    for seed in (1..=16).chain([1_118, 1_302]) {
        let report = run(FoldOptions::draw(seed));
        assert_eq!(report.violations, [], "{}\n{report}", report.options);
        let c = &report.counts;
        seen.late += c.late;
        seen.forgeries += c.forgeries;
        seen.lies += c.lies;
        seen.over_limit += c.over_limit;
        seen.joins += c.joins;
        seen.partitions += c.partitions;
        seen.crashes += c.crashes;
    }
    let least =
        [seen.late, seen.forgeries, seen.lies, seen.over_limit, seen.joins, seen.partitions, seen.crashes];
    assert!(least.iter().all(|n| *n > 5), "every fault happens: {seen:?}");
}

#[test]
fn channels_under_partitions_and_hostile_keys() {
    let mut seen = FoldCounts::default();
    let drawn = (100..).map(FoldOptions::draw).filter(|options| options.witnesses > 0);
    for options in drawn.take(12) {
        let report = run(options);
        assert_eq!(report.violations, [], "{}\n{report}", report.options);
        let c = &report.counts;
        seen.heads += c.heads;
        seen.promotions += c.promotions;
        seen.votes += c.votes;
        seen.rollbacks += c.rollbacks;
        seen.restores += c.restores;
        seen.crashes += c.crashes;
    }
    let least = [seen.heads, seen.promotions, seen.votes, seen.rollbacks, seen.restores, seen.crashes];
    assert!(least.iter().all(|n| *n > 0) && seen.heads > 20, "everything happens: {seen:?}");
}
