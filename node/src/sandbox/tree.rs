//! The processes below one: found, measured, and killed until none is left.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};

/// How long a sweep tries.
const SWEEP_MAX: Duration = Duration::from_secs(10);
/// Between two tries.
const SWEEP_PAUSE: Duration = Duration::from_millis(5);
/// USER_HZ, which is 100 on every architecture of this program.
const TICKS_PER_SECOND: f64 = 100.0;

/// What /proc says of one process.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Process {
    parent: i32,
    zombie: bool,
    threads: u64,
    /// Of itself and of the children that it waited for.
    cpu_seconds: f64,
}

/// What the processes below one use together.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Usage {
    /// Threads, zombies included.
    pub(super) threads: u64,
    /// What they and those who ended used.
    pub(super) cpu_seconds: f64,
    /// Anonymous and shared memory, swap included, in bytes. Pages that several share count several times.
    pub(super) memory: u64,
}

/// Measures what runs below `root`, itself and its first child (our stages) excepted where things are counted.
pub(super) fn usage(root: u32) -> (Usage, Vec<i32>) {
    let all = processes();
    let below = descendants(&all, root);
    let mut usage = Usage::default();
    for pid in &below {
        let Some(process) = all.get(pid) else { continue };
        usage.cpu_seconds += process.cpu_seconds;
        // The inner stage is the child of the outer one that stays.
        if i64::from(process.parent) != i64::from(root) {
            usage.threads += process.threads;
            usage.memory += resident(*pid).unwrap_or(0);
        }
    }
    (usage, below)
}

/// The memory of these processes in bytes with shared pages divided among those who share them: dearer to ask for.
/// None if one cannot be asked.
pub(super) fn proportional(pids: &[i32]) -> Option<u64> {
    let mut sum = 0;
    for pid in pids {
        match fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) {
            Ok(rollup) => sum += kib(&rollup, &["Pss_Anon:", "Pss_Shmem:", "SwapPss:"]),
            // It ended, or is our own stage.
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => {}
            Err(_) if resident(*pid).unwrap_or(0) < 16 << 20 => {}
            Err(_) => return None,
        }
    }
    Some(sum)
}

/// Kills what runs below this process, and reaps it as far as it is this one's to reap. True when nothing is left.
pub(super) fn sweep() -> bool {
    let own = std::process::id();
    let deadline = Instant::now() + SWEEP_MAX;
    loop {
        // Stopped first, so that what forks faster than it is killed stops doing so.
        let mut stopped = BTreeSet::new();
        let below = loop {
            let all = processes();
            let below: Vec<i32> = descendants(&all, own)
                .into_iter()
                .filter(|pid| all.get(pid).is_some_and(|p| !p.zombie))
                .collect();
            let fresh: Vec<i32> = below.iter().copied().filter(|pid| stopped.insert(*pid)).collect();
            if fresh.is_empty() || Instant::now() > deadline {
                break below;
            }
            signal(&fresh, Signal::STOP);
        };
        signal(&below, Signal::KILL);
        reap();
        if below.is_empty() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(SWEEP_PAUSE);
    }
}

/// Reaps children that ended.
pub(super) fn reap() {
    while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
}

fn signal(pids: &[i32], signal: Signal) {
    for pid in pids.iter().filter_map(|pid| Pid::from_raw(*pid)) {
        // It may have ended by itself.
        let _ = kill_process(pid, signal);
    }
}

fn processes() -> BTreeMap<i32, Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return BTreeMap::new();
    };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| Some((pid, parse(&fs::read(format!("/proc/{pid}/stat")).ok()?)?))).collect()
}

/// A line of proc_pid_stat(5).
fn parse(stat: &[u8]) -> Option<Process> {
    // The name before the last bracket is the process's own choice.
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(name_end + 1..)?).ok()?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    let ticks = number(11)? + number(12)? + number(13)? + number(14)?;
    Some(Process {
        zombie: matches!(*fields.first()?, "Z" | "X"),
        parent: fields.get(1)?.parse().ok()?,
        cpu_seconds: ticks as f64 / TICKS_PER_SECOND,
        threads: number(17)?,
    })
}

fn descendants(all: &BTreeMap<i32, Process>, root: u32) -> Vec<i32> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for (pid, process) in all {
        children.entry(process.parent).or_default().push(*pid);
    }
    let mut found = Vec::new();
    let mut next = i32::try_from(root).ok().and_then(|root| children.remove(&root)).unwrap_or_default();
    while let Some(pid) = next.pop() {
        found.push(pid);
        next.extend(children.remove(&pid).unwrap_or_default());
    }
    found
}

fn resident(pid: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some(kib(&status, &["RssAnon:", "RssShmem:", "VmSwap:"]))
}

/// The sum of some lines that are given in kB, in bytes.
fn kib(table: &str, names: &[&str]) -> u64 {
    let lines = table.lines().filter_map(|line| {
        let (name, value) = line.split_at_checked(line.find(':')? + 1)?;
        names.contains(&name).then(|| value.split_ascii_whitespace().next()?.parse::<u64>().ok())?
    });
    lines.sum::<u64>().saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_a_name_that_misleads_is_read() {
        let stat = b"7 (a) R 9 (x) Z 42 7 7 0 -1 0 0 0 0 0 100 50 25 25 20 0 3 0 99 0 0";
        let process = parse(stat).expect("parsed");
        assert_eq!(process, Process { parent: 42, zombie: true, threads: 3, cpu_seconds: 2.0 });
        assert!(parse(b"7 (a S 1").is_none() && parse(b"").is_none() && parse(b"7 (a) S").is_none());
    }

    #[test]
    fn this_process_finds_itself_below_its_parent() {
        let parent = rustix::process::getppid().expect("a parent").as_raw_nonzero().get();
        let found = descendants(&processes(), parent.unsigned_abs());
        assert!(found.contains(&std::process::id().try_into().expect("a pid")));
    }

    #[test]
    fn memory_lines_are_added() {
        let status =
            "Name:\tx\nVmSwap:\t 4 kB\nRssAnon:\t  10 kB\nRssFile:\t99 kB\nRssShmem:\t1 kB\nbroken\n";
        assert_eq!(kib(status, &["RssAnon:", "RssShmem:", "VmSwap:"]), 15 * 1024);
    }
}
