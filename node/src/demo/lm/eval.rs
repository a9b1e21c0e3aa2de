//! The evaluator: mean loss per document and over a suite, with an error that knows documents are not independent.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::corpus::{Document, validation_documents};
use super::model::END;

/// Version of the report's JSON form.
pub const REPORT_VERSION: u32 = 1;

/// Something that gives each next byte a probability.
pub trait Predict {
    /// The negative logarithm, in nats, of the probability that `next` follows `history`.
    ///
    /// `history` is the document so far, and empty at its start; `next` is [`END`] at its end.
    fn loss_nats(&self, history: &[u8], next: u8) -> f64;
}

/// A named set of documents. What is compared across models must have the same name and hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suite {
    /// Name, for people.
    pub name: String,
    /// The documents, in order.
    pub documents: Vec<Document>,
}

impl Suite {
    /// The validation documents of the corpus in this crate.
    pub fn validation() -> Self {
        Suite { name: "canals-validation".to_owned(), documents: validation_documents() }
    }

    /// The suite as a file: one JSON object `{"id", "text"}` a line.
    pub fn to_json_lines(&self) -> String {
        let line = |document: &Document| {
            format!("{}\n", serde_json::json!({ "id": document.id, "text": document.text }))
        };
        self.documents.iter().map(line).collect()
    }

    /// Name and hash.
    pub fn id(&self) -> SuiteId {
        let digest = Sha256::digest(self.to_json_lines());
        let sha256 = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        SuiteId { name: self.name.clone(), sha256 }
    }
}

/// Which suite a report speaks of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuiteId {
    /// Name of the suite.
    pub name: String,
    /// SHA-256 of [`Suite::to_json_lines`], in lower-case hexadecimal.
    pub sha256: String,
}

/// One figure.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// The figure.
    pub value: f64,
    /// Its standard error, clustered by document; `None` for fewer than two documents.
    pub stderr: Option<f64>,
    /// Documents that it rests on.
    pub n: u64,
}

/// The figures of a report.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Mean loss in nats per token. A token is a byte or the end of a document. Lower is better.
    pub eval_loss: Metric,
    /// `exp(eval_loss)`, per token; its error by the delta method. Lower is better.
    pub perplexity: Metric,
}

/// The loss on one document: what a paired comparison of two models needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Name of the document.
    pub id: String,
    /// Mean loss in nats per token.
    pub loss: f64,
    /// Tokens: bytes and the end.
    pub tokens: u64,
}

/// What an evaluation found. Figures are rounded to nine decimals, so that any JSON reader gives back what was written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvalReport {
    /// [`REPORT_VERSION`].
    pub schema_version: u32,
    /// On what.
    pub suite: SuiteId,
    /// The figures.
    pub metrics: Metrics,
    /// Document by document, in the order of the suite.
    pub samples: Vec<Sample>,
}

impl EvalReport {
    /// The report as a file: indented JSON and a line break.
    pub fn to_json(&self) -> String {
        let json = serde_json::to_string_pretty(self).expect("a struct of numbers and strings is valid JSON");
        json + "\n"
    }
}

/// Evaluates a model on a suite. Every byte and the end of every document is predicted from all that precedes it.
///
/// A suite without documents gives a loss of zero with `n` zero.
pub fn evaluate(model: &dyn Predict, suite: &Suite) -> EvalReport {
    let mut samples: Vec<Sample> = suite.documents.iter().map(|document| sample(model, document)).collect();
    let eval_loss = clustered_mean(&samples);
    for sample in &mut samples {
        sample.loss = rounded(sample.loss);
    }
    let perplexity = libm::exp(eval_loss.value);
    EvalReport {
        schema_version: REPORT_VERSION,
        suite: suite.id(),
        metrics: Metrics {
            eval_loss: metric(eval_loss.value, eval_loss.stderr, eval_loss.n),
            perplexity: metric(perplexity, eval_loss.stderr.map(|stderr| perplexity * stderr), eval_loss.n),
        },
        samples,
    }
}

fn metric(value: f64, stderr: Option<f64>, n: u64) -> Metric {
    Metric { value: rounded(value), stderr: stderr.map(rounded), n }
}

fn rounded(value: f64) -> f64 {
    (value * 1e9).round() / 1e9
}

fn sample(model: &dyn Predict, document: &Document) -> Sample {
    let bytes = document.text.as_bytes();
    let mut loss: f64 = bytes.iter().enumerate().map(|(at, next)| model.loss_nats(&bytes[..at], *next)).sum();
    loss += model.loss_nats(bytes, END);
    let tokens = bytes.len() + 1;
    Sample { id: document.id.clone(), loss: loss / tokens as f64, tokens: tokens as u64 }
}

/// The mean over tokens, and its standard error as a ratio of sums over documents (linearised, documents independent).
fn clustered_mean(samples: &[Sample]) -> Metric {
    let tokens: f64 = samples.iter().map(|sample| sample.tokens as f64).sum();
    let total: f64 = samples.iter().map(|sample| sample.loss * sample.tokens as f64).sum();
    let value = if tokens > 0.0 { total / tokens } else { 0.0 };
    let n = samples.len() as f64;
    let squares: f64 = samples
        .iter()
        .map(|sample| {
            let residual = sample.tokens as f64 * (sample.loss - value);
            residual * residual
        })
        .sum();
    let stderr = (samples.len() >= 2).then(|| (squares * n / (n - 1.0)).sqrt() / tokens);
    Metric { value, stderr, n: samples.len() as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Halves a byte's probability for each place in the document, up to the third.
    struct Places;

    impl Predict for Places {
        fn loss_nats(&self, history: &[u8], next: u8) -> f64 {
            if next == END { 0.5 } else { history.len().min(3) as f64 }
        }
    }

    fn suite(texts: &[&str]) -> Suite {
        let documents = texts
            .iter()
            .enumerate()
            .map(|(index, text)| Document { id: format!("d{index}"), text: (*text).to_owned() })
            .collect();
        Suite { name: "test".to_owned(), documents }
    }

    #[test]
    fn means_and_errors_match_a_computation_by_hand() {
        // Losses: 0+1+.5 over 3 tokens; 0+1+2+3+.5 over 5; 0+.5 over 2. Total 8.5 over 10.
        let report = evaluate(&Places, &suite(&["ab", "abcd", "a"]));
        let means: Vec<f64> = report.samples.iter().map(|sample| sample.loss).collect();
        assert_eq!(means, [0.5, 1.3, 0.25]);
        let eval_loss = report.metrics.eval_loss;
        assert!((eval_loss.value - 0.85).abs() < 1e-9);
        assert_eq!(eval_loss.n, 3);
        // Residuals: 1.5 - 2.55, 6.5 - 4.25, 0.5 - 1.7.
        let by_hand = ((1.05f64.powi(2) + 2.25f64.powi(2) + 1.2f64.powi(2)) * 1.5).sqrt() / 10.0;
        assert!((eval_loss.stderr.expect("three documents") - by_hand).abs() < 1e-9);
        assert!((report.metrics.perplexity.value - 0.85f64.exp()).abs() < 1e-9);
    }

    #[test]
    fn too_few_documents_have_no_error_and_none_no_loss() {
        let one = evaluate(&Places, &suite(&["ab"])).metrics.eval_loss;
        assert_eq!((one.value, one.stderr, one.n), (0.5, None, 1));
        let none = evaluate(&Places, &suite(&[])).metrics.eval_loss;
        assert_eq!((none.value, none.stderr, none.n), (0.0, None, 0));
    }

    #[test]
    fn the_suite_hash_is_that_of_its_file_and_the_report_survives_json() {
        let suite = suite(&["ab", "c\"d"]);
        let lines = "{\"id\":\"d0\",\"text\":\"ab\"}\n{\"id\":\"d1\",\"text\":\"c\\\"d\"}\n";
        assert_eq!(suite.to_json_lines(), lines);
        let digest: String = Sha256::digest(lines).iter().map(|byte| format!("{byte:02x}")).collect();
        let report = evaluate(&Places, &suite);
        assert_eq!(report.suite, SuiteId { name: "test".to_owned(), sha256: digest });
        let read: EvalReport = serde_json::from_str(&report.to_json()).expect("our own JSON");
        assert_eq!(read, report);
    }
}
