//! A reader of GGUF version 3 headers that takes nothing on trust: counts, lengths, types, offsets.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, BufReader, Read};

use sha2::{Digest, Sha256 as Sha256State};
use weighlock_protocol::Sha256;

use super::InspectConfig;
use super::ggml;
use super::json::quoted;
use crate::plan::TensorSpan;

/// What a GGUF header says.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    /// Key-value pairs; arrays only as a summary.
    pub entries: BTreeMap<String, Value>,
    /// Tensors by offset, without overlap.
    pub tensors: Vec<TensorSpan>,
    /// First byte of the data, from the start of the file.
    pub data_start: u64,
    /// Bytes after the last tensor and its padding: other readers ignore them.
    pub trailing_bytes: u64,
}

/// A value of the header.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Any unsigned integer.
    Unsigned(u64),
    /// Any signed integer.
    Signed(i64),
    /// Either float; `f32` is widened.
    Float(f64),
    /// A boolean.
    Bool(bool),
    /// A string.
    String(String),
    /// An array: its GGUF element type, its length and the SHA-256 of its encoded elements.
    Array {
        /// GGUF type id of the elements.
        element_type: u32,
        /// Number of elements.
        len: u64,
        /// SHA-256 of the elements as the file encodes them.
        sha256: Sha256,
    },
}

/// Why a file is not GGUF that we accept.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it; fields are what they name")]
pub enum GgufError {
    #[error("cannot read the header: {0}")]
    Read(#[from] io::Error),
    #[error("it does not start with `GGUF`")]
    Magic,
    #[error("a Git LFS pointer, not the weights: run `git lfs pull`")]
    LfsPointer,
    #[error("a big-endian GGUF file: convert it to little-endian")]
    BigEndian,
    #[error("GGUF version {0}; only version 3 is read: convert it with a current llama.cpp")]
    Version(u32),
    #[error("{what} at byte {at} ends after the end of the file: truncated or damaged")]
    Truncated { what: &'static str, at: u64 },
    #[error("the header is longer than the limit of {limit} bytes")]
    HeaderTooLong { limit: u64 },
    #[error("{what}: {count} is more than the limit of {limit}")]
    Limit { what: &'static str, count: u64, limit: u64 },
    #[error("{what} at byte {at} is not UTF-8")]
    NotUtf8 { what: &'static str, at: u64 },
    #[error("the key {0} stands twice")]
    KeyTwice(String),
    #[error("unknown value type {id} at byte {at}")]
    ValueType { id: u32, at: u64 },
    #[error("a boolean at byte {at} is neither 0 nor 1")]
    Bool { at: u64 },
    #[error("general.alignment must be a u32 that is a power of two")]
    Alignment,
    #[error("tensor {0} stands twice")]
    TensorTwice(String),
    #[error("tensor {name} has the unknown or withdrawn type {id}")]
    TensorType { name: String, id: u32 },
    #[error("tensor {name} has a shape whose size overflows")]
    ShapeOverflow { name: String },
    #[error(
        "tensor {name} has rows of {row} elements, not a multiple of the {block} that a {dtype} block holds"
    )]
    Row { name: String, row: u64, block: u64, dtype: &'static str },
    #[error("tensor {name} starts at {offset}, not aligned to {alignment}")]
    Unaligned { name: String, offset: u64, alignment: u64 },
    #[error("tensor {name} overlaps another")]
    Overlap { name: String },
    #[error("{bytes} bytes before tensor {name} belong to no tensor and are more than padding")]
    Hole { name: String, bytes: u64 },
    #[error("tensor {name} ends after the end of the file: truncated or damaged")]
    Exceeds { name: String },
}

/// Reads the header of an open file of `len` bytes from its current position, which must be its start.
///
/// # Errors
/// As [`parse`].
pub fn read_header(file: &File, len: u64, config: &InspectConfig) -> Result<Header, GgufError> {
    parse(BufReader::with_capacity(1 << 16, file), len, config)
}

/// Reads a header from `reader`, which stands at the start of a file of `len` bytes. Memory is taken as bytes
/// arrive, never by what a length claims.
///
/// # Errors
/// Not version 3, a limit of `config`, anything that does not fit the file, or a failed read.
pub fn parse(reader: impl Read, len: u64, config: &InspectConfig) -> Result<Header, GgufError> {
    let mut input = Input { reader, at: 0, len, limit: config.gguf_header_bytes_max, hash: None };
    match &input.array::<4>("the magic")? {
        b"GGUF" => {}
        b"vers" => return Err(GgufError::LfsPointer),
        _ => return Err(GgufError::Magic),
    }
    match input.u32()? {
        3 => {}
        version if version & 0xffff == 0 => return Err(GgufError::BigEndian),
        version => return Err(GgufError::Version(version)),
    }
    let tensor_count = input.u64()?;
    let key_count = input.u64()?;
    // A tensor takes at least 24 bytes, a pair at least 13.
    input.check_count("tensors", tensor_count, config.tensors_max as u64, 24)?;
    input.check_count("keys", key_count, config.gguf_keys_max, 13)?;

    let mut entries = BTreeMap::new();
    for _ in 0..key_count {
        let key = input.name("a key", config)?;
        let value = input.value(config)?;
        if entries.contains_key(&key) {
            return Err(GgufError::KeyTwice(quoted(&key)));
        }
        entries.insert(key, value);
    }
    let alignment = match entries.get("general.alignment") {
        None => 32,
        Some(Value::Unsigned(value)) if value.is_power_of_two() && *value <= u64::from(u32::MAX) => *value,
        Some(_) => return Err(GgufError::Alignment),
    };

    let mut tensors = Vec::new();
    let mut names = HashSet::new();
    for _ in 0..tensor_count {
        let tensor = input.tensor(alignment, config)?;
        if !names.insert(tensor.name.clone()) {
            return Err(GgufError::TensorTwice(quoted(&tensor.name)));
        }
        tensors.push(tensor);
    }
    place(&mut tensors, input.at, len, alignment).map(|(data_start, trailing_bytes)| Header {
        entries,
        tensors,
        data_start,
        trailing_bytes,
    })
}

impl Header {
    /// The string under `key`.
    pub fn str(&self, key: &str) -> Option<&str> {
        match self.entries.get(key) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        }
    }

    /// The integer under `key`, if it is not negative.
    pub fn u64(&self, key: &str) -> Option<u64> {
        match self.entries.get(key) {
            Some(Value::Unsigned(number)) => Some(*number),
            Some(Value::Signed(number)) => (*number).try_into().ok(),
            _ => None,
        }
    }

    /// SHA-256 over the sorted `tokenizer.*` pairs without chat templates, each field length-prefixed; `None`
    /// without any. Equal for every file that carries the same tokenizer, whatever its weights.
    pub fn tokenizer_sha256(&self) -> Option<Sha256> {
        let mut hash = Sha256State::new();
        let mut field = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        field(b"weighlock gguf tokenizer v1");
        let mut found = false;
        for (key, value) in &self.entries {
            if !key.starts_with("tokenizer.") || key.starts_with("tokenizer.chat_template") {
                continue;
            }
            found = true;
            field(key.as_bytes());
            match value {
                Value::Unsigned(number) => field(format!("u{number}").as_bytes()),
                Value::Signed(number) => field(format!("i{number}").as_bytes()),
                Value::Float(number) => field(format!("f{:016x}", number.to_bits()).as_bytes()),
                Value::Bool(flag) => field(format!("b{}", u8::from(*flag)).as_bytes()),
                Value::String(text) => field(format!("s{text}").as_bytes()),
                Value::Array { element_type, len, sha256 } => {
                    field(format!("a{element_type},{len},{}", sha256.hex()).as_bytes());
                }
            }
        }
        found.then(|| Sha256(hash.finalize().into()))
    }
}

/// Sorts tensors by offset, makes offsets absolute and checks that they lie in the file one after the other.
/// Gives the start of the data and the bytes after it.
fn place(
    tensors: &mut [TensorSpan],
    header_end: u64,
    len: u64,
    alignment: u64,
) -> Result<(u64, u64), GgufError> {
    let Some(data_start) = header_end.checked_next_multiple_of(alignment).filter(|start| *start <= len)
    else {
        return match tensors.first() {
            // A file of keys alone (a vocabulary) may end without padding.
            None => Ok((header_end, 0)),
            Some(tensor) => Err(GgufError::Exceeds { name: quoted(&tensor.name) }),
        };
    };
    tensors.sort_unstable_by(|a, b| (a.offset, a.len, &a.name).cmp(&(b.offset, b.len, &b.name)));
    let data_len = len - data_start;
    let mut end = 0u64;
    for tensor in tensors {
        let name = || quoted(&tensor.name);
        if tensor.offset < end {
            return Err(GgufError::Overlap { name: name() });
        }
        if tensor.offset - end >= alignment {
            return Err(GgufError::Hole { name: name(), bytes: tensor.offset - end });
        }
        end = match tensor.offset.checked_add(tensor.len) {
            Some(end) if end <= data_len => end,
            _ => return Err(GgufError::Exceeds { name: name() }),
        };
        tensor.offset += data_start;
    }
    let padded = end.checked_next_multiple_of(alignment).unwrap_or(data_len);
    Ok((data_start, data_len.saturating_sub(padded)))
}

/// The bytes of a header with their position and what is left; hashes what passes while `hash` is set.
struct Input<R> {
    reader: R,
    at: u64,
    len: u64,
    limit: u64,
    hash: Option<Sha256State>,
}

impl<R: Read> Input<R> {
    /// Reserves the next `count` bytes.
    fn claim(&mut self, what: &'static str, count: u64) -> Result<(), GgufError> {
        if count > self.len - self.at {
            return Err(GgufError::Truncated { what, at: self.at });
        }
        if count > self.limit.saturating_sub(self.at) {
            return Err(GgufError::HeaderTooLong { limit: self.limit });
        }
        self.at += count;
        Ok(())
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], GgufError> {
        self.claim(what, N as u64)?;
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes)?;
        if let Some(hash) = &mut self.hash {
            hash.update(bytes);
        }
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, GgufError> {
        self.array("a number").map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, GgufError> {
        self.array("a number").map(u64::from_le_bytes)
    }

    /// A count of things that take at least `least_bytes` each.
    fn check_count(
        &self,
        what: &'static str,
        count: u64,
        limit: u64,
        least_bytes: u64,
    ) -> Result<(), GgufError> {
        if count > limit {
            return Err(GgufError::Limit { what, count, limit });
        }
        if count.saturating_mul(least_bytes) > self.len - self.at {
            return Err(GgufError::Truncated { what, at: self.at });
        }
        Ok(())
    }

    fn bytes(&mut self, what: &'static str, len_max: u64) -> Result<Vec<u8>, GgufError> {
        let len = self.u64()?;
        if len > len_max {
            return Err(GgufError::Limit { what, count: len, limit: len_max });
        }
        self.claim(what, len)?;
        let mut bytes = Vec::new();
        self.reader.by_ref().take(len).read_to_end(&mut bytes)?;
        if bytes.len() as u64 != len {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok(bytes)
    }

    fn string(&mut self, what: &'static str, len_max: u64) -> Result<String, GgufError> {
        let at = self.at;
        let bytes = self.bytes(what, len_max)?;
        String::from_utf8(bytes).map_err(|_| GgufError::NotUtf8 { what, at })
    }

    fn name(&mut self, what: &'static str, config: &InspectConfig) -> Result<String, GgufError> {
        self.string(what, config.name_bytes_max as u64)
    }

    /// Passes over `count` bytes.
    fn skip(&mut self, what: &'static str, mut count: u64) -> Result<(), GgufError> {
        self.claim(what, count)?;
        let mut buffer = [0; 4096];
        while count > 0 {
            let part = &mut buffer[..count.min(4096) as usize];
            self.reader.read_exact(part)?;
            if let Some(hash) = &mut self.hash {
                hash.update(&*part);
            }
            count -= part.len() as u64;
        }
        Ok(())
    }

    fn value(&mut self, config: &InspectConfig) -> Result<Value, GgufError> {
        let at = self.at;
        const WHAT: &str = "a value";
        Ok(match self.u32()? {
            0 => Value::Unsigned(self.array::<1>(WHAT)?[0].into()),
            1 => Value::Signed(i8::from_le_bytes(self.array(WHAT)?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.array(WHAT)?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.array(WHAT)?).into()),
            4 => Value::Unsigned(self.u32()?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.array(WHAT)?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array(WHAT)?).into()),
            7 => match self.array::<1>(WHAT)? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                _ => return Err(GgufError::Bool { at: self.at - 1 }),
            },
            8 => Value::String(self.string(WHAT, config.json_bytes_max)?),
            9 => {
                let element_type = self.u32()?;
                let len = self.u64()?;
                self.hash = Some(Sha256State::new());
                self.elements(element_type, len, 1, config)?;
                let hash = self.hash.take().unwrap_or_default();
                Value::Array { element_type, len, sha256: Sha256(hash.finalize().into()) }
            }
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.array(WHAT)?)),
            12 => Value::Float(f64::from_le_bytes(self.array(WHAT)?)),
            id => return Err(GgufError::ValueType { id, at }),
        })
    }

    /// Passes over the elements of an array that stands inside `depth - 1` others.
    fn elements(
        &mut self,
        element_type: u32,
        len: u64,
        depth: u32,
        config: &InspectConfig,
    ) -> Result<(), GgufError> {
        const WHAT: &str = "array elements";
        if depth > config.gguf_array_depth_max {
            let limit = config.gguf_array_depth_max.into();
            return Err(GgufError::Limit { what: "nested arrays", count: depth.into(), limit });
        }
        let least_bytes = match element_type {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => 12,
            id => return Err(GgufError::ValueType { id, at: self.at }),
        };
        self.check_count(WHAT, len, config.gguf_array_len_max, least_bytes)?;
        match element_type {
            8 => {
                for _ in 0..len {
                    let bytes = self.u64()?;
                    self.skip("a string", bytes)?;
                }
            }
            9 => {
                for _ in 0..len {
                    let (inner_type, inner_len) = (self.u32()?, self.u64()?);
                    self.elements(inner_type, inner_len, depth + 1, config)?;
                }
            }
            _ => self.skip(WHAT, len * least_bytes)?,
        }
        Ok(())
    }

    /// One entry of the tensor table, its offset still relative to the data.
    fn tensor(&mut self, alignment: u64, config: &InspectConfig) -> Result<TensorSpan, GgufError> {
        let name = self.name("a tensor name", config)?;
        let dims = self.u32()?;
        self.check_count("dimensions", dims.into(), config.dims_max as u64, 8)?;
        let mut shape = Vec::new();
        for _ in 0..dims {
            shape.push(self.u64()?);
        }
        let id = self.u32()?;
        let offset = self.u64()?;
        let Some(kind) = ggml::tensor_type(id) else {
            return Err(GgufError::TensorType { name: quoted(&name), id });
        };
        let row = shape.first().copied().unwrap_or(1);
        if row % kind.block_elements != 0 {
            return Err(GgufError::Row {
                name: quoted(&name),
                row,
                block: kind.block_elements,
                dtype: kind.name,
            });
        }
        let len = super::element_count(&shape)
            .and_then(|count| (count / kind.block_elements).checked_mul(kind.block_bytes));
        let Some(len) = len else {
            return Err(GgufError::ShapeOverflow { name: quoted(&name) });
        };
        if offset % alignment != 0 {
            return Err(GgufError::Unaligned { name: quoted(&name), offset, alignment });
        }
        // GGUF writes the innermost dimension first.
        shape.reverse();
        Ok(TensorSpan { name, dtype: kind.name.into(), shape, offset, len })
    }
}

#[cfg(test)]
mod tests;
