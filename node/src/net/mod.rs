//! What crosses the network: the data plane (QUIC) and the control plane (libp2p), both under one host key.

pub mod control;
pub mod data;
mod site;
pub mod tls;
