//! Rehearses Weighlock hosts in one thread from one seed, with the very code that the daemon runs.
//!
//! **Architecture invariant:** no clock, no hash map, no IO but what `main` prints. The same seed and the
//! same code give the same run, event for event; the trace hash shows it.

pub mod check;
pub mod faults;
pub mod host;
pub mod network;
pub mod options;
pub mod queue;
pub mod report;
pub mod scenario;
pub mod world;

pub use options::Options;
pub use report::Report;
pub use world::World;
