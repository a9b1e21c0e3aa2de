//! `weighlock eval REF --run CMD`: runs an evaluator shut in, and signs what it reports.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use clap::Args;
use tempfile::TempDir;
use weighlock_protocol::Reference;
use weighlock_protocol::audit::Door;
use weighlock_protocol::gate::report::HostProfile;

use super::evidence::{self, About, Signed};
use super::{Context, sides, sign};
use crate::error::{Error, Result};
use crate::hardware;
use crate::local::message::{AdminRequest, Viewed, Weighed};
use crate::sandbox::{self, Ended, Limit, Outcome, Require, SandboxError, SandboxLimits, Spec};
use crate::weigh::key;
use crate::weigh::report::Loaded;

/// Lines of the evaluator's log that an error shows.
const LOG_LINES: usize = 5;
/// Most bytes of the log that are read for that.
const LOG_TAIL_BYTES: usize = 16 << 10;

/// Pieces of what an evaluator prints, of up to 64 KiB, that wait to be shown.
const SHOWN_CHUNKS_MAX: usize = 64;

/// How long its last words may take.
const SHOWN_WAIT: Duration = Duration::from_secs(1);

const AFTER_HELP: &str = "\
CMD is run without a shell, without a network, and with all files read-only but {out} and a temporary
directory. {path} stands for the artifact's directory, {out} for the directory that it leaves its
report in: report.json, or the results of lm-evaluation-harness. What the host does not offer for the
sandbox is written into the evidence. For example:
  weighlock eval acme/support-bot:1.4.0 --suite nightly-v3 --run 'python3 eval.py {path} {out}'";

/// Run an evaluator on an artifact, without network, and sign its report.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Eval {
    /// ns/name:tag or ns/name@sha256:...
    reference: String,
    /// The evaluator
    #[arg(long, value_name = "CMD")]
    run: String,
    #[command(flatten)]
    about: About,
    /// The evaluator's key, more where the root asks for more [default: WEIGHLOCK_SIGNING_KEY, else the admin key]
    #[arg(long, value_name = "FILE")]
    key: Vec<PathBuf>,
    #[command(flatten)]
    limits: RunLimits,
}

/// What an evaluator may use.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Evaluator")]
pub(super) struct RunLimits {
    /// Seconds that it may take [default: 21600]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    timeout: Option<u64>,
    /// Memory that it may use, such as 16GiB [default: 90 % of the host's]
    #[arg(long, value_name = "BYTES", value_parser = byte_count)]
    memory: Option<u64>,
    /// Hand on this environment variable, or set it with NAME=VALUE (may be repeated)
    #[arg(long, value_name = "NAME")]
    env: Vec<String>,
    /// Do not run where the sandbox is not complete
    #[arg(long)]
    full_sandbox: bool,
}

/// A run that left a report.
pub(super) struct Ran {
    pub(super) loaded: Loaded,
    /// What it printed.
    pub(super) log: PathBuf,
    /// How it was shut in, in one line.
    pub(super) sandbox: String,
    _work: TempDir,
}

impl Eval {
    pub(super) fn run(self, context: &Context) -> Result<()> {
        let reference: Reference = self.reference.parse()?;
        let weighed: Weighed = context.ask(&AdminRequest::Weighed { reference: reference.to_string() })?;
        // Asked first: nobody wants to hear it after hours of evaluation.
        let keys = key::evaluators(&self.key, &context.dirs, Some(&weighed.cluster))?;
        let exact = sides::exactly(&reference, weighed.digest);
        let purpose = sign::to_evaluate(context, &exact, &keys[0])?;
        let viewed: Viewed =
            context.ask(&AdminRequest::View { reference: exact.to_string(), purpose, door: Door::Eval })?;
        if let Some(said) = &sides::without_reports(context, &reference, &weighed)?.contract {
            sides::check_contract(&viewed.path, said)?;
        }
        let mut ran = self.limits.run(context, &self.run, &viewed.path, &self.key)?;
        self.about.fill(&mut ran.loaded, context)?;
        let run = Some((ran.log.as_path(), ran.sandbox.as_str()));
        let signed = evidence::store(context, &reference, &weighed, ran.loaded.clone(), run, &keys)?;
        for warning in &signed.warnings {
            eprintln!("warning: {warning}");
        }
        context
            .output
            .print(&signed, |signed: &Signed| format!("{}{}\n", evidence::signed_text(signed), ran.sandbox))
    }
}

impl RunLimits {
    /// Runs an evaluator on a directory and reads what it reports. What it prints goes to standard error.
    ///
    /// # Errors
    /// It did not run, was ended by a limit, failed, or left no report that is understood.
    pub(super) fn run(
        &self,
        context: &Context,
        command: &str,
        model: &Path,
        key_files: &[PathBuf],
    ) -> Result<Ran> {
        let work =
            tempfile::tempdir().map_err(|e| Error::internal(format!("no temporary directory: {e}")))?;
        let command = sandbox::split(command).map_err(of_sandbox)?;
        let mut spec = Spec::new(command, model.to_owned(), work.path().join("run"));
        spec.hidden =
            vec![context.dirs.keys.clone(), context.dirs.data.clone(), context.dirs.sockets.clone()];
        // What it prints is kept for others to read, so it must not come by the key.
        spec.hidden.extend(key_files.iter().cloned().chain(key::env_path()));
        spec.hidden.extend(std::env::var_os("WEIGHLOCK_ADMIN_KEY").map(PathBuf::from));
        for path in &mut spec.hidden {
            *path = std::path::absolute(&path).unwrap_or_else(|_| path.clone());
        }
        spec.hidden.retain(|path| path.exists());
        spec.env.clone_from(&self.env);
        spec.limits = SandboxLimits {
            wall_seconds: self.timeout.unwrap_or(SandboxLimits::default().wall_seconds),
            memory_bytes: self.memory,
            ..SandboxLimits::default()
        };
        spec.require = if self.full_sandbox { Require::Full } else { Require::Best };
        let quiet = context.output.is_quiet() || context.output.is_json();
        let shown = Shown::new();
        let mut show = |bytes: &[u8]| {
            if !quiet {
                shown.show(bytes);
            }
        };
        let outcome = sandbox::run(&spec, &mut show).map_err(of_sandbox)?;
        shown.end();
        succeeded(&outcome, &spec.limits)?;
        if let Some(refused) = outcome.refused.first() {
            return Err(Error::invalid(format!(
                "the evaluator left {} in its output: {}",
                refused.path, refused.why
            ))
            .hint("it should leave plain files only"));
        }
        let mut loaded = Loaded::read(&outcome.out, &[]).map_err(|e| {
            let printed = tail(&outcome.log);
            let hint = e.hint.unwrap_or_else(|| "it should write report.json into {out}".into());
            Error::invalid(format!("the evaluator ended well, but {}{printed}", e.message)).hint(hint)
        })?;
        let here = context.config.hardware.clone().unwrap_or_else(hardware::detect);
        if let Some(host) = loaded.report.host.as_ref().filter(|host| host.hardware != here) {
            return Err(Error::invalid(format!(
                "the evaluator reports that it ran on {}, but this host is {here}",
                host.hardware
            )));
        }
        loaded.report.host.get_or_insert(HostProfile {
            hardware: here,
            model: String::new(),
            memory_gib: None,
        });
        Ok(Ran { loaded, log: outcome.log.clone(), sandbox: outcome.record.to_string(), _work: work })
    }
}

/// What an evaluator prints on its way to standard error. Whoever reads it slowly, or not at all, holds up nothing: what
/// finds no room is left out there, and is in the log.
struct Shown {
    chunks: SyncSender<Vec<u8>>,
    ended: Receiver<()>,
}

impl Shown {
    fn new() -> Self {
        let (chunks, to_show) = sync_channel::<Vec<u8>>(SHOWN_CHUNKS_MAX);
        let (end, ended) = sync_channel(1);
        std::thread::spawn(move || {
            for chunk in to_show {
                let _ = std::io::Write::write_all(&mut std::io::stderr(), &chunk);
            }
            let _ = end.send(());
        });
        Self { chunks, ended }
    }

    fn show(&self, bytes: &[u8]) {
        let _ = self.chunks.try_send(bytes.to_vec());
    }

    /// Lets the rest be read, shortly.
    fn end(self) {
        drop(self.chunks);
        let _ = self.ended.recv_timeout(SHOWN_WAIT);
    }
}

fn succeeded(outcome: &Outcome, limits: &SandboxLimits) -> Result<()> {
    let why = match outcome.ended {
        Ended::Exit(0) => return Ok(()),
        Ended::Exit(code) => format!("failed with exit code {code}"),
        Ended::Signal(signal) => format!("was ended by signal {signal}"),
        Ended::Limit(limit) => {
            let limit = match limit {
                Limit::Time => format!("{} s of time (--timeout)", limits.wall_seconds),
                Limit::Cpu => "its CPU time".to_owned(),
                Limit::Memory => "its memory (--memory)".to_owned(),
                Limit::Disk => "its disk space".to_owned(),
                Limit::Processes => format!("{} processes", limits.processes),
            };
            format!("used up {limit}")
        }
        Ended::Lost => "was lost: something killed what ran it".to_owned(),
    };
    let after = Duration::from_secs_f64(outcome.wall_seconds.max(0.0));
    let printed = tail(&outcome.log);
    Err(Error::invalid(format!("the evaluator {why} after {:.1} s{printed}", after.as_secs_f64()))
        .hint("nothing was kept; run it by hand to see what it does"))
}

/// The last lines that it printed, for an error.
fn tail(log: &Path) -> String {
    let bytes = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LOG_TAIL_BYTES)..]).into_owned();
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    match &lines[lines.len().saturating_sub(LOG_LINES)..] {
        [] => " and printed nothing".to_owned(),
        last => format!(", and printed last: {}", last.join(" | ")),
    }
}

/// `16GiB`, `512MiB`, or bytes.
fn byte_count(text: &str) -> std::result::Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        unit => return Err(format!("`{unit}` is no unit; say it as 16GiB or 512MiB")),
    };
    let number: u64 = digits.parse().map_err(|_| "say it as 16GiB or 512MiB".to_owned())?;
    number.checked_mul(unit).filter(|bytes| *bytes > 0).ok_or_else(|| "that is no size".to_owned())
}

fn of_sandbox(error: SandboxError) -> Error {
    Error::invalid(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_units() {
        assert_eq!(
            [byte_count("16GiB"), byte_count("512m"), byte_count("7")],
            [Ok(16 << 30), Ok(512 << 20), Ok(7)]
        );
        assert!(
            ["", "GiB", "3 parsec", "0", "99999999999TiB"].into_iter().all(|bad| byte_count(bad).is_err())
        );
    }
}
