//! What the caller wants to be run, where, and how strictly.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::limits::SandboxLimits;

/// One run of an evaluator.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Program and arguments, see [`split`](super::split); `{path}` and `{out}` in them are replaced.
    pub command: Vec<String>,
    /// The model's directory, which the evaluator reads.
    pub model: PathBuf,
    /// A directory of this run alone: made if it is absent, else it must be empty. Gets `out/` (what the evaluator
    /// leaves), `log` (what it printed) and, while it runs, `tmp/`.
    pub work: PathBuf,
    /// The evaluator's current directory, as the user's own, so that relative script names work.
    pub cwd: PathBuf,
    /// Files and directories that the evaluator must not see: keys, the store, sockets. The model and the work
    /// directory stay visible even inside of them.
    pub hidden: Vec<PathBuf>,
    /// Devices that it may use besides the common ones and GPUs.
    pub devices: Vec<PathBuf>,
    /// Variables that it gets besides the usual ones: `NAME` hands on the caller's, `NAME=VALUE` sets one.
    pub env: Vec<String>,
    /// The bounds of the run.
    pub limits: SandboxLimits,
    /// Whether a weaker sandbox will do.
    pub require: Require,
    /// Means not to be tried, which rehearses a host that lacks them.
    pub without: BTreeSet<Means>,
    /// How to start this program again.
    pub reenter: Reenter,
}

impl Spec {
    /// A run with the default limits in the caller's current directory.
    pub fn new(command: Vec<String>, model: PathBuf, work: PathBuf) -> Self {
        Self {
            command,
            model,
            work,
            cwd: std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
            hidden: Vec::new(),
            devices: Vec::new(),
            env: Vec::new(),
            limits: SandboxLimits::default(),
            require: Require::Best,
            without: BTreeSet::new(),
            reenter: Reenter::default(),
        }
    }
}

/// How much of a sandbox must be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Require {
    /// What this host offers; what is missing is recorded.
    #[default]
    Best,
    /// Nothing may be missing, see [`Record::missing`](super::Record::missing).
    Full,
}

/// What the kernel may offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Means {
    /// Rights over namespaces without rights over the host.
    UserNamespace,
    /// Everything inside dies with its first process.
    PidNamespace,
    /// Read-only mounts, a private /dev and /run.
    MountNamespace,
    /// No network but a loopback of its own.
    NetNamespace,
    /// Rules on files that the process itself cannot shed.
    Landlock,
    /// A filter on system calls.
    Seccomp,
    /// Bounds over all processes together.
    Cgroup,
}

impl Means {
    pub(super) const ALL: [Means; 7] = [
        Means::UserNamespace,
        Means::PidNamespace,
        Means::MountNamespace,
        Means::NetNamespace,
        Means::Landlock,
        Means::Seccomp,
        Means::Cgroup,
    ];

    /// As it is said to people.
    pub(super) fn name(self) -> &'static str {
        match self {
            Means::UserNamespace => "user namespace",
            Means::PidNamespace => "PID namespace",
            Means::MountNamespace => "mount namespace",
            Means::NetNamespace => "network namespace",
            Means::Landlock => "Landlock",
            Means::Seccomp => "system call filter",
            Means::Cgroup => "control group",
        }
    }
}

/// The program and arguments that lead to [`enter`](super::enter), in a process that has one thread.
#[derive(Debug, Clone)]
pub struct Reenter {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
}

impl Default for Reenter {
    /// This program's hidden `__sandbox` command.
    fn default() -> Self {
        // Not its path: the file may have been replaced since it was started.
        Self { program: "/proc/self/exe".into(), args: vec!["__sandbox".into()] }
    }
}
