//! Who takes part in a run, with what in hand, and the bound that no swarm of these hosts beats.

use std::time::Duration;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use weighlock_protocol::Time;

use crate::layout::Layout;
use crate::options::Options;

/// What a host does in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Holds everything from the start.
    Seed,
    /// Wants its manifests.
    Fetcher,
    /// Holds everything and serves wrong bytes.
    Liar,
    /// Declares everything and holds nothing.
    FalseAnnouncer,
    /// Holds everything, grants, and never sends.
    Mute,
    /// Holds everything, says so, and never grants.
    Silent,
    /// Holds everything and sends far too many frames.
    Flooder,
    /// Holds everything and sends frames that make no sense.
    Garbler,
    /// Holds nothing and asks for everything without a grant.
    Greedy,
}

/// One host as the run begins.
#[derive(Debug, Clone)]
pub struct Player {
    /// What it does.
    pub role: Role,
    /// Where it stands.
    pub rack: Option<u32>,
    /// Bytes per second.
    pub up: u64,
    /// Bytes per second.
    pub down: u64,
    /// A tenth of the rate of others.
    pub slow: bool,
    /// When it comes.
    pub start: Time,
    /// It comes when the others are long at work; the bound is not about it.
    pub late: bool,
    /// When it leaves for good.
    pub leaves: Option<Time>,
    /// Manifests that it takes part in.
    pub works: Vec<u32>,
    /// Layers that it has from the start.
    pub holds: Vec<u32>,
    /// Bytes per second that its disk writes, where that is less than its downlink.
    pub disk: Option<u64>,
    /// Its clock shows so many nanoseconds more from the start on ...
    pub clock_ahead_ns: u64,
    /// ... and gains so many millionths.
    pub clock_gain_ppm: i64,
}

impl Player {
    /// True if the run is for its sake: it fetches and stays.
    pub fn counts(&self) -> bool {
        self.role == Role::Fetcher && self.leaves.is_none()
    }

    /// Bytes that it lacks at the start.
    pub fn lacks_bytes(&self, layout: &Layout) -> u64 {
        let mut wants: Vec<u32> =
            self.works.iter().flat_map(|work| &layout.models[*work as usize].layers).copied().collect();
        wants.sort_unstable();
        wants.dedup();
        let lacks = wants.iter().filter(|layer| !self.holds.contains(layer));
        lacks.map(|layer| layout.layers[*layer as usize].size).sum()
    }
}

/// The usual cast: seeds, fetching hosts, hostile ones, in racks of equal size; some slow, some that leave and others
/// that come for them.
pub fn usual(options: &Options, layout: &Layout, rng: &mut ChaCha8Rng) -> Vec<Player> {
    let everything: Vec<u32> = (0..).take(layout.layers.len()).collect();
    let works: Vec<u32> = (0..).take(layout.models.len()).collect();
    let hostile = &options.hostile;
    let roles = [
        (Role::Seed, options.seeds.max(1)),
        (Role::Fetcher, options.hosts),
        (Role::Liar, hostile.liars as usize),
        (Role::FalseAnnouncer, hostile.false_announcers as usize),
        (Role::Mute, hostile.mutes as usize),
        (Role::Flooder, hostile.flooders as usize),
        (Role::Garbler, hostile.garblers as usize),
        (Role::Greedy, hostile.greedy as usize),
        (Role::Silent, hostile.silents as usize),
    ];
    let mut cast: Vec<Player> = Vec::new();
    for (role, count) in roles {
        let empty = matches!(role, Role::Fetcher | Role::FalseAnnouncer | Role::Greedy);
        for _ in 0..count {
            let spread = if role == Role::Seed { 1 } else { options.spread_us.max(1) * 1_000 };
            cast.push(Player {
                role,
                rack: None,
                up: options.up_bytes_per_s,
                down: options.down_bytes_per_s,
                slow: false,
                start: Time(rng.random_range(0..spread)),
                late: false,
                leaves: None,
                works: works.clone(),
                holds: if empty { Vec::new() } else { everything.clone() },
                disk: None,
                clock_ahead_ns: 0,
                clock_gain_ppm: 0,
            });
        }
    }
    change(options, layout, &mut cast, rng);
    stand(options, &mut cast);
    cast
}

/// Stands hosts in racks of equal size, in order.
pub fn stand(options: &Options, cast: &mut [Player]) {
    if options.racks > 0 {
        let size = cast.len().div_ceil(options.racks as usize);
        for (at, player) in cast.iter_mut().enumerate() {
            player.rack = u32::try_from(at / size).ok();
        }
    }
}

/// Links of each rack, up and down, in bytes per second.
pub fn rack_links(options: &Options, cast: &[Player]) -> Vec<(u64, u64)> {
    let link = |rack: u32| {
        let inside = || cast.iter().filter(move |player| player.rack == Some(rack));
        let share = |sum: u64| (sum * 100 / u64::from(options.oversubscription_percent.max(1))).max(1);
        (share(inside().map(|player| player.up).sum()), share(inside().map(|player| player.down).sum()))
    };
    (0..options.racks).map(link).collect()
}

fn change(options: &Options, layout: &Layout, cast: &mut Vec<Player>, rng: &mut ChaCha8Rng) {
    let fetchers: Vec<usize> = (0..cast.len()).filter(|at| cast[*at].role == Role::Fetcher).collect();
    let pick = |rng: &mut ChaCha8Rng| fetchers[rng.random_range(0..fetchers.len() as u64) as usize];
    for _ in 0..fetchers.len() * options.slow_permille as usize / 1_000 {
        let player = &mut cast[pick(rng)];
        if !player.slow {
            (player.slow, player.up, player.down) =
                (true, (player.up / 10).max(1), (player.down / 10).max(1));
        }
    }
    for _ in 0..options.faults.slow_disks {
        let (player, slower) = (&mut cast[pick(rng)], rng.random_range(1..=8));
        // One that is slow in both ways would need more patience than a run has.
        if !player.slow {
            player.disk = Some((player.down / slower).max(1));
        }
    }
    for _ in 0..options.faults.skewed_clocks {
        let player = &mut cast[pick(rng)];
        player.clock_ahead_ns = rng.random_range(0..1_000_000_000_000);
        player.clock_gain_ppm = rng.random_range(-50_000..=50_000);
    }
    let plain = Duration::from_nanos(bound_ns(layout, cast, 1));
    for _ in 0..fetchers.len() * options.churn_permille as usize / 1_000 {
        let at = pick(rng);
        // Somebody must stay, or the run is for nobody's sake.
        if cast[at].leaves.is_some() || fetchers.iter().filter(|at| cast[**at].counts()).count() < 2 {
            continue;
        }
        let when = cast[at].start + plain * rng.random_range(50..950) / 1_000;
        let mut other = cast[at].clone();
        cast[at].leaves = Some(when);
        (other.start, other.late, other.leaves) = (when, true, None);
        cast.push(other);
    }
}

/// The longest that any host that counts needs for its own download, slow and late ones too, in nanoseconds.
pub fn longest_ns(layout: &Layout, cast: &[Player]) -> u64 {
    let own =
        |player: &Player| ns(player.lacks_bytes(layout), player.down.min(player.disk.unwrap_or(u64::MAX)));
    cast.iter().filter(|player| player.counts()).map(own).max().unwrap_or(0)
}

/// No swarm of these hosts finishes earlier (Kumar, Ross 2006): the longest of one download, one copy out of the seeds,
/// and all copies out of all uplinks; with `rounds / M` of it on top for passing pieces on, where `rounds` is
/// floor(log2 of receivers per seed) (Mundinger, Weber, Weiss 2008). Counts full-speed hosts that are there from the
/// start, in nanoseconds; `pieces` is M.
pub fn bound_ns(layout: &Layout, cast: &[Player], pieces: u64) -> u64 {
    let early = cast.iter().filter(|player| player.counts() && !player.slow && !player.late);
    let early: Vec<&Player> = early.collect();
    let seeds: Vec<&Player> = cast.iter().filter(|player| player.role == Role::Seed).collect();
    let alone = early.iter().map(|player| ns(player.lacks_bytes(layout), player.down)).max().unwrap_or(0);
    let nowhere = |layer: u32| {
        let held = |player: &&Player| player.role == Role::Fetcher && player.holds.contains(&layer);
        let wanted = early.iter().any(|player| {
            player.works.iter().any(|work| layout.models[*work as usize].layers.contains(&layer))
        });
        wanted && !cast.iter().any(|player| held(&player))
    };
    let once: u64 =
        (0..).zip(&layout.layers).filter(|(layer, _)| nowhere(*layer)).map(|(_, layer)| layer.size).sum();
    let out = ns(once, seeds.iter().map(|seed| seed.up).sum());
    let up = cast.iter().map(|player| player.up).sum();
    let all = early.iter().map(|player| player.lacks_bytes(layout)).fold(0, u64::saturating_add);
    let base = alone.max(out).max(ns(all, up));
    let rounds = (early.len() / seeds.len().max(1)).max(1).ilog2();
    base + u64::try_from(u128::from(base) * u128::from(rounds) / u128::from(pieces.max(1))).unwrap_or(0)
}

fn ns(bytes: u64, rate: u64) -> u64 {
    u64::try_from(u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1))).unwrap_or(u64::MAX)
}
