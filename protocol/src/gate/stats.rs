//! Compares two runs of one suite: how much worse the candidate is, and how sure that is.
//!
//! Every comparison is a one-sided test each way on the same interval: the candidate is *not worse* if the upper
//! confidence bound of its regression is within the margin, *worse* if the lower bound is beyond it, and *undecided*
//! between. With confidence `c`, a candidate whose true regression is the margin is found not worse at most `1 - c` of
//! the time, and worse at most `1 - c` of the time. With a margin of 0 a candidate passes that is shown to be no worse
//! at all: one that is better beyond doubt, or whose every sample is the same.
//!
//! `weighlock-sim calibrate` measures both rates on normal, log-normal, right-or-wrong and clustered data. What no
//! sample shows no method sees: a failure of one request in 1,000 needs thousands of samples.

mod binary;
mod bound;
mod clusters;
mod paired;
mod special;
mod unpaired;

#[cfg(test)]
mod tests;

use serde::Serialize;

use super::report::Scale;

pub use bound::independent_min;
pub use paired::{PairError, compare_paired};
pub use unpaired::{Estimate, compare_unpaired};

/// How much worse a candidate may be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Margin {
    /// In the metric's own unit.
    Absolute(f64),
    /// As a share of the baseline's value without its sign: 0.005 is half a per cent.
    Relative(f64),
}

/// Which way a metric is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Losses, perplexities, latencies.
    Lower,
    /// Accuracies.
    Higher,
}

/// What is asked of two runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Question {
    /// Which way is better.
    pub direction: Direction,
    /// How the value comes from samples.
    pub scale: Scale,
    /// How much worse is accepted; finite, 0 or more.
    pub margin: Margin,
    /// Of each one-sided bound; in (0.5, 1).
    pub confidence: f64,
}

/// How a comparison was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Sample by sample; jackknife over clusters, Student t and Hall's skew correction.
    Paired,
    /// Sample by sample, right or wrong: Tango's score interval.
    PairedBinary,
    /// Two independent runs: Welch's t, with the skew correction where samples show it.
    Unpaired,
    /// Two independent runs of right-or-wrong scores: Agresti and Caffo's interval.
    UnpairedBinary,
}

/// What a comparison says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// Worse by no more than the margin, at the confidence asked for.
    NotWorse,
    /// Worse by more than the margin, at the confidence asked for.
    Worse,
    /// Neither is shown. The number of samples that would decide if the figures stayed as they are, where that can be
    /// told.
    Undecided(Option<u64>),
    /// Too few independent documents to decide anything.
    TooFew {
        /// Documents that count, after allowing for unequal sizes.
        have: u64,
        /// Documents that the confidence needs: [`independent_min`].
        need: u64,
    },
}

/// The outcome of a comparison, in the metric's own unit. A regression above 0 is worse, whatever the direction.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Comparison {
    /// What it says.
    pub call: Call,
    /// How it was made.
    pub method: Method,
    /// The baseline's value on the samples that were compared.
    pub baseline: f64,
    /// The candidate's.
    pub candidate: f64,
    /// How much worse the candidate is.
    pub regression: f64,
    /// Lower confidence bound of that.
    pub lower: f64,
    /// Upper confidence bound of that.
    pub upper: f64,
    /// The margin.
    pub margin: f64,
    /// Samples that were compared; pairs if paired, of the smaller run otherwise, where known.
    pub samples: Option<u64>,
    /// Independent documents among them, where known.
    pub documents: Option<u64>,
}

/// The test on the scale that the samples have: `sign · candidate - (sign + tilt) · baseline <= limit`, up to a
/// constant that makes the left side the regression at the measured baseline.
///
/// A relative margin, and an absolute one of a perplexity, move with the baseline, which is measured, too; `tilt`
/// carries that to first order.
#[derive(Debug, Clone, Copy)]
struct Test {
    sign: f64,
    tilt: f64,
    limit: f64,
}

impl Test {
    /// For a baseline of `base` on the scale of samples (a log-perplexity if the metric is a perplexity). The limit is
    /// infinite if the margin is as large as the whole of a positive metric that should be high.
    fn new(question: &Question, base: f64) -> Self {
        let sign = match question.direction {
            Direction::Lower => 1.0,
            Direction::Higher => -1.0,
        };
        let (limit, tilt) = match (question.scale, question.margin) {
            (Scale::ExpMean, Margin::Relative(share)) => (log_limit(sign, share), 0.0),
            (Scale::ExpMean, Margin::Absolute(margin)) => {
                let share = margin / libm::exp(base);
                (log_limit(sign, share), -share / (1.0 + sign * share))
            }
            (_, Margin::Absolute(margin)) => (margin, 0.0),
            (_, Margin::Relative(share)) => (share * base.abs(), if base < 0.0 { -share } else { share }),
        };
        Self { sign, tilt: if limit.is_finite() { tilt } else { 0.0 }, limit }
    }

    /// The estimate and how far its bounds lie below and above it become the answer, back in the metric's unit.
    fn answer(&self, question: &Question, found: Found) -> Comparison {
        let Found { base, candidate, below, above, method, samples, documents, independent } = found;
        let regression = self.sign * (candidate - base);
        // Sums of doubles: what differs by less than this is the same.
        let rounding = 1e-12 * (base.abs() + candidate.abs() + regression.abs());
        let (lower, upper) = (regression - below, regression + above);
        let need = independent_min(question.confidence);
        let call = if !(lower.is_finite() && upper.is_finite() && self.limit.is_finite()) {
            Call::Undecided(None)
        } else if let Some(have) = independent.filter(|have| *have < need as f64 * (1.0 - 1e-9)) {
            Call::TooFew { have: (have + 1e-9) as u64, need }
        } else if upper <= self.limit + rounding {
            Call::NotWorse
        } else if lower > self.limit + rounding {
            Call::Worse
        } else {
            let reach = if regression <= self.limit { above } else { below };
            Call::Undecided(samples.and_then(|n| needed(n, reach, (self.limit - regression).abs())))
        };
        let back = |x: f64| match question.scale {
            Scale::ExpMean => self.sign * libm::exp(base) * libm::expm1(self.sign * x),
            _ => x,
        };
        let value = |x: f64| if question.scale == Scale::ExpMean { libm::exp(x) } else { x };
        Comparison {
            call,
            method,
            baseline: value(base),
            candidate: value(candidate),
            regression: back(regression),
            lower: back(lower),
            upper: back(upper),
            margin: back(self.limit),
            samples,
            documents,
        }
    }
}

/// What a method found, on the scale of samples.
struct Found {
    base: f64,
    candidate: f64,
    /// Distance of the lower bound.
    below: f64,
    /// Distance of the upper bound.
    above: f64,
    method: Method,
    samples: Option<u64>,
    documents: Option<u64>,
    /// What must reach [`independent_min`]; `None` where nothing is at stake or nothing is known.
    independent: Option<f64>,
}

/// The margin of a log-perplexity.
fn log_limit(sign: f64, share: f64) -> f64 {
    if sign < 0.0 && share >= 1.0 { f64::INFINITY } else { sign * libm::log1p(sign * share) }
}

/// Samples until a reach that shrinks with the root of their number is as short as `distance`; fewer would do where
/// hardly any differ, since it shrinks faster there.
fn needed(samples: u64, reach: f64, distance: f64) -> Option<u64> {
    let ratio = reach / distance;
    let wanted = libm::ceil(samples as f64 * ratio * ratio);
    // Beyond this, nobody will collect them.
    (wanted.is_finite() && wanted < 1e12).then_some(wanted as u64)
}
