//! What a run was kept to, fit to be put into the evidence.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::limits::SandboxLimits;
use super::spec::Means;

/// How the evaluator was confined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// How it was kept from the network.
    pub network: Network,
    /// How it was kept from changing files.
    pub filesystem: Filesystem,
    /// How it was made sure that nothing outlives the run.
    pub pids: Pids,
    /// Who watched over memory.
    pub memory: Held,
    /// Who watched over the number of processes.
    pub processes: Held,
    /// Whether a filter kept it from system calls that lead around the above.
    pub syscall_filter: bool,
    /// The bounds in force, with the memory bound filled in.
    pub limits: SandboxLimits,
    /// What an evaluator could reach or do although it should not, one line each; empty for a full sandbox. That a
    /// bound is polled rather than kept by the kernel is said above and does not count.
    pub missing: Vec<String>,
}

/// How the network was shut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// A network namespace with a loopback of its own.
    Namespace,
    /// No internet sockets at all, by a system call filter; there is no loopback either.
    Filter,
    /// It was not.
    Open,
}

/// How files were kept from changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Filesystem {
    /// Read-only mounts, and Landlock as a second line.
    MountsAndLandlock,
    /// Read-only mounts.
    Mounts,
    /// Landlock.
    Landlock,
    /// They were not.
    Open,
}

/// How processes are ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pids {
    /// The kernel ends a PID namespace as one.
    Namespace,
    /// Descendants are looked for and killed until none is left.
    Swept,
}

/// Who keeps a bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Held {
    /// The kernel, by a control group.
    Cgroup,
    /// The kernel, by a resource limit of the sandbox's own user namespace: it refuses processes above the bound, and
    /// the evaluator has to deal with that.
    Rlimit,
    /// The supervisor, by looking at intervals; a fast evaluator can overshoot between two looks.
    Polled,
}

impl Record {
    /// What follows from the means in use. `failed` says of the others why they could not be had.
    pub(super) fn new(
        means: &BTreeSet<Means>,
        failed: &BTreeMap<Means, String>,
        own_proc: bool,
        (memory, processes): (Held, Held),
        limits: SandboxLimits,
    ) -> Self {
        let has = |part| means.contains(&part);
        let lack = |part: Means, so: &str| {
            let why = failed.get(&part).map_or(String::new(), |why| format!(" ({why})"));
            format!("no {}{why}: {so}", part.name())
        };
        let mut missing = Vec::new();
        let network = match (has(Means::NetNamespace), has(Means::Seccomp)) {
            (true, _) => Network::Namespace,
            (false, true) => Network::Filter,
            (false, false) => Network::Open,
        };
        let filesystem = match (has(Means::MountNamespace), has(Means::Landlock)) {
            (true, true) => Filesystem::MountsAndLandlock,
            (true, false) => Filesystem::Mounts,
            (false, true) => Filesystem::Landlock,
            (false, false) => Filesystem::Open,
        };
        if network == Network::Open {
            missing.push(lack(Means::NetNamespace, "the network is open"));
        }
        if filesystem == Filesystem::Open {
            missing.push(lack(Means::MountNamespace, "files can be changed"));
        } else if filesystem == Filesystem::Landlock {
            missing
                .push(lack(Means::MountNamespace, "hidden files and other programs' sockets can be reached"));
        }
        if !has(Means::PidNamespace) {
            missing.push(lack(
                Means::PidNamespace,
                "processes of the same user can be seen, and are ended one by one",
            ));
        } else if has(Means::MountNamespace) && !own_proc {
            missing.push("no /proc of its own: the host's processes can be seen".to_owned());
        }
        if !has(Means::Seccomp) {
            missing.push(lack(Means::Seccomp, "keyrings, host sockets and file handles can be used"));
        }
        Self {
            network,
            filesystem,
            pids: if has(Means::PidNamespace) { Pids::Namespace } else { Pids::Swept },
            memory,
            processes,
            syscall_filter: has(Means::Seccomp),
            limits,
            missing,
        }
    }
}

impl fmt::Display for Record {
    /// One line for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let network = match self.network {
            Network::Namespace => "no network",
            Network::Filter => "no network (by system call filter)",
            Network::Open => "NETWORK OPEN",
        };
        let files = match self.filesystem {
            Filesystem::MountsAndLandlock | Filesystem::Mounts => "read-only files",
            Filesystem::Landlock => "read-only files (by Landlock alone)",
            Filesystem::Open => "FILES WRITABLE",
        };
        let pids = match self.pids {
            Pids::Namespace => "own processes",
            Pids::Swept => "processes swept",
        };
        let how = |held| match held {
            Held::Cgroup => "by control group",
            Held::Rlimit => "by resource limit",
            Held::Polled => "by polling",
        };
        let gib = self.limits.memory() as f64 / (1u64 << 30) as f64;
        write!(f, "sandbox: {network}, {files}, {pids}, memory {gib:.1} GiB {}", how(self.memory))?;
        write!(f, ", {} processes {}", self.limits.processes, how(self.processes))?;
        write!(f, ", {} s", self.limits.wall_seconds)?;
        if !self.missing.is_empty() {
            write!(f, "; missing: {}", self.missing.join(", "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(without: &[Means]) -> Record {
        let means = Means::ALL.into_iter().filter(|part| !without.contains(part)).collect();
        let failed = without.iter().map(|part| (*part, "why not".to_owned())).collect();
        Record::new(&means, &failed, true, (Held::Polled, Held::Polled), SandboxLimits::default())
    }

    #[test]
    fn what_is_missing_is_named_and_what_has_a_substitute_is_not() {
        assert_eq!(record(&[]).missing, [""; 0]);
        assert_eq!(record(&[Means::NetNamespace, Means::Landlock, Means::Cgroup]).missing, [""; 0]);
        let open = record(&[Means::NetNamespace, Means::Seccomp]);
        assert_eq!((open.network, open.missing.len()), (Network::Open, 2));
        assert!(open.missing[0].contains("why not") && open.to_string().contains("NETWORK OPEN"), "{open}");
        let landlock = record(&[Means::MountNamespace]);
        assert_eq!((landlock.filesystem, landlock.missing.len()), (Filesystem::Landlock, 1));
        assert_eq!(record(&Means::ALL).missing.len(), 4);
    }

    #[test]
    fn it_survives_json() {
        let record = record(&[Means::PidNamespace]);
        let json = serde_json::to_string(&record).expect("json");
        assert_eq!(serde_json::from_str::<Record>(&json).expect("read"), record);
    }
}
