//! One-sided confidence bounds of a mean-like figure that hold for skewed data and few clusters, too.

use super::special::student_quantile;

// Bounds that hold on average over samples still miss where a skewed population happens to give an even sample, so
// what a sample shows is taken more seriously than it looks, and some skewness is assumed of any. With these factors,
// and no much smaller ones, bounds hold for log-normal changes with sigma 1, clustered or not, from `independent_min`
// documents on (`weighlock-sim calibrate`). For normal data they cost up to a tenth of the width at 30 documents and
// nothing at 1,000.

/// What the sample skewness is multiplied by: samples of a skewed population show about half of it.
const SKEW_FACTOR: f64 = 2.0;
/// What the weight of both tails adds to it: in heavy tails the sign of the sample skewness is chance.
const TAIL_FACTOR: f64 = 0.75;
/// Skewness that is assumed of one document beside what its sample shows.
const SKEW_HIDDEN: f64 = 0.4;
/// Steps in which the widest correction up to the estimated skewness is sought.
const SKEW_STEPS: u32 = 32;
/// Below this the skew correction is less than rounding.
const SKEW_NONE: f64 = 1e-6;

/// How many independent clusters a bound at this confidence needs: about 20 at 0.95, 30 at 0.99, never less than 15.
/// With fewer, no method holds its level on skewed data, so nothing is decided (compare arXiv 2503.01747).
pub fn independent_min(confidence: f64) -> u64 {
    let needed = libm::ceil(-15.0 * libm::log10(1.0 - confidence));
    // At most 15 times the 16 digits of a double.
    (needed as u64).clamp(15, 240)
}

/// The error distribution of an estimate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spread {
    /// Standard error of the estimate.
    pub(super) stderr: f64,
    /// Degrees of freedom of the standard error; infinite where the sample is large or unknown.
    pub(super) df: f64,
    /// Skewness of the estimate: that of one cluster over the root of their number.
    pub(super) skew: f64,
    /// Mean absolute third power, standardized the same way, beyond that of a normal distribution; 0 or more.
    pub(super) tails: f64,
}

impl Spread {
    /// How far below and above the estimate the bounds lie, each at `confidence`, one-sided.
    ///
    /// The wider of Student t and Hall's transformation (P. Hall, "On the removal of skewness by transformation",
    /// JRSS B 54, 1992): t alone passes skewed regressions two to three times as often as promised, the
    /// transformation alone is too narrow for symmetric heavy tails.
    pub(super) fn reach(&self, confidence: f64) -> (f64, f64) {
        let stderr_is_zero = self.stderr <= 0.0;
        if stderr_is_zero {
            return (0.0, 0.0);
        }
        let t = student_quantile(confidence, self.df);
        let floor = TAIL_FACTOR * self.tails + SKEW_HIDDEN / (self.df + 1.0).sqrt();
        let towards = |skew: f64| t.max(hall_upper(t, SKEW_FACTOR * skew.max(0.0) + floor));
        let (below, above) = (towards(-self.skew), towards(self.skew));
        (self.stderr * below, self.stderr * above)
    }
}

/// The upper bound by Hall's transformation in standard errors above an estimate of skewness `skew`, 0 or more.
///
/// Beyond some skewness the transformation turns back to narrower bounds, which is no more than its end: the widest up
/// to `skew` is taken.
fn hall_upper(t: f64, skew: f64) -> f64 {
    if skew < SKEW_NONE {
        return t;
    }
    let at = |skew: f64| 3.0 / skew * (1.0 - libm::cbrt(1.0 - skew * (t + skew / 6.0)));
    (1..=SKEW_STEPS).map(|step| at(skew * f64::from(step) / f64::from(SKEW_STEPS))).fold(t, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skewed_estimate_reaches_further_towards_its_tail_and_mirrors() {
        let even = Spread { stderr: 2.0, df: 40.0, skew: 0.0, tails: 0.0 };
        let (below, above) = even.reach(0.95);
        assert!(
            (below - above).abs() < 1e-12 && below > 2.0 * 1.683_851 && below < 2.2 * 1.683_851,
            "{below}"
        );
        let (_, far) = Spread { df: 1e12, ..even }.reach(0.95);
        assert!((far - 2.0 * 1.644_854).abs() < 1e-5, "{far}");
        let right = Spread { skew: 0.3, ..even };
        let (right_below, right_above) = right.reach(0.95);
        assert!(right_above > 1.2 * above && right_below >= below);
        let (left_below, left_above) = Spread { skew: -0.3, ..even }.reach(0.95);
        let (heavy_below, heavy_above) = Spread { tails: 0.3, ..even }.reach(0.95);
        assert!(heavy_below == heavy_above && heavy_above > above && heavy_above < right_above);
        assert!((left_below - right_above).abs() < 1e-12 && (left_above - right_below).abs() < 1e-12);
    }

    #[test]
    fn more_skewness_never_narrows() {
        let reach = |skew: f64| Spread { stderr: 1.0, df: 30.0, skew, tails: 0.0 }.reach(0.95).1;
        let reaches: Vec<f64> = (0..400).map(|i| reach(f64::from(i) / 50.0)).collect();
        // The grid misses the peak by a little.
        assert!(reaches.windows(2).all(|pair| pair[1] >= 0.99 * pair[0]), "{reaches:?}");
        assert!(reach(f64::MAX).is_finite() && reach(1e-9) <= reach(1e-3));
    }

    #[test]
    fn more_confidence_needs_more_clusters() {
        assert_eq!([0.6, 0.95, 0.99, 0.999].map(independent_min), [15, 20, 30, 45]);
        assert_eq!(independent_min(1.0 - f64::EPSILON / 2.0), 240);
    }
}
