//! Waiting for what must come, by looking again and again; never by sleeping and hoping.

use std::time::{Duration, Instant};

/// How long anything may take before a test gives up. Generous: it only decides how late a failure is reported.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// Looks until `look` finds something, and answers it.
///
/// # Panics
/// Nothing was found within [`PATIENCE`].
pub fn until<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    match found_within(PATIENCE, look) {
        Some(found) => found,
        None => panic!("waited {} s in vain until {what}", PATIENCE.as_secs()),
    }
}

/// Looks until `look` finds something or `limit` has passed.
pub fn found_within<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if started.elapsed() > limit {
            return None;
        }
        std::thread::sleep(PAUSE);
    }
}
