//! Strict JSON for reports: bounded, every key once, and Python's NaN and Infinity told apart from broken text.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::ReportError;

/// Most characters of a name that an error shows.
const SHOWN_CHARS_MAX: usize = 80;
/// What Python's `json` writes for floats that are not numbers.
const NOT_NUMBERS: [&str; 3] = ["NaN", "-Infinity", "Infinity"];

/// Parses a whole file. Python's `NaN` and `Infinity` become the strings of those names, so that whoever wants a
/// number there can say which one is none; elsewhere they do no harm. Nesting deeper than 128 is refused.
///
/// # Errors
/// Larger than `bytes_max`, not JSON, or a key of one object stands twice.
pub(super) fn parse(bytes: &[u8], what: &str, bytes_max: usize) -> Result<Value, ReportError> {
    if bytes.len() > bytes_max {
        return refuse(format!(
            "{what} has {} bytes, more than the {bytes_max} accepted; samples belong into files of their own",
            bytes.len()
        ));
    }
    from_python(bytes)
        .map(|Unique(value)| value)
        .map_err(|error| ReportError(format!("{what} is not valid JSON: {error}; write it again")))
}

/// Deserializes JSON as Python writes it; see [`parse`].
pub(super) fn from_python<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Result<T, serde_json::Error> {
    // Some editors put a byte order mark in front.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    serde_json::from_slice(bytes).or_else(|error| match quote_not_numbers(bytes) {
        Some(quoted) => serde_json::from_slice(&quoted),
        None => Err(error),
    })
}

/// The lines of a JSON Lines file that are not blank, with their numbers from 1.
pub(super) fn lines(bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let lines = bytes.split(|byte| *byte == b'\n').enumerate();
    lines.filter(|(_, line)| !line.trim_ascii().is_empty()).map(|(at, line)| (at + 1, line))
}

/// A number, or what stands there instead.
pub(super) fn number(value: &Value) -> Result<f64, String> {
    match value {
        Value::Number(number) => number.as_f64().filter(|n| n.is_finite()).ok_or_else(|| number.to_string()),
        Value::String(text) if NOT_NUMBERS.contains(&text.as_str()) => Err(text.clone()),
        Value::String(text) => Err(format!("the text {}", shown(text))),
        Value::Null => Err("null".into()),
        Value::Bool(truth) => Err(truth.to_string()),
        Value::Array(_) => Err("an array".into()),
        Value::Object(_) => Err("an object".into()),
    }
}

/// A name from a file, fit for one line of an error: quoted, escaped and cut.
pub(super) fn shown(name: &str) -> String {
    let mut start: String = name.chars().take(SHOWN_CHARS_MAX).collect();
    if start.len() < name.len() {
        start.push('…');
    }
    // What follows "; " in a message is its hint.
    format!("{:?}", start.replace("; ", ";"))
}

/// What is wrong inside one line of many: serde_json calls every such place line 1.
pub(super) fn reason(error: &serde_json::Error) -> String {
    error.to_string().replace(" at line 1 column ", " at column ")
}

pub(super) fn refuse<T>(message: String) -> Result<T, ReportError> {
    Err(ReportError(message))
}

/// The same text with quotes around each bare `NaN` and `Infinity`; `None` if there is none.
pub(super) fn quote_not_numbers(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut quoted = Vec::new();
    let (mut at, mut copied, mut in_string) = (0, 0, false);
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if in_string => at += 1,
            b'"' => in_string = !in_string,
            b'N' | b'I' | b'-' if !in_string => {
                if let Some(word) = NOT_NUMBERS.iter().find(|word| bytes[at..].starts_with(word.as_bytes())) {
                    quoted.extend_from_slice(&bytes[copied..at]);
                    quoted.push(b'"');
                    quoted.extend_from_slice(word.as_bytes());
                    quoted.push(b'"');
                    at += word.len();
                    copied = at;
                    continue;
                }
            }
            _ => {}
        }
        at += 1;
    }
    (copied > 0).then(|| {
        quoted.extend_from_slice(&bytes[copied..]);
        quoted
    })
}

/// A value in which every key of every object stands once (serde_json keeps the last one silently).
struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UniqueVisitor).map(Unique)
    }
}

struct UniqueVisitor;

impl<'de> Visitor<'de> for UniqueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Unique(value)) = seq.next_element()? {
            values.push(value);
        }
        Ok(values.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            if object.contains_key(&key) {
                return Err(A::Error::custom(format_args!("the key {} stands twice", shown(&key))));
            }
            let Unique(value) = map.next_value()?;
            object.insert(key, value);
        }
        Ok(object.into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_no_number_is_named_and_harmless_inside_text() {
        let text = r#"{"a": NaN, "b": [Infinity, -Infinity, -1.5], "NaN": "\"NaN, Infinity"}"#;
        let value = parse(text.as_bytes(), "it", 1000).expect("valid");
        assert_eq!(number(&value["a"]), Err("NaN".into()));
        assert_eq!(number(&value["b"][1]), Err("-Infinity".into()));
        assert_eq!(number(&value["b"][2]), Ok(-1.5));
        assert_eq!(value["NaN"], "\"NaN, Infinity");
    }

    #[test]
    fn repeated_keys_deep_nesting_and_size_are_refused() {
        let why = |text: &str| parse(text.as_bytes(), "the report", 10_000).expect_err("refused").0;
        assert!(why(r#"{"a": {"b": 1, "\u0062": 2}}"#).contains("\"b\" stands twice"));
        assert!(why(&"[".repeat(5000)).contains("recursion limit"));
        assert!(why(&" ".repeat(20_000)).contains("more than the 10000 accepted"));
        assert!(why(r#"{"a": [1, 2"#).contains("EOF"));
        assert!(why("{\"a\": NaN,\n\"b\": }").contains("line 2"));
        assert!(parse(b"\xef\xbb\xbf{}", "it", 10).is_ok());
    }

    #[test]
    fn shown_names_are_one_short_line_without_a_hint() {
        assert_eq!(shown("a\nb; c"), "\"a\\nb;c\"");
        assert!(shown(&"é".repeat(500)).chars().count() < 100);
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes, "it", 1000);
        }

        #[test]
        fn what_serde_json_reads_is_read_the_same(text in "[\\[{\":,a0-9.\\-NI \\]}]{0,12}") {
            if let Ok(plain) = serde_json::from_str::<Value>(&text) {
                // It keeps the last of two equal keys.
                if let Ok(ours) = parse(text.as_bytes(), "it", 1000) {
                    prop_assert_eq!(ours, plain);
                }
            }
        }
    }
}
