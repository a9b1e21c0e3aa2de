//! One figure of one side: found, checked for what makes it useless, and with its samples.

use super::Evidence;
use crate::gate::policy::{MetricRule, Policy};
use crate::gate::reasons::{Reason, Side};
use crate::gate::report::{Metric, Report, Scale};
use crate::gate::samples::Samples;
use crate::gate::stats::Direction;

use super::Reasons;

/// How far a reported value may be from the mean of its samples, relative to it (and to 1): harnesses round.
const ROUNDING: f64 = 1e-6;

/// A figure that can be used.
#[derive(Debug, Clone, Copy)]
pub(super) struct Figure<'a> {
    pub(super) report: &'a Report,
    pub(super) metric: &'a Metric,
    pub(super) samples: Option<&'a Samples>,
}

/// The reported value, for display.
pub(super) fn value(evidence: &Evidence<'_>, name: &str) -> Option<f64> {
    evidence.reports.iter().find_map(|named| named.report.metrics.get(name)).map(|metric| metric.value)
}

/// Finds a figure and checks it; `None` if it cannot be used, with the reason added.
pub(super) fn find<'a>(
    policy: &Policy,
    name: &str,
    rule: &MetricRule,
    side: Side,
    evidence: &Evidence<'a>,
    reasons: &mut Reasons,
) -> Option<Figure<'a>> {
    let metric = || name.to_owned();
    let mut found = evidence
        .reports
        .iter()
        .filter_map(|named| named.report.metrics.get(name).map(|metric| (named.report, metric)));
    let Some((report, figure)) = found.next() else {
        reasons.add(match rule.required {
            true => Reason::MetricMissing { metric: metric(), side },
            false => Reason::OptionalMissing { metric: metric(), side },
        });
        return None;
    };
    if found.next().is_some() {
        reasons.add(Reason::MetricAmbiguous { metric: metric(), side });
        return None;
    }
    let samples = evidence.samples.get(name).copied();
    let is_possible = figure.value.is_finite()
        && figure.stderr.is_none_or(|stderr| stderr.is_finite() && stderr >= 0.0)
        && figure.n != Some(0)
        && (figure.scale != Scale::ExpMean || figure.value > 0.0);
    if !is_possible {
        reasons.add(Reason::FigureImpossible { metric: metric(), side });
        return None;
    }
    if let Some(expected) = figure.n_total
        && figure.n.is_none_or(|n| n < expected)
    {
        reasons.add(Reason::LimitedRun { metric: metric(), side, expected, actual: figure.n });
    }
    let n = figure.n.or(samples.map(|samples| samples.len() as u64));
    if let Some(expected) = rule.min_n
        && n.is_none_or(|n| n < expected)
    {
        reasons.add(Reason::TooFewSamples { metric: metric(), side, expected, actual: n });
    }
    let is_higher = rule.direction == Direction::Higher;
    if figure.higher_is_better.is_some_and(|higher| higher != is_higher) {
        reasons.add(Reason::DirectionContradicts { metric: metric(), side, expected: rule.direction });
    }
    if !policy.suites.is_empty() {
        match report.suite {
            None => reasons.add(Reason::SuiteUnknown { metric: metric(), side }),
            Some(actual) if !policy.suites.contains(&actual) => {
                reasons.add(Reason::SuiteNotAllowed { metric: metric(), side, actual });
            }
            Some(_) => {}
        }
    }
    if let Some(what) = samples.and_then(|samples| disagreement(figure, samples)) {
        reasons.add(Reason::SamplesDisagree { metric: metric(), side, what });
        return None;
    }
    Some(Figure { report, metric: figure, samples })
}

/// In what samples are not those of the figure.
fn disagreement(figure: &Metric, samples: &Samples) -> Option<&'static str> {
    if figure.samples.is_some_and(|digest| digest != samples.digest()) {
        return Some("digest");
    }
    if figure.n.is_some_and(|n| n != samples.len() as u64) {
        return Some("number");
    }
    let mean = samples.mean()?;
    let value = match figure.scale {
        Scale::Mean => mean,
        Scale::ExpMean => libm::exp(mean),
        Scale::MeanOverLn2 => mean / std::f64::consts::LN_2,
        Scale::Other => return None,
    };
    let is_near = (value - figure.value).abs() <= ROUNDING * figure.value.abs().max(1.0);
    (!is_near).then_some("value")
}
