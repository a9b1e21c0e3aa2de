//! `weighlock follow REF [--on LABELS]`: keeps what a channel runs, before its head moves.

use std::path::PathBuf;

use clap::Args;

use super::output::table;
use super::{Context, sign};
use crate::error::{Error, Result};
use crate::local::message::{AdminRequest, DraftOf, Following};

const AFTER_HELP: &str = "\
A host that follows a channel fetches what waits to become its head, so that the bytes are there
when the head moves, and keeps the two heads before, so that a rollback needs no network. Without
--on it is this host; with --on every host that has all of these labels, now and later.";

/// Keep on this host, or on hosts with some labels, what a channel runs and what is next.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Follow {
    /// ns/name:stage; without it, lists what is followed
    reference: Option<String>,
    /// key=value; hosts with all of these labels (may be repeated)
    #[arg(long, value_name = "LABEL", value_parser = super::invite::label, requires = "reference")]
    on: Vec<(String, String)>,
    /// Follow it no longer
    #[arg(long, requires = "reference")]
    stop: bool,
    /// A promoter's key for --on [default: WEIGHLOCK_SIGNING_KEY, else the admin key]
    #[arg(long, value_name = "FILE", requires = "on")]
    key: Option<PathBuf>,
}

impl Follow {
    pub(super) fn run(self, context: &Context) -> Result<()> {
        let Self { reference, on, stop, key } = self;
        let here = reference.clone().filter(|_| on.is_empty());
        if let (Some(reference), false) = (reference, on.is_empty()) {
            let key = sign::key(context, key.as_deref())?;
            let of = DraftOf::Follow { reference, on: on.into_iter().collect(), stop };
            for item in sign::draft(context, &key, of)? {
                let submitted = sign::submit(context, &item, std::slice::from_ref(&key))?;
                if let Some(why) = submitted.pending {
                    return Err(Error::refused(format!("the rule has no effect: {why}"))
                        .hint("a promoter's key signs it; see `weighlock keys`"));
                }
            }
        }
        let following: Following = context.ask(&AdminRequest::Follow { reference: here, stop })?;
        context.output.print(&following, text)
    }
}

fn text(following: &Following) -> String {
    if following.here.is_empty() && following.rules.is_empty() {
        return "no channel is followed\n".to_owned();
    }
    let here = following.here.iter().map(|row| {
        let by = if row.by_rule { "by its labels" } else { "it was told to" };
        vec![row.channel.clone(), "this host".to_owned(), by.to_owned()]
    });
    let rules = following.rules.iter().map(|rule| {
        let on: Vec<String> = rule.on.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let on = if on.is_empty() { "every host".to_owned() } else { on.join(" ") };
        vec![rule.channel.clone(), on, "rule".to_owned()]
    });
    table(&["CHANNEL", "WHERE", "WHY"], &[], &here.chain(rules).collect::<Vec<_>>())
}
