//! `weighlock mlflow push REF`, and the options that name a tracking server.

use clap::{Args, Subcommand};
use serde::Serialize;
use weighlock_protocol::{ManifestDigest, Reference};

use super::Context;
use super::output::counted;
use crate::error::{Error, Result};
use crate::local::message::{AdminRequest, Inspected, LadderStatus, Weighed};
use crate::mlflow::{Change, Client, Server, StageHeld, Wanted, apply, changes};

const AFTER: &str = "\
Written are the tags weighlock.digest, weighlock.reference, weighlock.verdict (the newest one that counts: outcome,
policy, statement) and weighlock.stage.STAGE, and an alias per stage. Tags of ours that hold no longer are removed, and
with a stage's tag its alias; everything else stays. Pushing twice changes nothing the second time.

Credentials come from MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.";

/// A model registry: verdicts and stages written back to it.
#[derive(Debug, Subcommand)]
pub(super) enum MlflowCommand {
    /// Write digest, verdict and stages to the model version that an artifact was added from
    #[command(after_help = AFTER)]
    Push {
        /// ns/name:tag or ns/name@sha256:...
        reference: String,
        /// Say what would change, and change nothing
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        tracking: Tracking,
    },
}

/// Which tracking server is meant.
#[derive(Debug, Args)]
pub(super) struct Tracking {
    /// MLflow's tracking server, such as http://mlflow:5000
    #[arg(long, value_name = "URL", env = crate::mlflow::URI_ENV, hide_env_values = true)]
    mlflow_uri: Option<String>,
}

#[derive(Serialize)]
struct Pushed {
    reference: String,
    digest: ManifestDigest,
    server: String,
    model: String,
    dry_run: bool,
    changes: Vec<Change>,
}

impl Tracking {
    /// The server that is named, else the one that was asked before.
    pub(super) fn client(&self, before: Option<&str>) -> Result<Client> {
        let named = self.mlflow_uri.as_deref().filter(|uri| !uri.trim().is_empty());
        let server = match (named, before) {
            (Some(uri), _) => Server::new(uri.trim()),
            // Whoever published the artifact wrote it there, so it gets nobody's credentials.
            (None, Some(uri)) => Server::without_credentials(uri.trim()),
            (None, None) => {
                return Err(Error::invalid("no MLflow server is named")
                    .hint(format!("name it with --mlflow-uri, or in {}", crate::mlflow::URI_ENV)));
            }
        };
        server.map(Client::new)
    }
}

impl MlflowCommand {
    pub(super) fn run(self, context: &Context) -> Result<()> {
        let Self::Push { reference, dry_run, tracking } = self;
        let reference: Reference = reference.parse()?;
        let inspected: Inspected =
            context.ask(&AdminRequest::Inspect { reference: reference.to_string() })?;
        let Some(contract) = inspected.contract else {
            return Err(Error::not_found(format!("the contract of {reference} is not on this host yet"))
                .hint(format!("`weighlock pull {reference}` fetches it")));
        };
        let Some(origin) = contract.mlflow else {
            return Err(Error::refused(format!(
                "{reference} was not added from MLflow, so no model version is its own"
            ))
            .hint(
                "`weighlock add --from-mlflow models:/NAME/VERSION PATH ns/name:tag` notes which one it is",
            ));
        };
        let number: u64 = origin.version.parse().map_err(|_| {
            Error::integrity(format!(
                "the contract of {reference} names version {:?} of MLflow",
                origin.version
            ))
        })?;
        let weighed: Weighed = context.ask(&AdminRequest::Weighed { reference: reference.to_string() })?;
        let stages = stages(context, &reference, inspected.digest)?;
        let wanted =
            Wanted::new(&inspected.reference, &inspected.digest.to_string(), &weighed.verdicts, &stages);
        let client = tracking.client(Some(&origin.server))?;
        let changes = changes(&client, &origin.model, number, &wanted)?;
        if !dry_run {
            apply(&client, &origin.model, number, &changes)?;
        }
        let pushed = Pushed {
            reference: inspected.reference,
            digest: inspected.digest,
            server: client.server.base.clone(),
            model: format!("models:/{}/{number}", origin.model),
            dry_run,
            changes,
        };
        context.output.print(&pushed, text)
    }
}

/// The stages whose heads this artifact is.
fn stages(context: &Context, reference: &Reference, digest: ManifestDigest) -> Result<Vec<StageHeld>> {
    let ladder: LadderStatus = context.ask(&AdminRequest::Ladder { name: reference.artifact.to_string() })?;
    let heads = ladder.heads.into_iter().filter(|head| head.digest == digest);
    let held = heads.map(|head| StageHeld {
        stage: head.stage.to_string(),
        hardware: head.hardware,
        statement: head.statement,
    });
    Ok(held.collect())
}

fn text(pushed: &Pushed) -> String {
    let Pushed { reference, server, model, dry_run, changes, .. } = pushed;
    if changes.is_empty() {
        return format!("{model} at {server} says all of {reference} already\n");
    }
    let verb = if *dry_run { "would change" } else { "changed" };
    let mut out = format!("{verb} {} of {model} at {server}:\n", counted(changes.len(), "thing"));
    for change in changes {
        out += &match change {
            Change::SetTag { key, value, before: None } => format!("  tag {key} = {value}\n"),
            Change::SetTag { key, value, before: Some(before) } => {
                format!("  tag {key} = {value} (was {before})\n")
            }
            Change::DeleteTag { key, before } => format!("  tag {key} removed (was {before})\n"),
            Change::SetAlias { alias } => format!("  alias {alias} set\n"),
            Change::DeleteAlias { alias } => format!("  alias {alias} removed\n"),
        };
    }
    out
}
