//! What the daemon tells of what it sees: who holds an artifact, what moves, and the other hosts.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use weighlock_protocol::{KeyId, ManifestDigest};

#[cfg(doc)]
use crate::local::message::{AdminRequest, Progress};

/// Answer to [`AdminRequest::Where`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Whereabouts {
    /// As asked.
    pub reference: String,
    /// What it resolved to.
    pub digest: ManifestDigest,
    /// Bytes of all files.
    pub total_bytes: u64,
    /// Loaders that have it open on this host.
    pub loaders_here: usize,
    /// Those who hold all of it first, then those who hold more. Never empty.
    pub holders: Vec<Holder>,
}

/// A host that holds an artifact, or a part of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Holder {
    /// Host key.
    pub host: KeyId,
    /// Name, as its admission says.
    pub name: String,
    /// Whether it is the host that answers.
    pub this_host: bool,
    /// Connected on the control plane; always so for this host.
    pub connected: bool,
    /// It holds all of it.
    pub complete: bool,
    /// How much of it, 0 to 100 and 100 only when complete; `None` where only it knows.
    pub held_percent: Option<f64>,
    /// Bytes held; known of this host only.
    pub held_bytes: Option<u64>,
    /// Whole pieces held, where this host fetches or gives the artifact and is linked with that one.
    pub held_pieces: Option<usize>,
    /// Pieces in all, where this host fetches or gives it.
    pub pieces: Option<usize>,
    /// Who says so.
    pub told_by: Evidence,
    /// In this host's rack, or racks are not known; of hosts that this one is linked with for the artifact.
    pub near: Option<bool>,
    /// Labels such as `rack` and `zone`.
    pub labels: BTreeMap<String, String>,
    /// Data plane addresses.
    pub data: Vec<SocketAddr>,
    /// Seconds since its record was heard.
    pub record_age_s: Option<u64>,
    /// For how many seconds more it is banned here for bytes that failed verification.
    pub banned_s: Option<u64>,
}

/// Where a claim about a holder comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Evidence {
    /// This host's own store.
    Store,
    /// The record that the host signed.
    Record,
    /// What the host declares as a neighbour in the artifact's swarm.
    Swarm,
    /// The cluster's provider table; how much the host holds is not known.
    Providers,
}

/// Answer to [`AdminRequest::Top`]: counters and states at one moment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Activity {
    /// Milliseconds since the daemon started, so that two looks give a rate.
    pub at_ms: u64,
    /// This host's key.
    pub host: KeyId,
    /// This host's name.
    pub name: String,
    /// Proven bytes fetched from all peers since the start.
    pub fetched_bytes: u64,
    /// Bytes sent to all peers since the start.
    pub sent_bytes: u64,
    /// Artifacts that are fetched, or given to others.
    pub artifacts: Vec<ArtifactActivity>,
    /// Hosts that are connected, linked, banned, or that something came from or went to.
    pub peers: Vec<PeerActivity>,
}

/// What goes on with one artifact.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ArtifactActivity {
    /// Which.
    pub digest: ManifestDigest,
    /// Its names, `ns/name:tag`.
    pub names: Vec<String>,
    /// As in [`Progress`], or `serve` where it is only given to others.
    pub phase: String,
    /// Bytes here.
    pub done_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
    /// Bytes that were taken from other artifacts of this host.
    pub reused_bytes: u64,
    /// Hosts that sent something of it.
    pub sources: usize,
    /// Hosts that something is on its way from now.
    pub sources_now: usize,
    /// Neighbours in its swarm.
    pub links: usize,
    /// Pieces on their way here.
    pub in_flight: usize,
    /// Pieces promised to others or on their way to them.
    pub uploads: u64,
    /// Pieces here whole.
    pub held_pieces: usize,
    /// Pieces in all; 0 before the swarm has begun.
    pub pieces: usize,
    /// Loaders that have it open on this host.
    pub loaders: usize,
}

/// What goes on with one peer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PeerActivity {
    /// Host key.
    pub host: KeyId,
    /// Name, as its admission says.
    pub name: String,
    /// Connected on the control plane.
    pub connected: bool,
    /// What it is to this host in the swarms.
    #[serde(flatten)]
    pub shared: Shared,
    /// For how many seconds more it is banned here for bytes that failed verification.
    pub banned_s: Option<u64>,
    /// Proven bytes fetched from it since the daemon started.
    pub fetched_bytes: u64,
    /// Bytes sent to it since the daemon started.
    pub sent_bytes: u64,
}

/// What a peer is to this host in all swarms together.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Shared {
    /// Artifacts in whose swarms the two are neighbours.
    pub shared: Vec<ManifestDigest>,
    /// Pieces on their way from it.
    pub in_flight: u64,
    /// Pieces promised to it or on their way to it.
    pub uploads: u64,
    /// In this host's rack, or racks are not known; `None` where the two are not neighbours.
    pub near: Option<bool>,
}

/// One line of `weighlock peers`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PeerRow {
    /// Host key.
    pub host: KeyId,
    /// Name, as its admission says.
    pub name: String,
    /// Connected on the control plane.
    pub connected: bool,
    /// Round-trip time on the control plane.
    pub rtt_ms: Option<f64>,
    /// Hardware key.
    pub hardware: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Software version.
    pub version: String,
    /// What its daemon can do beyond the first version of the protocol.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// Data plane addresses.
    pub data: Vec<SocketAddr>,
    /// Data connections open now.
    pub data_connections: usize,
    /// Path MTU of one of them.
    pub mtu: Option<u16>,
    /// Artifacts it declares.
    pub held: usize,
    /// What it is to this host in the swarms.
    #[serde(flatten)]
    pub shared: Shared,
    /// Seconds since its record was heard.
    pub record_age_s: Option<u64>,
    /// Until when it is banned for bytes that failed verification, in seconds from now.
    pub banned_s: Option<u64>,
    /// Bytes fetched from it since the daemon started.
    pub fetched_bytes: u64,
    /// Bytes sent to it since the daemon started.
    pub sent_bytes: u64,
}
