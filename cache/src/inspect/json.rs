//! Reading JSON that others wrote: without repeated keys where they would matter, and with Python's NaN where not.

use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde_json::Value;

/// A JSON object in its order that refuses a repeated key (serde_json's own maps keep the last silently).
#[derive(Debug, Clone)]
pub(crate) struct UniqueMap<V>(pub(crate) Vec<(String, V)>);

impl<V> Default for UniqueMap<V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for UniqueMap<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Object<V> {
            type Value = UniqueMap<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut seen = HashSet::new();
                let mut entries = Vec::new();
                while let Some(key) = map.next_key::<String>()? {
                    if !seen.insert(key.clone()) {
                        return Err(A::Error::custom(format_args!("the key {} stands twice", quoted(&key))));
                    }
                    entries.push((key, map.next_value()?));
                }
                Ok(UniqueMap(entries))
            }
        }
        deserializer.deserialize_map(Object(PhantomData))
    }
}

/// Parses JSON as Python's `json` does, with `NaN` and `Infinity` as numbers: transformers writes them.
/// They read as 0; nothing that we take from such files can be one.
pub(crate) fn parse_as_python(text: &str) -> Result<Value, serde_json::Error> {
    let strict = serde_json::from_str(text);
    if strict.is_ok() {
        return strict;
    }
    let mut plain = text.as_bytes().to_vec();
    let (mut at, mut in_string) = (0, false);
    while at < plain.len() {
        match plain[at] {
            b'\\' if in_string => at += 1,
            b'"' => in_string = !in_string,
            b'N' | b'I' | b'-' if !in_string => {
                for word in ["NaN", "Infinity", "-Infinity"] {
                    if plain[at..].starts_with(word.as_bytes()) {
                        // The same length, so that an error elsewhere keeps its line and column.
                        plain[at..at + word.len()].fill(b' ');
                        plain[at] = b'0';
                        at += word.len() - 1;
                        break;
                    }
                }
            }
            _ => {}
        }
        at += 1;
    }
    serde_json::from_slice(&plain)
}

/// A name from a file, fit for one line of an error: quoted, escaped and cut.
pub(crate) fn quoted(name: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 120;
    let mut shown: String = name.chars().take(SHOWN_CHARS_MAX).collect();
    if shown.len() < name.len() {
        shown.push('…');
    }
    format!("{shown:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_key_is_refused_also_when_escaped() {
        assert!(serde_json::from_str::<UniqueMap<u8>>(r#"{"a":1,"b":2}"#).is_ok());
        let error = serde_json::from_str::<UniqueMap<u8>>(r#"{"a":1,"\u0061":2}"#).expect_err("twice");
        assert!(error.to_string().contains("stands twice"), "{error}");
    }

    #[test]
    fn python_numbers_parse_and_errors_keep_their_place() {
        let value =
            parse_as_python(r#"{"limit": [0.0, Infinity, -Infinity, NaN], "s": "\"NaN"}"#).expect("valid");
        assert_eq!(value["s"], "\"NaN");
        assert_eq!(value["limit"][1], 0);
        let error = parse_as_python("{\"a\": NaN,\n \"b\": }").expect_err("no value");
        assert_eq!((error.line(), error.column()), (2, 7));
    }

    #[test]
    fn names_are_cut_and_escaped() {
        assert_eq!(quoted("a\nb"), "\"a\\nb\"");
        assert!(quoted(&"é".repeat(500)).chars().count() < 130);
    }
}
