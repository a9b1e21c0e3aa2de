//! Where the pairs of runs come from: distributions of losses and scores with a true difference that is known.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use weighlock_protocol::gate::report::{Metric, Scale};
use weighlock_protocol::gate::samples::{Sample, Samples};
use weighlock_protocol::gate::stats::Margin;

/// A way to draw two runs.
#[derive(Debug, Clone, Copy)]
pub struct World {
    /// What it is, for people.
    pub name: &'static str,
    /// How the value comes from samples. Lower is better.
    pub scale: Scale,
    /// The margin that runs are weighed with, which is the true regression at the margin.
    pub margin: Margin,
    /// Draws two runs; `true` is at the margin, `false` without a true difference.
    pub draw: fn(&mut ChaCha8Rng, bool) -> Draw,
    /// Whether the gate promises its level here.
    pub promised: bool,
}

/// Two runs.
#[derive(Debug, Clone)]
pub enum Draw {
    /// To be paired.
    Paired {
        /// What wants to run.
        candidate: Samples,
        /// What runs.
        baseline: Samples,
    },
    /// With samples of other documents each.
    Unpaired {
        /// What wants to run.
        candidate: Samples,
        /// What runs.
        baseline: Samples,
    },
    /// Value, error and size alone.
    Reported {
        /// What wants to run.
        candidate: Metric,
        /// What runs.
        baseline: Metric,
    },
}

/// Margin of losses.
const LOSS: f64 = 0.1;
/// Margin of shares of wrong answers.
const WRONG: f64 = 0.03;
/// Relative margin.
const SHARE: f64 = 0.05;

/// All of them.
pub fn all() -> Vec<World> {
    let loss =
        |name, draw| World { name, scale: Scale::Mean, margin: Margin::Absolute(LOSS), draw, promised: true };
    let wrong = |name, draw| World { margin: Margin::Absolute(WRONG), ..loss(name, draw) };
    let relative = |world: World| World { margin: Margin::Relative(SHARE), ..world };
    vec![
        loss("normal, 30", |rng, worse| plain(rng, 30, worse, normal)),
        loss("normal, 300", |rng, worse| plain(rng, 300, worse, normal)),
        loss("heavy tails (Student t, 3), 40", |rng, worse| plain(rng, 40, worse, heavy)),
        loss("few got much worse (log-normal), 20", |rng, worse| plain(rng, 20, worse, log_normal)),
        loss("few got much worse (log-normal), 30", |rng, worse| plain(rng, 30, worse, log_normal)),
        loss("few got much worse (log-normal), 100", |rng, worse| plain(rng, 100, worse, log_normal)),
        loss("few got much worse (log-normal), 1000", |rng, worse| plain(rng, 1_000, worse, log_normal)),
        loss("few got much better (log-normal), 30", |rng, worse| {
            plain(rng, 30, worse, |rng| -log_normal(rng))
        }),
        loss("few got much better (log-normal), 300", |rng, worse| {
            plain(rng, 300, worse, |rng| -log_normal(rng))
        }),
        loss("log-normal losses, all drawn anew, 50", |rng, worse| anew(rng, 50, worse)),
        relative(loss("log-normal losses, each a share worse, 60, relative", |rng, worse| {
            shares(rng, 60, worse)
        })),
        wrong("right or wrong, only breaks, 50", |rng, worse| flips(rng, 50, 0.0, worse)),
        wrong("right or wrong, only breaks, 200", |rng, worse| flips(rng, 200, 0.0, worse)),
        wrong("right or wrong, 2 % mend, 500", |rng, worse| flips(rng, 500, 0.02, worse)),
        wrong("right or wrong, 10 % mend, 1000", |rng, worse| flips(rng, 1_000, 0.1, worse)),
        wrong("graded 0 to 1, few differ, 300", |rng, worse| graded(rng, 300, worse)),
        loss("normal, 35 documents of 8", |rng, worse| clustered(rng, 35, |_| 8, worse, normal)),
        loss("normal, 35 documents of 1 to 30", |rng, worse| {
            clustered(rng, 35, |rng| rng.random_range(1..=30), worse, normal)
        }),
        loss("normal, 200 documents of 5", |rng, worse| clustered(rng, 200, |_| 5, worse, normal)),
        loss("log-normal, 40 documents of 8", |rng, worse| clustered(rng, 40, |_| 8, worse, log_normal)),
        loss("log-normal, 60 documents of 1 to 30", |rng, worse| {
            clustered(rng, 60, |rng| rng.random_range(1..=30), worse, log_normal)
        }),
        loss("normal, 5 documents of 100", |rng, worse| clustered(rng, 5, |_| 100, worse, normal)),
        wrong("right or wrong, whole documents break, 60 of 10", |rng, worse| {
            broken_documents(rng, 60, 10, worse)
        }),
        wrong("right or wrong, whole documents break, 300 of 4", |rng, worse| {
            broken_documents(rng, 300, 4, worse)
        }),
        World {
            scale: Scale::ExpMean,
            ..relative(loss("perplexity by tokens, 60 documents, relative", |rng, worse| {
                tokens(rng, 60, libm::log1p(SHARE), worse)
            }))
        },
        World {
            scale: Scale::ExpMean,
            margin: Margin::Absolute(0.5),
            ..loss("perplexity by tokens, 60 documents, absolute", |rng, worse| {
                let mean = libm::exp(TOKEN_LOSS);
                tokens(rng, 60, libm::log1p(0.5 / mean), worse)
            })
        },
        loss("unpaired normal, 60 and 60", |rng, worse| apart(rng, 60, worse, normal)),
        loss("unpaired log-normal, 60 and 60", |rng, worse| apart(rng, 60, worse, log_normal)),
        relative(loss("reported, normal, 100, relative", |rng, worse| reported(rng, 100, worse))),
        wrong("reported, right or wrong, 5 % wrong, 100", |rng, worse| {
            reported_shares(rng, 100, 0.05, worse)
        }),
        wrong("reported, right or wrong, 30 % wrong, 1000", |rng, worse| {
            reported_shares(rng, 1_000, 0.3, worse)
        }),
        World {
            promised: false,
            ..loss("one of 50 fails wholly (what 40 samples may not show), 40", |rng, worse| {
                plain(rng, 40, worse, disaster)
            })
        },
    ]
}

/// Mean loss per token where there are tokens.
const TOKEN_LOSS: f64 = 2.0;

fn normal(rng: &mut ChaCha8Rng) -> f64 {
    // Box and Muller; 1 - u is never 0.
    let (u, v) = (1.0 - rng.random::<f64>(), rng.random::<f64>());
    (-2.0 * libm::log(u)).sqrt() * libm::cos(std::f64::consts::TAU * v)
}

/// Mean 0, sigma 1 of the logarithm: skewness 6.2.
fn log_normal(rng: &mut ChaCha8Rng) -> f64 {
    libm::exp(normal(rng)) - libm::exp(0.5)
}

/// Student t with 3 degrees of freedom.
fn heavy(rng: &mut ChaCha8Rng) -> f64 {
    let chi: f64 = (0..3).map(|_| normal(rng)).map(|x| x * x).sum();
    normal(rng) / (chi / 3.0).sqrt()
}

/// Mean 0; one of 50 is 10 above the rest.
fn disaster(rng: &mut ChaCha8Rng) -> f64 {
    let is_hit = rng.random_bool(0.02);
    0.3 * normal(rng) + if is_hit { 9.8 } else { -0.2 }
}

fn sample(i: usize, document: Option<usize>, value: f64, weight: f64) -> Sample {
    let cluster = document.map_or_else(String::new, |document| format!("d{document}"));
    Sample { id: format!("{i:05}"), cluster, value, weight }
}

fn run(samples: Vec<Sample>) -> Samples {
    Samples::new(samples).unwrap_or_default()
}

fn paired(pairs: impl Iterator<Item = (Sample, f64)>) -> Draw {
    let (baseline, candidate): (Vec<Sample>, Vec<Sample>) = pairs
        .map(|(before, after)| {
            let candidate = Sample { value: after, ..before.clone() };
            (before, candidate)
        })
        .unzip();
    Draw::Paired { candidate: run(candidate), baseline: run(baseline) }
}

fn loss(worse: bool) -> f64 {
    if worse { LOSS } else { 0.0 }
}

/// Losses of which each changes by an amount of its own.
fn plain(rng: &mut ChaCha8Rng, n: usize, worse: bool, change: fn(&mut ChaCha8Rng) -> f64) -> Draw {
    paired((0..n).map(|i| {
        let before = 3.0 + normal(rng);
        (sample(i, None, before, 1.0), before + loss(worse) + 0.2 * change(rng))
    }))
}

/// Losses that have nothing to do with each other.
fn anew(rng: &mut ChaCha8Rng, n: usize, worse: bool) -> Draw {
    paired((0..n).map(|i| (sample(i, None, log_normal(rng), 1.0), log_normal(rng) + loss(worse))))
}

/// Losses of which each changes by a share of itself.
fn shares(rng: &mut ChaCha8Rng, n: usize, worse: bool) -> Draw {
    let factor = if worse { 1.0 + SHARE } else { 1.0 };
    paired((0..n).map(|i| {
        let before = libm::exp(normal(rng));
        (sample(i, None, before, 1.0), before * factor * libm::exp(0.3 * normal(rng) - 0.045))
    }))
}

/// Answers, 1 if wrong; of all, `mended` get right and, at the margin, more than that get wrong.
fn flips(rng: &mut ChaCha8Rng, n: usize, mended: f64, worse: bool) -> Draw {
    let breaks = mended + if worse { WRONG } else { 0.0 };
    paired((0..n).map(|i| {
        let u: f64 = rng.random();
        let (before, after) = match u {
            u if u < breaks => (0.0, 1.0),
            u if u < breaks + mended => (1.0, 0.0),
            u if u < 0.8 => (0.0, 0.0),
            _ => (1.0, 1.0),
        };
        (sample(i, None, before, 1.0), after)
    }))
}

/// Grades of which few differ, and then by any amount up to 1.
fn graded(rng: &mut ChaCha8Rng, n: usize, worse: bool) -> Draw {
    let differ = if worse { 2.0 * WRONG } else { 0.0 };
    paired((0..n).map(|i| {
        let after = if rng.random_bool(differ) { rng.random() } else { 0.0 };
        (sample(i, None, 0.0, 1.0), after)
    }))
}

/// Documents that share half of the variance of each change.
fn clustered(
    rng: &mut ChaCha8Rng,
    documents: usize,
    size: fn(&mut ChaCha8Rng) -> usize,
    worse: bool,
    change: fn(&mut ChaCha8Rng) -> f64,
) -> Draw {
    let mut pairs = Vec::new();
    for document in 0..documents {
        let shared = change(rng);
        for _ in 0..size(rng) {
            let before = 3.0 + normal(rng);
            let after = before + loss(worse) + 0.2 * (shared + change(rng));
            pairs.push((sample(pairs.len(), Some(document), before, 1.0), after));
        }
    }
    paired(pairs.into_iter())
}

/// Documents whose answers all break together.
fn broken_documents(rng: &mut ChaCha8Rng, documents: usize, size: usize, worse: bool) -> Draw {
    let mut pairs = Vec::new();
    for document in 0..documents {
        let u: f64 = rng.random();
        let (before, after) = match u {
            u if u < 0.02 + if worse { WRONG } else { 0.0 } => (0.0, 1.0),
            u if u > 0.98 => (1.0, 0.0),
            u if u > 0.8 => (1.0, 1.0),
            _ => (0.0, 0.0),
        };
        pairs.extend((0..size).map(|i| (sample(document * size + i, Some(document), before, 1.0), after)));
    }
    paired(pairs.into_iter())
}

/// Losses per token of documents of unequal length, `shift` higher at the margin.
fn tokens(rng: &mut ChaCha8Rng, documents: usize, shift: f64, worse: bool) -> Draw {
    let shift = if worse { shift } else { 0.0 };
    paired((0..documents).map(|i| {
        let length = (libm::exp(4.0 + 0.7 * normal(rng))).max(1.0);
        let before = TOKEN_LOSS + 0.4 * normal(rng);
        (sample(i, None, before, libm::round(length)), before + shift + 0.1 * normal(rng))
    }))
}

/// Two runs over documents of their own.
fn apart(rng: &mut ChaCha8Rng, n: usize, worse: bool, value: fn(&mut ChaCha8Rng) -> f64) -> Draw {
    let mut side =
        |shift: f64| run((0..n).map(|i| sample(i, None, 3.0 + shift + 0.3 * value(rng), 1.0)).collect());
    Draw::Unpaired { candidate: side(loss(worse)), baseline: side(0.0) }
}

/// What a report says of samples, and nothing else.
fn report(values: &[f64]) -> Metric {
    let n = values.len() as f64;
    let value = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|x| (x - value) * (x - value)).sum::<f64>() / (n - 1.0);
    Metric {
        value,
        stderr: Some((variance / n).sqrt()),
        n: Some(values.len() as u64),
        n_total: None,
        higher_is_better: None,
        scale: Scale::Mean,
        task_version: String::new(),
        n_shot: None,
        samples: None,
    }
}

fn reported(rng: &mut ChaCha8Rng, n: usize, worse: bool) -> Draw {
    let mut side = |mean: f64| report(&(0..n).map(|_| mean + 0.3 * normal(rng)).collect::<Vec<_>>());
    Draw::Reported { candidate: side(if worse { 3.0 * (1.0 + SHARE) } else { 3.0 }), baseline: side(3.0) }
}

fn reported_shares(rng: &mut ChaCha8Rng, n: usize, wrong: f64, worse: bool) -> Draw {
    let mut side =
        |share: f64| report(&(0..n).map(|_| f64::from(u8::from(rng.random_bool(share)))).collect::<Vec<_>>());
    Draw::Reported { candidate: side(wrong + if worse { WRONG } else { 0.0 }), baseline: side(wrong) }
}
