//! What references mean to this host.

use std::collections::BTreeSet;

use weighlock_protocol::statement::{Ledger, Resolution};
use weighlock_protocol::{Artifact, ManifestDigest, Reference, Selector};

use super::Facts;
use crate::error::{Error, Result};

impl Facts {
    /// What a reference means to this host, for those who look at what is said of it. Who opens it asks
    /// [`admit`](Self::admit), which also asks whether a tag may be used.
    ///
    /// # Errors
    /// Unknown, in conflict, or a stage without a head.
    pub fn resolve(&self, reference: &Reference) -> Result<ManifestDigest> {
        let ledger = self.ledger();
        match &reference.selector {
            Selector::Tag(tag) => match ledger.resolve_tag(&reference.artifact, tag) {
                Resolution::Resolved(digest) | Resolution::Unproven(digest) => Ok(digest),
                Resolution::Conflict { .. } => Err(conflict(reference)),
                Resolution::Unknown => Err(unknown(&ledger, reference)),
            },
            Selector::Digest(digest) => {
                let named = ledger.publishes_of(digest).any(|p| p.publish.artifact == reference.artifact);
                if named { Ok(*digest) } else { Err(unknown(&ledger, reference)) }
            }
            Selector::Prefix(prefix) => {
                let mut found = digests(&ledger, &reference.artifact);
                found.retain(|digest| prefix.matches(digest));
                match found.first() {
                    Some(digest) if found.len() == 1 => Ok(*digest),
                    Some(_) => {
                        let all: Vec<String> = found.iter().map(ToString::to_string).collect();
                        Err(Error::invalid(format!("{reference} may be any of {}", all.join(", ")))
                            .hint("give more digits"))
                    }
                    None => Err(unknown(&ledger, reference)),
                }
            }
            Selector::Stage(stage) => {
                let head = ledger.head(&reference.artifact, *stage, self.hardware());
                head.map(|head| head.manifest).ok_or_else(|| {
                    Error::not_found(format!(
                        "{reference}: nothing was promoted to {stage} for {} or any hardware",
                        self.hardware()
                    ))
                    .hint(format!("`weighlock promote {}:TAG --to {stage}` does", reference.artifact))
                })
            }
        }
    }
}

/// Every manifest that a tag of `artifact` means, or may mean.
fn digests(ledger: &Ledger, artifact: &Artifact) -> BTreeSet<ManifestDigest> {
    let mut all = BTreeSet::new();
    for (_, resolution) in ledger.tags(artifact) {
        match resolution {
            Resolution::Resolved(digest) | Resolution::Unproven(digest) => all.extend([digest]),
            Resolution::Conflict { digests } => all.extend(digests.into_keys()),
            Resolution::Unknown => {}
        }
    }
    all
}

pub(super) fn conflict(reference: &Reference) -> Error {
    Error::refused(format!(
        "{reference} was published with different contents by different publishers, so it means nothing"
    ))
    .hint("an admin can revoke one of the statements; `weighlock ls` names the publishers")
}

fn unknown(ledger: &Ledger, reference: &Reference) -> Error {
    let tags: Vec<String> =
        ledger.tags(&reference.artifact).map(|(tag, _)| tag.to_string()).take(8).collect();
    let error = Error::not_found(format!("nothing is published as {reference}"));
    if tags.is_empty() {
        return error.hint(format!(
            "`weighlock ls` lists what there is; `weighlock add PATH {}:TAG` adds it",
            reference.artifact
        ));
    }
    error.hint(format!("{} has {}", reference.artifact, tags.join(", ")))
}
