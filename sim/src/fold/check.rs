//! What must hold in every run of the statement world: one rule per file, fed with everything that happens.

mod accused;
mod bounded;
mod converged;
mod evidence;
mod forged;
mod moves;
mod named;
mod one_head;
mod order;
mod proven;
mod quorum;
mod replayed;
mod revoked;
mod rolled_back;
mod same_fold;
mod same_set;
mod votes;

use std::fmt;

use serde::Serialize;
use weighlock_protocol::StatementId;

use super::world::FoldWorld;

/// Something that happened. Hosts by number.
#[derive(Debug, Clone)]
pub enum Seen<'a> {
    /// A host took statements in, or more signatures of them.
    Ingested {
        /// Which host.
        host: usize,
        /// Which statements.
        new: &'a [StatementId],
    },
    /// A host came back and has read its store.
    Restarted {
        /// Which host.
        host: usize,
    },
    /// A host lost all that was not in an old copy of its disk; it has not read that yet.
    Restored {
        /// Which host.
        host: usize,
    },
    /// A head was undone on a host.
    RolledBack {
        /// Which host.
        host: usize,
        /// The rollback.
        rollback: StatementId,
    },
    /// A host found that another sent what no honest host sends.
    Accused {
        /// Who found it.
        by: usize,
        /// Who sent it.
        of: usize,
        /// What was wrong.
        reason: &'a str,
    },
}

/// A rule.
pub trait Check: fmt::Debug {
    /// What holds, in a few words.
    fn name(&self) -> &'static str;

    /// Looks at something that happened.
    ///
    /// # Errors
    /// One line that says what was violated and by whom.
    fn see(&mut self, world: &FoldWorld, seen: &Seen<'_>) -> Result<(), String> {
        let _ = (world, seen);
        Ok(())
    }

    /// Promotions that were seen to be a head somewhere, if the rule looks at those.
    fn heads(&self) -> u64 {
        0
    }

    /// Looks at the world when the run is over.
    ///
    /// # Errors
    /// One line that says what was violated and by whom.
    fn end(&mut self, world: &FoldWorld) -> Result<(), String> {
        let _ = world;
        Ok(())
    }
}

/// A rule that did not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FoldViolation {
    /// Which rule.
    pub check: &'static str,
    /// When, in nanoseconds of the run.
    pub at_ns: u64,
    /// What happened.
    pub what: String,
}

/// All rules.
pub fn all() -> Vec<Box<dyn Check>> {
    vec![
        Box::<accused::Accused>::default(),
        Box::<bounded::Bounded>::default(),
        Box::<converged::Converged>::default(),
        Box::<evidence::Evidence>::default(),
        Box::<forged::Forged>::default(),
        Box::<named::Named>::default(),
        Box::<one_head::OneHead>::default(),
        Box::<order::Order>::default(),
        Box::<proven::Proven>::default(),
        Box::<quorum::Quorum>::default(),
        Box::<replayed::Replayed>::default(),
        Box::<revoked::Revoked>::default(),
        Box::<rolled_back::RolledBack>::default(),
        Box::<same_fold::SameFold>::default(),
        Box::<same_set::SameSet>::default(),
        Box::<votes::Votes>::default(),
    ]
}
