//! Good and lying GGUF files.

use proptest::prelude::*;

use super::*;
use crate::inspect::testing::{Gguf, array, string};

fn read(bytes: &[u8]) -> Result<Header, GgufError> {
    parse(bytes, bytes.len() as u64, &InspectConfig::default())
}

#[track_caller]
fn refused(bytes: &[u8], why: &str) {
    let error = read(bytes).expect_err("must be refused").to_string();
    assert!(error.contains(why), "{error}");
    assert!(!error.contains('\n'), "{error}");
}

fn good() -> Gguf {
    Gguf::new()
        .text("general.architecture", "llama")
        .key("general.file_type", 4, &3u32.to_le_bytes())
        .key("tokenizer.ggml.tokens", 9, &array(8, 2, &[string("a"), string("bc")].concat()))
        .text("tokenizer.chat_template", "{{x}}")
        .tensor("q", &[64, 2], 3, 0)
        .tensor("norm", &[3], 0, 96)
        .data(96 + 32)
}

#[test]
fn a_valid_file_gives_keys_and_spans() {
    let bytes = good().bytes();
    let header = read(&bytes).expect("valid");
    assert_eq!(header.str("general.architecture"), Some("llama"));
    assert_eq!(header.u64("general.file_type"), Some(3));
    assert_eq!(header.tensors[0].shape, [2, 64]);
    assert_eq!((header.tensors[0].dtype.as_str(), header.tensors[0].len), ("Q4_1", 80));
    assert_eq!(header.tensors[1].offset, header.data_start + 96);
    assert_eq!(header.data_start % 32, 0);
    assert_eq!(header.trailing_bytes, 0);
    assert_eq!(read(&good().data(500).bytes()).expect("valid").trailing_bytes, 500 - 128);
}

#[test]
fn the_tokenizer_hash_follows_the_tokenizer_alone() {
    let hash = |gguf: Gguf| read(&gguf.bytes()).expect("valid").tokenizer_sha256();
    let tokens = |text: &str| array(8, 1, &string(text));
    let base = || Gguf::new().key("tokenizer.ggml.tokens", 9, &tokens("a"));
    let one = hash(base());
    assert!(one.is_some());
    assert_eq!(one, hash(base().text("tokenizer.chat_template", "x").text("general.name", "y")));
    assert_ne!(one, hash(Gguf::new().key("tokenizer.ggml.tokens", 9, &tokens("b"))));
    assert_ne!(one, hash(base().text("tokenizer.ggml.model", "gpt2")));
    let swapped = |a: &str, b: &str| {
        hash(Gguf::new().text(a, if a < b { "1" } else { "2" }).text(b, if a < b { "2" } else { "1" }))
    };
    assert_eq!(swapped("tokenizer.a", "tokenizer.b"), swapped("tokenizer.b", "tokenizer.a"));
    assert_eq!(hash(Gguf::new().text("general.name", "y")), None);
}

#[test]
fn other_files_and_versions_are_named() {
    refused(b"PK\x03\x04aaaaaaaaaaaaaaaaaaaaaaaa", "does not start");
    refused(b"version https://git-lfs", "git lfs pull");
    refused(b"GG", "truncated");
    let versioned = |version: [u8; 4]| {
        let mut bytes = good().bytes();
        bytes[4..8].copy_from_slice(&version);
        bytes
    };
    refused(&versioned([2, 0, 0, 0]), "version 2; only version 3");
    refused(&versioned([0, 0, 0, 3]), "big-endian");
}

#[test]
fn lying_counts_are_refused_before_memory_is_taken() {
    let counted = |at: usize, count: u64| {
        let mut bytes = good().bytes();
        bytes[at..at + 8].copy_from_slice(&count.to_le_bytes());
        bytes
    };
    refused(&counted(8, u64::MAX), "tensors: 18446744073709551615 is more than the limit");
    refused(&counted(8, 1_000_000), "truncated");
    refused(&counted(16, u64::MAX), "keys");
    refused(&counted(16, 60_000), "truncated");
    refused(&counted(24, u64::MAX), "a key");
    let array_of = |kind, len| Gguf::new().key("k", 9, &array(kind, len, &[])).bytes();
    refused(&array_of(4, u64::MAX), "array elements");
    refused(&array_of(4, 1000), "truncated");
    refused(&array_of(8, 1000), "truncated");
    refused(&array_of(13, 0), "unknown value type 13");
    let mut nested = array(9, 1, &array(9, 1, &array(4, 0, &[])));
    for _ in 0..6 {
        nested = array(9, 1, &nested);
    }
    refused(&Gguf::new().key("k", 9, &nested).bytes(), "nested arrays");
    refused(&Gguf::new().key("k", 8, &(1u64 << 50).to_le_bytes()).bytes(), "a value");
    let config = InspectConfig { gguf_header_bytes_max: 64, ..InspectConfig::default() };
    let bytes = good().bytes();
    assert!(matches!(
        parse(&bytes[..], bytes.len() as u64, &config),
        Err(GgufError::HeaderTooLong { limit: 64 })
    ));
}

#[test]
fn keys_and_values_must_be_exact() {
    refused(&Gguf::new().text("a", "1").text("a", "2").bytes(), "\"a\" stands twice");
    refused(&Gguf::new().key("b", 7, &[2]).bytes(), "boolean");
    refused(&Gguf::new().key("v", 99, &[]).bytes(), "unknown value type 99");
    refused(&Gguf::new().key("s", 8, b"\x01\0\0\0\0\0\0\0\xff").bytes(), "not UTF-8");
    for (kind, value) in [(4, &24u32.to_le_bytes()[..]), (4, &[0; 4]), (5, &32i32.to_le_bytes())] {
        refused(&Gguf::new().key("general.alignment", kind, value).bytes(), "power of two");
    }
}

#[test]
fn tensors_must_lie_in_the_file_in_order() {
    let pair =
        |dims: &[u64], second: u64| Gguf::new().tensor("a", &[8], 0, 0).tensor("b", dims, 0, second).data(64);
    assert!(read(&pair(&[8], 32).bytes()).is_ok());
    refused(&pair(&[8], 0).bytes(), "overlaps");
    refused(&pair(&[8], 33).bytes(), "not aligned");
    refused(&pair(&[8], 64).bytes(), "belong to no tensor");
    refused(&pair(&[9], 32).bytes(), "truncated");
    refused(&pair(&[u64::MAX, 2], 32).bytes(), "overflows");
    refused(&pair(&[u64::MAX / 4], 32).bytes(), "truncated");
    refused(&pair(&[1; 17], 32).bytes(), "dimensions");
    refused(&Gguf::new().tensor("a", &[8], 0, 0).tensor("a", &[8], 0, 32).data(64).bytes(), "stands twice");
    refused(&Gguf::new().tensor("a", &[8], 4, 0).data(64).bytes(), "withdrawn type 4");
    refused(&Gguf::new().tensor("a", &[48], 2, 0).data(64).bytes(), "not a multiple of the 32");
    refused(&Gguf::new().tensor("a", &[8], 0, 0).bytes(), "truncated");
    let wide = Gguf::new().aligned(64).tensor("a", &[8], 0, 0).tensor("b", &[8], 0, 64).data(96);
    assert_eq!(read(&wide.bytes()).expect("valid").data_start % 64, 0);
    assert!(read(&Gguf::new().text("a", "vocabulary only").bytes()).is_ok());
}

proptest! {
    #[test]
    fn any_bytes_never_panic(tail in proptest::collection::vec(any::<u8>(), 0..400), len in any::<u64>()) {
        let bytes = [b"GGUF\x03\0\0\0".as_slice(), &tail].concat();
        let _ = read(&tail);
        let _ = read(&bytes);
        let _ = parse(&bytes[..], len, &InspectConfig::default());
    }

    #[test]
    fn mutated_headers_are_refused_or_fit(
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<proptest::sample::Index>(),
    ) {
        let mut bytes = good().bytes();
        prop_assert!(read(&bytes[..cut.index(bytes.len() - 32)]).is_err());
        for (index, byte) in changes {
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(header) = read(&bytes) {
            let mut end = header.data_start;
            for tensor in &header.tensors {
                prop_assert!(tensor.offset >= end);
                end = tensor.offset + tensor.len;
                prop_assert!(end <= bytes.len() as u64);
            }
        }
    }
}
