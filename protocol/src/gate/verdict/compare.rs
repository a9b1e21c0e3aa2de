//! One metric of the candidate against its absolute bounds and against another run.

use super::figures::{self, Figure};
use super::{Evidence, Reasons};
use crate::gate::policy::{MetricRule, OtherHardware, Pairing, Policy};
use crate::gate::reasons::{Reason, Side, plain};
use crate::gate::report::{Report, Runtime, Scale};
use crate::gate::stats::{
    Call, Comparison, Estimate, Margin, PairError, Question, compare_paired, compare_unpaired,
};

/// A metric and its rule.
pub(super) struct Metric<'a> {
    pub(super) policy: &'a Policy,
    pub(super) name: &'a str,
    pub(super) rule: &'a MetricRule,
}

impl Metric<'_> {
    /// The figure of one side, checked.
    pub(super) fn figure<'e>(
        &self,
        side: Side,
        evidence: &Evidence<'e>,
        reasons: &mut Reasons,
    ) -> Option<Figure<'e>> {
        figures::find(self.policy, self.name, self.rule, side, evidence, reasons)
    }

    /// Holds the value against absolute bounds and says how many there are.
    pub(super) fn bounds(&self, candidate: &Figure<'_>, reasons: &mut Reasons) -> usize {
        let (metric, actual) = (|| self.name.to_owned(), candidate.metric.value);
        let reach = self
            .estimate(candidate)
            .map(|estimate| estimate.bounds(candidate.metric.scale, self.rule.confidence));
        for (expected, is_max) in [(self.rule.max, true), (self.rule.min, false)] {
            let Some(expected) = expected else {
                continue;
            };
            let edge = reach.map(|(low, high)| if is_max { high } else { low });
            let keeps = |value: f64| if is_max { value <= expected } else { value >= expected };
            match edge {
                _ if !keeps(actual) && is_max => {
                    reasons.add(Reason::AboveMax { metric: metric(), expected, actual })
                }
                _ if !keeps(actual) => reasons.add(Reason::BelowMin { metric: metric(), expected, actual }),
                None => reasons.add(Reason::BoundWithoutError { metric: metric() }),
                Some(reach) if !keeps(reach) => {
                    reasons.add(Reason::BoundWithinError { metric: metric(), expected, actual, reach });
                }
                Some(_) => {}
            }
        }
        usize::from(self.rule.max.is_some()) + usize::from(self.rule.min.is_some())
    }

    /// Compares with another run; `None` if that cannot be done, with the reason added.
    pub(super) fn against(
        &self,
        than: Side,
        evidence: &Evidence<'_>,
        candidate: &Figure<'_>,
        margin: Margin,
        reasons: &mut Reasons,
    ) -> Option<Comparison> {
        let mut other = self.figure(than, evidence, reasons)?;
        // A lock file keeps the digest of samples, not the samples: where it is that of the candidate's, they are known.
        if other.samples.is_none()
            && let Some(samples) = candidate.samples
            && other.metric.samples == Some(samples.digest())
        {
            other.samples = Some(samples);
        }
        if !self.are_comparable(than, candidate, &other, reasons) {
            return None;
        }
        let question = Question {
            direction: self.rule.direction,
            scale: candidate.metric.scale,
            margin,
            confidence: self.rule.confidence,
        };
        let comparison = self.compare(&question, than, candidate, &other, reasons)?;
        let (metric, Comparison { regression, lower, upper, margin, .. }) =
            (self.name.to_owned(), comparison);
        match comparison.call {
            Call::NotWorse => {}
            Call::Worse => reasons.add(Reason::Worse {
                metric,
                than,
                regression,
                lower,
                margin,
                confidence: self.rule.confidence,
            }),
            Call::Undecided(samples_needed) => reasons.add(Reason::Inconclusive {
                metric,
                than,
                regression,
                lower,
                upper,
                margin,
                samples_needed,
            }),
            Call::TooFew { have, need } => {
                reasons.add(Reason::TooFewDocuments { metric, than, expected: need, actual: have });
            }
        }
        Some(comparison)
    }

    /// Whether two runs measured the same thing in the same way.
    fn are_comparable(
        &self,
        than: Side,
        candidate: &Figure<'_>,
        other: &Figure<'_>,
        reasons: &mut Reasons,
    ) -> bool {
        let metric = || self.name.to_owned();
        let before = reasons.0.len();
        for (side, figure) in [(Side::Candidate, candidate), (than, other)] {
            if figure.report.suite.is_none() {
                reasons.add(Reason::SuiteUnknown { metric: metric(), side });
            }
        }
        if let (Some(actual), Some(expected)) = (candidate.report.suite, other.report.suite)
            && actual != expected
        {
            reasons.add(Reason::SuiteDiffers { metric: metric(), than, expected, actual });
        }
        if candidate.report.chat_template_sha256.is_some() != other.report.chat_template_sha256.is_some() {
            reasons.add(Reason::ChatTemplateAppliedOnce { metric: metric(), than });
        }
        let setup = |figure: &Figure<'_>| {
            let shots = figure.metric.n_shot.map_or_else(|| "not known".to_owned(), |n| n.to_string());
            let harness = figure.report.harness.name.clone();
            [
                ("the scale", format!("{:?}", figure.metric.scale)),
                ("the number of shots", shots),
                ("the task's version", figure.metric.task_version.clone()),
                ("the harness", harness),
            ]
        };
        for ((what, actual), (_, expected)) in setup(candidate).into_iter().zip(setup(other)) {
            if actual != expected {
                let (expected, actual) = (plain(&expected), plain(&actual));
                reasons.add(Reason::SetupDiffers { metric: metric(), than, what, expected, actual });
            }
        }
        let is_comparable = reasons.0.len() == before;
        self.check_hosts(than, candidate.report, other.report, reasons) && is_comparable
    }

    /// Whether the policy accepts where the two runs were.
    fn check_hosts(&self, than: Side, candidate: &Report, other: &Report, reasons: &mut Reasons) -> bool {
        let mut is_accepted = true;
        match (&candidate.host, &other.host) {
            (Some(ran), Some(before)) if ran.hardware != before.hardware => {
                is_accepted = self.policy.other_hardware == OtherHardware::Warn;
                reasons.add(Reason::HardwareDiffers {
                    than,
                    expected: plain(&before.hardware),
                    actual: plain(&ran.hardware),
                    refused: !is_accepted,
                });
            }
            (ran, before) => {
                for (side, host) in [(Side::Candidate, ran), (than, before)] {
                    if host.is_none() {
                        reasons.add(Reason::HardwareUnknown { side });
                    }
                }
            }
        }
        if candidate.runtime != other.runtime {
            let (expected, actual) = (runtime(&other.runtime), runtime(&candidate.runtime));
            reasons.add(Reason::RuntimeDiffers { than, expected, actual });
        }
        is_accepted
    }

    fn compare(
        &self,
        question: &Question,
        than: Side,
        candidate: &Figure<'_>,
        other: &Figure<'_>,
        reasons: &mut Reasons,
    ) -> Option<Comparison> {
        let metric = || self.name.to_owned();
        let can_pair = question.scale != Scale::Other && self.rule.paired != Pairing::Never;
        if let (true, Some(ours), Some(theirs)) = (can_pair, candidate.samples, other.samples) {
            return match compare_paired(question, ours, theirs, self.rule.min_overlap) {
                Ok(comparison) => Some(comparison),
                Err(error) => {
                    reasons.add(self.unmatched(than, error));
                    None
                }
            };
        }
        if self.rule.paired == Pairing::Required {
            if question.scale == Scale::Other {
                reasons.add(Reason::NotPairable { metric: metric() });
            }
            for (side, figure) in [(Side::Candidate, candidate), (than, other)] {
                if figure.samples.is_none() {
                    reasons.add(Reason::SamplesMissing { metric: metric(), side });
                }
            }
            return None;
        }
        let estimates = [(Side::Candidate, candidate), (than, other)].map(|(side, figure)| {
            let estimate = self.estimate(figure);
            if estimate.is_none() {
                reasons.add(Reason::ErrorMissing { metric: metric(), side });
            } else if figure.samples.is_none() && figure.metric.n.is_none() {
                reasons.add(Reason::SampleCountUnknown { metric: metric(), side });
            }
            estimate
        });
        let [Some(ours), Some(theirs)] = estimates else {
            return None;
        };
        Some(compare_unpaired(question, &ours, &theirs))
    }

    /// By samples where there are any, else by what the report states.
    fn estimate(&self, figure: &Figure<'_>) -> Option<Estimate> {
        match (figure.samples, figure.metric.scale) {
            (Some(samples), scale) if scale != Scale::Other => Estimate::of_samples(samples, scale),
            _ => Estimate::of_report(figure.metric),
        }
    }

    fn unmatched(&self, than: Side, error: PairError) -> Reason {
        let metric = self.name.to_owned();
        match error {
            PairError::NoMean => Reason::NotPairable { metric },
            PairError::Unmatched { both, candidate_only, baseline_only } => Reason::SamplesUnmatched {
                metric,
                than,
                both: both as u64,
                candidate_only: candidate_only as u64,
                other_only: baseline_only as u64,
            },
            PairError::Document { id } => Reason::DocumentDiffers { metric, than, sample: id },
        }
    }
}

fn runtime(runtime: &Runtime) -> String {
    let parts =
        [&runtime.name, &runtime.version, &runtime.kernels].into_iter().filter(|part| !part.is_empty());
    let text = parts.map(|part| plain(part)).collect::<Vec<_>>().join(" ");
    if text.is_empty() { "an unknown runtime".into() } else { text }
}
