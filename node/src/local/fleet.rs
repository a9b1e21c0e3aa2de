//! What the daemon answers about itself as one of a fleet: logs, configuration, hosts that are gone.

use serde::{Deserialize, Serialize};
use weighlock_protocol::KeyId;

/// The log filter of a daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLevel {
    /// In force now.
    pub filter: String,
    /// What a restart, or reading the configuration again, goes back to.
    pub configured: String,
}

/// What became of reading the configuration again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// Keys whose new values are in force.
    pub applied: Vec<String>,
    /// Keys that have other values than the daemon was started with, and take effect after a restart.
    pub needs_restart: Vec<String>,
    /// The log filter in force.
    pub log_level: String,
}

/// A host that is no longer listed here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forgotten {
    /// Its key.
    pub host: KeyId,
    /// Its name.
    pub name: String,
    /// Until when it is admitted all the same, in seconds since 1970.
    pub admitted_until: u64,
}

/// How far a host is with being drained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draining {
    /// Whether it is.
    pub draining: bool,
    /// Fetches that still run.
    pub fetches: usize,
    /// Answers that are still being sent to other hosts.
    pub sending: usize,
    /// Artifacts that loaders have open. They keep what they have mapped when the daemon goes.
    pub open: usize,
}

impl Draining {
    /// Nothing is under way any more that a restart would cut off.
    pub fn is_done(&self) -> bool {
        self.draining && self.fetches == 0 && self.sending == 0
    }
}
