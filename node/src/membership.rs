//! Keeping in touch: hands in a ticket's admission until a member took it, keeps both planes' lists of members
//! current, remembers where members are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, info, warn};
use weighlock_protocol::KeyId;
use weighlock_protocol::statement::Envelope;
use weighlock_protocol::wire::join::{Contact, JOIN_HOSTS_MAX, JoinAnswer, JoinRequest};

use crate::cluster::{self, PendingJoin};
use crate::daemon::Node;
use crate::error::{Error, Result};
use crate::fetch::blocking;
use crate::net::control::ControlHandle;
use crate::net::data::DataPlane;

/// Admissions expire by the clock even when no statement comes.
const REFRESH: Duration = Duration::from_secs(30);
/// How often members' addresses are compared with those that are written down.
const LOOK: Duration = Duration::from_secs(1);
/// How long the control plane stays open to a host that is no longer a member, so that it hears why. The data plane
/// does not wait.
const PARTING: Duration = Duration::from_millis(500);
/// Pause between attempts to hand in an admission.
const JOIN_RETRY: Duration = Duration::from_secs(2);
/// Longest such pause.
const JOIN_RETRY_MAX: Duration = Duration::from_secs(60);

/// Runs until the daemon stops.
pub(crate) async fn run(node: Arc<Node>, data_addr: SocketAddr) {
    let mut members = node.facts.members();
    let mut refresh = tokio::time::interval(REFRESH);
    let mut look = tokio::time::interval(LOOK);
    let mut contacts_told = BTreeMap::new();
    let pending = load_pending(&node).await;
    let mut allowed = allow(&node, &mut members).await;
    dial_remembered(&node, pending.as_ref()).await;
    // Beside the loop: while it waits for hosts that do not answer, members still come and go.
    let mut joining = tokio::task::JoinSet::new();
    if let Some(join) = pending {
        joining.spawn(hand_in_until_taken(node.clone(), join));
    }
    loop {
        tokio::select! {
            () = node.stop.cancelled() => return,
            changed = members.changed() => {
                if changed.is_err() {
                    return;
                }
                if !allowed.is_subset(&members.borrow()) {
                    tokio::time::sleep(PARTING).await;
                }
                allowed = allow(&node, &mut members).await;
            }
            _ = refresh.tick() => node.facts.refresh_members(),
            _ = look.tick() => {
                remember(&node, data_addr, &mut contacts_told).await;
                welcome(&node).await;
            }
        }
    }
}

/// Where members are, from their records.
pub(crate) fn contacts(control: &ControlHandle) -> Vec<Contact> {
    let records = control.host_records();
    let known = records.borrow();
    let contact = |(host, known): (&KeyId, &crate::net::control::KnownHost)| Contact {
        host: *host,
        control: known.record.control_addrs.clone(),
        data: known.record.data_addrs.clone(),
    };
    known.iter().take(JOIN_HOSTS_MAX).map(contact).collect()
}

/// Asks each contact in turn to take the admission.
///
/// # Errors
/// [`crate::error::Kind::Refused`] if a member refuses it, [`crate::error::Kind::Unavailable`] if none answers.
pub(crate) async fn hand_in(data: &DataPlane, join: &PendingJoin) -> Result<(Vec<Envelope>, Vec<Contact>)> {
    let statements = join.statements.iter().map(|json| Envelope::parse(json.as_bytes()));
    let statements = statements.collect::<std::result::Result<Vec<_>, _>>().map_err(Error::internal)?;
    let request = JoinRequest { statements }.encode();
    let mut last = "the ticket names no host".to_owned();
    for contact in &join.contacts {
        let answer = match data.join(contact.host, &contact.data, &request).await {
            Ok(answer) => answer,
            Err(e) => {
                last = format!("{}: {e}", contact.host.short());
                continue;
            }
        };
        return match JoinAnswer::parse(&answer) {
            Ok(JoinAnswer::Welcome { statements, hosts }) => Ok((statements, hosts)),
            Ok(JoinAnswer::Refused { reason }) => {
                Err(Error::refused(format!("the cluster refused this host: {reason}"))
                    .hint("ask an admin for a new ticket (`weighlock invite`)"))
            }
            Err(e) => {
                last = format!("{}: {e}", contact.host.short());
                continue;
            }
        };
    }
    Err(Error::unavailable(format!("no member of the cluster could be reached ({last})")))
}

async fn load_pending(node: &Node) -> Option<PendingJoin> {
    let store = node.store.clone();
    blocking(move || cluster::pending_join(&store)).await.unwrap_or_else(|e| {
        warn!(error = %e, "cannot tell whether a ticket is still to be handed in");
        None
    })
}

async fn hand_in_until_taken(node: Arc<Node>, join: PendingJoin) {
    let mut pause = JOIN_RETRY;
    loop {
        match hand_in(&node.data, &join).await {
            Ok((statements, hosts)) => {
                let (facts, store) = (node.facts.clone(), node.store.clone());
                let contacts: Vec<Contact> = join.contacts.iter().chain(&hosts).cloned().collect();
                let json: Vec<Vec<u8>> = statements.iter().map(Envelope::to_json).collect();
                let committed = blocking(move || {
                    facts.ingest(json, false)?;
                    cluster::add_contacts(&store, &contacts)?;
                    cluster::join_done(&store)
                });
                match committed.await {
                    Ok(()) => {
                        info!("admitted to the cluster");
                        dial(&node, &join.contacts).await;
                        dial(&node, &hosts).await;
                        return;
                    }
                    Err(e) => warn!(error = %e, "the cluster's answer could not be stored"),
                }
            }
            Err(e) if e.kind == crate::error::Kind::Refused => {
                warn!(error = %e, "not admitted");
                pause = JOIN_RETRY_MAX;
            }
            Err(e) => debug!(error = %e, "admission not handed in yet"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(JOIN_RETRY_MAX);
    }
}

/// Tells the control plane who may connect, and answers it.
async fn allow(
    node: &Node,
    members: &mut tokio::sync::watch::Receiver<Arc<BTreeSet<KeyId>>>,
) -> Arc<BTreeSet<KeyId>> {
    let now = members.borrow_and_update().clone();
    debug!(members = now.len(), "members changed");
    if node.control.set_members(now.as_ref().clone()).await.is_err() {
        debug!("the control plane is stopping");
    }
    now
}

async fn dial_remembered(node: &Node, pending: Option<&PendingJoin>) {
    let store = node.store.clone();
    match blocking(move || cluster::contacts(&store)).await {
        Ok(contacts) => dial(node, &contacts).await,
        Err(e) => warn!(error = %e, "the members' addresses of the last run are lost"),
    }
    if let Some(join) = pending {
        dial(node, &join.contacts).await;
    }
}

async fn dial(node: &Node, contacts: &[Contact]) {
    for contact in contacts.iter().filter(|contact| contact.host != node.host) {
        if node.control.dial(contact.host, contact.control.clone()).await.is_err() {
            return;
        }
    }
}

/// Lists hosts again that somebody forgot and that speak.
async fn welcome(node: &Arc<Node>) {
    if node.forgotten.is_empty() {
        return;
    }
    let connected = node.control.peers().await.unwrap_or_default().into_iter().map(|peer| peer.key).collect();
    let copy = node.clone();
    let done = blocking(move || {
        copy.forgotten.welcome(&copy.control, &connected);
        Ok(())
    });
    if let Err(e) = done.await {
        warn!(error = %e, "cannot tell whether hosts that were forgotten speak");
    }
}

/// Writes members' addresses down when they changed.
async fn remember(node: &Node, data_addr: SocketAddr, told: &mut BTreeMap<KeyId, Contact>) {
    let own = crate::daemon::own_contact(node, data_addr);
    let mut now: BTreeMap<KeyId, Contact> =
        contacts(&node.control).into_iter().map(|contact| (contact.host, contact)).collect();
    now.remove(&own.host);
    if now.is_empty() || now == *told {
        return;
    }
    let (store, list) = (node.store.clone(), now.values().cloned().collect::<Vec<_>>());
    match blocking(move || cluster::add_contacts(&store, &list)).await {
        Ok(()) => *told = now,
        Err(e) => warn!(error = %e, "members' addresses could not be written down"),
    }
}
