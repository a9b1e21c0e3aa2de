//! What more than one Weighlock host must agree on: pure types, rules and state machines.
//!
//! **Architecture invariant:** nothing here does IO, reads a clock, draws randomness other than from a
//! seed that is passed in, or iterates a hash map. `sim` runs this very code.

pub mod audit;
pub mod gate;
pub mod id;
pub mod keep;
pub mod lock;
pub mod manifest;
pub mod names;
pub mod statement;
pub mod swarm;
pub mod ticket;
pub mod time;
pub mod wire;

pub use id::{ClusterId, KeyId, LayerId, ManifestDigest, Sha256, StatementId};
pub use names::{Artifact, DigestPrefix, NameError, Reference, Selector, Stage, Tag};
pub use time::{Time, UnixTime};
