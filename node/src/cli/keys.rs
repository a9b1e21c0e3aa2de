//! `weighlock keys`: who may do what, and changing that.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;
use weighlock_protocol::statement::{Keypair, Role};
use weighlock_protocol::{KeyId, UnixTime};

use super::member::admin_keys;
use super::output::table;
use super::{Context, sign};
use crate::error::{Error, Result};
use crate::keys;
use crate::local::message::{AdminRequest, DraftOf, KeyRoles, RootChange};

const AFTER_HELP: &str = "\
Roles: admin (roots, invites, policies), publisher, evaluator (evidence and verdicts), promoter
(promotions, approvals, rollbacks), witness (hosts that cosign promotions; 1, 3 or 5).
Each change signs the next root with the admin key; where the root wants several admins, give
--key once for each.";

/// Who may do what in the cluster.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP, args_conflicts_with_subcommands = true)]
pub(super) struct Keys {
    #[command(subcommand)]
    command: Option<KeysCommand>,
}

#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// Make a key for a person or a CI job; prints its public part
    New {
        /// The file to write; keep it secret and backed up
        file: PathBuf,
    },
    /// Give a role to keys or hosts
    Grant {
        /// admin, publisher, evaluator, promoter or witness
        role: Role,
        /// ed25519:... or names of hosts
        #[arg(required = true)]
        keys: Vec<String>,
        /// Where the role counts from now on, for all who hold it: `*`, `acme`, `acme-*` (may be repeated)
        #[arg(long, value_name = "GLOB")]
        namespace: Vec<String>,
        #[command(flatten)]
        admins: Admins,
    },
    /// Take a role from keys or hosts
    Remove {
        /// admin, publisher, evaluator, promoter or witness
        role: Role,
        /// ed25519:... or names of hosts
        #[arg(required = true)]
        keys: Vec<String>,
        #[command(flatten)]
        admins: Admins,
    },
    /// How many holders of a role must sign together
    Threshold {
        /// admin, publisher, evaluator or promoter
        role: Role,
        /// How many
        #[arg(value_parser = clap::value_parser!(u32).range(1..))]
        count: u32,
        #[command(flatten)]
        admins: Admins,
    },
    /// Sign a root that lasts another year
    Renew {
        #[command(flatten)]
        admins: Admins,
    },
}

#[derive(Debug, Args)]
struct Admins {
    /// An admin's key, more where the root asks for more [default: where the cluster was made]
    #[arg(long, value_name = "FILE", env = "WEIGHLOCK_ADMIN_KEY")]
    key: Vec<PathBuf>,
}

#[derive(Serialize)]
struct Made {
    key: KeyId,
    file: PathBuf,
}

#[derive(Serialize)]
struct Rotated {
    root: weighlock_protocol::StatementId,
    change: String,
}

impl Keys {
    pub(super) fn run(self, context: &Context) -> Result<()> {
        let (change, admins) = match self.command {
            None => return show(context),
            Some(KeysCommand::New { file }) => {
                let key = keys::generate()?;
                keys::save(&file, &key)?;
                let made = Made { key: key.key_id(), file };
                return context.output.print(&made, |made| format!("{}\n", made.key));
            }
            Some(KeysCommand::Grant { role, keys, namespace, admins }) => {
                (RootChange::Grant { role, keys, namespaces: namespace }, admins)
            }
            Some(KeysCommand::Remove { role, keys, admins }) => (RootChange::Remove { role, keys }, admins),
            Some(KeysCommand::Threshold { role, count, admins }) => {
                (RootChange::Threshold { role, threshold: count }, admins)
            }
            Some(KeysCommand::Renew { admins }) => (RootChange::Renew, admins),
        };
        let signers = admins.load(context)?;
        let items = sign::draft(context, &signers[0], DraftOf::Root { change })?;
        sign::warn(context, &items);
        for item in items {
            let submitted = sign::submit(context, &item, &signers)?;
            if let Some(why) = submitted.pending {
                return Err(Error::refused(format!("the new root has no effect: {why}"))
                    .hint("it takes the admin keys of this root and of the new one, each with --key"));
            }
            let rotated = Rotated { root: submitted.id, change: item.about };
            context.output.print(&rotated, |rotated| format!("{}\n", rotated.change))?;
        }
        Ok(())
    }
}

impl Admins {
    fn load(&self, context: &Context) -> Result<Vec<Keypair>> {
        admin_keys(context, &self.key, &context.cluster()?)
    }
}

fn show(context: &Context) -> Result<()> {
    let roles: KeyRoles = context.ask(&AdminRequest::Keys)?;
    context.output.print(&roles, |roles| {
        let mut rows = Vec::new();
        for (role, row) in &roles.roles {
            // Of witnesses it takes a majority, whatever the threshold.
            let needs = if *role == Role::Witness {
                (row.keys.len() / 2 + 1).to_string()
            } else {
                row.threshold.to_string()
            };
            let needs = format!("{needs} of {}", row.keys.len());
            let of = row.namespaces.join(" ");
            for key in &row.keys {
                let name = roles.names.get(key).cloned().unwrap_or_default();
                rows.push(vec![role.to_string(), key.to_string(), name, of.clone(), needs.clone()]);
            }
            if row.members {
                rows.push(vec![role.to_string(), "every member".into(), String::new(), of, String::new()]);
            }
        }
        let head = format!("root {}, valid until {}\n", roles.version, UnixTime(roles.expires));
        head + &table(&["ROLE", "KEY", "HOST", "NAMESPACES", "MUST SIGN"], &[], &rows)
    })
}
