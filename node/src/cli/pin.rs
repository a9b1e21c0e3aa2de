//! `weighlock pin REF`, `pin --list`, `unpin REF`.

use std::path::PathBuf;

use clap::Args;
use weighlock_protocol::Reference;

use super::Context;
use super::output::{age, table};
use crate::cluster::now;
use crate::error::{Error, Result};
use crate::local::message::AdminRequest;
use crate::local::store::{PinChange, PinRow};
use crate::weigh::lock::read;

/// Keep artifacts on this host, whatever else needs room.
#[derive(Debug, Args)]
pub(super) struct Pin {
    /// ns/name:tag or ns/name@sha256:...; without any, lists what is pinned
    references: Vec<String>,
    /// Why, for those who read the list later
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["list", "remove"])]
    reason: Option<String>,
    /// What a lock file pins
    #[arg(long, value_name = "FILE", conflicts_with = "list")]
    lock_file: Option<PathBuf>,
    /// Take the pin away, as `unpin` does
    #[arg(long, conflicts_with = "list")]
    remove: bool,
    /// List what is pinned
    #[arg(long, conflicts_with = "references")]
    list: bool,
}

/// Let artifacts go again when room is needed.
#[derive(Debug, Args)]
pub(super) struct Unpin {
    /// ns/name:tag or ns/name@sha256:...
    #[arg(required = true)]
    references: Vec<String>,
}

impl Pin {
    pub(super) fn run(self, context: &Context) -> Result<()> {
        let mut references = self.references;
        if let Some(path) = &self.lock_file {
            let lock = read(path)?;
            let pinned = lock.packages().iter().map(|package| format!("{}@{}", package.name, package.digest));
            references.extend(pinned);
        }
        if self.remove && references.is_empty() {
            return Err(Error::invalid("--remove needs a reference, or --lock-file")
                .hint("`weighlock pin --list` tells what is pinned"));
        }
        let reason = self.reason.or_else(|| self.lock_file.map(|path| path.display().to_string()));
        change(context, references, reason, self.remove)
    }
}

impl Unpin {
    pub(super) fn run(self, context: &Context) -> Result<()> {
        change(context, self.references, None, true)
    }
}

fn change(context: &Context, references: Vec<String>, reason: Option<String>, remove: bool) -> Result<()> {
    for text in &references {
        text.parse::<Reference>()?;
    }
    let change = match (references.is_empty(), remove) {
        (true, _) => PinChange::List,
        (false, true) => PinChange::Remove { references },
        (false, false) => PinChange::Add { references, reason },
    };
    let rows: Vec<PinRow> = context.ask(&AdminRequest::Pin { change })?;
    context.output.print(&rows, |rows| {
        if rows.is_empty() {
            return "nothing is pinned\n".to_owned();
        }
        let now = now().0;
        let cells = rows.iter().map(|row| {
            let here = if row.complete { "all" } else { "not all" };
            let reason = row.reason.clone().unwrap_or_else(|| "-".into());
            vec![
                row.name.clone(),
                row.digest.short(),
                here.into(),
                age(now.saturating_sub(row.since)),
                reason,
            ]
        });
        table(&["PINNED", "DIGEST", "HERE", "SINCE", "REASON"], &[], &cells.collect::<Vec<_>>())
    })
}
