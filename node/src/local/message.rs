//! Messages on the local sockets: what the command line asks of the daemon, what loaders ask, and the answers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use weighlock_protocol::manifest::{Contract, Layer};
use weighlock_protocol::{ClusterId, KeyId, ManifestDigest, StatementId};

use crate::error::Error;
pub use crate::local::integrity::{Adopted, AdoptedArtifact, DamagedRow, Integrity, Scrubbed};
pub use crate::local::ladder::{
    Ballot, ChannelHead, DraftItem, DraftOf, Drafted, FollowRule, FollowedRow, Following, HeadInfo,
    HostStage, HostState, KeyRoles, LadderStatus, LogEvent, LogHead, Logged, OpenFor, PendingRow, PolicyInfo,
    RoleRow, RolloutHosts, RootChange, Standing, StandingKind,
};
pub use crate::local::loader::{ContractText, FdsWanted, LOADER_PROTOCOL, LoaderRequest, Opened, Resolved};
pub use crate::local::observe::{
    Activity, ArtifactActivity, Evidence, Holder, PeerActivity, PeerRow, Shared, Whereabouts,
};
pub use crate::local::request::AdminRequest;
pub use crate::local::weighed::{KeptEvidence, ManifestText, SaidRow, StageRow, Weighed};

/// `schema_version` of everything that `--json` prints.
pub const SCHEMA_VERSION: u32 = 1;

/// What a daemon sends on either socket.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// How far something long is.
    Progress(Progress),
    /// The answer of an admin request.
    Result {
        /// Its own type.
        data: serde_json::Value,
    },
    /// The request failed; the socket stays usable.
    Error(Error),
    /// Answer to [`LoaderRequest::Hello`].
    Hello {
        /// [`LOADER_PROTOCOL`].
        protocol: u32,
        /// Software version.
        version: String,
    },
    /// Answer to [`LoaderRequest::Open`].
    Opened(Box<Opened>),
    /// Answer to [`LoaderRequest::Contract`].
    Contract {
        /// As in [`Opened`].
        contract: ContractText,
    },
    /// Answer to [`LoaderRequest::Resolve`].
    Resolved(Resolved),
    /// Descriptors ride on this frame, one per path.
    Fds {
        /// In the order of the descriptors.
        paths: Vec<String>,
    },
    /// Answer to [`LoaderRequest::Wait`].
    Ready {
        /// As asked.
        path: String,
        /// Inode of the file that has the ranges. A descriptor of another inode is out of date: ask for it again.
        inode: u64,
    },
    /// Bytes of one file that became ready, each range with a start and an end. When the inode is not that of the
    /// event before, what was told before does not count.
    Ranges {
        /// Path in the manifest.
        path: String,
        /// As in [`Event::Ready`].
        inode: u64,
        /// Beside those told before.
        ready: Vec<(u64, u64)>,
    },
    /// All of what is followed is here.
    Complete,
    /// What the head of a channel is, first and each time that it moves; answer to [`LoaderRequest::Watch`].
    Head(ChannelHead),
    /// Answer to [`LoaderRequest::Close`].
    Closed,
}

/// How far something long is. Bytes count what was read or proven.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Progress {
    /// `import`, `sync`, `look` (for a host that has the manifest), `reuse` (of what other artifacts of this host have),
    /// `fetch`, `seal`, `no space` (the disk is full; it goes on by itself once there is room).
    pub phase: String,
    /// Bytes done.
    pub done_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
    /// Hosts that sent something.
    pub sources: usize,
    /// Bytes of a fetch that were taken from other layers of this host, so that they need not travel.
    pub reused_bytes: u64,
}

/// One file of an artifact.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct File {
    /// Path in the artifact.
    pub path: String,
    /// What it is for.
    pub kind: weighlock_protocol::manifest::LayerKind,
    /// Bytes.
    pub size: u64,
    /// Hex.
    pub blake3: String,
    /// Hex.
    pub sha256: String,
}

impl From<&Layer> for File {
    fn from(layer: &Layer) -> Self {
        Self {
            path: layer.path.clone(),
            kind: layer.kind,
            size: layer.size,
            blake3: layer.id.hex(),
            sha256: layer.sha256.hex(),
        }
    }
}

/// `weighlock status`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// Software version.
    pub version: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_s: u64,
    /// This host's key.
    pub host: KeyId,
    /// This host's name.
    pub name: String,
    /// Hardware key.
    pub hardware: String,
    /// It begins no fetch and gives nothing new to others.
    #[serde(default)]
    pub draining: bool,
    /// The cluster.
    pub cluster: ClusterId,
    /// Its name.
    pub cluster_name: String,
    /// Whether this host is an admitted member, as far as it knows.
    pub member: bool,
    /// That this host was revoked: when, by whom and why, as far as it heard.
    #[serde(default)]
    pub revoked: Option<String>,
    /// Admitted hosts.
    pub members: usize,
    /// Members connected now.
    pub peers: usize,
    /// Control plane addresses in use.
    pub control: Vec<SocketAddr>,
    /// Data plane address in use.
    pub data: SocketAddr,
    /// HTTP address in use.
    pub http: SocketAddr,
    /// The store.
    pub data_dir: PathBuf,
    /// Socket for loaders.
    pub loader_socket: PathBuf,
    /// `single-user` when the daemon runs as the user who loads: such a user could reopen a descriptor for writing.
    pub mode: String,
    /// Sealed layers here.
    pub layers: usize,
    /// Their bytes.
    pub layer_bytes: u64,
    /// Bytes free on the store's disk.
    pub free_bytes: u64,
    /// Artifacts open by loaders.
    pub leases: usize,
    /// Fetches in progress.
    pub fetches: Vec<FetchRow>,
    /// Namespaces with artifacts but no policy: nothing gates them.
    pub ungated: Vec<String>,
    /// Things that a person should look at.
    pub alarms: Vec<String>,
    /// How what lies in the store holds.
    #[serde(default)]
    pub integrity: Integrity,
}

/// A fetch in progress.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FetchRow {
    /// What.
    pub digest: ManifestDigest,
    /// How far.
    pub progress: Progress,
}

/// Answer to [`AdminRequest::Add`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Added {
    /// `ns/name:tag`.
    pub reference: String,
    /// The manifest's digest.
    pub digest: ManifestDigest,
    /// The publish statement.
    pub statement: StatementId,
    /// False when exactly this was published before.
    pub new: bool,
    /// It was published before, but this host did not have all of it.
    #[serde(default)]
    pub again: bool,
    /// Files.
    pub files: usize,
    /// Their bytes.
    pub total_bytes: u64,
    /// Those of them that were not in the store before; the same bytes count once.
    pub new_bytes: u64,
    /// New ones that share their disk blocks with the source.
    #[serde(default)]
    pub reflinked_bytes: u64,
    /// New ones that were copied.
    #[serde(default)]
    pub copied_bytes: u64,
    /// Why they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copied_because: Option<String>,
    /// Wall time in seconds.
    pub seconds: f64,
    /// Things worth knowing that are not errors.
    pub warnings: Vec<String>,
}

/// One line of `weighlock ls`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ArtifactRow {
    /// `ns/name`.
    pub artifact: String,
    /// Tag.
    pub tag: String,
    /// `None` when two publishers disagree.
    pub digest: Option<ManifestDigest>,
    /// Files, once the manifest is here.
    pub files: Option<usize>,
    /// Bytes.
    pub total_bytes: u64,
    /// Bytes here.
    pub held_bytes: u64,
    /// All of it is here.
    pub complete: bool,
    /// Other hosts known to hold all of it.
    pub copies_elsewhere: usize,
    /// Who published it.
    pub publisher: KeyId,
    /// When, by the publisher's clock, in seconds since 1970.
    pub published: u64,
    /// What is wrong with it.
    pub problem: Option<String>,
}

/// Answer to [`AdminRequest::Inspect`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Inspected {
    /// As asked.
    pub reference: String,
    /// The manifest's digest.
    pub digest: ManifestDigest,
    /// Files in loading order.
    pub files: Vec<File>,
    /// Sum of their sizes.
    pub total_bytes: u64,
    /// Bytes here.
    pub held_bytes: u64,
    /// The contract, once it is here.
    pub contract: Option<Contract>,
    /// Who published it under which name.
    pub published: Vec<String>,
}

/// Answer to [`AdminRequest::Remove`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Removed {
    /// What was dropped.
    pub digest: ManifestDigest,
    /// Bytes that this freed.
    pub freed_bytes: u64,
    /// Other names of the same manifest, whose bytes went with it.
    #[serde(default)]
    pub also: Vec<String>,
    /// No other host is known to hold it: what this host had of it is lost.
    #[serde(default)]
    pub last_copy: bool,
}

/// Answer to [`AdminRequest::View`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Viewed {
    /// What it resolved to.
    pub digest: ManifestDigest,
    /// The directory.
    pub path: PathBuf,
}

/// One line of `weighlock member list`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MemberRow {
    /// Host key.
    pub host: KeyId,
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// When it was admitted, in seconds since 1970.
    pub since: u64,
    /// When the admission expires.
    pub expires: Option<u64>,
    /// Whether it is this host.
    pub this_host: bool,
    /// Whether it is connected on the control plane now.
    pub connected: bool,
}

/// Answer to [`AdminRequest::Chain`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ChainPosition {
    /// The cluster.
    pub cluster: ClusterId,
    /// Sequence number of the next statement.
    pub seq: u64,
    /// The statement before it.
    pub prev: Option<StatementId>,
}

/// Answer to [`AdminRequest::Submit`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Submitted {
    /// The statement.
    pub id: StatementId,
    /// False when it was known before.
    pub new: bool,
    /// Why it has no effect yet, if it has none.
    pub pending: Option<String>,
    /// What to do about that; nothing where it is as it should be, of a kind that a later release knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// Answer to [`AdminRequest::Introduction`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Introduction {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its name.
    pub cluster_name: String,
    /// The root chain, each envelope as DSSE JSON text, oldest first.
    pub roots: Vec<String>,
    /// This host.
    pub host: KeyId,
    /// Its data plane addresses.
    pub data: Vec<SocketAddr>,
    /// Its control plane addresses.
    pub control: Vec<SocketAddr>,
}
