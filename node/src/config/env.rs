//! Configuration by environment: every key of the file by a variable of its own, and where each value came from.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;

use serde::{Deserialize, Serialize, Serializer};
use toml::{Table, Value};

use super::Config;
use crate::error::{Error, Result};

/// What such variables begin with.
const PREFIX: &str = "WEIGHLOCK_";
/// What stands between a section and its key, since keys have single underscores of their own.
const LEVEL: &str = "__";

/// Where a value came from. A value that no origin is known of is a default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The configuration file.
    File,
    /// An environment variable, by its name.
    Variable(String),
}

/// Keys, as `section.key`, with the place that their values came from. A section that was given as a whole stands for
/// all that is in it.
pub type Origins = BTreeMap<String, Origin>;

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File => f.write_str("file"),
            Self::Variable(name) => f.write_str(name),
        }
    }
}

impl Serialize for Origin {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Lets environment variables replace what `file` says: `WEIGHLOCK_LIMITS__UPLOADS_MAX=8` is `limits.uploads_max`,
/// `WEIGHLOCK_LABELS__RACK=r7` is `labels.rack`. Values are TOML or, where they are none that fits, text. Empty ones are
/// as if they were not set. Names without `__` that are no key at the top belong to others: flags, credentials, or
/// what a container's platform sets.
///
/// # Errors
/// A variable with `__` that is no key, or a value of the wrong type; the variable is named.
pub(super) fn overlay(
    mut file: Table,
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> Result<(Table, Origins)> {
    let mut origins = Origins::new();
    for path in leaves(&file) {
        origins.insert(path, Origin::File);
    }
    let known = serde_json::to_value(Config::default()).map_err(Error::internal)?;
    let at_top = |key: &str| match &known[key] {
        // A section; a map such as the labels is empty by default.
        serde_json::Value::Object(section) => section.is_empty(),
        _ => known.get(key).is_some(),
    };
    let mut ours: Vec<(Vec<String>, String, OsString)> = variables
        .filter(|(_, value)| !value.is_empty())
        .filter_map(|(name, value)| {
            let name = name.into_string().ok()?;
            let path: Vec<String> =
                name.strip_prefix(PREFIX)?.split(LEVEL).map(str::to_ascii_lowercase).collect();
            (path.len() > 1 || at_top(&path[0])).then_some((path, name, value))
        })
        .collect();
    // Wholes before their parts, whatever order the system has them in.
    ours.sort_by(|a, b| (a.0.len(), &a.1).cmp(&(b.0.len(), &b.1)));
    for (path, name, value) in ours {
        let value = value.into_string().map_err(|_| {
            Error::invalid(format!("environment variable {name} is not UTF-8"))
                .hint("set it anew, or unset it")
        })?;
        let value = read(&path, &value).map_err(|e| {
            Error::invalid(format!("environment variable {name}: {e}")).hint(
                "without it, `weighlock config show` prints every key; section and key are separated by two underscores",
            )
        })?;
        put(&mut file, &path, value);
        let key = path.join(".");
        origins.retain(|known, _| !within(known, &key));
        origins.insert(key, Origin::Variable(name));
    }
    Ok((file, origins))
}

/// Where the value of `key` came from.
pub(crate) fn origin<'a>(origins: &'a Origins, key: &str) -> Option<&'a Origin> {
    origins
        .iter()
        .filter(|(known, _)| within(key, known))
        .max_by_key(|(known, _)| known.len())
        .map(|(_, o)| o)
}

/// All keys of a table that hold something other than tables, as `section.key`.
pub(crate) fn leaves(table: &Table) -> Vec<String> {
    let mut found = Vec::new();
    for (key, value) in table {
        match value {
            Value::Table(inner) => {
                found.extend(leaves(inner).into_iter().map(|rest| format!("{key}.{rest}")))
            }
            _ => found.push(key.clone()),
        }
    }
    found
}

/// Whether `key` is `whole` or a part of it.
fn within(key: &str, whole: &str) -> bool {
    key.strip_prefix(whole).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// What `text` means at `path`: a TOML value if it is one and fits there, else a text.
fn read(path: &[String], text: &str) -> std::result::Result<Value, String> {
    let fits = |value: Value| {
        let mut alone = Table::new();
        put(&mut alone, path, value.clone());
        Config::deserialize(alone).map(|_| value).map_err(|e| e.message().to_owned())
    };
    let as_toml = text.parse::<Value>().ok().map(fits);
    if let Some(Ok(value)) = as_toml {
        return Ok(value);
    }
    // Of two errors the one about what was meant: who writes a number where a table is due reads of a number.
    fits(Value::String(text.to_owned()))
        .map_err(|as_text| as_toml.and_then(std::result::Result::err).unwrap_or(as_text))
}

fn put(table: &mut Table, path: &[String], value: Value) {
    let Some((key, rest)) = path.split_first() else { return };
    if rest.is_empty() {
        table.insert(key.clone(), value);
        return;
    }
    let inner = table.entry(key.clone()).or_insert_with(|| Value::Table(Table::new()));
    if !inner.is_table() {
        *inner = Value::Table(Table::new());
    }
    if let Value::Table(inner) = inner {
        put(inner, rest, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(file: &str, variables: &[(&str, &str)]) -> Result<(Config, Origins)> {
        let variables = variables.iter().map(|(name, value)| (name.into(), value.into()));
        let (table, origins) = overlay(file.parse().expect("TOML"), variables)?;
        Ok((Config::deserialize(table).expect("each part fits"), origins))
    }

    #[test]
    fn variables_beat_the_file_and_are_named_as_origins() {
        let file = "name = \"a\"\n[limits]\nuploads_max = 3\nconnections_max = 9\n[labels]\nrack = \"r1\"\n";
        let (config, origins) = with(
            file,
            &[
                ("WEIGHLOCK_LIMITS__UPLOADS_MAX", "8"),
                ("WEIGHLOCK_LISTEN__HTTP", "127.0.0.1:0"),
                ("WEIGHLOCK_LISTEN__ADVERTISE_DATA", "[\"192.0.2.1:7401\"]"),
                ("WEIGHLOCK_DISCOVERY__MDNS", "false"),
                ("WEIGHLOCK_LABELS", "{ zone = \"z1\", row = \"4\" }"),
                ("WEIGHLOCK_LABELS__ROW", "5"),
                ("WEIGHLOCK_NAME", "7"),
                ("WEIGHLOCK_LOG__LEVEL", "info,weighlock=debug"),
                ("WEIGHLOCK_SOCKETS__LOADER_GROUP", ""),
            ],
        )
        .expect("all of them fit");
        assert_eq!((config.limits.uploads_max, config.limits.connections_max), (8, 9));
        assert_eq!(config.listen.http.to_string(), "127.0.0.1:0");
        assert_eq!(config.listen.advertise_data.len(), 1);
        assert!(!config.discovery.mdns);
        let labels: Vec<_> = config.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(labels, ["row=5", "zone=z1"], "the whole first, then its part; the file's are replaced");
        assert_eq!(config.name.as_deref(), Some("7"), "a name may look like a number");
        assert_eq!(config.log.level, "info,weighlock=debug");
        assert_eq!(config.sockets.loader_group, None, "an empty one is as if it were not set");
        let from = |key| origin(&origins, key).map(ToString::to_string);
        assert_eq!(from("limits.uploads_max").as_deref(), Some("WEIGHLOCK_LIMITS__UPLOADS_MAX"));
        assert_eq!(from("limits.connections_max").as_deref(), Some("file"));
        assert_eq!(from("labels.zone").as_deref(), Some("WEIGHLOCK_LABELS"));
        assert_eq!(from("labels.row").as_deref(), Some("WEIGHLOCK_LABELS__ROW"));
        assert_eq!(from("audit.days_max"), None);
    }

    #[test]
    fn wrong_variables_are_named() {
        for (name, value, word) in [
            ("WEIGHLOCK_LIMITS__UPLODS_MAX", "8", "uplods_max"),
            ("WEIGHLOCK_LIMTS__UPLOADS_MAX", "8", "limts"),
            ("WEIGHLOCK_LIMITS__UPLOADS_MAX", "many", "many"),
            ("WEIGHLOCK_LIMITS__UPLOADS_MAX", "-1", "-1"),
            ("WEIGHLOCK_LISTEN__DATA", "nowhere", "address"),
            ("WEIGHLOCK_LABELS", "r7", "r7"),
        ] {
            let error = with("", &[(name, value)]).expect_err(name);
            assert!(error.message.contains(name) && error.message.contains(word), "{error}");
        }
    }

    #[test]
    fn what_belongs_to_others_is_left_alone() {
        // Flags, secrets, and what Kubernetes sets for a service of that name.
        let others = [
            ("WEIGHLOCK_LOG", "debug"),
            ("WEIGHLOCK_TICKET", "secret"),
            ("WEIGHLOCK_PORT_7402_TCP", "tcp://10.0.0.1:7402"),
            ("WEIGHLOCK_SERVICE_HOST", "10.0.0.1"),
            ("LIMITS__UPLOADS_MAX", "8"),
        ];
        let (config, origins) = with("", &others).expect("none of ours");
        assert_eq!((config, origins), (Config::default(), Origins::new()));
    }

    #[test]
    fn every_key_can_be_set() {
        // The defaults of all sections, each through the environment: no key is out of its reach.
        let table = Table::try_from(Config::default()).expect("a table");
        for key in leaves(&table) {
            let value = key.split('.').fold(&Value::Table(table.clone()), |at, part| &at[part]).to_string();
            let name = format!("{PREFIX}{}", key.replace('.', LEVEL).to_ascii_uppercase());
            let (config, origins) =
                with("", &[(&name, &value)]).unwrap_or_else(|e| panic!("{name}={value}: {e}"));
            assert_eq!(config, Config::default(), "{name}={value}");
            if value != "[]" {
                assert_eq!(origins.get(&key), Some(&Origin::Variable(name)), "{key}");
            }
        }
    }
}
