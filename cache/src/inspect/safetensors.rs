//! A strict reader of safetensors headers: every byte of the file must be accounted for, exactly once.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, Visitor};

use super::InspectConfig;
use super::json::{UniqueMap, quoted};
use crate::plan::TensorSpan;

/// What a safetensors header says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Header {
    /// `__metadata__`.
    pub metadata: BTreeMap<String, String>,
    /// Tensors by offset; together they cover the file from `data_start` to its end.
    pub tensors: Vec<TensorSpan>,
    /// First byte of the data, from the start of the file.
    pub data_start: u64,
}

/// Why a file is not safetensors that we accept.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it; fields are what they name")]
pub enum SafetensorsError {
    #[error("cannot read the header: {0}")]
    Read(#[from] io::Error),
    #[error("{len} bytes are too short for a header: download the file again")]
    Short { len: u64 },
    #[error("a Git LFS pointer, not the weights: run `git lfs pull`")]
    LfsPointer,
    #[error("the header claims {header_len} bytes, more than the limit of {limit}")]
    HeaderTooLong { header_len: u64, limit: u64 },
    #[error("the header claims {header_len} bytes but the file has only {len}: truncated or damaged")]
    HeaderExceedsFile { header_len: u64, len: u64 },
    #[error("the header is not a JSON object padded with spaces")]
    NotAnObject,
    #[error("the header is not valid: {0}")]
    Json(#[from] serde_json::Error),
    #[error("tensor {name} has the unknown dtype {dtype}")]
    Dtype { name: String, dtype: String },
    #[error("tensor {name} has {dims} dimensions, more than the limit of {limit}")]
    Dims { name: String, dims: usize, limit: usize },
    #[error("tensor {name} has a shape whose size overflows")]
    ShapeOverflow { name: String },
    #[error("tensor {name} does not end at a byte boundary")]
    SubByte { name: String },
    #[error("tensor {name} has offsets for {found} bytes, but its dtype and shape take {expected}")]
    Length { name: String, expected: u64, found: u64 },
    #[error("tensor {name} ends before it begins")]
    Backwards { name: String },
    #[error("tensor {name} overlaps another")]
    Overlap { name: String },
    #[error("{bytes} bytes before tensor {name} belong to no tensor")]
    Hole { name: String, bytes: u64 },
    #[error("tensor {name} ends {bytes} bytes after the file: truncated or damaged")]
    Exceeds { name: String, bytes: u64 },
    #[error("{bytes} bytes at the end of the file belong to no tensor")]
    Trailing { bytes: u64 },
}

/// Reads the header of an open file of `len` bytes from its current position, which must be its start.
///
/// # Errors
/// As [`parse`].
pub fn read_header(file: &File, len: u64, config: &InspectConfig) -> Result<Header, SafetensorsError> {
    parse(file, len, config)
}

/// Reads a header from `reader`, which stands at the start of a file of `len` bytes. No more memory is taken than a
/// small multiple of the header bytes that are really there.
///
/// # Errors
/// Anything that another reader could understand differently, a limit of `config`, or a failed read.
pub fn parse(mut reader: impl Read, len: u64, config: &InspectConfig) -> Result<Header, SafetensorsError> {
    if len < 8 {
        return Err(SafetensorsError::Short { len });
    }
    let mut prefix = [0; 8];
    reader.read_exact(&mut prefix)?;
    if &prefix == b"version " {
        return Err(SafetensorsError::LfsPointer);
    }
    let header_len = u64::from_le_bytes(prefix);
    let limit = config.safetensors_header_bytes_max;
    if header_len > limit {
        return Err(SafetensorsError::HeaderTooLong { header_len, limit });
    }
    if header_len > len - 8 {
        return Err(SafetensorsError::HeaderExceedsFile { header_len, len });
    }
    let mut text = Vec::new();
    reader.take(header_len).read_to_end(&mut text)?;
    if text.len() as u64 != header_len {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    let data_start = 8 + header_len;

    let padding = text.iter().rev().take_while(|byte| **byte == b' ').count();
    let text = &text[..text.len() - padding];
    if text.first() != Some(&b'{') || text.last() != Some(&b'}') {
        return Err(SafetensorsError::NotAnObject);
    }
    let mut json = serde_json::Deserializer::from_slice(text);
    let (metadata, entries) = Table { config }.deserialize(&mut json)?;
    json.end()?;

    let mut tensors = Vec::with_capacity(entries.len());
    for (name, entry) in entries {
        tensors.push(span(name, entry, config)?);
    }
    // Empty tensors come before the one that starts where they stand.
    tensors.sort_unstable_by(|a, b| (a.offset, a.len, &a.name).cmp(&(b.offset, b.len, &b.name)));
    let data_len = len - data_start;
    let mut end = 0;
    for tensor in &mut tensors {
        let name = || quoted(&tensor.name);
        if tensor.offset < end {
            return Err(SafetensorsError::Overlap { name: name() });
        }
        if tensor.offset > end {
            return Err(SafetensorsError::Hole { name: name(), bytes: tensor.offset - end });
        }
        // Cannot overflow: it is the entry's own end offset.
        end = tensor.offset + tensor.len;
        if end > data_len {
            return Err(SafetensorsError::Exceeds { name: name(), bytes: end - data_len });
        }
        tensor.offset += data_start;
    }
    if end < data_len {
        return Err(SafetensorsError::Trailing { bytes: data_len - end });
    }
    Ok(Header { metadata: metadata.0.into_iter().collect(), tensors, data_start })
}

/// Bits per element of a safetensors dtype, or `None` if it is unknown.
pub fn dtype_bits(dtype: &str) -> Option<u64> {
    Some(match dtype {
        "F4" => 4,
        "F6_E2M3" | "F6_E3M2" => 6,
        "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" | "F8_E4M3FNUZ" | "F8_E5M2FNUZ" => 8,
        "I16" | "U16" | "F16" | "BF16" => 16,
        "I32" | "U32" | "F32" => 32,
        "C64" | "F64" | "I64" | "U64" => 64,
        _ => return None,
    })
}

fn span(name: String, entry: Entry, config: &InspectConfig) -> Result<TensorSpan, SafetensorsError> {
    let Entry { dtype, shape, data_offsets: (begin, end) } = entry;
    let Some(bits) = dtype_bits(&dtype) else {
        return Err(SafetensorsError::Dtype { name: quoted(&name), dtype: quoted(&dtype) });
    };
    if shape.len() > config.dims_max {
        return Err(SafetensorsError::Dims {
            name: quoted(&name),
            dims: shape.len(),
            limit: config.dims_max,
        });
    }
    let Some(bits) = super::element_count(&shape).and_then(|count| count.checked_mul(bits)) else {
        return Err(SafetensorsError::ShapeOverflow { name: quoted(&name) });
    };
    if bits % 8 != 0 {
        return Err(SafetensorsError::SubByte { name: quoted(&name) });
    }
    let Some(found) = end.checked_sub(begin) else {
        return Err(SafetensorsError::Backwards { name: quoted(&name) });
    };
    let expected = bits / 8;
    if expected != found {
        return Err(SafetensorsError::Length { name: quoted(&name), expected, found });
    }
    Ok(TensorSpan { name, dtype, shape, offset: begin, len: found })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// The header object: entries by name and `__metadata__`, no key twice, not more than the limit.
struct Table<'a> {
    config: &'a InspectConfig,
}

type Parsed = (UniqueMap<String>, Vec<(String, Entry)>);

impl<'de> DeserializeSeed<'de> for Table<'_> {
    type Value = Parsed;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Parsed, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Table<'_> {
    type Value = Parsed;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parsed, A::Error> {
        let mut metadata = None;
        let mut entries = Vec::new();
        let mut seen = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                if metadata.replace(map.next_value()?).is_some() {
                    return Err(A::Error::custom("__metadata__ stands twice"));
                }
                continue;
            }
            if name.len() > self.config.name_bytes_max {
                let limit = self.config.name_bytes_max;
                let name = quoted(&name);
                return Err(A::Error::custom(format_args!(
                    "the tensor name {name} is longer than the limit of {limit} bytes"
                )));
            }
            if !seen.insert(name.clone()) {
                return Err(A::Error::custom(format_args!("tensor {} stands twice", quoted(&name))));
            }
            if entries.len() == self.config.tensors_max {
                let limit = self.config.tensors_max;
                return Err(A::Error::custom(format_args!("more tensors than the limit of {limit}")));
            }
            entries.push((name, map.next_value()?));
        }
        Ok((metadata.unwrap_or_default(), entries))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(header: &str, data_len: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data_len, 7);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Header, SafetensorsError> {
        parse(bytes, bytes.len() as u64, &InspectConfig::default())
    }

    #[track_caller]
    fn refused(header: &str, data_len: usize, why: &str) {
        let error = read(&file(header, data_len)).expect_err("must be refused").to_string();
        assert!(error.contains(why), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }

    const GOOD: &str = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[2,3],"data_offsets":[4,28]},"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},"e":{"dtype":"F16","shape":[0,9],"data_offsets":[4,4]},"s":{"dtype":"F4","shape":[3,2],"data_offsets":[28,31]}}   "#;

    #[test]
    fn a_valid_header_gives_spans_by_offset() {
        let bytes = file(GOOD, 31);
        let header = read(&bytes).expect("valid");
        let names: Vec<&str> = header.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(names, ["a", "e", "b", "s"]);
        assert_eq!(header.tensors[2].offset, header.data_start + 4);
        assert_eq!(header.tensors[2].shape, [2, 3]);
        assert_eq!(header.metadata["format"], "pt");
        let last = header.tensors.last().expect("four");
        assert_eq!(last.offset + last.len, bytes.len() as u64);
        assert!(read(&file("{}", 0)).expect("an empty table is valid").tensors.is_empty());
    }

    #[test]
    fn offsets_must_tile_the_data() {
        let two = |a: &str, b: &str| {
            format!(
                r#"{{"a":{{"dtype":"U8","shape":[4],"data_offsets":{a}}},"b":{{"dtype":"U8","shape":[4],"data_offsets":{b}}}}}"#
            )
        };
        assert!(read(&file(&two("[0,4]", "[4,8]"), 8)).is_ok());
        refused(&two("[0,4]", "[0,4]"), 8, "overlaps");
        refused(&two("[0,4]", "[3,7]"), 8, "overlaps");
        refused(&two("[0,4]", "[5,9]"), 9, "belong to no tensor");
        refused(&two("[1,5]", "[5,9]"), 9, "1 bytes before tensor \"a\"");
        refused(&two("[0,4]", "[4,8]"), 9, "1 bytes at the end");
        refused(&two("[0,4]", "[4,8]"), 7, "truncated");
        refused(&two("[0,4]", "[8,4]"), 8, "ends before it begins");
        refused(&two("[0,4]", "[4,9]"), 9, "but its dtype and shape take 4");
        refused(&two("[0,4]", "[18446744073709551612,18446744073709551616]"), 8, "not valid");
        refused(&two("[0,4]", "[18446744073709551611,18446744073709551615]"), 8, "no tensor");
        refused(&two("[0,4]", "[-4,0]"), 8, "not valid");
    }

    #[test]
    fn entries_must_be_exact() {
        let one = |dtype: &str, shape: &str, end: u64| {
            format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{end}]}}}}"#)
        };
        refused(&one("F128", "[1]", 16), 16, "unknown dtype \"F128\"");
        refused(&one("F4", "[3]", 2), 2, "byte boundary");
        refused(&one("F6_E2M3", "[2]", 2), 2, "byte boundary");
        assert!(read(&file(&one("F6_E2M3", "[4]", 3), 3)).is_ok());
        refused(&one("F32", "[4294967296,4294967296]", 4), 4, "overflows");
        refused(&one("F32", "[1.0]", 4), 4, "not valid");
        refused(&one("F32", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", 4), 4, "17 dimensions");
        refused(r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}}"#, 1, "not valid");
        refused(r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1}}"#, 1, "unknown field");
        refused(r#"{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}"#, 1, "duplicate");
    }

    #[test]
    fn repeated_keys_are_refused() {
        let entry = r#"{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#;
        refused(&format!(r#"{{"a":{entry},"a":{entry}}}"#), 1, "\"a\" stands twice");
        refused(&format!(r#"{{"a":{entry},"\u0061":{entry}}}"#), 1, "\"a\" stands twice");
        refused(r#"{"__metadata__":{},"__metadata__":{}}"#, 0, "stands twice");
        refused(r#"{"__metadata__":{"k":"1","k":"2"}}"#, 0, "stands twice");
        refused(r#"{"__metadata__":{"k":1}}"#, 0, "expected a string");
    }

    #[test]
    fn frames_and_limits() {
        refused(" {}", 0, "not a JSON object");
        refused("[]", 0, "not a JSON object");
        refused("", 0, "not a JSON object");
        refused("{}\n", 0, "not a JSON object");
        refused("{}{}", 0, "not valid");
        refused("{\"a", 0, "not a JSON object");
        assert!(matches!(read(b"1234567"), Err(SafetensorsError::Short { len: 7 })));
        assert!(matches!(read(&[0xff; 16]), Err(SafetensorsError::HeaderTooLong { .. })));
        assert!(matches!(
            read(&[99, 0, 0, 0, 0, 0, 0, 0, b'{', b'}']),
            Err(SafetensorsError::HeaderExceedsFile { header_len: 99, len: 10 })
        ));
        assert!(matches!(
            read(b"version https://git-lfs.github.com/spec/v1"),
            Err(SafetensorsError::LfsPointer)
        ));
        // A length that lies about what the reader holds ends in a clean error, without taking that memory.
        let lying = [0, 0, 0, 5, 0, 0, 0, 0, b'{'];
        assert!(matches!(
            parse(&lying[..], 1 << 40, &InspectConfig::default()),
            Err(SafetensorsError::Read(_))
        ));
        let config = InspectConfig { tensors_max: 3, ..InspectConfig::default() };
        let bytes = file(GOOD, 31);
        let error = parse(&bytes[..], bytes.len() as u64, &config).expect_err("four tensors");
        assert!(error.to_string().contains("limit of 3"), "{error}");
        let mut broken = file(GOOD, 31);
        broken[40] = 0xff;
        assert!(read(&broken).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512), len in any::<u64>()) {
            let _ = read(&bytes);
            let _ = parse(&bytes[..], len, &InspectConfig::default());
        }

        #[test]
        fn mutated_headers_are_refused_or_tile(
            changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
            data_len in 25usize..40,
        ) {
            let mut bytes = file(GOOD, data_len);
            for (index, byte) in changes {
                let at = index.index(bytes.len());
                bytes[at] = byte;
            }
            if let Ok(header) = read(&bytes) {
                let mut end = header.data_start;
                for tensor in &header.tensors {
                    prop_assert_eq!(tensor.offset, end);
                    end += tensor.len;
                }
                prop_assert_eq!(end, bytes.len() as u64);
            }
        }
    }
}
