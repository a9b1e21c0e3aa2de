//! What the driver does by the clock and about itself: dials, announcements, reconciliations, provider records.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use libp2p::PeerId;
use libp2p::kad::store::RecordStore;
use libp2p::kad::{self, RecordKey};
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use tokio::sync::oneshot;
use weighlock_protocol::wire::control::{Heard, Hello, HostRecord, HostRecordError, Request, Response};
use weighlock_protocol::wire::host::ADDRS_MAX;
use weighlock_protocol::{KeyId, ManifestDigest, UnixTime};

use super::driver::{ControlDriver, Done};
use super::handle::{ControlError, ControlEvent, Counters};
use super::identity::{key_id, peer_id};
use super::peers::Source;
use super::sync::{Link, Moved, SyncError, reconcile};

/// Hosts up to which every host repeats its record at the full rate.
const HOSTS_AT_FULL_RATE: usize = 300;
/// Announcements that a host may miss before it counts as gone.
const MISSED_MAX: u32 = 6;

/// How often records are exchanged directly, plus or minus a tenth.
const INTRODUCE_INTERVAL: Duration = Duration::from_secs(5);
/// Peers with whom one round does so.
const INTRODUCE_MAX: usize = 8;

/// A look-up of providers that is under way.
pub(super) struct Query {
    found: BTreeSet<KeyId>,
    reply: oneshot::Sender<Result<Vec<KeyId>, ControlError>>,
}

impl ControlDriver {
    pub(super) fn on_tick(&mut self, now: Instant) {
        for peer in self.peers.unban(now) {
            self.swarm.behaviour_mut().allowed.allow_peer(peer);
        }
        for connection in self.peers.surplus(now) {
            self.swarm.close_connection(connection);
        }
        self.dial_due(now);
        for host in self.hosts.expire(now, self.announce_interval() * MISSED_MAX) {
            self.tell(Some(ControlEvent::HostChanged(host)));
        }
        if now >= self.announce_at {
            if let Some(record) = self.record.clone() {
                // It was within its limits when it was announced.
                let _ = self.announce(record);
            }
            self.announce_at = now + jittered(self.announce_interval());
        }
        if now >= self.sync_round_at {
            self.sync_round_at = now + jittered(self.config.timing.reconcile_interval);
            self.reconcile_soon(None, self.config.limits.sync_fanout_max);
        }
        if now >= self.introduce_at {
            self.introduce_at = now + jittered(INTRODUCE_INTERVAL);
            self.introduce_some();
        }
        let due: Vec<PeerId> = self.sync_due.iter().filter(|(_, at)| **at <= now).map(|(p, _)| *p).collect();
        for peer in due {
            self.begin_reconcile(peer);
        }
        self.expire_providers(now);
    }

    /// Exchanges records with a few connected peers, in turn. Gossip is faster, but a record that it lost, because a
    /// host was restarted under its neighbours' eyes, would else be missing until the next repetition.
    fn introduce_some(&mut self) {
        let peers: Vec<PeerId> = self.swarm.connected_peers().copied().collect();
        let from = self.introductions * INTRODUCE_MAX % peers.len().max(1);
        self.introductions = self.introductions.wrapping_add(1) % (1 << 20);
        let chosen: Vec<PeerId> =
            peers.iter().cycle().skip(from).take(INTRODUCE_MAX.min(peers.len())).copied().collect();
        for peer in chosen {
            self.say_hello(peer);
        }
    }

    pub(super) fn dial_due(&mut self, now: Instant) {
        for peer in self.peers.due(now) {
            let dial = DialOpts::peer_id(peer)
                .condition(PeerCondition::DisconnectedAndNotDialing)
                .addresses(self.peers.addrs(&peer))
                .build();
            if let Err(error) = self.swarm.dial(dial) {
                tracing::debug!(peer = %peer, %error, "cannot dial");
                self.peers.failed(&peer, now);
            }
        }
    }

    /// Signs a record as this host's newest, keeps it and tells everyone.
    pub(super) fn announce(&mut self, mut record: HostRecord) -> Result<(), HostRecordError> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let asked = record.clone();
        self.seq = self.seq.saturating_add(1).max(u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
        (record.cluster, record.host) = (self.config.cluster, self.own);
        (record.seq, record.time) = (self.seq, UnixTime(now.as_secs()));
        if record.control_addrs.is_empty() {
            record.control_addrs = self.listening.borrow().iter().copied().take(ADDRS_MAX).collect();
        }
        let keypair = &self.config.keypair;
        let signed = record.sign(|bytes| keypair.sign(bytes).expect("an Ed25519 key always signs"))?;
        self.hosts.insert(record, signed.clone(), Instant::now());
        self.record = Some(asked);
        self.announce_at = Instant::now() + jittered(self.announce_interval());
        self.gossip_host(signed);
        Ok(())
    }

    /// Something that the record says has changed.
    pub(super) fn announce_again(&mut self) {
        if self.record.is_some() {
            self.announce_at = Instant::now();
        }
    }

    fn announce_interval(&self) -> Duration {
        let times = self.hosts.len().div_ceil(HOSTS_AT_FULL_RATE).max(1);
        self.config.timing.announce_interval.saturating_mul(u32::try_from(times).unwrap_or(u32::MAX))
    }

    pub(super) fn say_hello(&mut self, peer: PeerId) {
        let Some(key) = key_id(peer) else { return };
        let hello = self.hello_for(key, Instant::now());
        let link = Link { commands: self.own_commands.clone(), peer };
        self.tasks.spawn(async move {
            let result = match link.request(Request::Hello(hello)).await {
                Ok(Response::Hello(hello)) => Ok(hello),
                Ok(_) => Err(SyncError::Rubbish("an introduction was answered with something else".into())),
                Err(error) => Err(error),
            };
            Done::Hello { peer, result }
        });
    }

    pub(super) fn on_hello(&mut self, peer: PeerId, hello: Hello, now: Instant) {
        let own = hello.own.map(|record| Heard { record, age_ms: 0 });
        for heard in own.into_iter().chain(hello.known) {
            if self.hear(peer, heard, now).is_none() {
                return;
            }
        }
    }

    /// Takes in a host record that a peer passed on. Whether it was news; `None` if it was rubbish.
    pub(super) fn hear(&mut self, from: PeerId, heard: Heard, now: Instant) -> Option<bool> {
        use super::records::Outcome;
        match self.hosts.hear(heard, now) {
            Ok(Outcome::Newer(host)) => {
                let record = self.hosts.record(host);
                if let (Some(peer), Some(record)) = (peer_id(host), record) {
                    self.learn(peer, Source::Record, record.control_addrs.iter().copied());
                }
                self.tell(Some(ControlEvent::HostChanged(host)));
                Some(true)
            }
            Ok(Outcome::Nothing) => Some(false),
            Ok(Outcome::Own(seq)) => {
                // An earlier life of this host, whose clock was ahead: go beyond it, or nobody listens.
                if seq > self.seq {
                    self.seq = seq;
                    self.announce_again();
                }
                Some(false)
            }
            Err(error) => {
                self.offend(from, error.to_string());
                None
            }
        }
    }

    /// Reconciles with up to `fanout_max` members picked at random in a moment, and with `also` later on.
    pub(super) fn reconcile_soon(&mut self, also: Option<PeerId>, fanout_max: usize) {
        let mut connected = self.peers.connected();
        connected.retain(|peer| Some(*peer) != also);
        for _ in 0..fanout_max.min(connected.len()) {
            let peer = connected.swap_remove(random() as usize % connected.len());
            self.reconcile_at(peer, jittered(Duration::from_secs(1)));
        }
        if let Some(peer) = also.filter(|_| fanout_max == 0) {
            self.reconcile_at(peer, jittered(Duration::from_secs(5)));
        }
    }

    pub(super) fn reconcile_at(&mut self, peer: PeerId, delay: Duration) {
        let at = Instant::now() + delay;
        let due = self.sync_due.entry(peer).or_insert(at);
        *due = at.min(*due);
        if delay.is_zero() {
            self.begin_reconcile(peer);
        }
    }

    fn begin_reconcile(&mut self, peer: PeerId) {
        if self.syncing.contains(&peer) {
            // Stays due; the next tick tries again.
            return;
        }
        self.sync_due.remove(&peer);
        let Some(from) = key_id(peer).filter(|_| self.peers.is_connected(&peer)) else {
            return;
        };
        self.syncing.insert(peer);
        let link = Link { commands: self.own_commands.clone(), peer };
        let (backend, limits) = (Arc::clone(&self.backend), self.config.limits.clone());
        self.tasks.spawn(async move {
            let mut moved = Moved::default();
            let result = reconcile(&link, from, &backend, &limits, &mut moved).await;
            Done::Synced { peer, moved, result }
        });
    }

    pub(super) fn on_synced(&mut self, peer: PeerId, moved: Moved, result: Result<(), SyncError>) {
        self.syncing.remove(&peer);
        self.ingested(peer, moved.received);
        if moved.received > 0 {
            self.reconcile_soon(Some(peer), self.config.limits.sync_fanout_max);
        }
        match result {
            Ok(()) => {
                Counters::add(&self.counters.reconciled, 1);
                self.counters.reconciled_with(key_id(peer));
                let Moved { received, sent } = moved;
                self.tell(key_id(peer).map(|peer| ControlEvent::Reconciled { peer, received, sent }));
            }
            Err(error) => {
                tracing::debug!(peer = %peer, %error, "reconciliation broke off");
                Counters::add(&self.counters.reconcile_failed, 1);
                if let SyncError::Rubbish(reason) = error {
                    self.offend(peer, reason);
                } else if self.peers.is_connected(&peer) {
                    self.reconcile_at(peer, jittered(Duration::from_secs(5)));
                }
            }
        }
    }

    pub(super) fn provide(&mut self, digest: ManifestDigest) -> Result<(), ControlError> {
        let kad = self.swarm.behaviour_mut().kad.as_mut();
        let kad = kad.ok_or(ControlError::Providers("they are switched off"))?;
        let full = |_| ControlError::Providers("this host keeps as many as it may");
        kad.start_providing(RecordKey::new(digest.as_bytes())).map(drop).map_err(full)
    }

    pub(super) fn stop_providing(&mut self, digest: ManifestDigest) {
        if let Some(kad) = self.swarm.behaviour_mut().kad.as_mut() {
            kad.stop_providing(&RecordKey::new(digest.as_bytes()));
        }
    }

    pub(super) fn find_providers(
        &mut self,
        digest: ManifestDigest,
        reply: oneshot::Sender<Result<Vec<KeyId>, ControlError>>,
    ) {
        let error = if self.queries.len() >= self.config.limits.queries_max {
            "too many look-ups are under way"
        } else if let Some(kad) = self.swarm.behaviour_mut().kad.as_mut() {
            let id = kad.get_providers(RecordKey::new(digest.as_bytes()));
            self.queries.insert(id, Query { found: BTreeSet::new(), reply });
            return;
        } else {
            "they are switched off"
        };
        let _ = reply.send(Err(ControlError::Providers(error)));
    }

    pub(super) fn on_kad(&mut self, event: kad::Event) {
        match event {
            kad::Event::OutboundQueryProgressed {
                id,
                result: kad::QueryResult::GetProviders(result),
                step,
                ..
            } => {
                let Some(query) = self.queries.get_mut(&id) else {
                    return;
                };
                if let Ok(kad::GetProvidersOk::FoundProviders { providers, .. }) = result {
                    let own = *self.swarm.local_peer_id();
                    let member = |peer: &PeerId| *peer == own || self.peers.is_member(peer);
                    query.found.extend(providers.into_iter().filter(member).filter_map(key_id));
                }
                if step.last
                    && let Some(query) = self.queries.remove(&id)
                {
                    let _ = query.reply.send(Ok(query.found.into_iter().collect()));
                }
            }
            kad::Event::InboundRequest {
                request: kad::InboundRequest::AddProvider { record: Some(record) },
            } => self.on_provider(record, Instant::now()),
            _ => {}
        }
    }

    /// Keeps a member's provider record. Its addresses are dropped: signed host records have better ones.
    fn on_provider(&mut self, mut record: kad::ProviderRecord, now: Instant) {
        if !self.peers.is_member(&record.provider) || record.key.as_ref().len() != 32 {
            return;
        }
        record.addresses.clear();
        let until = record.expires.unwrap_or(now + 4 * self.config.timing.provide_interval);
        let entry = (record.key.to_vec(), record.provider);
        if let Some(kad) = self.swarm.behaviour_mut().kad.as_mut()
            && kad.store_mut().add_provider(record).is_ok()
        {
            self.provided_until.insert(entry, until);
        }
    }

    /// The store of the library never forgets a key by itself.
    fn expire_providers(&mut self, now: Instant) {
        let Some(kad) = self.swarm.behaviour_mut().kad.as_mut() else {
            return;
        };
        self.provided_until.retain(|(key, provider), until| {
            let keep = *until > now;
            if !keep {
                kad.store_mut().remove_provider(&RecordKey::new(key), provider);
            }
            keep
        });
    }
}

/// Plus or minus a tenth.
fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(0.9 + 0.2 * f64::from(random()) / f64::from(u32::MAX))
}

/// Only spreads load, so no randomness at all is good enough where the system has none.
fn random() -> u32 {
    getrandom::u32().unwrap_or_default()
}
