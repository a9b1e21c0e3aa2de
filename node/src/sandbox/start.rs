//! Gets from a [`Spec`] to a command that is about to run, with as many means as this host offers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, PipeReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::cgroup::Group;
use super::command::fill;
use super::error::SandboxError;
use super::message::{Channel, Down, Setup, Up};
use super::namespaces;
use super::output::Dirs;
use super::record::{Held, Record};
use super::spec::{Means, Require, Spec};

/// How long the stages may take to arrange everything.
const SETUP_MAX: Duration = Duration::from_secs(60);
/// How long dead processes may take to go away.
pub(super) const KILL_MAX: Duration = Duration::from_secs(20);

/// The caller's variables that every evaluator gets: where programs and libraries lie, language, which GPUs.
const ENV_KEPT: &[&str] = &[
    "PATH",
    "LANG",
    "LANGUAGE",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "USER",
    "LOGNAME",
    "LD_LIBRARY_PATH",
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
    "PYENV_ROOT",
    "PYENV_VERSION",
    "PYTHONPATH",
    "PYTHONHOME",
    "PYTHONHASHSEED",
    "CUDA_HOME",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "NVIDIA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "ONEAPI_DEVICE_SELECTOR",
    "OMP_NUM_THREADS",
];

/// A run that has been started; dropping it kills everything in it.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) child: Child,
    pub(super) channel: Channel,
    pub(super) printed: PipeReader,
    pub(super) group: Option<Group>,
}

impl Running {
    /// Ends everything and waits until it is gone.
    pub(super) fn end(&mut self) -> Result<(), SandboxError> {
        self.channel.hang_up();
        let begun = Instant::now();
        let mut killed = false;
        loop {
            if self.child.try_wait().map_err(|e| SandboxError::setup("waiting", e))?.is_some() {
                return Ok(());
            }
            if begun.elapsed() > KILL_MAX {
                let seconds = KILL_MAX.as_secs();
                return Err(SandboxError::Stuck { pid: self.child.id(), seconds });
            }
            if begun.elapsed() > KILL_MAX / 2 && !killed {
                killed = true;
                let _ = self.child.kill();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already, or there is nobody to tell.
        let _ = self.end();
    }
}

/// Starts the stages, again and again with fewer means, until they are ready.
pub(super) fn start(spec: &Spec, dirs: &Dirs) -> Result<(Running, Record), SandboxError> {
    let mut setup = setup(spec, dirs)?;
    let mut failed: BTreeMap<Means, String> =
        spec.without.iter().map(|means| (*means, "not wanted".to_owned())).collect();
    loop {
        match attempt(spec, &setup)? {
            Attempt::Ready { running, own_proc } => {
                let record = record(&running, &setup, &failed, own_proc);
                if spec.require == Require::Full && !record.missing.is_empty() {
                    return Err(SandboxError::Weak { missing: record.missing });
                }
                return Ok((running, record));
            }
            Attempt::Without(means, why) => {
                if !setup.means.remove(&means) {
                    return Err(SandboxError::setup(means.name(), why));
                }
                failed.insert(means, why);
            }
        }
    }
}

fn record(running: &Running, setup: &Setup, failed: &BTreeMap<Means, String>, own_proc: bool) -> Record {
    let group = running.group.as_ref();
    let own_count = setup.has(Means::UserNamespace) && !rustix::process::geteuid().is_root();
    let memory = if group.is_some_and(Group::holds_memory) { Held::Cgroup } else { Held::Polled };
    let processes = match (group.is_some_and(Group::holds_processes), own_count) {
        (true, _) => Held::Cgroup,
        (false, true) => Held::Rlimit,
        (false, false) => Held::Polled,
    };
    Record::new(&setup.means, failed, own_proc, (memory, processes), setup.limits.clone())
}

enum Attempt {
    Ready { running: Running, own_proc: bool },
    Without(Means, String),
}

fn attempt(spec: &Spec, setup: &Setup) -> Result<Attempt, SandboxError> {
    let group = if setup.has(Means::Cgroup) {
        match Group::make(&setup.limits) {
            Ok(group) => Some(group),
            Err(why) => return Ok(Attempt::Without(Means::Cgroup, why)),
        }
    } else {
        None
    };
    let mut running = spawn(spec, group).map_err(|e| SandboxError::setup("starting itself again", e))?;
    if let Some(Err(e)) = running.group.as_ref().map(|group| group.attach(running.child.id())) {
        return Ok(Attempt::Without(Means::Cgroup, e.to_string()));
    }
    let lost = |e: io::Error| SandboxError::setup("talking to the outer stage", e);
    running.channel.send(&Down::Outer(Box::new(setup.clone()))).map_err(lost)?;
    let deadline = Instant::now() + SETUP_MAX;
    loop {
        let message = next(&mut running.channel, deadline).map_err(lost)?;
        match message {
            Some(Up::Unmapped) => {
                let root = rustix::process::geteuid().is_root();
                let mapped = root && namespaces::map_all(running.child.id()).is_ok();
                let answer = if mapped { Down::Mapped } else { Down::MapYourself };
                running.channel.send(&answer).map_err(lost)?;
            }
            Some(Up::Ready { own_proc }) => return Ok(Attempt::Ready { running, own_proc }),
            Some(Up::Without { means, why }) => return Ok(Attempt::Without(means, why)),
            Some(Up::Failed { step, error }) => return Err(SandboxError::setup(step, error)),
            Some(other) => return Err(SandboxError::setup("starting", format!("unexpected {other:?}"))),
            None => {
                running.end()?;
                let mut said = Vec::new();
                let _ = (&mut running.printed).take(1000).read_to_end(&mut said);
                let said = String::from_utf8_lossy(&said);
                let line = said.lines().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
                return Err(SandboxError::setup("starting itself again", line));
            }
        }
    }
}

/// Waits for a message until the deadline; none when the other side is gone.
pub(super) fn next(channel: &mut Channel, deadline: Instant) -> io::Result<Option<Up>> {
    loop {
        if let Some(message) = channel.take()? {
            return Ok(Some(message));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time"));
        }
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        let ready = match poll(&mut [PollFd::new(channel, PollFlags::IN)], Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => 0,
            ready => ready?,
        };
        if ready > 0 && !channel.fill()? {
            return Ok(None);
        }
    }
}

fn spawn(spec: &Spec, group: Option<Group>) -> io::Result<Running> {
    let (channel, theirs) = Channel::pair()?;
    let (printed, printer) = io::pipe()?;
    let mut command = Command::new(&spec.reenter.program);
    command
        .args(&spec.reenter.args)
        .env_clear()
        .envs(
            ["LD_LIBRARY_PATH", "RUST_BACKTRACE"].into_iter().filter_map(|n| Some((n, std::env::var_os(n)?))),
        )
        .current_dir("/")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        // What the evaluator prints goes through standard error.
        .stdout(Stdio::null())
        .stderr(printer);
    let child = command.spawn()?;
    Ok(Running { child, channel, printed, group })
}

fn setup(spec: &Spec, dirs: &Dirs) -> Result<Setup, SandboxError> {
    let invalid = SandboxError::Invalid;
    let model = fs::canonicalize(&spec.model).map_err(|e| SandboxError::at(&spec.model, "read", &e))?;
    if model.starts_with(&dirs.work) || dirs.work.starts_with(&model) {
        let (model, work) = (model.display(), dirs.work.display());
        return Err(invalid(format!(
            "the model {model} and the work directory {work} lie in each other; choose another"
        )));
    }
    for path in [&model, &dirs.work, &spec.cwd].into_iter().chain(&spec.hidden).chain(&spec.devices) {
        if path.to_str().is_none() {
            return Err(invalid(format!("the path {path:?} is not UTF-8; rename it")));
        }
        if !path.is_absolute() {
            return Err(invalid(format!("the path {} is not absolute; give a whole path", path.display())));
        }
    }
    for device in &spec.devices {
        let is_device = fs::metadata(device).is_ok_and(|meta| meta.file_type().is_char_device());
        if !is_device || !device.starts_with("/dev") {
            let device = device.display();
            return Err(invalid(format!(
                "{device} is not a character device below /dev; name one, or leave it out"
            )));
        }
    }
    let limits = &spec.limits;
    if limits.wall_seconds == 0
        || limits.processes == 0
        || limits.cpu_seconds == Some(0)
        || limits.memory() == 0
    {
        return Err(invalid("a limit is zero; leave it out or raise it".to_owned()));
    }
    let args = spec.reenter.args.iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
    Ok(Setup {
        parent: std::process::id(),
        means: Means::ALL.into_iter().filter(|means| !spec.without.contains(means)).collect::<BTreeSet<_>>(),
        command: fill(&spec.command, &model, &dirs.out),
        env: environment(spec, &model, dirs)?,
        model,
        out: dirs.out.clone(),
        tmp: dirs.tmp.clone(),
        cwd: spec.cwd.clone(),
        hidden: spec.hidden.clone(),
        devices: spec.devices.clone(),
        limits: spec.limits.clone(),
        reenter: (spec.reenter.program.clone(), args),
    })
}

fn environment(spec: &Spec, model: &Path, dirs: &Dirs) -> Result<Vec<(String, String)>, SandboxError> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let mut env: BTreeMap<String, String> =
        ENV_KEPT.iter().filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?))).collect();
    for name in ["HOME", "TMPDIR", "TMP", "TEMP", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"] {
        env.insert(name.to_owned(), text(&dirs.tmp));
    }
    env.insert("WEIGHLOCK_PATH".to_owned(), text(model));
    env.insert("WEIGHLOCK_OUT".to_owned(), text(&dirs.out));
    // There is no network: tools of the Hub then say so at once instead of trying for minutes.
    env.insert("HF_HUB_OFFLINE".to_owned(), "1".to_owned());
    env.insert("PYTHONDONTWRITEBYTECODE".to_owned(), "1".to_owned());
    for wanted in &spec.env {
        let (name, value) = match wanted.split_once('=') {
            Some((name, value)) => (name, Ok(value.to_owned())),
            None => (wanted.as_str(), std::env::var(wanted)),
        };
        if name.is_empty() || wanted.contains('\0') {
            let why = format!("{wanted:?} names no variable; write NAME or NAME=VALUE");
            return Err(SandboxError::Invalid(why));
        }
        let value = value.map_err(|_| {
            let why = format!("the variable {name} is not set here, or not UTF-8; write {name}=VALUE");
            SandboxError::Invalid(why)
        })?;
        env.insert(name.to_owned(), value);
    }
    Ok(env.into_iter().collect())
}
