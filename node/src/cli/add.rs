//! `weighlock add PATH ns/name:tag`.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use serde_json::json;
use tempfile::TempDir;
use weighlock_protocol::Reference;
use weighlock_protocol::manifest::contract::MlflowOrigin;

use super::mlflow::Tracking;
use super::output::{bytes, counted};
use super::{Context, absolute};
use crate::error::{Error, Result};
use crate::local::message::{Added, AdminRequest, Progress, SCHEMA_VERSION};
use crate::local::store::CopyCount;
use crate::mlflow::{Found, ModelUri, download, find};

/// Pause between two looks at who holds it.
const COPIES_PAUSE: Duration = Duration::from_millis(300);

/// Import a checkpoint and publish it under an immutable tag.
///
/// PATH is a Hugging Face style directory, a `.safetensors` or `.gguf` file, or any directory or file. Its contents
/// are copied (or reflinked) into the store; the same bytes are stored once. With --from-mlflow PATH may be left out:
/// the files of the model version are then downloaded to a temporary directory (TMPDIR) through MLflow's server first.
#[derive(Debug, Args)]
#[command(
    override_usage = "weighlock add [OPTIONS] PATH ns/name:tag\n       weighlock add --from-mlflow models:/NAME/VERSION [PATH] ns/name:tag"
)]
pub(super) struct Add {
    /// Directory or file; then ns/name:tag, for example acme/support-bot:1.4.0
    #[arg(value_name = "PATH ns/name:tag", num_args = 1..=2, required = true)]
    names: Vec<OsString>,
    /// Take only files that match this glob (may be repeated)
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,
    /// Leave out files that match this glob (may be repeated)
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,
    /// Note the data that it was made from: a .dvc file or dvc.lock (may be repeated)
    #[arg(long, value_name = "FILE")]
    dataset: Vec<PathBuf>,
    /// Note the run, parameters, metrics and tags of a model version: models:/NAME/VERSION or models:/NAME@ALIAS
    #[arg(long, value_name = "URI")]
    from_mlflow: Option<ModelUri>,
    #[command(flatten)]
    tracking: Tracking,
    /// Wait until so many hosts hold all of it, this one included
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u16).range(1..))]
    wait_copies: Option<u16>,
    /// Give up waiting for copies after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600, requires = "wait_copies")]
    timeout: u64,
}

impl Add {
    pub(super) fn run(self, context: &Context) -> Result<()> {
        let (path, reference) = match &self.names[..] {
            [path, reference] => (Some(PathBuf::from(path)), reference),
            [reference] if self.from_mlflow.is_some() => (None, reference),
            _ => {
                return Err(Error::invalid("add takes two names: PATH, and ns/name:tag for what it becomes")
                    .hint("for example `weighlock add ./model acme/support-bot:1.4.0`"));
            }
        };
        let reference: Reference = reference.to_string_lossy().parse()?;
        reference.require_tag()?;
        let (mut origin, mut fetched): (Option<Box<MlflowOrigin>>, _) = (None, None);
        if let Some(uri) = &self.from_mlflow {
            let found = self.found(uri)?;
            if path.is_none() {
                fetched = Some(fetch(context, &self.tracking, &found)?);
            }
            origin = Some(Box::new(found.origin));
        }
        let path = path.or_else(|| fetched.as_ref().map(|(_, path)| path.clone())).unwrap_or_default();
        let request = AdminRequest::Add {
            path: absolute(path)?,
            reference: reference.to_string(),
            include: self.include,
            exclude: self.exclude,
            datasets: self.dataset.into_iter().map(absolute).collect::<Result<_>>()?,
            origin,
        };
        let added: Added = context.ask(&request)?;
        for warning in &added.warnings {
            eprintln!("warning: {warning}");
        }
        let copies = match self.wait_copies {
            Some(wanted) => {
                let limit = Duration::from_secs(self.timeout);
                Some(wait_for_copies(context, &reference, wanted.into(), limit)?)
            }
            None => None,
        };
        context.output.print(&AddedAndCopied { added, copies }, |AddedAndCopied { added: a, copies }| {
            let state = match (a.new, a.again) {
                (true, _) => "added",
                (false, true) => "published before, stored here again:",
                (false, false) => "already there:",
            };
            let rate = if a.seconds > 0.0 { a.total_bytes as f64 / a.seconds } else { 0.0 };
            let held = copies.as_ref().map(|copies| format!("held by {}\n", copies.join(", ")));
            let held = held.unwrap_or_default();
            format!(
                "{state} {} {}\n{} in {}, {} new, {:.1} s, {}/s\n{held}",
                a.reference,
                a.digest,
                bytes(a.total_bytes),
                counted(a.files, "file"),
                bytes(a.new_bytes),
                a.seconds,
                bytes(rate as u64)
            )
        })
    }

    fn found(&self, uri: &ModelUri) -> Result<Found> {
        let found = find(&self.tracking.client(None)?, uri)?;
        for warning in &found.warnings {
            eprintln!("warning: {warning}");
        }
        Ok(found)
    }
}

/// What was added, and which hosts hold all of it if that was waited for.
#[derive(Debug, Serialize)]
struct AddedAndCopied {
    #[serde(flatten)]
    added: Added,
    #[serde(skip_serializing_if = "Option::is_none")]
    copies: Option<Vec<String>>,
}

/// Waits until enough hosts hold all of it; answers their names.
///
/// # Errors
/// Not in time: who does, and what would make others fetch it.
fn wait_for_copies(
    context: &Context,
    reference: &Reference,
    wanted: usize,
    limit: Duration,
) -> Result<Vec<String>> {
    let (began, mut told) = (Instant::now(), None);
    loop {
        let count: CopyCount = context.ask(&AdminRequest::Copies { reference: reference.to_string() })?;
        let have = count.whole.len();
        if have >= wanted {
            return Ok(count.whole);
        }
        let follow = format!("`weighlock follow {}:STAGE --on LABEL` makes them", reference.artifact);
        let whole = format!("{have} of {wanted} hosts hold all of it");
        if began.elapsed() >= limit {
            let late = format!("{reference} is added, but {whole} after {} s", limit.as_secs());
            let hint = match count.followed {
                true => "`weighlock where` tells how far others are".to_owned(),
                false => format!("no other host is told to fetch it; `weighlock pull` there, or {follow}"),
            };
            return Err(Error::unavailable(late).hint(hint));
        }
        if told.as_ref() != Some(&(count.whole.clone(), count.begun.clone())) {
            if context.output.has_lines() {
                let step = json!({
                    "schema_version": SCHEMA_VERSION, "event": "progress", "phase": "copies",
                    "wanted": wanted, "whole": count.whole, "begun": count.begun,
                });
                println!("{step}");
            } else if context.output.has_bars() {
                if told.is_none() && !count.followed {
                    eprintln!("note: no other host is told to fetch {}; {follow}", reference.artifact);
                }
                let begun = match count.begun.is_empty() {
                    true => String::new(),
                    false => format!("; on its way to {}", count.begun.join(", ")),
                };
                eprintln!("{whole}: {}{begun}", count.whole.join(", "));
            }
            told = Some((count.whole, count.begun));
        }
        std::thread::sleep(COPIES_PAUSE);
    }
}

/// Downloads the files of a model version. The directory lives as long as the first of what is answered; the second
/// says where in it, or elsewhere, the files are.
fn fetch(context: &Context, tracking: &Tracking, found: &Found) -> Result<(TempDir, PathBuf)> {
    let fail = |e: std::io::Error| {
        Error::unavailable(format!("cannot make a temporary directory: {e}"))
            .hint("TMPDIR names another place")
    };
    let dir = tempfile::Builder::new().prefix("weighlock-mlflow-").tempdir().map_err(fail)?;
    readable_for_daemon(context, dir.path()).map_err(fail)?;
    let mut bar = context.progress();
    let mut progress = |done_bytes, total_bytes| {
        bar.show(&Progress { phase: "download".into(), done_bytes, total_bytes, ..Progress::default() });
    };
    let path = download(&tracking.client(None)?, found, dir.path(), &mut progress);
    bar.clear();
    Ok((dir, path?))
}

/// Root's command line may speak to a daemon of another user, who must be able to enter.
fn readable_for_daemon(context: &Context, dir: &Path) -> std::io::Result<()> {
    if rustix::process::geteuid().is_root()
        && let Ok(socket) = fs::metadata(context.dirs.admin_socket())
    {
        chown(dir, Some(socket.uid()), Some(socket.gid()))?;
    }
    Ok(())
}
