//! Weighing without a daemon: reports from files, what a path is, policies, keys, and what the gate is asked.

pub(crate) mod key;
pub(crate) mod lock;
pub(crate) mod policy;
pub(crate) mod report;
pub(crate) mod side;
pub(crate) mod verdict;
