//! Errors as people and scripts see them: one line, a hint, an exit code.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What kind of failure this is; decides the exit code and the `code` of socket errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Something went wrong that no other kind names.
    Internal,
    /// The request itself is wrong: arguments, references, configuration, input files.
    Invalid,
    /// Nothing by that name.
    NotFound,
    /// Understood and refused: immutable tag, not a member, wrong key, still in use.
    Refused,
    /// Cannot be done now: no daemon, no host has it, no space.
    Unavailable,
    /// Bytes failed verification.
    Integrity,
}

impl Kind {
    /// The process exit code. 3 is kept for the gate's "no evidence".
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::Internal => 1,
            Kind::Invalid => 2,
            Kind::NotFound => 4,
            Kind::Refused => 5,
            Kind::Unavailable => 6,
            Kind::Integrity => 7,
        }
    }
}

/// A failure with its kind, one clear line, and what to do next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    /// Decides the exit code.
    #[serde(rename = "code")]
    pub kind: Kind,
    /// What is wrong and where.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
}

/// Shorthand.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error without a hint.
    pub fn new(kind: Kind, message: impl fmt::Display) -> Self {
        // One line, and nothing that a terminal would act on: parts of it may come from files and peers.
        let message: String =
            message.to_string().trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        match message.rsplit_once("; ") {
            // Most errors below say what to do next behind the last semicolon.
            Some((message, hint)) => Self { kind, message: message.to_owned(), hint: Some(hint.to_owned()) },
            None => Self { kind, message, hint: None },
        }
    }

    /// [`Kind::Internal`].
    pub fn internal(message: impl fmt::Display) -> Self {
        Self::new(Kind::Internal, message)
    }

    /// [`Kind::Invalid`].
    pub fn invalid(message: impl fmt::Display) -> Self {
        Self::new(Kind::Invalid, message)
    }

    /// [`Kind::NotFound`].
    pub fn not_found(message: impl fmt::Display) -> Self {
        Self::new(Kind::NotFound, message)
    }

    /// [`Kind::Refused`].
    pub fn refused(message: impl fmt::Display) -> Self {
        Self::new(Kind::Refused, message)
    }

    /// [`Kind::Unavailable`].
    pub fn unavailable(message: impl fmt::Display) -> Self {
        Self::new(Kind::Unavailable, message)
    }

    /// [`Kind::Integrity`].
    pub fn integrity(message: impl fmt::Display) -> Self {
        Self::new(Kind::Integrity, message)
    }

    /// What the system said no to, as `message` names it: of the machine where it is that which is short or shut, else
    /// [`Kind::Internal`].
    pub fn system(message: impl fmt::Display, error: &std::io::Error) -> Self {
        let said = format!("{message}: {error}");
        match of_machine(error.raw_os_error()) {
            Some(hint) => Self::unavailable(said).hint(hint),
            None => Self::internal(said),
        }
    }

    /// Adds what to do next.
    pub fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<weighlock_cache::StoreError> for Error {
    fn from(error: weighlock_cache::StoreError) -> Self {
        use weighlock_cache::StoreError as E;
        if let Some(hint) = of_machine(error.os_error()) {
            return Self::unavailable(&error).hint(hint);
        }
        let kind = match &error {
            E::NoSpace { .. } | E::Quota { .. } | E::Locked { .. } => Kind::Unavailable,
            E::NetworkFs { .. } | E::ChangedWhileRead { .. } => Kind::Invalid,
            E::Newer { .. } | E::TargetExists { .. } => Kind::Refused,
            E::Corrupt { .. } | E::SizeMismatch { .. } | E::Misfit { .. } | E::Manifest(_) => Kind::Integrity,
            E::NotHeld(_) | E::NoManifest(_) => Kind::NotFound,
            _ => Kind::Internal,
        };
        from_line(kind, &error.to_string())
    }
}

impl From<weighlock_cache::inspect::InspectError> for Error {
    fn from(error: weighlock_cache::inspect::InspectError) -> Self {
        let error = from_line(Kind::Invalid, &error.to_string());
        if error.hint.is_some() { error } else { error.hint("repair it, or leave it out with --exclude") }
    }
}

impl From<weighlock_protocol::NameError> for Error {
    fn from(error: weighlock_protocol::NameError) -> Self {
        Self::invalid(error)
    }
}

/// What to do about a machine that is short of something, or shuts something.
fn of_machine(code: Option<i32>) -> Option<&'static str> {
    Some(match code? {
        libc::EMFILE => {
            "the process has as many files open as it may: close loaders, or raise the limit (LimitNOFILE=, ulimit -n) and restart it"
        }
        libc::ENFILE => "the whole machine has as many files open as it may: raise fs.file-max (sysctl)",
        libc::EROFS => {
            "the file system is mounted read-only: see why (dmesg) and mount it writable, or choose another --data-dir"
        }
        libc::EACCES | libc::EPERM => {
            "the user that the daemon runs as must be allowed to: see `ls -ld` there, or choose another --data-dir"
        }
        _ => return None,
    })
}

/// The lower crates put what to do next behind the last semicolon.
fn from_line(kind: Kind, line: &str) -> Error {
    match line.rsplit_once(": ") {
        // The readers of model files put it behind the last colon, as an imperative.
        Some((message, hint))
            if !line.contains("; ") && IMPERATIVES.iter().any(|verb| hint.starts_with(verb)) =>
        {
            Error::new(kind, message).hint(hint)
        }
        _ => Error::new(kind, line),
    }
}

/// How the readers' advice begins.
const IMPERATIVES: &[&str] = &[
    "add ",
    "check ",
    "choose ",
    "convert ",
    "copy ",
    "download ",
    "exclude ",
    "export ",
    "fix ",
    "give ",
    "leave ",
    "move ",
    "name ",
    "remove ",
    "rename ",
    "try ",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_machine_is_short_of_is_no_failure_of_ours() {
        let of = |code| {
            let source = std::io::Error::from_raw_os_error(code);
            Error::from(weighlock_cache::StoreError::Io { path: "/store/x".into(), op: "open", source })
        };
        for (code, words) in [
            (libc::EMFILE, "LimitNOFILE"),
            (libc::ENFILE, "fs.file-max"),
            (libc::EROFS, "read-only"),
            (libc::EACCES, "--data-dir"),
        ] {
            let error = of(code);
            assert_eq!(error.kind, Kind::Unavailable, "{error}");
            assert!(error.message.starts_with("open /store/x: "), "{error}");
            assert!(error.hint.is_some_and(|hint| hint.contains(words)), "{words}");
        }
        assert_eq!(of(libc::EIO).kind, Kind::Internal);
        let key = Error::system("cannot write key k", &std::io::Error::from_raw_os_error(libc::EROFS));
        assert_eq!(key.kind, Kind::Unavailable);
    }
}
