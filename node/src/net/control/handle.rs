//! The control plane as the rest of the daemon sees it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use libp2p::PeerId;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use weighlock_protocol::wire::control::{
    Blob, GOSSIP_PAYLOAD_BYTES_MAX, HostRecord, HostRecordError, Request, Response, STATEMENT_BYTES_MAX,
};
use weighlock_protocol::{KeyId, ManifestDigest};

use super::records::HostRecords;

/// Cheap to clone. Every method fails with [`ControlError::Stopped`] once the driver has ended.
#[derive(Debug, Clone)]
pub struct ControlHandle {
    pub(super) own: KeyId,
    pub(super) listening: watch::Receiver<Vec<SocketAddr>>,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) hosts: watch::Receiver<HostRecords>,
    pub(super) events: broadcast::WeakSender<ControlEvent>,
    pub(super) counters: Arc<Counters>,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlEvent {
    /// The first connection to a member stands.
    Connected(KeyId),
    /// The last connection to a member is gone.
    Disconnected(KeyId),
    /// Statements are committed.
    StatementsIngested {
        /// Who sent them.
        from: KeyId,
        /// How many were new.
        accepted: usize,
    },
    /// A reconciliation that this host began is complete.
    Reconciled {
        /// With whom.
        peer: KeyId,
        /// New statements that came in.
        received: usize,
        /// Statements that the peer took.
        sent: usize,
    },
    /// A host's record is new, renewed, or gone from [`ControlHandle::host_records`].
    HostChanged(KeyId),
    /// A member sent rubbish and is kept out for a while.
    Banned {
        /// Who.
        peer: KeyId,
        /// What it sent.
        reason: String,
    },
}

/// Why a command came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// The driver has ended.
    #[error("the control plane has stopped")]
    Stopped,
    /// Cannot listen or start.
    #[error("control plane cannot start: {0}")]
    Start(String),
    /// An address that is taken, or not ours.
    #[error("control plane cannot listen on {addr}: {reason}; choose another address with --control-listen")]
    Listen {
        /// The address as configured.
        addr: SocketAddr,
        /// What the system said.
        reason: String,
    },
    /// The peer is no member, or is banned for the moment.
    #[error("{0} is not a member, or is kept out for a while")]
    NotMember(KeyId),
    /// The peer cannot be reached.
    #[error("{0} cannot be reached on the control plane")]
    Unreachable(KeyId),
    /// The peer did not answer as it should.
    #[error("{peer} did not answer: {reason}")]
    Request {
        /// Who.
        peer: KeyId,
        /// What went wrong.
        reason: String,
    },
    /// The peer does not have it.
    #[error("{peer} does not have manifest {digest}")]
    NotFound {
        /// Who.
        peer: KeyId,
        /// What was asked for.
        digest: ManifestDigest,
    },
    /// A statement too large to exchange.
    #[error("a statement of {found} bytes cannot be published; at most {limit} are allowed")]
    TooLarge {
        /// Its size in bytes.
        found: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The host record is over a limit.
    #[error(transparent)]
    Record(#[from] HostRecordError),
    /// Provider records are switched off, or their limit is reached.
    #[error("provider records: {0}")]
    Providers(&'static str),
}

/// Which side dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The peer did.
    Inbound,
    /// This host did.
    Outbound,
}

/// One connected member.
#[derive(Debug, Clone, PartialEq)]
pub struct PeerStatus {
    /// Its host key.
    pub key: KeyId,
    /// Remote address of each connection.
    pub addrs: Vec<SocketAddr>,
    /// Who dialled the oldest of them.
    pub direction: Direction,
    /// Round trip as last measured, in milliseconds.
    pub rtt_ms: Option<f64>,
    /// Name and version of its daemon, as it says.
    pub agent: String,
    /// Age of the oldest connection.
    pub connected_for: Duration,
}

/// Counts since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ControlStats {
    /// Connections of keys that are no members, refused right after the handshake.
    pub strangers_refused: u64,
    /// Times that a member sent rubbish and was disconnected for a while.
    pub offences: u64,
    /// Gossip messages received.
    pub gossip_received: u64,
    /// Gossip messages neither stored nor passed on, for lack of time or by verdict.
    pub gossip_ignored: u64,
    /// New statements committed.
    pub statements_ingested: u64,
    /// Reconciliations completed that this host began.
    pub reconciled: u64,
    /// Reconciliations that broke off.
    pub reconcile_failed: u64,
    /// Requests answered.
    pub requests_answered: u64,
    /// Requests answered with "busy".
    pub requests_busy: u64,
}

/// The same, while they grow.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) strangers_refused: AtomicU64,
    pub(super) offences: AtomicU64,
    pub(super) gossip_received: AtomicU64,
    pub(super) gossip_ignored: AtomicU64,
    pub(super) statements_ingested: AtomicU64,
    pub(super) reconciled: AtomicU64,
    pub(super) reconcile_failed: AtomicU64,
    pub(super) requests_answered: AtomicU64,
    pub(super) requests_busy: AtomicU64,
    pub(super) reconciled_with: Mutex<BTreeSet<KeyId>>,
}

/// What handles and tasks ask of the driver.
#[derive(Debug)]
pub(super) enum Command {
    SetMembers(BTreeSet<KeyId>, oneshot::Sender<()>),
    Dial(KeyId, Vec<SocketAddr>),
    Forget(KeyId, oneshot::Sender<()>),
    Publish(Vec<Vec<u8>>, Option<Vec<u8>>),
    Announce(Box<HostRecord>, oneshot::Sender<Result<(), HostRecordError>>),
    Request(PeerId, Request, oneshot::Sender<Result<Response, RequestError>>),
    Provide(ManifestDigest, oneshot::Sender<Result<(), ControlError>>),
    StopProviding(ManifestDigest),
    Providers(ManifestDigest, oneshot::Sender<Result<Vec<KeyId>, ControlError>>),
    Peers(oneshot::Sender<Vec<PeerStatus>>),
    ReconcileNow,
    Offence(PeerId, String),
}

/// Why a request to a peer failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RequestError {
    NotMember,
    Unreachable,
    Failed(String),
    Stopped,
}

impl ControlHandle {
    /// This host's own key.
    pub fn key(&self) -> KeyId {
        self.own
    }

    /// Where this host listens, with the real ports. An unspecified address is shown as the addresses of
    /// the interfaces behind it.
    pub fn listen_addrs(&self) -> Vec<SocketAddr> {
        self.listening.borrow().clone()
    }

    /// Replaces the list of who may connect; this host's own key may be in it or not. Connections to
    /// those no longer in it are closed at once.
    pub async fn set_members(&self, members: BTreeSet<KeyId>) -> Result<(), ControlError> {
        self.ask(|reply| Command::SetMembers(members, reply)).await
    }

    /// Notes addresses of a host and dials it as soon as it is a member, by QUIC and then TCP, again
    /// and again with growing pauses.
    pub async fn dial(&self, host: KeyId, addrs: Vec<SocketAddr>) -> Result<(), ControlError> {
        self.tell(Command::Dial(host, addrs)).await
    }

    /// Drops the record and all addresses of a host that is gone; it is not dialled until it speaks again.
    pub async fn forget(&self, host: KeyId) -> Result<(), ControlError> {
        self.ask(|reply| Command::Forget(host, reply)).await
    }

    /// Pushes statements to everyone. They must be committed already: who is not connected now gets them
    /// by reconciliation. The manifest goes along if it is small enough.
    pub async fn publish_statements(
        &self,
        statements: Vec<Vec<u8>>,
        manifest: Option<Vec<u8>>,
    ) -> Result<(), ControlError> {
        if let Some(large) = statements.iter().find(|s| s.len() > STATEMENT_BYTES_MAX) {
            return Err(ControlError::TooLarge { found: large.len(), limit: STATEMENT_BYTES_MAX });
        }
        const { assert!(STATEMENT_BYTES_MAX < GOSSIP_PAYLOAD_BYTES_MAX) };
        self.tell(Command::Publish(statements, manifest)).await
    }

    /// Signs this host's record and tells everyone, now and from time to time. `cluster`, `host`, `seq`
    /// and `time` are filled in; so is `control_addrs` if it is empty.
    pub async fn announce(&self, record: HostRecord) -> Result<(), ControlError> {
        Ok(self.ask(|reply| Command::Announce(Box::new(record), reply)).await??)
    }

    /// The newest record of every host that is alive, this one included, as a value to watch.
    pub fn host_records(&self) -> watch::Receiver<HostRecords> {
        self.hosts.clone()
    }

    /// Asks a member for a manifest, dialling it if need be. What comes back has this digest.
    pub async fn request_manifest(
        &self,
        peer: KeyId,
        digest: ManifestDigest,
    ) -> Result<Vec<u8>, ControlError> {
        let id = super::identity::peer_id(peer).ok_or(ControlError::NotMember(peer))?;
        let answer = self.ask(|reply| Command::Request(id, Request::Manifest { digest }, reply)).await?;
        let failed = |reason: &str| ControlError::Request { peer, reason: reason.into() };
        match answer.map_err(|e| e.for_peer(peer))? {
            Response::Manifest { bytes: Some(bytes) } if ManifestDigest::of(&bytes.0) == digest => {
                Ok(bytes.0)
            }
            Response::Manifest { bytes: None } => Err(ControlError::NotFound { peer, digest }),
            Response::Busy => Err(failed("it is busy; ask again later, or another host")),
            _ => {
                let reason = "it answered with something other than that manifest";
                self.tell(Command::Offence(id, reason.into())).await?;
                Err(failed(reason))
            }
        }
    }

    /// Asks a member about its audit log, dialling it if need be. Question and answer are JSON.
    pub async fn request_audit(&self, peer: KeyId, query: Vec<u8>) -> Result<Vec<u8>, ControlError> {
        let id = super::identity::peer_id(peer).ok_or(ControlError::NotMember(peer))?;
        let request = Request::Audit { query: Blob(query) };
        let answer = self.ask(|reply| Command::Request(id, request, reply)).await?;
        match answer.map_err(|e| e.for_peer(peer))? {
            Response::Audit { answer } => Ok(answer.0),
            Response::Busy => {
                Err(ControlError::Request { peer, reason: "it is busy; ask again later".into() })
            }
            _ => Err(ControlError::Request { peer, reason: "it answered something else".into() }),
        }
    }

    /// Makes it known that this host has a manifest. Renewed until [`ControlHandle::stop_providing`].
    pub async fn provide(&self, digest: ManifestDigest) -> Result<(), ControlError> {
        self.ask(|reply| Command::Provide(digest, reply)).await?
    }

    /// Lets that run out.
    pub async fn stop_providing(&self, digest: ManifestDigest) -> Result<(), ControlError> {
        self.tell(Command::StopProviding(digest)).await
    }

    /// Members that say they have a manifest, this host included.
    pub async fn providers(&self, digest: ManifestDigest) -> Result<Vec<KeyId>, ControlError> {
        self.ask(|reply| Command::Providers(digest, reply)).await?
    }

    /// Connected members.
    pub async fn peers(&self) -> Result<Vec<PeerStatus>, ControlError> {
        self.ask(Command::Peers).await
    }

    /// Reconciles statements with all connected members, without waiting for the timer.
    pub async fn reconcile_now(&self) -> Result<(), ControlError> {
        self.tell(Command::ReconcileNow).await
    }

    /// What happens from now on; ends when the driver ends. A listener that is too slow loses the oldest.
    pub fn events(&self) -> Result<broadcast::Receiver<ControlEvent>, ControlError> {
        Ok(self.events.upgrade().ok_or(ControlError::Stopped)?.subscribe())
    }

    /// Members with which this host has compared all statements since the start, to the end.
    pub fn reconciled_with(&self) -> BTreeSet<KeyId> {
        self.counters.reconciled_with.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Counts since the start.
    pub fn stats(&self) -> ControlStats {
        let c = &self.counters;
        let read = |n: &AtomicU64| n.load(Ordering::Relaxed);
        ControlStats {
            strangers_refused: read(&c.strangers_refused),
            offences: read(&c.offences),
            gossip_received: read(&c.gossip_received),
            gossip_ignored: read(&c.gossip_ignored),
            statements_ingested: read(&c.statements_ingested),
            reconciled: read(&c.reconciled),
            reconcile_failed: read(&c.reconcile_failed),
            requests_answered: read(&c.requests_answered),
            requests_busy: read(&c.requests_busy),
        }
    }

    async fn tell(&self, command: Command) -> Result<(), ControlError> {
        self.commands.send(command).await.map_err(|_| ControlError::Stopped)
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, ControlError> {
        let (reply, answer) = oneshot::channel();
        self.tell(command(reply)).await?;
        answer.await.map_err(|_| ControlError::Stopped)
    }
}

impl RequestError {
    fn for_peer(self, peer: KeyId) -> ControlError {
        match self {
            RequestError::NotMember => ControlError::NotMember(peer),
            RequestError::Unreachable => ControlError::Unreachable(peer),
            RequestError::Failed(reason) => ControlError::Request { peer, reason },
            RequestError::Stopped => ControlError::Stopped,
        }
    }
}

impl Counters {
    pub(super) fn reconciled_with(&self, peer: Option<KeyId>) {
        self.reconciled_with.lock().unwrap_or_else(PoisonError::into_inner).extend(peer);
    }

    pub(super) fn add(counter: &AtomicU64, n: usize) {
        counter.fetch_add(n as u64, Ordering::Relaxed);
    }
}
