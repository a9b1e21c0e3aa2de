//! Two runs of which only value, standard error and size are known, or that are not to be paired.

use super::clusters::{Moments, Sums, document, effective, number};
use super::{Comparison, Found, Method, Question, Test, binary};
use crate::gate::report::{Metric, Scale};
use crate::gate::samples::Samples;

/// What pseudo-counts are added for where an error is needed before a confidence is known.
const CONFIDENCE_USUAL: f64 = 0.95;

/// One run's value with its error, on the scale that samples have: logarithms where the metric is a perplexity.
#[derive(Debug, Clone, Copy)]
pub struct Estimate {
    value: f64,
    moments: Moments,
    samples: Option<u64>,
    documents: Option<u64>,
    independent: Option<f64>,
    /// Right-or-wrong scores of independent samples, as far as value and error can tell.
    is_binary: bool,
}

impl Estimate {
    /// By what a report states. `None` without a standard error, with one of 0 that right-or-wrong scores do not explain,
    /// and for a perplexity that is not above 0.
    pub fn of_report(metric: &Metric) -> Option<Self> {
        let stderr = metric.stderr?;
        let (value, stderr) = match metric.scale {
            Scale::ExpMean if metric.value > 0.0 => (libm::log(metric.value), stderr / metric.value),
            Scale::ExpMean => return None,
            _ => (metric.value, stderr),
        };
        let moments = Moments { variance: stderr * stderr, third: 0.0, tails: 0.0 };
        let independent = metric.n.map(|n| n as f64);
        let estimate =
            Self { value, moments, samples: metric.n, documents: metric.n, independent, is_binary: false };
        let estimate = estimate.recognized(metric.scale);
        (estimate.moments.variance > 0.0).then_some(estimate)
    }

    /// The standard error of the value as a report states it.
    pub fn stderr(&self, scale: Scale) -> f64 {
        let stderr = libm::sqrt(self.moments.variance.max(0.0));
        match scale {
            Scale::ExpMean => stderr * libm::exp(self.value),
            _ => stderr,
        }
    }

    /// By its samples, clustered by document. `None` without samples, for [`Scale::Other`], and where samples of several
    /// documents all score the same, which right-or-wrong scores alone explain.
    pub fn of_samples(samples: &Samples, scale: Scale) -> Option<Self> {
        let unit = match scale {
            Scale::Other => return None,
            Scale::MeanOverLn2 => std::f64::consts::LN_2,
            Scale::Mean | Scale::ExpMean => 1.0,
        };
        if samples.is_empty() {
            return None;
        }
        let (numbers, count) = number(samples.iter().map(document));
        let mut documents = vec![Sums::default(); count];
        for (sample, number) in samples.iter().zip(numbers) {
            documents[number].add(sample);
        }
        let whole = Sums::total(documents.iter());
        let influences: Vec<f64> = documents.iter().map(|one| one.influence(&whole) / unit).collect();
        let estimate = Self {
            value: whole.mean() / unit,
            moments: Moments::of(&influences),
            samples: Some(samples.len() as u64),
            documents: Some(count as u64),
            independent: Some(effective(documents.iter().map(|one| one.weight / whole.weight))),
            is_binary: false,
        };
        let mut estimate = estimate.recognized(scale);
        let plain = |value: f64| value == 0.0 || value == 1.0;
        if estimate.moments.variance <= 0.0 && scale == Scale::Mean && samples.iter().all(|s| plain(s.value))
        {
            // All right or all wrong, in documents of several samples.
            estimate.moments.variance = binary::smoothed(estimate.value, count as f64, CONFIDENCE_USUAL).1;
        }
        // One document decides nothing, and is said to.
        (estimate.moments.variance > 0.0 || count < 2).then_some(estimate)
    }

    /// One-sided confidence bounds of the value itself, in the metric's own unit.
    pub fn bounds(&self, scale: Scale, confidence: f64) -> (f64, f64) {
        let df = self.independent.map_or(f64::INFINITY, |n| n - 1.0);
        let (below, above) = self.moments.spread(df).reach(confidence);
        let back = |x: f64| if scale == Scale::ExpMean { libm::exp(x) } else { x };
        (back(self.value - below), back(self.value + above))
    }

    /// Says whether these are right-or-wrong scores; if they are all right or all wrong, their error is not 0.
    fn recognized(mut self, scale: Scale) -> Self {
        let n = self.samples.filter(|_| self.samples == self.documents).map_or(0.0, |n| n as f64);
        self.is_binary =
            scale == Scale::Mean && binary::looks_binary(self.value, self.moments.variance.sqrt(), n);
        if self.is_binary && self.moments.variance <= 0.0 {
            self.moments.variance = binary::smoothed(self.value, n, CONFIDENCE_USUAL).1;
        }
        self
    }
}

/// Compares two runs as if they were independent. If they scored the same samples this is too wide, never too narrow,
/// as long as both find the same samples hard.
pub fn compare_unpaired(question: &Question, candidate: &Estimate, baseline: &Estimate) -> Comparison {
    let test = Test::new(question, baseline.value);
    let is_binary = candidate.is_binary && baseline.is_binary;
    let (below, above) = if is_binary {
        binary_reach(question, &test, candidate, baseline)
    } else {
        let ours = candidate.moments.times(test.sign);
        let theirs = baseline.moments.times(-(test.sign + test.tilt));
        let moments = ours.plus(&theirs);
        // Welch and Satterthwaite; a size that is not known counts as large.
        let lost = |variance: f64, one: &Estimate| {
            one.independent.map_or(0.0, |n| variance * variance / (n - 1.0).max(1.0))
        };
        let df = moments.variance * moments.variance
            / (lost(ours.variance, candidate) + lost(theirs.variance, baseline));
        moments.spread(if df.is_nan() { 1.0 } else { df }).reach(question.confidence)
    };
    let least = |a: Option<u64>, b: Option<u64>| a.zip(b).map(|(a, b)| a.min(b));
    test.answer(
        question,
        Found {
            base: baseline.value,
            candidate: candidate.value,
            below,
            above,
            method: if is_binary { Method::UnpairedBinary } else { Method::Unpaired },
            samples: least(candidate.samples, baseline.samples),
            documents: least(candidate.documents, baseline.documents),
            independent: candidate.independent.zip(baseline.independent).map(|(a, b)| a.min(b)),
        },
    )
}

/// Distances of the bounds from the plain estimate.
fn binary_reach(question: &Question, test: &Test, candidate: &Estimate, baseline: &Estimate) -> (f64, f64) {
    let smooth = |one: &Estimate| {
        binary::smoothed(one.value, one.samples.map_or(0.0, |n| n as f64), question.confidence)
    };
    let ((c, c_variance), (b, b_variance)) = (smooth(candidate), smooth(baseline));
    let slope = test.sign + test.tilt;
    let reach = super::special::normal_quantile(question.confidence)
        * (c_variance + slope * slope * b_variance).sqrt();
    let shift = test.sign * ((c - b) - (candidate.value - baseline.value));
    ((reach - shift).max(0.0), (reach + shift).max(0.0))
}
