//! Namespaces that a role covers.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::envelope::StatementError;
use crate::names::NAME_LEN_MAX;

/// `*`, an exact namespace, or a prefix followed by `*`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamespaceGlob(String);

impl NamespaceGlob {
    /// Whether it covers `namespace`.
    pub fn matches(&self, namespace: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(prefix) => namespace.starts_with(prefix),
            None => namespace == self.0,
        }
    }
}

impl std::str::FromStr for NamespaceGlob {
    type Err = StatementError;

    fn from_str(s: &str) -> Result<Self, StatementError> {
        let stem = s.strip_suffix('*').unwrap_or(s);
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
        if s.is_empty() || s.len() > NAME_LEN_MAX || !stem.bytes().all(plain) {
            return Err(StatementError::Body {
                reason: "a namespace glob is `*`, `name` or `prefix*` in lower case".to_owned(),
            });
        }
        Ok(Self(s.to_owned()))
    }
}

impl fmt::Display for NamespaceGlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for NamespaceGlob {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NamespaceGlob {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_cover_what_they_say() {
        let glob = |s: &str| s.parse::<NamespaceGlob>();
        assert!(glob("*").is_ok_and(|g| g.matches("acme")));
        assert!(glob("acme").is_ok_and(|g| g.matches("acme") && !g.matches("acme-x")));
        assert!(glob("acme-*").is_ok_and(|g| g.matches("acme-x") && !g.matches("acme")));
        assert!(glob("").is_err() && glob("a*b").is_err() && glob("**").is_err() && glob("A").is_err());
    }
}
