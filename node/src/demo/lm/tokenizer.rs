//! The tokenizer's files: a byte-level tokenizer whose token ids are the byte values, in the form that others read.

/// `tokenizer.json` in the form of the Hugging Face tokenizers library: byte-level BPE without a single merge.
pub(super) fn tokenizer_json() -> String {
    let entries: Vec<String> = byte_names()
        .enumerate()
        .map(|(id, name)| format!("      {}: {id}", serde_json::Value::from(name.to_string())))
        .collect();
    TOKENIZER.replace("VOCAB", &entries.join(",\n"))
}

/// `tokenizer_config.json`, chat template included.
pub(super) fn tokenizer_config_json(context: usize) -> String {
    TOKENIZER_CONFIG
        .replace("CONTEXT", &context.to_string())
        .replace("TEMPLATE", &serde_json::Value::from(CHAT_TEMPLATE).to_string())
}

/// How a conversation becomes a prompt.
const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n\
    {% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";

// Written as text, because the order of keys in a map of serde_json hangs on which features the build unites.
const TOKENIZER: &str = r#"{
  "version": "1.0",
  "truncation": null,
  "padding": null,
  "added_tokens": [],
  "normalizer": null,
  "pre_tokenizer": {
    "type": "ByteLevel",
    "add_prefix_space": false,
    "trim_offsets": true,
    "use_regex": false
  },
  "post_processor": null,
  "decoder": {
    "type": "ByteLevel",
    "add_prefix_space": false,
    "trim_offsets": true,
    "use_regex": false
  },
  "model": {
    "type": "BPE",
    "dropout": null,
    "unk_token": null,
    "continuing_subword_prefix": null,
    "end_of_word_suffix": null,
    "fuse_unk": false,
    "byte_fallback": false,
    "ignore_merges": false,
    "vocab": {
VOCAB
    },
    "merges": []
  }
}
"#;

const TOKENIZER_CONFIG: &str = r#"{
  "tokenizer_class": "PreTrainedTokenizerFast",
  "model_max_length": CONTEXT,
  "clean_up_tokenization_spaces": false,
  "chat_template": TEMPLATE
}
"#;

/// The character that stands for each byte in byte-level vocabularies: itself where it can be seen, else the next
/// free one from U+0100 on.
fn byte_names() -> impl Iterator<Item = char> {
    let mut next = 0x100u32;
    (0u8..=255).map(move |byte| {
        if matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) {
            return char::from(byte);
        }
        let name = char::from_u32(next).expect("U+0100 to U+0143 are characters");
        next += 1;
        name
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    #[test]
    fn every_byte_has_one_token_and_its_value_is_the_id() {
        let json: Value = serde_json::from_str(&tokenizer_json()).expect("valid JSON");
        let vocab = json["model"]["vocab"].as_object().expect("a vocabulary");
        let ids: BTreeSet<u64> = vocab.values().filter_map(Value::as_u64).collect();
        assert_eq!(ids, (0..256).collect());
        // Fixed points of the byte-level alphabet that all such tokenizers share.
        for (name, id) in
            [("A", 65), ("\u{120}", 32), ("\u{10a}", 10), ("\u{100}", 0), ("\"", 34), ("\\", 92)]
        {
            assert_eq!(vocab[name], id, "{name}");
        }
        assert_eq!(vocab["\u{143}"], 0xad);
    }

    #[test]
    fn the_tokenizer_config_carries_context_and_template() {
        let json: Value = serde_json::from_str(&tokenizer_config_json(8)).expect("valid JSON");
        assert_eq!(json["model_max_length"], 8);
        assert_eq!(json["chat_template"], CHAT_TEMPLATE);
    }
}
