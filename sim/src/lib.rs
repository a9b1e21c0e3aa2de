//! Rehearses Weighlock hosts in one thread from one seed, with the very code that the daemon runs.
//!
//! A [`World`] is made from [`Options`] and gives a [`Report`]. Hosts run `protocol::swarm`; the world carries frames,
//! moves bytes as flows over shared links, keeps disks, and lets things go wrong; `check` holds one invariant per file.
//!
//! What the model leaves out: the cost of CPU and of page caches, packets and their loss, slow start and congestion
//! control (a flow has its fair share a moment after it began), the bytes of frames, headers and proofs, the time that
//! host records and lists of who takes part need to travel, and TLS and dialling beyond one round trip.
//!
//! [`calibrate`] is apart from that: it measures how often `protocol::gate` is wrong.
//!
//! **Architecture invariant:** no clock, no hash map, no IO but what `main` prints. The same seed and the
//! same code give the same run, event for event; the trace hash shows it.

pub mod args;
pub mod calendar;
pub mod calibrate;
pub mod cast;
pub mod check;
pub mod curve;
pub mod disk;
pub mod draw;
pub mod faults;
pub mod fold;
pub mod host;
pub mod layout;
pub mod network;
pub mod options;
pub mod queue;
pub mod report;
pub mod scenario;
pub mod trace;
pub mod transfer;
pub mod world;

pub use options::Options;
pub use report::Report;
pub use world::World;
