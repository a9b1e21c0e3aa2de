//! What the command line asks of the daemon.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use weighlock_protocol::audit::Door;
use weighlock_protocol::manifest::contract::MlflowOrigin;
use weighlock_protocol::wire::join::Contact;
use weighlock_protocol::{KeyId, ManifestDigest, StatementId};

use crate::local::message::*;

/// What the command line asks of the daemon over `weighlock.sock`. Answered by any number of
/// [`Event::Progress`] and one [`Event::Result`] or [`Event::Error`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum AdminRequest {
    /// [`Status`].
    Status,
    /// Imports a path and publishes it. Answers [`Added`].
    Add {
        /// Absolute path, as the daemon sees it.
        path: PathBuf,
        /// `ns/name:tag`.
        reference: String,
        /// Globs of files to take; all when empty.
        include: Vec<String>,
        /// Globs of files to leave out.
        exclude: Vec<String>,
        /// Absolute paths of `.dvc` files and `dvc.lock`s that name the data it was made from.
        #[serde(default)]
        datasets: Vec<PathBuf>,
        /// The model version of MLflow that it is.
        #[serde(default)]
        origin: Option<Box<MlflowOrigin>>,
    },
    /// Answers a list of [`ArtifactRow`].
    List,
    /// Answers [`Inspected`].
    Inspect {
        /// A reference.
        reference: String,
    },
    /// Answers [`ManifestText`].
    Manifest {
        /// A reference.
        reference: String,
    },
    /// Drops this host's copy. Answers [`Removed`].
    Remove {
        /// A reference.
        reference: String,
        /// Also when a loader has it open or no other host is known to hold it.
        force: bool,
    },
    /// Makes sure that it is here and answers [`Viewed`]: a read-only directory.
    View {
        /// A reference.
        reference: String,
        /// What for.
        #[serde(default)]
        purpose: OpenFor,
        /// What for, as the audit log tells it.
        #[serde(default)]
        door: Door,
    },
    /// Keeps a directory with a report, its samples and its log, for an evaluation of `reference` that `by` will sign.
    /// Answers [`KeptEvidence`].
    AddEvidence {
        /// What was evaluated.
        reference: String,
        /// Absolute path, as the daemon sees it.
        path: PathBuf,
        /// The evaluator.
        by: KeyId,
    },
    /// Answers [`Weighed`]: what was measured of an artifact, and what the gate said of it.
    Weighed {
        /// A reference.
        reference: String,
    },
    /// A reload hook was started for a head. Answers nothing.
    HookStarted {
        /// The number that its listener drew, as in [`LoaderRequest::Watch`].
        hook: u64,
        /// The head.
        digest: ManifestDigest,
    },
    /// Makes sure that the report of an evaluation is here and answers [`Viewed`].
    Evidence {
        /// The manifest that holds it.
        digest: ManifestDigest,
    },
    /// Takes files below a directory in that are layers of published artifacts. Answers [`Adopted`].
    Adopt {
        /// Absolute path, as the daemon sees it.
        path: PathBuf,
        /// Only tell what would be taken.
        dry_run: bool,
    },
    /// Reads layers again and proves them; waits until what was damaged is whole, or nobody has it. Answers [`Scrubbed`].
    Scrub {
        /// Of this artifact; all layers when absent.
        reference: Option<String>,
        /// How fast; 0 is as fast as the disk gives them.
        bytes_per_s: u64,
    },
    /// Answers a list of [`MemberRow`].
    Members,
    /// Drops a host that is gone from this one's lists. Answers [`Forgotten`](crate::local::fleet::Forgotten).
    Forget {
        /// Whom.
        host: KeyId,
    },
    /// Reads file and labels again. Answers [`Reloaded`](crate::local::fleet::Reloaded).
    Reload,
    /// Answers [`LogLevel`](crate::local::fleet::LogLevel), after setting it if there is one.
    LogLevel {
        /// The new filter.
        filter: Option<String>,
    },
    /// Answers [`Draining`](crate::local::fleet::Draining), after beginning or ending it if asked to.
    Drain {
        /// Whether this host is to be drained; only the question if absent.
        on: Option<bool>,
    },
    /// Answers a list of [`PeerRow`].
    Peers,
    /// Answers [`Whereabouts`].
    Where {
        /// A reference.
        reference: String,
    },
    /// Answers [`Activity`].
    Top,
    /// Answers [`ChainPosition`]: what the next chained statement of a key must carry.
    Chain {
        /// The signer.
        key: KeyId,
    },
    /// Commits a signed statement (DSSE JSON as text) and spreads it. Answers [`Submitted`].
    Submit {
        /// The envelope.
        envelope: String,
    },
    /// Remembers and dials hosts, as a ticket names them. Answers nothing.
    Dial {
        /// Where members are.
        contacts: Vec<Contact>,
    },
    /// Answers [`Introduction`]: what a ticket must carry beside its key.
    Introduction,
    /// Answers [`Drafted`]: what `by` would sign to bring something about, and what it lacks.
    Draft {
        /// The signer.
        by: KeyId,
        /// What.
        of: DraftOf,
    },
    /// Answers [`Standing`]: what became of a statement.
    Standing {
        /// The statement.
        statement: StatementId,
    },
    /// Answers [`LadderStatus`]: policy, heads and what waits, of an artifact.
    Ladder {
        /// `ns/name`, or any reference of it.
        name: String,
    },
    /// Answers [`RolloutHosts`]: how far each host is with an artifact.
    Rollout {
        /// `ns/name`, or any reference of it.
        name: String,
    },
    /// Answers [`Logged`]: who did what to an artifact.
    Log {
        /// `ns/name`, or any reference of it.
        name: String,
        /// The heads as they were at this time, Unix seconds.
        #[serde(default)]
        at: Option<u64>,
    },
    /// Answers [`Following`]: which channels this host follows, after it was told of one more or less.
    Follow {
        /// `ns/name:stage`, or only the question.
        reference: Option<String>,
        /// Whether it no longer follows it.
        stop: bool,
    },
    /// Answers [`KeyRoles`]: who may do what.
    Keys,
    /// Answers the envelope of a statement, as text.
    Envelope {
        /// The statement's id, or its beginning.
        id: String,
    },
    /// Answers [`Collected`](crate::local::store::Collected): lets go of what may go, or tells what would.
    Gc {
        /// Only tell.
        dry_run: bool,
        /// All that may go, even if there is room.
        all: bool,
    },
    /// Answers a list of [`PinRow`](crate::local::store::PinRow): what is pinned after the change.
    Pin {
        /// The change.
        change: crate::local::store::PinChange,
    },
    /// Answers [`DiskUse`](crate::local::store::DiskUse).
    DiskUse,
    /// Answers [`CopyCount`](crate::local::store::CopyCount).
    Copies {
        /// A reference.
        reference: String,
    },
    /// Answers a [`Page`](crate::audit::Page) of this host's audit log, or of another member's.
    Audit {
        /// Name or key of another member.
        #[serde(default)]
        host: Option<String>,
        /// The question.
        query: crate::audit::Query,
    },
}
