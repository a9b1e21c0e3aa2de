//! Bytes between hosts: the data plane's requests and verified streams, the control plane's messages.

pub mod bao;
pub mod blob;
pub mod control;
pub mod data;
pub mod host;
pub mod join;
pub mod tree;
