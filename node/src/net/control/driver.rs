//! The one task that owns the swarm: takes events, commands and finished jobs, one at a time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use libp2p::allow_block_list::NotAllowed;
use libp2p::core::ConnectedPoint;
use libp2p::gossipsub::{MessageId, TopicHash};
use libp2p::kad::QueryId;
use libp2p::request_response::{OutboundRequestId, ResponseChannel};
use libp2p::swarm::{ListenError, SwarmEvent};
use libp2p::{PeerId, Swarm, identify, mdns, ping};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use weighlock_protocol::KeyId;
use weighlock_protocol::wire::control::{Hello, HostRecord, Response};

use super::backend::Backend;
use super::behaviour::{Behaviour, BehaviourEvent, name, topic};
use super::config::ControlConfig;
use super::gossip::Judged;
use super::handle::{Command, ControlEvent, ControlHandle, Counters, Direction, RequestError};
use super::identity::{key_id, peer_id, socket_addr};
use super::peers::{Admission, Peers, Source};
use super::records::HostTable;
use super::serve::Answer;
use super::sync::{Moved, SyncError};
use super::tick::Query;

/// Two hosts that dial each other at once have two connections of about this age at most; an older one is a dead one.
const RESTART_AGE_MIN: Duration = Duration::from_millis(1500);

/// How often deadlines are looked at.
const TICK: Duration = Duration::from_millis(200);

/// A control plane that is listening. Does nothing until it is [run](ControlDriver::run).
pub struct ControlDriver {
    pub(super) swarm: Swarm<Behaviour>,
    pub(super) backend: Arc<dyn Backend>,
    pub(super) config: ControlConfig,
    pub(super) own: KeyId,
    pub(super) topic: TopicHash,
    pub(super) cancel: CancellationToken,
    pub(super) commands: mpsc::Receiver<Command>,
    /// For the tasks that this driver starts.
    pub(super) own_commands: mpsc::Sender<Command>,
    pub(super) tasks: JoinSet<Done>,
    pub(super) counters: Arc<Counters>,
    pub(super) events: broadcast::Sender<ControlEvent>,
    pub(super) listening: watch::Sender<Vec<SocketAddr>>,
    pub(super) peers: Peers,
    /// Hosts on the local network, members or not.
    nearby: BTreeMap<PeerId, BTreeSet<SocketAddr>>,
    pub(super) hosts: HostTable,
    /// This host's record as last announced; `seq` is the last one used, in this life or an earlier one.
    pub(super) record: Option<HostRecord>,
    pub(super) seq: u64,
    pub(super) announce_at: Instant,
    /// When to reconcile with whom next, beside the timer.
    pub(super) sync_due: BTreeMap<PeerId, Instant>,
    pub(super) sync_round_at: Instant,
    /// When hosts are next introduced to each other directly, and how often that was.
    pub(super) introduce_at: Instant,
    pub(super) introductions: usize,
    pub(super) syncing: BTreeSet<PeerId>,
    pub(super) requests: HashMap<OutboundRequestId, oneshot::Sender<Result<Response, RequestError>>>,
    pub(super) serving: BTreeMap<PeerId, usize>,
    /// Gossip messages being worked on, by who passed them on.
    pub(super) gossiping: BTreeMap<PeerId, usize>,
    /// Requests and gossip messages being worked on.
    pub(super) jobs: usize,
    pub(super) queries: HashMap<QueryId, Query>,
    /// When the provider records of others run out.
    pub(super) provided_until: BTreeMap<(Vec<u8>, PeerId), Instant>,
}

/// A finished task.
pub(super) enum Done {
    Answered { peer: PeerId, channel: ResponseChannel<Response>, answer: Option<Answer> },
    Gossiped { peer: PeerId, id: MessageId, judged: Option<Judged> },
    Synced { peer: PeerId, moved: Moved, result: Result<(), SyncError> },
    Hello { peer: PeerId, result: Result<Hello, SyncError> },
}

impl ControlDriver {
    pub(super) fn new(
        swarm: Swarm<Behaviour>,
        backend: Arc<dyn Backend>,
        config: ControlConfig,
        own: KeyId,
        listening: BTreeSet<SocketAddr>,
        cancel: CancellationToken,
    ) -> (ControlHandle, Self) {
        let (own_commands, commands) = mpsc::channel(config.limits.commands_max);
        let hosts = HostTable::new(own, config.cluster);
        let now = Instant::now();
        let peers = Peers::new(*swarm.local_peer_id(), config.limits.clone(), config.timing.clone());
        let driver = Self {
            topic: topic(config.cluster).hash(),
            events: broadcast::Sender::new(config.limits.events_max),
            sync_round_at: now + config.timing.reconcile_interval,
            introduce_at: now,
            introductions: 0,
            announce_at: now + config.timing.announce_interval,
            listening: watch::Sender::new(listening.into_iter().collect()),
            counters: Arc::default(),
            tasks: JoinSet::new(),
            nearby: BTreeMap::new(),
            record: None,
            seq: 0,
            sync_due: BTreeMap::new(),
            syncing: BTreeSet::new(),
            requests: HashMap::new(),
            serving: BTreeMap::new(),
            gossiping: BTreeMap::new(),
            jobs: 0,
            queries: HashMap::new(),
            provided_until: BTreeMap::new(),
            swarm,
            backend,
            config,
            own,
            cancel,
            commands,
            own_commands,
            peers,
            hosts,
        };
        let handle = ControlHandle {
            own,
            listening: driver.listening.subscribe(),
            commands: driver.own_commands.clone(),
            hosts: driver.hosts.subscribe(),
            events: driver.events.downgrade(),
            counters: Arc::clone(&driver.counters),
        };
        (handle, driver)
    }

    /// Runs until the token that it was started with is cancelled; then says goodbye and closes all
    /// connections. Spawn it.
    pub async fn run(mut self) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.cancel.cancelled() => break,
                event = self.swarm.select_next_some() => self.on_swarm(event),
                Some(command) = self.commands.recv() => self.on_command(command),
                Some(done) = self.tasks.join_next() => self.on_joined(done),
                _ = tick.tick() => self.on_tick(Instant::now()),
            }
        }
        self.stop().await;
    }

    pub(super) fn on_swarm(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour(event),
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                let (direction, remote) = match &endpoint {
                    ConnectedPoint::Dialer { address, .. } => (Direction::Outbound, address),
                    ConnectedPoint::Listener { send_back_addr, .. } => (Direction::Inbound, send_back_addr),
                };
                let remote = socket_addr(remote);
                // Members do not dial whom they are connected to: it was restarted, and its old connection is dead
                // without knowing. Protocols that greet only on the first connection must see a first one.
                if self.peers.connected_for(&peer_id, Instant::now()).is_some_and(|age| age > RESTART_AGE_MIN)
                {
                    tracing::debug!(peer = %peer_id, "connected anew; closing what is left of the old connection");
                    let _ = self.swarm.disconnect_peer_id(peer_id);
                }
                if self.peers.opened(peer_id, connection_id, direction, remote, Instant::now()) {
                    self.tell(key_id(peer_id).map(ControlEvent::Connected));
                    // One side introduces both; the other's request would only cross it.
                    if direction == Direction::Outbound {
                        self.say_hello(peer_id);
                    }
                }
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, cause, .. } => {
                tracing::debug!(peer = %peer_id, ?cause, "connection closed");
                if self.peers.closed(&peer_id, connection_id, Instant::now()) {
                    self.tell(key_id(peer_id).map(ControlEvent::Disconnected));
                }
            }
            SwarmEvent::OutgoingConnectionError { peer_id: Some(peer), error, .. } => {
                tracing::debug!(peer = %peer, %error, "dial failed");
                self.peers.failed(&peer, Instant::now());
            }
            SwarmEvent::IncomingConnectionError {
                error: ListenError::Denied { cause },
                send_back_addr,
                ..
            } if cause.downcast_ref::<NotAllowed>().is_some() => {
                tracing::info!(addr = %send_back_addr, "refused a connection of a key that is no member");
                Counters::add(&self.counters.strangers_refused, 1);
            }
            SwarmEvent::NewListenAddr { .. } | SwarmEvent::ExpiredListenAddr { .. } => {
                let addrs: BTreeSet<SocketAddr> = self.swarm.listeners().filter_map(socket_addr).collect();
                self.listening.send_replace(addrs.into_iter().collect());
                self.announce_again();
            }
            SwarmEvent::ListenerClosed { addresses, reason, .. } => {
                tracing::error!(?addresses, ?reason, "the control plane no longer listens here");
            }
            _ => {}
        }
    }

    fn on_behaviour(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Gossip(event) => self.on_gossip(event),
            BehaviourEvent::Sync(event) => self.on_sync(event),
            BehaviourEvent::Kad(event) => self.on_kad(event),
            BehaviourEvent::Ping(ping::Event { peer, result: Ok(rtt), .. }) => {
                self.peers.measured(&peer, rtt)
            }
            BehaviourEvent::Ping(ping::Event { result: Err(ping::Failure::Unsupported), .. }) => {}
            BehaviourEvent::Ping(ping::Event { peer, connection, result: Err(error) }) => {
                tracing::debug!(peer = %peer, %error, "ping failed");
                self.swarm.close_connection(connection);
            }
            BehaviourEvent::Identify(identify::Event::Received { peer_id, info, .. }) => {
                if info.protocol_version != name(self.config.cluster, "id") {
                    tracing::warn!(peer = %peer_id, version = %info.protocol_version, "peer speaks of another cluster");
                    return;
                }
                self.peers.identified(&peer_id, &info.agent_version);
                let addrs: Vec<SocketAddr> = info.listen_addrs.iter().filter_map(socket_addr).collect();
                self.learn(peer_id, Source::Heard, addrs);
            }
            BehaviourEvent::Mdns(mdns::Event::Discovered(found)) => {
                for (peer, addr) in found {
                    self.on_nearby(peer, socket_addr(&addr));
                }
            }
            BehaviourEvent::Mdns(mdns::Event::Expired(gone)) => {
                for (peer, _) in gone {
                    self.nearby.remove(&peer);
                }
            }
            BehaviourEvent::Identify(_) => {}
        }
    }

    /// Multicast DNS names hosts of any cluster, and each only once; who is a member may turn out later.
    fn on_nearby(&mut self, peer: PeerId, addr: Option<SocketAddr>) {
        let limits = &self.config.limits;
        if self.nearby.len() < limits.members_max || self.nearby.contains_key(&peer) {
            let addrs = self.nearby.entry(peer).or_default();
            if addrs.len() < limits.addrs_per_peer_max {
                addrs.extend(addr);
            }
        }
        self.learn(peer, Source::Heard, addr);
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::SetMembers(members, reply) => {
                self.set_members(&members);
                let _ = reply.send(());
            }
            Command::Dial(host, addrs) => {
                if let Some(peer) = peer_id(host) {
                    self.learn(peer, Source::Told, addrs);
                    self.dial_due(Instant::now());
                }
            }
            Command::Forget(host, reply) => {
                self.hosts.hide(&host);
                if let Some(peer) = peer_id(host) {
                    self.nearby.remove(&peer);
                    self.peers.forget(&peer);
                    self.route(peer);
                }
                self.tell(Some(ControlEvent::HostChanged(host)));
                let _ = reply.send(());
            }
            Command::Publish(statements, manifest) => self.publish(statements, manifest),
            Command::Announce(record, reply) => {
                let _ = reply.send(self.announce(*record));
            }
            Command::Request(peer, request, reply) => self.request(peer, request, reply),
            Command::Provide(digest, reply) => {
                let _ = reply.send(self.provide(digest));
            }
            Command::StopProviding(digest) => self.stop_providing(digest),
            Command::Providers(digest, reply) => self.find_providers(digest, reply),
            Command::Peers(reply) => {
                let _ = reply.send(self.peers.status(Instant::now()));
            }
            Command::ReconcileNow => {
                for peer in self.peers.connected() {
                    self.reconcile_at(peer, Duration::ZERO);
                }
            }
            Command::Offence(peer, reason) => self.offend(peer, reason),
        }
    }

    pub(super) fn on_joined(&mut self, done: Result<Done, tokio::task::JoinError>) {
        match done {
            Ok(Done::Answered { peer, channel, answer }) => {
                self.jobs = self.jobs.saturating_sub(1);
                self.on_answered(peer, channel, answer);
            }
            Ok(Done::Gossiped { peer, id, judged }) => {
                self.jobs = self.jobs.saturating_sub(1);
                self.on_gossiped(peer, &id, judged);
            }
            Ok(Done::Synced { peer, moved, result }) => self.on_synced(peer, moved, result),
            Ok(Done::Hello { peer, result }) => match result {
                Ok(hello) => self.on_hello(peer, hello, Instant::now()),
                Err(SyncError::Rubbish(reason)) => self.offend(peer, reason),
                Err(error) => tracing::debug!(peer = %peer, %error, "introduction failed"),
            },
            // The tasks call out only through `blocking`, which turns panics into errors.
            Err(error) => tracing::error!(%error, "a control plane task failed"),
        }
    }

    fn set_members(&mut self, members: &BTreeSet<KeyId>) {
        let Admission { allow, deny } = self.peers.set_members(members);
        self.hosts.set_members(members);
        for peer in deny {
            self.swarm.behaviour_mut().allowed.disallow_peer(peer);
            self.route(peer);
            self.sync_due.remove(&peer);
        }
        for peer in allow {
            self.swarm.behaviour_mut().allowed.allow_peer(peer);
            self.route(peer);
            let nearby = self.nearby.get(&peer).cloned().unwrap_or_default();
            self.learn(peer, Source::Heard, nearby);
        }
        self.dial_due(Instant::now());
    }

    /// Notes where a member can be reached.
    pub(super) fn learn(
        &mut self,
        peer: PeerId,
        source: Source,
        addrs: impl IntoIterator<Item = SocketAddr>,
    ) {
        // Another machine's loopback address would lead back to ourselves.
        let loopback = source == Source::Told
            || self.peers.is_on_loopback(&peer)
            || self.listening.borrow().iter().all(|a| a.ip().is_loopback());
        let usable = addrs.into_iter().filter(|a| loopback || !a.ip().is_loopback());
        if self.peers.learn(peer, source, usable) {
            self.route(peer);
        }
    }

    /// Makes the routing table say of a member what we know of it, and no more.
    fn route(&mut self, peer: PeerId) {
        let addrs = if self.peers.is_member(&peer) { self.peers.addrs(&peer) } else { Vec::new() };
        if let Some(kad) = self.swarm.behaviour_mut().kad.as_mut() {
            kad.remove_peer(&peer);
            for addr in addrs {
                kad.add_address(&peer, addr);
            }
        }
    }

    /// Disconnects a member that sent what no honest host sends, and keeps it out for a while.
    pub(super) fn offend(&mut self, peer: PeerId, reason: String) {
        if !self.peers.is_member(&peer) || self.peers.is_banned(&peer) {
            return;
        }
        tracing::warn!(peer = %peer, reason, "a member sent rubbish and is kept out for a while");
        Counters::add(&self.counters.offences, 1);
        self.peers.ban(peer, Instant::now());
        self.swarm.behaviour_mut().allowed.disallow_peer(peer);
        self.tell(key_id(peer).map(|peer| ControlEvent::Banned { peer, reason }));
    }

    /// Statements of `from` are committed.
    pub(super) fn ingested(&mut self, from: PeerId, accepted: usize) {
        if accepted > 0 {
            Counters::add(&self.counters.statements_ingested, accepted);
            self.tell(key_id(from).map(|from| ControlEvent::StatementsIngested { from, accepted }));
        }
    }

    pub(super) fn tell(&self, event: Option<ControlEvent>) {
        if let Some(event) = event {
            // No listener is no error.
            let _ = self.events.send(event);
        }
    }
}
