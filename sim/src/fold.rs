//! Rehearses the statement fold: hosts that gossip, part, crash and reconcile must end with the same state.
//!
//! A world of its own beside the swarm's: nothing here has layers or links with rates. Hosts run the real
//! ledger and the real reconciliation; envelopes are really signed and really checked.

mod author;
mod canon;
mod cast;
pub mod check;
mod climb;
mod host;
mod hostile;
mod options;
mod report;
mod sync;
mod world;

pub use canon::{SECTIONS, Section, fold_hash};
pub use host::Host;
pub use options::FoldOptions;
pub use report::{FoldCounts, FoldReport};
pub use world::FoldWorld;

/// Runs one world from its options to its end.
pub fn run(options: FoldOptions) -> FoldReport {
    FoldWorld::new(options).run()
}

#[cfg(test)]
mod tests;
