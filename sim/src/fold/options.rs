//! What a run of the statement world is made of: drawn from the seed, and printed before anything happens.

use std::fmt;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

/// Everything that decides a run, beside the code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FoldOptions {
    /// The only randomness.
    pub seed: u64,
    /// Honest hosts, from 2; some are there from the start, the others join by tickets.
    pub hosts: usize,
    /// Member hosts that lie, hide and forge.
    pub liars: usize,
    /// Admins in the first root, each at home on a host of its own where there are enough.
    pub admins: usize,
    /// How many of them must sign a root.
    pub threshold: u32,
    /// Things that honest authors do.
    pub acts: usize,
    /// Things that hostile authors do.
    pub attacks: usize,
    /// How long acts, attacks and faults last, in milliseconds.
    pub span_ms: u64,
    /// One way, in milliseconds.
    pub latency_ms: u64,
    /// Most that is added to it, in milliseconds.
    pub jitter_ms: u64,
    /// Messages lost, of a thousand, until the faults heal.
    pub loss_permille: u32,
    /// Gossip delivered twice, of a thousand.
    pub duplicate_permille: u32,
    /// Gossip delivered very late, of a thousand.
    pub late_permille: u32,
    /// Most that late messages take, in milliseconds.
    pub late_ms_max: u64,
    /// Hosts that each host gossips with.
    pub neighbours: usize,
    /// Whether hosts judge gossip that they have seen before anew.
    pub forgetful: bool,
    /// Times that the network falls into parts, until the faults heal.
    pub partitions: usize,
    /// Crashes, each followed by a restart.
    pub crashes: usize,
    /// How often a host reconciles, in milliseconds.
    pub reconcile_ms: u64,
    /// With how many others each time.
    pub fanout: usize,
    /// Ids on one page, at most.
    pub page_ids_max: usize,
    /// Statements in one message of a reconciliation, at most.
    pub page_statements_max: usize,
    /// How far a host's clock may be off, in seconds, either way.
    pub skew_secs_max: u64,
    /// Whether evaluations and verdicts are said, too.
    pub weighed: bool,
    /// Hosts that the first root names as witnesses: 1, 3 or 5; 0 in worlds without channels.
    pub witnesses: usize,
    /// Things that are done about channels: policies, verdicts, approvals, promotions, rollbacks.
    pub climbs: usize,
    /// Times that a host that may be a witness is restored from an old copy of its disk.
    pub backups: usize,
    /// Cosignatures after which a witness dies before it sends them, of a thousand.
    pub dies_permille: u32,
    /// Whether the key of a witness is in hostile hands, too.
    pub stolen: bool,
    /// Whether liars flood ledgers that have little room.
    pub flood: bool,
    /// Statements without effect that a ledger holds, at most.
    pub idle_max: usize,
    /// The same of one author.
    pub idle_per_author_max: usize,
}

impl FoldOptions {
    /// A small hostile world, everything drawn from the seed.
    pub fn draw(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x0f01_d5ee_d000_0000);
        let hosts = if rng.random_bool(0.1) { rng.random_range(17..=24) } else { rng.random_range(2..=12) };
        let admins = rng.random_range(1..=3usize);
        let flood = rng.random_bool(0.25);
        let liars = rng.random_range(usize::from(flood)..=2);
        // Worlds that were drawn before there were any stay as they were; what most of them may not say would
        // fill ledgers that have little room.
        let weighed = seed % 4 != 3 && !flood;
        // Of their own, so that the rest of a world stays what it was.
        let mut ladder = ChaCha8Rng::seed_from_u64(seed ^ 0x1add_e500_0000_0000);
        let witnesses = [1, 3, 3, 5][ladder.random_range(0..4)];
        let witnesses = if weighed { witnesses_of(hosts, admins, witnesses) } else { 0 };
        let of_ladder = |n| if witnesses > 0 { n } else { 0 };
        Self {
            seed,
            hosts,
            liars,
            admins,
            threshold: rng.random_range(1..=admins.min(2) as u32),
            acts: rng.random_range(10..=60),
            attacks: rng.random_range(0..=15),
            span_ms: rng.random_range(5_000..60_000),
            latency_ms: rng.random_range(1..100),
            jitter_ms: rng.random_range(0..2_000),
            loss_permille: [0, 50, 300, 900][rng.random_range(0..4)],
            duplicate_permille: rng.random_range(0..300),
            late_permille: rng.random_range(0..300),
            late_ms_max: rng.random_range(1_000..90_000),
            neighbours: rng.random_range(1..=4),
            forgetful: rng.random_bool(0.2),
            partitions: rng.random_range(0..=4),
            crashes: rng.random_range(0..=8),
            reconcile_ms: rng.random_range(1_000..15_000),
            fanout: rng.random_range(1..=3),
            page_ids_max: [1, 2, 7, 8_192][rng.random_range(0..4)],
            page_statements_max: [1, 3, 32][rng.random_range(0..3)],
            skew_secs_max: [0, 60, 3_600][rng.random_range(0..3)],
            weighed,
            witnesses,
            climbs: of_ladder(ladder.random_range(20..=120)),
            backups: of_ladder(ladder.random_range(0..=6usize).saturating_sub(4)),
            dies_permille: [0, 0, 50, 300][ladder.random_range(0..4)],
            stolen: witnesses > 0 && ladder.random_bool(0.3),
            flood,
            idle_max: if flood { rng.random_range(10..=40) } else { 100_000 },
            idle_per_author_max: if flood { rng.random_range(3..=10) } else { 10_000 },
        }
    }

    /// Rounds of reconciliation within which all must be equal once the faults are over.
    pub fn rounds_max(&self) -> u32 {
        // Every round spreads by at least one host in expectation doubles who knows; liars waste some.
        let once = 16 + 6 * (self.hosts + self.liars).max(2).ilog2();
        // Where promotions wait, votes follow them, and what was waiting for those follows the votes.
        if self.witnesses > 0 { 3 * once } else { once }
    }
}

/// Hosts that are there from the start; every admin is at home on one of them.
pub(super) fn founders_of(hosts: usize, admins: usize) -> usize {
    (hosts / 2).max(2).max(admins).min(hosts)
}

/// As many witnesses as wanted, or the next lower odd number that there are founders for.
fn witnesses_of(hosts: usize, admins: usize, wanted: usize) -> usize {
    [5, 3, 1].into_iter().find(|n| *n <= wanted && *n <= founders_of(hosts, admins)).unwrap_or(0)
}

impl fmt::Display for FoldOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "scenario statements seed {}", self.seed)?;
        writeln!(
            f,
            "  {} hosts, {} liars, {} admins of whom {} sign a root, clocks off by {} s or less",
            self.hosts, self.liars, self.admins, self.threshold, self.skew_secs_max
        )?;
        writeln!(
            f,
            "  {} acts and {} attacks in {} ms; room for {} statements without effect, {} of one author{}",
            self.acts,
            self.attacks,
            self.span_ms,
            self.idle_max,
            self.idle_per_author_max,
            match (self.flood, self.weighed) {
                (false, false) => "",
                (false, true) => ", weighed",
                (true, false) => ", flooded",
                (true, true) => ", flooded, weighed",
            }
        )?;
        writeln!(
            f,
            "  latency {} ms and up to {} more, {} neighbours{}; every {} ms with {} others, {} ids and {} statements a page",
            self.latency_ms,
            self.jitter_ms,
            self.neighbours,
            if self.forgetful { " whose gossip is judged each time" } else { "" },
            self.reconcile_ms,
            self.fanout,
            self.page_ids_max,
            self.page_statements_max
        )?;
        if self.witnesses > 0 {
            writeln!(
                f,
                "  channels: {} witnesses, {} steps; {} restored from backups, of 1000 votes {} kill the voter{}",
                self.witnesses,
                self.climbs,
                self.backups,
                self.dies_permille,
                if self.stolen { ", a stolen key" } else { "" }
            )?;
        }
        write!(
            f,
            "  faults: of 1000 messages {} lost, {} twice, {} up to {} ms late; {} partitions, {} crashes",
            self.loss_permille,
            self.duplicate_permille,
            self.late_permille,
            self.late_ms_max,
            self.partitions,
            self.crashes
        )
    }
}
