//! Whether a manifest may go by a name: where the policy lets only be published what the gate has passed.
//!
//! A publisher's own host refuses earlier, but nobody has to trust it: every host asks this of every tag. What counts
//! is the set alone, so a publish that comes before its verdict, or on a host that never asked, means nothing until the
//! verdict is here, and then means the same everywhere.

use super::super::body::Kind;
use super::super::ledger::Ledger;
use super::super::tags::Resolution;
use crate::gate::Outcome;
use crate::id::ManifestDigest;
use crate::names::Artifact;

impl Ledger {
    /// Whether a tag of `artifact` may mean `manifest`: its policy lets anything be published, or a verdict that counts
    /// passed it under a policy that `artifact` has or had.
    ///
    /// Older policies count, since a new one must not take the names of what was published before it. Without one in
    /// force (all were revoked, or two dispute a version) the strictest of those that are known holds.
    pub fn may_be_named(&self, artifact: &Artifact, manifest: &ManifestDigest) -> bool {
        if !self.names_need_verdict(artifact) {
            return true;
        }
        let ids = self.weighed.of_manifest(manifest);
        ids.filter_map(|id| self.statement(id)).any(|s| match &s.kind {
            Kind::Verdict(verdict) => {
                verdict.artifact == *artifact
                    && verdict.ruling.outcome == Outcome::Pass
                    && self.authority.policies.known(artifact, &verdict.ruling.policy).is_some()
            }
            _ => false,
        })
    }

    /// Whether tags of `artifact` mean only what the gate has passed.
    pub fn names_need_verdict(&self, artifact: &Artifact) -> bool {
        self.authority.policies.is_strict(artifact)
    }

    /// A tag's meaning, where it needs a verdict only with one.
    pub(in super::super) fn named(&self, artifact: &Artifact, meaning: Resolution) -> Resolution {
        match meaning {
            Resolution::Resolved(manifest) if !self.may_be_named(artifact, &manifest) => {
                Resolution::Unproven(manifest)
            }
            other => other,
        }
    }
}
