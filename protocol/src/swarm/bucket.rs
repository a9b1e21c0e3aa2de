//! Token buckets: byte and message rates over time.

use std::time::Duration;

use super::config::SwarmConfig;
use crate::time::Time;

const NANO: u128 = 1_000_000_000;

/// Fills at a rate up to a ceiling. Debts are allowed, so that one piece may be larger than the ceiling.
#[derive(Debug, Clone)]
pub(super) struct Bucket {
    rate_per_s: u64,
    burst: u64,
    /// In billionths; negative is debt.
    level: i128,
    since: Time,
}

impl Bucket {
    /// A full bucket.
    pub(super) fn new(rate_per_s: u64, burst: u64, now: Time) -> Self {
        let rate_per_s = rate_per_s.max(1);
        Self { rate_per_s, burst: burst.max(1), level: i128::from(burst.max(1)) * NANO as i128, since: now }
    }

    fn fill(&mut self, now: Time) {
        let ns = i128::from(now.0.saturating_sub(self.since.0));
        self.since = self.since.max(now);
        let ceiling = i128::from(self.burst) * NANO as i128;
        self.level = (self.level + ns * i128::from(self.rate_per_s)).min(ceiling);
    }

    /// Takes whatever is asked for; the level may become negative.
    pub(super) fn take(&mut self, now: Time, amount: u64) {
        self.fill(now);
        self.level -= i128::from(amount) * NANO as i128;
    }

    /// Corrects what was `taken` ahead of time to what was `used`.
    pub(super) fn settle(&mut self, now: Time, taken: u64, used: u64) {
        self.fill(now);
        self.level += (i128::from(taken) - i128::from(used)) * NANO as i128;
        self.fill(now);
    }

    /// When it is out of debt: `now` or later.
    pub(super) fn ready_at(&mut self, now: Time) -> Time {
        self.fill(now);
        let debt = u128::try_from(-self.level).unwrap_or(0);
        let ns = debt.div_ceil(u128::from(self.rate_per_s));
        now + Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
    }
}

/// Counts the frames of one link against [`SwarmConfig::frames_per_s_max`]: the time until which what came would last
/// at that rate (the generic cell rate algorithm, ITU-T I.371), for this is asked for every frame.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Meter {
    until: Time,
}

impl Meter {
    /// Counts `frames` more. False if that is over the limit.
    pub(super) fn admits(&mut self, now: Time, config: &SwarmConfig, frames: u64) -> bool {
        // In plain numbers: every frame comes by here.
        let one = 1_000_000_000 / u64::from(config.frames_per_s_max.max(1));
        self.until = Time(self.until.0.max(now.0).saturating_add(one.saturating_mul(frames)));
        self.until.0 - now.0 <= one.saturating_mul(u64::from(config.frames_burst_max.max(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_admitted_and_then_the_rate() {
        let config = SwarmConfig { frames_per_s_max: 10, frames_burst_max: 3, ..SwarmConfig::default() };
        let ms = |n: u64| Time(n * 1_000_000);
        let mut meter = Meter::default();
        assert!((0..3).all(|_| meter.admits(ms(1_000), &config, 1)));
        assert!(!meter.admits(ms(1_000), &config, 1));
        assert!(meter.admits(ms(1_200), &config, 1) && !meter.admits(ms(1_200), &config, 1));
        let mut steady = Meter::default();
        assert!((0..1_000).all(|n| steady.admits(ms(n * 100), &config, 1)));
        assert_eq!(size_of::<Meter>(), 8);
    }

    #[test]
    fn debts_are_paid_at_the_rate() {
        let s = |n: u64| Time(n * 1_000_000_000);
        let mut bucket = Bucket::new(100, 50, s(1));
        bucket.take(s(1), 50);
        assert_eq!(bucket.ready_at(s(1)), s(1));
        bucket.take(s(1), 300);
        assert_eq!(bucket.ready_at(s(1)), s(4));
        assert_eq!(bucket.ready_at(s(2)), s(4));
        assert_eq!(bucket.ready_at(s(100)), s(100));
        bucket.take(s(100), 51);
        assert!(bucket.ready_at(s(100)) > s(100), "it never holds more than its ceiling");
        bucket.take(s(50), 0);
        assert!(bucket.ready_at(s(101)) == s(101), "time never goes back");
    }
}
