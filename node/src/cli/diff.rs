//! `weighlock diff A B`.

mod scores;
mod text;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use clap::Args;
use weighlock_cache::diff::{Diff as Difference, DiffConfig, DiffError, DiffProgress, Side, diff};
use weighlock_cache::inspect;
use weighlock_protocol::audit::Door;
use weighlock_protocol::gate::Report;
use weighlock_protocol::manifest::LayerKind;
use weighlock_protocol::names::Selector;
use weighlock_protocol::{LayerId, Reference};

use self::scores::Scores;
use super::output::fail;
use super::{Context, sign};
use crate::error::{Error, Result};
use crate::local::message::{AdminRequest, Inspected, OpenFor, Progress, Viewed};
use crate::weigh::report::{self, Loaded};

/// Exit code for two sides that differ, as `diff` has it.
const DIFFERENT: u8 = 1;
/// Exit code for sides that could not be compared, as `diff` has it.
const TROUBLE: u8 = 2;

const AFTER_HELP: &str = "\
A and B are directories, .safetensors or .gguf files, or references, which are fetched where they are not here. \
Tensors are matched by name and compared element by element, quantized ones after dequantization, other dtypes by \
value. OF RMS(A) is the root mean square of the difference over that of A. Two .json files, or directories that hold a \
report (report.json, or results*.json of lm-evaluation-harness) and no weights, are read as reports of evaluations, and \
their scores set side by side.

What a fetch moves is counted for equal tensors of the same name, or of the same hash where both are references.

Exit codes: 0 the same, 1 different, 2 trouble.";

/// How two checkpoints differ, or the scores of two reports side by side.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Diff {
    /// Path, ns/name:tag, ns/name@sha256:..., or a report or its directory
    a: String,
    /// The same, to compare with it
    b: String,
    /// List every tensor that differs, not only the largest changes
    #[arg(long)]
    tensors: bool,
    /// How many tensors of each kind of change to list
    #[arg(long, value_name = "N", default_value_t = 20, conflicts_with = "tensors")]
    top: usize,
}

impl Diff {
    /// Exit codes differ from those of other commands, so it prints its own errors.
    pub(super) fn run(self, context: &Context) -> ExitCode {
        match self.compare(context) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::from(DIFFERENT),
            Err(error) => {
                fail(&error, context.output.is_json());
                ExitCode::from(TROUBLE)
            }
        }
    }

    /// True if both are the same.
    fn compare(&self, context: &Context) -> Result<bool> {
        match (is_report(&self.a), is_report(&self.b)) {
            (true, true) => {
                let scores = Scores::of(&read_report(&self.a)?, &read_report(&self.b)?);
                context.output.print(&scores, Scores::text)?;
                Ok(scores.same)
            }
            (false, false) => {
                let found = self.checkpoints(context)?;
                let top = if self.tensors { usize::MAX } else { self.top };
                context.output.print(&found, |found| text::of(found, top))?;
                Ok(found.same)
            }
            _ => Err(Error::invalid(format!("of {} and {} only one is a report", self.a, self.b))
                .hint("compare two reports, or two checkpoints")),
        }
    }

    fn checkpoints(&self, context: &Context) -> Result<Difference> {
        let (a, b) = (side(context, &self.a)?, side(context, &self.b)?);
        let bar = Mutex::new(context.progress());
        let progress = |step: DiffProgress| {
            // Whoever finds it busy leaves the news to the others.
            if let Ok(mut bar) = bar.try_lock() {
                bar.show(&Progress {
                    phase: "compare".into(),
                    done_bytes: step.done_bytes,
                    total_bytes: step.total_bytes,
                    ..Progress::default()
                });
            }
        };
        let found = diff(&a, &b, &DiffConfig::default(), &progress, &AtomicBool::new(false));
        if let Ok(mut bar) = bar.lock() {
            bar.clear();
        }
        found.map_err(trouble)
    }
}

/// Opens what an argument names: a path if it exists, else a reference.
fn side(context: &Context, text: &str) -> Result<Side> {
    let path = Path::new(text);
    if path.exists() {
        return open(path);
    }
    let reference: Reference = text.parse().map_err(|e| {
        Error::not_found(format!("{text} is neither a path that exists nor a reference: {e}"))
            .hint("name a directory, a .safetensors or .gguf file, or an artifact as ns/name:tag")
    })?;
    // A candidate that is not promoted may be looked at by an evaluator.
    let purpose = match sign::key(context, None) {
        Ok(key) => sign::to_evaluate(context, &reference, &key)?,
        Err(_) => OpenFor::Use,
    };
    let viewed: Viewed =
        context.ask(&AdminRequest::View { reference: reference.to_string(), purpose, door: Door::Path })?;
    // By digest: a channel may have moved on meanwhile.
    let exact = Reference { selector: Selector::Digest(viewed.digest), ..reference.clone() };
    let inspected: Inspected = context.ask(&AdminRequest::Inspect { reference: exact.to_string() })?;
    let side = open(&viewed.path)?.named(reference.to_string());
    let Some(contract) = inspected.contract else { return Ok(side) };
    let layers: BTreeMap<String, LayerId> = inspected
        .files
        .iter()
        .filter_map(|file| Some((file.path.clone(), file.blake3.parse().ok()?)))
        .collect();
    side.with_index(contract, &layers).map_err(trouble)
}

fn open(path: &Path) -> Result<Side> {
    Side::open(path, &inspect::Options::default()).map_err(trouble)
}

fn trouble(error: DiffError) -> Error {
    match error {
        DiffError::Inspect(error) => error.into(),
        DiffError::Index { .. } => Error::integrity(error),
        DiffError::Changed { .. } => Error::invalid(error),
        DiffError::Io { .. } => Error::invalid(error).hint("check that it exists and that you may read it"),
        error => Error::internal(error),
    }
}

/// A .json file, or a directory of a report such as `evidence add` takes, which is no checkpoint.
fn is_report(text: &str) -> bool {
    let path = Path::new(text);
    if path.is_dir() {
        return report::lies_in(path) && !holds_weights(path);
    }
    path.extension().is_some_and(|extension| extension == "json") && path.is_file()
}

fn holds_weights(dir: &Path) -> bool {
    let Ok(plan) = inspect::plan(dir, &inspect::Options::default()) else {
        // What is wrong with it is told where checkpoints are opened.
        return true;
    };
    plan.files.iter().any(|file| matches!(file.kind, LayerKind::Weights | LayerKind::Adapter))
}

/// Reads a report of any harness that is known.
fn read_report(text: &str) -> Result<Report> {
    Ok(Loaded::read(Path::new(text), &[])?.report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_with_a_report_and_no_weights_is_a_report() {
        let dir = tempfile::tempdir().expect("tempdir");
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a directory")).expect("made");
            std::fs::write(path, text).expect("written");
        };
        let is_report = |name: &str| is_report(dir.path().join(name).to_str().expect("plain"));
        write("ours/report.json", "{}");
        write("ours/samples.jsonl", "");
        write("harness/some__model/results_2026-01-01.json", "{}");
        write("checkpoint/config.json", "{}");
        write("both/report.json", "{}");
        write("both/pytorch_model.bin", "weights");
        write("alone.json", "{}");
        let all = ["ours", "harness", "checkpoint", "both", "alone.json", "none"].map(is_report);
        assert_eq!(all, [true, true, false, false, true, false]);
    }
}
