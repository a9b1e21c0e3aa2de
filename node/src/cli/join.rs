//! `weighlock join TICKET`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use weighlock_cache::Store;
use weighlock_protocol::statement::{Envelope, Keypair, Labels};
use weighlock_protocol::ticket::Ticket;
use weighlock_protocol::wire::join::Contact;
use weighlock_protocol::{ClusterId, KeyId};

use super::Context;
use crate::cluster::{self, PendingJoin};
use crate::error::{Error, Kind, Result};
use crate::facts::Facts;
use crate::local::message::{AdminRequest, Introduction, Status};
use crate::net::data::{DataConfig, DataPlane, Doors};
use crate::{daemon, keys, membership};

/// Join the cluster that a ticket names. Doing it twice is fine.
#[derive(Debug, Args)]
pub(super) struct Join {
    /// The ticket; better given by --file or WEIGHLOCK_TICKET, since other users can see arguments
    ticket: Option<String>,
    /// File that holds the ticket
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Name of this host for people [default: the system's host name]
    #[arg(long, env = "WEIGHLOCK_NAME")]
    name: Option<String>,
}

#[derive(Serialize)]
struct Joined {
    cluster: ClusterId,
    name: String,
    /// False when this host was a member of this cluster before.
    new: bool,
    /// True when no member could be reached; `up` goes on trying.
    pending: bool,
}

impl Join {
    pub(super) fn run(self, context: &Context) -> Result<()> {
        let ticket = read_ticket(self.ticket.as_deref(), self.file.as_deref())?.ok_or_else(|| {
            Error::invalid("no ticket was given")
                .hint("weighlock join TICKET, --file FILE, or WEIGHLOCK_TICKET")
        })?;
        let name = cluster::host_name(self.name.as_deref().or(context.config.name.as_deref()));
        let done = |new, pending| Joined { cluster: ticket.cluster(), name: name.clone(), new, pending };
        let joined = if context.daemon_runs() {
            let here: Introduction = context.ask(&AdminRequest::Introduction)?;
            other_cluster(Some(here.cluster), &ticket)?;
            let status: Status = context.ask(&AdminRequest::Status)?;
            if status.revoked.is_some() {
                return Err(put_out(&status.host));
            }
            if !status.member {
                return Err(Error::refused(
                    "this host is not admitted: its admission expired, or it waits for one with the ticket that it had before",
                )
                .hint("stop its daemon, join with this ticket, and start it again"));
            }
            // Nothing new but perhaps where members are.
            let () = context.ask(&AdminRequest::Dial { contacts: contacts(&ticket) })?;
            done(false, false)
        } else {
            let store = daemon::open_store(&context.dirs, &context.config)?;
            let is_known = other_cluster(cluster::of(&store)?, &ticket)?;
            let host = keys::host_key(&context.dirs.data)?;
            let place = if is_known { place(&store, &host, ticket.cluster())? } else { Place::Outside };
            if place == Place::PutOut {
                return Err(put_out(&host.key_id()));
            }
            // An admission that nobody took, because its ticket expired say, gives way to this one, and so does one that
            // expired itself.
            if place == Place::Member && cluster::pending_join(&store)?.is_none() {
                cluster::add_contacts(&store, &contacts(&ticket))?;
                done(false, false)
            } else {
                let join = admission(&host, &name, &context.config.labels, &ticket)?;
                let pending = hand_in(&store, &host, &ticket, &join)?;
                done(true, pending)
            }
        };
        context.output.print(&joined, |j| {
            let cluster = j.cluster.short();
            match (j.new, j.pending) {
                (false, _) => format!("this host belongs to cluster {cluster} already\n"),
                (true, false) => format!("joined cluster {cluster} as {}; next: weighlock up\n", j.name),
                (true, true) => format!(
                    "no member of cluster {cluster} could be reached; `weighlock up` hands the ticket in as soon as one can\n"
                ),
            }
        })
    }
}

/// How the host of a store stands in its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Member,
    /// Not admitted, or not any more.
    Outside,
    /// An admin revoked its key, which no ticket undoes.
    PutOut,
}

/// As far as the store knows.
pub(super) fn place(store: &Store, host: &Keypair, cluster: ClusterId) -> Result<Place> {
    let facts = Facts::open(store.clone(), host.clone(), cluster)?;
    let ledger = facts.ledger();
    Ok(match ledger.is_member(&host.key_id(), cluster::now()) {
        true => Place::Member,
        false if ledger.is_revoked(&host.key_id()) => Place::PutOut,
        false => Place::Outside,
    })
}

fn put_out(host: &KeyId) -> Error {
    Error::refused("this host was shut out of the cluster, and no ticket lets it in again")
        .hint(format!("an admin does, on another host: `weighlock member admit {host}`"))
}

/// The ticket from an argument, a file or the environment, checked.
pub(super) fn read_ticket(argument: Option<&str>, file: Option<&Path>) -> Result<Option<Ticket>> {
    let text = match (argument, file) {
        (Some(text), _) => text.to_owned(),
        (None, Some(file)) => std::fs::read_to_string(file)
            .map_err(|e| Error::invalid(format!("cannot read the ticket file {}: {e}", file.display())))?,
        (None, None) => match std::env::var("WEIGHLOCK_TICKET") {
            Ok(text) if !text.trim().is_empty() => text,
            _ => return Ok(None),
        },
    };
    let ticket: Ticket = text.parse().map_err(Error::invalid)?;
    let now = cluster::now();
    if now > ticket.invite().expires {
        return Err(Error::refused(format!(
            "the ticket expired at {}, it is {now}",
            ticket.invite().expires
        ))
        .hint("ask an admin for a new one (`weighlock invite`)"));
    }
    Ok(Some(ticket))
}

/// Commits that this store belongs to the ticket's cluster; the daemon hands the admission in.
pub(super) fn persist(
    store: &Store,
    host: &Keypair,
    name: &str,
    labels: &Labels,
    ticket: &Ticket,
) -> Result<()> {
    let join = admission(host, name, labels, ticket)?;
    cluster::belong(store, ticket.cluster(), &statements(&join)?, Some(&join))
}

fn admission(host: &Keypair, name: &str, labels: &Labels, ticket: &Ticket) -> Result<PendingJoin> {
    let now = cluster::now();
    let expires = now.plus(ticket.invite().admit_secs_max);
    let admit = ticket.admit(host.key_id(), name, labels.clone(), now, expires).map_err(Error::refused)?;
    let mut all = ticket.roots().to_vec();
    all.push(ticket.invite_envelope().clone());
    all.push(admit);
    let text = |envelope: &Envelope| String::from_utf8(envelope.to_json()).map_err(Error::internal);
    Ok(PendingJoin { statements: all.iter().map(text).collect::<Result<_>>()?, contacts: contacts(ticket) })
}

fn contacts(ticket: &Ticket) -> Vec<Contact> {
    let contact = |b: &weighlock_protocol::ticket::Bootstrap| Contact {
        host: b.host,
        control: b.control_addrs.clone(),
        data: b.data_addrs.clone(),
    };
    ticket.bootstrap().iter().map(contact).collect()
}

fn statements(join: &PendingJoin) -> Result<Vec<Envelope>> {
    join.statements.iter().map(|json| Envelope::parse(json.as_bytes()).map_err(Error::internal)).collect()
}

/// True when this host belongs to the ticket's cluster already.
fn other_cluster(ours: Option<ClusterId>, ticket: &Ticket) -> Result<bool> {
    match ours {
        None => Ok(false),
        Some(ours) if ours == ticket.cluster() => Ok(true),
        Some(ours) => Err(Error::refused(format!(
            "this host belongs to cluster {}, the ticket is for {}",
            ours.short(),
            ticket.cluster().short()
        ))
        .hint("use another --data-dir, or a ticket of this cluster")),
    }
}

/// Asks a member to take the admission, then commits. True when nobody could be reached: then it is kept for later.
fn hand_in(store: &Store, host: &Keypair, ticket: &Ticket, join: &PendingJoin) -> Result<bool> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::internal)?;
    let answered = runtime.block_on(async {
        let keypair = libp2p::identity::Keypair::ed25519_from_bytes(host.seed()).map_err(Error::internal)?;
        let stop = CancellationToken::new();
        let (_members, none) = tokio::sync::watch::channel(Default::default());
        let doors = Doors {
            members: none,
            possession: Arc::new(Nothing),
            join: Arc::new(|_, _| Box::pin(async { Vec::new() })),
        };
        let any = std::net::SocketAddr::from(([0, 0, 0, 0], 0));
        let data =
            DataPlane::bind(any, &keypair, ticket.cluster(), DataConfig::default(), doors, stop.clone())
                .map_err(|e| Error::unavailable(format!("no socket for the data plane: {e}")))?;
        let answered = membership::hand_in(&data, join).await;
        stop.cancel();
        data.stopped().await;
        answered
    });
    match answered {
        Ok((theirs, contacts)) => {
            cluster::belong(store, ticket.cluster(), &statements(join)?, None)?;
            let facts = Facts::open(store.clone(), host.clone(), ticket.cluster())?;
            facts.ingest(theirs.iter().map(Envelope::to_json).collect(), false)?;
            let mut all = join.contacts.clone();
            all.extend(contacts);
            cluster::add_contacts(store, &all)?;
            Ok(false)
        }
        Err(e) if e.kind == Kind::Unavailable => {
            cluster::belong(store, ticket.cluster(), &statements(join)?, Some(join))?;
            Ok(true)
        }
        Err(e) => Err(e),
    }
}

/// A joiner that has nothing yet.
struct Nothing;

impl crate::net::data::Possession for Nothing {
    fn reader(&self, _layer: &weighlock_protocol::LayerId) -> Option<weighlock_cache::LayerReader> {
        None
    }

    fn grown(&self) -> tokio::sync::watch::Receiver<u64> {
        tokio::sync::watch::channel(0).1
    }

    fn sent(&self, _peer: &weighlock_protocol::KeyId, _bytes: u64) {}
}
