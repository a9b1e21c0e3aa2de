//! `weighlock rm REF`.

use clap::Args;
use weighlock_protocol::Reference;

use super::Context;
use super::output::bytes;
use crate::error::Result;
use crate::local::message::{AdminRequest, Removed};

/// Drop this host's copy of an artifact. The cluster keeps the name; other hosts keep their copies.
#[derive(Debug, Args)]
pub(super) struct Rm {
    /// ns/name:tag or ns/name@sha256:...
    reference: String,
    /// Also when it is pinned or a loader has it open, or when no other host is known to hold all of it
    #[arg(long)]
    force: bool,
}

impl Rm {
    pub(super) fn run(self, context: &Context) -> Result<()> {
        let reference: Reference = self.reference.parse()?;
        let request = AdminRequest::Remove { reference: reference.to_string(), force: self.force };
        let removed: Removed = context.ask(&request)?;
        context.output.print(&removed, |r| {
            let mut out = format!("dropped {reference}, {} freed\n", bytes(r.freed_bytes));
            if !r.also.is_empty() {
                out += &format!("the same bytes under other names went with it: {}\n", r.also.join(", "));
            }
            if r.last_copy {
                out += "no other host is known to hold it: these bytes are lost, the name stays\n";
            }
            out
        })
    }
}
