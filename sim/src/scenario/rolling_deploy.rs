//! Hosts begin in waves. Those of the first hold the version before, which shares most layers, and need only the rest.

use weighlock_protocol::Time;

use crate::cast::{self, Player, Role};
use crate::layout::Layout;
use crate::options::Options;

/// Waves, equally large.
const WAVES: u64 = 4;

pub(super) fn apply(options: &mut Options) {
    options.shards = options.shards.max(5);
}

/// The first half of the hosts hold all weights files but the last fifth.
pub(super) fn cast(layout: &Layout, cast: &mut [Player]) {
    let count = layout.layers.len();
    let large =
        |layer: &u32| layout.layers[*layer as usize].size > layout.models[0].bytes / (2 * count as u64);
    let weights: Vec<u32> = (0..).take(count).filter(large).collect();
    let kept = &weights[..weights.len() - weights.len().div_ceil(5)];
    let fetchers = cast.iter_mut().filter(|player| player.role == Role::Fetcher && !player.late);
    let mut fetchers: Vec<&mut Player> = fetchers.collect();
    let half = fetchers.len() / 2;
    for player in &mut fetchers[..half] {
        player.holds = kept.to_vec();
    }
    let (waves, hosts) = (WAVES, fetchers.len().max(1) as u64);
    let bound = cast::bound_ns(layout, cast, 1);
    let fetchers = cast.iter_mut().filter(|player| player.role == Role::Fetcher && !player.late);
    for (nth, player) in (0..).zip(fetchers) {
        let wave = nth * waves / hosts;
        let later = wave * bound / 2;
        player.start = Time(player.start.0 + later);
        player.leaves = player.leaves.map(|at| Time(at.0 + later));
        player.late = wave > 0;
    }
}
