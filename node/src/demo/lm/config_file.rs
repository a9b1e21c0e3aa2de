//! `config.json` and `generation_config.json`: what a checkpoint says of its model beside the weights.

use serde::{Deserialize, Serialize};

use super::model::{Config, END, VOCAB};

const ARCHITECTURE: &str = "ByteNgramForCausalLM";
const MODEL_TYPE: &str = "byte_ngram";
const DTYPE: &str = "float32";

/// `config.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ConfigFile {
    architectures: Vec<String>,
    model_type: String,
    vocab_size: usize,
    max_position_embeddings: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    hidden_act: String,
    ngram_max: usize,
    ngram_buckets: usize,
    bos_token_id: u8,
    eos_token_id: u8,
    dtype: String,
}

impl ConfigFile {
    pub(super) fn of(config: &Config) -> Self {
        ConfigFile {
            architectures: vec![ARCHITECTURE.to_owned()],
            model_type: MODEL_TYPE.to_owned(),
            vocab_size: VOCAB,
            max_position_embeddings: config.context,
            hidden_size: config.hidden,
            num_hidden_layers: 1,
            hidden_act: "relu".to_owned(),
            ngram_max: config.ngram_max,
            ngram_buckets: config.ngram_buckets,
            bos_token_id: END,
            eos_token_id: END,
            dtype: DTYPE.to_owned(),
        }
    }

    /// The settings, if everything else is as this code computes it.
    pub(super) fn settings(&self) -> Result<Config, String> {
        let config = Config {
            context: self.max_position_embeddings,
            hidden: self.hidden_size,
            ngram_max: self.ngram_max,
            ngram_buckets: self.ngram_buckets,
        };
        let ours = ConfigFile::of(&config);
        let fields = [
            ("model_type", &self.model_type, &ours.model_type),
            ("dtype", &self.dtype, &ours.dtype),
            ("hidden_act", &self.hidden_act, &ours.hidden_act),
        ];
        for (field, found, expected) in fields {
            if found != expected {
                return Err(format!("{field} is {found:?}, this reader takes {expected:?} only"));
            }
        }
        let numbers = [
            ("vocab_size", self.vocab_size, VOCAB),
            ("num_hidden_layers", self.num_hidden_layers, 1),
            ("bos_token_id", self.bos_token_id.into(), END.into()),
            ("eos_token_id", self.eos_token_id.into(), END.into()),
        ];
        for (field, found, expected) in numbers {
            if found != expected {
                return Err(format!("{field} is {found}, this reader takes {expected} only"));
            }
        }
        Ok(config)
    }
}

/// `generation_config.json`.
#[derive(Debug, Serialize)]
pub(super) struct Generation {
    bos_token_id: u8,
    eos_token_id: u8,
    do_sample: bool,
    temperature: f64,
}

impl Default for Generation {
    fn default() -> Self {
        Generation { bos_token_id: END, eos_token_id: END, do_sample: true, temperature: 0.6 }
    }
}
