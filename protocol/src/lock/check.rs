//! Compares what is pinned with what is there now.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::write::{Value, contract_fields};
use super::{Package, SHOWN_CHARS_MAX, one_line};
use crate::id::{LayerId, ManifestDigest, Sha256};
use crate::manifest::{Contract, Manifest};

/// One way in which an artifact is not what is pinned. Displays as one line without the name of the package.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Difference {
    /// A pinned file is not there.
    Missing {
        /// Path inside the artifact.
        path: String,
    },
    /// A file is there that is not pinned.
    Extra {
        /// Path inside the artifact.
        path: String,
    },
    /// A file has another length.
    Size {
        /// Path inside the artifact.
        path: String,
        /// In bytes.
        locked: u64,
        /// In bytes.
        found: u64,
    },
    /// A file of the same length has other bytes.
    Sha256 {
        /// Path inside the artifact.
        path: String,
        /// What is pinned.
        locked: Sha256,
        /// What is there.
        found: Sha256,
    },
    /// A file's SHA-256 is the pinned one, its BLAKE3 is not: one of the two was not read from the file.
    Blake3 {
        /// Path inside the artifact.
        path: String,
        /// What is pinned.
        locked: LayerId,
        /// What is there.
        found: LayerId,
    },
    /// The files say something else about the model.
    Contract {
        /// Key as in the lock file.
        field: &'static str,
        /// Its value as TOML, if it is pinned.
        locked: Option<String>,
        /// Its value as TOML, if the files say it.
        found: Option<String>,
    },
    /// Files and contract are as pinned, the manifest is not: order or kinds of files, or the tensor index, differ.
    Manifest {
        /// What is pinned.
        locked: ManifestDigest,
        /// What is there.
        found: ManifestDigest,
    },
}

/// Compares a package with the manifest and contract of what is there now: files by path, then the contract in the
/// order of the lock file. Empty if and only if the manifest is the pinned one and the contract says the same.
pub fn check(package: &Package, manifest: &Manifest, contract: &Contract) -> Vec<Difference> {
    let sizes = manifest.files().iter().map(|layer| (layer.path.as_str(), layer.size));
    let mut differences = check_sizes(package, sizes);
    let found: BTreeMap<&str, _> =
        manifest.files().iter().map(|layer| (layer.path.as_str(), layer)).collect();
    for file in &package.files {
        let Some(layer) = found.get(file.path.as_str()).filter(|layer| layer.size == file.size) else {
            continue;
        };
        let path = file.path.clone();
        if layer.sha256 != file.sha256 {
            differences.push(Difference::Sha256 { path, locked: file.sha256, found: layer.sha256 });
        } else if layer.id != file.blake3 {
            differences.push(Difference::Blake3 { path, locked: file.blake3, found: layer.id });
        }
    }
    differences.sort_by(|a, b| a.path().cmp(&b.path()));
    differences.extend(contract_differences(package.contract(), contract));
    if differences.is_empty() && manifest.digest() != package.digest {
        differences.push(Difference::Manifest { locked: package.digest, found: manifest.digest() });
    }
    differences
}

/// Compares only paths and sizes in bytes: what can be said before anything is read. By path.
pub fn check_sizes<'a>(
    package: &Package,
    found: impl IntoIterator<Item = (&'a str, u64)>,
) -> Vec<Difference> {
    let found: BTreeMap<&str, u64> = found.into_iter().collect();
    let locked: BTreeMap<&str, u64> =
        package.files.iter().map(|file| (file.path.as_str(), file.size)).collect();
    let paths: BTreeSet<&str> = locked.keys().chain(found.keys()).copied().collect();
    let difference = |path: &str| {
        let of = path.to_owned();
        match (locked.get(path), found.get(path)) {
            (Some(_), None) => Some(Difference::Missing { path: of }),
            (None, Some(_)) => Some(Difference::Extra { path: of }),
            (Some(locked), Some(found)) if locked != found => {
                Some(Difference::Size { path: of, locked: *locked, found: *found })
            }
            _ => None,
        }
    };
    paths.into_iter().filter_map(difference).collect()
}

impl Difference {
    /// The file that differs, if it is about one.
    pub fn path(&self) -> Option<&str> {
        match self {
            Self::Missing { path }
            | Self::Extra { path }
            | Self::Size { path, .. }
            | Self::Sha256 { path, .. }
            | Self::Blake3 { path, .. } => Some(path),
            Self::Contract { .. } | Self::Manifest { .. } => None,
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(path) = self.path() {
            write!(f, "{}: ", one_line(path, PATH_CHARS_MAX))?;
        }
        match self {
            Self::Missing { .. } => f.write_str("is missing"),
            Self::Extra { .. } => f.write_str("is not in the lock file"),
            Self::Size { locked, found, .. } => write!(f, "has {found} bytes, locked are {locked}"),
            Self::Sha256 { locked, found, .. } => write!(f, "is {found}, locked is {locked}"),
            Self::Blake3 { locked, found, .. } => write!(f, "is BLAKE3 {found}, locked is {locked}"),
            Self::Contract { field, locked, found } => {
                let shown = |value: &Option<String>| {
                    value
                        .as_deref()
                        .map_or_else(|| "not set".into(), |value| one_line(value, SHOWN_CHARS_MAX))
                };
                write!(f, "{field} is {}, locked is {}", shown(found), shown(locked))
            }
            Self::Manifest { locked, found } => {
                write!(f, "the manifest is {found}, locked is {locked}, with the same files and contract")
            }
        }
    }
}

/// Characters of a path that a message shows; longer than elsewhere, for the end of a path tells files apart.
const PATH_CHARS_MAX: usize = 400;

fn contract_differences(locked: &Contract, found: &Contract) -> Vec<Difference> {
    let pairs = contract_fields(locked).into_iter().zip(contract_fields(found));
    let differing = pairs.filter(|((_, locked), (_, found))| locked != found);
    let text = |value: Option<Value>| value.map(|value| value.to_string());
    differing
        .map(|((field, locked), (_, found))| Difference::Contract {
            field,
            locked: text(locked),
            found: text(found),
        })
        .collect()
}
