//! `weighlock audit`, `audit export` and `audit verify`.

mod show;
mod verify;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;
use weighlock_protocol::audit::{Verified, Verifier};
use weighlock_protocol::{Artifact, KeyId, Reference};

use super::when::{When, when};
use super::{Context, absolute};
use crate::audit::{Filter, Page, Query};
use crate::error::{Error, Result};
use crate::local::message::AdminRequest;

const EXAMPLES: &str = "\
Times are RFC 3339, a date (UTC), or such as \"3h ago\". Which weights answered on 3 March:

  weighlock audit --at 2026-03-03 --host gpu-17

The log proves itself: each line carries the hash of the line before, and the host signs it every 10 seconds at
least. `audit export` writes it to a file that `audit verify` checks anywhere. What pushes old lines out are the
limits under [audit] in the configuration: export what must be kept longer.";

/// What was opened here, by whom, and on which grounds.
///
/// Opens and closes of loaders, copies (`pull`), directories (`path`, `eval`), and what was refused, newest last.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, after_help = EXAMPLES)]
pub(super) struct Audit {
    #[command(subcommand)]
    command: Option<AuditCommand>,
    /// Only this artifact: ns/name:tag, ns/name@sha256:... or ns/name
    reference: Option<String>,
    /// Ask another member, by name or key
    #[arg(long)]
    host: Option<String>,
    /// What was open at that time; a date means that day
    #[arg(long, value_name = "TIME", value_parser = when, conflicts_with_all = ["since", "until"])]
    at: Option<When>,
    /// Not before
    #[arg(long, value_name = "TIME", value_parser = when)]
    since: Option<When>,
    /// Not after; a date includes that day
    #[arg(long, value_name = "TIME", value_parser = when)]
    until: Option<When>,
    /// At most so many events, the newest
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    limit: u64,
}

#[derive(Debug, Subcommand)]
enum AuditCommand {
    /// Write the log to a file, signed to its end
    Export {
        /// Ask another member, by name or key
        #[arg(long)]
        host: Option<String>,
        /// Begin with the part that tells of this time
        #[arg(long, value_name = "TIME", value_parser = when)]
        since: Option<When>,
        /// The file to make
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
    },
    /// Check a log: that no line was changed, left out or moved, and who signed it; needs no daemon
    Verify {
        /// What `audit export` wrote, or the directory `audit` of a store
        file: PathBuf,
        /// The host that must have signed it, ed25519:...
        #[arg(long, value_name = "KEY")]
        host_key: Option<KeyId>,
    },
}

#[derive(Serialize)]
struct Exported {
    file: PathBuf,
    #[serde(flatten)]
    seen: Verified,
}

impl Audit {
    pub(super) fn run(self, context: &Context) -> Result<()> {
        match self.command {
            Some(AuditCommand::Export { host, since, to }) => export(context, host, since, &absolute(to)?),
            Some(AuditCommand::Verify { file, host_key }) => verify::run(context, &file, host_key),
            None => self.show(context),
        }
    }

    fn show(self, context: &Context) -> Result<()> {
        let reference = self.reference.map(|text| name(&text)).transpose()?;
        let filter = Filter {
            reference,
            digest: None,
            since_ms: self.since.map(|since| since.from_ms),
            until_ms: self.until.map(|until| until.until_ms),
        };
        if let Some(at) = self.at {
            let page = held(context, self.host, &filter, at)?;
            return context.output.print(&page, |page| show::held(page, at));
        }
        let page = events(context, self.host, &filter, self.limit as usize)?;
        context.output.print(&page, show::events)
    }
}

/// A name that the log can be asked for.
fn name(text: &str) -> Result<String> {
    match text.parse::<Reference>() {
        Ok(reference) => Ok(reference.to_string()),
        Err(e) => text.parse::<Artifact>().map(|artifact| artifact.to_string()).map_err(|_| e.into()),
    }
}

/// The newest `limit` events, oldest first.
fn events(context: &Context, host: Option<String>, filter: &Filter, limit: usize) -> Result<Page> {
    let mut whole: Option<Page> = None;
    loop {
        let (before, have) = whole.as_ref().map_or((None, 0), |page: &Page| (page.next, page.events.len()));
        let query = Query::Events { filter: filter.clone(), before, limit: limit - have };
        let mut page: Page = context.ask(&AdminRequest::Audit { host: host.clone(), query })?;
        if let Some(newer) = whole {
            page.events.extend(newer.events);
        }
        if page.next.is_none() || page.events.len() >= limit {
            return Ok(page);
        }
        whole = Some(page);
    }
}

fn held(context: &Context, host: Option<String>, filter: &Filter, at: When) -> Result<Page> {
    let mut whole: Option<Page> = None;
    loop {
        let skip = whole.as_ref().map_or(0, |page: &Page| page.open.len());
        let query = Query::Open { filter: filter.clone(), from_ms: at.from_ms, until_ms: at.until_ms, skip };
        let page: Page = context.ask(&AdminRequest::Audit { host: host.clone(), query })?;
        let next = page.next;
        let whole = match &mut whole {
            Some(whole) => {
                whole.open.extend(page.open);
                whole
            }
            none => none.insert(page),
        };
        if next.is_none() {
            whole.next = None;
            return Ok(std::mem::take(whole));
        }
    }
}

fn export(context: &Context, host: Option<String>, since: Option<When>, to: &Path) -> Result<()> {
    let shown = to.display();
    if fs::symlink_metadata(to).is_ok() {
        return Err(Error::refused(format!("{shown} exists")).hint("name a new file with --to"));
    }
    let fail = |e: std::io::Error| Error::unavailable(format!("cannot write {shown}: {e}"));
    let dir = to.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Of a name that nobody else has; it is gone if this goes wrong.
    let mut file = tempfile::NamedTempFile::new_in(dir).map_err(fail)?;
    let mut verifier = Verifier::new(None);
    let (mut fault, mut after, mut through) = (None, 0, None);
    loop {
        let query = Query::Lines { since_ms: since.map_or(0, |since| since.from_ms), after, through };
        let page: Page = context.ask(&AdminRequest::Audit { host: host.clone(), query })?;
        file.write_all(page.lines.as_bytes()).map_err(fail)?;
        for line in page.lines.lines() {
            if fault.is_none() {
                fault = verifier.line(line.as_bytes()).err();
            }
        }
        let Some(next) = page.next else { break };
        (after, through) = (next, page.through);
    }
    file.as_file().set_permissions(fs::Permissions::from_mode(0o640)).map_err(fail)?;
    file.as_file().sync_all().map_err(fail)?;
    file.persist_noclobber(to).map_err(|e| fail(e.error))?;
    if let Some(fault) = fault {
        return Err(Error::integrity(format!("{shown} is written, but the log is not whole: {fault}"))
            .hint("keep it as it is, and look into that host"));
    }
    let exported = Exported { file: to.to_owned(), seen: verifier.seen().clone() };
    context
        .output
        .print(&exported, |exported| format!("{}\n{}", exported.file.display(), verify::text(&exported.seen)))
}
