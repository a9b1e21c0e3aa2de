//! The model: its settings, its named tensors, its forward pass and how text is drawn from it.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::Error;
use super::eval::Predict;

/// Size of the vocabulary: a token is a byte.
pub const VOCAB: usize = 256;
/// The byte that pads the context before a document and that the model predicts at its end.
pub const END: u8 = 0;

/// Greatest settings that a model may have; a checkpoint that claims more is refused before memory is reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes of context.
    pub context_max: usize,
    /// Most hidden units.
    pub hidden_max: usize,
    /// Most rows in one n-gram table.
    pub ngram_buckets_max: usize,
    /// Most parameters in all.
    pub parameters_max: usize,
}

impl Limits {
    /// The limits that this crate keeps to: 4 GiB of F32 weights at most.
    pub const DEFAULT: Limits =
        Limits { context_max: 64, hidden_max: 4096, ngram_buckets_max: 1 << 24, parameters_max: 1 << 30 };
}

/// Settings that fix the tensors and their shapes.
///
/// The hidden layer is `relu(bias + sum of rows)`: one row for the byte at each place of the context, and one row for
/// the hash of the last 2, 3, ... `ngram_max` bytes. A linear layer and a softmax over all bytes follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Bytes of context, 1 to 64.
    pub context: usize,
    /// Hidden units, 1 to 4096. Training time grows with it.
    pub hidden: usize,
    /// Longest n-gram with a table of its own, 1 (none) to `context`.
    pub ngram_max: usize,
    /// Rows of each n-gram table, 1 to 2^24. It makes the artifact larger at almost no cost in time.
    pub ngram_buckets: usize,
}

impl Default for Config {
    fn default() -> Self {
        Config { context: 8, hidden: 64, ngram_max: 5, ngram_buckets: 16384 }
    }
}

impl Config {
    /// Refuses settings outside [`Limits::DEFAULT`].
    pub fn check(&self) -> Result<(), Error> {
        let limits = Limits::DEFAULT;
        let settings = [
            ("context", self.context, limits.context_max),
            ("hidden", self.hidden, limits.hidden_max),
            ("ngram_max", self.ngram_max, self.context),
            ("ngram_buckets", self.ngram_buckets, limits.ngram_buckets_max),
        ];
        for (name, value, max) in settings {
            if value < 1 || value > max {
                return Err(Error::Setting { name, value, min: 1, max });
            }
        }
        let (name, value, max) = ("parameters", self.parameters(), limits.parameters_max);
        if value > max {
            return Err(Error::Setting { name, value, min: 1, max });
        }
        Ok(())
    }

    /// Number of parameters. Does not overflow for settings within the single limits.
    pub fn parameters(&self) -> usize {
        self.tensor_shapes().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    /// Names and shapes of all tensors, in the order in which a model keeps them.
    pub fn tensor_shapes(&self) -> Vec<(String, Vec<usize>)> {
        let places =
            (1..=self.context).map(|place| (format!("context.{place}.weight"), vec![VOCAB, self.hidden]));
        let ngrams = (2..=self.ngram_max)
            .map(|order| (format!("ngram.{order}.weight"), vec![self.ngram_buckets, self.hidden]));
        let dense = [
            ("hidden.bias".to_owned(), vec![self.hidden]),
            ("output.weight".to_owned(), vec![VOCAB, self.hidden]),
            ("output.bias".to_owned(), vec![VOCAB]),
        ];
        places.chain(ngrams).chain(dense).collect()
    }

    /// Number of tables whose rows are summed into the hidden layer. They come first among the tensors.
    pub(super) fn tables(&self) -> usize {
        self.context + self.ngram_max - 1
    }

    /// One (table, row) for each table and a context of exactly `self.context` bytes, the newest byte last.
    pub(super) fn rows(&self, context: &[u8]) -> impl Iterator<Item = (usize, usize)> {
        debug_assert_eq!(context.len(), self.context);
        // `context.1` looks at the newest byte, so that its name holds when the context is made longer.
        let places = context.iter().rev().map(|byte| usize::from(*byte));
        let ngrams =
            (2..=self.ngram_max).map(|order| bucket(&context[self.context - order..], self.ngram_buckets));
        places.chain(ngrams).enumerate()
    }
}

/// A named array of parameters in row-major order.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Name, as in the checkpoint.
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// The values; as many as the product of `shape`.
    pub data: Vec<f32>,
}

/// A model: settings, and tensors that fit them.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    config: Config,
    tensors: Vec<Tensor>,
}

impl Model {
    /// An untrained model. The same settings and seed give the same values.
    pub fn new(config: Config, seed: u64) -> Result<Self, Error> {
        config.check()?;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        // The standard deviation of a uniform value in +-a is a / sqrt(3).
        let output_scale = (3.0 / config.hidden as f32).sqrt();
        let tensors = config
            .tensor_shapes()
            .into_iter()
            .map(|(name, shape)| {
                let scale = match name.as_str() {
                    "hidden.bias" | "output.bias" => 0.0,
                    "output.weight" => output_scale,
                    name if name.starts_with("ngram.") => 0.01,
                    _ => 0.1,
                };
                let len = shape.iter().product();
                let data = (0..len).map(|_| scale * (2.0 * uniform(&mut rng) - 1.0)).collect();
                Tensor { name, shape, data }
            })
            .collect();
        Ok(Model { config, tensors })
    }

    /// A model from tensors in any order; each must be there once, with its shape, and finite.
    pub fn from_tensors(config: Config, tensors: impl IntoIterator<Item = Tensor>) -> Result<Self, Error> {
        config.check()?;
        let mut given: Vec<Tensor> = tensors.into_iter().collect();
        let mut ordered = Vec::new();
        for (name, expected) in config.tensor_shapes() {
            let Some(index) = given.iter().position(|tensor| tensor.name == name) else {
                return Err(Error::TensorMissing { name });
            };
            let tensor = given.swap_remove(index);
            if tensor.shape != expected || tensor.data.len() != expected.iter().product::<usize>() {
                return Err(Error::TensorShape { name, expected, found: tensor.shape });
            }
            if let Some(index) = tensor.data.iter().position(|value| !value.is_finite()) {
                return Err(Error::TensorNotFinite { name, index });
            }
            ordered.push(tensor);
        }
        match given.pop() {
            Some(tensor) => Err(Error::TensorUnexpected { name: tensor.name }),
            None => Ok(Model { config, tensors: ordered }),
        }
    }

    /// The settings.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The tensors, in the order of [`Config::tensor_shapes`].
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The tensors, taken out: change their values and hand them to [`Model::from_tensors`].
    pub fn into_tensors(self) -> Vec<Tensor> {
        self.tensors
    }

    pub(super) fn tensors_mut(&mut self) -> &mut [Tensor] {
        &mut self.tensors
    }

    /// The hidden layer for the given (table, row). `hidden` is as long as `config.hidden`.
    pub(super) fn hidden_layer(&self, rows: impl Iterator<Item = (usize, usize)>, hidden: &mut [f32]) {
        let width = self.config.hidden;
        hidden.copy_from_slice(&self.tensors[self.config.tables()].data);
        for (table, row) in rows {
            add_scaled(hidden, &self.tensors[table].data[row * width..(row + 1) * width], 1.0);
        }
        for unit in hidden.iter_mut() {
            *unit = unit.max(0.0);
        }
    }

    /// The unnormalised log-probability of each byte.
    pub(super) fn logits(&self, hidden: &[f32], logits: &mut [f32]) {
        let tables = self.config.tables();
        let weight = &self.tensors[tables + 1].data;
        let bias = &self.tensors[tables + 2].data;
        for ((logit, row), bias) in logits.iter_mut().zip(weight.chunks_exact(hidden.len())).zip(bias) {
            *logit = bias + dot(row, hidden);
        }
    }

    fn logits_after(&self, history: &[u8]) -> Vec<f32> {
        let config = &self.config;
        let mut context = vec![END; config.context.saturating_sub(history.len())];
        context.extend_from_slice(&history[history.len().saturating_sub(config.context)..]);
        let mut hidden = vec![0.0; config.hidden];
        self.hidden_layer(config.rows(&context), &mut hidden);
        let mut logits = vec![0.0; VOCAB];
        self.logits(&hidden, &mut logits);
        logits
    }
}

impl Predict for Model {
    fn loss_nats(&self, history: &[u8], next: u8) -> f64 {
        let logits = self.logits_after(history);
        let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|logit| libm::exp(f64::from(logit - top))).sum();
        libm::log(sum) - f64::from(logits[usize::from(next)] - top)
    }
}

/// Up to `bytes_max` bytes that follow `prompt`, ending early where the model ends the document.
///
/// A `temperature` of zero or less takes the likeliest byte each time; one draws from the model as it is. Bytes that
/// are not UTF-8 come out as replacement characters.
pub fn generate(model: &Model, prompt: &str, bytes_max: usize, temperature: f32, seed: u64) -> String {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut text = prompt.as_bytes().to_vec();
    for _ in 0..bytes_max {
        let next = draw(&model.logits_after(&text), temperature, &mut rng);
        if next == END {
            break;
        }
        text.push(next);
    }
    String::from_utf8_lossy(&text[prompt.len()..]).into_owned()
}

/// `target += factor * source`, element by element.
pub(super) fn add_scaled(target: &mut [f32], source: &[f32], factor: f32) {
    for (target, source) in target.iter_mut().zip(source) {
        *target += factor * source;
    }
}

/// Uniform in [0, 1), 24 bits.
pub(super) fn uniform(rng: &mut ChaCha8Rng) -> f32 {
    (rng.next_u32() >> 8) as f32 / (1 << 24) as f32
}

/// Eight partial sums: the order is fixed, and the compiler may use vector instructions.
fn dot(left: &[f32], right: &[f32]) -> f32 {
    let mut sums = [0.0f32; 8];
    let (left_blocks, left_rest) = left.as_chunks::<8>();
    let (right_blocks, right_rest) = right.as_chunks::<8>();
    for (left, right) in left_blocks.iter().zip(right_blocks) {
        for lane in 0..8 {
            sums[lane] += left[lane] * right[lane];
        }
    }
    let rest: f32 = left_rest.iter().zip(right_rest).map(|(left, right)| left * right).sum();
    sums.iter().sum::<f32>() + rest
}

/// FNV-1a with its high bits folded in, reduced to a row. Part of the checkpoint's meaning: never change it.
fn bucket(ngram: &[u8], buckets: usize) -> usize {
    let hash =
        ngram.iter().fold(0x811c_9dc5u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    (hash ^ (hash >> 15)) as usize % buckets
}

fn draw(logits: &[f32], temperature: f32, rng: &mut ChaCha8Rng) -> u8 {
    let (best, top) = (0u8..=255).zip(logits).fold((0, f32::NEG_INFINITY), |best, (byte, logit)| {
        if *logit > best.1 { (byte, *logit) } else { best }
    });
    // Also true for NaN.
    if !matches!(temperature.partial_cmp(&0.0), Some(std::cmp::Ordering::Greater)) {
        return best;
    }
    let weight = |logit: &f32| libm::expf((logit - top) / temperature);
    let mut left = uniform(rng) * logits.iter().map(weight).sum::<f32>();
    for (byte, logit) in (0u8..=255).zip(logits) {
        left -= weight(logit);
        if left < 0.0 {
            return byte;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Config {
        Config { context: 4, hidden: 12, ngram_max: 3, ngram_buckets: 50 }
    }

    #[test]
    fn probabilities_sum_to_one_after_any_history() {
        let model = Model::new(small(), 1).expect("settings are fine");
        for history in [&b""[..], b"a", b"lock", b"a longer history than the context"] {
            let sum: f64 = (0u8..=255).map(|next| libm::exp(-model.loss_nats(history, next))).sum();
            assert!((sum - 1.0).abs() < 1e-9, "{sum} after {history:?}");
        }
    }

    #[test]
    fn only_the_context_matters() {
        let model = Model::new(small(), 1).expect("settings are fine");
        assert_eq!(model.loss_nats(b"xxxxlock", b's'), model.loss_nats(b"lock", b's'));
        assert_ne!(model.loss_nats(b"lock", b's'), model.loss_nats(b"lick", b's'));
    }

    #[test]
    fn tensors_may_come_in_any_order_but_must_fit() {
        let model = Model::new(small(), 1).expect("settings are fine");
        let mut tensors = model.clone().into_tensors();
        tensors.reverse();
        assert_eq!(Model::from_tensors(small(), tensors.clone()).expect("all tensors"), model);

        let mut missing = tensors.clone();
        let lost = missing.pop().expect("tensors");
        let error = Model::from_tensors(small(), missing).expect_err("one is missing");
        assert!(matches!(&error, Error::TensorMissing { name } if *name == lost.name), "{error}");

        let twice = tensors.iter().cloned().chain([lost]);
        let error = Model::from_tensors(small(), twice).expect_err("one is there twice");
        assert!(matches!(error, Error::TensorUnexpected { .. }), "{error}");

        let wider = Config { hidden: 13, ..small() };
        let error = Model::from_tensors(wider, tensors.clone()).expect_err("other width");
        assert_eq!(
            error.to_string(),
            "tensor context.1.weight has shape [256, 12], the config calls for [256, 13]: one of the two is wrong"
        );

        tensors[0].data[7] = f32::NAN;
        let error = Model::from_tensors(small(), tensors).expect_err("NaN");
        assert!(matches!(error, Error::TensorNotFinite { index: 7, .. }), "{error}");
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        for config in [
            Config { hidden: 0, ..small() },
            Config { context: 65, ..small() },
            Config { ngram_max: 5, ..small() },
            Config { hidden: 4096, ngram_buckets: 1 << 24, ..small() },
        ] {
            let error = Model::new(config, 1).expect_err("out of range");
            assert!(matches!(error, Error::Setting { .. }), "{error}");
        }
    }

    #[test]
    fn drawing_follows_the_temperature_and_the_seed() {
        let mut logits = vec![-50.0; VOCAB];
        logits[usize::from(b'a')] = 0.0;
        logits[usize::from(b'b')] = libm::logf(3.0);
        let count = |temperature: f32, seed: u64| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            (0..4000).filter(|_| draw(&logits, temperature, &mut rng) == b'b').count()
        };
        assert_eq!(count(0.0, 1), 4000);
        // Three quarters of 4000, and five standard deviations either way.
        assert!((2863..=3137).contains(&count(1.0, 1)), "{}", count(1.0, 1));
        assert_eq!(count(1.0, 2), count(1.0, 2));
        assert!(count(0.5, 1) > count(1.0, 1));
    }
}
