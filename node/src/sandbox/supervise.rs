//! Watches a run: takes what it prints, measures what it uses, and ends it at a limit.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::error::SandboxError;
use super::limits::SandboxLimits;
use super::log::Log;
use super::message::Up;
use super::output::{Dirs, measure};
use super::run::{Ended, Limit};
use super::start::{KILL_MAX, Running, next};
use super::tree;

/// Between two looks at processes and memory, and between two at the disk, at least.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A look that takes long is repeated after this many times as long, so that looking never costs more than a part.
const LOOK_SHARE: u32 = 15;
/// And at most this late.
const LOOK_AT_LEAST: Duration = Duration::from_secs(5);
/// The run ends when its file system has less free than this, whoever filled it: deleted files that are still open
/// are in no directory.
const FREE_FLOOR: u64 = 64 << 20;

/// A run and what was seen of it.
pub(super) struct Supervisor<'a> {
    running: Running,
    limits: &'a SandboxLimits,
    dirs: &'a Dirs,
    log: Log,
    begun: Instant,
    /// How the command ended, as far as the inner stage could tell.
    exited: Option<Ended>,
    over: Option<Limit>,
    /// What went wrong in a stage.
    failed: Option<SandboxError>,
    cpu_seconds: f64,
    peak_memory: u64,
}

/// What a supervisor answers.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) ended: Ended,
    pub(super) wall: Duration,
    pub(super) cpu_seconds: f64,
    pub(super) peak_memory: u64,
    pub(super) printed: u64,
    pub(super) left_out: u64,
}

impl<'a> Supervisor<'a> {
    pub(super) fn new(
        running: Running,
        limits: &'a SandboxLimits,
        dirs: &'a Dirs,
        log: Log,
        begun: Instant,
    ) -> Self {
        Self {
            running,
            limits,
            dirs,
            log,
            begun,
            exited: None,
            over: None,
            failed: None,
            cpu_seconds: 0.0,
            peak_memory: 0,
        }
    }

    /// Until everything has ended.
    pub(super) fn run(mut self, live: &mut dyn FnMut(&[u8])) -> Result<Report, SandboxError> {
        let mut next_look = self.begun;
        let mut next_disk = self.begun;
        let mut printing = true;
        loop {
            let now = Instant::now();
            if now >= next_look {
                self.look_at_processes();
                next_look = after(now);
            }
            let now = Instant::now();
            if now >= next_disk {
                self.look_at_disk();
                next_disk = after(now);
            }
            if self.begun.elapsed() >= Duration::from_secs(self.limits.wall_seconds) {
                self.over.get_or_insert(Limit::Time);
            }
            if self.over.is_some() {
                break;
            }
            let wait = next_look.min(next_disk).saturating_duration_since(Instant::now());
            let (printed, spoken) = self.wait(printing, wait)?;
            if printed {
                printing = self.take_printed(live)?;
            }
            if spoken && !self.hear()? {
                break;
            }
        }
        self.finish(live)
    }

    fn finish(mut self, live: &mut dyn FnMut(&[u8])) -> Result<Report, SandboxError> {
        self.running.channel.hang_up();
        let deadline = Instant::now() + KILL_MAX;
        // A pipe that is full of what nobody wants any more must not keep anybody from dying; nothing waits here for
        // it, and all that could write to it is killed.
        while let Some(message) = next(&mut self.running.channel, deadline).unwrap_or(None) {
            self.note(message);
        }
        self.running.end()?;
        if let Some(failed) = self.failed {
            return Err(failed);
        }
        let wall = self.begun.elapsed();
        rustix::io::ioctl_fionbio(&self.running.printed, true).map_err(|e| broken(e.into()))?;
        while self.take_printed(live)? {}
        if self.over.is_none() {
            self.look_at_disk();
        }
        if self.over.is_none() && self.running.group.as_ref().is_some_and(|group| group.out_of_memory()) {
            self.over = Some(Limit::Memory);
        }
        let ended = match (self.over, self.exited) {
            (Some(limit), _) => Ended::Limit(limit),
            (None, Some(Ended::Signal(libc::SIGXFSZ))) => Ended::Limit(Limit::Disk),
            (None, Some(Ended::Signal(libc::SIGXCPU))) => Ended::Limit(Limit::Cpu),
            (None, Some(ended)) => ended,
            (None, None) => Ended::Lost,
        };
        let (printed, left_out) = self.log.finish().map_err(broken)?;
        let (cpu_seconds, peak_memory) = (self.cpu_seconds, self.peak_memory);
        Ok(Report { ended, wall, cpu_seconds, peak_memory, printed, left_out })
    }

    /// Waits until something was printed or said.
    fn wait(&self, printing: bool, longest: Duration) -> Result<(bool, bool), SandboxError> {
        let timeout = Timespec::try_from(longest).map_err(|e| broken(io::Error::other(e)))?;
        let mut fds = vec![PollFd::new(&self.running.channel, PollFlags::IN)];
        if printing {
            fds.push(PollFd::new(&self.running.printed, PollFlags::IN));
        }
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(broken(e.into())),
        }
        let ready = |at: usize| fds.get(at).is_some_and(|fd| !fd.revents().is_empty());
        Ok((ready(1), ready(0)))
    }

    /// Reads once. False when nothing more comes.
    fn take_printed(&mut self, live: &mut dyn FnMut(&[u8])) -> Result<bool, SandboxError> {
        let mut chunk = vec![0; 64 * 1024];
        match self.running.printed.read(&mut chunk) {
            Ok(0) => Ok(false),
            Ok(read) => {
                match self.log.write(&chunk[..read]) {
                    Err(e) if e.kind() == io::ErrorKind::StorageFull => self.over = Some(Limit::Disk),
                    written => written.map_err(broken)?,
                }
                live(&chunk[..read]);
                Ok(true)
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(e) => Err(broken(e)),
        }
    }

    /// Takes what the stages said. False when they are gone.
    fn hear(&mut self) -> Result<bool, SandboxError> {
        let lost = |e| SandboxError::setup("talking to the outer stage", e);
        let open = self.running.channel.fill().map_err(lost)?;
        while let Some(message) = self.running.channel.take().map_err(lost)? {
            self.note(message);
        }
        Ok(open)
    }

    /// Keeps what a stage said.
    pub(super) fn note(&mut self, message: Up) {
        match message {
            Up::Exited { code: Some(code), .. } => self.exited = Some(Ended::Exit(code)),
            Up::Exited { signal: Some(signal), .. } => self.exited = Some(Ended::Signal(signal)),
            Up::Failed { step, error } => self.failed = Some(SandboxError::setup(step, error)),
            Up::Done { cpu_seconds } => self.cpu_seconds = self.cpu_seconds.max(cpu_seconds),
            _ => {}
        }
    }

    fn look_at_processes(&mut self) {
        let (usage, pids) = tree::usage(self.running.child.id());
        self.cpu_seconds = self.cpu_seconds.max(usage.cpu_seconds);
        let mut memory = usage.memory;
        if memory > self.limits.memory() {
            // Shared pages were counted for everybody who has them.
            memory = tree::proportional(&pids).unwrap_or(memory).min(memory);
        }
        self.peak_memory = self.peak_memory.max(memory);
        let group = self.running.group.as_ref();
        if memory > self.limits.memory() || group.is_some_and(|group| group.out_of_memory()) {
            self.over = Some(Limit::Memory);
        } else if usage.threads > u64::from(self.limits.processes)
            || group.is_some_and(|group| group.out_of_processes())
        {
            self.over = Some(Limit::Processes);
        } else if self.limits.cpu_seconds.is_some_and(|most| self.cpu_seconds >= most as f64) {
            self.over = Some(Limit::Cpu);
        }
    }

    fn look_at_disk(&mut self) {
        let limits = self.limits;
        let (out, tmp) =
            (measure(&self.dirs.out, limits.out_files), measure(&self.dirs.tmp, limits.tmp_files));
        let over = out.bytes > limits.out_bytes
            || out.entries > limits.out_files
            || tmp.bytes > limits.tmp_bytes
            || tmp.entries > limits.tmp_files
            || out.evades
            || tmp.evades;
        let free = rustix::fs::statvfs(&self.dirs.work).map_or(u64::MAX, |fs| fs.f_bavail * fs.f_frsize);
        if over || free < FREE_FLOOR {
            self.over.get_or_insert(Limit::Disk);
        }
    }
}

/// When to look again after a look that began then.
fn after(begun: Instant) -> Instant {
    let took = begun.elapsed();
    Instant::now() + (took * LOOK_SHARE).clamp(LOOK_EVERY, LOOK_AT_LEAST)
}

fn broken(e: io::Error) -> SandboxError {
    SandboxError::setup("watching the evaluator", e)
}
