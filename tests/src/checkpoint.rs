//! Checkpoints made from a seed: small and valid as Hugging Face writes them, many small files, one big file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::Path;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Rows and columns of each tensor of [`hugging_face`], in F32.
const SHAPE: [u64; 2] = [96, 128];
const SHAPE_BYTES: u64 = SHAPE[0] * SHAPE[1] * 4;

/// A directory with `shards` safetensors shards of two tensors each, their index, configuration, tokenizer and
/// template; about 100 KiB a shard.
///
/// # Panics
/// It cannot be written.
pub fn hugging_face(dir: &Path, seed: u64, shards: usize) {
    fs::create_dir_all(dir).expect("a directory");
    let mut map = serde_json::Map::new();
    for shard in 1..=shards {
        let name = format!("model-{shard:05}-of-{shards:05}.safetensors");
        let tensors: Vec<_> = ["weight", "bias"].map(|part| format!("layers.{shard}.{part}")).into();
        let entries = tensors.iter().zip(0..).map(|(tensor, i)| {
            let offsets = [i * SHAPE_BYTES, (i + 1) * SHAPE_BYTES];
            (tensor.clone(), json!({"dtype": "F32", "shape": SHAPE, "data_offsets": offsets}))
        });
        let header: serde_json::Map<String, Value> = entries.collect();
        safetensors(
            &dir.join(&name),
            &header.into(),
            2 * SHAPE_BYTES,
            seed.wrapping_mul(1000) + shard as u64,
        );
        map.extend(tensors.into_iter().map(|tensor| (tensor, json!(name))));
    }
    let total = json!(2 * SHAPE_BYTES * shards as u64);
    let small = [
        ("model.safetensors.index.json", json!({"metadata": {"total_size": total}, "weight_map": map})),
        (
            "config.json",
            json!({"architectures": ["TestForCausalLM"], "max_position_embeddings": 512, "torch_dtype": "float32", "seed": seed}),
        ),
        (
            "tokenizer.json",
            json!({"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}),
        ),
        ("tokenizer_config.json", json!({"chat_template": "{{ messages }}"})),
        ("generation_config.json", json!({"temperature": 0.7})),
    ];
    for (name, value) in small {
        fs::write(dir.join(name), value.to_string()).expect("a small file");
    }
}

/// `count` small files in nested directories, each with bytes of its own.
///
/// # Panics
/// They cannot be written.
pub fn many_files(dir: &Path, seed: u64, count: usize) {
    for i in 0..count {
        let below = dir.join(format!("part-{:02}", i % 7));
        fs::create_dir_all(&below).expect("a directory");
        fs::write(below.join(format!("{i:05}.txt")), format!("{seed} {i}\n").repeat(1 + i % 50))
            .expect("a file");
    }
}

/// One valid safetensors file with a single tensor of `bytes` bytes.
///
/// # Panics
/// It cannot be written.
pub fn single(path: &Path, seed: u64, bytes: u64) {
    fs::create_dir_all(path.parent().expect("a directory around it")).expect("a directory");
    let header = json!({"weight": {"dtype": "U8", "shape": [bytes], "data_offsets": [0, bytes]}});
    safetensors(path, &header, bytes, seed);
}

/// One tensor of [`tensors`].
#[derive(Debug, Clone)]
pub struct Part {
    /// Its name.
    pub name: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// What its bytes are made from.
    pub seed: u64,
}

/// A safetensors file of U8 tensors in this order, with a note in the header that sets its length. Answers for each
/// tensor its first byte in the file, its length and its seed.
///
/// # Panics
/// It cannot be written.
pub fn tensors(path: &Path, note: &str, parts: &[Part]) -> Vec<(u64, u64, u64)> {
    fs::create_dir_all(path.parent().expect("a directory around it")).expect("a directory");
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), json!({"note": note}));
    let mut end = 0;
    for part in parts {
        let offsets = [end, end + part.bytes];
        header.insert(
            part.name.clone(),
            json!({"dtype": "U8", "shape": [part.bytes], "data_offsets": offsets}),
        );
        end += part.bytes;
    }
    let header = Value::from(header).to_string();
    let mut bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
    let mut spans = Vec::new();
    for part in parts {
        let start = bytes.len();
        bytes.resize(start + part.bytes as usize, 0);
        ChaCha8Rng::seed_from_u64(part.seed).fill_bytes(&mut bytes[start..]);
        spans.push((start as u64, part.bytes, part.seed));
    }
    fs::write(path, bytes).expect("a file");
    spans
}

/// A safetensors file with this header and `bytes` random bytes of data.
///
/// # Panics
/// It cannot be written.
pub fn safetensors(path: &Path, header: &Value, bytes: u64, seed: u64) {
    let header = header.to_string();
    let mut out = BufWriter::new(File::create(path).expect("a file"));
    out.write_all(&(header.len() as u64).to_le_bytes()).expect("written");
    out.write_all(header.as_bytes()).expect("written");
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut buffer = vec![0; 1 << 20];
    let mut left = bytes;
    while left > 0 {
        let len = left.min(buffer.len() as u64) as usize;
        random.fill_bytes(&mut buffer[..len]);
        out.write_all(&buffer[..len]).expect("written");
        left -= len as u64;
    }
    out.flush().expect("written");
}

/// SHA-256 in hex of every file below `dir`, by path in it.
///
/// # Panics
/// Something cannot be read.
pub fn digests(dir: &Path) -> BTreeMap<String, String> {
    let relative = |path: &Path| {
        let inside = path.strip_prefix(dir).expect("a file below the directory");
        inside.to_str().expect("test paths are UTF-8").to_owned()
    };
    let files = crate::host::files_below(dir).into_iter();
    files.map(|path| (relative(&path), sha256(File::open(&path).expect("a file")))).collect()
}

/// The same of a directory that `weighlock path` printed, without the mark that tells whose view it is.
///
/// # Panics
/// The mark is missing, or something cannot be read.
pub fn view_digests(dir: &Path) -> BTreeMap<String, String> {
    let mut all = digests(dir);
    assert!(all.remove(".weighlock/digest").is_some(), "{} has no mark", dir.display());
    // How the files are, so that it shows when they were touched.
    all.remove(".weighlock/stamps");
    all
}

/// Compares two of these and names only what differs.
///
/// # Panics
/// Something differs.
pub fn same(found: &BTreeMap<String, String>, expected: &BTreeMap<String, String>, what: &str) {
    let paths = found.keys().chain(expected.keys());
    let differing: BTreeSet<&String> = paths.filter(|path| found.get(*path) != expected.get(*path)).collect();
    assert!(differing.is_empty(), "{what} differs from its source in {differing:?}");
}

/// SHA-256 in hex of what `from` still gives.
///
/// # Panics
/// It cannot be read.
pub fn sha256(mut from: impl Read) -> String {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match from.read(&mut buffer).expect("it can be read") {
            0 => return data_encoding::HEXLOWER.encode(&hasher.finalize()),
            n => hasher.update(&buffer[..n]),
        }
    }
}
