//! Why an evaluator could not be run at all; what it did once it ran is an [`Outcome`](super::Outcome).

use std::io;
use std::path::Path;

/// One line: what is wrong, where, and behind the last semicolon what to do next.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The command cannot be split into words, or is empty.
    #[error(
        "cannot run {command:?}: {why}; write it as `PROGRAM ARGUMENTS {{path}} {{out}}`, quoted as for a shell"
    )]
    Command {
        /// As the user wrote it.
        command: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A directory, limit or variable that cannot be used.
    #[error("{0}")]
    Invalid(String),
    /// The program does not exist or may not be run.
    #[error("cannot run {program:?}: {error}; give its full path, or a name that is found on PATH")]
    NotStarted {
        /// The first word of the command.
        program: String,
        /// What the system said.
        error: String,
    },
    /// The caller wants a full sandbox and this host does not offer one.
    #[error("this host offers no full sandbox: {}; allow a weaker one, which is then recorded in the evidence", missing.join(", "))]
    Weak {
        /// What could not be had.
        missing: Vec<String>,
    },
    /// The sandbox itself failed.
    #[error("the sandbox failed at {step}: {error}; see the log of the run")]
    Setup {
        /// What it was doing.
        step: String,
        /// What the system said.
        error: String,
    },
    /// Processes that do not die, most often in uninterruptible input or output.
    #[error(
        "the evaluator cannot be killed: process {pid} is still there after {seconds} s; is a disk or device stuck?"
    )]
    Stuck {
        /// The outer stage, whose descendants they are.
        pid: u32,
        /// How long it was waited for.
        seconds: u64,
    },
}

impl SandboxError {
    pub(super) fn setup(step: impl Into<String>, error: impl ToString) -> Self {
        Self::Setup { step: step.into(), error: error.to_string() }
    }

    pub(super) fn at(path: &Path, what: &str, error: &io::Error) -> Self {
        Self::Invalid(format!("cannot {what} {}: {error}; choose another directory", path.display()))
    }
}
