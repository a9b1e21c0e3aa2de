//! What is rehearsed: who takes part and what must hold beside the invariants. One scenario per file.

mod flash_crowd;
mod poisoned_peer;

use std::fmt;

use serde::Serialize;

use crate::check::Check;
use crate::host::Role;
use crate::options::Options;

/// A scenario by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// Everybody wants the same bytes at once and one host has them.
    FlashCrowd,
    /// The same, and some hosts that offer everything serve wrong bytes.
    PoisonedPeer,
}

impl Scenario {
    /// All of them.
    pub const ALL: [Scenario; 2] = [Scenario::FlashCrowd, Scenario::PoisonedPeer];

    /// Sets what the scenario is about in options that were given by hand.
    pub fn apply(self, options: &mut Options) {
        options.scenario = self;
        match self {
            Scenario::FlashCrowd => flash_crowd::apply(options),
            Scenario::PoisonedPeer => poisoned_peer::apply(options),
        }
    }

    /// Who takes part.
    pub fn cast(self, options: &Options) -> Vec<Role> {
        match self {
            Scenario::FlashCrowd => flash_crowd::cast(options),
            Scenario::PoisonedPeer => poisoned_peer::cast(options),
        }
    }

    /// What must hold in this scenario, beside the invariants that always do.
    pub fn checks(self) -> Vec<Box<dyn Check>> {
        match self {
            Scenario::FlashCrowd => Vec::new(),
            Scenario::PoisonedPeer => poisoned_peer::checks(),
        }
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Scenario::FlashCrowd => "flash-crowd",
            Scenario::PoisonedPeer => "poisoned-peer",
        })
    }
}
