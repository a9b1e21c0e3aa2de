//! What a run showed: a table for people, JSON for programs, the completion curve for both.

use std::fmt;

use serde::Serialize;

use crate::check::Violation;
use crate::curve::{self, Curve};
use crate::host::Host;
use crate::layout::Layout;
use crate::options::Options;

/// Counts of what happened.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Events that were handled; a frame to several hosts is one.
    pub events: u64,
    /// Times that a state machine was woken by its own wish.
    pub wakes: u64,
    /// Frames that were sent, by receiver.
    pub frames_sent: u64,
    /// Frames that reached a host.
    pub frames: u64,
    /// Those of them that told of pieces.
    pub news: u64,
    /// Those of them that granted a piece.
    pub grants: u64,
    /// Those of them that declined one.
    pub declines: u64,
    /// Those of them that asked for one by name.
    pub asks: u64,
    /// Links that were asked for.
    pub dials: u64,
    /// Fetches that state machines made.
    pub asked: u64,
    /// Requests whose server did not hold what was asked for.
    pub missed: u64,
    /// Requests that servers refused.
    pub refused: u64,
    /// Requests that broke, or whose server was gone.
    pub lost: u64,
    /// Fetches that state machines cancelled.
    pub cancelled: u64,
    /// Payloads that failed their proof.
    pub refuted: u64,
    /// Bans.
    pub bans: u64,
    /// Times that a state machine said that nobody has what it lacks.
    pub stalls: u64,
    /// Times that a state machine paused for its disk.
    pub pauses: u64,
    /// Crashes, and hosts that left.
    pub crashes: u64,
    /// Hosts that left for good.
    pub left: u64,
    /// Partitions.
    pub partitions: u64,
    /// Blocks that rotted.
    pub rots: u64,
    /// Links that broke.
    pub links_broken: u64,
    /// Deeds of hostile hosts.
    pub harm: u64,
    /// Payload bytes that seeds sent.
    pub seed_bytes: u64,
    /// Payload bytes that all hosts received.
    pub wire_bytes: u64,
    /// Those of them that left a rack.
    pub crossing_bytes: u64,
    /// Those of them that the receiver had stored already when they were written.
    pub wasted_bytes: u64,
    /// Bytes that the hosts that the run is for hold and lacked at first.
    pub stored_bytes: u64,
}

/// When hosts were through. Of those that the run is for: they fetch and stay.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Times {
    /// Hosts that the run is for.
    pub hosts: usize,
    /// Those of them that did not finish.
    pub unfinished: usize,
    /// Bytes that they lacked at first.
    pub lacked_bytes: u64,
    /// When each full-speed host that was there from the start had everything, in nanoseconds, in order of time. The
    /// bound is about these.
    #[serde(skip)]
    pub early_ns: Vec<u64>,
    /// Full-speed hosts that were there from the start.
    pub early_hosts: usize,
    /// The last of all, slow and late ones too, in nanoseconds.
    pub last_ns: u64,
    /// The longest that a full-speed host took from its own start, in nanoseconds.
    pub own_max_ns: u64,
    /// When the median of all of them held the first 25, 50 and 75 % of its first manifest without a hole, from its
    /// own start, in thousandths of what one host needs to receive its bytes once.
    pub prefix_permille: [Option<u64>; 3],
}

/// One run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// What was run.
    pub options: Options,
    /// The lower bound, in nanoseconds.
    pub bound_ns: u64,
    /// Pieces of the longest manifest: the M of the bound.
    pub pieces: u64,
    /// When hosts were through.
    pub times: Times,
    /// What happened.
    pub counts: Counts,
    /// How it went on.
    pub curve: Curve,
    /// Hash over everything that happened: equal for equal runs.
    pub trace: String,
    /// What did not hold.
    pub violations: Vec<Violation>,
}

#[derive(Serialize)]
struct Json<'a> {
    schema_version: u32,
    options: &'a Options,
    pieces: u64,
    bound_s: f64,
    first_s: Option<f64>,
    median_s: Option<f64>,
    last_s: Option<f64>,
    last_over_bound: Option<f64>,
    own_max_over_bound: f64,
    prefix_25: Option<f64>,
    prefix_50: Option<f64>,
    prefix_75: Option<f64>,
    seed_copies: f64,
    crossing_share: f64,
    wire_over_needed: f64,
    times: &'a Times,
    counts: &'a Counts,
    trace: &'a str,
    violations: &'a [Violation],
}

impl Times {
    /// From how the hosts ended.
    pub fn of(hosts: &[Host], layout: &Layout, bound_ns: u64) -> Self {
        let for_them: Vec<&Host> = hosts.iter().filter(|host| host.player.counts()).collect();
        let early = |host: &&&Host| !host.player.slow && !host.player.late;
        let done = |host: &Host| host.finished.map(|at| at.0);
        let mut early_ns: Vec<u64> = for_them.iter().filter(early).filter_map(|host| done(host)).collect();
        early_ns.sort_unstable();
        let own = |host: &&Host| Some(host.finished?.0.saturating_sub(host.player.start.0));
        let prefix = |mark: usize| {
            let mut all: Vec<Option<u64>> =
                for_them.iter().map(|host| prefix_permille(host, mark, bound_ns)).collect();
            all.sort_unstable_by_key(|at| at.unwrap_or(u64::MAX));
            all.get(all.len() / 2).copied().flatten()
        };
        Self {
            hosts: for_them.len(),
            unfinished: for_them.iter().filter(|host| host.finished.is_none()).count(),
            lacked_bytes: for_them.iter().map(|host| host.player.lacks_bytes(layout)).sum(),
            early_hosts: for_them.iter().filter(early).count(),
            early_ns,
            last_ns: for_them.iter().filter_map(|host| done(host)).max().unwrap_or(0),
            own_max_ns: for_them.iter().filter(|host| !host.player.slow).filter_map(own).max().unwrap_or(0),
            prefix_permille: [prefix(0), prefix(1), prefix(2)],
        }
    }
}

fn prefix_permille(host: &Host, mark: usize, bound_ns: u64) -> Option<u64> {
    let progress = host.progress.first()?;
    let at = progress.prefix[mark]?.0.saturating_sub(host.player.start.0);
    let bytes: u64 = host.progress.iter().map(|progress| progress.lacked).sum();
    let once = u128::from(bytes) * 1_000_000_000 / u128::from(host.player.down.max(1));
    let once = if once == 0 { u128::from(bound_ns) } else { once };
    u64::try_from(u128::from(at) * 1_000 / once.max(1)).ok()
}

impl Report {
    /// Seconds until a share of the hosts that the bound is about, in percent, had finished. None if they did not.
    pub fn percentile_s(&self, percent: usize) -> Option<f64> {
        let at = (self.times.early_hosts * percent).div_ceil(100).max(1) - 1;
        self.times.early_ns.get(at).map(|ns| *ns as f64 / 1e9)
    }

    /// Last finisher over the lower bound. None if not all finished.
    pub fn last_over_bound(&self) -> Option<f64> {
        self.percentile_s(100).map(|last| last / self.bound_s())
    }

    /// The lower bound in seconds.
    pub fn bound_s(&self) -> f64 {
        self.bound_ns as f64 / 1e9
    }

    /// Copies of all manifests that the seeds sent.
    pub fn seed_copies(&self) -> f64 {
        let models = self.options.models.max(1) as f64;
        self.counts.seed_bytes as f64 / (self.options.total_bytes.max(1) as f64 * models)
    }

    /// Bytes that left a rack over all bytes on the wire.
    pub fn crossing_share(&self) -> f64 {
        self.counts.crossing_bytes as f64 / (self.counts.wire_bytes as f64).max(1.0)
    }

    /// Bytes on the wire over the bytes that the hosts hold of it in the end; those that left count as waste.
    pub fn wire_over_needed(&self) -> f64 {
        self.counts.wire_bytes as f64 / (self.counts.stored_bytes as f64).max(1.0)
    }

    /// When the median host held the first quarters (1 to 3) of its manifest, in units of receiving all once.
    pub fn prefix(&self, quarters: usize) -> Option<f64> {
        self.times.prefix_permille[quarters - 1].map(|permille| permille as f64 / 1e3)
    }

    /// One JSON object on one line.
    pub fn json(&self) -> String {
        let json = Json {
            schema_version: 2,
            options: &self.options,
            pieces: self.pieces,
            bound_s: self.bound_s(),
            first_s: self.percentile_s(0),
            median_s: self.percentile_s(50),
            last_s: self.percentile_s(100),
            last_over_bound: self.last_over_bound(),
            own_max_over_bound: self.times.own_max_ns as f64 / self.bound_ns as f64,
            prefix_25: self.prefix(1),
            prefix_50: self.prefix(2),
            prefix_75: self.prefix(3),
            seed_copies: self.seed_copies(),
            crossing_share: self.crossing_share(),
            wire_over_needed: self.wire_over_needed(),
            times: &self.times,
            counts: &self.counts,
            trace: &self.trace,
            violations: &self.violations,
        };
        serde_json::to_string(&json).expect("plain numbers and texts always serialize")
    }

    /// The completion curve against the lower bound.
    pub fn svg(&self) -> String {
        let over = self
            .last_over_bound()
            .map_or("not all finished".into(), |over| format!("last {over:.3} of the bound"));
        self.curve.svg(&curve::Frame {
            title: format!(
                "{}: {} hosts, {:.2} GiB in {} pieces, seed {}; {over}",
                self.options.scenario,
                self.times.hosts,
                self.options.total_bytes as f64 / f64::from(1 << 30),
                self.pieces,
                self.options.seed
            ),
            bound_ns: self.bound_ns,
            hosts: self.times.hosts,
            bytes: self.times.lacked_bytes,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bound = self.bound_s();
        writeln!(f, "{:<28}{bound:.3} s, {} pieces", "lower bound", self.pieces)?;
        for (name, percent) in
            [("first host", 0), ("half of the hosts", 50), ("99 % of the hosts", 99), ("last host", 100)]
        {
            match self.percentile_s(percent) {
                Some(at) => writeln!(f, "{name:<28}{at:.3} s  {:.3} of the bound", at / bound)?,
                None => writeln!(f, "{name:<28}not reached")?,
            }
        }
        let times = &self.times;
        if times.early_hosts < times.hosts {
            let last = times.last_ns as f64 / 1e9;
            writeln!(f, "{:<28}{last:.3} s, slow and late hosts too", "last of all")?;
            let own = times.own_max_ns as f64 / 1e9;
            writeln!(f, "{:<28}{own:.3} s  {:.3} of the bound", "longest from its own start", own / bound)?;
        }
        let prefix = |quarters| self.prefix(quarters).map_or("-".into(), |at| format!("{at:.3}"));
        writeln!(
            f,
            "{:<28}{} / {} / {} of receiving all once",
            "first 25/50/75 % on median",
            prefix(1),
            prefix(2),
            prefix(3)
        )?;
        writeln!(f, "{:<28}{:.3} copies", "sent by seeds", self.seed_copies())?;
        if self.options.racks > 0 {
            writeln!(f, "{:<28}{:.2} % of the bytes", "left a rack", self.crossing_share() * 100.0)?;
        }
        writeln!(f, "{:<28}{:.4} of what was needed", "bytes on the wire", self.wire_over_needed())?;
        let c = &self.counts;
        writeln!(
            f,
            "{:<28}{} asked, {} missed, {} refused, {} lost, {} cancelled, {} refuted",
            "fetches", c.asked, c.missed, c.refused, c.lost, c.cancelled, c.refuted
        )?;
        writeln!(
            f,
            "{:<28}{} bans, {} stalls, {} pauses, {} crashes, {} left, {} partitions, {} rots",
            "trouble", c.bans, c.stalls, c.pauses, c.crashes, c.left, c.partitions, c.rots
        )?;
        writeln!(f, "{:<28}{}, {} wakes, {} dials", "events", c.events, c.wakes, c.dials)?;
        writeln!(
            f,
            "{:<28}{}: {} news, {} grants, {} declines, {} asks",
            "frames", c.frames, c.news, c.grants, c.declines, c.asks
        )?;
        write!(f, "{:<28}{}", "trace", self.trace)?;
        for violation in &self.violations {
            let at = violation.at_ns as f64 / 1e9;
            write!(f, "\nVIOLATION at {at:.6} s: {}: {}", violation.check, violation.what)?;
        }
        Ok(())
    }
}
