//! Comparing two checkpoints: tensors, contract, files, and what a fetch of one moves to a host that holds the other.
//!
//! Both sides are read once, in chunks, on all cores; memory stays far below what the sides hold.

mod blocks;
mod compare;
mod contract;
mod delta;
mod element;
mod error;
mod files;
mod side;
mod stats;
mod tensors;
mod text;
mod tokens;

use std::sync::atomic::AtomicBool;

use serde::Serialize;

pub use self::contract::FieldChange;
pub use self::delta::Delta;
pub use self::error::DiffError;
pub use self::files::{FileDiff, Files, TemplateDiff};
pub use self::side::Side;
pub use self::stats::{Stats, Values};
pub use self::tensors::{Change, Compared, DtypeShift, TensorDiff, TensorSide, Tensors};
pub use self::text::TextDiff;
pub use self::tokens::TokenDiff;

use self::compare::Comparer;

/// Limits of a comparison.
#[derive(Debug, Clone)]
pub struct DiffConfig {
    /// Bytes of each side that a thread reads at a time, at least 16 KiB.
    pub chunk_bytes: usize,
    /// Most threads.
    pub threads_max: usize,
    /// Largest text that is compared line by line, in bytes.
    pub text_bytes_max: u64,
    /// Most lines of one text difference that are kept; the rest is counted.
    pub text_lines_max: usize,
    /// Longest line of a text difference, in characters; the rest is counted.
    pub text_line_chars_max: usize,
    /// Equal lines around each difference.
    pub text_context_lines: usize,
    /// Largest `tokenizer.json` that is compared token by token, in bytes.
    pub tokenizer_bytes_max: u64,
}

impl Default for DiffConfig {
    fn default() -> Self {
        Self {
            chunk_bytes: 256 << 10,
            threads_max: 64,
            text_bytes_max: 1 << 20,
            text_lines_max: 200,
            text_line_chars_max: 400,
            text_context_lines: 3,
            tokenizer_bytes_max: 32 << 20,
        }
    }
}

/// How far a comparison is. Reports come from several threads; each number only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiffProgress {
    /// Bytes read, of both sides together.
    pub done_bytes: u64,
    /// Bytes that need reading.
    pub total_bytes: u64,
}

/// How two sides differ.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Diff {
    /// Whether they do not: every file has the same bytes, and the contracts say the same.
    pub same: bool,
    /// What was compared.
    pub a: SideSummary,
    /// With what.
    pub b: SideSummary,
    /// Tensors by name.
    pub tensors: Tensors,
    /// Fields of the contract that differ.
    pub contract: Vec<FieldChange>,
    /// Chat templates that differ.
    pub templates: Vec<TemplateDiff>,
    /// Other keys of weights headers that differ.
    pub header: Vec<FieldChange>,
    /// Files by path.
    pub files: Files,
    /// What a fetch of B moves to a host that holds A.
    pub delta: Delta,
}

/// One side in figures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SideSummary {
    /// What the user named.
    pub name: String,
    /// Files.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Tensors in them.
    pub tensors: usize,
}

/// Compares two sides. The answer is the same whatever the number of threads.
///
/// # Errors
/// A file that cannot be read or changes meanwhile; cancelled.
pub fn diff(
    a: &Side,
    b: &Side,
    config: &DiffConfig,
    progress: &(dyn Fn(DiffProgress) + Sync),
    cancel: &AtomicBool,
) -> Result<Diff, DiffError> {
    let pairing = tensors::pair(a, b);
    let file_pairs = files::pair(a, b);
    let tasks: Vec<_> = pairing.pairs.iter().filter_map(|pair| pair.task).chain(file_pairs.tasks()).collect();
    let tensor_tasks = pairing.pairs.iter().filter(|pair| pair.task.is_some()).count();

    let mut outcomes = Comparer { a, b, config, progress, cancel }.run(&tasks)?;
    let of_files = outcomes.split_off(tensor_tasks);
    let (tensors, equal) = pairing.finish(a, b, outcomes);
    let (files, whole) = file_pairs.finish((a, b), of_files, &equal, config)?;
    let contract = contract::contract_changes(&a.contract, &b.contract);
    let diff = Diff {
        same: files.differing.is_empty() && contract.is_empty(),
        a: summary(a),
        b: summary(b),
        contract,
        templates: files::templates(a, b, config)?,
        header: contract::key_changes(&a.header, &b.header),
        delta: delta::delta(a, b, &equal, &whole),
        tensors,
        files,
    };
    a.check_unchanged()?;
    b.check_unchanged()?;
    Ok(diff)
}

fn summary(side: &Side) -> SideSummary {
    SideSummary {
        name: side.name.clone(),
        files: side.files.len(),
        bytes: side.total_bytes(),
        tensors: side.files.iter().map(|file| file.tensors.len()).sum(),
    }
}

#[cfg(test)]
mod tests;
