//! The outer stage: makes the user and PID namespaces, starts the inner stage, and outlives everything inside.

use std::convert::Infallible;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitCode, Stdio};

use nix::sys::resource::{UsageWho, getrusage};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{
    Pid, Signal, getpid, getppid, set_child_subreaper, set_parent_process_death_signal, setsid,
};

use super::message::{Channel, Down, Setup, Up};
use super::spec::Means;
use super::{init, namespaces, tree};

/// Where the hidden command begins: plays the stage that the first message on standard input names. The process must
/// still have one thread.
///
/// # Errors
/// None: what goes wrong is told to the process above; the exit code says only whether anything did.
pub fn enter() -> ExitCode {
    let first = io::stdin().as_fd().try_clone_to_owned().and_then(|fd| {
        let mut channel = Channel::new(UnixStream::from(fd));
        Ok((channel.receive::<Down>()?, channel))
    });
    let (setup, mut above, stage): (_, _, Stage) = match first {
        Ok((Some(Down::Outer(setup)), channel)) => (setup, channel, outer),
        Ok((Some(Down::Inner(setup)), channel)) => (setup, channel, init::inner),
        _ => {
            eprintln!("error: this command is for `weighlock eval` alone");
            return ExitCode::from(2);
        }
    };
    // Namespaces and Landlock are a thread's own: with others beside it nothing would be what it seems.
    let threads = std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
    let alone = match threads {
        1 => Ok(()),
        _ => Err(Stop::Failed("starting again".to_owned(), io::Error::other("it has more than one thread"))),
    };
    let Err(stop) = alone.and_then(|()| stage(*setup, &mut above));
    let sent = match stop {
        Stop::Done => return ExitCode::SUCCESS,
        Stop::Orphaned => return ExitCode::FAILURE,
        Stop::Without(means, why) => above.send(&Up::Without { means, why }),
        Stop::Failed(step, e) => above.send(&Up::Failed { step, error: e.to_string() }),
    };
    // Nobody is left to hear it.
    let _ = sent;
    ExitCode::FAILURE
}

type Stage = fn(Setup, &mut Channel) -> Result<Infallible, Stop>;

/// Why a stage ends.
#[derive(Debug)]
pub(super) enum Stop {
    /// It is over.
    Done,
    /// The process above is gone.
    Orphaned,
    /// One of the means cannot be had.
    Without(Means, String),
    /// Something else failed at this step.
    Failed(String, io::Error),
}

impl Stop {
    pub(super) fn at(step: &'static str) -> impl Fn(io::Error) -> Stop {
        move |e| Stop::Failed(step.to_owned(), e)
    }

    pub(super) fn without<E: ToString>(means: Means) -> impl Fn(E) -> Stop {
        move |e| Stop::Without(means, e.to_string())
    }
}

fn outer(setup: Setup, above: &mut Channel) -> Result<Infallible, Stop> {
    // A session of its own: signals from the terminal are the supervisor's.
    setsid().map_err(|e| Stop::Failed("leaving the session".to_owned(), e.into()))?;
    if setup.has(Means::UserNamespace) {
        user_namespace(above)?;
        namespaces::keep_capabilities().map_err(Stop::without(Means::UserNamespace))?;
    }
    let own_pids = setup.has(Means::PidNamespace);
    if own_pids {
        namespaces::new_pid().map_err(Stop::without(Means::PidNamespace))?;
        die_with_parent(setup.parent)?;
    } else {
        set_child_subreaper(Some(getpid()))
            .map_err(|e| Stop::Failed("becoming a reaper".to_owned(), e.into()))?;
    }
    let (mut below, mut child) = start_inner(&setup).map_err(Stop::at("starting the inner stage"))?;
    let relayed = relay(above, &mut below);
    // Kills what is in its PID namespace with it.
    let _ = child.kill();
    let _ = child.wait();
    let clean = own_pids || tree::sweep();
    relayed?;
    if !clean {
        return Err(Stop::Failed("killing the evaluator".to_owned(), io::Error::other("processes are left")));
    }
    let used =
        getrusage(UsageWho::RUSAGE_CHILDREN).map_err(|e| Stop::Failed("counting".to_owned(), e.into()))?;
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    let done = Up::Done { cpu_seconds: seconds(used.user_time()) + seconds(used.system_time()) };
    above.send(&done).map_err(|_| Stop::Orphaned)?;
    Err(Stop::Done)
}

/// Enters a user namespace. The supervisor writes its maps if it may, else this process maps its own ids.
fn user_namespace(above: &mut Channel) -> Result<(), Stop> {
    let ids = namespaces::own_ids();
    namespaces::new_user().map_err(Stop::without(Means::UserNamespace))?;
    above.send(&Up::Unmapped).map_err(|_| Stop::Orphaned)?;
    match above.receive::<Down>().map_err(Stop::at("hearing of the maps"))? {
        Some(Down::Mapped) => Ok(()),
        Some(Down::MapYourself) => namespaces::map_self(ids).map_err(Stop::without(Means::UserNamespace)),
        _ => Err(Stop::Orphaned),
    }
}

/// Has the kernel kill this process when the one above dies. To be asked again after every change of credentials.
pub(super) fn die_with_parent(parent: u32) -> Result<(), Stop> {
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|e| Stop::Failed("tying itself to its parent".to_owned(), e.into()))?;
    // Parents in another PID namespace have no number here.
    let now = Pid::as_raw(getppid());
    if now != 0 && u32::try_from(now) != Ok(parent) { Err(Stop::Orphaned) } else { Ok(()) }
}

fn start_inner(setup: &Setup) -> io::Result<(Channel, Child)> {
    let (mut channel, theirs) = Channel::pair()?;
    let (program, args) = &setup.reenter;
    let child =
        Command::new(program).args(args).stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs))).spawn()?;
    let setup = Setup { parent: std::process::id(), ..setup.clone() };
    channel.send(&Down::Inner(Box::new(setup)))?;
    Ok((channel, child))
}

/// Hands messages on in both directions until one side is gone.
fn relay(above: &mut Channel, below: &mut Channel) -> Result<(), Stop> {
    loop {
        let (from_above, from_below) = {
            let mut fds = [PollFd::new(above, PollFlags::IN), PollFd::new(below, PollFlags::IN)];
            poll(&mut fds, None).map_err(|e| Stop::Failed("waiting".to_owned(), e.into()))?;
            (!fds[0].revents().is_empty(), !fds[1].revents().is_empty())
        };
        if from_below {
            let open = below.fill().map_err(Stop::at("hearing of the inner stage"))?;
            while let Some(message) = below.take::<Up>().map_err(Stop::at("hearing of the inner stage"))? {
                above.send(&message).map_err(|_| Stop::Orphaned)?;
            }
            if !open {
                return Ok(());
            }
        }
        if from_above {
            let open = above.fill().map_err(Stop::at("hearing of the supervisor"))?;
            while let Some(message) = above.take::<Down>().map_err(Stop::at("hearing of the supervisor"))? {
                // It may have ended in this moment, which is heard next.
                let _ = below.send(&message);
            }
            if !open {
                // The supervisor wants an end, or is dead.
                return Ok(());
            }
        }
    }
}
