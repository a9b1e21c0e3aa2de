//! Bytes between hosts: the data plane's requests and verified streams, the control plane's messages.

pub mod bao;
pub mod blob;
pub mod capability;
pub mod control;
pub mod data;
#[cfg(test)]
mod golden;
pub mod host;
pub mod join;
pub mod swarm;
pub mod tree;
