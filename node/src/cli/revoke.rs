//! `weighlock revoke`: takes back a statement or a key.

use std::path::PathBuf;

use clap::Args;
use weighlock_protocol::statement::{Kind, Revoke as Said, Target};
use weighlock_protocol::{KeyId, StatementId, UnixTime};

use super::member::{admin_keys, sign_and_submit};
use super::{Context, when};
use crate::error::{Error, Result};

const AFTER_HELP: &str = "\
A revoked verdict takes the promotions along that rest on it, a revoked key all that it said since
the time given: what was the head before is the head again. To put a bad model out of service use
`weighlock rollback`; to shut out a host, `weighlock member revoke`.";

/// Take back a statement, or what a key said.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Revoke {
    /// sha256:... of a statement, as `weighlock log` shows it, or a key, ed25519:...
    target: String,
    /// Why; it is recorded
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Of a key: what it said from this time on; from now on if it is not said
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// An admin's key, more where the root asks for more [default: the cluster's in the keys directory]
    #[arg(long, value_name = "FILE", env = "WEIGHLOCK_ADMIN_KEY")]
    key: Vec<PathBuf>,
}

impl Revoke {
    pub(super) fn run(self, context: &Context) -> Result<()> {
        let since = self.since.as_deref().map(when::when).transpose().map_err(Error::invalid)?;
        let target = match (self.target.parse::<KeyId>(), self.target.parse::<StatementId>()) {
            (Ok(key), _) => Target::Key { key, since: since.map(|at| UnixTime(at.from_ms / 1000)) },
            (_, Ok(_)) if since.is_some() => {
                return Err(Error::invalid("--since is for keys; a statement is revoked as a whole"));
            }
            (_, Ok(id)) => Target::Statement { id },
            _ => {
                return Err(Error::invalid(format!("{:?} is no statement's id and no key", self.target))
                    .hint("`weighlock log REF --json` gives ids, `weighlock keys` keys"));
            }
        };
        let admins = admin_keys(context, &self.key, &context.cluster()?)?;
        let (_, submitted) =
            sign_and_submit(context, &admins, Kind::Revoke(Said { target, reason: self.reason }))?;
        context.output.print(&submitted, |_| format!("revoked {}\n", self.target))
    }
}
