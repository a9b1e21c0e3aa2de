//! `weighlock member list|admit|revoke|forget`, and how an admin's statements are signed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use weighlock_protocol::statement::{
    Admit, Chain, Envelope, Keypair, Kind, Labels, Revoke, Statement, Target,
};
use weighlock_protocol::{ClusterId, KeyId, UnixTime};

use super::Context;
use super::invite::{label, seconds};
use super::output::table;
use crate::error::{Error, Kind as Failure, Result};
use crate::local::fleet::Forgotten;
use crate::local::message::{AdminRequest, ChainPosition, MemberRow, Submitted};
use crate::{cluster, keys};

/// Times that a statement is signed anew because another command was faster.
const SIGN_TRIES_MAX: usize = 50;

/// Admitted hosts.
#[derive(Debug, Subcommand)]
pub(super) enum Member {
    /// Who is admitted, and until when
    #[command(visible_alias = "ls")]
    List {},
    /// Admit a host by its key, or renew its admission
    Admit {
        /// The host's key, ed25519:... as `weighlock status` prints it there
        host: KeyId,
        /// Its name, for people
        #[arg(long)]
        name: Option<String>,
        /// How long: 30d, 365d
        #[arg(long = "for", default_value = "365d", value_parser = seconds)]
        duration: u64,
        /// Label, as key=value (may be repeated)
        #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
        label: Vec<(String, String)>,
        /// An admin's key, more where the root asks for more [default: the cluster's in the keys directory]
        #[arg(long, value_name = "FILE", env = "WEIGHLOCK_ADMIN_KEY")]
        key: Vec<PathBuf>,
    },
    /// Drop a host that is gone from this host's lists and address book; it is listed again once it speaks
    #[command(
        long_about = "Drop a host that is gone from this host's lists and address book.\n\nIt stays admitted, here and \
                      elsewhere, and is listed again once it speaks. `member revoke` shuts a host out for good."
    )]
    Forget {
        /// The host's key, or its name where that is unique
        host: String,
    },
    /// Shut a host out: both planes close to it wherever this is heard
    Revoke {
        /// The host's key, or its name where that is unique
        host: String,
        /// Why, for the record
        #[arg(long, default_value = "")]
        reason: String,
        /// Also when it is this very host
        #[arg(long)]
        force: bool,
        /// An admin's key, more where the root asks for more [default: the cluster's in the keys directory]
        #[arg(long, value_name = "FILE", env = "WEIGHLOCK_ADMIN_KEY")]
        key: Vec<PathBuf>,
    },
}

impl Member {
    pub(super) fn run(self, context: &Context) -> Result<()> {
        match self {
            Member::List {} => {
                let rows: Vec<MemberRow> = context.ask(&AdminRequest::Members)?;
                context.output.print(&rows, |rows| text(rows))
            }
            Member::Admit { host, name, duration, label, key } => {
                let admins = admin_keys(context, &key, &chain(context, &host)?.cluster)?;
                let admit = Admit {
                    host,
                    name: name.unwrap_or_else(|| host.short()),
                    labels: label.into_iter().collect::<Labels>(),
                    expires: cluster::now().plus(duration),
                    invite: None,
                };
                let expires = admit.expires;
                let (_, submitted) = sign_and_submit(context, &admins, Kind::Admit(admit))?;
                context.output.print(&submitted, |_| format!("admitted {host} until {expires}\n"))
            }
            Member::Forget { host } => {
                let rows: Vec<MemberRow> = context.ask(&AdminRequest::Members)?;
                let host = find(&rows, &host)?;
                let forgotten: Forgotten = context.ask(&AdminRequest::Forget { host })?;
                context.output.print(&forgotten, |forgotten| {
                    let until = UnixTime(forgotten.admitted_until);
                    format!("forgot {}, {host}; it stays admitted until {until}\n", forgotten.name)
                })
            }
            Member::Revoke { host, reason, force, key } => {
                let rows: Vec<MemberRow> = context.ask(&AdminRequest::Members)?;
                let host = find(&rows, &host)?;
                if !force && rows.iter().any(|row| row.this_host && row.host == host) {
                    return Err(Error::refused("this is the host that you are on").hint(
                        "with --force all others shut it out and it can publish nothing; \
                         letting it in again takes `weighlock member admit` with the admin key on another host",
                    ));
                }
                let admins = admin_keys(context, &key, &chain(context, &host)?.cluster)?;
                let revoke = Revoke { target: Target::Key { key: host, since: None }, reason };
                let (_, submitted) = sign_and_submit(context, &admins, Kind::Revoke(revoke))?;
                context.output.print(&submitted, |_| format!("revoked {host}\n"))
            }
        }
    }
}

/// The admin keys that are named, or the one that the cluster was made with; never none.
pub(super) fn admin_keys(context: &Context, named: &[PathBuf], cluster: &ClusterId) -> Result<Vec<Keypair>> {
    if named.is_empty() {
        return Ok(vec![admin_key(context, None, cluster)?]);
    }
    named.iter().map(|path| admin_key(context, Some(path), cluster)).collect()
}

fn admin_key(context: &Context, path: Option<&Path>, cluster: &ClusterId) -> Result<Keypair> {
    let default = keys::admin_key_path(&context.dirs.keys, cluster);
    keys::load(path.unwrap_or(&default)).map_err(|error| match error.kind {
        Failure::NotFound => Error::refused(format!("{}; this takes the cluster's admin key", error.message))
            .hint("run it where the cluster was made, or name the key with --key or WEIGHLOCK_ADMIN_KEY"),
        _ => error,
    })
}

/// Signs the next statement of the first key's chain with all of them and hands it to the daemon. Another command may
/// take the place in the chain first; then it is signed anew.
pub(super) fn sign_and_submit(
    context: &Context,
    keys: &[Keypair],
    kind: Kind,
) -> Result<(Envelope, Submitted)> {
    let signers: Vec<&Keypair> = keys.iter().collect();
    let Some(key) = signers.first() else {
        return Err(Error::internal("nobody signs"));
    };
    let mut tries = 0;
    loop {
        tries += 1;
        let position = chain(context, &key.key_id())?;
        let statement = Statement {
            cluster: Some(position.cluster),
            by: key.key_id(),
            time: cluster::now(),
            chain: Some(Chain { seq: position.seq, prev: position.prev }),
            kind: kind.clone(),
        };
        let envelope = statement.sign(&signers);
        let json = String::from_utf8(envelope.to_json()).map_err(Error::internal)?;
        let submitted: Submitted = match context.ask(&AdminRequest::Submit { envelope: json }) {
            Err(error) if error.kind == Failure::Refused && tries < SIGN_TRIES_MAX => {
                if chain(context, &key.key_id())?.seq == position.seq {
                    return Err(error);
                }
                continue;
            }
            answer => answer?,
        };
        if let Some(why) = &submitted.pending {
            return Err(Error::refused(format!("the statement has no effect: {why}"))
                .hint("it takes as many admins of this cluster as its root asks for, each with --key (see `weighlock keys`), and a host in touch with the others"));
        }
        return Ok((envelope, submitted));
    }
}

fn chain(context: &Context, key: &KeyId) -> Result<ChainPosition> {
    context.ask(&AdminRequest::Chain { key: *key })
}

fn find(rows: &[MemberRow], host: &str) -> Result<KeyId> {
    if let Ok(key) = host.parse::<KeyId>() {
        return Ok(key);
    }
    let mut named = rows.iter().filter(|row| row.name == host);
    match (named.next(), named.next()) {
        (Some(row), None) => Ok(row.host),
        (Some(_), Some(_)) => {
            Err(Error::invalid(format!("several hosts are named {host}")).hint("give the key, ed25519:..."))
        }
        (None, _) => {
            Err(Error::not_found(format!("no member is named {host}")).hint("see `weighlock member list`"))
        }
    }
}

fn text(rows: &[MemberRow]) -> String {
    let cells = rows.iter().map(|row| {
        let state = match (row.this_host, row.connected) {
            (true, _) => "this host",
            (false, true) => "connected",
            (false, false) => "-",
        };
        let labels: Vec<_> = row.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let expires = row.expires.map_or("never".into(), |at| UnixTime(at).to_string());
        vec![row.name.clone(), row.host.to_string(), state.into(), expires, labels.join(" ")]
    });
    let mut out =
        table(&["NAME", "KEY", "STATE", "ADMITTED UNTIL", "LABELS"], &[], &cells.collect::<Vec<_>>());
    let mut names: BTreeMap<&str, usize> = BTreeMap::new();
    for row in rows {
        *names.entry(&row.name).or_default() += 1;
    }
    for (name, hosts) in names.into_iter().filter(|(_, hosts)| *hosts > 1) {
        out += &format!("warning: {hosts} hosts are named {name}; tell them apart by their keys\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_that_share_a_name_are_pointed_out() {
        let row = |key, name: &str| MemberRow {
            host: KeyId([key; 32]),
            name: name.into(),
            labels: BTreeMap::new(),
            since: 0,
            expires: None,
            this_host: false,
            connected: false,
        };
        assert!(!text(&[row(1, "alpha"), row(2, "beta")]).contains("warning"));
        let warned = text(&[row(1, "alpha"), row(2, "beta"), row(3, "alpha")]);
        assert!(warned.contains("warning: 2 hosts are named alpha"), "{warned}");
        assert!(find(&[row(1, "alpha"), row(3, "alpha")], "alpha").is_err());
    }
}
