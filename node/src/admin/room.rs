//! Room for what the command line brings in: where there is none, something goes, and it is tried once more.

use std::sync::atomic::{AtomicBool, Ordering};

use weighlock_cache::StoreError;

use crate::daemon::Node;

/// Blocking: does `work`. Where there is no room for it, lets go of what may go until files of `bytes` fit, and does it
/// once more, unless it was cancelled.
///
/// # Errors
/// Those of `work`.
pub(super) fn with_room<T>(
    node: &Node,
    bytes: u64,
    cancel: &AtomicBool,
    work: impl FnMut() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    again(work, || {
        let wanted = !cancel.load(Ordering::Relaxed);
        if wanted {
            // Files with their trees, which take a 256th of them.
            node.room.make_blocking(bytes.saturating_add(bytes / 256));
        }
        wanted
    })
}

/// Whether it was the disk or the quota that was full.
pub(super) fn is_full(error: &StoreError) -> bool {
    matches!(error, StoreError::NoSpace { .. } | StoreError::Quota { .. })
}

/// `make` makes room, and says whether it is worth another try.
fn again<T>(
    mut work: impl FnMut() -> Result<T, StoreError>,
    make: impl FnOnce() -> bool,
) -> Result<T, StoreError> {
    match work() {
        Err(error) if is_full(&error) => {
            if make() {
                work()
            } else {
                Err(error)
            }
        }
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn room_is_made_once_and_only_for_who_lacks_it() {
        let quota =
            || StoreError::Quota { path: PathBuf::new(), needed_bytes: 2, used_bytes: 1, quota_bytes: 2 };
        let full = || StoreError::NoSpace { path: PathBuf::new(), needed_bytes: 0, available_bytes: 0 };
        // Errors of the attempts, in order, and whether anybody still waits; gives how often it was tried and room was made.
        let run = |errors: Vec<StoreError>, wanted: bool| {
            let (mut tries, mut made) = (0, 0);
            let mut errors = errors.into_iter();
            let work = || {
                tries += 1;
                errors.next().map_or(Ok(()), Err)
            };
            let done = again(work, || {
                made += 1;
                wanted
            });
            (tries, made, done.map_err(|error| is_full(&error)))
        };
        assert_eq!(run(vec![], true), (1, 0, Ok(())));
        assert_eq!(run(vec![quota()], true), (2, 1, Ok(())));
        assert_eq!(run(vec![full()], true), (2, 1, Ok(())));
        assert_eq!(run(vec![quota(), full()], true), (2, 1, Err(true)), "nothing more may go");
        assert_eq!(run(vec![quota()], false), (1, 1, Err(true)), "nobody waits for it any more");
        assert_eq!(run(vec![StoreError::Cancelled], true), (1, 0, Err(false)), "room does not help");
    }
}
