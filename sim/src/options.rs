//! What a run is made of: given by hand or drawn from the seed, and printed before anything happens.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use weighlock_protocol::swarm::{SwarmConfig, piece_bytes};

use crate::scenario::Scenario;

/// Most hosts that a run takes.
pub const HOSTS_MAX: usize = 20_000;

/// Everything that decides a run, beside the code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Options {
    /// What is rehearsed.
    pub scenario: Scenario,
    /// The only randomness.
    pub seed: u64,
    /// Hosts that fetch from the start on. Seeds, hostile hosts and those that come for others are on top.
    pub hosts: usize,
    /// Hosts that hold everything from the start.
    pub seeds: usize,
    /// Manifests.
    pub models: usize,
    /// Bytes of one manifest.
    pub total_bytes: u64,
    /// Weights files of one manifest.
    pub shards: u32,
    /// Small files of one manifest, beside contract and configuration.
    pub small_files: u32,
    /// Uplink of each host, bytes per second.
    pub up_bytes_per_s: u64,
    /// Downlink of each host, bytes per second.
    pub down_bytes_per_s: u64,
    /// One way between near hosts (in one rack), microseconds.
    pub latency_us: u64,
    /// One way between all others, microseconds.
    pub far_latency_us: u64,
    /// How long it takes until flows feel that others came or went, microseconds.
    pub share_us: u64,
    /// Racks; 0: one switch with room for everybody.
    pub racks: u32,
    /// Uplinks of a rack's hosts, summed, in percent of the rack's own links: 400 is 4:1.
    pub oversubscription_percent: u32,
    /// Fetching hosts with a tenth of the rate, of a thousand.
    pub slow_permille: u32,
    /// Fetching hosts that leave for good while it runs, of a thousand; as many others come.
    pub churn_permille: u32,
    /// Hosts begin to fetch within this time, microseconds.
    pub spread_us: u64,
    /// Hosts that are named to each host, about.
    pub candidates: usize,
    /// What can go wrong.
    pub faults: Faults,
    /// Hosts that mean harm.
    pub hostile: Hostile,
    /// What the hosts' state machines are told.
    pub limits: Limits,
}

/// How often things go wrong before the faults heal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Faults {
    /// Crashes, each followed by a restart.
    pub crashes: u32,
    /// Transfers cut at a random point, of a thousand.
    pub cut_permille: u32,
    /// Times that some hosts are cut from the rest.
    pub partitions: u32,
    /// How long it takes to notice that a host is out of reach, microseconds.
    pub notice_us: u64,
    /// Times that a disk is full for a while.
    pub full_disks: u32,
    /// Hosts with a slow disk, for good.
    pub slow_disks: u32,
    /// Hosts whose clock runs off, for good.
    pub skewed_clocks: u32,
    /// Times that a block on a disk rots.
    pub rots: u32,
    /// Times that a loader waits for a range.
    pub urgent: u32,
    /// Links between neighbours that break.
    pub link_breaks: u32,
}

/// Hosts that mean harm. They stay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Hostile {
    /// Hold everything and serve wrong bytes.
    pub liars: u32,
    /// One in so many requests to a liar gets wrong bytes.
    pub lie_one_in: u32,
    /// Declare everything and hold nothing.
    pub false_announcers: u32,
    /// Grant pieces and never send.
    pub mutes: u32,
    /// Send far more frames than anyone needs.
    pub flooders: u32,
    /// Send frames that make no sense.
    pub garblers: u32,
    /// Ask for everything at once without a grant.
    pub greedy: u32,
    /// Declare what they have and never grant.
    pub silents: u32,
}

/// What is set of [`SwarmConfig`]; the rest is as the daemon has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Shortest piece, bytes.
    pub piece_bytes_min: u64,
    /// Longest piece, bytes.
    pub piece_bytes_max: u64,
    /// Most pieces of a manifest, about.
    pub piece_count_max: u64,
    /// Links that a host opens by itself until it has this many.
    pub neighbours_target: usize,
    /// Links that it accepts.
    pub neighbours_max: usize,
    /// Uploads that run at a time.
    pub uploads_max: usize,
    /// The same while a first holder releases pieces.
    pub uploads_release_max: usize,
    /// Fetches in flight up to which offers of any piece are taken.
    pub downloads_aim: usize,
    /// Fetches in flight.
    pub downloads_max: usize,
    /// News is gathered for at most this long, milliseconds.
    pub news_ms_max: u64,
    /// Bytes in flight.
    pub in_flight_bytes_max: u64,
    /// Payload bytes per second from each host.
    pub upload_bytes_per_s: Option<u64>,
    /// Payload bytes per second to each host.
    pub download_bytes_per_s: Option<u64>,
    /// Frames that a link may send at once.
    pub frames_burst_max: u32,
    /// Shortest time for a fetch, milliseconds.
    pub deadline_ms_min: u64,
    /// Requests that wait in all.
    pub requests_max: usize,
    /// Rate assumed of a peer that was not yet measured, bytes per second.
    pub rate_initial_bytes_per_s: u64,
}

impl Options {
    /// `hosts` hosts want the same bytes at once, one has them. 10 Gb/s each way, 0.1 ms, nothing goes wrong.
    pub fn new(hosts: usize, total_bytes: u64, seed: u64) -> Self {
        let config = SwarmConfig::default();
        let rate = 1_250_000_000;
        let mut this = Self {
            scenario: Scenario::FlashCrowd,
            seed,
            hosts: hosts.clamp(1, HOSTS_MAX),
            seeds: 1,
            models: 1,
            total_bytes,
            shards: u32::try_from(total_bytes.div_ceil(5 << 30).clamp(1, 10_000)).unwrap_or(10_000),
            small_files: 6,
            up_bytes_per_s: rate,
            down_bytes_per_s: rate,
            latency_us: 100,
            far_latency_us: 200,
            share_us: 0,
            racks: 0,
            oversubscription_percent: 100,
            slow_permille: 0,
            churn_permille: 0,
            spread_us: 1_000,
            candidates: 300,
            faults: Faults { notice_us: 500_000, ..Faults::default() },
            hostile: Hostile { lie_one_in: 1, ..Hostile::default() },
            limits: Limits {
                piece_bytes_min: config.piece_bytes_min,
                piece_bytes_max: config.piece_bytes_max,
                piece_count_max: config.piece_count_max,
                neighbours_target: config.neighbours_target,
                neighbours_max: config.neighbours_max,
                uploads_max: config.uploads_max,
                uploads_release_max: config.uploads_release_max,
                downloads_aim: config.downloads_aim,
                downloads_max: config.downloads_max,
                news_ms_max: config.news_ms_max,
                in_flight_bytes_max: config.in_flight_bytes_max,
                upload_bytes_per_s: None,
                download_bytes_per_s: None,
                frames_burst_max: config.frames_burst_max,
                deadline_ms_min: config.deadline_ms_min,
                requests_max: config.requests_max,
                rate_initial_bytes_per_s: config.rate_initial_bytes_per_s,
            },
        };
        this.pace();
        this
    }

    /// Sets how often the network is shared anew: 64 times while a piece crosses a free link.
    pub fn pace(&mut self) {
        let piece_us = self.piece_bytes() * 1_000_000 / self.up_bytes_per_s.max(1);
        self.share_us = (piece_us / 64).max(1);
    }

    /// The limits that the hosts run with.
    pub fn config(&self) -> SwarmConfig {
        let limits = &self.limits;
        SwarmConfig {
            piece_bytes_min: limits.piece_bytes_min,
            piece_bytes_max: limits.piece_bytes_max,
            piece_count_max: limits.piece_count_max,
            neighbours_target: limits.neighbours_target,
            neighbours_max: limits.neighbours_max,
            uploads_max: limits.uploads_max,
            uploads_release_max: limits.uploads_release_max,
            downloads_aim: limits.downloads_aim,
            downloads_max: limits.downloads_max,
            news_ms_max: limits.news_ms_max,
            in_flight_bytes_max: limits.in_flight_bytes_max,
            upload_bytes_per_s: limits.upload_bytes_per_s,
            download_bytes_per_s: limits.download_bytes_per_s,
            frames_burst_max: limits.frames_burst_max,
            deadline_ms_min: limits.deadline_ms_min,
            requests_max: limits.requests_max,
            rate_initial_bytes_per_s: limits.rate_initial_bytes_per_s,
            ..SwarmConfig::default()
        }
    }

    /// Length of a piece of one manifest, bytes.
    pub fn piece_bytes(&self) -> u64 {
        piece_bytes(&self.config(), self.total_bytes)
    }

    /// One way between near hosts and between others.
    pub fn latencies(&self) -> [Duration; 2] {
        [Duration::from_micros(self.latency_us), Duration::from_micros(self.far_latency_us)]
    }

    /// True if nothing goes wrong and nobody means harm.
    pub fn is_calm(&self) -> bool {
        let faults =
            Faults { notice_us: self.faults.notice_us, urgent: self.faults.urgent, ..Faults::default() };
        let hostile = Hostile { lie_one_in: self.hostile.lie_one_in, ..Hostile::default() };
        self.faults == faults
            && self.hostile == hostile
            && self.slow_permille == 0
            && self.churn_permille == 0
            && self.scenario != Scenario::SeedDies
    }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (faults, hostile, limits) = (&self.faults, &self.hostile, &self.limits);
        writeln!(f, "scenario {} seed {}", self.scenario, self.seed)?;
        writeln!(
            f,
            "  {} hosts and {} seeds, {} manifests of {} bytes in {} weights files and {} small ones, pieces of {} bytes",
            self.hosts,
            self.seeds,
            self.models,
            self.total_bytes,
            self.shards,
            self.small_files,
            self.piece_bytes()
        )?;
        writeln!(
            f,
            "  up {} B/s, down {} B/s, latency {} us near and {} us far, shared anew after {} us",
            self.up_bytes_per_s, self.down_bytes_per_s, self.latency_us, self.far_latency_us, self.share_us
        )?;
        writeln!(
            f,
            "  {} racks, over-subscribed {} %, {} of 1000 hosts slow, {} of 1000 leave, begin within {} us",
            self.racks,
            self.oversubscription_percent,
            self.slow_permille,
            self.churn_permille,
            self.spread_us
        )?;
        writeln!(
            f,
            "  {}-{} neighbours of {} candidates, {}-{} uploads, {}-{} downloads, {} bytes in flight, news within {} ms",
            limits.neighbours_target,
            limits.neighbours_max,
            self.candidates,
            limits.uploads_max,
            limits.uploads_release_max,
            limits.downloads_aim,
            limits.downloads_max,
            limits.in_flight_bytes_max,
            limits.news_ms_max
        )?;
        let rate = |limit: Option<u64>| limit.map_or("unlimited".into(), |limit| format!("{limit} B/s"));
        writeln!(
            f,
            "  limits: up {}, down {}, {} frames at once, {} requests wait, deadlines from {} ms on, {} B/s assumed",
            rate(limits.upload_bytes_per_s),
            rate(limits.download_bytes_per_s),
            limits.frames_burst_max,
            limits.requests_max,
            limits.deadline_ms_min,
            limits.rate_initial_bytes_per_s
        )?;
        writeln!(
            f,
            "  faults: {} crashes, {} of 1000 transfers cut, {} partitions (noticed after {} us), {} full disks,",
            faults.crashes, faults.cut_permille, faults.partitions, faults.notice_us, faults.full_disks
        )?;
        writeln!(
            f,
            "    {} slow disks, {} skewed clocks, {} rots, {} broken links, {} urgent ranges",
            faults.slow_disks, faults.skewed_clocks, faults.rots, faults.link_breaks, faults.urgent
        )?;
        write!(
            f,
            "  hostile: {} liars (one request in {}), {} false announcers, {} mutes, {} flooders, {} garblers, {} greedy, {} silent",
            hostile.liars,
            hostile.lie_one_in,
            hostile.false_announcers,
            hostile.mutes,
            hostile.flooders,
            hostile.garblers,
            hostile.greedy,
            hostile.silents
        )
    }
}
