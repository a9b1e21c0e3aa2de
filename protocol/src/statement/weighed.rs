//! What was measured and what the gate said: evaluations and verdicts, and which of them count.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::body::{Kind, LABEL_LEN_MAX, NOTE_LEN_MAX, text};
use super::ledger::Ledger;
use crate::gate::Outcome;
use crate::id::{KeyId, ManifestDigest, Sha256, StatementId};
use crate::names::Artifact;
use crate::time::UnixTime;

/// Most figures that an evaluation repeats from its report, and most reasons that a verdict gives.
pub const LINES_MAX: usize = 64;
/// Most reports that a verdict names on one side.
pub const REPORTS_MAX: usize = 256;
const SANDBOX_FORM: &str = "what it says of its sandbox is too long or holds control characters";

/// Somebody ran a suite on an artifact. The report itself is in the evidence, an artifact of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evaluate {
    /// `ns/name`.
    pub artifact: Artifact,
    /// What was evaluated. It is the statement's subject.
    pub manifest: ManifestDigest,
    /// What the report says.
    pub findings: Findings,
}

/// What an [`Evaluate`] says beside its subject.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Findings {
    /// The manifest that holds report, samples and log.
    pub evidence: ManifestDigest,
    /// Sum of its files' sizes, in bytes.
    pub evidence_bytes: u64,
    /// SHA-256 of the report's bytes.
    pub report: Sha256,
    /// What stands for the suite, if the report says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suite: Option<Sha256>,
    /// Name and version of what ran it.
    pub harness: String,
    /// Hardware key of the host that it ran on; `any` if that is not known.
    pub hardware: String,
    /// Name and version of what ran the model.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub runtime: String,
    /// How it was shut in, in one line; empty if the report was made elsewhere.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// The first [`LINES_MAX`] figures as text, for people; the report is what counts.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub figures: BTreeMap<String, String>,
}

/// The gate weighed an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// `ns/name`.
    pub artifact: Artifact,
    /// The candidate. It is the statement's subject.
    pub manifest: ManifestDigest,
    /// What the gate said, and on what.
    pub ruling: Ruling,
}

/// What a [`Verdict`] says beside its subject.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ruling {
    /// Pass, fail or no evidence.
    pub outcome: Outcome,
    /// Digest of the policy.
    pub policy: Sha256,
    /// What it was held against.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<ManifestDigest>,
    /// What drift was counted from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pinned: Option<ManifestDigest>,
    /// Hardware key that the candidate was evaluated on; `any` if that is not known.
    pub hardware: String,
    /// SHA-256 of the candidate's reports that it rests on.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub reports: BTreeSet<Sha256>,
    /// SHA-256 of the baseline's reports.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub baseline_reports: BTreeSet<Sha256>,
    /// SHA-256 of the whole verdict in its JSON form, as `weighlock gate --verdict-out` writes it.
    pub verdict: Sha256,
    /// How the evaluator was shut in, in one line, where the gate itself ran it; empty if it read reports.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// Why, the worst first: the first [`LINES_MAX`] lines.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
}

/// An evaluation or a verdict that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said<T> {
    /// Its statement.
    pub id: StatementId,
    /// Its author.
    pub by: KeyId,
    /// When, by the author's clock.
    pub time: UnixTime,
    /// What it says.
    pub body: T,
}

/// Evaluations and verdicts that count, by the artifact that they are about.
#[derive(Debug, Clone, Default)]
pub(super) struct Weighed {
    by_manifest: BTreeMap<ManifestDigest, BTreeSet<StatementId>>,
    /// Evaluations by the manifest that holds their report.
    by_evidence: BTreeMap<ManifestDigest, BTreeSet<StatementId>>,
}

impl Weighed {
    pub(super) fn insert(&mut self, id: StatementId, kind: &Kind) {
        for (index, manifest) in self.places(kind) {
            index.entry(manifest).or_default().insert(id);
        }
    }

    pub(super) fn remove(&mut self, id: StatementId, kind: &Kind) {
        for (index, manifest) in self.places(kind) {
            if let Some(ids) = index.get_mut(&manifest) {
                ids.remove(&id);
                if ids.is_empty() {
                    index.remove(&manifest);
                }
            }
        }
    }

    /// What was said of a manifest.
    pub(super) fn of_manifest(&self, manifest: &ManifestDigest) -> impl Iterator<Item = &StatementId> {
        self.by_manifest.get(manifest).into_iter().flatten()
    }

    fn places(
        &mut self,
        kind: &Kind,
    ) -> Vec<(&mut BTreeMap<ManifestDigest, BTreeSet<StatementId>>, ManifestDigest)> {
        match kind {
            Kind::Evaluate(said) => {
                vec![(&mut self.by_manifest, said.manifest), (&mut self.by_evidence, said.findings.evidence)]
            }
            Kind::Verdict(said) => vec![(&mut self.by_manifest, said.manifest)],
            _ => Vec::new(),
        }
    }
}

impl Ledger {
    /// The evaluations of a manifest that count, by time. Only those that speak of `artifact`: who evaluates in one
    /// namespace has no say in another that means the same manifest.
    pub fn evaluations_of(&self, artifact: &Artifact, manifest: &ManifestDigest) -> Vec<Said<Evaluate>> {
        self.said_of(manifest, |kind| match kind {
            Kind::Evaluate(said) if said.artifact == *artifact => Some(said.clone()),
            _ => None,
        })
    }

    /// The verdicts on a manifest that count, by time, of `artifact` alone.
    pub fn verdicts_on(&self, artifact: &Artifact, manifest: &ManifestDigest) -> Vec<Said<Verdict>> {
        self.said_of(manifest, |kind| match kind {
            Kind::Verdict(said) if said.artifact == *artifact => Some(said.clone()),
            _ => None,
        })
    }

    /// Whether an evaluation that counts has its report in this manifest.
    pub fn is_evidence(&self, manifest: &ManifestDigest) -> bool {
        self.weighed.by_evidence.contains_key(manifest)
    }

    /// What the evaluations that count say of the size of a manifest that holds their report, in bytes. More than one
    /// figure means that somebody was wrong.
    pub fn evidence_sizes(&self, manifest: &ManifestDigest) -> BTreeSet<u64> {
        let ids = self.weighed.by_evidence.get(manifest).into_iter().flatten();
        let said = ids.filter_map(|id| match &self.statement(id)?.kind {
            Kind::Evaluate(said) => Some(said.findings.evidence_bytes),
            _ => None,
        });
        said.collect()
    }

    /// The manifests that hold the reports of evaluations that count.
    pub fn evidence(&self) -> impl Iterator<Item = &ManifestDigest> {
        self.weighed.by_evidence.keys()
    }

    fn said_of<T>(&self, manifest: &ManifestDigest, body: impl Fn(&Kind) -> Option<T>) -> Vec<Said<T>> {
        let ids = self.weighed.by_manifest.get(manifest).into_iter().flatten();
        let mut all: Vec<Said<T>> = ids
            .filter_map(|id| {
                let s = self.statement(id)?;
                Some(Said { id: *id, by: s.by, time: s.time, body: body(&s.kind)? })
            })
            .collect();
        all.sort_by_key(|said| (said.time, said.id));
        all
    }
}

impl Findings {
    pub(super) fn check_form(&self) -> Result<(), &'static str> {
        if self.figures.len() > LINES_MAX {
            return Err("it repeats more figures than are accepted");
        }
        let figures = self.figures.iter().flat_map(|(name, value)| [name, value]);
        let named = [&self.harness, &self.hardware, &self.runtime];
        for field in named.into_iter().chain(figures) {
            text(field, LABEL_LEN_MAX, "a name or figure is too long or holds control characters")?;
        }
        text(&self.sandbox, NOTE_LEN_MAX, SANDBOX_FORM)
    }
}

impl Ruling {
    pub(super) fn check_form(&self) -> Result<(), &'static str> {
        if self.reasons.len() > LINES_MAX {
            return Err("it gives more reasons than are accepted");
        }
        if self.reports.len() > REPORTS_MAX || self.baseline_reports.len() > REPORTS_MAX {
            return Err("it names more reports than are accepted");
        }
        text(&self.hardware, LABEL_LEN_MAX, "its hardware key is too long or holds control characters")?;
        let mut reasons = self.reasons.iter();
        reasons.try_for_each(|reason| {
            text(reason, NOTE_LEN_MAX, "a reason is too long or holds control characters")
        })?;
        text(&self.sandbox, NOTE_LEN_MAX, SANDBOX_FORM)
    }
}
