//! What the elements of two tensors differ by. Sums are taken in a fixed order, so that figures are reproducible.

use serde::Serialize;

use super::element::Wide;

/// Sums that run beside each other: what a core adds at once.
const LANES: usize = 8;

/// How far apart two tensors are, element by element. Pairs with a NaN or an infinity take no part in the figures
/// that are not counts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Stats {
    /// Elements of each side; bytes, where elements cannot be read.
    pub elements: u64,
    /// Elements whose values differ. 0 and -0 are one value, and so are all NaN.
    pub changed: u64,
    /// `changed` over `elements`, 0 to 1.
    pub changed_share: f64,
    /// Figures below; absent where elements cannot be read, or no pair is finite.
    #[serde(flatten)]
    pub values: Option<Values>,
    /// NaN elements of A.
    pub nan_a: u64,
    /// NaN elements of B.
    pub nan_b: u64,
    /// Infinite elements of A.
    pub infinite_a: u64,
    /// Infinite elements of B.
    pub infinite_b: u64,
}

/// Figures over the pairs that are finite on both sides.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Values {
    /// Largest |a - b|.
    pub max_abs: f64,
    /// Mean of |a - b|.
    pub mean_abs: f64,
    /// Root of the mean of (a - b)².
    pub rms_diff: f64,
    /// Root of the mean of a².
    pub rms_a: f64,
    /// `rms_diff` over `rms_a`; absent where A is all zeros and B is not.
    pub relative: Option<f64>,
}

/// Sums over a part of two tensors.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Sums {
    elements: u64,
    changed: u64,
    finite: u64,
    max: f64,
    abs: f64,
    squares: f64,
    squares_a: f64,
    nan: [u64; 2],
    infinite: [u64; 2],
}

impl Sums {
    /// Bytes of which so many differ.
    pub(super) fn of_bytes(a: &[u8], b: &[u8]) -> Self {
        let changed = a.iter().zip(b).map(|(a, b)| u64::from(a != b)).sum();
        Self { elements: a.len() as u64, changed, ..Self::default() }
    }

    /// Elements that are equal and not looked into.
    pub(super) fn of_equal(elements: u64) -> Self {
        Self { elements, ..Self::default() }
    }

    /// Adds pairs of elements.
    pub(super) fn add(&mut self, a: &[f64], b: &[f64]) {
        let finite = |all: &[f64]| all.iter().fold(true, |so_far, x| so_far & (x.abs() <= f64::MAX));
        if finite(a) && finite(b) {
            self.add_finite(a, b);
        } else {
            a.iter().zip(b).for_each(|(a, b)| self.add_any(*a, *b));
        }
    }

    /// Adds pairs of 64-bit integers of one type, whose differences a double holds better than themselves.
    pub(super) fn add_wide(&mut self, wide: Wide, a: &[u8], b: &[u8]) {
        for (a, b) in a.as_chunks().0.iter().zip(b.as_chunks().0) {
            let (value, distance) = match wide {
                Wide::Signed => {
                    let (a, b) = (i64::from_le_bytes(*a), i64::from_le_bytes(*b));
                    (a as f64, a.abs_diff(b))
                }
                Wide::Unsigned => {
                    let (a, b) = (u64::from_le_bytes(*a), u64::from_le_bytes(*b));
                    (a as f64, a.abs_diff(b))
                }
            };
            self.elements += 1;
            self.finite += 1;
            self.changed += u64::from(distance != 0);
            self.distance(value, distance as f64);
        }
    }

    /// Adds what a later part summed.
    pub(super) fn join(&mut self, later: &Self) {
        self.elements += later.elements;
        self.changed += later.changed;
        self.finite += later.finite;
        self.max = self.max.max(later.max);
        self.abs += later.abs;
        self.squares += later.squares;
        self.squares_a += later.squares_a;
        for side in 0..2 {
            self.nan[side] += later.nan[side];
            self.infinite[side] += later.infinite[side];
        }
    }

    pub(super) fn finish(&self) -> Stats {
        let count = self.finite as f64;
        // Sums of the largest doubles overflow; JSON has no infinity.
        let held = |x: f64| x.min(f64::MAX);
        let values = (self.finite > 0).then(|| {
            let (rms_diff, rms_a) =
                (held((self.squares / count).sqrt()), held((self.squares_a / count).sqrt()));
            let relative = match (rms_diff, rms_a) {
                (0.0, _) => Some(0.0),
                (_, 0.0) => None,
                (diff, a) => Some(held(diff / a)),
            };
            Values { max_abs: held(self.max), mean_abs: held(self.abs / count), rms_diff, rms_a, relative }
        });
        Stats {
            elements: self.elements,
            changed: self.changed,
            changed_share: if self.elements > 0 { self.changed as f64 / self.elements as f64 } else { 0.0 },
            values,
            nan_a: self.nan[0],
            nan_b: self.nan[1],
            infinite_a: self.infinite[0],
            infinite_b: self.infinite[1],
        }
    }

    fn add_finite(&mut self, a: &[f64], b: &[f64]) {
        let (mut abs, mut squares, mut squares_a) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
        let (mut max, mut changed) = ([0.0f64; LANES], [0u64; LANES]);
        let ((a_lanes, a_rest), (b_lanes, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
        for (a, b) in a_lanes.iter().zip(b_lanes) {
            for lane in 0..LANES {
                let distance = (a[lane] - b[lane]).abs();
                abs[lane] += distance;
                squares[lane] += distance * distance;
                squares_a[lane] += a[lane] * a[lane];
                max[lane] = if distance > max[lane] { distance } else { max[lane] };
                changed[lane] += u64::from(distance > 0.0);
            }
        }
        let lanes = (a_lanes.len() * LANES) as u64;
        self.elements += lanes;
        self.finite += lanes;
        self.abs += abs.iter().sum::<f64>();
        self.squares += squares.iter().sum::<f64>();
        self.squares_a += squares_a.iter().sum::<f64>();
        self.max = max.iter().fold(self.max, |so_far, x| so_far.max(*x));
        self.changed += changed.iter().sum::<u64>();
        a_rest.iter().zip(b_rest).for_each(|(a, b)| self.add_any(*a, *b));
    }

    fn add_any(&mut self, a: f64, b: f64) {
        self.elements += 1;
        self.changed += u64::from(a != b && !(a.is_nan() && b.is_nan()));
        for (side, x) in [a, b].into_iter().enumerate() {
            self.nan[side] += u64::from(x.is_nan());
            self.infinite[side] += u64::from(x.is_infinite());
        }
        if a.is_finite() && b.is_finite() {
            self.finite += 1;
            self.distance(a, (a - b).abs());
        }
    }

    fn distance(&mut self, a: f64, distance: f64) {
        self.max = self.max.max(distance);
        self.abs += distance;
        self.squares += distance * distance;
        self.squares_a += a * a;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(a: &[f64], b: &[f64]) -> Stats {
        let mut sums = Sums::default();
        sums.add(a, b);
        sums.finish()
    }

    #[test]
    fn figures_are_those_that_one_works_out_by_hand() {
        let stats = of(&[3.0, -4.0, 0.0, 1.0], &[3.0, -2.0, 0.0, 0.0]);
        assert_eq!((stats.elements, stats.changed, stats.changed_share), (4, 2, 0.5));
        let values = stats.values.expect("finite");
        assert_eq!((values.max_abs, values.mean_abs), (2.0, 0.75));
        assert_eq!(values.rms_diff, (5.0f64 / 4.0).sqrt());
        assert_eq!(values.rms_a, (26.0f64 / 4.0).sqrt());
        assert_eq!(values.relative, Some(values.rms_diff / values.rms_a));
    }

    #[test]
    fn what_is_not_finite_is_counted_and_poisons_nothing() {
        let (nan, inf) = (f64::NAN, f64::INFINITY);
        let stats = of(&[nan, nan, inf, 1.0, inf, 2.0], &[nan, 5.0, inf, inf, -inf, 3.0]);
        assert_eq!((stats.nan_a, stats.nan_b, stats.infinite_a, stats.infinite_b), (2, 1, 2, 3));
        assert_eq!(stats.changed, 4, "NaN to 5, 1 to infinity, the sign of infinity, 2 to 3");
        let values = stats.values.expect("one pair is finite");
        assert_eq!((values.max_abs, values.mean_abs, values.relative), (1.0, 1.0, Some(0.5)));
        assert_eq!(of(&[nan], &[nan]).values, None);
        assert_eq!(of(&[0.0], &[-0.0]).changed, 0);
    }

    #[test]
    fn what_was_zero_has_no_relative_change_and_what_overflows_stays_a_number() {
        let from_zero = of(&[0.0; 3], &[1.0; 3]).values.expect("finite");
        assert_eq!((from_zero.relative, from_zero.rms_a), (None, 0.0));
        assert_eq!(of(&[0.0; 3], &[0.0; 3]).values.expect("finite").relative, Some(0.0));
        let far = of(&[f64::MAX; 9], &[-f64::MAX; 9]).values.expect("finite");
        assert_eq!((far.max_abs, far.mean_abs), (f64::MAX, f64::MAX));
        assert!(far.rms_diff.is_finite() && far.relative.is_some_and(f64::is_finite));
        assert_eq!(of(&[], &[]).changed_share, 0.0);
    }

    #[test]
    fn wide_integers_differ_by_exactly_what_they_do() {
        let big = 1i64 << 60;
        let mut sums = Sums::default();
        sums.add_wide(Wide::Signed, &big.to_le_bytes(), &(big + 1).to_le_bytes());
        assert_eq!(sums.finish().values.expect("finite").max_abs, 1.0);
        let mut sums = Sums::default();
        sums.add_wide(Wide::Unsigned, &u64::MAX.to_le_bytes(), &0u64.to_le_bytes());
        assert_eq!(sums.finish().values.expect("finite").max_abs, u64::MAX as f64);
    }

    proptest! {
        #[test]
        fn swapping_the_sides_keeps_distances(pairs in prop::collection::vec((any::<f32>(), any::<f32>()), 0..40)) {
            let (a, b): (Vec<f64>, Vec<f64>) = pairs.into_iter().map(|(a, b)| (f64::from(a), f64::from(b))).unzip();
            let (there, back) = (of(&a, &b), of(&b, &a));
            prop_assert_eq!(there.changed, back.changed);
            prop_assert_eq!((there.nan_a, there.infinite_a), (back.nan_b, back.infinite_b));
            let figures = |stats: Stats| stats.values.map(|v| (v.max_abs, v.mean_abs, v.rms_diff));
            prop_assert_eq!(figures(there), figures(back));
        }
    }
}
