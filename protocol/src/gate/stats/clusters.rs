//! Sums by document, and the jackknife over documents.

use super::bound::Spread;
use crate::gate::samples::Sample;

/// `E|z|³` of a standard normal variable: 2 sqrt(2/pi).
const NORMAL_THIRD: f64 = 1.595_769_121_605_731;

/// Sums of one document: of a run, `Σ w·v` and `Σ w`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Sums {
    pub(super) weighted: f64,
    pub(super) weight: f64,
}

impl Sums {
    pub(super) fn add(&mut self, sample: &Sample) {
        self.weighted += sample.weight * sample.value;
        self.weight += sample.weight;
    }

    pub(super) fn total<'a>(all: impl Iterator<Item = &'a Sums>) -> Sums {
        all.fold(Sums::default(), |sum, one| Sums {
            weighted: sum.weighted + one.weighted,
            weight: sum.weight + one.weight,
        })
    }

    pub(super) fn mean(&self) -> f64 {
        self.weighted / self.weight
    }

    /// What the mean of `total` gains from this document: the mean less the mean without it.
    pub(super) fn influence(&self, total: &Sums) -> f64 {
        (self.weighted - total.mean() * self.weight) / (total.weight - self.weight)
    }
}

/// The document that a sample belongs to; one that names none stands for itself. The flag keeps an id apart from a
/// document of the same name.
pub(super) fn document(sample: &Sample) -> (bool, &str) {
    if sample.cluster.is_empty() { (false, &sample.id) } else { (true, &sample.cluster) }
}

/// Gives each item the number of its document, in order of first appearance, and the number of documents.
pub(super) fn number<'a>(documents: impl Iterator<Item = (bool, &'a str)>) -> (Vec<usize>, usize) {
    let mut known = std::collections::BTreeMap::new();
    let numbers = documents
        .map(|document| {
            let next = known.len();
            *known.entry(document).or_insert(next)
        })
        .collect();
    (numbers, known.len())
}

/// How many documents of equal weight would tell as much: `1 / Σ share²`.
pub(super) fn effective(shares: impl Iterator<Item = f64>) -> f64 {
    1.0 / shares.map(|share| share * share).sum::<f64>()
}

/// Second and third moment of an estimate by the delete-one-document jackknife (CV3), which errs to the wide side
/// where documents differ in size (MacKinnon, Nielsen and Webb, "Cluster-robust inference", Journal of Econometrics
/// 232, 2023; for evaluations, Miller, arXiv 2411.00640). `influences` are estimate less estimate without each.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moments {
    /// Square of the standard error.
    pub(super) variance: f64,
    /// Third cumulant of the estimate.
    pub(super) third: f64,
    /// Sum of absolute third powers beyond that of a normal distribution of the same variance.
    pub(super) tails: f64,
}

impl Moments {
    pub(super) fn of(influences: &[f64]) -> Self {
        let g = influences.len() as f64;
        if influences.len() < 3 {
            let unknown = if influences.iter().all(|x| *x == 0.0) && g > 1.0 { 0.0 } else { f64::INFINITY };
            return Self { variance: unknown, third: 0.0, tails: 0.0 };
        }
        let sum = |term: &dyn Fn(f64) -> f64| influences.iter().map(|x| term(*x)).sum::<f64>();
        let (second, third) = (sum(&|x| x * x), sum(&|x| x * x * x));
        let normal = NORMAL_THIRD * second * (second / g).sqrt();
        let tails = (sum(&|x| (x * x * x).abs()) - normal).max(0.0);
        // Third powers carry the small-sample factor of the usual skewness G1.
        let factor = (g - 1.0) / (g - 2.0);
        Self { variance: (g - 1.0) / g * second, third: third * factor, tails: tails * factor }
    }

    /// With `df` degrees of freedom.
    pub(super) fn spread(&self, df: f64) -> Spread {
        let stderr = self.variance.sqrt();
        let standard = |third: f64| {
            let standard = third / (stderr * stderr * stderr);
            if standard.is_finite() { standard } else { 0.0 }
        };
        Spread { stderr, df: df.max(1.0), skew: standard(self.third), tails: standard(self.tails) }
    }

    /// Of `factor` times the estimate.
    pub(super) fn times(&self, factor: f64) -> Self {
        let cube = factor * factor * factor;
        Self {
            variance: factor * factor * self.variance,
            third: cube * self.third,
            tails: cube.abs() * self.tails,
        }
    }

    /// Of the sum with an independent estimate.
    pub(super) fn plus(&self, other: &Self) -> Self {
        Self {
            variance: self.variance + other.variance,
            third: self.third + other.third,
            tails: self.tails + other.tails,
        }
    }
}
