//! What the kernel tells of a running daemon: memory, descriptors, time; and a tighter limit for it.

use std::fs;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use crate::host::Host;

/// A running process.
#[derive(Debug, Clone, Copy)]
pub struct Process(pub Pid);

impl Process {
    /// Anonymous memory in use, in bytes.
    ///
    /// # Panics
    /// It is gone.
    pub fn anonymous_bytes(self) -> u64 {
        let status = self.read("status");
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("RssAnon");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
        kib << 10
    }

    /// Open descriptors.
    ///
    /// # Panics
    /// It is gone.
    pub fn descriptors(self) -> u64 {
        let dir = fs::read_dir(format!("/proc/{}/fd", self.0.as_raw_nonzero())).expect("a running process");
        dir.count() as u64
    }

    /// Processor time used so far, in ticks of 10 ms.
    ///
    /// # Panics
    /// It is gone.
    pub fn ticks(self) -> u64 {
        let stat = self.read("stat");
        // The name, in parentheses, may hold spaces. User and system time are the 14th and 15th field.
        let (_, rest) = stat.rsplit_once(')').expect("a name");
        let fields: Vec<u64> =
            rest.split_whitespace().skip(11).take(2).map(|field| field.parse().expect("ticks")).collect();
        fields.iter().sum()
    }

    /// Lets it have no more than `max` descriptors from now on; those that it has stay.
    ///
    /// # Panics
    /// It may not be limited.
    pub fn limit_descriptors(self, max: u64) {
        // Its highest limit is the one that it got from us.
        let maximum = getrlimit(Resource::Nofile).maximum;
        let limit = Rlimit { current: Some(max), maximum };
        prlimit(Some(self.0), Resource::Nofile, limit).expect("one's own processes may be limited");
    }

    fn read(self, name: &str) -> String {
        let path = format!("/proc/{}/{name}", self.0.as_raw_nonzero());
        fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
    }
}

impl Host {
    /// Its daemon, as the kernel sees it.
    ///
    /// # Panics
    /// None runs.
    pub fn process(&self) -> Process {
        Process(Pid::from_child(self.child.as_ref().expect("a running daemon")))
    }

    /// How many lines of its log contain `words`.
    pub fn logged(&self, words: &str) -> usize {
        let text = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        text.lines().filter(|line| line.contains(words)).count()
    }
}
