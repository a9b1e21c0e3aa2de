//! The daemon and the command line: everything that acts.
//!
//! **Architecture invariant:** decisions that more than one host must agree on are taken in `weighlock_protocol`;
//! this crate moves bytes, reads clocks and talks to people.

mod admin;
pub mod audit;
mod backend;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod daemon;
pub mod demo;
pub mod error;
pub mod facts;
pub mod fetch;
mod follow;
mod forgotten;
mod gc;
pub mod hardware;
mod http;
pub mod keys;
pub mod live;
mod loader;
pub mod local;
pub mod logs;
pub mod machine;
mod membership;
mod memory;
mod mlflow;
pub mod net;
pub mod preflight;
mod proof;
mod readiness;
mod rollout;
pub mod sandbox;
mod scrub;
mod server;
mod service;
mod shortage;
mod views;
mod weigh;
mod witness;
