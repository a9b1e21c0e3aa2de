//! `weighlock policy set|show|check`.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde::Serialize;
use weighlock_protocol::gate::Policy;
use weighlock_protocol::statement::promotion::POLICY_TEXT_BYTES_MAX;
use weighlock_protocol::{Artifact, Sha256, StatementId};

use super::member::admin_keys;
use super::{Context, sign};
use crate::error::{Error, Result};
use crate::local::message::{AdminRequest, DraftOf, LadderStatus, PolicyInfo};
use crate::weigh::policy::{POLICY_FILE, read, read_text};

const EXAMPLE: &str = "\
A policy says what a candidate must show. For example, gate.toml:

  [metric.eval_loss]          # the name of a metric in the reports
  direction = \"lower\"
  max = 3.0                   # never above this
  max_regression = 0.02       # against the baseline: a number, or a share of its value such as \"0.5%\"
  confidence = 0.99           # of that; 0.95 if it is not said

  [contract]
  allow = [\"quantization\"]    # what may change; tokenizer, template and the rest may not
  deny_pickle = true";

/// What a candidate must show.
#[derive(Debug, Subcommand)]
#[command(after_help = EXAMPLE)]
pub(super) enum PolicyCommand {
    /// Set the policy of a namespace or an artifact: from then on nothing of it opens without evidence
    Set {
        /// ns or ns/name; the narrower one wins
        scope: String,
        /// The policy
        #[arg(default_value = POLICY_FILE)]
        file: PathBuf,
        /// An admin's key, more where the root asks for more [default: where the cluster was made]
        #[arg(long, value_name = "FILE", env = "WEIGHLOCK_ADMIN_KEY")]
        key: Vec<PathBuf>,
    },
    /// Say what a policy asks for: of a file, or the one in force for ns/name
    Show {
        /// The policy, or ns/name
        #[arg(default_value = POLICY_FILE, value_name = "FILE|NAME")]
        file: PathBuf,
    },
    /// Read a policy and say what is wrong with it, if anything is
    Check {
        /// The policy
        #[arg(default_value = POLICY_FILE)]
        file: PathBuf,
    },
}

#[derive(Serialize)]
struct Shown {
    digest: Sha256,
    policy: Policy,
}

#[derive(Serialize)]
struct Set {
    scope: String,
    digest: Sha256,
    statement: StatementId,
    /// Whether it was in force already.
    again: bool,
}

impl PolicyCommand {
    pub(super) fn run(self, context: &Context) -> Result<()> {
        match self {
            Self::Set { scope, file, key } => set(context, scope, &file, &key),
            Self::Show { file } => match in_force(context, &file)? {
                Some(policy) => context.output.print(&policy, |policy| {
                    let version = policy.version.map(|v| format!(", version {v}")).unwrap_or_default();
                    format!("set for {}{version}\n{}", policy.scope, policy.text)
                }),
                None => {
                    let policy = read(&file)?;
                    let shown = Shown { digest: policy.digest(), policy };
                    context.output.print(&shown, |shown| shown.policy.to_string())
                }
            },
            Self::Check { file } => {
                let policy = read(&file)?;
                let shown = Shown { digest: policy.digest(), policy };
                context
                    .output
                    .print(&shown, |shown| format!("{} is a policy: {}\n", file.display(), shown.digest))
            }
        }
    }
}

/// The policy in force, where a name is given and no file.
fn in_force(context: &Context, name: &Path) -> Result<Option<PolicyInfo>> {
    let Some(artifact) = name.to_str().filter(|_| !name.exists()).and_then(|n| n.parse::<Artifact>().ok())
    else {
        return Ok(None);
    };
    let status: LadderStatus = context.ask(&AdminRequest::Ladder { name: artifact.to_string() })?;
    status.policy.map(Some).ok_or_else(|| {
        Error::not_found(format!("{artifact} has no policy: it is ungated"))
            .hint(format!("`weighlock policy set {} gate.toml` sets one", artifact.namespace()))
    })
}

fn set(context: &Context, scope: String, file: &Path, keys: &[PathBuf]) -> Result<()> {
    let (policy, text) = read_text(file)?;
    let digest = policy.digest();
    if text.len() > POLICY_TEXT_BYTES_MAX {
        return Err(Error::invalid(format!(
            "{} has more than {POLICY_TEXT_BYTES_MAX} bytes",
            file.display()
        ))
        .hint("what a statement carries is bounded; drop comments"));
    }
    let cluster = context.cluster()?;
    let signers = admin_keys(context, keys, &cluster)?;
    let items = sign::draft(context, &signers[0], DraftOf::Policy { scope: scope.clone(), text })?;
    let item = items.first().ok_or_else(|| Error::internal("the daemon drafted nothing"))?;
    let (statement, again) = match item.same {
        Some(statement) => (statement, true),
        None => {
            sign::warn(context, &items);
            let submitted = sign::submit(context, item, &signers)?;
            if let Some(why) = submitted.pending {
                return Err(Error::refused(format!("the policy has no effect: {why}"))
                    .hint("policies are set by as many admins as the root asks for, see `weighlock keys`"));
            }
            (submitted.id, false)
        }
    };
    let set = Set { scope, digest, statement, again };
    context.output.print(&set, |set| {
        let how = if set.again { "is in force already for" } else { "is in force for" };
        format!("policy {} {how} {}\n", set.digest, set.scope)
    })
}
