//! What goes wrong, and when: drawn before the run starts, over when the faults heal.

use std::ops::Range;
use std::time::Duration;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use weighlock_protocol::Time;

use crate::cast::{Player, Role};
use crate::layout::Layout;
use crate::options::Options;

/// Something that goes wrong, or is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// A host loses everything that is not on its disk.
    Crash(u32),
    /// It is back.
    Restart(u32),
    /// It leaves for good.
    Leave(u32),
    /// These hosts are cut from all others.
    Cut(Vec<u32>),
    /// They are not any more.
    Mend,
    /// A disk is full.
    Full(u32),
    /// It has room again.
    Room(u32),
    /// A block of a layer rots.
    Rot(u32, u32, Range<u64>),
    /// A loader waits for groups of a layer of a manifest.
    Urgent(u32, u32, u32, Range<u64>),
    /// Some link of a host breaks, by a number to choose it.
    LinkBreaks(u32, u64),
}

/// Draws everything that goes wrong before `heal`, in no order. Any host may be hit, seeds too.
pub fn draw(
    options: &Options,
    layout: &Layout,
    cast: &[Player],
    heal: Duration,
    rng: &mut ChaCha8Rng,
) -> Vec<(Time, Trouble)> {
    let heal_ns = nanos(heal).max(8);
    let faults = &options.faults;
    let mut plan = Vec::new();
    let span = |rng: &mut ChaCha8Rng| {
        let from = rng.random_range(1..heal_ns / 2);
        (Time(from), Time((from + rng.random_range(1..=heal_ns / 3)).min(heal_ns)))
    };
    let any = |rng: &mut ChaCha8Rng| number(rng.random_range(0..cast.len() as u64));
    let fetchers: Vec<u32> =
        (0..).zip(cast).filter(|(_, p)| p.role == Role::Fetcher).map(|(at, _)| at).collect();
    let fetcher = |rng: &mut ChaCha8Rng| fetchers[rng.random_range(0..fetchers.len() as u64) as usize];
    for _ in 0..faults.crashes {
        let ((from, to), host) = (span(rng), any(rng));
        plan.extend([(from, Trouble::Crash(host)), (to, Trouble::Restart(host))]);
    }
    for nth in 0..faults.partitions {
        // One after the other: hosts have one side or the other.
        let (slot, wide) = (u64::from(nth), heal_ns / u64::from(faults.partitions));
        let from = slot * wide + rng.random_range(0..wide.max(2) / 2);
        let to = from + rng.random_range(1..=wide.max(4) / 4);
        let some = rng.random_range(1..=3);
        let away = (0..).take(cast.len()).filter(|_| rng.random_range(0..4) < some).collect();
        plan.extend([(Time(from), Trouble::Cut(away)), (Time(to), Trouble::Mend)]);
    }
    for _ in 0..faults.full_disks {
        let ((from, to), host) = (span(rng), fetcher(rng));
        plan.extend([(from, Trouble::Full(host)), (to, Trouble::Room(host))]);
    }
    for _ in 0..faults.rots {
        // Not a seed: its block may be the only copy.
        let ((from, _), host) = (span(rng), fetcher(rng));
        if let Some((layer, groups)) = block(layout, &cast[host as usize], rng) {
            plan.push((from, Trouble::Rot(host, layer, groups)));
        }
    }
    for _ in 0..faults.urgent {
        let ((from, _), host) = (span(rng), fetcher(rng));
        let player = &cast[host as usize];
        if let (Some(work), Some((layer, groups))) = (player.works.first(), block(layout, player, rng))
            && layout.models[*work as usize].layers.contains(&layer)
        {
            plan.push((from, Trouble::Urgent(host, *work, layer, groups)));
        }
    }
    for _ in 0..faults.link_breaks {
        let ((from, _), host) = (span(rng), any(rng));
        plan.push((from, Trouble::LinkBreaks(host, rng.random_range(0..u64::MAX))));
    }
    let leaving = (0..).zip(cast).filter_map(|(at, p)| p.leaves.map(|when| (when, Trouble::Leave(at))));
    plan.extend(leaving);
    plan
}

/// Where a transfer is cut, if it is: after this many of its bytes.
pub fn cut(permille: u32, bytes: u64, rng: &mut ChaCha8Rng) -> Option<u64> {
    let hit = permille > 0 && rng.random_range(0..1_000u32) < permille;
    hit.then(|| rng.random_range(0..=bytes))
}

/// What a liar spoils of a range: the number of a group, if this is one of the requests that it lies to.
pub fn lie(one_in: u32, groups: &Range<u64>, rng: &mut ChaCha8Rng) -> Option<u64> {
    let hit = rng.random_range(0..one_in.max(1)) == 0;
    hit.then(|| rng.random_range(groups.clone()))
}

/// A duration in whole nanoseconds.
pub fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn block(layout: &Layout, player: &Player, rng: &mut ChaCha8Rng) -> Option<(u32, Range<u64>)> {
    let work = player.works.first()?;
    let layers = &layout.models[*work as usize].layers;
    let layer = layers[rng.random_range(0..layers.len() as u64) as usize];
    let blocks = layout.blocks(layer);
    let block = rng.random_range(u64::from(blocks.start)..u64::from(blocks.end));
    Some((layer, layout.groups_of(layer, number(block))))
}

fn number(wide: u64) -> u32 {
    u32::try_from(wide).unwrap_or(0)
}
