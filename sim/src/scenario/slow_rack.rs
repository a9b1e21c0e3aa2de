//! The links of one rack are far slower than the others: what is in it must come in once, and nobody else waits.

use crate::options::Options;

/// The slow rack's links are so many times slower.
const SLOWER: u64 = 8;

pub(super) fn apply(options: &mut Options) {
    options.racks = options.racks.max(4);
    // Else the one rack would be slower than anybody has patience for.
    options.oversubscription_percent = options.oversubscription_percent.min(200);
}

/// Slows the last rack, which no seed is in.
pub(super) fn slow(links: &mut [(u64, u64)]) {
    if let Some((up, down)) = links.last_mut() {
        (*up, *down) = ((*up / SLOWER).max(1), (*down / SLOWER).max(1));
    }
}
