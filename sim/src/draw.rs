//! Small hostile worlds for the sweep: everything is drawn from the seed.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use weighlock_protocol::wire::bao::GROUP_BYTES;

use crate::options::{Faults, Hostile, Options};
use crate::scenario::Scenario;

/// Worlds from this seed on may have silent hosts. Those of the corpus have earlier ones, and stay what they were.
const SILENT_FROM: u64 = 1_000;

/// Draws a world of at most 64 hosts and 256 pieces per manifest, or a little more where small files make pieces of
/// their own.
pub fn draw(scenario: Scenario, seed: u64) -> Options {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let rng = &mut rng;
    let hosts = if one_in(rng, 4) { rng.random_range(1..=6) } else { rng.random_range(4..=48) };
    let piece = GROUP_BYTES << rng.random_range(0..=4u32);
    let pieces = rng.random_range(1..=256u64);
    let total = rng.random_range(piece * pieces / 2..=piece * pieces).max(1);
    let mut options = Options::new(hosts, total, seed);
    options.seeds = if one_in(rng, 2) { 1 } else { rng.random_range(1..=4) };
    options.shards = rng.random_range(1..=6);
    options.small_files = if one_in(rng, 4) { rng.random_range(0..=80) } else { rng.random_range(0..=6) };
    // A run takes from some tenths of a second to a minute.
    let seconds = rng.random_range(1..=400u64);
    options.up_bytes_per_s = (total * 10 / seconds).clamp(20_000, 2_000_000_000);
    options.down_bytes_per_s = options.up_bytes_per_s * rng.random_range(1..=3);
    options.latency_us = rng.random_range(20..5_000);
    options.far_latency_us = options.latency_us * rng.random_range(1..=10);
    options.spread_us = if one_in(rng, 2) { 1_000 } else { rng.random_range(1_000..seconds * 100_000) };
    options.candidates = if one_in(rng, 3) { rng.random_range(6..=20) } else { 300 };
    if one_in(rng, 2) {
        options.racks = rng.random_range(2..=6);
        options.oversubscription_percent = rng.random_range(1..=8) * 100;
    }
    options.slow_permille = some(rng, 3, 200);
    options.churn_permille = some(rng, 3, 400);
    let limits = &mut options.limits;
    limits.piece_bytes_min = piece;
    limits.piece_bytes_max = 64 << 20;
    limits.piece_count_max = 256;
    limits.neighbours_target = rng.random_range(3..=12);
    limits.neighbours_max = limits.neighbours_target + rng.random_range(2..=10);
    limits.uploads_max = rng.random_range(1..=8);
    limits.uploads_release_max = limits.uploads_max + rng.random_range(0..=3);
    limits.downloads_aim = rng.random_range(1..=10);
    limits.downloads_max = limits.downloads_aim + rng.random_range(0..=8);
    limits.news_ms_max = rng.random_range(10..=500);
    limits.in_flight_bytes_max = piece * rng.random_range(1..=32);
    limits.requests_max = rng.random_range(16..=256);
    limits.frames_burst_max = rng.random_range(2_000..=10_000);
    if one_in(rng, 6) {
        limits.upload_bytes_per_s = Some(options.up_bytes_per_s / rng.random_range(1..=3));
    }
    if one_in(rng, 6) {
        limits.download_bytes_per_s = Some(options.down_bytes_per_s / rng.random_range(1..=3));
    }
    // As the daemon's: many times what a piece takes, so that one that waits its turn is not taken for silence.
    let slowest = limits.upload_bytes_per_s.unwrap_or(options.up_bytes_per_s).min(options.up_bytes_per_s);
    let piece_ms = piece * 1_000 / slowest.max(1);
    limits.deadline_ms_min = (piece_ms * rng.random_range(20..=60)).max(1_000);
    limits.rate_initial_bytes_per_s = (slowest / 20).max(1);
    options.faults = faults(rng);
    if one_in(rng, 2) {
        options.hostile = hostile(rng);
    }
    if seed >= SILENT_FROM {
        // Drawn apart, so that all else is as it would be without.
        options.hostile.silents = some(&mut ChaCha8Rng::seed_from_u64(!seed), 2, 3);
    }
    scenario.apply(&mut options);
    options.pace();
    options
}

fn faults(rng: &mut ChaCha8Rng) -> Faults {
    Faults {
        crashes: some(rng, 2, 10),
        cut_permille: some(rng, 2, 100),
        partitions: some(rng, 3, 3),
        notice_us: rng.random_range(1_000..1_000_000),
        full_disks: some(rng, 3, 4),
        slow_disks: some(rng, 3, 4),
        skewed_clocks: some(rng, 3, 8),
        rots: some(rng, 4, 4),
        urgent: some(rng, 3, 6),
        link_breaks: some(rng, 2, 30),
    }
}

fn hostile(rng: &mut ChaCha8Rng) -> Hostile {
    Hostile {
        liars: some(rng, 2, 3),
        lie_one_in: rng.random_range(1..=4),
        false_announcers: some(rng, 3, 2),
        mutes: some(rng, 3, 2),
        flooders: some(rng, 4, 1),
        garblers: some(rng, 4, 2),
        greedy: some(rng, 4, 2),
        silents: 0,
    }
}

fn one_in(rng: &mut ChaCha8Rng, n: u32) -> bool {
    rng.random_range(0..n) == 0
}

/// Zero, or once in `n` times a number from 1 to `max`.
fn some(rng: &mut ChaCha8Rng, n: u32, max: u32) -> u32 {
    if one_in(rng, n) { rng.random_range(1..=max) } else { 0 }
}
