//! One entry of the lock file: made from an artifact and its reports, and turned back into what the gate compares.

use std::collections::BTreeSet;

use super::{File, Kind, LockError, Package, SHOWN_CHARS_MAX, TARGETS_MAX, Target, one_line, refuse};
use crate::gate::report::REPORT_VERSION;
use crate::gate::{Metric, Report, ours};
use crate::id::{ManifestDigest, Sha256};
use crate::manifest::contract::CONTRACT_VERSION;
use crate::manifest::{Contract, LAYERS_MAX, Manifest, path_is_safe};
use crate::names::{Artifact, Tag};

/// Largest integer that every TOML reader takes.
const INTEGER_MAX: u64 = i64::MAX as u64;

impl Package {
    /// Pins an artifact under its name and tag, with what was measured on it. `channel` is left open.
    ///
    /// # Errors
    /// What [`super::Lock::set`] refuses of one package.
    pub fn new(
        name: Artifact,
        version: Tag,
        manifest: &Manifest,
        contract: &Contract,
        targets: Vec<Target>,
    ) -> Result<Self, LockError> {
        let file = |layer: &crate::manifest::Layer| File {
            path: layer.path.clone(),
            size: layer.size,
            sha256: layer.sha256,
            blake3: layer.id,
        };
        let mut package = Self {
            name,
            version,
            channel: None,
            kind: if contract.adapter.is_some() { Kind::Adapter } else { Kind::Base },
            digest: manifest.digest(),
            files: manifest.files().iter().map(file).collect(),
            contract: without_tensors(contract),
            targets,
        };
        package.make_canonical()?;
        Ok(package)
    }

    /// What its files say about it, without the tensor index; `tensor_root` stands for that.
    pub fn contract(&self) -> &Contract {
        &self.contract
    }

    /// Sum of the sizes of the files, in bytes.
    pub fn total_bytes(&self) -> u64 {
        self.files.iter().fold(0u64, |sum, file| sum.saturating_add(file.size))
    }

    /// The hardware keys that it is pinned for; none means all.
    pub fn hardware(&self) -> BTreeSet<&str> {
        self.targets.iter().map(|target| target.host.hardware.as_str()).collect()
    }

    /// The baseline for the gate: the report of each target, bound to this artifact, with the digest of its stored
    /// bytes. In the order of the targets.
    pub fn reports(&self) -> impl Iterator<Item = (Sha256, Report)> {
        let bound = |target: &Target| Report { artifact: Some(self.digest), ..target.report() };
        self.targets.iter().map(move |target| (target.report_sha256, bound(target)))
    }

    /// What is left of this package once `newer` is pinned.
    pub(super) fn beside(&self, newer: &Self) -> Option<Self> {
        if self.name != newer.name {
            return Some(self.clone());
        }
        if newer.targets.is_empty() {
            return None;
        }
        let taken = newer.hardware();
        let mut left = self.clone();
        left.targets.retain(|target| !taken.contains(target.host.hardware.as_str()));
        (!left.targets.is_empty()).then_some(left)
    }

    pub(super) fn make_canonical(&mut self) -> Result<(), LockError> {
        self.files.sort_by(|a, b| a.path.cmp(&b.path));
        self.targets.sort_by(|a, b| a.key().cmp(&b.key()));
        self.check().or_else(|reason| refuse(format!("package {} {}: {reason}", self.name, self.version)))
    }

    /// What types cannot say. Files and targets are in order.
    fn check(&self) -> Result<(), String> {
        if self.files.len() > LAYERS_MAX {
            return Err(format!("{} files are more than the {LAYERS_MAX} accepted", self.files.len()));
        }
        if self.targets.len() > TARGETS_MAX {
            return Err(format!("{} targets are more than the {TARGETS_MAX} accepted", self.targets.len()));
        }
        for file in &self.files {
            let path = || one_line(&file.path, SHOWN_CHARS_MAX);
            if !path_is_safe(&file.path) {
                return Err(format!("the path `{}` leaves its directory or is too long", path()));
            }
            integer(Some(file.size), || format!("the size of `{}`", path()))?;
        }
        if let Some(pair) = self.files.windows(2).find(|pair| pair[0].path == pair[1].path) {
            return Err(format!("the file `{}` is there twice", one_line(&pair[0].path, SHOWN_CHARS_MAX)));
        }
        integer(Some(self.total_bytes()), || "total_bytes".into())?;
        integer(self.contract.param_count, || "param_count".into())?;
        integer(self.contract.max_seq_len, || "max_seq_len".into())?;
        integer(self.contract.adapter.as_ref().and_then(|adapter| adapter.r), || "adapter.r".into())?;
        for target in &self.targets {
            target.check().map_err(|reason| format!("target {}: {reason}", target.shown()))?;
        }
        if let Some(pair) = self.targets.windows(2).find(|pair| pair[0].key() == pair[1].key()) {
            return Err(format!("two targets are of one suite on {}; keep one", pair[0].shown()));
        }
        Ok(())
    }
}

impl Target {
    /// What a report says. `digest` is the SHA-256 of its canonical bytes, `evidence` the artifact that holds it.
    ///
    /// # Errors
    /// A report that does not name its hardware, or that [`ours::check`] refuses.
    pub fn of_report(
        report: &Report,
        digest: Sha256,
        evidence: Option<ManifestDigest>,
    ) -> Result<Self, LockError> {
        let Some(host) = report.host.clone() else {
            return refuse(
                "the report does not say where it ran; name the hardware key in `host.hardware`".into(),
            );
        };
        let target = Self {
            host,
            runtime: report.runtime.clone(),
            report_sha256: digest,
            evidence,
            suite: report.suite,
            harness: report.harness.clone(),
            seed: report.seed.clone(),
            chat_template_sha256: report.chat_template_sha256,
            metrics: report.metrics.clone(),
        };
        target.check().or_else(refuse)?;
        Ok(target)
    }

    /// The report as far as the gate needs it for a baseline: all but the artifact (see [`Package::reports`]) and the
    /// time. It is not the report that `report_sha256` names.
    pub fn report(&self) -> Report {
        Report {
            version: REPORT_VERSION,
            artifact: None,
            suite: self.suite,
            harness: self.harness.clone(),
            runtime: self.runtime.clone(),
            host: Some(self.host.clone()),
            seed: self.seed.clone(),
            time: None,
            chat_template_sha256: self.chat_template_sha256,
            metrics: self.metrics.clone(),
        }
    }

    fn key(&self) -> (&str, Option<Sha256>) {
        (&self.host.hardware, self.suite)
    }

    fn shown(&self) -> String {
        one_line(&self.host.hardware, SHOWN_CHARS_MAX)
    }

    fn check(&self) -> Result<(), String> {
        if self.host.hardware.is_empty() {
            return Err("the hardware key is empty; write it as vendor/arch, such as nvidia/sm_90".into());
        }
        ours::check(&self.report()).map_err(|error| error.0)?;
        integer(self.host.memory_gib, || "memory_gib".into())?;
        self.metrics.iter().try_for_each(|(name, metric)| {
            let Metric { n, n_total, n_shot, .. } = metric;
            let all = [("n", n), ("n_total", n_total), ("n_shot", n_shot)];
            all.into_iter().try_for_each(|(key, value)| integer(*value, || format!("{key} of metric {name}")))
        })
    }
}

fn integer(value: Option<u64>, what: impl Fn() -> String) -> Result<(), String> {
    match value {
        Some(value) if value > INTEGER_MAX => Err(format!("{} is {value}, over {INTEGER_MAX}", what())),
        _ => Ok(()),
    }
}

fn without_tensors(contract: &Contract) -> Contract {
    Contract {
        version: CONTRACT_VERSION,
        format: contract.format,
        architecture: contract.architecture.clone(),
        param_count: contract.param_count,
        precision: contract.precision.clone(),
        quantization: contract.quantization.clone(),
        max_seq_len: contract.max_seq_len,
        tokenizer_sha256: contract.tokenizer_sha256,
        chat_template_sha256: contract.chat_template_sha256,
        generation_config_sha256: contract.generation_config_sha256,
        prompt_schema: contract.prompt_schema.clone(),
        base_model: contract.base_model.clone(),
        adapter: contract.adapter.clone(),
        datasets: contract.datasets.clone(),
        lineage: contract.lineage.clone(),
        mlflow: None,
        tensor_root: contract.tensor_root,
        tensors: Vec::new(),
    }
}
