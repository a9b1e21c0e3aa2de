//! The bounds of a run, and those of them that the kernel keeps for each process.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

const MIB: u64 = 1024 * 1024;
const GIB: u64 = 1024 * MIB;

/// What a run may use. Every bound holds for all processes of the evaluator together, unless it says otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SandboxLimits {
    /// Wall time in seconds.
    pub wall_seconds: u64,
    /// CPU time in seconds; none if absent.
    pub cpu_seconds: Option<u64>,
    /// Anonymous and shared memory in bytes, swap included, mapped files not; 90 % of the host's if absent.
    ///
    /// Address space is not bounded: GPU runtimes reserve far more of it than they use.
    pub memory_bytes: Option<u64>,
    /// Processes and threads at one time.
    pub processes: u32,
    /// Open files of one process.
    pub open_files: u64,
    /// What is kept of standard output and error: half of it from the beginning, half from the end.
    pub log_bytes: u64,
    /// Disk use of the result directory.
    pub out_bytes: u64,
    /// Files and directories in the result directory.
    pub out_files: u64,
    /// Disk use of the private temporary directory, which is also the greatest length of one file if it is more than
    /// `out_bytes`.
    pub tmp_bytes: u64,
    /// Files and directories in the private temporary directory.
    pub tmp_files: u64,
}

impl Default for SandboxLimits {
    fn default() -> Self {
        Self {
            wall_seconds: 6 * 3600,
            cpu_seconds: None,
            memory_bytes: None,
            processes: 4096,
            open_files: 65_536,
            log_bytes: 16 * MIB,
            out_bytes: 4 * GIB,
            out_files: 10_000,
            tmp_bytes: 16 * GIB,
            tmp_files: 200_000,
        }
    }
}

impl SandboxLimits {
    /// The memory bound in bytes.
    pub fn memory(&self) -> u64 {
        self.memory_bytes.unwrap_or_else(|| {
            let host = rustix::system::sysinfo();
            host.totalram.saturating_mul(u64::from(host.mem_unit)) / 10 * 9
        })
    }

    /// Where the kernel refuses a process: with room for the stages, and a little above the bound, so that the
    /// supervisor sees it crossed.
    pub(super) fn processes_kept(&self) -> u64 {
        u64::from(self.processes) + 8
    }

    /// Sets what the kernel keeps for each process, on this one and all that it starts.
    ///
    /// `own_count`: the kernel counts this user's processes in the sandbox apart from the user's others, so that
    /// their number can be bounded as well.
    pub(super) fn apply(&self, own_count: bool) -> rustix::io::Result<()> {
        let set = |resource, wanted: u64| {
            let hard = getrlimit(resource).maximum;
            let value = Some(hard.map_or(wanted, |hard| hard.min(wanted)));
            setrlimit(resource, Rlimit { current: value, maximum: value })
        };
        set(Resource::Core, 0)?;
        // A little more, so that a file cut off there is seen to be over the bound.
        set(Resource::Fsize, self.out_bytes.max(self.tmp_bytes).saturating_add(MIB))?;
        set(Resource::Nofile, self.open_files)?;
        if let Some(seconds) = self.cpu_seconds {
            set(Resource::Cpu, seconds)?;
        }
        if own_count {
            set(Resource::Nproc, self.processes_kept())?;
        }
        Ok(())
    }
}
