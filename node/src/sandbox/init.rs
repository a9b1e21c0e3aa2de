//! The inner stage: first process of the PID namespace, which arranges and restricts everything, itself last, then
//! starts the command and waits for it.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{self, Pid, PidfdFlags, WaitOptions, getpid, pidfd_open, set_child_subreaper};

use super::message::{Channel, Down, Setup, Up};
use super::outer::{Stop, die_with_parent};
use super::spec::Means;
use super::{devices, landlock, mounts, namespaces, privileges, tree};

/// How often orphans that ended are reaped.
const REAP_EVERY: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

pub(super) fn inner(setup: Setup, above: &mut Channel) -> Result<Infallible, Stop> {
    let own_pids = setup.has(Means::PidNamespace);
    if own_pids {
        die_with_parent(setup.parent)?;
    } else {
        set_child_subreaper(Some(getpid()))
            .map_err(|e| Stop::Failed("becoming a reaper".to_owned(), e.into()))?;
    }
    let own_proc = confine(&setup, own_pids)?;
    if own_pids {
        // The change of credentials has undone it.
        die_with_parent(setup.parent)?;
    }
    above.send(&Up::Ready { own_proc }).map_err(|_| Stop::Orphaned)?;
    match above.receive().map_err(Stop::at("hearing of the outer stage"))? {
        Some(Down::Go) => {}
        _ => return Err(Stop::Orphaned),
    }
    let child = match command(&setup).and_then(|mut command| command.spawn()) {
        Ok(child) => child,
        Err(e) => {
            above.send(&Up::NotStarted { error: e.to_string() }).map_err(|_| Stop::Orphaned)?;
            return Err(Stop::Done);
        }
    };
    above.send(&Up::Started).map_err(|_| Stop::Orphaned)?;
    let ended = wait(&child, above);
    if !own_pids {
        tree::sweep();
    }
    let (code, signal) = ended?;
    above.send(&Up::Exited { code, signal }).map_err(|_| Stop::Orphaned)?;
    Err(Stop::Done)
}

/// Does everything that the means ask for, in an order in which each step may still do what it must. True when there
/// is a /proc of the sandbox's own.
fn confine(setup: &Setup, own_pids: bool) -> Result<bool, Stop> {
    // Before the network namespace, whose own list is empty.
    let sockets = setup.has(Means::MountNamespace).then(mounts::sockets).transpose();
    let sockets = sockets.map_err(Stop::without(Means::MountNamespace))?.unwrap_or_default();
    let devices = devices::usable(setup);
    if setup.has(Means::NetNamespace) {
        namespaces::new_net().map_err(Stop::without(Means::NetNamespace))?;
    }
    let mut own_proc = false;
    if setup.has(Means::MountNamespace) {
        let lacks = Stop::without(Means::MountNamespace);
        namespaces::new_mount().map_err(|e| lacks(e.to_string()))?;
        own_proc = mounts::arrange(setup, own_pids, &sockets, &devices)
            .map_err(|(step, e)| lacks(format!("{step}: {e}")))?;
    }
    close_inherited().map_err(Stop::at("closing files"))?;
    let own_count = setup.has(Means::UserNamespace) && !rustix::process::geteuid().is_root();
    setup.limits.apply(own_count).map_err(|e| Stop::Failed("setting limits".to_owned(), e.into()))?;

    privileges::no_new().map_err(Stop::at("giving up new privileges"))?;
    if setup.has(Means::Landlock) {
        landlock::restrict(&setup.out, &setup.tmp, &devices).map_err(Stop::without(Means::Landlock))?;
    }
    privileges::drop_capabilities().map_err(Stop::at("dropping capabilities"))?;
    if setup.has(Means::Seccomp) {
        privileges::filter_calls(setup.has(Means::NetNamespace)).map_err(Stop::without(Means::Seccomp))?;
    }
    privileges::close_to_tracers().map_err(Stop::at("closing itself to tracers"))?;
    Ok(own_proc)
}

/// Closes descriptors that a careless ancestor left open: the command would have them too.
fn close_inherited() -> io::Result<()> {
    let own = fs::read_link("/proc/self/fd/0")?;
    let mut inherited = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        let number = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
        // Our own socket, open once more than as standard input, closes by itself at exec.
        let is_own = fs::read_link(entry.path()).is_ok_and(|target| target == own);
        inherited.extend(number.filter(|fd| *fd > 2 && !is_own));
    }
    for fd in inherited {
        match nix::unistd::close(fd) {
            // That was the listing itself.
            Ok(()) | Err(nix::errno::Errno::EBADF) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

fn command(setup: &Setup) -> io::Result<Command> {
    let [program, args @ ..] = setup.command.as_slice() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the command is empty"));
    };
    // Both streams in one pipe, so that the log has them in their order.
    let printed = io::stderr().as_fd().try_clone_to_owned()?;
    let mut command = Command::new(program);
    command
        .args(args)
        .env_clear()
        .envs(setup.env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(printed.try_clone()?)
        .stderr(printed);
    // A current directory that is hidden inside is none.
    let cwd = if fs::metadata(setup.cwd.join(".")).is_ok() { &setup.cwd } else { &setup.tmp };
    command.current_dir(cwd);
    Ok(command)
}

/// Waits for the command, reaping what it orphaned, unless the stage above goes first. Exit code or signal.
fn wait(child: &Child, above: &Channel) -> Result<(Option<i32>, Option<i32>), Stop> {
    let failed = |e: io::Error| Stop::Failed("waiting for the command".to_owned(), e);
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| failed(io::Error::other("it has no number")))?;
    let ended = pidfd_open(pid, PidfdFlags::empty()).map_err(|e| failed(e.into()))?;
    loop {
        let mut fds = [PollFd::new(&ended, PollFlags::IN), PollFd::new(above, PollFlags::IN)];
        match poll(&mut fds, Some(&REAP_EVERY)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(failed(e.into())),
        }
        if !fds[1].revents().is_empty() {
            // Nothing is said to a running command: it is the end.
            return Err(Stop::Orphaned);
        }
        while let Ok(Some((which, status))) = process::wait(WaitOptions::NOHANG) {
            if which == pid {
                return Ok((status.exit_status(), status.terminating_signal()));
            }
        }
    }
}
