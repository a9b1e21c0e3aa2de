//! Something ran short: the log hears of it once, and once that it is over, however often it is met in between.

use std::io;
use std::time::{Duration, Instant};

use tracing::warn;

/// Pause before the next attempt to accept after one that failed, so that a loop never runs hot.
pub(crate) const PAUSE: Duration = Duration::from_millis(200);
/// It is over after this long without a failure.
const CALM: Duration = Duration::from_secs(2);

/// One thing that may run short.
#[derive(Debug, Default)]
pub(crate) struct Shortage {
    since: Option<(Instant, Instant)>,
}

impl Shortage {
    /// It was met. True if the log should hear of it.
    pub(crate) fn failed(&mut self) -> bool {
        self.failed_at(Instant::now())
    }

    /// It was not met. The seconds that it lasted, if it is over now.
    pub(crate) fn worked(&mut self) -> Option<u64> {
        self.worked_at(Instant::now())
    }

    fn failed_at(&mut self, now: Instant) -> bool {
        let (first, _) = self.since.unwrap_or((now, now));
        self.since.replace((first, now)).is_none()
    }

    fn worked_at(&mut self, now: Instant) -> Option<u64> {
        let (first, last) = self.since?;
        if now.duration_since(last) < CALM {
            return None;
        }
        self.since = None;
        Some(last.duration_since(first).as_secs())
    }
}

/// Why something is not accepted, with the limit where it is descriptors that are short.
pub(crate) fn warn_not_accepted(what: &str, error: &io::Error) {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    match error.raw_os_error() {
        Some(code) if code == libc::EMFILE => warn!(
            limit,
            "{what} cannot be accepted: this process has as many files open as it may; it waits for some to close. \
             Raise the limit (ulimit -n, LimitNOFILE)"
        ),
        _ => warn!(%error, "{what} cannot be accepted; it waits"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_told_once_until_it_is_over() {
        let mut shortage = Shortage::default();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(shortage.worked_at(at(0)), None);
        assert!(shortage.failed_at(at(0)));
        // It comes and goes: one episode.
        for ms in (200..5_000).step_by(400) {
            assert_eq!(shortage.worked_at(at(ms)), None);
            assert!(!shortage.failed_at(at(ms + 200)));
        }
        assert_eq!(shortage.worked_at(at(5_500)), None, "only just");
        assert_eq!(shortage.worked_at(at(9_000)), Some(4), "from the first failure to the last");
        assert_eq!(shortage.worked_at(at(9_001)), None);
        assert!(shortage.failed_at(at(9_002)), "a new one");
    }
}
