//! Small model files made by hand, for tests.

/// A GGUF file under construction.
#[derive(Clone)]
pub(super) struct Gguf {
    keys: Vec<u8>,
    key_count: u64,
    tensors: Vec<u8>,
    tensor_count: u64,
    data_len: usize,
    alignment: usize,
}

impl Gguf {
    pub(super) fn new() -> Self {
        Self { keys: vec![], key_count: 0, tensors: vec![], tensor_count: 0, data_len: 0, alignment: 32 }
    }

    pub(super) fn key(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.key_count += 1;
        self.keys.extend(string(key));
        self.keys.extend(kind.to_le_bytes());
        self.keys.extend(value);
        self
    }

    pub(super) fn text(self, key: &str, value: &str) -> Self {
        self.key(key, 8, &string(value))
    }

    pub(super) fn tensor(mut self, name: &str, dims: &[u64], kind: u32, offset: u64) -> Self {
        self.tensor_count += 1;
        self.tensors.extend(string(name));
        self.tensors.extend((dims.len() as u32).to_le_bytes());
        self.tensors.extend(dims.iter().flat_map(|dim| dim.to_le_bytes()));
        self.tensors.extend(kind.to_le_bytes());
        self.tensors.extend(offset.to_le_bytes());
        self
    }

    pub(super) fn data(mut self, len: usize) -> Self {
        self.data_len = len;
        self
    }

    pub(super) fn aligned(mut self, alignment: u32) -> Self {
        self.alignment = alignment as usize;
        self.key("general.alignment", 4, &alignment.to_le_bytes())
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(self.tensor_count.to_le_bytes());
        bytes.extend(self.key_count.to_le_bytes());
        bytes.extend(&self.keys);
        bytes.extend(&self.tensors);
        bytes.resize(bytes.len().next_multiple_of(self.alignment) + self.data_len, 0);
        bytes
    }
}

pub(super) fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

pub(super) fn array(kind: u32, len: u64, elements: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &len.to_le_bytes(), elements].concat()
}

/// A safetensors file with one-dimensional tensors, each `(name, dtype, elements, bytes)`.
pub(super) fn safetensors(tensors: &[(&str, &str, usize, usize)]) -> Vec<u8> {
    let mut end = 0;
    let entries: Vec<String> = tensors
        .iter()
        .map(|(name, dtype, elements, len)| {
            let begin = end;
            end += len;
            format!(r#""{name}":{{"dtype":"{dtype}","shape":[{elements}],"data_offsets":[{begin},{end}]}}"#)
        })
        .collect();
    let header = format!("{{{}}}", entries.join(","));
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + end, 1);
    bytes
}
