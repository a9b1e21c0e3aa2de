//! Weighlock from outside: the real program, and the workspace's own rules.

mod abuse;
mod at_once;
mod audit;
mod bad_files;
mod bad_input;
mod delta;
mod diff;
mod flood;
mod garbage;
mod http;
mod ladder;
mod resume;
mod share;
mod stranger;
mod streaming;
mod swarm;
mod tidy;
mod unshare;
mod weigh;
mod where_top;
