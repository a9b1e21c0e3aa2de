//! Tests of verdicts: each rule that fails closed, what passes, and properties of all verdicts.

mod properties;
mod rules;

use std::collections::BTreeMap;

use super::*;
use crate::gate::report::{HostProfile, Metric, REPORT_VERSION, Scale};
use crate::gate::samples::Sample;

/// One side, owned.
#[derive(Debug, Clone)]
struct Run {
    digest: ManifestDigest,
    contract: Contract,
    report: Report,
    samples: BTreeMap<String, Samples>,
}

impl Run {
    /// A run of `losses`, one document each.
    fn new(id: u8, losses: &[f64]) -> Self {
        let report = Report {
            version: REPORT_VERSION,
            artifact: Some(ManifestDigest([id; 32])),
            suite: Some(Sha256([9; 32])),
            harness: Default::default(),
            runtime: Default::default(),
            host: Some(HostProfile {
                hardware: "cpu/x86-64-v4".into(),
                model: String::new(),
                memory_gib: None,
            }),
            seed: None,
            time: None,
            chat_template_sha256: None,
            metrics: BTreeMap::new(),
        };
        let mut run = Self {
            digest: ManifestDigest([id; 32]),
            contract: Contract::default(),
            report,
            samples: BTreeMap::new(),
        };
        run.set("eval_loss", Scale::Mean, losses);
        run
    }

    fn set(&mut self, name: &str, scale: Scale, values: &[f64]) {
        let sample = |(i, value): (usize, &f64)| Sample {
            id: format!("doc-{i:04}"),
            cluster: String::new(),
            value: *value,
            weight: 1.0,
        };
        let samples = Samples::new(values.iter().enumerate().map(sample).collect()).expect("good samples");
        let mean = samples.mean().expect("samples");
        let metric = Metric {
            value: if scale == Scale::ExpMean { libm::exp(mean) } else { mean },
            stderr: Some(0.01),
            n: Some(samples.len() as u64),
            n_total: Some(samples.len() as u64),
            higher_is_better: None,
            scale,
            task_version: String::new(),
            n_shot: None,
            samples: Some(samples.digest()),
        };
        self.report.metrics.insert(name.into(), metric);
        self.samples.insert(name.into(), samples);
    }

    fn metric(&mut self) -> &mut Metric {
        self.report.metrics.get_mut("eval_loss").expect("it is there")
    }

    fn evidence(&self) -> Evidence<'_> {
        Evidence {
            digest: Some(self.digest),
            contract: Some(&self.contract),
            reports: vec![NamedReport { digest: Sha256(self.digest.0), report: &self.report }],
            samples: self.samples.iter().map(|(name, samples)| (name.clone(), samples)).collect(),
        }
    }
}

fn policy(rule: &str) -> Policy {
    Policy::parse(&format!("[metric.eval_loss]\ndirection = \"lower\"\n{rule}\n")).expect("a policy")
}

fn weigh(policy: &Policy, candidate: &Run, baseline: Option<&Run>) -> Verdict {
    let baseline = baseline.map(Run::evidence);
    judge(&Input { policy, candidate: candidate.evidence(), baseline, pinned: None, files: None })
}

fn codes(verdict: &Verdict) -> Vec<String> {
    verdict.reasons.iter().map(|finding| finding.reason.code()).collect()
}

/// Losses of 60 documents that differ a little from each other, with `shift` and a small change that averages out.
fn losses(shift: f64) -> Vec<f64> {
    (0..60)
        .map(|i| {
            2.0 + 0.1 * f64::from(i % 7) + 1e-6 * f64::from(i) + shift * (1.0 + 0.2 * f64::from(i % 3 - 1))
        })
        .collect()
}
