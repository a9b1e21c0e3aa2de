//! May this be opened here: what every door asks before it hands out a byte.

use tokio::sync::watch;
use weighlock_protocol::gate::Outcome;
use weighlock_protocol::gate::policy::Publish;
use weighlock_protocol::statement::{Closed, Grounds, HARDWARE_ANY, Ledger, Ruling, Statement};
use weighlock_protocol::{Artifact, KeyId, ManifestDigest, Reference, Selector, StatementId};

use super::Facts;
use crate::cluster::now;
use crate::error::{Error, Result};

/// What something is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Purpose {
    /// To be used: it needs evidence where there is a policy.
    #[default]
    Use,
    /// To be evaluated, by the holder of this key, who has proven it.
    Evaluate(KeyId),
    /// To be used without evidence, where the policy allows that.
    Ungated,
}

/// Something that may be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admitted {
    /// What the reference means.
    pub digest: ManifestDigest,
    /// Why it may be opened.
    pub grounds: Basis,
}

/// Why it may be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// It has no policy, or it is or was a head.
    Gate(Grounds),
    /// An evaluator asked.
    Evaluator(KeyId),
    /// The policy, set by this statement, lets it be opened without evidence, and somebody asked for that.
    Exempt(StatementId),
}

impl Facts {
    /// Says once which kind of hardware this host opens things for; `any` until then.
    pub fn set_hardware(&self, hardware: &str) {
        let _ = self.inner.hardware.set(hardware.to_owned());
    }

    /// This host's hardware key.
    pub fn hardware(&self) -> &str {
        self.inner.hardware.get().map_or(HARDWARE_ANY, String::as_str)
    }

    /// Wakes those who look at what this host follows.
    pub fn nudge(&self) {
        self.inner.nudges.send_modify(|n| *n += 1);
    }

    /// As it is told to follow channels.
    pub fn nudged(&self) -> watch::Receiver<u64> {
        self.inner.nudges.subscribe()
    }

    /// What a reference means, if it may be opened on this host for that purpose.
    ///
    /// # Errors
    /// It means nothing, or the gate is shut: which evidence is missing, and what would supply it.
    pub fn admit(&self, reference: &Reference, purpose: Purpose) -> Result<Admitted> {
        let artifact = &reference.artifact;
        if let Some(channel) = self.behind(artifact) {
            return Err(Error::refused(format!(
                "this host's store has lost the statement that made the head of {channel}"
            ))
            .hint("it stays shut until another host has sent it again; see `weighlock peers`"));
        }
        let digest = self.resolve(reference)?;
        let ledger = self.ledger();
        // An evaluator may: it is how the verdict comes about.
        if matches!(reference.selector, Selector::Tag(_))
            && !matches!(purpose, Purpose::Evaluate(_))
            && !ledger.may_be_named(artifact, &digest)
        {
            return Err(unproven(reference, &digest));
        }
        let closed = match ledger.may_open(artifact, &digest, self.hardware(), now()) {
            Ok(grounds) => return Ok(Admitted { digest, grounds: Basis::Gate(grounds) }),
            Err(closed) => closed,
        };
        match purpose {
            Purpose::Evaluate(key) if ledger.is_evaluator(&key, artifact.namespace(), now()) => {
                return Ok(Admitted { digest, grounds: Basis::Evaluator(key) });
            }
            Purpose::Evaluate(key) => {
                return Err(Error::refused(format!(
                    "{key} may not open candidates of {}: it holds no evaluator role there",
                    artifact.namespace()
                ))
                .hint("an admin gives it with `weighlock keys grant evaluator KEY`"));
            }
            Purpose::Ungated => {
                let policy = ledger.policy_of(artifact).and_then(|status| status.in_force);
                let allows = policy.filter(|(.., policy)| policy.as_ref().is_some_and(|p| p.allow_ungated));
                let Some((statement, ..)) = allows else {
                    return Err(Error::refused(format!("the policy of {artifact} does not allow --ungated"))
                        .hint("`allow_ungated = true` in gate.toml would, see `weighlock policy set`"));
                };
                return Ok(Admitted { digest, grounds: Basis::Exempt(statement) });
            }
            Purpose::Use => {}
        }
        let named = ledger.publishes_of(&digest).find(|p| p.publish.artifact == *artifact);
        let tag = named.map_or_else(|| reference.to_string(), |p| format!("{artifact}:{}", p.publish.tag));
        Err(Error::refused(format!("{reference} does not open on {}: {closed}", self.hardware()))
            .hint(advice(&closed, &tag)))
    }

    /// Who asks to open a candidate to evaluate it, proven by a signature over `digest` that is not older than a minute.
    ///
    /// # Errors
    /// Not such a signature.
    pub fn evaluator(&self, proof: &[u8], digest: &ManifestDigest) -> Result<KeyId> {
        let bad = |what: &str| Error::refused(format!("the evaluator's signature {what}"));
        let envelope =
            weighlock_protocol::statement::Envelope::parse(proof).map_err(|e| bad(&e.to_string()))?;
        let asked: EvaluatorAsks =
            serde_json::from_slice(envelope.payload()).map_err(|_| bad("is over something else"))?;
        let [signature] = envelope.signatures() else { return Err(bad("is not the only one")) };
        // No statement can pass for it, nor it for a statement.
        debug_assert!(Statement::parse(envelope.payload()).is_err());
        let fresh = now().0.abs_diff(asked.time) <= EVALUATOR_ASKS_SECS;
        if asked.open != *digest || asked.host != self.host() || !fresh {
            return Err(bad("is for another artifact, host or time").hint("run the command again"));
        }
        if !envelope.is_signed_by(&signature.key) {
            return Err(bad("is not valid"));
        }
        Ok(signature.key)
    }
}

/// Whether the policy lets a manifest be published: with `publish = "requires-verdict"` only what has passed.
///
/// # Errors
/// It has not.
pub(super) fn has_verdict(ledger: &Ledger, artifact: &Artifact, digest: &ManifestDigest) -> Result<()> {
    let Some(status) = ledger.policy_of(artifact) else { return Ok(()) };
    let Some((_, _, policy, Some(rules))) = status.in_force else {
        return Err(Error::refused(format!(
            "no policy of {artifact} is in force that this release can read"
        ))
        .hint("nothing is published there until one is; see `weighlock policy show NS/NAME`"));
    };
    let passed = |ruling: &Ruling| ruling.outcome == Outcome::Pass && ruling.policy == policy;
    if rules.publish == Publish::Open
        || ledger.verdicts_on(artifact, digest).iter().any(|verdict| passed(&verdict.body.ruling))
    {
        return Ok(());
    }
    Err(Error::refused(format!("the policy of {artifact} lets only be published what the gate has passed")).hint(
        "`weighlock gate PATH --name NS/NAME --out verdict.dsse`, `weighlock statement import verdict.dsse`, then add",
    ))
}

/// A tag that its policy lets mean nothing yet.
fn unproven(reference: &Reference, digest: &ManifestDigest) -> Error {
    Error::refused(format!(
        "{reference} means nothing yet: its policy asks for a verdict that passed {}, and none is on this host",
        digest.short()
    ))
    .hint(format!(
        "`weighlock eval {reference} --run CMD`, then `weighlock gate {reference} --out verdict.dsse` and `weighlock statement import verdict.dsse`"
    ))
}

/// How old an evaluator's signature may be, in seconds.
const EVALUATOR_ASKS_SECS: u64 = 60;

/// What an evaluator signs to open a candidate.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EvaluatorAsks {
    /// What it opens.
    pub(crate) open: ManifestDigest,
    /// On which host.
    pub(crate) host: KeyId,
    /// When, Unix seconds.
    pub(crate) time: u64,
}

fn advice(closed: &Closed, tag: &str) -> String {
    match closed {
        Closed::NoEvidence { passed: true, .. } => format!("`weighlock promote {tag} --to STAGE`"),
        Closed::NoEvidence { failed: Some(verdict), .. } => {
            format!("`weighlock log {tag}` names the reasons of verdict {}", verdict.short())
        }
        Closed::NoEvidence { .. } => format!(
            "`weighlock eval {tag} --run CMD`, then `weighlock gate {tag} --out verdict.dsse`, `weighlock statement import verdict.dsse` and `weighlock promote {tag} --to STAGE`"
        ),
        Closed::RolledBack { .. } => {
            format!("`weighlock log {tag}` says why; a new verdict and a promotion bring it back")
        }
        Closed::BeforePolicy { stage } => {
            format!(
                "`weighlock gate {tag} --out verdict.dsse`, import it, and `weighlock promote {tag} --to {stage}`"
            )
        }
        Closed::Expired { .. } => format!("`weighlock promote {tag} --to STAGE` renews it"),
    }
}
