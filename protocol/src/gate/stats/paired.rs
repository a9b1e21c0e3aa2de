//! Two runs that scored the same samples, compared sample by sample and clustered by document.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use super::clusters::{Moments, Sums, document, effective, number};
use super::{Comparison, Found, Method, Question, Test, binary, independent_min};
use crate::gate::report::Scale;
use crate::gate::samples::{Sample, Samples};

/// Why two runs cannot be paired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PairError {
    /// The value does not come from samples ([`Scale::Other`]).
    NoMean,
    /// Too few samples are in both runs.
    Unmatched {
        /// Samples in both.
        both: usize,
        /// Samples of the candidate alone.
        candidate_only: usize,
        /// Samples of the baseline alone.
        baseline_only: usize,
    },
    /// One sample belongs to another document in the other run.
    Document {
        /// Id of the sample.
        id: String,
    },
}

/// Compares by the samples that both runs have, which must be at least `overlap_min` (in (0, 1]) of all.
///
/// # Errors
/// [`PairError`].
pub fn compare_paired(
    question: &Question,
    candidate: &Samples,
    baseline: &Samples,
    overlap_min: f64,
) -> Result<Comparison, PairError> {
    if question.scale == Scale::Other {
        return Err(PairError::NoMean);
    }
    let pairs = pairs(candidate, baseline, overlap_min)?;
    if let Some((sample, _)) = pairs.iter().find(|(a, b)| document(a) != document(b)) {
        return Err(PairError::Document { id: sample.id.clone() });
    }
    Ok(compare(question, &pairs))
}

type Pair<'a> = (&'a Sample, &'a Sample);

fn pairs<'a>(
    candidate: &'a Samples,
    baseline: &'a Samples,
    overlap_min: f64,
) -> Result<Vec<Pair<'a>>, PairError> {
    let (mut left, mut right) = (candidate.iter().peekable(), baseline.iter().peekable());
    let mut both = Vec::new();
    while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
        match a.id.cmp(&b.id) {
            Ordering::Less => drop(left.next()),
            Ordering::Greater => drop(right.next()),
            Ordering::Equal => both.extend(left.next().zip(right.next())),
        }
    }
    let (candidate_only, baseline_only) = (candidate.len() - both.len(), baseline.len() - both.len());
    let all = both.len() + candidate_only + baseline_only;
    if both.is_empty() || (both.len() as f64) < overlap_min * all as f64 {
        return Err(PairError::Unmatched { both: both.len(), candidate_only, baseline_only });
    }
    Ok(both)
}

/// The sums of one document in both runs.
#[derive(Debug, Clone, Copy, Default)]
struct Both {
    candidate: Sums,
    baseline: Sums,
}

fn compare(question: &Question, pairs: &[Pair<'_>]) -> Comparison {
    let (numbers, count) = number(pairs.iter().map(|(sample, _)| document(sample)));
    let mut documents = vec![Both::default(); count];
    for ((candidate, baseline), number) in pairs.iter().zip(&numbers) {
        documents[*number].candidate.add(candidate);
        documents[*number].baseline.add(baseline);
    }
    let unit = if question.scale == Scale::MeanOverLn2 { std::f64::consts::LN_2 } else { 1.0 };
    let whole = Both {
        candidate: Sums::total(documents.iter().map(|both| &both.candidate)),
        baseline: Sums::total(documents.iter().map(|both| &both.baseline)),
    };
    let (candidate, base) = (whole.candidate.mean() / unit, whole.baseline.mean() / unit);
    let test = Test::new(question, base);

    let is_binary = question.scale == Scale::Mean && is_binary(pairs);
    // The limit of right-or-wrong scores is taken as fixed: the error of a share of a share is next to nothing, and
    // their own interval has no place for it.
    let tilt = if is_binary { 0.0 } else { test.tilt };
    let influences: Vec<f64> = documents
        .iter()
        .map(|both| {
            let candidate = both.candidate.influence(&whole.candidate);
            let baseline = both.baseline.influence(&whole.baseline);
            (test.sign * candidate - (test.sign + tilt) * baseline) / unit
        })
        .collect();
    let equal = effective(documents.iter().map(|both| {
        let share = |part: &Sums, of: &Sums| part.weight / of.weight;
        0.5 * (share(&both.candidate, &whole.candidate) + share(&both.baseline, &whole.baseline))
    }));
    let moments = Moments::of(&influences);
    let (mut below, mut above) = moments.spread(equal - 1.0).reach(question.confidence);

    let sparse = Sparse::of(pairs, &documents, test.sign);
    let few = sparse.documents < independent_min(question.confidence).max(30) as f64;
    let mostly_same = few && 2.0 * sparse.documents <= count as f64;
    let certain = sparse.documents == 0.0 && !is_binary && is_continuous(pairs);
    if is_binary || (mostly_same && !certain) {
        // Documents, not samples, count as evidence until enough of them differ to see how alike samples of one are.
        // Where all change alike there is nothing to see.
        let is_seen = !few && sparse.variance > 0.0;
        let alike = if is_seen { moments.variance / sparse.variance } else { pairs.len() as f64 / equal };
        let n = pairs.len() as f64 / alike.clamp(1.0, (pairs.len() as f64 / equal).max(1.0));
        let (low, high) = binary::paired_bounds(sparse.worse * n, sparse.better * n, n, question.confidence);
        let middle = sparse.worse - sparse.better;
        let (low, high) = ((middle - low) * sparse.range / unit, (high - middle) * sparse.range / unit);
        let alone = is_binary && count == pairs.len();
        (below, above) = if alone { (low, high) } else { (below.max(low), above.max(high)) };
    }
    let method = if is_binary { Method::PairedBinary } else { Method::Paired };
    test.answer(
        question,
        Found {
            base,
            candidate,
            below,
            above,
            method,
            samples: Some(pairs.len() as u64),
            documents: Some(count as u64),
            independent: Some(equal),
        },
    )
}

/// What a comparison rests on where most samples score the same in both runs: the few that differ, each taken to
/// differ by the whole range that scores were seen to have.
struct Sparse {
    /// Sum of what got worse, over the range, by weight.
    worse: f64,
    /// The same of what got better.
    better: f64,
    /// Variance of the mean difference if samples were independent.
    variance: f64,
    /// Documents that score differently in the two runs.
    documents: f64,
    /// Largest score less smallest.
    range: f64,
}

impl Sparse {
    fn of(pairs: &[Pair<'_>], documents: &[Both], sign: f64) -> Self {
        let mut lowest = f64::INFINITY;
        let mut highest = f64::NEG_INFINITY;
        let (mut worse, mut better, mut squares, mut weight) = (0.0, 0.0, 0.0, 0.0);
        for (candidate, baseline) in pairs {
            lowest = lowest.min(candidate.value).min(baseline.value);
            highest = highest.max(candidate.value).max(baseline.value);
            let difference = sign * (candidate.value - baseline.value);
            worse += baseline.weight * difference.max(0.0);
            better += baseline.weight * (-difference).max(0.0);
            squares += difference * difference;
            weight += baseline.weight;
        }
        // Scores within [0, 1] are taken to have that range, and those that are all one to reach down to 0.
        let range = match (lowest, highest) {
            _ if lowest >= 0.0 && highest <= 1.0 => 1.0,
            _ if lowest < highest => highest - lowest,
            _ => highest.abs(),
        };
        let unit = weight * range;
        let (n, mean) = (pairs.len() as f64, (worse - better) / weight);
        let variance = (squares / n - mean * mean).max(0.0) / n;
        let differ = documents.iter().filter(|both| both.candidate != both.baseline).count();
        Self { worse: worse / unit, better: better / unit, variance, documents: differ as f64, range }
    }
}

/// Whether all scores are 0 or 1 and count alike.
fn is_binary(pairs: &[Pair<'_>]) -> bool {
    let plain = |s: &Sample| s.weight == 1.0 && (s.value == 0.0 || s.value == 1.0);
    pairs.iter().all(|(a, b)| plain(a) && plain(b))
}

/// Whether the baseline's scores are of a kind that two models hardly share by chance: more than half of them differ
/// from each other. If every one is the same in both runs, then so is the model.
fn is_continuous(pairs: &[Pair<'_>]) -> bool {
    let values: BTreeSet<u64> = pairs.iter().map(|(_, baseline)| baseline.value.to_bits()).collect();
    2 * values.len() > pairs.len()
}
