//! Whether a manifest may be opened on a host: the one question behind every door.

use std::fmt;

use super::super::body::Role;
use super::super::ledger::Ledger;
use super::super::promotion::HARDWARE_ANY;
use crate::gate::OnExpiry;
use crate::id::{KeyId, ManifestDigest, StatementId};
use crate::names::{Artifact, Stage};
use crate::time::UnixTime;

/// Why a manifest may be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grounds {
    /// Nobody set a policy for it.
    Ungated,
    /// It is or was a head for this hardware.
    Promoted {
        /// The promotion or rollback.
        statement: StatementId,
        /// Its stage.
        stage: Stage,
    },
}

/// Why it may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// It was never a head on this hardware: nobody gave evidence that this host can check.
    NoEvidence {
        /// A verdict that did not pass, if there is one and none that passed.
        failed: Option<StatementId>,
        /// Whether some verdict passed, so that a promotion is what is missing.
        passed: bool,
    },
    /// It was a head, and was rolled back.
    RolledBack {
        /// When, by the author's clock.
        at: UnixTime,
    },
    /// It is a head that was made when there was no policy.
    BeforePolicy {
        /// Its stage.
        stage: Stage,
    },
    /// Its promotion has expired and the policy says that it stops then.
    Expired {
        /// When.
        at: UnixTime,
    },
}

impl Ledger {
    /// Whether a host of `hardware` may open `manifest` as `artifact`, by whatever reference it was asked for.
    ///
    /// # Errors
    /// Why not.
    pub fn may_open(
        &self,
        artifact: &Artifact,
        manifest: &ManifestDigest,
        hardware: &str,
        now: UnixTime,
    ) -> Result<Grounds, Closed> {
        if self.authority.policies.scope_of(artifact).is_none() {
            return Ok(Grounds::Ungated);
        }
        let mut closed = None;
        let paths = self.ladder.line(artifact).into_iter().flat_map(|line| line.folded.paths());
        let mut found = None;
        for (stage, _, path) in paths.filter(|(_, of, _)| *of == hardware || *of == HARDWARE_ANY) {
            let Some(head) = path.head() else { continue };
            let Some(node) = path.nodes.iter().rev().find(|node| node.manifest == Some(*manifest)) else {
                continue;
            };
            // Bad in one stage is bad by version and digest everywhere, unless it was promoted again after.
            if let Some(at) = head.all_bad.get(manifest).filter(|_| head.is_bad_since(manifest, node)) {
                return Err(Closed::RolledBack { at: *at });
            }
            let Some(digest) = node.policy else {
                closed = closed.or(Some(Closed::BeforePolicy { stage }));
                continue;
            };
            let policy = self.policy_known(artifact, &digest);
            let valid = policy.as_ref().and_then(|policy| policy.stages.get(&stage)?.valid_for);
            let expires = valid.map(|secs| node.since.plus(secs));
            let stops = policy.is_some_and(|policy| policy.on_expiry == OnExpiry::Stop);
            match expires.filter(|at| stops && now > at.plus(self.config.clock_tolerance_secs)) {
                Some(at) => closed = closed.or(Some(Closed::Expired { at })),
                // The highest stage says most.
                None => found = Some(Grounds::Promoted { statement: node.id, stage }),
            }
        }
        found.ok_or_else(|| closed.unwrap_or_else(|| self.no_evidence(artifact, manifest)))
    }

    /// Whether `key` may open candidates of `namespace` that are not promoted, to evaluate them.
    pub fn is_evaluator(&self, key: &KeyId, namespace: &str, now: UnixTime) -> bool {
        !self.is_revoked(key)
            && self.root(now).is_some_and(|root| root.root.holds(Role::Evaluator, namespace, key))
    }

    /// Whether `artifact` has a policy.
    pub fn is_gated(&self, artifact: &Artifact) -> bool {
        self.authority.policies.scope_of(artifact).is_some()
    }

    fn no_evidence(&self, artifact: &Artifact, manifest: &ManifestDigest) -> Closed {
        let verdicts = self.verdicts_on(artifact, manifest);
        let passed = verdicts.iter().any(|v| v.body.ruling.outcome == crate::gate::Outcome::Pass);
        let failed = verdicts.last().filter(|_| !passed).map(|v| v.id);
        Closed::NoEvidence { failed, passed }
    }
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Closed::NoEvidence { passed: true, .. } => {
                f.write_str("the gate passed it, but it was not promoted for this hardware")
            }
            Closed::NoEvidence { failed: Some(verdict), .. } => {
                write!(f, "the gate did not pass it (verdict {})", verdict.short())
            }
            Closed::NoEvidence { .. } => f.write_str("no evidence: no verdict on it, so it was not promoted"),
            Closed::RolledBack { at } => write!(f, "it was rolled back at {at}"),
            Closed::BeforePolicy { stage } => {
                write!(
                    f,
                    "it is the head of {stage} from before the policy, so nothing shows that it keeps to it"
                )
            }
            Closed::Expired { at } => write!(f, "its promotion expired at {at}"),
        }
    }
}
