//! `weighlock rollout status`: heads, what waits, who holds them, who has them open, who lags.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use serde::Serialize;
use weighlock_protocol::{Artifact, ManifestDigest, Reference, Selector, Stage, UnixTime};

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
    /// Only these stages [default: that of ns/name:stage, else all that have a head]
    #[arg(long, value_name = "STAGE")]
    stage: Vec<Stage>,
    /// Wait until no promotion waits, every connected host has heard of its heads, and every host that follows a channel
    /// holds all of its head
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "600")]
    wait: Option<u64>,
    /// Give up after so many seconds [default: 600]
    #[arg(long, value_name = "SECONDS", requires = "wait")]
    timeout: Option<u64>,
}

#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    ladder: LadderStatus,
    hosts: Vec<HostState>,
}

impl Rollout {
    pub(super) fn run(self, context: &Context) -> Result<()> {
        let Self::Status(Status { name, stage, wait, timeout }) = self;
        let (name, stages) = channels(&name, stage)?;
        let begun = Instant::now();
        let patience = Duration::from_secs(timeout.or(wait).unwrap_or(0));
        loop {
            let mut shown = look(context, &name)?;
            shown.keep(&stages);
            let open = shown.open(&stages);
            if open.is_empty() || begun.elapsed() >= patience {
                context.output.print(&shown, text)?;
                if wait.is_none() || open.is_empty() {
                    return Ok(());
                }
                let after = patience.as_secs();
                return Err(Error::unavailable(format!(
                    "not done after {after} s: {}",
                    open.join(", ").replace("; ", ", ")
                ))
                .hint("`weighlock peers` shows who is in touch, `weighlock top` what is being fetched"));
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
    }
}

impl Shown {
    /// Leaves out what is of other stages.
    fn keep(&mut self, stages: &BTreeSet<Stage>) {
        if stages.is_empty() {
            return;
        }
        let is_meant = |stage: &Stage| stages.contains(stage);
        self.ladder.heads.retain(|head| is_meant(&head.stage));
        self.ladder.pending.retain(|row| is_meant(&row.stage));
        for host in &mut self.hosts {
            host.stages.retain(|at| is_meant(&at.stage));
            host.lags = host.stages.iter().find_map(|at| at.lags.clone());
        }
    }

    /// All that is not done yet, in words.
    fn open(&self, stages: &BTreeSet<Stage>) -> Vec<String> {
        let pending = self.ladder.pending.iter().map(|row| {
            format!("{} to {} waits: {}", version(&row.tags, &row.digest), row.stage, row.why.join(", "))
        });
        let has_head = |stage: &&Stage| self.ladder.heads.iter().any(|head| head.stage == **stage);
        let none = stages.iter().filter(|stage| !has_head(stage)).map(|stage| format!("{stage} has no head"));
        let lags = self.hosts.iter().flat_map(|host| {
            let all = host.stages.iter().filter_map(|at| at.lags.as_ref()).chain(&host.lags);
            all.map(|why| format!("{} {why}", host.name))
        });
        let all: BTreeSet<String> = pending.chain(none).chain(lags).collect();
        all.into_iter().collect()
    }
}

/// The artifact, and the stages that are meant; all if there is none.
fn channels(name: &str, stages: Vec<Stage>) -> Result<(String, BTreeSet<Stage>)> {
    let mut stages: BTreeSet<Stage> = stages.into_iter().collect();
    if name.parse::<Artifact>().is_ok() {
        return Ok((name.to_owned(), stages));
    }
    let reference: Reference = name.parse()?;
    match reference.selector {
        Selector::Stage(stage) if stages.is_empty() || stages == [stage].into() => stages.extend([stage]),
        Selector::Stage(_) => {
            return Err(
                Error::invalid(format!("{reference} and --stage name different stages")).hint("say one")
            );
        }
        _ => {
            return Err(Error::invalid(format!("{reference} is no channel"))
                .hint(format!("say {} or {}:STAGE", reference.artifact, reference.artifact)));
        }
    }
    Ok((reference.artifact.to_string(), stages))
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
    let tags = version(&row.tags, &row.digest);
    let mut out = format!("waits: {tags} to {} ({}), by {}\n", row.stage, row.hardware, row.by);
    for why in &row.why {
        out += &format!("  - {why}\n");
    }
    out
}

fn version(tags: &[String], digest: &ManifestDigest) -> String {
    if tags.is_empty() { digest.short() } else { tags.join(" ") }
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
