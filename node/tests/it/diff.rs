//! `weighlock diff` from outside: exit codes, JSON, what people read, and what is wrong in one line.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

/// Runs it without a daemon; exit code, standard output, standard error.
fn diff(dir: &Path, arguments: &[&str]) -> (i32, String, String) {
    let ran = Command::new(env!("CARGO_BIN_EXE_weighlock"))
        .current_dir(dir)
        .env("WEIGHLOCK_DATA_DIR", dir.join("data"))
        .env("WEIGHLOCK_CONFIG", dir.join("config.toml"))
        .arg("diff")
        .args(arguments)
        .output()
        .expect("it runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (ran.status.code().expect("no signal"), text(ran.stdout), text(ran.stderr))
}

/// The object that a run with `--json` ends with.
fn last(stdout: &str) -> Value {
    serde_json::from_str(stdout.lines().last().expect("a line")).expect("JSON")
}

/// A checkpoint of F32 vectors and a configuration.
fn checkpoint(dir: &Path, tensors: &[(&str, &[f32])], positions: u64) {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, numbers) in tensors {
        let offsets = [data.len(), data.len() + 4 * numbers.len()];
        header.insert(
            (*name).into(),
            json!({"dtype": "F32", "shape": [numbers.len()], "data_offsets": offsets}),
        );
        data.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    }
    let header = Value::from(header).to_string();
    fs::create_dir_all(dir).expect("made");
    let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat();
    fs::write(dir.join("model.safetensors"), bytes).expect("written");
    let config = json!({"max_position_embeddings": positions});
    fs::write(dir.join("config.json"), config.to_string()).expect("written");
}

#[test]
fn two_directories_are_compared_and_the_exit_code_says_whether_they_differ() {
    let lab = tempfile::tempdir().expect("a directory");
    fs::write(lab.path().join("config.toml"), "").expect("written");
    checkpoint(
        &lab.path().join("a"),
        &[("gone", &[1.0]), ("kept", &[1.0, 2.0]), ("tuned", &[2.0, 2.0])],
        512,
    );
    checkpoint(
        &lab.path().join("same"),
        &[("gone", &[1.0]), ("kept", &[1.0, 2.0]), ("tuned", &[2.0, 2.0])],
        512,
    );
    checkpoint(
        &lab.path().join("b"),
        &[("kept", &[1.0, 2.0]), ("new", &[0.0]), ("tuned", &[2.0, 3.0])],
        1024,
    );

    let (code, out, err) = diff(lab.path(), &["a", "same"]);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert!(out.ends_with("the same\n"), "{out}");

    let (code, out, err) = diff(lab.path(), &["a", "b"]);
    assert_eq!((code, err.as_str()), (1, ""), "{out}");
    for words in [
        "1 tensor equal, 1 changed, 1 added, 1 removed; a fetch",
        "tuned   F32    [2]     50.0 %       1.00       0.500     35.4 %",
        "max_seq_len  512 -> 1024",
        "+  \"max_position_embeddings\": 1024",
    ] {
        assert!(out.contains(words), "{words:?} is not in\n{out}");
    }

    let (code, out, _) = diff(lab.path(), &["--json", "a", "b"]);
    let found = last(&out);
    assert_eq!((code, &found["same"]), (1, &json!(false)));
    assert_eq!(found["schema_version"], 1);
    let differing = found["tensors"]["differing"].as_array().expect("a list");
    let told: Vec<_> = differing.iter().map(|t| (t["name"].as_str(), t["change"].as_str())).collect();
    let expected = [("gone", "removed"), ("new", "added"), ("tuned", "changed")];
    assert_eq!(told, expected.map(|(name, change)| (Some(name), Some(change))));
    assert_eq!(differing[2]["stats"]["max_abs"], 1.0);
    assert_eq!(found["tensors"]["equal"], 1);
    assert_eq!(found["delta"]["moved_bytes"], found["delta"]["total_bytes"], "small files travel whole");
    let (code, out, _) = diff(lab.path(), &["--json", "a", "a"]);
    assert_eq!((code, &last(&out)["same"]), (0, &json!(true)));
}

#[test]
fn trouble_is_told_in_one_line_and_has_an_exit_code_of_its_own() {
    let lab = tempfile::tempdir().expect("a directory");
    fs::write(lab.path().join("config.toml"), "").expect("written");
    checkpoint(&lab.path().join("a"), &[("t", &[1.0])], 1);
    checkpoint(&lab.path().join("cut"), &[("t", &[1.0])], 1);
    let path = lab.path().join("cut/model.safetensors");
    let bytes = fs::read(&path).expect("read");
    fs::write(&path, &bytes[..bytes.len() - 1]).expect("written");
    fs::write(lab.path().join("report.json"), "{").expect("written");
    for (arguments, words) in [
        (&["a", "cut"][..], "truncated"),
        (&["a", "nowhere"], "neither a path that exists nor a reference"),
        (&["a", "acme/bot:1"], "no daemon answers"),
        (&["a", "report.json"], "only one is a report"),
        (&["report.json", "report.json"], "report.json: the report is not valid JSON"),
        (&["a"], "required"),
    ] {
        let (code, out, err) = diff(lab.path(), arguments);
        assert_eq!((code, out.as_str()), (2, ""), "{arguments:?}: {err}");
        assert!(err.contains(words), "{words:?} is not in {err}");
        let complaints = err.lines().filter(|line| line.starts_with("error: ")).count();
        assert_eq!(complaints, 1, "{err}");
    }
}

#[test]
fn two_reports_are_set_side_by_side() {
    let lab = tempfile::tempdir().expect("a directory");
    fs::write(lab.path().join("config.toml"), "").expect("written");
    for (name, value) in [("a.json", 2.0), ("b.json", 2.5)] {
        let metrics = json!({"eval_loss": {"value": value, "higher_is_better": false}});
        let report = json!({"version": 1, "harness": {"name": "own"}, "metrics": metrics});
        fs::write(lab.path().join(name), report.to_string()).expect("written");
    }
    let (code, out, _) = diff(lab.path(), &["a.json", "b.json"]);
    assert_eq!(code, 1, "{out}");
    let line = out.lines().find(|line| line.starts_with("eval_loss")).expect("its line");
    assert!(line.contains("+0.500") && line.ends_with("worse"), "{out}");
    let (code, out, _) = diff(lab.path(), &["--json", "a.json", "a.json"]);
    assert_eq!((code, &last(&out)["same"]), (0, &json!(true)));
}
