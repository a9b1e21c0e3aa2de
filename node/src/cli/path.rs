//! `weighlock path REF`.

use std::path::PathBuf;

use clap::Args;
use weighlock_protocol::Reference;
use weighlock_protocol::audit::Door;

use super::{Context, sign};
use crate::error::Result;
use crate::local::message::{AdminRequest, OpenFor, Viewed};

/// Fetch an artifact and print a read-only directory that holds it; it stays the same for a digest.
#[derive(Debug, Args)]
pub(super) struct PathCommand {
    /// ns/name:tag or ns/name@sha256:...
    reference: String,
    /// Also without evidence, where the policy allows that; it is logged
    #[arg(long, conflicts_with = "evaluate")]
    ungated: bool,
    /// Open a candidate to evaluate it, with an evaluator's key; it is logged
    #[arg(long)]
    evaluate: bool,
    /// The evaluator's key [default: WEIGHLOCK_SIGNING_KEY, else the cluster's admin key]
    #[arg(long, value_name = "FILE", requires = "evaluate")]
    key: Option<PathBuf>,
}

impl PathCommand {
    pub(super) fn run(self, context: &Context) -> Result<()> {
        let reference: Reference = self.reference.parse()?;
        let purpose = match (self.ungated, self.evaluate) {
            (true, _) => OpenFor::Ungated,
            (_, true) => sign::to_evaluate(context, &reference, &sign::key(context, self.key.as_deref())?)?,
            _ => OpenFor::Use,
        };
        let viewed: Viewed = context.ask(&AdminRequest::View {
            reference: reference.to_string(),
            purpose,
            door: Door::Path,
        })?;
        context.output.print(&viewed, |v| v.path.display().to_string())
    }
}
