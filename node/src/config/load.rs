//! Reading the configuration: the file, the environment over it, and which of them said what.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Table;

use super::env::{self, Origin, Origins};
use super::{Config, default_config_path};
use crate::error::{Error, Result};

/// A configuration that was read, and where it came from.
#[derive(Debug, Clone, Default)]
pub struct Loaded {
    /// What is in force, flags aside.
    pub config: Config,
    /// The file, if there is one.
    pub path: Option<PathBuf>,
    /// Which of its values are no defaults.
    pub origins: Origins,
}

impl Loaded {
    /// Reads `path`, or the default file if there is one, or nothing, and lets this process's environment replace what it
    /// says.
    ///
    /// # Errors
    /// A named file that is missing; TOML that does not parse; unknown keys or variables; values out of range.
    pub fn new(path: Option<&Path>) -> Result<Self> {
        let (path, text) = match path {
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|e| {
                    Error::invalid(format!("cannot read configuration {}: {e}", path.display()))
                        .hint("check the path given with --config or WEIGHLOCK_CONFIG")
                })?;
                (Some(path.to_owned()), text)
            }
            None => {
                let path = default_config_path();
                match std::fs::read_to_string(&path) {
                    Ok(text) => (Some(path), text),
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => (None, String::new()),
                    Err(e) => {
                        return Err(Error::invalid(format!(
                            "cannot read configuration {}: {e}",
                            path.display()
                        )));
                    }
                }
            }
        };
        let file = path.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        let wrong = |e: &toml::de::Error| {
            Error::invalid(format!("configuration {file}{}: {}", line_of(&text, e.span()), e.message()))
                .hint("`weighlock --config /dev/null config show` prints every key")
        };
        // By itself first, so that an error names the line.
        toml::from_str::<Config>(&text).map_err(|e| wrong(&e))?;
        let table: Table = toml::from_str(&text).map_err(|e| wrong(&e))?;
        let (table, origins) = env::overlay(table, std::env::vars_os())?;
        let config = Config::deserialize(table).map_err(Error::invalid)?;
        config.check().map_err(|e| {
            // What is out of range begins with its key.
            let key = e.split_whitespace().next().unwrap_or_default();
            match env::origin(&origins, key) {
                Some(Origin::Variable(name)) => Error::invalid(format!("environment variable {name}: {e}")),
                _ => Error::invalid(format!("configuration {file}: {e}")),
            }
        })?;
        Ok(Self { config, path, origins })
    }

    /// Where the value of `key` (`section.key`) came from; `default` where nothing says it.
    pub fn origin(&self, key: &str) -> String {
        env::origin(&self.origins, key).map_or_else(|| "default".into(), ToString::to_string)
    }

    /// What it was read from, for people.
    pub fn source(&self) -> String {
        self.path.as_ref().map_or_else(|| "defaults; no file".into(), |path| path.display().to_string())
    }
}

/// Keys, as `section.key`, that two configurations do not have alike.
pub fn differing(one: &Config, other: &Config) -> Vec<String> {
    let flat = |config: &Config| {
        let value = serde_json::to_value(config).unwrap_or_default();
        let mut found = std::collections::BTreeMap::new();
        flatten(String::new(), &value, &mut found);
        found
    };
    let (one, other) = (flat(one), flat(other));
    let keys: std::collections::BTreeSet<&String> = one.keys().chain(other.keys()).collect();
    keys.into_iter().filter(|key| one.get(*key) != other.get(*key)).cloned().collect()
}

fn flatten(
    key: String,
    value: &serde_json::Value,
    found: &mut std::collections::BTreeMap<String, serde_json::Value>,
) {
    match value {
        serde_json::Value::Object(inner) => {
            for (name, value) in inner {
                let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                flatten(key, value, found);
            }
        }
        _ => {
            found.insert(key, value.clone());
        }
    }
}

/// Where a part of a text begins: ` line 3 (the line itself)`.
fn line_of(text: &str, span: Option<std::ops::Range<usize>>) -> String {
    let Some(before) = span.and_then(|span| text.get(..span.start)) else { return String::new() };
    let number = before.matches('\n').count();
    let line: String = text.lines().nth(number).unwrap_or_default().trim().chars().take(80).collect();
    format!(" line {} ({line})", number + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_named_by_its_key() {
        let mut other = Config::default();
        assert!(differing(&Config::default(), &other).is_empty());
        other.limits.uploads_max += 1;
        other.name = Some("x".into());
        other.labels.insert("rack".into(), "r1".into());
        assert_eq!(differing(&Config::default(), &other), ["labels.rack", "limits.uploads_max", "name"]);
    }
}
