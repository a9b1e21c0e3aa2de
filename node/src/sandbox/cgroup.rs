//! Control groups of a run, where this process may make one: bounds on memory and processes that the kernel keeps.
//!
//! A group that another manager made (systemd, a container runtime) is that manager's alone; so one is made only in a
//! hierarchy in whose top group this process is. Elsewhere the supervisor polls.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::limits::SandboxLimits;

/// The kernel needs a moment to empty a group whose processes are dead.
const REMOVE_TRIES: u32 = 50;
const REMOVE_PAUSE: Duration = Duration::from_millis(10);
/// Groups that this process has asked for.
static RUNS: AtomicU64 = AtomicU64::new(0);
/// How the names of our groups begin; the supervisor's number follows.
const PREFIX: &str = "weighlock-eval-";

/// The groups of one run, removed when dropped.
#[derive(Debug)]
pub(super) struct Group {
    memory: Option<PathBuf>,
    processes: Option<PathBuf>,
    /// Tells runs of one process apart.
    number: u64,
    /// Every directory made; both controllers may share one.
    made: Vec<PathBuf>,
}

impl Group {
    /// Makes what can be made.
    ///
    /// # Errors
    /// Why there is nothing.
    pub(super) fn make(limits: &SandboxLimits) -> Result<Self, String> {
        let own = fs::read_to_string("/proc/self/cgroup").map_err(|e| e.to_string())?;
        let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(|e| e.to_string())?;
        let number = RUNS.fetch_add(1, Ordering::Relaxed);
        let mut group = Self { memory: None, processes: None, number, made: Vec::new() };
        let mut why = Vec::new();
        for controller in ["memory", "pids"] {
            match group.add(controller, &own, &mounts, limits) {
                Ok(dir) if controller == "memory" => group.memory = Some(dir),
                Ok(dir) => group.processes = Some(dir),
                Err(e) => why.push(format!("{controller}: {e}")),
            }
        }
        if group.made.is_empty() { Err(why.join(", ")) } else { Ok(group) }
    }

    /// Whether memory is bounded by a group.
    pub(super) fn holds_memory(&self) -> bool {
        self.memory.is_some()
    }

    /// Whether the number of processes is.
    pub(super) fn holds_processes(&self) -> bool {
        self.processes.is_some()
    }

    /// Puts a process, and what it starts from now on, into the groups.
    pub(super) fn attach(&self, pid: u32) -> io::Result<()> {
        self.made.iter().try_for_each(|dir| fs::write(dir.join("cgroup.procs"), pid.to_string()))
    }

    /// Whether the kernel has killed for want of memory.
    pub(super) fn out_of_memory(&self) -> bool {
        let counted = |dir: &PathBuf| {
            ["memory.events", "memory.oom_control"].iter().any(|file| count(&dir.join(file), "oom_kill") > 0)
        };
        self.memory.as_ref().is_some_and(counted)
    }

    /// Whether the kernel has refused a process.
    pub(super) fn out_of_processes(&self) -> bool {
        self.processes.as_ref().is_some_and(|dir| count(&dir.join("pids.events"), "max") > 0)
    }

    fn add(
        &mut self,
        controller: &str,
        own: &str,
        mounts: &str,
        limits: &SandboxLimits,
    ) -> io::Result<PathBuf> {
        let (top, unified) = top(controller, own, mounts).map_err(io::Error::other)?;
        if unified {
            let enabled = fs::read_to_string(top.join("cgroup.subtree_control"))?;
            if !enabled.split_ascii_whitespace().any(|name| name == controller) {
                fs::write(top.join("cgroup.subtree_control"), format!("+{controller}"))?;
            }
        }
        remove_left(&top);
        let dir = top.join(format!("{PREFIX}{}-{}", std::process::id(), self.number));
        if !self.made.contains(&dir) {
            fs::create_dir(&dir)?;
            self.made.push(dir.clone());
        }
        match (controller, unified) {
            ("pids", _) => fs::write(dir.join("pids.max"), limits.processes_kept().to_string())?,
            (_, true) => {
                fs::write(dir.join("memory.max"), limits.memory().to_string())?;
                // Neither is there on every kernel, and the bound holds without.
                let _ = fs::write(dir.join("memory.swap.max"), "0");
                let _ = fs::write(dir.join("memory.oom.group"), "1");
            }
            (_, false) => {
                fs::write(dir.join("memory.limit_in_bytes"), limits.memory().to_string())?;
                let _ = fs::write(dir.join("memory.memsw.limit_in_bytes"), limits.memory().to_string());
            }
        }
        Ok(dir)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for dir in &self.made {
            for _ in 0..REMOVE_TRIES {
                if fs::remove_dir(dir).is_ok() {
                    break;
                }
                std::thread::sleep(REMOVE_PAUSE);
            }
        }
    }
}

/// The directory of the top group of a controller's hierarchy, if this process is in it, and whether it is the
/// unified one.
fn top(controller: &str, own: &str, mounts: &str) -> Result<(PathBuf, bool), String> {
    // hierarchy:controllers:path, see cgroups(7).
    let rows: Vec<Vec<&str>> = own.lines().map(|line| line.splitn(3, ':').collect()).collect();
    let find = |wanted: &dyn Fn(&str) -> bool| rows.iter().find(|row| row.len() == 3 && wanted(row[1]));
    let legacy = find(&|names| names.split(',').any(|name| name == controller));
    let (row, unified) = match (legacy, find(&str::is_empty)) {
        (Some(row), _) => (row, false),
        (None, Some(row)) => (row, true),
        (None, None) => return Err("there is no such controller".to_owned()),
    };
    if row[2] != "/" {
        return Err(format!("the group {} belongs to another manager", row[2]));
    }
    for line in mounts.lines() {
        let Some((mount, fs)) = line.split_once(" - ") else { continue };
        let (mount, fs): (Vec<&str>, Vec<&str>) = (mount.split(' ').collect(), fs.split(' ').collect());
        let (Some(&root), Some(&at), Some(&kind), Some(&options)) =
            (mount.get(3), mount.get(4), fs.first(), fs.get(2))
        else {
            continue;
        };
        let fits = match unified {
            true => kind == "cgroup2",
            false => kind == "cgroup" && options.split(',').any(|name| name == controller),
        };
        if fits && root == "/" {
            let at = PathBuf::from(at);
            let offered = fs::read_to_string(at.join("cgroup.controllers")).unwrap_or_default();
            if unified && !offered.split_ascii_whitespace().any(|name| name == controller) {
                return Err("there is no such controller".to_owned());
            }
            return Ok((at, unified));
        }
    }
    Err("its hierarchy is not mounted".to_owned())
}

/// Removes the empty groups of supervisors that were killed.
fn remove_left(top: &Path) {
    for entry in fs::read_dir(top).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // One that is not empty stays.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

fn count(file: &Path, name: &str) -> u64 {
    let table = fs::read_to_string(file).unwrap_or_default();
    let value =
        table.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok());
    value.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw
35 31 0:32 / /cg/memory rw,relatime shared:9 - cgroup cgroup rw,memory
39 31 0:36 /inner /cg/pids-part rw - cgroup cgroup rw,pids
40 31 0:36 / /cg/pids rw - cgroup cgroup rw,cpu,pids";

    #[test]
    fn only_the_top_group_is_taken() {
        let own = "8:cpu,pids:/\n4:memory:/manager/session\n0::/\n";
        assert_eq!(top("pids", own, MOUNTS), Ok(("/cg/pids".into(), false)));
        assert!(top("memory", own, MOUNTS).expect_err("not ours").contains("another manager"));
        assert!(top("pids", "0::/user.slice\n", MOUNTS).expect_err("not ours").contains("another manager"));
        assert!(top("pids", "0::/\n", MOUNTS).expect_err("no cgroup2").contains("not mounted"));
        assert!(top("pids", "", "").is_err());
    }

    #[test]
    fn counters_are_read_by_their_whole_name() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("memory.events");
        fs::write(&file, "oom 3\noom_kill_disable 0\noom_kill 2\n").expect("written");
        assert_eq!((count(&file, "oom_kill"), count(&file, "max")), (2, 0));
        assert_eq!(count(&dir.path().join("none"), "oom_kill"), 0);
    }
}
