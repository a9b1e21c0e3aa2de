//! What a run showed: a table for people, JSON for programs.

use std::fmt;

use serde::Serialize;

use crate::check::Violation;
use crate::options::Options;

/// Counts of what happened.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Events that were handled.
    pub events: u64,
    /// Requests that schedulers made.
    pub asked: u64,
    /// Requests that a server did not hold what was asked for.
    pub missed: u64,
    /// Transfers that broke, or whose server was gone.
    pub lost: u64,
    /// Transfers that schedulers cancelled.
    pub cancelled: u64,
    /// Payloads that failed their proof.
    pub refuted: u64,
    /// Bans.
    pub bans: u64,
    /// Times that a scheduler found no provider for what it lacked.
    pub stalls: u64,
    /// Crashes.
    pub crashes: u64,
    /// Messages that told neighbours of news.
    pub announcements: u64,
    /// Payload bytes that the seed host sent.
    pub seed_bytes: u64,
    /// Payload bytes that all hosts received.
    pub wire_bytes: u64,
}

/// One run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// What was run.
    pub options: Options,
    /// When each fetching host had everything, in nanoseconds, in order of time.
    pub finished_ns: Vec<u64>,
    /// What happened.
    pub counts: Counts,
    /// Hash over every event: equal for equal runs.
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
    seed_copies: f64,
    wire_over_needed: f64,
    unfinished: usize,
    counts: &'a Counts,
    trace: &'a str,
    violations: &'a [Violation],
}

impl Report {
    /// Seconds until a share of the hosts, in percent, had finished. None if they did not.
    pub fn percentile_s(&self, percent: usize) -> Option<f64> {
        let at = (self.options.hosts * percent).div_ceil(100).max(1) - 1;
        self.finished_ns.get(at).map(|ns| *ns as f64 / 1e9)
    }

    /// Last finisher over the lower bound. None if not all finished.
    pub fn last_over_bound(&self) -> Option<f64> {
        self.percentile_s(100).map(|last| last / self.options.bound().as_secs_f64())
    }

    /// Copies of the artifact that the seed host sent.
    pub fn seed_copies(&self) -> f64 {
        self.counts.seed_bytes as f64 / self.options.total_bytes.max(1) as f64
    }

    /// Bytes on the wire over the bytes that the hosts lacked.
    pub fn wire_over_needed(&self) -> f64 {
        let needed = self.options.total_bytes as f64 * self.options.hosts as f64;
        self.counts.wire_bytes as f64 / needed.max(1.0)
    }

    /// One JSON object on one line.
    pub fn json(&self) -> String {
        let json = Json {
            schema_version: 1,
            options: &self.options,
            pieces: self.options.pieces(),
            bound_s: self.options.bound().as_secs_f64(),
            first_s: self.percentile_s(0),
            median_s: self.percentile_s(50),
            last_s: self.percentile_s(100),
            last_over_bound: self.last_over_bound(),
            seed_copies: self.seed_copies(),
            wire_over_needed: self.wire_over_needed(),
            unfinished: self.options.hosts - self.finished_ns.len(),
            counts: &self.counts,
            trace: &self.trace,
            violations: &self.violations,
        };
        serde_json::to_string(&json).expect("plain numbers and texts always serialize")
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |value: Option<f64>| value.map_or("not reached".into(), |s| format!("{s:.3} s"));
        let bound = self.options.bound().as_secs_f64();
        writeln!(f, "{:<28}{bound:.3} s", "lower bound")?;
        for (name, percent) in
            [("first host", 0), ("half of the hosts", 50), ("99 % of the hosts", 99), ("last host", 100)]
        {
            let at = self.percentile_s(percent);
            let over = at.map_or(String::new(), |at| format!("  {:.3} of the bound", at / bound));
            writeln!(f, "{name:<28}{}{over}", seconds(at))?;
        }
        writeln!(f, "{:<28}{:.2} copies", "sent by the seed", self.seed_copies())?;
        writeln!(f, "{:<28}{:.4} of what was needed", "bytes on the wire", self.wire_over_needed())?;
        let c = &self.counts;
        writeln!(
            f,
            "{:<28}{} asked, {} missed, {} lost, {} cancelled, {} refuted",
            "requests", c.asked, c.missed, c.lost, c.cancelled, c.refuted
        )?;
        writeln!(f, "{:<28}{} bans, {} stalls, {} crashes", "trouble", c.bans, c.stalls, c.crashes)?;
        writeln!(f, "{:<28}{}, {} announcements", "events", c.events, c.announcements)?;
        write!(f, "{:<28}{}", "trace", self.trace)?;
        for violation in &self.violations {
            let at = violation.at_ns as f64 / 1e9;
            write!(f, "\nVIOLATION at {at:.6} s: {}: {}", violation.check, violation.what)?;
        }
        Ok(())
    }
}
