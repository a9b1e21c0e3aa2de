//! What the command line is told of bytes that were read again, or taken in from elsewhere on this host.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use weighlock_protocol::ManifestDigest;

/// How what lies in a store holds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Integrity {
    /// Every sealed layer was proven at this time or later, in seconds since 1970; `None` where there is none.
    pub proven_since: Option<u64>,
    /// Bytes read again since the daemon started.
    pub read_bytes: u64,
    /// Layers that were found damaged and are not whole again.
    pub damaged: Vec<DamagedRow>,
    /// Damaged layers that became whole again since the daemon started.
    pub healed: u64,
}

/// A layer that was found damaged.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DamagedRow {
    /// BLAKE3, hex.
    pub layer: String,
    /// Bytes.
    pub size: u64,
    /// When it was found, in seconds since 1970.
    pub found: u64,
    /// What was found.
    pub reason: String,
    /// Groups of 16 KiB that do not hold.
    pub bad_groups: u64,
    /// Groups in all.
    pub groups: u64,
    /// Digests of artifacts that this host keeps and that have the layer.
    pub artifacts: Vec<String>,
    /// Whether it is whole again.
    pub healed: bool,
}

/// What a scrub did.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Scrubbed {
    /// Layers read.
    pub layers: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Damaged trees of whole layers that were built anew.
    pub trees_rebuilt: usize,
    /// Layers found damaged now or before.
    pub damaged: Vec<DamagedRow>,
    /// How long it took.
    pub seconds: f64,
}

/// What was adopted.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Adopted {
    /// Where it was looked for.
    pub path: PathBuf,
    /// Nothing was taken, only told.
    pub dry_run: bool,
    /// Files that are layers of published artifacts and were not here.
    pub files: usize,
    /// Bytes of those that share their disk blocks with the files they came from.
    pub reflinked_bytes: u64,
    /// Bytes of those that were copied, since the file system cannot share blocks, or it is another one.
    pub copied_bytes: u64,
    /// Why they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copied_because: Option<String>,
    /// Artifacts of which something was found.
    pub artifacts: Vec<AdoptedArtifact>,
    /// Files that could not be taken.
    pub warnings: Vec<String>,
    /// How long it took.
    pub seconds: f64,
}

/// An artifact of which something was found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AdoptedArtifact {
    /// What.
    pub digest: ManifestDigest,
    /// Under which names it was published.
    pub names: Vec<String>,
    /// Files in all.
    pub files: usize,
    /// Files that are here now.
    pub files_here: usize,
}
