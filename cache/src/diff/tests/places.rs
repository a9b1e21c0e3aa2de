//! What depends on where things stand: shards, GGUF, files, templates, contracts, indexes, what a fetch moves.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use weighlock_protocol::LayerId;
use weighlock_protocol::manifest::contract::{LayerTensors, Tensor as Indexed};

use super::make::*;
use crate::diff::{Change, Compared, Delta, Diff, DiffConfig, DiffError, Side};

const GROUP: u64 = 16 << 10;

fn write(dir: &Path, name: &str, text: &str) {
    fs::write(dir.join(name), text).expect("written");
}

fn field<'a>(diff: &'a Diff, name: &str) -> Option<(Option<&'a str>, Option<&'a str>)> {
    let change = diff.contract.iter().chain(&diff.header).find(|change| change.field == name)?;
    Some((change.before.as_deref(), change.after.as_deref()))
}

#[test]
fn sharded_and_whole_are_equal_tensors_but_other_files() {
    let (_dir, a, b) = pair();
    let (x, y) = (("x", "F32", &[2][..], f32s([1.0, 2.0])), ("y", "F32", &[1][..], f32s([3.0])));
    safetensors(&a.join("model.safetensors"), &[x.clone(), y.clone()]);
    safetensors(&b.join("model-00001-of-00002.safetensors"), &[y]);
    safetensors(&b.join("model-00002-of-00002.safetensors"), &[x]);
    write(
        &b,
        "model.safetensors.index.json",
        r#"{"weight_map":{"x":"model-00002-of-00002.safetensors","y":"model-00001-of-00002.safetensors"}}"#,
    );
    let diff = compare(&a, &b);
    assert_eq!((diff.tensors.equal, diff.tensors.differing.len(), diff.same), (2, 0, false));
    assert_eq!(diff.files.differing.len(), 4);
    assert!(diff.contract.is_empty(), "{:?}", diff.contract);
}

#[test]
fn one_name_in_several_files_is_matched_by_file() {
    let (_dir, a, b) = pair();
    for (dir, last) in [(&a, 1.0), (&b, 5.0)] {
        safetensors(&dir.join("one/model.safetensors"), &[("w", "F32", &[1], f32s([0.0]))]);
        safetensors(&dir.join("two/model.safetensors"), &[("w", "F32", &[1], f32s([last]))]);
    }
    let diff = compare(&a, &b);
    assert_eq!(diff.tensors.equal, 1);
    assert_eq!(only(&diff).b.as_ref().map(|side| &side.file[..]), Some("two/model.safetensors"));
}

/// A Q8_0 block with a scale of 1 and these first numbers.
fn q8_0(first: [i8; 2]) -> Vec<u8> {
    let mut block = vec![0x00, 0x3c, first[0].cast_unsigned(), first[1].cast_unsigned()];
    block.resize(34, 0);
    block
}

#[test]
fn another_quantization_is_compared_after_dequantization() {
    let (_dir, a, b) = pair();
    let (a, b) = (a.join("a.gguf"), b.join("b.gguf"));
    // Q4_0 with a scale of 1: 9 - 8 = 1, then 15 - 8 = 7; all others 8 - 8 = 0.
    let mut q4_0 = vec![0x88; 18];
    q4_0[..4].copy_from_slice(&[0x00, 0x3c, 0x89, 0x8f]);
    let keys = |name, template| {
        [("general.architecture", "llama"), ("general.name", name), ("tokenizer.chat_template", template)]
    };
    let unread = |last| [vec![0; 65], vec![last]].concat();
    gguf(&a, &keys("one", "{{ a }}\n"), &[("t", 8, &[32], q8_0([1, 6])), ("iq", 16, &[256], unread(1))]);
    gguf(&b, &keys("two", "{{ b }}\n"), &[("t", 2, &[32], q4_0), ("iq", 16, &[256], unread(2))]);
    let diff = compare(&a, &b);
    let [iq, t] = &diff.tensors.differing[..] else { panic!("{diff:?}") };
    assert_eq!((t.change, t.compared), (Change::Dtype, Some(Compared::Elements)));
    let stats = t.stats.expect("compared");
    assert_eq!((stats.elements, stats.changed), (32, 1));
    assert_eq!(stats.values.expect("finite").max_abs, 1.0);
    assert_eq!((iq.change, iq.compared), (Change::Changed, Some(Compared::Bytes)));
    assert_eq!(field(&diff, "general.name"), Some((Some("one"), Some("two"))));
    assert_eq!(field(&diff, "general.architecture"), None);
    assert_eq!(diff.templates.len(), 1);
    assert_eq!(diff.templates[0].text.lines[1..], ["-{{ a }}", "+{{ b }}"]);
    assert_eq!(diff.files.differing[0].change, Change::Changed, "two files are matched whatever their names");
}

#[test]
fn small_files_are_told_line_by_line_and_templates_wherever_they_stand() {
    let (_dir, a, b) = pair();
    write(&a, "config.json", r#"{"max_position_embeddings": 512, "same": 1}"#);
    write(&b, "config.json", r#"{"same": 1, "max_position_embeddings": 1024}"#);
    write(&a, "tokenizer_config.json", r#"{"chat_template": "one\ntwo\n", "x": 1}"#);
    write(&b, "tokenizer_config.json", r#"{"x": 1}"#);
    write(&b, "chat_template.jinja", "one\n2\n");
    write(&a, "tokenizer.json", r#"{"model":{"vocab":{"a":0,"b":1}}}"#);
    write(&b, "tokenizer.json", r#"{"model":{"vocab":{"a":1,"c":0}}}"#);
    write(&a, "gone.bin", "x");
    let diff = compare(&a, &b);
    let file = |path: &str| diff.files.differing.iter().find(|file| file.path == path).expect("it differs");
    let lines = &file("config.json").text.as_ref().expect("text").lines;
    let told: Vec<_> = lines.iter().filter(|line| line.starts_with(['-', '+'])).collect();
    assert_eq!(told, [r#"-  "max_position_embeddings": 512,"#, r#"+  "max_position_embeddings": 1024,"#]);
    let tokens = file("tokenizer.json").tokens.expect("tokens");
    assert_eq!((tokens.added, tokens.removed, tokens.moved), (1, 1, 1));
    assert_eq!(
        (file("gone.bin").change, file("chat_template.jinja").change),
        (Change::Removed, Change::Added)
    );
    let [template] = &diff.templates[..] else { panic!("{:?}", diff.templates) };
    assert_eq!((&template.name[..], template.change), ("default", Change::Changed));
    assert_eq!(template.text.lines[1..], [" one", "-two", "+2"]);
    assert_eq!(field(&diff, "max_seq_len"), Some((Some("512"), Some("1024"))));
    assert!(field(&diff, "tokenizer").is_some() && field(&diff, "chat template").is_some());
}

#[test]
fn a_header_alone_can_differ() {
    let (_dir, a, b) = pair();
    let tensors: &[Tensor<'_>] = &[("t", "U8", &[4], vec![1, 2, 3, 4])];
    noted(&a.join("m.safetensors"), tensors, Some("old"));
    noted(&b.join("m.safetensors"), tensors, Some("new"));
    let diff = compare(&a, &b);
    assert_eq!((diff.same, diff.tensors.equal, diff.tensors.differing.len()), (false, 1, 0));
    assert_eq!(field(&diff, "note"), Some((Some("old"), Some("new"))));
    assert_eq!((diff.files.differing.len(), diff.files.differing[0].weights), (1, true));
}

fn big(path: &Path, seeds: [u8; 3]) -> Vec<(u64, u64)> {
    let lengths = [700_001, 40_000, 900_007];
    let tensors: Vec<Tensor<'_>> = ["a", "b", "c"]
        .iter()
        .zip(seeds)
        .zip(&lengths)
        .map(|((name, seed), len)| (*name, "U8", std::slice::from_ref(len), vec![seed; *len as usize]))
        .collect();
    safetensors(path, &tensors);
    let size = fs::metadata(path).expect("a file").len();
    let mut start = size - lengths.iter().sum::<u64>();
    let span = |len: &u64| {
        start += len;
        (start - len, *len)
    };
    lengths.iter().map(span).collect()
}

#[test]
fn a_fetch_moves_the_groups_that_equal_tensors_do_not_cover() {
    let (_dir, a, b) = pair();
    big(&a.join("m.safetensors"), [1, 2, 3]);
    let spans = big(&b.join("m.safetensors"), [1, 9, 3]);
    let size = fs::metadata(b.join("m.safetensors")).expect("a file").len();
    // Byte by byte: a group travels if any byte of it lies in the header or in the changed tensor.
    let known =
        |byte: u64| [0, 2].iter().any(|i: &usize| (spans[*i].0..spans[*i].0 + spans[*i].1).contains(&byte));
    let groups = (0..size).step_by(GROUP as usize).map(|start| (start, (start + GROUP).min(size)));
    let travels: u64 =
        groups.filter(|(start, end)| !(*start..*end).all(known)).map(|(start, end)| end - start).sum();
    let tree_bytes = (size.div_ceil(GROUP) - 1) * 64;
    let expected = Delta { total_bytes: size, moved_bytes: travels + tree_bytes, tree_bytes };
    assert_eq!(compare(&a, &b).delta, expected);
    assert!(travels < 100_000);
}

#[test]
fn hashes_of_both_sides_spare_reading() {
    let (_dir, pa, pb) = pair();
    for (dir, seeds) in [(&pa, [1, 2, 3]), (&pb, [1, 2, 3])] {
        big(&dir.join("m.safetensors"), seeds);
    }
    let indexed = |path: &Path, hashes: [&[u8]; 3]| -> Side {
        let side = open(path);
        let mut contract = side.contract.clone();
        let tensors = side.files[0].tensors.iter().zip(hashes).map(|(span, hash)| Indexed {
            name: span.name.clone(),
            dtype: span.dtype.clone(),
            shape: span.shape.clone(),
            offset: span.offset,
            len: span.len,
            blake3: LayerId::of(hash),
        });
        let tensors = tensors.collect();
        contract.tensors =
            vec![LayerTensors { path: "m.safetensors".into(), layer: LayerId::of(b"l"), tensors }];
        let layers = BTreeMap::from([("m.safetensors".into(), LayerId::of(&hashes.concat()))]);
        side.with_index(contract, &layers).expect("it fits")
    };
    let (a, b) = (indexed(&pa, [b"1", b"2", b"3"]), indexed(&pb, [b"1", b"2", b"3"]));
    let pairing = crate::diff::tensors::pair(&a, &b);
    assert!(pairing.pairs.iter().all(|pair| pair.task.is_none()));
    assert!(try_diff(&a, &b, &DiffConfig::default()).expect("comparable").same);

    let other = indexed(&pb, [b"1", b"2", b"other"]);
    let pairing = crate::diff::tensors::pair(&a, &other);
    assert_eq!(pairing.pairs.iter().filter(|pair| pair.task.is_some()).count(), 1);

    // A tensor that is known under another name need not travel either.
    let renamed = indexed(&pb, [b"3", b"2", b"new"]);
    let moved = try_diff(&a, &renamed, &DiffConfig::default()).expect("comparable").delta.moved_bytes;
    assert!(moved < 1_000_000, "{moved}");

    let wrong = open(&pa).with_index(
        {
            let mut contract = a.contract.clone();
            contract.tensors[0].tensors.pop();
            contract
        },
        &BTreeMap::new(),
    );
    assert!(matches!(wrong, Err(DiffError::Index { path }) if path == "m.safetensors"));
}
