//! `weighlock promote` and `weighlock approve`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use weighlock_protocol::{ManifestDigest, Stage, StatementId};

use super::{Context, sign};
use crate::error::{Error, Result};
use crate::local::message::{DraftItem, DraftOf, StandingKind, Submitted};

const AFTER_HELP: &str = "\
The candidate becomes the head of the channel once it has the evidence and the approvals that the
policy asks for, has been in the stage before, and more than half of the witnesses have cosigned.
The same promotion twice is one. What it lacks is said, and nothing is signed that could never count.";

/// Make a candidate the head of a stage, with its evidence.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Promote {
    /// ns/name:tag, ns/name:stage or ns/name@sha256:...
    reference: String,
    #[command(flatten)]
    step: Step,
    /// Seconds to wait for witnesses
    #[arg(long, value_name = "SECONDS", default_value_t = 15)]
    wait: u64,
}

/// Agree to a promotion that the policy wants approved; by another promoter than the one who promotes.
#[derive(Debug, Args)]
pub(super) struct Approve {
    /// ns/name:tag or ns/name@sha256:...
    reference: String,
    #[command(flatten)]
    step: Step,
}

#[derive(Debug, Args)]
struct Step {
    /// sandbox, shadow, canary or production
    #[arg(long, value_name = "STAGE")]
    to: Stage,
    /// Hardware key [default: each that has a passing verdict]
    #[arg(long, value_name = "KEY")]
    hardware: Option<String>,
    /// A note for the log
    #[arg(long, value_name = "TEXT", default_value = "")]
    note: String,
    /// The promoter's key, more where the root asks for more [default: WEIGHLOCK_SIGNING_KEY, else the admin key]
    #[arg(long, value_name = "FILE")]
    key: Vec<PathBuf>,
}

#[derive(Serialize)]
struct Done {
    items: Vec<DoneRow>,
}

#[derive(Serialize)]
struct DoneRow {
    reference: String,
    channel: String,
    digest: Option<ManifestDigest>,
    replaces: Option<ManifestDigest>,
    statement: StatementId,
    status: StandingKind,
    why: Vec<String>,
    /// Whether it was said before.
    again: bool,
}

impl Promote {
    pub(super) fn run(self, context: &Context) -> Result<()> {
        let Self { reference, step, wait } = self;
        let keys = step.keys(context)?;
        let of = DraftOf::Promote {
            reference: reference.clone(),
            to: step.to,
            hardware: step.hardware.clone(),
            note: step.note.clone(),
        };
        let items = sign::draft(context, &keys[0], of)?;
        if let Some(item) = items.iter().find(|item| item.same.is_none() && !item.waits) {
            return Err(lacking(&reference, step.to, item));
        }
        sign::warn(context, &items);
        let mut rows = Vec::new();
        for item in items {
            let (statement, again) = match item.same {
                Some(statement) => (statement, true),
                None => (sign::submit(context, &item, &keys)?.id, false),
            };
            let standing = sign::settled(context, statement, Duration::from_secs(wait))?;
            rows.push((
                DoneRow {
                    reference: reference.clone(),
                    channel: item.about,
                    digest: item.digest,
                    replaces: item.replaces,
                    statement,
                    status: standing.status,
                    why: standing.why.clone(),
                    again,
                },
                standing,
            ));
        }
        let bad = rows.iter().find(|(row, _)| row.status != StandingKind::Effective);
        let failed = bad.map(|(row, standing)| {
            sign::without_effect(&format!("the promotion of {reference} to {}", row.channel), standing)
        });
        let done = Done { items: rows.into_iter().map(|(row, _)| row).collect() };
        if let Some(error) = failed {
            if context.output.is_json() {
                context.output.print(&done, |_| String::new())?;
            }
            return Err(error);
        }
        context.output.print(&done, |done| done.items.iter().map(promoted).collect())
    }
}

impl Approve {
    pub(super) fn run(self, context: &Context) -> Result<()> {
        let Self { reference, step } = self;
        let keys = step.keys(context)?;
        let of = DraftOf::Approve {
            reference: reference.clone(),
            to: step.to,
            hardware: step.hardware.clone(),
            note: step.note.clone(),
        };
        let items = sign::draft(context, &keys[0], of)?;
        let mut rows = Vec::new();
        for item in items {
            if !context.output.is_quiet() {
                for lack in &item.lacks {
                    eprintln!("warning: {}: {lack}", item.about);
                }
            }
            let submitted: Submitted = sign::submit(context, &item, &keys)?;
            if let Some(why) = submitted.pending {
                return Err(Error::refused(format!("the approval has no effect: {why}"))
                    .hint("a promoter's key approves; see `weighlock keys`"));
            }
            rows.push(DoneRow {
                reference: reference.clone(),
                channel: item.about,
                digest: item.digest,
                replaces: item.replaces,
                statement: submitted.id,
                status: StandingKind::Effective,
                why: Vec::new(),
                again: !submitted.new,
            });
        }
        context.output.print(&Done { items: rows }, |done| {
            done.items.iter().map(|row| format!("approved {} for {}\n", row.reference, row.channel)).collect()
        })
    }
}

impl Step {
    fn keys(&self, context: &Context) -> Result<Vec<weighlock_protocol::statement::Keypair>> {
        if self.key.is_empty() {
            return Ok(vec![sign::key(context, None)?]);
        }
        self.key.iter().map(|path| sign::key(context, Some(path))).collect()
    }
}

fn promoted(row: &DoneRow) -> String {
    let digest = row.digest.map(|digest| digest.to_string()).unwrap_or_default();
    let over = match (row.again, row.replaces) {
        (true, _) => "already there, ".to_owned(),
        (false, Some(before)) => format!("replaces {}, ", before.short()),
        (false, None) => String::new(),
    };
    format!("{} is the head of {}: {over}{digest}\n", row.reference, row.channel)
}

/// Nothing was signed.
fn lacking(reference: &str, stage: Stage, item: &DraftItem) -> Error {
    let mut lacks = item.lacks.iter();
    let first = lacks.next().map_or("it lacks something", String::as_str);
    let (what, hint) =
        first.split_once("; ").unwrap_or((first, "`weighlock rollout status` shows what there is"));
    let more: Vec<&str> = lacks.map(|lack| lack.split("; ").next().unwrap_or_default()).collect();
    let more = if more.is_empty() { String::new() } else { format!("; also: {}", more.join(", ")) };
    let message = format!("{reference} cannot be promoted to {}: {what}", item.about);
    let _ = stage;
    Error {
        message: format!("{message}{more}").replace("; also", " (also")
            + if more.is_empty() { "" } else { ")" },
        ..Error::refused("")
    }
    .hint(hint)
}
