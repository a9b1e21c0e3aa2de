//! A model registry that speaks MLflow's REST API: where a model came from, and what becomes of it here.
//!
//! `client` asks, `origin` reads a model version and its run, `artifacts` downloads its files, `push` writes verdicts and
//! stages back. All of it runs in the command line: the daemon speaks to nobody outside its cluster.

mod artifacts;
mod client;
mod origin;
mod push;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

pub(crate) use artifacts::download;
pub(crate) use client::{Client, Server, URI_ENV};
pub(crate) use origin::{Found, find};
pub(crate) use push::{Change, StageHeld, Wanted, apply, changes};

/// A version of a registered model, as MLflow's URIs name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ModelUri {
    pub(crate) name: String,
    pub(crate) pick: Pick,
}

/// Which version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Pick {
    /// By number.
    Version(u64),
    /// The one that an alias names now.
    Alias(String),
}

impl FromStr for ModelUri {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let no = || format!("{text:?} is not models:/NAME/VERSION or models:/NAME@ALIAS");
        let rest = text.strip_prefix("models:/").ok_or_else(no)?;
        let (name, pick) = match (rest.rsplit_once('@'), rest.rsplit_once('/')) {
            (Some((name, alias)), _) if !alias.is_empty() && !alias.contains('/') => {
                (name, Pick::Alias(alias.to_owned()))
            }
            (_, Some((name, version))) => (name, Pick::Version(version.parse().map_err(|_| no())?)),
            _ => return Err(no()),
        };
        // MLflow itself takes no `/` and `:` in names.
        if name.is_empty() || name.contains(['/', ':']) || text.chars().any(char::is_control) {
            return Err(no());
        }
        Ok(Self { name: name.to_owned(), pick })
    }
}

impl fmt::Display for ModelUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.pick {
            Pick::Version(version) => write!(f, "models:/{}/{version}", self.name),
            Pick::Alias(alias) => write!(f, "models:/{}@{alias}", self.name),
        }
    }
}
