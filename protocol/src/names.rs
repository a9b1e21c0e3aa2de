//! Names people type: `ns/name:tag`, `ns/name:stage`, `ns/name@sha256:...`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::id::ManifestDigest;

/// Longest namespace or name, in bytes.
pub const NAME_LEN_MAX: usize = 128;
/// Longest tag, in bytes (as in the OCI distribution specification).
pub const TAG_LEN_MAX: usize = 128;
/// Fewest hex digits that a shortened digest may have.
pub const DIGEST_PREFIX_LEN_MIN: usize = 8;

/// Why a text is not a name, tag or reference, in words that say what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The text does not have the shape of a reference.
    #[error(
        "`{text}` is not a reference: {reason}; write it as ns/name:tag, ns/name:stage or ns/name@sha256:..."
    )]
    Shape {
        /// What was given.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A bare `ns/name`, which never means a silent "latest".
    #[error(
        "`{0}` names no version; add a tag (`{0}:1.0.0`) or a stage (`{0}:production`, canary, shadow, sandbox)"
    )]
    Bare(Artifact),
    /// A stage name where a tag must stand.
    #[error(
        "`{0}` is a stage, not a tag: heads move by promotion; add under a version such as 1.0.0 instead"
    )]
    ReservedTag(Stage),
    /// `latest`, which elsewhere means whatever came last.
    #[error(
        "`{text}` cannot be a tag: it would move and tags never do; name a version such as 1.0.0, or a stage such as production"
    )]
    Latest {
        /// What was given.
        text: String,
    },
    /// Not a tag.
    #[error("`{text}` is not a tag: {reason}")]
    Tag {
        /// What was given.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// `ns/name`: what is versioned. Both parts follow the OCI repository grammar, one path component each.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Artifact {
    namespace: String,
    name: String,
}

impl Artifact {
    /// The part before the slash.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The part after the slash.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// An immutable label of one manifest: a semantic version or a free label such as `step-12000`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(String);

impl Tag {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The semantic version that this tag is, if it is one; only these take part in ranges.
    pub fn version(&self) -> Option<semver::Version> {
        semver::Version::parse(&self.0).ok()
    }
}

/// The rungs of the promotion ladder, lowest first. Their names are reserved as tags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Loads somewhere.
    Sandbox,
    /// Sees mirrored requests; its answers reach no user.
    Shadow,
    /// Answers a share of real requests.
    Canary,
    /// Answers.
    Production,
}

impl Stage {
    /// All stages, lowest first.
    pub const ALL: [Stage; 4] = [Stage::Sandbox, Stage::Shadow, Stage::Canary, Stage::Production];

    /// The lower-case name.
    pub fn as_str(self) -> &'static str {
        match self {
            Stage::Sandbox => "sandbox",
            Stage::Shadow => "shadow",
            Stage::Canary => "canary",
            Stage::Production => "production",
        }
    }
}

/// The beginning of a manifest digest, as people shorten it: 8 to 63 lower-case hex digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DigestPrefix(String);

impl DigestPrefix {
    /// Whether `digest` begins so.
    pub fn matches(&self, digest: &ManifestDigest) -> bool {
        digest.hex().starts_with(&self.0)
    }
}

/// What a reference selects of an artifact.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Selector {
    /// An immutable tag.
    Tag(Tag),
    /// The head of a channel, for this host's hardware key.
    Stage(Stage),
    /// Exact manifest bytes.
    Digest(ManifestDigest),
    /// The one manifest of the artifact whose digest begins so.
    Prefix(DigestPrefix),
}

/// A full reference: an artifact and what is selected of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    /// `ns/name`.
    pub artifact: Artifact,
    /// Tag, stage or digest.
    pub selector: Selector,
}

impl Reference {
    /// A reference by tag.
    pub fn tag(artifact: Artifact, tag: Tag) -> Self {
        Self { artifact, selector: Selector::Tag(tag) }
    }

    /// The tag, for commands that name a new version.
    ///
    /// # Errors
    /// A stage or digest where a tag must stand.
    pub fn require_tag(&self) -> Result<&Tag, NameError> {
        match &self.selector {
            Selector::Tag(tag) => Ok(tag),
            Selector::Stage(stage) => Err(NameError::ReservedTag(*stage)),
            Selector::Digest(_) | Selector::Prefix(_) => Err(NameError::Shape {
                text: self.to_string(),
                reason: "a digest is computed, not chosen; name a tag here",
            }),
        }
    }
}

impl FromStr for Artifact {
    type Err = NameError;

    fn from_str(s: &str) -> Result<Self, NameError> {
        let shape = |reason| NameError::Shape { text: clip(s), reason };
        let (namespace, name) = s.split_once('/').ok_or_else(|| shape("it has no namespace"))?;
        if name.contains('/') {
            return Err(shape("it has more than one slash"));
        }
        for part in [namespace, name] {
            component(part).map_err(shape)?;
        }
        Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

impl FromStr for Tag {
    type Err = NameError;

    fn from_str(s: &str) -> Result<Self, NameError> {
        let bad = |reason| NameError::Tag { text: clip(s), reason };
        if s.is_empty() {
            return Err(bad("it is empty"));
        }
        if s.len() > TAG_LEN_MAX {
            return Err(bad("it is longer than 128 bytes"));
        }
        let ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+');
        if !s.chars().all(ok) || s.starts_with(['.', '-', '+']) {
            return Err(bad(
                "use letters, digits, `.`, `_`, `-` and `+`, starting with a letter, a digit or `_`",
            ));
        }
        if let Some(stage) = Stage::ALL.into_iter().find(|stage| stage.as_str().eq_ignore_ascii_case(s)) {
            return Err(NameError::ReservedTag(stage));
        }
        if s.eq_ignore_ascii_case("latest") {
            return Err(NameError::Latest { text: s.to_owned() });
        }
        Ok(Self(s.to_owned()))
    }
}

impl FromStr for Stage {
    type Err = NameError;

    fn from_str(s: &str) -> Result<Self, NameError> {
        Stage::ALL.into_iter().find(|stage| stage.as_str() == s).ok_or_else(|| NameError::Tag {
            text: clip(s),
            reason: "it is not a stage: sandbox, shadow, canary or production",
        })
    }
}

impl FromStr for Reference {
    type Err = NameError;

    fn from_str(s: &str) -> Result<Self, NameError> {
        if let Some((artifact, digest)) = s.split_once('@') {
            if artifact.contains(':') {
                return Err(NameError::Shape { text: clip(s), reason: "give a tag or a digest, not both" });
            }
            let selector = digest_selector(digest).ok_or_else(|| NameError::Shape {
                text: clip(s),
                reason: "after `@` comes sha256: and 64 lower-case hex digits, or the first 8 or more of them",
            })?;
            return Ok(Self { artifact: artifact.parse()?, selector });
        }
        let Some((artifact, selector)) = s.split_once(':') else {
            return Err(NameError::Bare(s.parse()?));
        };
        let artifact = artifact.parse()?;
        let selector = match selector.parse::<Stage>() {
            Ok(stage) => Selector::Stage(stage),
            Err(_) => Selector::Tag(selector.parse()?),
        };
        Ok(Self { artifact, selector })
    }
}

impl fmt::Display for Artifact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.selector {
            Selector::Tag(tag) => write!(f, "{}:{tag}", self.artifact),
            Selector::Stage(stage) => write!(f, "{}:{stage}", self.artifact),
            Selector::Digest(digest) => write!(f, "{}@{digest}", self.artifact),
            Selector::Prefix(prefix) => write!(f, "{}@sha256:{}", self.artifact, prefix.0),
        }
    }
}

macro_rules! serde_as_text {
    ($($name:ident),*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
serde_as_text!(Artifact, Tag, Reference);

/// What stands behind the `@`: a whole digest or its beginning.
fn digest_selector(text: &str) -> Option<Selector> {
    if let Ok(digest) = text.parse() {
        return Some(Selector::Digest(digest));
    }
    let hex = text.strip_prefix("sha256:")?;
    let is_prefix = (DIGEST_PREFIX_LEN_MIN..64).contains(&hex.len())
        && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    is_prefix.then(|| Selector::Prefix(DigestPrefix(hex.to_owned())))
}

/// One component of the OCI repository grammar: `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`.
fn component(part: &str) -> Result<(), &'static str> {
    if part.is_empty() {
        return Err("a part of its name is empty");
    }
    if part.len() > NAME_LEN_MAX {
        return Err("a part of its name is longer than 128 bytes");
    }
    if part.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("names are lower-case");
    }
    if !part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b)) {
        return Err("names use a-z, 0-9 and single separators . _ -");
    }
    let separators = part.split(|c: char| c.is_ascii_alphanumeric()).filter(|run| !run.is_empty());
    for run in separators {
        if !(run == "." || run == "_" || run == "__" || run.bytes().all(|b| b == b'-')) {
            return Err("separators inside a name are one of `.`, `_`, `__` or dashes");
        }
    }
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    if !edge(part.chars().next()) || !edge(part.chars().next_back()) {
        return Err("a name starts and ends with a letter or digit");
    }
    Ok(())
}

/// Quoting a megabyte back at a user helps nobody.
fn clip(s: &str) -> String {
    s.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_round_trip() {
        let digest = format!("acme/support-bot@{}", ManifestDigest::of(b""));
        for text in [
            "acme/support-bot:1.4.0",
            "acme/support-bot:production",
            "a/b:step-12000",
            "a1/b__c.d:1.0.0-rc.1+cu12",
            &digest,
            "acme/support-bot@sha256:0123abcd",
        ] {
            let parsed: Reference = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(parsed.to_string(), text);
        }
        let parsed: Reference = "acme/support-bot:production".parse().expect("valid");
        assert_eq!(parsed.selector, Selector::Stage(Stage::Production));
        assert!(parsed.require_tag().is_err());
    }

    #[test]
    fn a_bare_name_lists_the_stages() {
        let error = "acme/support-bot".parse::<Reference>().expect_err("bare").to_string();
        assert!(error.contains("acme/support-bot:production") && error.contains("sandbox"), "{error}");
    }

    #[test]
    fn wrong_shapes_are_refused() {
        for text in [
            "",
            "/",
            "a/",
            "/b:1",
            "bot:1.0",
            "a/b/c:1",
            "Acme/bot:1",
            "acme/bot:",
            "acme/bot:-x",
            "acme/b..c:1",
            "acme/-b:1",
            "acme/b-:1",
            "acme/b:1@sha256:00",
            "acme/b@sha256:00",
            "acme/b@md5:00",
            "acme/b@sha256:0123abc",
            "acme/b@sha256:0123ABCD",
            "acme/b@sha256:0123abcg",
            "acme/b@0123abcd",
            "acme/b:a b",
            "../etc:1",
            "acme/..:1",
            "acme/b:ä",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text} was accepted");
        }
        assert!("production".parse::<Tag>().is_err());
        // Whoever reads it would take it for the channel.
        assert!("Production".parse::<Tag>().is_err() && "CANARY".parse::<Tag>().is_err());
        assert!(format!("a/b:{}", "x".repeat(129)).parse::<Reference>().is_err());
    }

    #[test]
    fn a_shortened_digest_matches_what_begins_so() {
        let digest = ManifestDigest::of(b"");
        for digits in [DIGEST_PREFIX_LEN_MIN, 63] {
            let text = format!("acme/b@sha256:{}", &digest.hex()[..digits]);
            let Selector::Prefix(prefix) = text.parse::<Reference>().expect("a reference").selector else {
                panic!("{text} is no prefix")
            };
            assert!(prefix.matches(&digest) && !prefix.matches(&ManifestDigest::of(b"other")));
        }
        let long = format!("acme/b@sha256:{}0", digest.hex());
        assert!(long.parse::<Reference>().is_err(), "65 digits");
    }

    #[test]
    fn latest_is_no_tag() {
        for text in ["latest", "Latest"] {
            let error = text.parse::<Tag>().expect_err("it would move").to_string();
            assert!(error.contains("; name a version"), "{error}");
            assert!(format!("acme/b:{text}").parse::<Reference>().is_err());
        }
        assert!("latest-2".parse::<Tag>().is_ok());
    }

    #[test]
    fn only_semver_tags_are_versions() {
        let tag: Tag = "1.4.0".parse().expect("tag");
        assert_eq!(tag.version().map(|v| v.minor), Some(4));
        let tag: Tag = "step-12000".parse().expect("tag");
        assert!(tag.version().is_none());
    }
}
