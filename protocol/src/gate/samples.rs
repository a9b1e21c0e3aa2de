//! What a metric was measured on, sample by sample: what pairing two runs needs.

use serde::{Deserialize, Serialize};

use crate::id::Sha256;

/// Largest file of samples accepted, in bytes.
pub const SAMPLES_BYTES_MAX: u64 = 1 << 30;
/// Most samples of one metric.
pub const SAMPLES_MAX: usize = 10_000_000;
/// Longest id of a sample or of a document, in bytes.
pub const SAMPLE_ID_MAX: usize = 256;

/// One sample of one metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// What makes it the same sample in another run: hash of document and prompt, or an id of one's own.
    pub id: String,
    /// The document (source, conversation, passage) that it comes from; samples of one document are not
    /// independent. Empty: it stands for itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cluster: String,
    /// Its score, loss or negative log-likelihood per unit of weight; finite.
    pub value: f64,
    /// What it counts: 1, or its tokens, words or bytes; finite and positive.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub weight: f64,
}

/// All samples of one metric, sorted by id, each id once.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Samples {
    sorted: Vec<Sample>,
}

impl Samples {
    /// Sorts and checks.
    ///
    /// # Errors
    /// Too many, a number that is not finite, a weight that is not positive, an id that is empty, too long, or there
    /// twice.
    pub fn new(mut samples: Vec<Sample>) -> Result<Self, String> {
        if samples.len() > SAMPLES_MAX {
            return Err(format!("{} samples are more than the {SAMPLES_MAX} accepted", samples.len()));
        }
        for sample in &samples {
            let name = || sample.id.escape_debug().take(64).collect::<String>();
            if sample.id.is_empty() || sample.id.len() > SAMPLE_ID_MAX || sample.cluster.len() > SAMPLE_ID_MAX
            {
                return Err(format!("the id or document of sample {:?} is empty or too long", name()));
            }
            if !sample.value.is_finite() {
                return Err(format!("the value of sample {} is {}, not a number", name(), sample.value));
            }
            if !(sample.weight.is_finite() && sample.weight > 0.0) {
                return Err(format!("the weight of sample {} is {}, not above 0", name(), sample.weight));
            }
        }
        samples.sort_by(|a, b| a.id.cmp(&b.id));
        if let Some(twice) = samples.windows(2).find(|pair| pair[0].id == pair[1].id) {
            return Err(format!("sample {} is there twice", twice[0].id.escape_debug()));
        }
        Ok(Self { sorted: samples })
    }

    /// By id.
    pub fn iter(&self) -> std::slice::Iter<'_, Sample> {
        self.sorted.iter()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.sorted.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.sorted.is_empty()
    }

    /// `Σ w·v / Σ w`; `None` without samples.
    pub fn mean(&self) -> Option<f64> {
        let weight: f64 = self.iter().map(|s| s.weight).sum();
        (!self.is_empty()).then(|| self.iter().map(|s| s.weight * s.value).sum::<f64>() / weight)
    }

    /// SHA-256 over the samples by id: ids and documents length-prefixed, numbers by their bits.
    pub fn digest(&self) -> Sha256 {
        use sha2::Digest as _;
        let mut hasher = sha2::Sha256::new();
        hasher.update(b"weighlock samples v1\0");
        for sample in &self.sorted {
            for text in [&sample.id, &sample.cluster] {
                hasher.update((text.len() as u64).to_le_bytes());
                hasher.update(text.as_bytes());
            }
            for number in [sample.value, sample.weight] {
                // 0 and -0 are one value.
                hasher.update((number + 0.0).to_bits().to_le_bytes());
            }
        }
        Sha256(hasher.finalize().into())
    }
}

fn one() -> f64 {
    1.0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_one(weight: &f64) -> bool {
    weight.to_bits() == 1.0f64.to_bits()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(id: &str, value: f64) -> Sample {
        Sample { id: id.into(), cluster: String::new(), value, weight: 1.0 }
    }

    #[test]
    fn samples_are_sorted_checked_and_digested_whatever_their_order() {
        let one = Samples::new(vec![sample("b", 2.0), sample("a", 1.0)]).expect("good");
        let other = Samples::new(vec![sample("a", 1.0), sample("b", 2.0)]).expect("good");
        assert_eq!(one.digest(), other.digest());
        assert_eq!(one.mean(), Some(1.5));
        let changed = Samples::new(vec![sample("a", 1.0), sample("b", 2.5)]).expect("good");
        assert_ne!(one.digest(), changed.digest());
        assert!(Samples::new(vec![sample("a", 1.0), sample("a", 2.0)]).is_err_and(|e| e.contains("twice")));
        assert!(Samples::new(vec![sample("a", f64::NAN)]).is_err_and(|e| e.contains("not a number")));
        let weightless = Sample { weight: 0.0, ..sample("a", 1.0) };
        assert!(Samples::new(vec![weightless]).is_err_and(|e| e.contains("weight")));
        assert!(Samples::new(vec![sample("", 1.0)]).is_err());
    }
}
