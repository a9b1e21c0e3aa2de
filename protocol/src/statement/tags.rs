//! What was published: which manifest each tag means, folded from the publishes that count.

use std::collections::{BTreeMap, BTreeSet};

use super::body::Publish;
use crate::id::{KeyId, ManifestDigest, StatementId};
use crate::names::{Artifact, Tag};
use crate::time::UnixTime;

/// What a tag means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolution {
    /// One manifest.
    Resolved(ManifestDigest),
    /// One manifest, but the policy asks for a passing verdict on it and none is here: it means nothing until one is.
    Unproven(ManifestDigest),
    /// Publishers disagree, so it means nothing until all but one are revoked.
    Conflict {
        /// Each digest and who published it.
        digests: BTreeMap<ManifestDigest, BTreeSet<KeyId>>,
    },
    /// Nobody published it.
    Unknown,
}

/// One publish that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Its statement.
    pub id: StatementId,
    /// Its author.
    pub by: KeyId,
    /// When, by the author's clock.
    pub time: UnixTime,
    /// What it says.
    pub publish: Publish,
}

/// Tags and their manifests. Adding and removing commute, so only the set of publishes matters.
#[derive(Debug, Clone, Default)]
pub(super) struct Tags {
    artifacts: BTreeMap<Artifact, BTreeMap<Tag, Digests>>,
    by_manifest: BTreeMap<ManifestDigest, BTreeSet<StatementId>>,
    conflicts: BTreeSet<(Artifact, Tag)>,
}

type Digests = BTreeMap<ManifestDigest, BTreeSet<(KeyId, StatementId)>>;

impl Tags {
    /// Counts the publish `id` of `by`.
    pub(super) fn insert(&mut self, id: StatementId, by: KeyId, publish: &Publish) {
        let tags = match self.artifacts.get_mut(&publish.artifact) {
            Some(tags) => tags,
            None => self.artifacts.entry(publish.artifact.clone()).or_default(),
        };
        let digests = match tags.get_mut(&publish.tag) {
            Some(digests) => digests,
            None => tags.entry(publish.tag.clone()).or_default(),
        };
        digests.entry(publish.manifest).or_default().insert((by, id));
        if digests.len() > 1 {
            self.conflicts.insert((publish.artifact.clone(), publish.tag.clone()));
        }
        self.by_manifest.entry(publish.manifest).or_default().insert(id);
    }

    /// No longer counts the publish `id` of `by`.
    pub(super) fn remove(&mut self, id: StatementId, by: KeyId, publish: &Publish) {
        if let Some(tags) = self.artifacts.get_mut(&publish.artifact) {
            if let Some(digests) = tags.get_mut(&publish.tag) {
                if let Some(who) = digests.get_mut(&publish.manifest) {
                    who.remove(&(by, id));
                }
                digests.retain(|_, who| !who.is_empty());
                if digests.len() < 2 {
                    self.conflicts.remove(&(publish.artifact.clone(), publish.tag.clone()));
                }
                if digests.is_empty() {
                    tags.remove(&publish.tag);
                }
            }
            if tags.is_empty() {
                self.artifacts.remove(&publish.artifact);
            }
        }
        if let Some(ids) = self.by_manifest.get_mut(&publish.manifest) {
            ids.remove(&id);
            if ids.is_empty() {
                self.by_manifest.remove(&publish.manifest);
            }
        }
    }

    pub(super) fn artifacts(&self) -> impl Iterator<Item = &Artifact> {
        self.artifacts.keys()
    }

    pub(super) fn tags(&self, artifact: &Artifact) -> impl Iterator<Item = (&Tag, Resolution)> {
        self.artifacts.get(artifact).into_iter().flatten().map(|(tag, digests)| (tag, resolution(digests)))
    }

    pub(super) fn resolve(&self, artifact: &Artifact, tag: &Tag) -> Resolution {
        let digests = self.artifacts.get(artifact).and_then(|tags| tags.get(tag));
        digests.map_or(Resolution::Unknown, resolution)
    }

    pub(super) fn publishes_of(&self, manifest: &ManifestDigest) -> impl Iterator<Item = StatementId> {
        self.by_manifest.get(manifest).into_iter().flatten().copied()
    }

    pub(super) fn conflicts(&self) -> impl Iterator<Item = &(Artifact, Tag)> {
        self.conflicts.iter()
    }
}

fn resolution(digests: &Digests) -> Resolution {
    let mut all = digests.iter();
    match (all.next(), all.next()) {
        (None, _) => Resolution::Unknown,
        (Some((digest, _)), None) => Resolution::Resolved(*digest),
        _ => Resolution::Conflict {
            digests: digests
                .iter()
                .map(|(digest, who)| (*digest, who.iter().map(|(key, _)| *key).collect()))
                .collect(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publish(tag: &str, manifest: &[u8]) -> Publish {
        Publish {
            artifact: "acme/bot".parse().expect("artifact"),
            tag: tag.parse().expect("tag"),
            manifest: ManifestDigest::of(manifest),
            total_bytes: 1,
        }
    }

    #[test]
    fn removing_what_was_added_leaves_nothing() {
        let (one, two) = (publish("1.0.0", b"a"), publish("1.0.0", b"b"));
        let mut tags = Tags::default();
        let by = KeyId([1; 32]);
        tags.insert(StatementId([1; 32]), by, &one);
        tags.insert(StatementId([2; 32]), by, &one);
        tags.insert(StatementId([3; 32]), by, &two);
        assert!(
            matches!(tags.resolve(&one.artifact, &one.tag), Resolution::Conflict { digests } if digests.len() == 2)
        );
        assert_eq!(tags.conflicts().count(), 1);
        tags.remove(StatementId([3; 32]), by, &two);
        assert_eq!(tags.resolve(&one.artifact, &one.tag), Resolution::Resolved(one.manifest));
        assert_eq!((tags.conflicts().count(), tags.publishes_of(&one.manifest).count()), (0, 2));
        tags.remove(StatementId([1; 32]), by, &one);
        tags.remove(StatementId([2; 32]), by, &one);
        assert_eq!(tags.artifacts().count(), 0);
        assert_eq!(tags.resolve(&one.artifact, &one.tag), Resolution::Unknown);
        assert!(tags.by_manifest.is_empty());
    }
}
