//! `weighlock log REF`: who did what, when, on which evidence.

use clap::Args;
use weighlock_protocol::UnixTime;

use super::output::table;
use super::{Context, when};
use crate::error::{Error, Result};
use crate::local::message::{AdminRequest, LogEvent, LogHead, Logged};

const AFTER_HELP: &str = "\
TIME is a date, a time as in 2026-03-03T09:00:00Z, or how long ago, such as 3h ago. `weighlock
statement show ID` prints a statement with its signatures; `weighlock audit --at TIME` tells which
processes had which weights open then.";

/// Who did what to an artifact, when, and on which evidence.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Log {
    /// ns/name, or any reference of it
    reference: String,
    /// What the heads were at this time, and what had been said by then
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
}

impl Log {
    pub(super) fn run(self, context: &Context) -> Result<()> {
        let at = self
            .at
            .as_deref()
            .map(when::when)
            .transpose()
            .map_err(Error::invalid)?
            .map(|at| at.until_ms.saturating_sub(1) / 1000);
        let logged: Logged = context.ask(&AdminRequest::Log { name: self.reference, at })?;
        context.output.print(&logged, |logged| {
            let rows: Vec<Vec<String>> = logged.events.iter().map(event).collect();
            let mut out = table(&["TIME", "WHO", "WHAT", "", "STATEMENT"], &[], &rows);
            if let (Some(at), false) = (at, logged.heads.is_empty()) {
                out += &format!("\nheads at {}\n", UnixTime(at));
                let rows: Vec<Vec<String>> = logged.heads.iter().map(head).collect();
                out += &table(
                    &["STAGE", "HARDWARE", "VERSION", "DIGEST", "PROMOTION", "VERDICT", "POLICY"],
                    &[],
                    &rows,
                );
            }
            out
        })
    }
}

fn event(event: &LogEvent) -> Vec<String> {
    let text = match &event.without_effect {
        Some(why) => format!("{} [no effect: {why}]", event.text),
        None => event.text.clone(),
    };
    vec![
        UnixTime(event.time).to_string(),
        event.who.clone(),
        event.kind.clone(),
        text,
        event.statement.short(),
    ]
}

fn head(head: &LogHead) -> Vec<String> {
    let verdicts: Vec<String> = head.verdicts.iter().map(|id| id.short()).collect();
    vec![
        head.stage.to_string(),
        head.hardware.clone(),
        head.tags.join(" "),
        head.digest.short(),
        head.statement.short(),
        verdicts.join(" "),
        head.policy.map(|policy| policy.short()).unwrap_or_default(),
    ]
}
