//! Right-or-wrong scores: bounds that hold although few samples differ.

use super::special::normal_quantile;

/// Halvings of the interval [-1, 1]: to the last bit.
const HALVINGS: u32 = 60;

/// Bounds of `(worse - better) / n` for `n` pairs of which `worse` were right before and are wrong now and `better`
/// the other way round; only these discordant pairs count. Counts may be fractions (an effective number of pairs).
///
/// Score interval of T. Tango ("Equivalence test and confidence interval for the difference in proportions for the
/// paired-sample design", Statistics in Medicine 17, 1998) with a continuity correction of half a pair, without which
/// it passes too often where hardly any pair differs.
pub(super) fn paired_bounds(worse: f64, better: f64, n: f64, confidence: f64) -> (f64, f64) {
    let z = normal_quantile(confidence);
    (-paired_upper(better, worse, n, z), paired_upper(worse, better, n, z))
}

fn paired_upper(worse: f64, better: f64, n: f64, z: f64) -> f64 {
    let (mut low, mut high) = (((worse - better) / n).clamp(-1.0, 1.0), 1.0);
    for _ in 0..HALVINGS {
        let delta = 0.5 * (low + high);
        let distance = n * delta - (worse - better) - 0.5;
        // The likeliest share of `better` pairs if the true difference were `delta`.
        let b = (2.0 * n - worse + better) * delta - worse - better;
        let c = -better * delta * (1.0 - delta);
        let share = ((b * b - 8.0 * n * c).max(0.0).sqrt() - b) / (4.0 * n);
        let variance = (n * (2.0 * share + delta * (1.0 - delta))).max(0.0);
        if distance <= z * variance.sqrt() { low = delta } else { high = delta }
    }
    high
}

/// A share of right answers and its variance with pseudo-counts added (A. Agresti and B. Caffo, The American
/// Statistician 54, 2000): `z²/4`, at least 1, of each kind, so that 0 of 50 and 50 of 50 have an error, too.
pub(super) fn smoothed(share: f64, n: f64, confidence: f64) -> (f64, f64) {
    let z = normal_quantile(confidence);
    let extra = (0.25 * z * z).max(1.0);
    let smooth = (share * n + extra) / (n + 2.0 * extra);
    (smooth, smooth * (1.0 - smooth) / (n + 2.0 * extra))
}

/// Whether a standard error is that of right-or-wrong scores: `share (1 - share)` over `n` or `n - 1`.
pub(super) fn looks_binary(share: f64, stderr: f64, n: f64) -> bool {
    if !(0.0..=1.0).contains(&share) || n < 2.0 {
        return false;
    }
    let expected = share * (1.0 - share);
    let close = |found: f64| (found - expected).abs() <= 2e-3 * expected;
    close(stderr * stderr * n) || close(stderr * stderr * (n - 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_mirror_and_hold_the_estimate() {
        for (worse, better, n) in
            [(0.0, 0.0, 50.0), (3.0, 1.0, 100.0), (40.0, 40.0, 200.0), (50.0, 0.0, 50.0)]
        {
            let (low, high) = paired_bounds(worse, better, n, 0.95);
            let (mirror_low, mirror_high) = paired_bounds(better, worse, n, 0.95);
            assert!((low + mirror_high).abs() < 1e-12 && (high + mirror_low).abs() < 1e-12);
            let estimate = (worse - better) / n;
            assert!((-1.0..=estimate).contains(&low) && (estimate..=1.0).contains(&high));
        }
    }

    #[test]
    fn no_discordant_pair_still_leaves_room_for_three_in_n() {
        // The exact bound is 1 - 0.05^(1/n), about 3/n.
        let (_, high) = paired_bounds(0.0, 0.0, 300.0, 0.95);
        assert!((0.01..0.0125).contains(&high), "{high}");
    }

    #[test]
    fn errors_of_right_or_wrong_scores_are_known() {
        assert!(looks_binary(0.8, (0.16f64 / 99.0).sqrt(), 100.0));
        assert!(looks_binary(1.0, 0.0, 100.0));
        assert!(!looks_binary(0.8, 0.001, 100.0));
        assert!(!looks_binary(2.5, 0.0, 100.0));
    }
}
