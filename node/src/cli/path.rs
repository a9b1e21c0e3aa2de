//! `weighlock path REF`.

use clap::Args;
use weighlock_protocol::Reference;
use weighlock_protocol::audit::Door;

use super::Context;
use crate::error::Result;
use crate::local::message::{AdminRequest, Viewed};

/// Fetch an artifact and print a read-only directory that holds it; it stays the same for a digest.
#[derive(Debug, Args)]
pub(super) struct PathCommand {
    /// ns/name:tag or ns/name@sha256:...
    reference: String,
}

impl PathCommand {
    pub(super) fn run(self, context: &Context) -> Result<()> {
        let reference: Reference = self.reference.parse()?;
        let viewed: Viewed =
            context.ask(&AdminRequest::View { reference: reference.to_string(), door: Door::Path })?;
        context.output.print(&viewed, |v| v.path.display().to_string())
    }
}
