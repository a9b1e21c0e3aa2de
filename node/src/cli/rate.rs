//! How fast something grows, and how long the rest will take.

use std::collections::VecDeque;

/// Looks that lie further back than this do not count, in milliseconds.
const WINDOW_MS: u64 = 10_000;
/// Looks that are remembered.
const LOOKS_MAX: usize = 256;

/// A smoothed rate: growth between the oldest and the newest of the looks within ten seconds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rate {
    /// When, in milliseconds of any clock that does not jump, and how many bytes there were.
    looks: VecDeque<(u64, u64)>,
}

impl Rate {
    /// Takes one look. A counter or a clock that went back begins anew.
    pub(crate) fn note(&mut self, at_ms: u64, bytes: u64) {
        if self.looks.back().is_some_and(|(last_ms, last)| at_ms < *last_ms || bytes < *last) {
            self.looks.clear();
        }
        if self.looks.len() > 1 && self.looks.back().is_some_and(|(last_ms, _)| *last_ms == at_ms) {
            self.looks.pop_back();
        }
        self.looks.push_back((at_ms, bytes));
        let old = |(then_ms, _): &(u64, u64)| at_ms - then_ms > WINDOW_MS;
        // Two always stay, however far they are apart.
        while self.looks.len() > 2 && (self.looks.len() > LOOKS_MAX || self.looks.front().is_some_and(old)) {
            self.looks.pop_front();
        }
    }

    /// Bytes per second; `None` before there were two looks at different times.
    pub(crate) fn bytes_per_s(&self) -> Option<u64> {
        let ((then_ms, before), (now_ms, after)) = (self.looks.front()?, self.looks.back()?);
        let ms = u128::from(now_ms.checked_sub(*then_ms).filter(|ms| *ms > 0)?);
        u64::try_from(u128::from(after - before) * 1000 / ms).ok()
    }

    /// Seconds until `missing_bytes` more are there, rounded up; `None` while nothing moves.
    pub(crate) fn left_s(&self, missing_bytes: u64) -> Option<u64> {
        let rate = self.bytes_per_s().filter(|rate| *rate > 0)?;
        Some(missing_bytes.div_ceil(rate))
    }
}

/// `42 s`, `3 min`, `2 h 5 min`, `9 d`.
pub(crate) fn duration(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 if seconds % 3600 < 60 => format!("{} h", seconds / 3600),
        7_200..172_800 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// `43.2 %`; rounded down, so that 100 % is said of all only. `-` of nothing.
pub(crate) fn percent(done: u64, total: u64) -> String {
    if total == 0 {
        return "-".into();
    }
    let tenths = u128::from(done.min(total)) * 1000 / u128::from(total);
    format!("{}.{} %", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks(all: &[(u64, u64)]) -> Rate {
        let mut rate = Rate::default();
        all.iter().for_each(|(at_ms, bytes)| rate.note(*at_ms, *bytes));
        rate
    }

    #[test]
    fn a_rate_needs_two_looks() {
        assert_eq!(looks(&[]).bytes_per_s(), None);
        assert_eq!(looks(&[(5, 100)]).bytes_per_s(), None);
        assert_eq!(looks(&[(5, 100), (5, 900)]).bytes_per_s(), None);
        assert_eq!(looks(&[(5, 100), (2_005, 700)]).bytes_per_s(), Some(300));
        assert_eq!(looks(&[(0, 0), (1, u64::MAX)]).bytes_per_s(), None, "more than fits");
    }

    #[test]
    fn what_was_there_before_is_no_growth_and_what_is_long_ago_does_not_count() {
        let rate = looks(&[(0, 1_000_000), (1_000, 1_000_500)]);
        assert_eq!(rate.bytes_per_s(), Some(500));
        // Fast for a second, then slow: ten seconds later only the slow part is left.
        let mut rate = looks(&[(0, 0), (1_000, 1_000_000)]);
        (2..=11).for_each(|s| rate.note(s * 1_000, 1_000_000 + s * 10));
        assert_eq!(rate.bytes_per_s(), Some(11));
        // Two looks stay, however far apart.
        assert_eq!(looks(&[(0, 0), (60_000, 600)]).bytes_per_s(), Some(10));
    }

    #[test]
    fn a_counter_or_a_clock_that_goes_back_begins_anew() {
        let mut rate = looks(&[(0, 0), (1_000, 900), (2_000, 100)]);
        assert_eq!(rate.bytes_per_s(), None);
        rate.note(3_000, 150);
        assert_eq!(rate.bytes_per_s(), Some(50));
        assert_eq!(looks(&[(9_000, 5), (1_000, 10)]).bytes_per_s(), None);
    }

    #[test]
    fn looks_are_bounded() {
        let mut rate = Rate::default();
        (0..10_000).for_each(|ms| rate.note(ms, ms));
        assert_eq!((rate.looks.len(), rate.bytes_per_s()), (LOOKS_MAX, Some(1000)));
    }

    #[test]
    fn the_rest_takes_as_long_as_the_rate_says() {
        let rate = looks(&[(0, 0), (1_000, 100)]);
        assert_eq!(
            [0, 1, 100, 101].map(|missing| rate.left_s(missing)),
            [Some(0), Some(1), Some(1), Some(2)]
        );
        assert_eq!(looks(&[(0, 7), (1_000, 7)]).left_s(100), None, "nothing moves");
        assert_eq!(looks(&[(0, 7)]).left_s(100), None);
    }

    #[test]
    fn times_and_shares_are_read_at_a_glance() {
        let seconds = [0, 119, 120, 7_199, 7_200, 7_500, 172_799, 172_800];
        let texts = ["0 s", "119 s", "2 min", "119 min", "2 h", "2 h 5 min", "47 h 59 min", "2 d"];
        assert_eq!(seconds.map(duration), texts);
        let shares = [(0, 0), (0, 3), (1, 3), (2_999, 3_000), (3, 3), (u64::MAX, u64::MAX)];
        let texts = ["-", "0.0 %", "33.3 %", "99.9 %", "100.0 %", "100.0 %"];
        assert_eq!(shares.map(|(done, total)| percent(done, total)), texts);
    }
}
