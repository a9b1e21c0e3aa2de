//! Tests of the reader of DVC files, on what DVC 3.67.1 wrote (`dvc add`, `dvc repro`).

use std::fs;

use proptest::prelude::*;
use weighlock_protocol::Sha256;

use super::*;

const LOCK: &str = include_str!("testdata/dvc.lock");

/// A directory with the data that the files in `testdata` were made of, and those files.
fn repository() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    let put = |path: &str, text: &str| {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
        fs::write(path, text).expect("written");
    };
    put("data/train.jsonl", "one\r\ntwo\n");
    put("data/digits.txt", "682577\n");
    put("data/exponent.txt", "574565\n");
    put("data/evals/a.jsonl", "{\"q\":1}\n");
    put("data/evals/deep/b.jsonl", "{\"q\":2}\n");
    put("data/evals/deep-c.txt", "y");
    put("data/evals/é \"😀.txt", "x");
    put("prepared/x.jsonl", "one\r\ntwo\n");
    put("metrics.json", "{\"loss\": 1}\n");
    put("data/train.jsonl.dvc", include_str!("testdata/train.jsonl.dvc"));
    put("data/digits.txt.dvc", include_str!("testdata/digits.txt.dvc"));
    put("data/exponent.txt.dvc", include_str!("testdata/exponent.txt.dvc"));
    put("data/evals.dvc", include_str!("testdata/evals.dvc"));
    put("dvc.lock", LOCK);
    dir
}

fn read_in(dir: &tempfile::TempDir, path: &str) -> Result<Vec<DatasetRef>, DvcError> {
    read(&dir.path().join(path))
}

/// Why a file of this name and text is refused.
fn why(name: &str, text: &str) -> String {
    let dir = repository();
    fs::write(dir.path().join(name), text).expect("written");
    let why = read_in(&dir, name).expect_err("refused").to_string();
    assert!(!why.contains('\n'), "{why}");
    why
}

#[test]
fn a_file_is_proven_by_its_md5_and_named_by_its_sha256() {
    let dir = repository();
    let one = |path: &str| read_in(&dir, path).expect(path).remove(0);
    let train = one("data/train.jsonl.dvc");
    assert_eq!(train.name, "train.jsonl");
    assert_eq!(train.dvc_md5.as_deref(), Some("57b956583c81128dc3f31ecb9e4d84e6"));
    assert_eq!(train.sha256, Some(Sha256::of(b"one\r\ntwo\n")));
    // MD5s that YAML would take for numbers.
    assert_eq!(one("data/digits.txt.dvc").dvc_md5.as_deref(), Some("61230315635059227299115225839792"));
    assert_eq!(one("data/exponent.txt.dvc").dvc_md5.as_deref(), Some("630334416415623642455915400846e6"));
}

#[test]
fn a_directory_has_dvc_s_md5_and_a_hash_over_its_files() {
    let dir = repository();
    let evals = read_in(&dir, "data/evals.dvc").expect("proven").remove(0);
    assert_eq!(evals.dvc_md5.as_deref(), Some("5cef6984da66e808196895208f191d4d.dir"));
    let mut expected = b"weighlock dataset files v1\n".to_vec();
    let files = [
        ("a.jsonl", "{\"q\":1}\n"),
        ("deep-c.txt", "y"),
        ("deep/b.jsonl", "{\"q\":2}\n"),
        ("é \"😀.txt", "x"),
    ];
    for (path, text) in files {
        expected.extend((path.len() as u64).to_le_bytes());
        expected.extend(path.as_bytes());
        expected.extend(Sha256::of(text.as_bytes()).as_bytes());
    }
    assert_eq!(evals.sha256, Some(Sha256::of(&expected)));
}

#[test]
fn a_lock_names_every_path_once_and_hashes_what_is_there() {
    let dir = repository();
    let all = read_in(&dir, "dvc.lock").expect("proven");
    let names: Vec<(&str, bool)> =
        all.iter().map(|data| (data.name.as_str(), data.sha256.is_some())).collect();
    let expected = [
        ("data/evals", true),
        ("data/train.jsonl", true),
        ("metrics.json", true),
        ("model.bin", false),
        ("prepared", true),
        ("prepared/x.jsonl", true),
    ];
    assert_eq!(names, expected, "model.bin does not lie there");
}

#[test]
fn data_that_changed_is_refused() {
    let changed = |path: &str, text: &str, file: &str| {
        let dir = repository();
        fs::write(dir.path().join(path), text).expect("written");
        read_in(&dir, file).expect_err("refused").to_string()
    };
    let md5 = changed("data/train.jsonl", "one\r\nTWO\n", "data/train.jsonl.dvc");
    assert!(
        md5.contains("its MD5 is") && md5.contains("instead of 57b956583c81128dc3f31ecb9e4d84e6"),
        "{md5}"
    );
    assert!(changed("data/train.jsonl", "one\n", "dvc.lock").contains("4 bytes instead of 9"));
    assert!(changed("data/evals/a.jsonl", "{\"q\":3}\n", "data/evals.dvc").contains("its MD5 is"));
    assert!(changed("data/evals/new", "", "data/evals.dvc").contains("5 files instead of 4"));
    let dir = repository();
    fs::remove_dir_all(dir.path().join("data/evals")).expect("removed");
    fs::write(dir.path().join("data/evals"), "").expect("written");
    assert!(read_in(&dir, "data/evals.dvc").expect_err("refused").to_string().contains("one is a directory"));
}

#[test]
fn what_dvc_2_wrote_is_compared_by_size() {
    let dir = repository();
    // md5 of "one\ntwo\n", with the line ends that DVC 2 hashed.
    let text = "outs:\n- md5: e04ca4dbd8c4a1aee6e9a34c7a1a9df6\n  size: 9\n  path: data/train.jsonl\n";
    fs::write(dir.path().join("old.dvc"), text).expect("written");
    let data = read_in(&dir, "old.dvc").expect("sizes agree").remove(0);
    assert_eq!((data.name.as_str(), data.sha256), ("data/train.jsonl", Some(Sha256::of(b"one\r\ntwo\n"))));
    assert!(why("old.dvc", &text.replace("size: 9", "size: 8")).contains("9 bytes instead of 8"));
}

#[test]
fn a_working_directory_is_part_of_the_name() {
    let dir = repository();
    let text = format!("wdir: ./data\n{}", include_str!("testdata/train.jsonl.dvc"));
    fs::write(dir.path().join("train.dvc"), text).expect("written");
    assert_eq!(read_in(&dir, "train.dvc").expect("proven")[0].name, "data/train.jsonl");
    assert!(
        why("train.dvc", "wdir: ..\nouts:\n- {path: x, md5: 57b956583c81128dc3f31ecb9e4d84e6}")
            .contains("not inside")
    );
}

#[test]
fn what_is_no_dvc_file_is_refused_in_one_line() {
    assert!(why("x.dvc", "outs: [\n- a: {").contains("not the YAML that DVC writes"));
    assert!(why("x.dvc", "just text").contains("not the YAML"));
    assert!(why("x.dvc", "outs:\n- path: x\n  path: y\n").contains("not the YAML"));
    assert!(why("x.dvc", "deps: []\n").contains("names no data"));
    assert!(why("dvc.lock", "schema: '2.0'\nstages: {}\n").contains("names no data"));
    assert!(why("dvc.lock", "train:\n  cmd: x\n").contains("has schema \"\""));
    assert!(why("dvc.yaml", "stages: {}\n").contains("name a .dvc file or dvc.lock"));
    let out = |path: &str, md5: &str| why("x.dvc", &format!("outs:\n- path: {path}\n  md5: {md5}\n"));
    let md5 = "57b956583c81128dc3f31ecb9e4d84e6";
    for path in ["../x", "/etc/passwd", "a/../../x", "s3://bucket/x", ".", "\"a\\nb\""] {
        assert!(out(path, md5).contains("not inside its directory"), "{path}");
    }
    for wrong in
        ["57b956583c81128d", "57B956583C81128DC3F31ECB9E4D84E6", "57b956583c81128dc3f31ecb9e4d84e6.zip", "''"]
    {
        assert!(out("x", wrong).contains("as the MD5 of \"x\", which is none"), "{wrong}");
    }
    assert!(why("x.dvc", "outs:\n- path: x\n  etag: abc\n").contains("gives no MD5 of \"x\""));
    let stale = LOCK.replacen("2bd1108474b9b1304b937fa51e629cf1", "3bd1108474b9b1304b937fa51e629cf1", 1);
    assert!(why("dvc.lock", &stale).contains("two MD5s of \"prepared\""));
}

#[test]
fn a_file_that_would_grow_without_bounds_is_refused() {
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let below = vec![format!("*a{}", level - 1); 10].join(", ");
        bomb.push_str(&format!("a{level}: &a{level} [{below}]\n"));
    }
    bomb.push_str("outs: *a11\n");
    assert!(why("x.dvc", &bomb).contains("not the YAML"));
    assert!(why("x.dvc", &format!("outs: {}", "[".repeat(100_000))).contains("not the YAML"));
    let dir = repository();
    let long = fs::File::create(dir.path().join("x.dvc")).expect("created");
    long.set_len(DVC_BYTES_MAX + 1).expect("long");
    assert!(read_in(&dir, "x.dvc").expect_err("refused").to_string().contains("larger than"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_damaged_lock_is_read_or_refused(at in 0..LOCK.len(), byte in any::<char>()) {
        let dir = repository();
        let mut text = LOCK.to_owned();
        if text.is_char_boundary(at) && text.is_char_boundary(at + 1) {
            text.replace_range(at..=at, &byte.to_string());
        }
        fs::write(dir.path().join("dvc.lock"), text).expect("written");
        let _ = read_in(&dir, "dvc.lock");
    }
}
