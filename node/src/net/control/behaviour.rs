//! The libp2p protocols that the control plane speaks, under names private to the cluster.

use std::collections::HashSet;
use std::io;
use std::time::Duration;

use libp2p::allow_block_list::{self, AllowedPeers};
use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::gossipsub::{self, IdentTopic, MessageAuthenticity, ValidationMode, WhitelistSubscriptionFilter};
use libp2p::kad::store::{MemoryStore, MemoryStoreConfig};
use libp2p::request_response::{self, ProtocolSupport};
use libp2p::swarm::NetworkBehaviour;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::{StreamProtocol, identify, kad, mdns, ping};
use weighlock_protocol::ClusterId;
use weighlock_protocol::wire::control::GOSSIP_BYTES_MAX;

use super::codec::Codec;
use super::config::ControlConfig;
use super::crowd;

/// How long a gossip message waits for the backend's verdict before it is dropped, in heartbeats (seconds).
const VERDICT_HEARTBEATS_MAX: usize = 30;

pub(super) type Gossipsub = gossipsub::Behaviour<gossipsub::IdentityTransform, WhitelistSubscriptionFilter>;

/// All protocols of one swarm. The first three are asked first, so a stranger is gone before any other
/// protocol hears of the connection.
#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    pub(super) allowed: allow_block_list::Behaviour<AllowedPeers>,
    pub(super) limits: connection_limits::Behaviour,
    pub(super) crowd: crowd::Behaviour,
    pub(super) ping: ping::Behaviour,
    pub(super) identify: identify::Behaviour,
    pub(super) gossip: Gossipsub,
    pub(super) sync: request_response::Behaviour<Codec>,
    pub(super) kad: Toggle<kad::Behaviour<MemoryStore>>,
    pub(super) mdns: Toggle<mdns::tokio::Behaviour>,
}

impl Behaviour {
    /// All protocols for one cluster.
    pub(super) fn new(config: &ControlConfig) -> io::Result<Self> {
        let (limits, timing) = (&config.limits, &config.timing);
        let public = config.keypair.public();
        let local = public.to_peer_id();
        let connections = ConnectionLimits::default()
            .with_max_pending_incoming(Some(limits.handshakes_max))
            .with_max_established(Some(limits.connections_max))
            .with_max_established_per_peer(Some(limits.connections_per_peer_max));
        let identify = identify::Config::new(name(config.cluster, "id"), public)
            .with_agent_version(format!("weighlock/{}", env!("CARGO_PKG_VERSION")))
            .with_push_listen_addr_updates(true)
            .with_cache_size(0);
        let pings =
            ping::Config::new().with_interval(timing.ping_interval).with_timeout(timing.ping_interval);
        let requests = request_response::Config::default()
            .with_request_timeout(timing.request_timeout)
            .with_max_concurrent_streams(2 * limits.requests_per_peer_max);
        let sync = [(protocol(config.cluster, "sync"), ProtocolSupport::Full)];
        let kad = config.kad.then(|| {
            let store = MemoryStoreConfig {
                max_records: 0,
                max_value_bytes: 0,
                max_providers_per_key: limits.providers_per_manifest_max,
                max_provided_keys: limits.provided_max,
            };
            let mut kad = kad::Behaviour::with_config(
                local,
                MemoryStore::with_config(local, store),
                kademlia(config, protocol(config.cluster, "kad")),
            );
            kad.set_mode(Some(kad::Mode::Server));
            kad
        });
        let mdns = config.mdns.then(|| mdns::Behaviour::new(mdns::Config::default(), local)).transpose()?;
        Ok(Self {
            allowed: allow_block_list::Behaviour::default(),
            // After the limits: what they refuse was never counted here.
            limits: connection_limits::Behaviour::new(connections),
            crowd: crowd::Behaviour::new(limits.handshakes_per_address_max),
            ping: ping::Behaviour::new(pings),
            identify: identify::Behaviour::new(identify),
            gossip: gossipsub(config)?,
            sync: request_response::Behaviour::with_codec(Codec, sync, requests),
            kad: kad.into(),
            mdns: mdns.into(),
        })
    }
}

/// The one gossip topic of a cluster.
pub(super) fn topic(cluster: ClusterId) -> IdentTopic {
    IdentTopic::new(name(cluster, "news"))
}

/// `/weighlock/<first 16 hex digits of the cluster>/<what>/1`.
pub(super) fn name(cluster: ClusterId, what: &str) -> String {
    format!("/weighlock/{}/{what}/1", &cluster.hex()[..16])
}

fn protocol(cluster: ClusterId, what: &str) -> StreamProtocol {
    StreamProtocol::try_from_owned(name(cluster, what)).expect("the name starts with a slash")
}

fn gossipsub(config: &ControlConfig) -> io::Result<Gossipsub> {
    let settings = gossipsub::ConfigBuilder::default()
        .protocol_id(name(config.cluster, "gossip"), gossipsub::Version::V1_1)
        .validation_mode(ValidationMode::Strict)
        .validate_messages()
        .max_transmit_size(GOSSIP_BYTES_MAX)
        .history_length(VERDICT_HEARTBEATS_MAX)
        .duplicate_cache_time(Duration::from_secs(2 * VERDICT_HEARTBEATS_MAX as u64))
        .heartbeat_initial_delay(Duration::from_secs(1))
        .connection_handler_queue_len(512)
        .max_publish_messages(512)
        .build()
        .map_err(io::Error::other)?;
    let topic = topic(config.cluster);
    let mut gossip = Gossipsub::new_with_subscription_filter(
        MessageAuthenticity::Signed(config.keypair.clone()),
        settings,
        WhitelistSubscriptionFilter(HashSet::from([topic.hash()])),
    )
    .map_err(io::Error::other)?;
    gossip.subscribe(&topic).map_err(|e| io::Error::other(e.to_string()))?;
    Ok(gossip)
}

fn kademlia(config: &ControlConfig, protocol: StreamProtocol) -> kad::Config {
    let every = config.timing.provide_interval;
    let mut kad = kad::Config::new(protocol);
    // Only provider records are kept, and those only from members: see the driver.
    kad.set_record_filtering(kad::StoreInserts::FilterBoth)
        .set_provider_publication_interval(Some(every))
        .set_provider_record_ttl(Some(4 * every))
        .set_publication_interval(None)
        .set_replication_interval(None)
        .set_caching(kad::Caching::Disabled)
        .set_kbucket_inserts(kad::BucketInserts::Manual)
        .set_query_timeout(config.timing.request_timeout);
    kad
}
