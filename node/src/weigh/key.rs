//! The evaluator's key: from a file, from the environment as a CI secret, or the cluster's admin key.

use std::path::{Path, PathBuf};

use weighlock_protocol::ClusterId;
use weighlock_protocol::statement::Keypair;

use crate::config::Dirs;
use crate::error::{Error, Kind, Result};
use crate::keys;

/// Holds a key file's path, or its text.
pub(crate) const KEY_ENV: &str = "WEIGHLOCK_SIGNING_KEY";

/// The key that signs evaluations and verdicts: the file that is named, else what [`KEY_ENV`] holds, else the admin key
/// of the cluster, which holds the role of evaluator until a root gives it to others.
///
/// # Errors
/// None of them is there, or it cannot be read.
pub(crate) fn evaluators(
    named: &[PathBuf],
    dirs: &Dirs,
    cluster: Option<&ClusterId>,
) -> Result<Vec<Keypair>> {
    if named.is_empty() {
        return Ok(vec![evaluator(None, dirs, cluster)?]);
    }
    named.iter().map(|path| keys::load(path)).collect()
}

/// As [`evaluators`], of one.
pub(crate) fn evaluator(named: Option<&Path>, dirs: &Dirs, cluster: Option<&ClusterId>) -> Result<Keypair> {
    if let Some(path) = named {
        return keys::load(path);
    }
    if let Some(key) = from_env()? {
        return Ok(key);
    }
    let none = || {
        Error::refused("there is no key to sign with")
            .hint(format!("name one with --key, or put it into {KEY_ENV}"))
    };
    let path = keys::admin_key_path(&dirs.keys, cluster.ok_or_else(none)?);
    keys::load(&path).map_err(|error| match error.kind {
        Kind::NotFound => Error::refused(format!("{}; {}", error.message, "this takes an evaluator's key"))
            .hint(format!("name one with --key or {KEY_ENV}, or run it where the cluster was made")),
        _ => error,
    })
}

/// The key file that the environment names, if it names one.
pub(crate) fn env_path() -> Option<PathBuf> {
    let path = PathBuf::from(std::env::var(KEY_ENV).ok()?.trim());
    path.is_file().then_some(path)
}

/// The key that the environment holds, if it does.
///
/// # Errors
/// It holds something else.
pub(crate) fn from_env() -> Result<Option<Keypair>> {
    match std::env::var(KEY_ENV) {
        Err(std::env::VarError::NotPresent) => Ok(None),
        Ok(text) if text.trim().is_empty() => Ok(None),
        Ok(text) if Path::new(text.trim()).exists() => keys::load(Path::new(text.trim())).map(Some),
        // Never shown: it may be a key with a typing error.
        Ok(text) => match keys::parse(&text) {
            Some(key) => Ok(Some(key)),
            None => Err(Error::invalid(format!("{KEY_ENV} is neither a key nor the path of a key file"))
                .hint("it should hold the text of a key file, `weighlock-ed25519-v1 ...`, or its path")),
        },
        Err(_) => Err(Error::invalid(format!("{KEY_ENV} is not UTF-8"))),
    }
}
