//! Normal and Student t quantiles from `libm` alone, so that every machine gets the same bits.

/// Terms of the continued fraction; it needs about the square root of its larger argument.
const FRACTION_TERMS_MAX: u32 = 100_000;
/// Halvings of a bracket: more than the bits of a double.
const HALVINGS: u32 = 200;
/// From here on Student t and the normal distribution differ by less than a millionth.
const DF_NORMAL: f64 = 1e6;

/// The `p` quantile of the standard normal distribution, for `p` in (0, 1).
pub(super) fn normal_quantile(p: f64) -> f64 {
    upper_quantile(p, |x| 0.5 * libm::erfc(x / std::f64::consts::SQRT_2))
}

/// The `p` quantile of Student's t with `df` degrees of freedom, for `p` in (0, 1) and `df` above 0.
pub(super) fn student_quantile(p: f64, df: f64) -> f64 {
    if df >= DF_NORMAL {
        return normal_quantile(p);
    }
    upper_quantile(p, |t| 0.5 * beta_regularized(0.5 * df, 0.5, df / (df + t * t)))
}

/// Solves `tail(x) = 1 - p` for a symmetric distribution; `tail` is the upper tail for `x` of 0 and more.
fn upper_quantile(p: f64, tail: impl Fn(f64) -> f64) -> f64 {
    if p < 0.5 {
        return -upper_quantile(1.0 - p, tail);
    }
    let wanted = 1.0 - p;
    let (mut low, mut high) = (0.0, 1.0);
    while tail(high) > wanted && high < 1e150 {
        low = high;
        high *= 2.0;
    }
    for _ in 0..HALVINGS {
        let middle = 0.5 * (low + high);
        if tail(middle) > wanted { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// The regularized incomplete beta function `I_x(a, b)` by its continued fraction (DLMF 8.17.22), evaluated after
/// Lentz.
fn beta_regularized(a: f64, b: f64, x: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    if x >= 1.0 {
        return 1.0;
    }
    // The fraction converges fast only on this side; the other follows from the symmetry.
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - beta_regularized(b, a, 1.0 - x);
    }
    let ln_beta = libm::lgamma(a) + libm::lgamma(b) - libm::lgamma(a + b);
    let front = libm::exp(a * libm::log(x) + b * libm::log1p(-x) - ln_beta) / a;
    const TINY: f64 = 1e-300;
    let guard = |value: f64| if value.abs() < TINY { TINY } else { value };
    let (mut f, mut c, mut d) = (1.0, 1.0, 0.0);
    for i in 0..FRACTION_TERMS_MAX {
        let m = f64::from(i / 2);
        let numerator = if i == 0 {
            1.0
        } else if i % 2 == 0 {
            m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m))
        } else {
            -((a + m) * (a + b + m) * x) / ((a + 2.0 * m) * (a + 2.0 * m + 1.0))
        };
        d = 1.0 / guard(1.0 + numerator * d);
        c = guard(1.0 + numerator / c);
        f *= c * d;
        if (c * d - 1.0).abs() < 1e-15 {
            break;
        }
    }
    front * (f - 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_agree_with_printed_tables() {
        // Abramowitz and Stegun, tables 26.5 and 26.10.
        let normal = [(0.95, 1.644_853_627), (0.99, 2.326_347_874), (0.975, 1.959_963_985), (0.5, 0.0)];
        for (p, expected) in normal {
            assert!((normal_quantile(p) - expected).abs() < 1e-8, "{p}: {}", normal_quantile(p));
            assert!((normal_quantile(1.0 - p) + expected).abs() < 1e-8);
        }
        let student = [
            (0.95, 1.0, 6.313_752),
            (0.95, 4.0, 2.131_847),
            (0.99, 9.0, 2.821_438),
            (0.975, 30.0, 2.042_272),
            (0.999, 120.0, 3.159_539),
            (0.95, 100_000.0, 1.644_869),
        ];
        for (p, df, expected) in student {
            let found = student_quantile(p, df);
            assert!((found - expected).abs() < 2e-6, "t({p}, {df}) = {found}, not {expected}");
        }
    }

    #[test]
    fn extremes_stay_finite() {
        for p in [1e-15, 0.5 + 1e-12, 1.0 - 1e-15] {
            for df in [0.5, 1.0, 1e5, 1e12] {
                assert!(student_quantile(p, df).is_finite());
            }
        }
    }
}
