//! Gives memory back to the system that was freed and that the allocator keeps.
//!
//! glibc returns only what is free at the end of an arena: one small block that outlives a burst of connections keeps
//! all that was freed before it, so a daemon would stay as large as its worst minute.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::debug;

/// How often it looks.
const LOOK: Duration = Duration::from_secs(10);
/// Longest pause while nothing comes of it, since all is in use.
const LOOK_MAX: Duration = Duration::from_secs(160);
/// Memory beyond what was in use at the quietest time that is worth a walk through the heap.
const SLACK_BYTES: u64 = 24 << 20;

/// Looks until the daemon stops.
pub(crate) async fn run(stop: CancellationToken) {
    let (mut least, mut pause) = (anonymous_bytes(), LOOK);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        let before = anonymous_bytes();
        least = least.min(before);
        if before - least < SLACK_BYTES {
            pause = LOOK;
            continue;
        }
        if tokio::task::spawn_blocking(give_back).await.is_err() {
            return;
        }
        let after = anonymous_bytes();
        least = least.min(after);
        let given = before.saturating_sub(after);
        pause = if given < SLACK_BYTES / 2 { (pause * 2).min(LOOK_MAX) } else { LOOK };
        debug!(before, after, "gave memory back to the system");
    }
}

/// Anonymous memory of this process in bytes; 0 where the system does not tell.
fn anonymous_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

/// Pages of all arenas on which nothing is in use go back. Takes some milliseconds.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "libc declares it so; no safe wrapper exists")]
fn give_back() {
    // SAFETY: glibc documents it as safe to call at any time from any thread; it moves nothing that is in use.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators give memory back by themselves.
#[cfg(not(target_env = "gnu"))]
fn give_back() {}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    use super::*;

    #[test]
    fn what_was_freed_between_blocks_in_use_goes_back() {
        const BLOCK: usize = 64 << 10;
        let before = anonymous_bytes();
        let mut held = Vec::new();
        // Below the size from which each block is a mapping of its own.
        let freed: Vec<Vec<u8>> = (0..1024)
            .map(|_| {
                held.push(vec![1u8; 64]);
                vec![1u8; BLOCK]
            })
            .collect();
        assert!(anonymous_bytes() > before + (48 << 20), "they are there");
        drop(freed);
        give_back();
        let after = anonymous_bytes();
        assert!(after < before + (24 << 20), "{after} bytes after, {before} before");
        assert!(held.iter().all(|block| block[0] == 1));
    }
}
