//! What is rehearsed: who takes part and what must hold beside the invariants. One scenario per file.

mod flash_crowd;
mod late_joiners;
mod many_models;
mod poisoned_peer;
mod rolling_deploy;
mod seed_dies;
mod slow_rack;

use std::fmt;

use rand_chacha::ChaCha8Rng;
use serde::Serialize;

pub use seed_dies::SeedDeath;

use crate::cast::{self, Player};
use crate::check::Check;
use crate::layout::Layout;
use crate::options::Options;

/// A scenario by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// Everybody wants the same bytes at once and few have them.
    FlashCrowd,
    /// Hosts begin in waves; the first hold the version before, which shares most layers.
    RollingDeploy,
    /// The links of one rack are far slower than the others.
    SlowRack,
    /// Some hosts that offer everything serve wrong bytes.
    PoisonedPeer,
    /// The seeds die: for good once every piece is out, or earlier and they return.
    SeedDies,
    /// Some hosts come while it runs, and after.
    LateJoiners,
    /// Several manifests at once, some layers shared.
    ManyModels,
}

impl Scenario {
    /// All of them.
    pub const ALL: [Scenario; 7] = [
        Scenario::FlashCrowd,
        Scenario::RollingDeploy,
        Scenario::SlowRack,
        Scenario::PoisonedPeer,
        Scenario::SeedDies,
        Scenario::LateJoiners,
        Scenario::ManyModels,
    ];

    /// Sets what the scenario is about in options that were made without it.
    pub fn apply(self, options: &mut Options) {
        options.scenario = self;
        match self {
            Scenario::FlashCrowd | Scenario::LateJoiners => {}
            Scenario::RollingDeploy => rolling_deploy::apply(options),
            Scenario::SlowRack => slow_rack::apply(options),
            Scenario::PoisonedPeer => poisoned_peer::apply(options),
            Scenario::SeedDies => seed_dies::apply(options),
            Scenario::ManyModels => many_models::apply(options),
        }
    }

    /// What is spread.
    pub fn layout(self, options: &Options) -> Layout {
        match self {
            Scenario::ManyModels => many_models::layout(options),
            _ => flash_crowd::layout(options),
        }
    }

    /// Who takes part.
    pub fn cast(self, options: &Options, layout: &Layout, rng: &mut ChaCha8Rng) -> Vec<Player> {
        let mut cast = cast::usual(options, layout, rng);
        match self {
            Scenario::RollingDeploy => rolling_deploy::cast(layout, &mut cast),
            Scenario::LateJoiners => late_joiners::cast(layout, &mut cast, rng),
            _ => {}
        }
        cast
    }

    /// Links of each rack, up and down, in bytes per second.
    pub fn rack_links(self, options: &Options, cast: &[Player]) -> Vec<(u64, u64)> {
        let mut links = cast::rack_links(options, cast);
        if self == Scenario::SlowRack {
            slow_rack::slow(&mut links);
        }
        links
    }

    /// When the seeds die, if they do.
    pub fn seed_death(self, options: &Options) -> Option<SeedDeath> {
        (self == Scenario::SeedDies).then(|| seed_dies::plan(options))
    }

    /// What must hold in this scenario, beside the invariants that always do.
    pub fn checks(self, options: &Options) -> Vec<Box<dyn Check>> {
        match self {
            Scenario::ManyModels => many_models::checks(options),
            _ => Vec::new(),
        }
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Scenario::FlashCrowd => "flash-crowd",
            Scenario::RollingDeploy => "rolling-deploy",
            Scenario::SlowRack => "slow-rack",
            Scenario::PoisonedPeer => "poisoned-peer",
            Scenario::SeedDies => "seed-dies",
            Scenario::LateJoiners => "late-joiners",
            Scenario::ManyModels => "many-models",
        })
    }
}
