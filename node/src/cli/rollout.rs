//! `weighlock rollout status`: heads, what waits, who holds them, who has them open, who lags.

use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use serde::Serialize;
use weighlock_protocol::UnixTime;

use super::Context;
use super::output::table;
use crate::error::{Error, Result};
use crate::local::message::{AdminRequest, HostState, LadderStatus, PendingRow, RolloutHosts};

/// Between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Channels and how far hosts are with them.
#[derive(Debug, Subcommand)]
pub(super) enum Rollout {
    /// Heads, promotions that wait and why, and which hosts hold a head, have it open, or lag
    Status(Status),
}

#[derive(Debug, Args)]
pub(super) struct Status {
    /// ns/name, or ns/name:stage
    name: String,
    /// Wait until nothing waits, and every connected host that follows the channel has its head, at most so many seconds
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "600")]
    wait: Option<u64>,
}

#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    ladder: LadderStatus,
    hosts: Vec<HostState>,
}

impl Rollout {
    pub(super) fn run(self, context: &Context) -> Result<()> {
        let Self::Status(Status { name, wait }) = self;
        let begun = Instant::now();
        let patience = Duration::from_secs(wait.unwrap_or(0));
        loop {
            let shown = look(context, &name)?;
            let lagging: Vec<&str> = shown
                .hosts
                .iter()
                .filter(|host| host.lags.is_some())
                .map(|host| host.name.as_str())
                .collect();
            let done = shown.ladder.pending.is_empty() && lagging.is_empty();
            if done || begun.elapsed() >= patience {
                let late = (wait.is_some() && !done).then(|| {
                    let waits = shown.ladder.pending.len();
                    let hosts = if lagging.is_empty() { "none".to_owned() } else { lagging.join(", ") };
                    Error::unavailable(format!("{waits} promotions wait; hosts that lag: {hosts}"))
                        .hint("`weighlock rollout status` names the reasons")
                });
                context.output.print(&shown, text)?;
                return late.map_or(Ok(()), Err);
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
    }
}

/// Waits until every connected host has heard what this one knows of an artifact, and says so for each.
///
/// # Errors
/// Some have not in time.
pub(super) fn heard(context: &Context, name: &str, patience: Duration) -> Result<()> {
    let begun = Instant::now();
    loop {
        let hosts: RolloutHosts = context.ask(&AdminRequest::Rollout { name: name.to_owned() })?;
        let deaf: Vec<&HostState> = hosts.hosts.iter().filter(|host| host.connected && !host.heard).collect();
        if deaf.is_empty() || begun.elapsed() >= patience {
            if !context.output.is_json() {
                context.output.print(&hosts, |hosts| hosts_table(&hosts.hosts))?;
            }
            if deaf.is_empty() {
                return Ok(());
            }
            let names: Vec<&str> = deaf.iter().map(|host| host.name.as_str()).collect();
            return Err(Error::unavailable(format!("not heard by {}", names.join(", ")))
                .hint("they hear of it when they are in touch again; `weighlock peers` shows who is"));
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}

fn look(context: &Context, name: &str) -> Result<Shown> {
    let ladder: LadderStatus = context.ask(&AdminRequest::Ladder { name: name.to_owned() })?;
    let hosts: RolloutHosts = context.ask(&AdminRequest::Rollout { name: name.to_owned() })?;
    Ok(Shown { ladder, hosts: hosts.hosts })
}

fn text(shown: &Shown) -> String {
    let ladder = &shown.ladder;
    let mut out = match &ladder.policy {
        Some(policy) => {
            let digest = policy.digest.map_or_else(|| "none in force".to_owned(), |digest| digest.short());
            format!("{} is gated by the policy of {} ({digest})\n", ladder.artifact, policy.scope)
        }
        None => format!("{} has no policy: it is ungated\n", ladder.artifact),
    };
    if ladder.heads.is_empty() {
        out += "no stage has a head\n";
    } else {
        let rows: Vec<Vec<String>> = ladder
            .heads
            .iter()
            .map(|head| {
                let note = match (&head.closed, head.rolled_back) {
                    (Some(why), _) => format!("does not open: {why}"),
                    (None, true) => "rolled back to".to_owned(),
                    (None, false) => String::new(),
                };
                vec![
                    head.stage.to_string(),
                    head.hardware.clone(),
                    head.tags.join(" "),
                    head.digest.short(),
                    UnixTime(head.since).to_string(),
                    head.by.clone(),
                    note,
                ]
            })
            .collect();
        out += &table(&["STAGE", "HARDWARE", "VERSION", "DIGEST", "SINCE", "BY", ""], &[], &rows);
    }
    for row in &ladder.pending {
        out += &pending(row);
    }
    if !shown.hosts.is_empty() {
        out.push('\n');
        out += &hosts_table(&shown.hosts);
    }
    out
}

fn pending(row: &PendingRow) -> String {
    let tags = if row.tags.is_empty() { row.digest.short() } else { row.tags.join(" ") };
    let mut out = format!("waits: {tags} to {} ({}), by {}\n", row.stage, row.hardware, row.by);
    for why in &row.why {
        out += &format!("  - {why}\n");
    }
    out
}

fn hosts_table(hosts: &[HostState]) -> String {
    let rows: Vec<Vec<String>> = hosts
        .iter()
        .map(|host| {
            let state = match (host.this_host, host.connected, host.heard) {
                (true, ..) => "this host",
                (_, true, true) => "heard",
                (_, true, false) => "has not heard",
                (_, false, _) => "away",
            };
            let open = host.open.as_ref().map_or_else(|| "?".to_owned(), |open| open.join(" "));
            vec![
                host.name.clone(),
                state.into(),
                host.holds.join(" "),
                open,
                host.lags.clone().unwrap_or_default(),
            ]
        })
        .collect();
    table(&["HOST", "STATE", "HOLDS", "OPEN", "LAGS"], &[], &rows)
}
