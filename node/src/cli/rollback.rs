//! `weighlock rollback`: away from a bad head, now, with one key.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use weighlock_protocol::{ManifestDigest, StatementId};

use super::{Context, sign};
use crate::error::{Error, Result};
use crate::local::message::{DraftOf, StandingKind};

const AFTER_HELP: &str = "\
Takes effect on this host at once and on others as they hear of it; it needs one promoter's key, no
witnesses and no clock, and works in a part of a cluster that is cut off. Undoes the head of this
host's hardware, and of all other hardware that has the same head.";

/// Back from a bad head to the last good one.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Rollback {
    /// ns/name (its production) or ns/name:stage
    name: String,
    /// Why; it is recorded
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Back to this version instead; it must have been a head
    #[arg(long, value_name = "REF")]
    to: Option<String>,
    /// What is bad; nothing happens if it is not the head any more
    #[arg(long, value_name = "REF")]
    bad: Option<String>,
    /// The head is one that was rolled back to, and it is bad too
    #[arg(long)]
    again: bool,
    /// Hardware key
    #[arg(long, value_name = "KEY")]
    hardware: Option<String>,
    /// Wait until every connected host has heard of it, at most so many seconds
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "30")]
    wait: Option<u64>,
    /// Also to a version that no host is known to hold
    #[arg(long)]
    force: bool,
    /// A promoter's key [default: WEIGHLOCK_SIGNING_KEY, else the admin key]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
}

#[derive(Serialize)]
struct Done {
    items: Vec<DoneRow>,
}

#[derive(Serialize)]
struct DoneRow {
    channel: String,
    bad: Option<ManifestDigest>,
    head: Option<ManifestDigest>,
    statement: StatementId,
}

impl Rollback {
    pub(super) fn run(self, context: &Context) -> Result<()> {
        let Self { name, reason, to, bad, again, hardware, wait, force, key } = self;
        if reason.trim().is_empty() {
            return Err(Error::invalid("--reason is empty").hint("whoever reads the log wants to know why"));
        }
        let key = sign::key(context, key.as_deref())?;
        let of = DraftOf::Rollback { name: name.clone(), hardware, to, bad, again, reason };
        let items = sign::draft(context, &key, of)?;
        if let Some(item) =
            items.iter().find(|item| item.digest.is_some() && item.holders == 0).filter(|_| !force)
        {
            let target = item.digest.map(|digest| digest.to_string()).unwrap_or_default();
            return Err(Error::refused(format!("no host is known to hold {target}, which would be the head of {}", item.about))
                .hint("name another version with --to, or say --force: the bad one goes, and nothing opens until somebody adds the other"));
        }
        sign::warn(context, &items);
        let mut rows = Vec::new();
        for item in items {
            let submitted = sign::submit(context, &item, std::slice::from_ref(&key))?;
            let standing = sign::settled(context, submitted.id, Duration::ZERO)?;
            if standing.status != StandingKind::Effective {
                return Err(sign::without_effect(&format!("the rollback of {}", item.about), &standing));
            }
            rows.push(DoneRow {
                channel: item.about,
                bad: item.replaces,
                head: item.digest,
                statement: submitted.id,
            });
        }
        context.output.print(&Done { items: rows }, |done| match done.items.is_empty() {
            true => "it is not the head any more: nothing to roll back\n".to_owned(),
            false => done.items.iter().map(line).collect(),
        })?;
        match wait {
            Some(seconds) => super::rollout::heard(context, &name, Duration::from_secs(seconds)),
            None => Ok(()),
        }
    }
}

fn line(row: &DoneRow) -> String {
    let short =
        |digest: Option<ManifestDigest>| digest.map_or_else(|| "nothing".to_owned(), |d| d.to_string());
    format!("{} rolled back: away from {}, to {}\n", row.channel, short(row.bad), short(row.head))
}
