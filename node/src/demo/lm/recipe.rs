//! From settings to a finished artifact: train on the corpus, evaluate, write the checkpoint with its card.

use std::path::Path;

use super::Error;
use super::baseline::{Bigram, Unigram};
use super::checkpoint::{save, write};
use super::corpus::{Document, training_documents};
use super::eval::{EvalReport, Metric, Suite, evaluate};
use super::model::{Model, generate};
use super::train::{TrainConfig, TrainReport, train};

/// A trained model with everything that was measured on the way.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    /// How it was trained.
    pub config: TrainConfig,
    /// The model.
    pub model: Model,
    /// How training went.
    pub training: TrainReport,
    /// The model on the suite.
    pub eval: EvalReport,
    /// Counting single bytes on the suite.
    pub unigram: EvalReport,
    /// Counting pairs of bytes on the suite.
    pub bigram: EvalReport,
    /// A prompt and what the model made of it.
    pub sample: String,
}

impl Recipe {
    /// Trains on the training documents of the corpus and evaluates on its validation documents.
    pub fn run(config: &TrainConfig) -> Result<Self, Error> {
        Self::run_on(config, &training_documents(), &Suite::validation())
    }

    /// The same on other text. What is evaluated on must not be trained on: nothing here checks that.
    pub fn run_on(config: &TrainConfig, documents: &[Document], suite: &Suite) -> Result<Self, Error> {
        let (model, training) = train(config, documents)?;
        let prompt = "The keeper";
        let sample = format!("{prompt}{}", generate(&model, prompt, 200, 0.6, config.seed));
        Ok(Recipe {
            config: *config,
            training,
            eval: evaluate(&model, suite),
            unigram: evaluate(&Unigram::fit(documents), suite),
            bigram: evaluate(&Bigram::fit(documents), suite),
            sample,
            model,
        })
    }

    /// Writes the checkpoint, `eval_report.json` and `README.md` into a new or empty directory. See [`save`].
    pub fn save(&self, dir: &Path, shard_bytes_max: usize) -> Result<(), Error> {
        save(dir, &self.model, shard_bytes_max)?;
        write(&dir.join("eval_report.json"), self.eval.to_json())?;
        write(&dir.join("README.md"), self.card())
    }

    fn card(&self) -> String {
        let Recipe { config, training, eval, unigram, bigram, sample, .. } = self;
        let settings = config.model;
        let shown = |metric: Metric| match metric.stderr {
            Some(stderr) => format!("{:.4} +- {stderr:.4}", metric.value),
            None => format!("{:.4}", metric.value),
        };
        let last_loss = training.epoch_losses.last().map_or("none".to_owned(), |loss| format!("{loss:.4}"));
        format!(
            "\
---
language: en
license: apache-2.0
pipeline_tag: text-generation
tags:
- byte-level
---

# A small byte-level language model about canals

Predicts the next byte from the last {context}. It was trained in seconds on a few pages of text, to have a real
artifact to move, evaluate and quantize. It writes something like English and knows nothing.

## Model

- {parameters} parameters, F32.
- Hidden layer: relu over {hidden} units, summed from a table row for each of the last {context} bytes and for the
  hash of the last 2 to {ngram_max} bytes ({ngram_buckets} rows a table). Rows that no text has touched keep their
  random first values.
- Output: linear and softmax over 256 bytes. Byte 0 stands before and after each document.

## Training

- {tokens} tokens (bytes and ends of documents), {epochs} epochs, {steps} steps of Adam in batches of {batch}, learning
  rate {rate} falling to zero, seed {seed}.
- Training loss of the last epoch: {last_loss} nats per token.
- The settings were chosen by hand on the split that is reported here, so its loss flatters the model a little.

## Evaluation

Suite `{suite}`, {documents} documents that were not trained on, SHA-256
`{sha256}`.
Nats per token, with the standard error clustered by document.

| model | eval_loss | perplexity |
|---|---|---|
| this model | {loss} | {perplexity} |
| byte bigrams | {bigram_loss} | {bigram_perplexity} |
| byte frequencies | {unigram_loss} | {unigram_perplexity} |

## Sample

Temperature 0.6:

```text
{sample}
```
",
            context = settings.context,
            parameters = settings.parameters(),
            hidden = settings.hidden,
            ngram_max = settings.ngram_max,
            ngram_buckets = settings.ngram_buckets,
            tokens = training.tokens,
            epochs = config.epochs,
            steps = training.steps,
            batch = config.batch,
            rate = config.learning_rate,
            seed = config.seed,
            suite = eval.suite.name,
            sha256 = eval.suite.sha256,
            documents = eval.samples.len(),
            loss = shown(eval.metrics.eval_loss),
            perplexity = shown(eval.metrics.perplexity),
            bigram_loss = shown(bigram.metrics.eval_loss),
            bigram_perplexity = shown(bigram.metrics.perplexity),
            unigram_loss = shown(unigram.metrics.eval_loss),
            unigram_perplexity = shown(unigram.metrics.perplexity),
        )
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::{Config, END, documents, load};
    use super::*;

    fn small() -> Recipe {
        let config = TrainConfig {
            model: Config { context: 4, hidden: 16, ngram_max: 3, ngram_buckets: 256 },
            epochs: 1,
            ..TrainConfig::default()
        };
        let suite = Suite { name: "few".to_owned(), documents: documents()[3..6].to_vec() };
        Recipe::run_on(&config, &documents()[..3], &suite).expect("settings are fine")
    }

    fn files(recipe: &Recipe) -> BTreeMap<String, Vec<u8>> {
        let dir = tempfile::tempdir().expect("a directory");
        recipe.save(dir.path(), 16 << 10).expect("written");
        std::fs::read_dir(dir.path())
            .expect("listed")
            .map(|entry| entry.expect("an entry"))
            .map(|entry| {
                let name = entry.file_name().into_string().expect("UTF-8");
                (name, std::fs::read(entry.path()).expect("read"))
            })
            .collect()
    }

    #[test]
    fn the_same_settings_give_the_same_files() {
        let first = files(&small());
        assert_eq!(first, files(&small()));
        let names: Vec<&str> =
            first.keys().map(String::as_str).filter(|name| !name.starts_with("model-")).collect();
        assert_eq!(
            names,
            [
                "README.md",
                "config.json",
                "eval_report.json",
                "generation_config.json",
                "model.safetensors.index.json",
                "tokenizer.json",
                "tokenizer_config.json"
            ]
        );
        for (name, content) in first.iter().filter(|(name, _)| name.ends_with(".json")) {
            serde_json::from_slice::<serde_json::Value>(content)
                .unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }

    #[test]
    fn a_loaded_checkpoint_gives_the_report_that_was_written() {
        let recipe = small();
        let dir = tempfile::tempdir().expect("a directory");
        recipe.save(dir.path(), 16 << 10).expect("written");
        let model = load(dir.path()).expect("loads");
        let suite = Suite { name: "few".to_owned(), documents: documents()[3..6].to_vec() };
        let report = evaluate(&model, &suite);
        assert_eq!(report, recipe.eval);
        let written = std::fs::read_to_string(dir.path().join("eval_report.json")).expect("read");
        assert_eq!(report.to_json(), written);
        let card = std::fs::read_to_string(dir.path().join("README.md")).expect("read");
        assert!(card.contains(&format!("{:.4}", report.metrics.eval_loss.value)), "{card}");
    }

    /// The loss from the named tensors alone, in f64, written a second time from the model card's words.
    #[test]
    fn the_report_matches_a_slow_recomputation() {
        let recipe = small();
        let config = recipe.model.config();
        let tensors: BTreeMap<&str, &[f32]> =
            recipe.model.tensors().iter().map(|tensor| (tensor.name.as_str(), &tensor.data[..])).collect();
        let row = |name: &str, row: usize, unit: usize| f64::from(tensors[name][row * config.hidden + unit]);
        let (mut total, mut tokens) = (0.0, 0);
        for document in &documents()[3..6] {
            let mut padded = vec![END; config.context];
            padded.extend(document.text.bytes());
            padded.push(END);
            for at in config.context..padded.len() {
                let mut hidden: Vec<f64> =
                    tensors["hidden.bias"].iter().map(|bias| f64::from(*bias)).collect();
                for (unit, value) in hidden.iter_mut().enumerate() {
                    for place in 1..=config.context {
                        *value +=
                            row(&format!("context.{place}.weight"), usize::from(padded[at - place]), unit);
                    }
                    for order in 2..=config.ngram_max {
                        let mut hash = 2_166_136_261u32;
                        for byte in &padded[at - order..at] {
                            hash = (hash ^ u32::from(*byte)).wrapping_mul(16_777_619);
                        }
                        hash ^= hash >> 15;
                        let bucket = hash as usize % config.ngram_buckets;
                        *value += row(&format!("ngram.{order}.weight"), bucket, unit);
                    }
                    *value = value.max(0.0);
                }
                let logit = |byte: usize| -> f64 {
                    let products = hidden
                        .iter()
                        .enumerate()
                        .map(|(unit, value)| value * row("output.weight", byte, unit));
                    products.sum::<f64>() + f64::from(tensors["output.bias"][byte])
                };
                let sum: f64 = (0..256).map(|byte| logit(byte).exp()).sum();
                total += sum.ln() - logit(usize::from(padded[at]));
                tokens += 1;
            }
        }
        let slow = total / f64::from(tokens);
        let reported = recipe.eval.metrics.eval_loss.value;
        assert!((slow - reported).abs() < 1e-5, "slow {slow}, reported {reported}");
    }
}
