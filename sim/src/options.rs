//! What a run is made of: drawn from the seed or given by hand, and printed before anything happens.

use std::fmt;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use weighlock_protocol::LayerId;
use weighlock_protocol::swarm::{FetchConfig, piece_bytes};
use weighlock_protocol::wire::bao::GROUP_BYTES;

use crate::scenario::Scenario;

/// Most hosts that a run takes.
pub const HOSTS_MAX: usize = 20_000;

/// Everything that decides a run, beside the code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Options {
    /// What is rehearsed.
    pub scenario: Scenario,
    /// The only randomness.
    pub seed: u64,
    /// Hosts that fetch. The seed host and the liars come on top.
    pub hosts: usize,
    /// Hosts that hold everything and serve wrong bytes.
    pub liars: usize,
    /// One in so many requests to a liar gets wrong bytes.
    pub lie_one_in: u32,
    /// Bytes of the artifact.
    pub total_bytes: u64,
    /// Weights files that the artifact is split into.
    pub shards: u8,
    /// Uplink of each host, bytes per second.
    pub up_bytes_per_s: u64,
    /// Downlink of each host, bytes per second.
    pub down_bytes_per_s: u64,
    /// One way, microseconds.
    pub latency_us: u64,
    /// How long it takes until flows feel that others came or went, microseconds.
    pub share_us: u64,
    /// Hosts that each host is connected to, about.
    pub neighbours: usize,
    /// Uploads that a host serves at a time; further requests wait.
    pub uploads_max: usize,
    /// How long a host gathers news before it tells its neighbours, microseconds.
    pub announce_us: u64,
    /// Transfers cut at a random point, of a thousand, until the faults heal.
    pub loss_permille: u32,
    /// Crashes, each followed by a restart, until the faults heal.
    pub crashes: usize,
    /// Shortest piece, bytes.
    pub piece_bytes_min: u64,
    /// What is fetched first and in order, bytes.
    pub head_bytes_max: u64,
}

impl Options {
    /// A flash crowd: `hosts` hosts want the same bytes at once, one has them. 1 Gb/s each way, 0.1 ms.
    pub fn flash_crowd(hosts: usize, total_bytes: u64, seed: u64) -> Self {
        let config = FetchConfig::default();
        Self {
            scenario: Scenario::FlashCrowd,
            seed,
            hosts: hosts.clamp(1, HOSTS_MAX),
            liars: 0,
            lie_one_in: 1,
            total_bytes,
            shards: u8::try_from(total_bytes.div_ceil(5 << 30).clamp(1, 200)).unwrap_or(200),
            up_bytes_per_s: 125_000_000,
            down_bytes_per_s: 125_000_000,
            latency_us: 100,
            share_us: 500,
            neighbours: 20,
            uploads_max: 4,
            announce_us: 10_000,
            loss_permille: 0,
            crashes: 0,
            piece_bytes_min: config.piece_bytes_min,
            head_bytes_max: config.head_bytes_max,
        }
    }

    /// Small hostile worlds for the sweep, everything drawn from the seed.
    pub fn draw(scenario: Scenario, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let up = rng.random_range(5_000_000..100_000_000u64);
        let liars = match scenario {
            Scenario::FlashCrowd => 0,
            Scenario::PoisonedPeer => rng.random_range(1..=3),
        };
        Self {
            scenario,
            seed,
            hosts: rng.random_range(2..=16),
            liars,
            lie_one_in: rng.random_range(1..=4),
            total_bytes: rng.random_range(1..16 << 20),
            shards: rng.random_range(1..=5),
            up_bytes_per_s: up,
            down_bytes_per_s: up * rng.random_range(1..=3),
            latency_us: rng.random_range(50..20_000),
            share_us: rng.random_range(200..2_000),
            neighbours: rng.random_range(2..=8),
            uploads_max: rng.random_range(1..=8),
            announce_us: rng.random_range(1_000..100_000),
            loss_permille: rng.random_range(0..=100),
            crashes: rng.random_range(0..=8),
            piece_bytes_min: GROUP_BYTES << rng.random_range(0..=5u32),
            head_bytes_max: rng.random_range(0..1 << 20),
        }
    }

    /// The artifact's layers in loading order: contract, configuration, weights.
    pub fn layers(&self) -> Vec<(LayerId, u64)> {
        let contract = self.total_bytes.min(200_000) / 2;
        let config = contract / 10;
        let weights = self.total_bytes - contract - config;
        let shards = u64::from(self.shards.max(1));
        let shard = |n: u64| weights / shards + u64::from(n < weights % shards);
        let sizes = [contract, config].into_iter().chain((0..shards).map(shard));
        (0u8..).zip(sizes).map(|(n, size)| (LayerId([n; 32]), size)).collect()
    }

    /// The limits that the hosts' schedulers run with.
    pub fn fetch_config(&self) -> FetchConfig {
        FetchConfig {
            piece_bytes_min: self.piece_bytes_min,
            head_bytes_max: self.head_bytes_max,
            rate_initial_bytes_per_s: self.up_bytes_per_s / 20,
            ..FetchConfig::default()
        }
    }

    /// Pieces of the artifact: the M of the bound.
    pub fn pieces(&self) -> u64 {
        let length = piece_bytes(&self.fetch_config(), self.total_bytes);
        self.layers().iter().map(|(_, size)| size.div_ceil(length).max(1)).sum()
    }

    /// No swarm finishes earlier: (F/u)(1 + floor(log2 N) / M) for one seed and equal uplinks
    /// (Mundinger, Weber, Weiss 2008).
    pub fn bound(&self) -> Duration {
        let ns = u128::from(self.total_bytes) * 1_000_000_000 / u128::from(self.up_bytes_per_s.max(1));
        let rounds = u128::from(self.hosts.max(1).ilog2());
        let ns = ns + ns * rounds / u128::from(self.pieces().max(1));
        Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
    }

    /// When faults end.
    pub fn heal_at(&self) -> Duration {
        self.bound() * 3
    }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "scenario {} seed {}", self.scenario, self.seed)?;
        writeln!(
            f,
            "  {} hosts, {} liars (one request in {}), {} bytes in {} weights files and {} pieces of {} bytes or more",
            self.hosts,
            self.liars,
            self.lie_one_in,
            self.total_bytes,
            self.shards,
            self.pieces(),
            self.piece_bytes_min
        )?;
        writeln!(
            f,
            "  up {} B/s, down {} B/s, latency {} us, shared anew after {} us",
            self.up_bytes_per_s, self.down_bytes_per_s, self.latency_us, self.share_us
        )?;
        writeln!(
            f,
            "  {} neighbours, {} uploads at a time, news after {} us, head {} bytes",
            self.neighbours, self.uploads_max, self.announce_us, self.head_bytes_max
        )?;
        write!(f, "  faults: {} crashes, {} of 1000 transfers cut", self.crashes, self.loss_permille)
    }
}
