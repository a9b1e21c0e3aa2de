//! `weighlock add PATH ns/name:tag`.

use std::path::PathBuf;

use clap::Args;
use weighlock_protocol::Reference;

use super::output::{bytes, counted};
use super::{Context, absolute};
use crate::error::Result;
use crate::local::message::{Added, AdminRequest};

/// Import a checkpoint and publish it under an immutable tag.
///
/// PATH is a Hugging Face style directory, a `.safetensors` or `.gguf` file, or any directory or file. Its contents
/// are copied (or reflinked) into the store; the same bytes are stored once.
#[derive(Debug, Args)]
pub(super) struct Add {
    /// Directory or file
    path: PathBuf,
    /// ns/name:tag, for example acme/support-bot:1.4.0
    reference: String,
    /// Take only files that match this glob (may be repeated)
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,
    /// Leave out files that match this glob (may be repeated)
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,
    /// Note the data that it was made from: a .dvc file or dvc.lock (may be repeated)
    #[arg(long, value_name = "FILE")]
    dataset: Vec<PathBuf>,
}

impl Add {
    pub(super) fn run(self, context: &Context) -> Result<()> {
        let reference: Reference = self.reference.parse()?;
        reference.require_tag()?;
        let request = AdminRequest::Add {
            path: absolute(self.path)?,
            reference: reference.to_string(),
            include: self.include,
            exclude: self.exclude,
            datasets: self.dataset.into_iter().map(absolute).collect::<Result<_>>()?,
        };
        let added: Added = context.ask(&request)?;
        for warning in &added.warnings {
            eprintln!("warning: {warning}");
        }
        context.output.print(&added, |a| {
            let state = match (a.new, a.again) {
                (true, _) => "added",
                (false, true) => "published before, stored here again:",
                (false, false) => "already there:",
            };
            let rate = if a.seconds > 0.0 { a.total_bytes as f64 / a.seconds } else { 0.0 };
            format!(
                "{state} {} {}\n{} in {}, {} new, {:.1} s, {}/s\n",
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
}
