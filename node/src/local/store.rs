//! What is said of the store: what went and what stays, pins, what uses the disk, copies on other hosts.

use serde::{Deserialize, Serialize};
use weighlock_protocol::ManifestDigest;

/// Answer to a collection, or what one would do.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Collected {
    /// Nothing went; this is what would.
    pub dry_run: bool,
    /// What went, in this order.
    pub gone: Vec<Gone>,
    /// Bytes that this freed.
    pub freed_bytes: u64,
    /// What stays, the least recently used first.
    pub kept: Vec<Kept>,
    /// Bytes that are still too many, under the quota and the floor.
    pub short_bytes: u64,
}

/// Something that went.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Gone {
    /// `artifact`, `partial fetch`, `partial layer`, `layer of no artifact`, `directory`, `damaged layer`.
    pub kind: String,
    /// A name of the artifact, or of the layer.
    pub name: String,
    /// Of an artifact.
    pub digest: Option<ManifestDigest>,
    /// Bytes that this freed.
    pub bytes: u64,
    /// When it was last used, Unix seconds.
    pub last_used: Option<u64>,
}

/// Something that stays.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Kept {
    /// A name of the artifact.
    pub name: String,
    /// Its digest.
    pub digest: ManifestDigest,
    /// Bytes of its layers here.
    pub bytes: u64,
    /// When it was last used, Unix seconds.
    pub last_used: u64,
    /// Why it may not go; empty if it may, and need not.
    pub because: Vec<String>,
}

/// A pin.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PinRow {
    /// The name under which it was pinned.
    pub name: String,
    /// What is pinned.
    pub digest: ManifestDigest,
    /// Why.
    pub reason: Option<String>,
    /// Since when, Unix seconds.
    pub since: u64,
    /// Whether all of it is here.
    pub complete: bool,
}

/// What a pin command does.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "do")]
pub enum PinChange {
    /// Nothing: lists.
    List,
    /// Pins each.
    Add {
        /// References.
        references: Vec<String>,
        /// Why.
        reason: Option<String>,
    },
    /// Takes pins away.
    Remove {
        /// References.
        references: Vec<String>,
    },
}

/// Answer to a question for what uses the store. Bytes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DiskUse {
    /// Sealed layers.
    pub layers: usize,
    /// Their bytes, trees included.
    pub layer_bytes: u64,
    /// Of these: in more than one artifact of this host.
    pub shared_bytes: u64,
    /// Of these: in pinned artifacts.
    pub pinned_bytes: u64,
    /// Of these: in artifacts that may not go.
    pub protected_bytes: u64,
    /// What a collection of everything would free.
    pub reclaimable_bytes: u64,
    /// Layers on their way, with what is reserved for them.
    pub partial_bytes: u64,
    /// Copies in directories of `weighlock path`.
    pub view_bytes: u64,
    /// Damaged layers that were set aside.
    pub quarantine_bytes: u64,
    /// Imports under way.
    pub staging_bytes: u64,
    /// The log of opens.
    pub audit_bytes: u64,
    /// The database.
    pub metadata_bytes: u64,
    /// What is kept for the database.
    pub reserve_bytes: u64,
    /// What counts for the quota.
    pub used_bytes: u64,
    /// The quota; 0 is none.
    pub quota_bytes: u64,
    /// What stays free on the disk.
    pub floor_bytes: u64,
    /// What is free on the disk.
    pub free_bytes: u64,
    /// Where.
    pub data_dir: std::path::PathBuf,
}

/// How many hosts hold all of an artifact.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CopyCount {
    /// The artifact.
    pub digest: ManifestDigest,
    /// Names of hosts that hold all of it, this one included.
    pub whole: Vec<String>,
    /// Names of hosts that hold a part of it.
    pub begun: Vec<String>,
    /// Whether a rule makes other hosts follow a channel of it.
    pub followed: bool,
}
