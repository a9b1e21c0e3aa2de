//! The caller's side: starts a run, supervises it to its end, and says how it went.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::error::SandboxError;
use super::log::Log;
use super::message::{Down, Up};
use super::output::Dirs;
pub use super::output::{OutFile, Refused};
use super::record::Record;
use super::spec::Spec;
use super::start::{next, start};
use super::supervise::Supervisor;

/// How long the command may take to be started.
const START_MAX: Duration = Duration::from_secs(60);

/// How a run went. The evaluator's own success says nothing of its results: those are in `files`, or are not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// How it ended.
    pub ended: Ended,
    /// Wall time in seconds.
    pub wall_seconds: f64,
    /// CPU time of all processes in seconds.
    pub cpu_seconds: f64,
    /// The most memory seen, in bytes, counted as the bound is. Zero if it ended before the first look.
    pub peak_memory_bytes: u64,
    /// What it printed: standard output and error in their order, the middle left out if it was too much.
    pub log: PathBuf,
    /// How much it printed.
    pub printed_bytes: u64,
    /// How much of that is not in the log.
    pub left_out_bytes: u64,
    /// The result directory.
    pub out: PathBuf,
    /// The regular files in it, by name.
    pub files: Vec<OutFile>,
    /// What else is in it, which nobody should open.
    pub refused: Vec<Refused>,
    /// How it was confined.
    pub record: Record,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// The command ended with this code.
    Exit(i32),
    /// A signal killed the command.
    Signal(i32),
    /// It went over a limit and was killed.
    Limit(Limit),
    /// It killed the stage above it, which only a sandbox without a PID namespace permits.
    Lost,
}

/// Which limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// `wall_seconds`.
    Time,
    /// `cpu_seconds`.
    Cpu,
    /// `memory_bytes`.
    Memory,
    /// `out_bytes`, `out_files`, `tmp_bytes`, `tmp_files`, or a file system that is nearly full.
    Disk,
    /// `processes`.
    Processes,
}

/// Runs an evaluator to its end. `live` gets what it prints, as it prints it.
///
/// This blocks, and the kernel kills the run when the calling thread ends before it.
///
/// # Errors
/// The command was not run at all, or the sandbox itself failed; nothing of it runs any more (but see
/// [`SandboxError::Stuck`]). Whatever the evaluator does is an [`Outcome`].
pub fn run(spec: &Spec, live: &mut dyn FnMut(&[u8])) -> Result<Outcome, SandboxError> {
    let dirs =
        Dirs::make(&spec.work).map_err(|e| SandboxError::at(&spec.work, "use the work directory", &e))?;
    let done = run_in(spec, &dirs, live);
    let cleared = dirs.clear_tmp();
    let mut outcome = done?;
    if let Err(e) = cleared {
        let why = format!("the temporary directory is left: {e}");
        outcome.refused.push(Refused { path: "../tmp".to_owned(), why });
    }
    Ok(outcome)
}

fn run_in(spec: &Spec, dirs: &Dirs, live: &mut dyn FnMut(&[u8])) -> Result<Outcome, SandboxError> {
    let log_path = dirs.work.join("log");
    let log = Log::create(&log_path, spec.limits.log_bytes)
        .map_err(|e| SandboxError::at(&log_path, "write", &e))?;
    let (mut running, mut record) = start(spec, dirs)?;
    record.limits.memory_bytes = Some(record.limits.memory());

    let begun = Instant::now();
    let lost = |e| SandboxError::setup("talking to the outer stage", e);
    running.channel.send(&Down::Go).map_err(lost)?;
    let first = next(&mut running.channel, begun + START_MAX).map_err(lost)?;
    if let Some(Up::NotStarted { error }) = first {
        let program = spec.command.first().cloned().unwrap_or_default();
        return Err(SandboxError::NotStarted { program, error });
    }
    // Mostly that it has started; it may also have killed the stage above it before that could say so.
    let mut supervisor = Supervisor::new(running, &record.limits, dirs, log, begun);
    first.into_iter().for_each(|message| supervisor.note(message));
    let report = supervisor.run(live)?;
    let (files, refused) = dirs.list(spec.limits.out_files, spec.limits.out_bytes);
    Ok(Outcome {
        ended: report.ended,
        wall_seconds: report.wall.as_secs_f64(),
        cpu_seconds: report.cpu_seconds,
        peak_memory_bytes: report.peak_memory,
        log: log_path,
        printed_bytes: report.printed,
        left_out_bytes: report.left_out,
        out: dirs.out.clone(),
        files,
        refused,
        record,
    })
}
