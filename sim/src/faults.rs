//! What goes wrong, and when: drawn before the run starts, over when the faults heal.

use std::time::Duration;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use weighlock_protocol::Time;

use crate::options::Options;

/// A host crashes and comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crash {
    /// Which host.
    pub host: usize,
    /// When it goes.
    pub at: Time,
    /// When it is back.
    pub back: Time,
}

/// Draws the crashes of a run. Any of `hosts` may crash, the seed host too; all are back when faults heal.
pub fn draw(options: &Options, hosts: usize, rng: &mut ChaCha8Rng) -> Vec<Crash> {
    let heal_ns = nanos(options.heal_at()).max(4);
    let crash = |_| {
        let at = rng.random_range(1..heal_ns / 2);
        let down = rng.random_range(1..=heal_ns / 3);
        let host = rng.random_range(0..hosts as u64);
        Crash { host: usize::try_from(host).unwrap_or(0), at: Time(at), back: Time((at + down).min(heal_ns)) }
    };
    (0..options.crashes).map(crash).collect()
}

/// Where a transfer is cut, if it is: after this many of its bytes.
pub fn cut(options: &Options, now: Time, bytes: u64, rng: &mut ChaCha8Rng) -> Option<u64> {
    if options.loss_permille == 0 || now.0 >= nanos(options.heal_at()) {
        return None;
    }
    let hit = rng.random_range(0..1_000u32) < options.loss_permille;
    hit.then(|| rng.random_range(0..=bytes))
}

/// What a liar spoils of a range: the number of a group, if this is one of the requests that it lies to.
pub fn lie(options: &Options, range: &std::ops::Range<u64>, rng: &mut ChaCha8Rng) -> Option<u64> {
    let hit = rng.random_range(0..options.lie_one_in.max(1)) == 0;
    hit.then(|| rng.random_range(range.clone()))
}

/// A duration in whole nanoseconds.
pub fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
