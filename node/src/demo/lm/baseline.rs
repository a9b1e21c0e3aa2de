//! Two counting models that the trained one has to beat.

use super::corpus::Document;
use super::eval::Predict;
use super::model::{END, VOCAB};

/// Each byte by its own frequency, add-one smoothed.
#[derive(Debug, Clone)]
pub struct Unigram {
    counts: Vec<u32>,
    total: u32,
}

impl Unigram {
    /// Counts the bytes and ends of the documents.
    pub fn fit(documents: &[Document]) -> Self {
        let mut counts = vec![0; VOCAB];
        for document in documents {
            for byte in document.text.bytes().chain([END]) {
                counts[usize::from(byte)] += 1;
            }
        }
        let total = counts.iter().sum();
        Unigram { counts, total }
    }

    fn probability(&self, next: u8) -> f64 {
        f64::from(self.counts[usize::from(next)] + 1) / (f64::from(self.total) + VOCAB as f64)
    }
}

impl Predict for Unigram {
    fn loss_nats(&self, _history: &[u8], next: u8) -> f64 {
        -libm::log(self.probability(next))
    }
}

/// Each byte by what followed the byte before it, falling back on the unigram (Witten and Bell's weights).
#[derive(Debug, Clone)]
pub struct Bigram {
    unigram: Unigram,
    counts: Vec<Vec<u32>>,
}

impl Bigram {
    /// Counts the pairs of bytes in the documents; [`END`] stands before the first and after the last.
    pub fn fit(documents: &[Document]) -> Self {
        let mut counts = vec![vec![0; VOCAB]; VOCAB];
        for document in documents {
            let mut before = END;
            for byte in document.text.bytes().chain([END]) {
                counts[usize::from(before)][usize::from(byte)] += 1;
                before = byte;
            }
        }
        Bigram { unigram: Unigram::fit(documents), counts }
    }
}

impl Predict for Bigram {
    fn loss_nats(&self, history: &[u8], next: u8) -> f64 {
        let row = &self.counts[usize::from(history.last().copied().unwrap_or(END))];
        let total: f64 = row.iter().copied().map(f64::from).sum();
        let kinds = row.iter().filter(|count| **count > 0).count().max(1) as f64;
        let seen = f64::from(row[usize::from(next)]);
        -libm::log((seen + kinds * self.unigram.probability(next)) / (total + kinds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_are_distributions() {
        let documents = [Document { id: "a".into(), text: "locks and boats".into() }];
        let (unigram, bigram) = (Unigram::fit(&documents), Bigram::fit(&documents));
        for history in [&b""[..], b"lo", b"\xff"] {
            for model in [&unigram as &dyn Predict, &bigram] {
                let sum: f64 = (0u8..=255).map(|next| libm::exp(-model.loss_nats(history, next))).sum();
                assert!((sum - 1.0).abs() < 1e-9, "{sum}");
            }
        }
        assert!(bigram.loss_nats(b"l", b'o') < unigram.loss_nats(b"l", b'o'));
    }
}
