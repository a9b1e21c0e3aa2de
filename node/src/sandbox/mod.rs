//! Runs an evaluator that nobody vouches for: no network, files read-only but for two directories, bounded in time,
//! memory, disk and processes, and nothing left running.
//!
//! Three processes share the work. The caller ([`run`]) supervises. It starts this program again as the *outer*
//! stage ([`enter`]), which makes the user and PID namespaces and outlives everything that runs inside. The outer
//! stage starts the *inner* one, which makes the other namespaces, arranges the mounts, restricts itself (Landlock,
//! capabilities, system call filter) and only then starts the command, so that nothing has to happen between fork
//! and exec. The stages talk over socket pairs; whoever loses the one above kills what is below.
//!
//! Whatever the kernel or the administrator does not allow is left out and written into the [`Record`].

mod cgroup;
mod command;
mod devices;
mod error;
mod init;
mod landlock;
mod limits;
mod log;
mod message;
mod mounts;
mod namespaces;
mod outer;
mod output;
mod privileges;
mod record;
mod run;
mod spec;
mod start;
mod supervise;
mod tree;

pub use command::split;
pub use error::SandboxError;
pub use limits::SandboxLimits;
pub use outer::enter;
pub use record::{Filesystem, Held, Network, Pids, Record};
pub use run::{Ended, Limit, OutFile, Outcome, Refused, run};
pub use spec::{Means, Reenter, Require, Spec};
