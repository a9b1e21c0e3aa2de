//! What loaders ask over `loader.sock`, and what an open answers.

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use weighlock_protocol::{ManifestDigest, StatementId};

#[cfg(doc)]
use crate::local::message::Event;
use crate::local::message::File;

/// Version of the loader protocol.
pub const LOADER_PROTOCOL: u32 = 1;

/// What loaders ask over `loader.sock`. A lease on what was opened lasts as long as the socket.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum LoaderRequest {
    /// Answered by [`Event::Hello`].
    Hello {
        /// As in [`Open`](Self::Open).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        client: Option<String>,
    },
    /// Resolves, fetches what is missing, answers [`Event::Opened`], then [`Event::Fds`] if asked for.
    Open {
        /// A reference.
        #[serde(rename = "ref")]
        reference: String,
        /// Whether descriptors of all files follow.
        #[serde(default)]
        fds: FdsWanted,
        /// Answer as soon as the contract is here, while the rest is being fetched. Descriptors of files on their way
        /// read as zeros where nothing is ready: [`Wait`](Self::Wait) or [`Follow`](Self::Follow) tell what is.
        #[serde(default)]
        partial: bool,
        /// Also without evidence, where the policy allows that; it is logged.
        #[serde(default)]
        ungated: bool,
        /// What the client says of itself, such as `weighlock-python 0.1.0 vllm 0.6.3`; goes into the audit log, cut to
        /// 256 characters.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        client: Option<String>,
        /// The files are copied: the audit log then tells that a copy was taken, since nothing tells how long it is
        /// used.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        copy: bool,
        /// Whether the answer holds the contract. Without it an answer is shorter by its tensor index, some hundred bytes
        /// for each tensor; [`Contract`](Self::Contract) asks for it later.
        #[serde(default = "yes", skip_serializing_if = "is_yes")]
        contract: bool,
    },
    /// The contract of something opened on this socket. Answered by [`Event::Contract`], after any number of
    /// [`Event::Progress`] as for [`Fds`](Self::Fds).
    Contract {
        /// What was opened.
        digest: ManifestDigest,
    },
    /// Descriptors of single files of something opened on this socket: any number of [`Event::Progress`], while damage is
    /// being healed, then [`Event::Fds`].
    Fds {
        /// What was opened.
        digest: ManifestDigest,
        /// Paths in its manifest.
        paths: Vec<String>,
    },
    /// Waits until ranges of one file of something opened on this socket are proven, and has them fetched before
    /// others. Answered by any number of [`Event::Progress`], then [`Event::Ready`]. After an error it may be asked
    /// again, which starts the fetch anew.
    Wait {
        /// What was opened.
        digest: ManifestDigest,
        /// Path in its manifest.
        path: String,
        /// Bytes, each with a start and an end.
        ranges: Vec<(u64, u64)>,
    },
    /// Tells what is ready of the files of something opened on this socket, now and as it grows: any number of
    /// [`Event::Ranges`] and [`Event::Progress`], then [`Event::Complete`]. Who has heard enough closes the socket.
    Follow {
        /// What was opened.
        digest: ManifestDigest,
        /// Paths in its manifest; all files when empty.
        #[serde(default)]
        paths: Vec<String>,
    },
    /// Tells what a reference means and whether it opens here, without opening it. Answered by [`Event::Resolved`].
    Resolve {
        /// A reference.
        #[serde(rename = "ref")]
        reference: String,
    },
    /// Tells what the head of a channel is, now and each time that it moves, rollbacks included: any number of
    /// [`Event::Head`]. The next request on the socket ends it.
    Watch {
        /// `ns/name:stage`.
        #[serde(rename = "ref")]
        reference: String,
        /// A number that the listener drew, if it runs a reload hook: directories of what was shut wait until it says
        /// that the hook was started for another head.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hook: Option<u64>,
    },
    /// Gives the lease back before the socket closes. Answered by [`Event::Closed`].
    Close {
        /// What was opened.
        digest: ManifestDigest,
    },
}

/// Whether an open sends descriptors at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FdsWanted {
    /// All of them.
    All,
    /// None; they are asked for by path.
    #[default]
    None,
}

/// What was opened.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Opened {
    /// As asked.
    #[serde(rename = "ref")]
    pub reference: String,
    /// What it resolved to.
    pub digest: ManifestDigest,
    /// Length of the manifest in bytes.
    pub manifest_bytes: u64,
    /// The files.
    pub files: Vec<File>,
    /// The contract, if it was asked for; without its tensor index when it is too large for a frame.
    pub contract: Option<ContractText>,
    /// Descriptors that follow.
    pub fds: usize,
    /// Whether all files are here; always so unless it was opened as partial.
    #[serde(default = "yes")]
    pub complete: bool,
    /// Paths of those that are not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub incomplete: Vec<String>,
}

/// A contract as JSON text, which is passed on as it is.
#[derive(Debug, Clone)]
pub struct ContractText(pub Arc<RawValue>);

impl Serialize for ContractText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ContractText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // By way of a value: raw text does not pass through a tagged enum.
        let value = serde_json::Value::deserialize(deserializer)?;
        let text = serde_json::value::to_raw_value(&value).map_err(serde::de::Error::custom)?;
        Ok(Self(text.into()))
    }
}

fn yes() -> bool {
    true
}

// By reference, as serde asks for it.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_yes(value: &bool) -> bool {
    *value
}

/// What a reference means. It opens on this host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Resolved {
    /// As asked.
    #[serde(rename = "ref")]
    pub reference: String,
    /// What it means.
    pub digest: ManifestDigest,
    /// The promotion or rollback that lets it open; none where there is no policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statement: Option<StatementId>,
}
