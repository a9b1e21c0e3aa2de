//! What the tests from outside share: real daemons in directories of their own, checkpoints, a loader, a stranger.
//!
//! Helpers panic with what they saw: each of them is called by a test, whose report that is.

pub mod binary;
pub mod checkpoint;
pub mod control;
pub mod data;
pub mod disk;
pub mod host;
pub mod http;
pub mod loader;
pub mod process;
pub mod wait;

pub use host::{Host, Lab, Ran};
pub use wait::{PATIENCE, until};
