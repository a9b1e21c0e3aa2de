//! Settings, limits and intervals of the control plane.

use std::net::SocketAddr;
use std::time::Duration;

use libp2p::identity::Keypair;
use weighlock_protocol::ClusterId;

/// What a control plane is started with.
#[derive(Debug, Clone)]
pub struct ControlConfig {
    /// The host key; must be Ed25519.
    pub keypair: Keypair,
    /// The cluster that this host belongs to. Names the protocols, so clusters never mix.
    pub cluster: ClusterId,
    /// Where to listen. Each address is opened for QUIC (UDP) and TCP on the same port; port 0 picks one
    /// that is free for both.
    pub listen: Vec<SocketAddr>,
    /// Whether to look for members on the local network by multicast DNS.
    pub mdns: bool,
    /// Whether to keep and look up provider records.
    pub kad: bool,
    /// What may grow, and how far.
    pub limits: ControlLimits,
    /// How often things happen.
    pub timing: ControlTiming,
}

impl ControlConfig {
    /// Default limits and intervals, multicast DNS and provider records switched on.
    pub fn new(keypair: Keypair, cluster: ClusterId, listen: Vec<SocketAddr>) -> Self {
        let (limits, timing) = (ControlLimits::default(), ControlTiming::default());
        Self { keypair, cluster, listen, mdns: true, kad: true, limits, timing }
    }
}

/// What may grow, and how far.
#[derive(Debug, Clone)]
pub struct ControlLimits {
    /// Members to whom this host keeps a connection of its own accord.
    pub peers_max: usize,
    /// Connections open at once, both directions.
    pub connections_max: u32,
    /// Connections to one peer; two hosts that dial each other at once have two for a moment.
    pub connections_per_peer_max: u32,
    /// Inbound handshakes under way at once, strangers included.
    pub handshakes_max: u32,
    /// The same from one address (IPv6: one /64).
    pub handshakes_per_address_max: usize,
    /// Outbound dials under way at once.
    pub dials_max: usize,
    /// Addresses remembered per member and source of the address.
    pub addrs_per_peer_max: usize,
    /// Members, and thereby host records, addresses and so on that are kept.
    pub members_max: usize,
    /// Requests of one peer that are worked on at once; further ones are answered with "busy".
    pub requests_per_peer_max: usize,
    /// Requests and gossip messages worked on at once, for all peers together.
    pub jobs_max: usize,
    /// Statement bytes in one message of a reconciliation.
    pub sync_page_bytes_max: usize,
    /// Pages of ids in one reconciliation.
    pub sync_pages_max: usize,
    /// Peers with whom one round of the timer reconciles.
    pub sync_fanout_max: usize,
    /// Manifests for which this host keeps provider records, its own and those of others.
    pub provided_max: usize,
    /// Providers remembered per manifest.
    pub providers_per_manifest_max: usize,
    /// Look-ups of providers under way at once.
    pub queries_max: usize,
    /// Commands waiting for the driver.
    pub commands_max: usize,
    /// Events that a slow listener may fall behind before it loses the oldest.
    pub events_max: usize,
}

impl Default for ControlLimits {
    fn default() -> Self {
        Self {
            peers_max: 64,
            connections_max: 512,
            connections_per_peer_max: 4,
            handshakes_max: 128,
            handshakes_per_address_max: 32,
            dials_max: 16,
            addrs_per_peer_max: 16,
            members_max: 16_384,
            requests_per_peer_max: 8,
            jobs_max: 64,
            sync_page_bytes_max: 512 << 10,
            sync_pages_max: 4096,
            sync_fanout_max: 3,
            provided_max: 65_536,
            providers_per_manifest_max: 64,
            queries_max: 256,
            commands_max: 256,
            events_max: 1024,
        }
    }
}

/// How often things happen.
#[derive(Debug, Clone)]
pub struct ControlTiming {
    /// How often this host repeats its record when nothing changed, plus or minus a tenth. With more than
    /// 300 hosts known it repeats it less often, in proportion.
    pub announce_interval: Duration,
    /// How often statements are reconciled with a few peers, plus or minus a tenth.
    pub reconcile_interval: Duration,
    /// How long a member that sent rubbish is kept out.
    pub ban: Duration,
    /// How long a request may take.
    pub request_timeout: Duration,
    /// Pause after the first failed dial to a member; doubles with each failure.
    pub redial_min: Duration,
    /// Longest pause between two dials to a member.
    pub redial_max: Duration,
    /// How often peers are pinged; a peer that does not answer within as much again is disconnected.
    pub ping_interval: Duration,
    /// How often provider records are renewed; they count for four times as long.
    pub provide_interval: Duration,
    /// How long stopping may take.
    pub stop_max: Duration,
}

impl Default for ControlTiming {
    fn default() -> Self {
        Self {
            announce_interval: Duration::from_secs(30),
            reconcile_interval: Duration::from_secs(15),
            ban: Duration::from_secs(60),
            request_timeout: Duration::from_secs(30),
            redial_min: Duration::from_secs(1),
            redial_max: Duration::from_secs(60),
            ping_interval: Duration::from_secs(15),
            provide_interval: Duration::from_secs(30 * 60),
            stop_max: Duration::from_secs(5),
        }
    }
}
