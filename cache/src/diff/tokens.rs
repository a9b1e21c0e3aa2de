//! The vocabularies of two `tokenizer.json`: which tokens came, went, or have another id.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// How two vocabularies differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct TokenDiff {
    /// Tokens of A.
    pub tokens_a: usize,
    /// Tokens of B.
    pub tokens_b: usize,
    /// Tokens that only B has.
    pub added: usize,
    /// Tokens that only A has.
    pub removed: usize,
    /// Tokens of both with another id: text becomes other numbers.
    pub moved: usize,
}

/// Tokens with their ids, added ones included.
pub(super) type Vocabulary = BTreeMap<String, u64>;

/// The vocabulary of a `tokenizer.json`; `None` if it has none that we understand.
pub(super) fn vocabulary(json: &[u8]) -> Option<Vocabulary> {
    let file: File = serde_json::from_slice(json).ok()?;
    let mut all = file.model.vocab.0;
    all.extend(file.added_tokens.into_iter().map(|token| (token.content, token.id)));
    (!all.is_empty()).then_some(all)
}

pub(super) fn compare(a: &Vocabulary, b: &Vocabulary) -> TokenDiff {
    let mut diff = TokenDiff { tokens_a: a.len(), tokens_b: b.len(), added: 0, removed: 0, moved: 0 };
    for (token, id) in a {
        match b.get(token) {
            None => diff.removed += 1,
            Some(now) => diff.moved += usize::from(now != id),
        }
    }
    diff.added = b.keys().filter(|token| !a.contains_key(*token)).count();
    diff
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<Added>,
    model: Model,
}

#[derive(Deserialize)]
struct Added {
    id: u64,
    content: String,
}

#[derive(Deserialize)]
struct Model {
    #[serde(default)]
    vocab: Tokens,
}

/// `{token: id}` (BPE, WordPiece, WordLevel) or `[[token, score]]` (Unigram).
#[derive(Default)]
struct Tokens(Vocabulary);

impl<'de> Deserialize<'de> for Tokens {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Tokens;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a vocabulary")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tokens, A::Error> {
                let mut tokens = Vocabulary::new();
                while let Some((token, id)) = map.next_entry()? {
                    tokens.insert(token, id);
                }
                Ok(Tokens(tokens))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Tokens, A::Error> {
                let mut tokens = Vocabulary::new();
                let mut id = 0;
                while let Some((token, _)) = list.next_element::<(String, IgnoredAny)>()? {
                    tokens.insert(token, id);
                    id += 1;
                }
                Ok(Tokens(tokens))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_go_and_move() {
        let a = br#"{"added_tokens":[{"id":3,"content":"<s>","special":true}],
            "model":{"type":"BPE","vocab":{"a":0,"b":1,"c":2},"merges":[]}}"#;
        let b = br#"{"model":{"type":"BPE","vocab":{"a":0,"c":1,"d":2,"e":3}}}"#;
        let (a, b) = (vocabulary(a).expect("tokens"), vocabulary(b).expect("tokens"));
        assert_eq!(compare(&a, &b), TokenDiff { tokens_a: 4, tokens_b: 4, added: 2, removed: 2, moved: 1 });
        assert_eq!(compare(&b, &a), TokenDiff { tokens_a: 4, tokens_b: 4, added: 2, removed: 2, moved: 1 });
        assert_eq!(compare(&a, &a).moved, 0);
    }

    #[test]
    fn unigram_lists_count_from_zero_and_garbage_is_no_vocabulary() {
        let list =
            vocabulary(br#"{"model":{"type":"Unigram","vocab":[["x",-1.5],["y",0]]}}"#).expect("tokens");
        assert_eq!(list, Vocabulary::from([("x".into(), 0), ("y".into(), 1)]));
        for garbage in ["", "[]", "{}", r#"{"model":{"vocab":{"a":-1}}}"#, r#"{"model":{"vocab":3}}"#] {
            assert_eq!(vocabulary(garbage.as_bytes()), None, "{garbage}");
        }
    }
}
