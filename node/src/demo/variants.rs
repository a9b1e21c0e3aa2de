//! The demo's model in several states, good and bad, and its evaluator: what a gate can be tried on.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use clap::ValueEnum;
use serde_json::{Value, json};
use weighlock_protocol::Sha256;
use weighlock_protocol::gate::{Harness, Metric, Report, Runtime, Sample, Samples, Scale};

use super::lm;
use crate::error::{Error, Result};
use crate::weigh::report::Loaded;

/// Passes over the text of the first version.
const EARLY_EPOCHS: usize = 2;
/// Steps on either side of zero that the weights of the bad version are rounded to.
const LEVELS: f32 = 3.0;

/// A state of the small language model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Variant {
    /// Trained for a short time: a first version
    Early,
    /// Trained to the end: a better version
    Trained,
    /// The same with its weights rounded to seven values a tensor: a quantization gone wrong
    Quantized,
    /// The same with another tokenizer: a fine-tune that changed what it must not
    Tokenizer,
}

/// Trains the model, writes it in one of its states to a directory that holds nothing yet, and answers what came out
/// of it.
///
/// # Errors
/// The directory cannot be written.
pub fn write_variant(dir: &Path, variant: Variant) -> Result<Value> {
    let mut config = lm::TrainConfig::default();
    if variant == Variant::Early {
        config.epochs = EARLY_EPOCHS;
    }
    let mut recipe = lm::Recipe::run(&config).map_err(Error::internal)?;
    if variant == Variant::Quantized {
        let settings = *recipe.model.config();
        let rounded = recipe.model.into_tensors().into_iter().map(rounded);
        recipe.model = lm::Model::from_tensors(settings, rounded).map_err(Error::internal)?;
        recipe.eval = lm::evaluate(&recipe.model, &lm::Suite::validation());
    }
    recipe.save(dir, lm::SHARD_BYTES_MAX).map_err(Error::invalid)?;
    if variant == Variant::Tokenizer {
        let path = dir.join("tokenizer.json");
        let fail = |e: std::io::Error| Error::invalid(format!("{}: {e}", path.display()));
        let text = fs::read_to_string(&path).map_err(fail)?;
        // Lower-cases what it reads, which no weight file shows.
        let other = text.replace("\"normalizer\": null", "\"normalizer\": {\"type\": \"Lowercase\"}");
        fs::write(&path, other).map_err(fail)?;
    }
    let loss = &recipe.eval.metrics.eval_loss;
    Ok(json!({
        "parameters": recipe.model.config().parameters(),
        "eval_loss": loss.value,
        "eval_loss_stderr": loss.stderr,
        "bigram_loss": recipe.bigram.metrics.eval_loss.value,
        "sample": recipe.sample,
    }))
}

/// Evaluates such a model document by document and leaves report and samples in a directory: an evaluator for
/// `weighlock eval`.
///
/// # Errors
/// No such model, or the directory cannot be written.
pub fn evaluate(model: &Path, out: &Path) -> Result<Value> {
    let model = lm::load(model).map_err(Error::invalid)?;
    let suite = lm::Suite::validation();
    let found = lm::evaluate(&model, &suite);
    let one = |sample: &lm::Sample| Sample {
        id: sample.id.clone(),
        // Each document stands for itself.
        cluster: String::new(),
        value: sample.loss,
        weight: sample.tokens as f64,
    };
    let samples = Samples::new(found.samples.iter().map(one).collect()).map_err(Error::internal)?;
    let mean = samples.mean().unwrap_or_default();
    let metric = |value: f64, stderr: Option<f64>, scale: Scale| Metric {
        value,
        stderr,
        n: Some(samples.len() as u64),
        n_total: Some(suite.documents.len() as u64),
        higher_is_better: Some(false),
        scale,
        task_version: String::new(),
        n_shot: None,
        samples: Some(samples.digest()),
    };
    let own = concat!(env!("CARGO_PKG_NAME"), "-demo");
    let report = Report {
        version: weighlock_protocol::gate::report::REPORT_VERSION,
        artifact: None,
        suite: Some(Sha256::of(suite.to_json_lines().as_bytes())),
        harness: Harness { name: own.into(), version: env!("CARGO_PKG_VERSION").into(), git_hash: None },
        runtime: Runtime {
            name: own.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            kernels: String::new(),
        },
        host: None,
        seed: None,
        time: None,
        chat_template_sha256: None,
        metrics: BTreeMap::from([
            ("eval_loss".to_owned(), metric(mean, found.metrics.eval_loss.stderr, Scale::Mean)),
            (
                "perplexity".to_owned(),
                metric(libm::exp(mean), found.metrics.perplexity.stderr, Scale::ExpMean),
            ),
        ]),
    };
    let names = report.metrics.keys().cloned();
    let samples = names.map(|name| (name, samples.clone())).collect();
    fs::create_dir_all(out).map_err(|e| Error::invalid(format!("{}: {e}", out.display())))?;
    Loaded { report, samples, source: None }.write(out)?;
    Ok(json!({"eval_loss": mean, "documents": suite.documents.len()}))
}

/// Every value to the nearest of a few steps between the tensor's extremes.
fn rounded(mut tensor: lm::Tensor) -> lm::Tensor {
    let most = tensor.data.iter().fold(0.0f32, |most, value| most.max(value.abs()));
    if most > 0.0 {
        let step = most / LEVELS;
        tensor.data.iter_mut().for_each(|value| *value = (*value / step).round() * step);
    }
    tensor
}
