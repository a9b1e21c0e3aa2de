//! The file `weighlock.lock`: what a project runs, pinned by digest together with how it scored.
//!
//! The text is TOML in one canonical form: packages by name, files by path, metrics by name, one line for each, so
//! that what changed is what a diff shows. [`Lock::parse`] takes the same content in any order, refuses what it does
//! not know, and writes it back in canonical order. `version` grows when keys are added: an older program then names
//! the version instead of a key.

mod check;
mod entry;
mod read;
mod write;

pub use check::{Difference, check, check_sizes};

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::gate::{Harness, HostProfile, Metric, Runtime};
use crate::id::{ClusterId, LayerId, ManifestDigest, Sha256};
use crate::manifest::Contract;
use crate::names::{Artifact, Stage, Tag};

/// Version of the file's form that is written, and the newest that is read.
pub const LOCK_VERSION: i64 = 1;
/// Largest lock file accepted or written, in bytes. One file takes about 200 bytes, one metric about 150.
pub const LOCK_BYTES_MAX: usize = 16 << 20;
/// Most packages in one lock file.
pub const PACKAGES_MAX: usize = 1_000;
/// Most targets of one package.
pub const TARGETS_MAX: usize = 256;

/// A lock file that is sound: every way to make or change one checks it, so its text always parses to an equal one.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Lock {
    /// The cluster that verdicts are signed for where no daemon says it.
    pub cluster: Option<ClusterId>,
    /// SHA-256 of gate.toml's canonical form when the packages were locked.
    pub policy: Option<Sha256>,
    generated_by: String,
    packages: Vec<Package>,
}

/// One artifact, pinned.
#[derive(Debug, Clone, PartialEq)]
pub struct Package {
    /// `ns/name`.
    pub name: Artifact,
    /// Its tag.
    pub version: Tag,
    /// The stage that it was pinned from, if it was not pinned by tag or digest.
    pub channel: Option<Stage>,
    /// What it is.
    pub kind: Kind,
    /// Of the manifest.
    pub digest: ManifestDigest,
    /// Its files, by path.
    pub files: Vec<File>,
    contract: Contract,
    /// How it scored, by hardware key and suite. None: it is pinned for all hardware, without scores.
    pub targets: Vec<Target>,
}

/// What a package is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A model that stands alone.
    Base,
    /// LoRA and its kin: needs its base model.
    Adapter,
    /// A tokenizer.
    Tokenizer,
    /// Prompts or a prompt schema.
    Prompt,
    /// Data.
    Dataset,
    /// What models are evaluated with.
    EvalSuite,
    /// A model that judges others.
    Judge,
}

/// One file of a package.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Path inside the artifact.
    pub path: String,
    /// Length in bytes.
    pub size: u64,
    /// What OCI and the Hub call it.
    pub sha256: Sha256,
    /// What hosts call it.
    pub blake3: LayerId,
}

/// What one suite measured on one kind of hardware.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// Where it ran; its `hardware` is the hardware key that the package is pinned for.
    pub host: HostProfile,
    /// What ran the model.
    pub runtime: Runtime,
    /// SHA-256 of the report's canonical bytes.
    pub report_sha256: Sha256,
    /// The evidence artifact that holds report and samples, where there is one.
    pub evidence: Option<ManifestDigest>,
    /// What stands for the suite.
    pub suite: Option<Sha256>,
    /// What ran the suite.
    pub harness: Harness,
    /// Seed of sampling and few-shot choice, as the harness writes it.
    pub seed: Option<String>,
    /// SHA-256 of the chat template that the harness applied.
    pub chat_template_sha256: Option<Sha256>,
    /// By name, with the digests of their samples.
    pub metrics: BTreeMap<String, Metric>,
}

/// Why a lock file, or an entry for one, is refused: one line, fit for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LockError {
    /// Over [`LOCK_BYTES_MAX`].
    #[error(
        "the lock file has {0} bytes, more than the {LOCK_BYTES_MAX} accepted; lock fewer packages in it"
    )]
    TooBig(usize),
    /// Not TOML, or TOML with other keys or types.
    #[error("the lock file, line {line}: {reason}")]
    Form {
        /// From 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// A version that this program does not know.
    #[error(
        "the lock file has version {0}, written by a newer weighlock (this one reads {LOCK_VERSION}); update weighlock"
    )]
    Newer(i64),
    /// A version that never was.
    #[error("the lock file has version {0}, which no weighlock wrote; lock again")]
    Version(i64),
    /// Well-formed, but not sound.
    #[error("{0}")]
    Content(String),
}

impl Lock {
    /// A lock file without packages. `generated_by` is for people: a program and its version.
    pub fn new(generated_by: &str) -> Self {
        let mut lock = Self::default();
        lock.set_generated_by(generated_by);
        lock
    }

    /// Reads a lock file, from anywhere.
    ///
    /// # Errors
    /// Not TOML, an unknown key or another type (with its line), a newer version, over a limit of this module, two
    /// packages for one hardware key, or an entry that [`Lock::set`] would refuse.
    pub fn parse(text: &str) -> Result<Self, LockError> {
        read::parse(text)
    }

    /// The canonical text. [`Lock::parse`] makes an equal lock of it; equal locks have the same text.
    pub fn to_toml(&self) -> String {
        write::lock(self)
    }

    /// The program that wrote it.
    pub fn generated_by(&self) -> &str {
        &self.generated_by
    }

    /// Names the program that writes it; only the first [`GENERATED_BY_MAX`] characters are kept.
    pub fn set_generated_by(&mut self, program: &str) {
        self.generated_by = program.chars().take(GENERATED_BY_MAX).collect();
    }

    /// All packages, by name, then hardware keys.
    pub fn packages(&self) -> &[Package] {
        &self.packages
    }

    /// The packages of one name: one, or several for different hardware keys.
    pub fn find<'a>(&'a self, name: &'a Artifact) -> impl Iterator<Item = &'a Package> {
        self.packages.iter().filter(move |package| package.name == *name)
    }

    /// What is pinned of `name` for a hardware key: the package with that key, else the one for `any`, else the one
    /// without targets, which stands for all hardware.
    pub fn find_on<'a>(&'a self, name: &'a Artifact, hardware: &str) -> Option<&'a Package> {
        let on = |key: &str| self.find(name).find(|package| package.hardware().contains(key));
        on(hardware).or_else(|| on("any")).or_else(|| self.find(name).find(|p| p.targets.is_empty()))
    }

    /// Pins `package` for the hardware keys of its targets, or, without targets, for all hardware. It takes the place
    /// of what was pinned there under its name: an entry of the same keys is replaced, one that shares only some
    /// loses those, one without targets goes. Other entries stay as they are.
    ///
    /// # Errors
    /// A path that is unsafe or there twice, two targets with one hardware key and suite, a number that is not finite
    /// or that TOML cannot hold, or over a limit of this module. The lock is then unchanged.
    pub fn set(&mut self, package: Package) -> Result<(), LockError> {
        let mut next = self.clone();
        next.packages = self.packages.iter().filter_map(|old| old.beside(&package)).collect();
        next.packages.push(package);
        *self = next.checked()?;
        Ok(())
    }

    /// Puts everything in canonical order and checks it.
    fn checked(mut self) -> Result<Self, LockError> {
        if self.packages.len() > PACKAGES_MAX {
            let count = self.packages.len();
            return refuse(format!(
                "the lock file has {count} packages, more than the {PACKAGES_MAX} accepted"
            ));
        }
        for package in &mut self.packages {
            package.make_canonical()?;
        }
        self.packages.sort_by(|a, b| (&a.name, a.hardware()).cmp(&(&b.name, b.hardware())));
        for group in self.packages.chunk_by(|a, b| a.name == b.name) {
            let mut seen = BTreeSet::new();
            for package in group {
                let name = &package.name;
                if group.len() > 1 && package.targets.is_empty() {
                    return refuse(format!(
                        "package {name} is there {} times, once for all hardware; remove all but one, or lock again",
                        group.len()
                    ));
                }
                if let Some(twice) = package.hardware().into_iter().find(|key| !seen.insert(*key)) {
                    let key = one_line(twice, SHOWN_CHARS_MAX);
                    return refuse(format!(
                        "package {name} is there twice for {key}; remove one, or lock again"
                    ));
                }
            }
        }
        // The header may still change: it is counted at its longest.
        match HEADER_BYTES_MAX + write::packages(&self.packages).len() {
            len if len > LOCK_BYTES_MAX => Err(LockError::TooBig(len)),
            _ => Ok(self),
        }
    }
}

/// Longest `generated_by`, in characters.
pub const GENERATED_BY_MAX: usize = 256;
/// Longest header, in bytes: the digests, and `generated_by` with every character escaped.
const HEADER_BYTES_MAX: usize = 2_048;
/// Characters of a text from outside that a message shows.
const SHOWN_CHARS_MAX: usize = 120;

fn refuse<T>(reason: String) -> Result<T, LockError> {
    Err(LockError::Content(reason))
}

/// A text from outside, fit for one line of a message: cut, escaped, and without the `; ` that starts a hint.
fn one_line(text: &str, chars_max: usize) -> String {
    let mut line = String::new();
    for (at, c) in text.chars().enumerate() {
        if at == chars_max {
            line.push('…');
            break;
        }
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line.replace("; ", ", ")
}

#[cfg(test)]
mod tests;
