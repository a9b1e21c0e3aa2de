//! The trainer: Adam over shuffled batches, one thread, one fixed order of sums.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::Error;
use super::corpus::Document;
use super::model::{Config, END, Model, VOCAB, add_scaled};

const BETA1: f32 = 0.9;
const BETA2: f32 = 0.99;
const EPSILON: f32 = 1e-8;

/// How to train.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrainConfig {
    /// Settings of the model.
    pub model: Config,
    /// Seed of the first values and of the order of the text.
    pub seed: u64,
    /// Passes over the text.
    pub epochs: usize,
    /// Predictions per step, at least 1.
    pub batch: usize,
    /// Step size of Adam at the start; it falls linearly to zero.
    pub learning_rate: f32,
}

impl Default for TrainConfig {
    fn default() -> Self {
        TrainConfig { model: Config::default(), seed: 1, epochs: 5, batch: 64, learning_rate: 4e-3 }
    }
}

/// What training went through.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainReport {
    /// Tokens in the text; a token is a byte or the end of a document.
    pub tokens: usize,
    /// Steps taken.
    pub steps: usize,
    /// Mean loss of each epoch in nats per token, each prediction before the step it led to.
    pub epoch_losses: Vec<f64>,
}

/// Trains a model on documents. The same settings and documents give the same model, bit for bit.
pub fn train(config: &TrainConfig, documents: &[Document]) -> Result<(Model, TrainReport), Error> {
    let text = Text::new(documents, config.model.context);
    if text.targets.is_empty() {
        return Err(Error::NoText);
    }
    let mut model = Model::new(config.model, config.seed)?;
    let mut rng = ChaCha8Rng::seed_from_u64(config.seed.wrapping_add(1));
    let batch = config.batch.max(1);
    let steps_total = config.epochs * text.targets.len().div_ceil(batch);
    let mut trainer = Trainer::new(&model, batch);
    let mut order = text.targets.clone();
    let mut report = TrainReport { tokens: order.len(), steps: 0, epoch_losses: Vec::new() };
    for _ in 0..config.epochs {
        shuffle(&mut order, &mut rng);
        let mut loss = 0.0;
        for targets in order.chunks(batch) {
            let left = 1.0 - report.steps as f32 / steps_total as f32;
            loss += trainer.accumulate(&model, &text, targets);
            trainer.apply(&mut model, config.learning_rate * left);
            report.steps += 1;
        }
        report.epoch_losses.push(loss / order.len() as f64);
    }
    // Refuses what a learning rate too high leaves behind: values that are not finite.
    Ok((Model::from_tensors(config.model, model.into_tensors())?, report))
}

/// All documents in one buffer, each behind a full context of [`END`] bytes and followed by one.
struct Text {
    bytes: Vec<u8>,
    context: usize,
    targets: Vec<usize>,
}

impl Text {
    fn new(documents: &[Document], context: usize) -> Self {
        let mut bytes = Vec::new();
        let mut targets = Vec::new();
        for document in documents {
            bytes.resize(bytes.len() + context, END);
            targets.extend(bytes.len()..=bytes.len() + document.text.len());
            bytes.extend_from_slice(document.text.as_bytes());
            bytes.push(END);
        }
        Text { bytes, context, targets }
    }

    fn context_of(&self, target: usize) -> &[u8] {
        &self.bytes[target - self.context..target]
    }
}

/// First and second moments of one tensor's gradient.
struct Moments {
    first: Vec<f32>,
    second: Vec<f32>,
}

/// The gradient of one batch and Adam's memory.
struct Trainer {
    tables: usize,
    width: usize,
    moments: Vec<Moments>,
    /// BETA1 and BETA2 to the power of the steps taken, by multiplication: `powi` may differ between machines.
    decay1: f32,
    decay2: f32,
    /// Gradient at the hidden layer, one row per prediction: that of every table row which took part in it.
    hidden_gradients: Vec<f32>,
    /// (table, row, prediction): which table rows took part in which prediction.
    touched: Vec<(usize, usize, usize)>,
    output_weight: Vec<f32>,
    output_bias: Vec<f32>,
    hidden_bias: Vec<f32>,
    hidden: Vec<f32>,
    logits: Vec<f32>,
}

impl Trainer {
    fn new(model: &Model, batch: usize) -> Self {
        let width = model.config().hidden;
        let moments = model
            .tensors()
            .iter()
            .map(|tensor| Moments {
                first: vec![0.0; tensor.data.len()],
                second: vec![0.0; tensor.data.len()],
            })
            .collect();
        Trainer {
            tables: model.config().tables(),
            width,
            moments,
            decay1: 1.0,
            decay2: 1.0,
            hidden_gradients: vec![0.0; batch * width],
            touched: Vec::new(),
            output_weight: vec![0.0; VOCAB * width],
            output_bias: vec![0.0; VOCAB],
            hidden_bias: vec![0.0; width],
            hidden: vec![0.0; width],
            logits: vec![0.0; VOCAB],
        }
    }

    /// Puts the mean gradient over the targets in place of the last one; gives back the sum of their losses.
    fn accumulate(&mut self, model: &Model, text: &Text, targets: &[usize]) -> f64 {
        self.touched.clear();
        for gradient in [&mut self.output_weight, &mut self.output_bias, &mut self.hidden_bias] {
            gradient.fill(0.0);
        }
        let scale = 1.0 / targets.len() as f32;
        let mut loss = 0.0;
        for (prediction, target) in targets.iter().enumerate() {
            let first = self.touched.len();
            for (table, row) in model.config().rows(text.context_of(*target)) {
                self.touched.push((table, row, prediction));
            }
            let rows = self.touched[first..].iter().map(|(table, row, _)| (*table, *row));
            model.hidden_layer(rows, &mut self.hidden);
            model.logits(&self.hidden, &mut self.logits);
            let next = text.bytes[*target];
            loss += softmax(&mut self.logits, next);
            self.backward(model, prediction, next, scale);
        }
        loss
    }

    /// Adds the gradient of one prediction, whose probabilities stand in `logits`.
    fn backward(&mut self, model: &Model, prediction: usize, next: u8, scale: f32) {
        let width = self.width;
        self.logits[usize::from(next)] -= 1.0;
        let hidden_gradient = &mut self.hidden_gradients[prediction * width..(prediction + 1) * width];
        hidden_gradient.fill(0.0);
        let weight = &model.tensors()[self.tables + 1].data;
        for (byte, gradient) in self.logits.iter().enumerate() {
            let gradient = gradient * scale;
            let row = byte * width..(byte + 1) * width;
            add_scaled(hidden_gradient, &weight[row.clone()], gradient);
            add_scaled(&mut self.output_weight[row], &self.hidden, gradient);
            self.output_bias[byte] += gradient;
        }
        for (gradient, unit) in hidden_gradient.iter_mut().zip(&self.hidden) {
            if *unit <= 0.0 {
                *gradient = 0.0;
            }
        }
        add_scaled(&mut self.hidden_bias, hidden_gradient, 1.0);
    }

    /// One step of Adam. A table row that took part in no prediction stays as it is, and so do its moments.
    fn apply(&mut self, model: &mut Model, rate: f32) {
        self.decay1 *= BETA1;
        self.decay2 *= BETA2;
        let step = Step { rate: rate / (1.0 - self.decay1), scale2: 1.0 / (1.0 - self.decay2) };
        let tensors = model.tensors_mut();
        let dense = [&self.hidden_bias, &self.output_weight, &self.output_bias];
        for (index, gradient) in (self.tables..).zip(dense) {
            let moments = &mut self.moments[index];
            step.apply(&mut tensors[index].data, &mut moments.first, &mut moments.second, gradient);
        }
        // Sorted, so that the gradients of one row stand together and are summed in one order.
        self.touched.sort_unstable();
        let mut sum = vec![0.0; self.width];
        for same_row in self.touched.chunk_by(|left, right| (left.0, left.1) == (right.0, right.1)) {
            sum.fill(0.0);
            for (_, _, prediction) in same_row {
                let gradient = &self.hidden_gradients[prediction * self.width..(prediction + 1) * self.width];
                add_scaled(&mut sum, gradient, 1.0);
            }
            let (table, row, _) = same_row[0];
            let range = row * self.width..(row + 1) * self.width;
            let moments = &mut self.moments[table];
            step.apply(
                &mut tensors[table].data[range.clone()],
                &mut moments.first[range.clone()],
                &mut moments.second[range],
                &sum,
            );
        }
    }
}

/// The figures of one step of Adam that all parameters share.
struct Step {
    rate: f32,
    scale2: f32,
}

impl Step {
    fn apply(&self, values: &mut [f32], first: &mut [f32], second: &mut [f32], gradient: &[f32]) {
        for (((value, first), second), gradient) in values.iter_mut().zip(first).zip(second).zip(gradient) {
            *first += (1.0 - BETA1) * (gradient - *first);
            *second += (1.0 - BETA2) * (gradient * gradient - *second);
            *value -= self.rate * *first / ((*second * self.scale2).sqrt() + EPSILON);
        }
    }
}

/// Turns logits into probabilities; gives back the loss of `next` in nats.
fn softmax(logits: &mut [f32], next: u8) -> f64 {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let shifted = logits[usize::from(next)] - top;
    let mut sum = 0.0;
    for logit in logits.iter_mut() {
        *logit = libm::expf(*logit - top);
        sum += *logit;
    }
    let scale = 1.0 / sum;
    for logit in logits.iter_mut() {
        *logit *= scale;
    }
    f64::from(libm::logf(sum) - shifted)
}

fn shuffle(items: &mut [usize], rng: &mut ChaCha8Rng) {
    for last in (1..items.len()).rev() {
        let other = (u64::from(rng.next_u32()) * (last as u64 + 1)) >> 32;
        items.swap(last, other as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::super::eval::Predict;
    use super::super::{Bigram, Suite, Unigram};
    use super::super::{documents, evaluate, training_documents};
    use super::*;

    fn small() -> TrainConfig {
        TrainConfig {
            model: Config { context: 4, hidden: 16, ngram_max: 3, ngram_buckets: 512 },
            epochs: 1,
            ..TrainConfig::default()
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_model_and_another_seed_another() {
        let text = &documents()[..3];
        let train_with = |seed| train(&TrainConfig { seed, ..small() }, text).expect("settings are fine");
        assert_eq!(train_with(7), train_with(7));
        assert_ne!(train_with(7).0, train_with(8).0);
    }

    #[test]
    fn a_trained_model_beats_counting_on_text_it_has_not_seen() {
        let config = Config { context: 6, hidden: 32, ngram_max: 4, ngram_buckets: 4096 };
        let training = training_documents();
        let config = TrainConfig { model: config, epochs: 3, ..TrainConfig::default() };
        let (model, report) = train(&config, &training).expect("settings are fine");
        let suite = Suite::validation();
        let loss = |model: &dyn Predict| evaluate(model, &suite).metrics.eval_loss.value;
        let (neural, bigram, unigram) =
            (loss(&model), loss(&Bigram::fit(&training)), loss(&Unigram::fit(&training)));
        assert!(bigram < unigram - 0.5, "bigram {bigram}, unigram {unigram}");
        assert!(neural < bigram - 0.4, "neural {neural}, bigram {bigram}");
        assert!(report.epoch_losses.is_sorted_by(|before, after| before > after), "{report:?}");
        assert_eq!(report.steps, 3 * report.tokens.div_ceil(config.batch));
    }

    #[test]
    fn the_gradient_is_the_slope_of_the_loss() {
        let config = Config { context: 3, hidden: 5, ngram_max: 2, ngram_buckets: 7 };
        let text = Text::new(&documents()[..1], config.context);
        let target = &text.targets[10..11];
        let loss = |model: &Model| Trainer::new(model, 1).accumulate(model, &text, target);
        let model = Model::new(config, 3).expect("settings are fine");
        let mut trainer = Trainer::new(&model, 1);
        trainer.accumulate(&model, &text, target);

        let next = usize::from(text.bytes[target[0]]);
        let (_, row, _) = trainer.touched[1];
        let probes = [
            (1, row * 5..row * 5 + 5, trainer.hidden_gradients.clone()),
            (trainer.tables, 0..5, trainer.hidden_bias.clone()),
            (
                trainer.tables + 1,
                next * 5..next * 5 + 5,
                trainer.output_weight[next * 5..next * 5 + 5].to_vec(),
            ),
            (trainer.tables + 2, next..next + 1, vec![trainer.output_bias[next]]),
        ];
        let mut steep = 0;
        for (tensor, range, gradient) in probes {
            for (element, gradient) in range.zip(gradient) {
                let moved = |by: f32| {
                    let mut model = model.clone();
                    model.tensors_mut()[tensor].data[element] += by;
                    loss(&model)
                };
                let slope = (moved(0.0005) - moved(-0.0005)) / 0.001;
                let gradient = f64::from(gradient);
                assert!((slope - gradient).abs() < 0.01, "tensor {tensor}: {slope} is not {gradient}");
                steep += usize::from(gradient.abs() > 0.05);
            }
        }
        assert!(steep >= 5, "only {steep} gradients are far from zero");
    }

    #[test]
    fn a_model_that_has_diverged_is_refused() {
        let config = TrainConfig { learning_rate: f32::MAX, ..small() };
        let error = train(&config, &documents()[..1]).expect_err("not finite");
        assert!(matches!(error, Error::TensorNotFinite { .. }), "{error}");
    }

    #[test]
    fn no_text_is_refused() {
        assert!(matches!(train(&small(), &[]), Err(Error::NoText)));
    }
}
