//! A small byte-level language model: trained in seconds, evaluated per document, written as a checkpoint.
//!
//! Everything is a function of the seed and the settings. Sums run in one fixed order on one thread, and `exp` and
//! `ln` come from `libm`, so the same inputs give the same bytes on every machine.

mod baseline;
mod checkpoint;
mod config_file;
mod corpus;
mod eval;
mod model;
mod recipe;
mod tokenizer;
mod train;

use std::path::PathBuf;

pub use baseline::{Bigram, Unigram};
pub use checkpoint::{SHARD_BYTES_MAX, load, save};
pub use corpus::{Document, VALIDATION_STRIDE, documents, training_documents, validation_documents};
pub use eval::{EvalReport, Metric, Metrics, Predict, REPORT_VERSION, Sample, Suite, SuiteId, evaluate};
pub use model::{Config, END, Limits, Model, Tensor, VOCAB, generate};
pub use recipe::Recipe;
pub use train::{TrainConfig, TrainReport, train};

/// What can go wrong with a model or its checkpoint directory.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting is outside its range.
    #[error("model setting {name} is {value}, allowed is {min} to {max}: choose another value")]
    Setting {
        /// Name of the setting.
        name: &'static str,
        /// What was asked for.
        value: usize,
        /// Least allowed value.
        min: usize,
        /// Greatest allowed value.
        max: usize,
    },
    /// Nothing to train on.
    #[error("no training text: give at least one document")]
    NoText,
    /// A tensor that the settings call for is not there.
    #[error("tensor {name} is missing: the weights do not belong to this config")]
    TensorMissing {
        /// Name of the tensor.
        name: String,
    },
    /// A tensor that the settings do not call for, or one that is there twice.
    #[error("tensor {name} is not expected here: the weights do not belong to this config")]
    TensorUnexpected {
        /// Name of the tensor.
        name: String,
    },
    /// A tensor has another shape than the settings call for.
    #[error("tensor {name} has shape {found:?}, the config calls for {expected:?}: one of the two is wrong")]
    TensorShape {
        /// Name of the tensor.
        name: String,
        /// Shape that the config calls for.
        expected: Vec<usize>,
        /// Shape that was found.
        found: Vec<usize>,
    },
    /// A tensor holds NaN or an infinity.
    #[error(
        "tensor {name} holds a value that is not finite at element {index}: train or copy the model again"
    )]
    TensorNotFinite {
        /// Name of the tensor.
        name: String,
        /// First such element, in row-major order.
        index: usize,
    },
    /// A file could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// `read`, `write` or `create`.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The target directory holds something already.
    #[error("{} is not empty: name a new directory", path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// A file of the checkpoint does not say what it must.
    #[error("{} is not part of a checkpoint that we can read: {reason}", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}
