//! Weighlock from outside: the real program, and the workspace's own rules.

mod adopt;
mod audit;
mod bad_files;
mod bad_input;
mod delta;
mod diff;
mod fleet;
mod garbage;
mod heal;
mod http;
mod ladder;
mod mixed;
mod monitoring;
mod pod;
mod resume;
mod rolling;
mod share;
mod store;
mod stranger;
mod streaming;
mod swarm;
mod tidy;
mod unshare;
mod weigh;
mod where_top;
