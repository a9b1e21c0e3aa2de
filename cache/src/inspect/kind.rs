//! What a file is for by its name, and the order in which a loader wants files.

use std::cmp::Ordering;

use weighlock_protocol::manifest::LayerKind;

/// What the file at `path` is for, by its name alone.
pub(crate) fn of(path: &str) -> LayerKind {
    let name = file_name(path).to_ascii_lowercase();
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
    match name.as_str() {
        "adapter_config.json" => LayerKind::Adapter,
        "tokenizer.json"
        | "tokenizer_config.json"
        | "special_tokens_map.json"
        | "added_tokens.json"
        | "vocab.json"
        | "vocab.txt"
        | "merges.txt"
        | "bpe.codes"
        | "tekken.json"
        | "spiece.model"
        | "sentencepiece.bpe.model" => LayerKind::Tokenizer,
        "chat_template.json" => LayerKind::PromptTemplate,
        "modules.json"
        | "model_index.json"
        | "params.json"
        | "configuration.json"
        | "config_sentence_transformers.json" => LayerKind::Config,
        _ if name.starts_with("adapter_model.") => LayerKind::Adapter,
        _ if name.starts_with("tokenizer.model") => LayerKind::Tokenizer,
        _ if is_shard_index(path) || name.ends_with("config.json") => LayerKind::Config,
        _ => match extension {
            "safetensors" | "gguf" | "onnx" | "h5" | "msgpack" | "npz" | "tflite" => LayerKind::Weights,
            _ if is_pickle(path) => LayerKind::Weights,
            "jinja" | "jinja2" => LayerKind::PromptTemplate,
            "tiktoken" | "spm" => LayerKind::Tokenizer,
            _ => LayerKind::Other,
        },
    }
}

/// Whether the name is one that pickled weights have.
pub(crate) fn is_pickle(path: &str) -> bool {
    ["bin", "pt", "pth", "ckpt", "pkl", "pickle"].iter().any(|extension| has_extension(path, extension))
}

/// Whether this is the index of a sharded checkpoint (`model.safetensors.index.json`).
pub(crate) fn is_shard_index(path: &str) -> bool {
    file_name(path).ends_with(".index.json")
}

/// Whether `path` ends in `.extension`, in any case.
pub(crate) fn has_extension(path: &str, extension: &str) -> bool {
    file_name(path).rsplit_once('.').is_some_and(|(_, found)| found.eq_ignore_ascii_case(extension))
}

/// The last component.
pub(crate) fn file_name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

/// Everything before the last component, empty at the top.
pub(crate) fn directory(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(directory, _)| directory)
}

/// The name that all shards of one checkpoint share (`dir/model` for `dir/model-00001-of-00003.gguf`), if it is one.
pub(crate) fn shard_stem(path: &str) -> Option<&str> {
    let (stem, _) = path.rsplit_once('.')?;
    let (rest, total) = stem.rsplit_once("-of-")?;
    let (name, number) = rest.rsplit_once('-')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(total) && is_number(number)).then_some(name)
}

/// The loading order of two files: `config.json` first, other configuration, tokenizer, templates, shard indexes,
/// weights, adapters, the rest; inside each, top files first, then by path with numbers as numbers.
pub(crate) fn loading_order(a: (&str, LayerKind), b: (&str, LayerKind)) -> Ordering {
    let rank = |(path, kind): (&str, LayerKind)| match kind {
        LayerKind::Config if path == "config.json" => 0,
        LayerKind::Config if is_shard_index(path) => 4,
        LayerKind::Config => 1,
        LayerKind::Tokenizer => 2,
        LayerKind::PromptTemplate => 3,
        LayerKind::Weights => 5,
        LayerKind::Adapter if has_extension(path, "json") => 6,
        LayerKind::Adapter => 7,
        LayerKind::Contract | LayerKind::Report | LayerKind::Other => 8,
    };
    let depth = |path: &str| path.matches('/').count();
    rank(a).cmp(&rank(b)).then_with(|| depth(a.0).cmp(&depth(b.0))).then_with(|| natural_order(a.0, b.0))
}

/// Compares texts with runs of digits as numbers, so that `shard-10` follows `shard-9`.
pub(crate) fn natural_order(a: &str, b: &str) -> Ordering {
    let (mut left, mut right) = (a, b);
    loop {
        let (x, y) = match (left.chars().next(), right.chars().next()) {
            (Some(x), Some(y)) => (x, y),
            // Equal as numbers (`1` and `01`): fall back to the text, so that the order stays total.
            (None, None) => return a.cmp(b),
            (x, _) => {
                return if x.is_none() { Ordering::Less } else { Ordering::Greater };
            }
        };
        if x.is_ascii_digit() && y.is_ascii_digit() {
            let (m, n) = (take_number(&mut left), take_number(&mut right));
            let order = m.len().cmp(&n.len()).then_with(|| m.cmp(n));
            if order != Ordering::Equal {
                return order;
            }
        } else if x != y {
            return x.cmp(&y);
        } else {
            left = &left[x.len_utf8()..];
            right = &right[y.len_utf8()..];
        }
    }
}

/// Takes the digits off the front of `text`; gives them without leading zeros.
fn take_number<'a>(text: &mut &'a str) -> &'a str {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    *text = rest;
    digits.trim_start_matches('0')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_tell_kinds() {
        use LayerKind::*;
        for (path, kind) in [
            ("config.json", Config),
            ("1_Pooling/config.json", Config),
            ("generation_config.json", Config),
            ("model.safetensors.index.json", Config),
            ("tokenizer_config.json", Tokenizer),
            ("tokenizer.model.v3", Tokenizer),
            ("merges.txt", Tokenizer),
            ("chat_template.jinja", PromptTemplate),
            ("additional_chat_templates/rag.jinja", PromptTemplate),
            ("model.safetensors", Weights),
            ("M.GGUF", Weights),
            ("pytorch_model.bin", Weights),
            ("adapter_model.safetensors", Adapter),
            ("adapter_config.json", Adapter),
            ("README.md", Other),
            ("notes.txt", Other),
        ] {
            assert_eq!(of(path), kind, "{path}");
        }
    }

    #[test]
    fn loaders_get_configuration_first_and_shards_in_order() {
        let mut paths = vec![
            "README.md",
            "model-10-of-12.safetensors",
            "model-9-of-12.safetensors",
            "sub/model.safetensors",
            "adapter_model.safetensors",
            "adapter_config.json",
            "model.safetensors.index.json",
            "chat_template.jinja",
            "tokenizer.json",
            "generation_config.json",
            "config.json",
        ];
        paths.sort_by(|a, b| loading_order((a, of(a)), (b, of(b))));
        assert_eq!(
            paths,
            [
                "config.json",
                "generation_config.json",
                "tokenizer.json",
                "chat_template.jinja",
                "model.safetensors.index.json",
                "model-9-of-12.safetensors",
                "model-10-of-12.safetensors",
                "sub/model.safetensors",
                "adapter_config.json",
                "adapter_model.safetensors",
                "README.md",
            ]
        );
    }

    #[test]
    fn shards_share_a_stem() {
        assert_eq!(shard_stem("d/model-00001-of-00003.gguf"), Some("d/model"));
        assert_eq!(shard_stem("model.safetensors"), None);
        assert_eq!(shard_stem("model-x-of-00003.gguf"), None);
    }

    proptest! {
        #[test]
        fn natural_order_is_total(a in "[a0-2é]{0,6}", b in "[a0-2é]{0,6}", c in "[a0-2é]{0,6}") {
            prop_assert_eq!(natural_order(&a, &b), natural_order(&b, &a).reverse());
            prop_assert_eq!(natural_order(&a, &b) == Ordering::Equal, a == b);
            if natural_order(&a, &b).is_le() && natural_order(&b, &c).is_le() {
                prop_assert!(natural_order(&a, &c).is_le());
            }
        }
    }
}
