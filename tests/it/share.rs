//! Sharing: add on one host, open on others through the loader socket, from whoever has it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use serde_json::{Value, json};
use weighlock_tests::host::{number, string, text};
use weighlock_tests::loader::Opened;
use weighlock_tests::{Host, Lab, checkpoint};

const MODEL: &str = "acme/model:1.0.0";

/// SHA-256 of what each descriptor reads as.
fn read_all(opened: &Opened) -> BTreeMap<String, String> {
    let digest = |file: &File| checkpoint::sha256(file.try_clone().expect("a second descriptor"));
    opened.files.iter().map(|(path, file)| (path.clone(), digest(file))).collect()
}

/// Opens on `host` and compares all bytes with the source.
fn opens_as(host: &Host, reference: &str, source: &Path) {
    let opened = host.loader().open(reference).expect("opened");
    assert_eq!(read_all(&opened), checkpoint::digests(source), "{} reads the source's bytes", host.name);
}

/// A small checkpoint, added on a host of its own.
fn founder_with_model(lab: &Lab) -> Host {
    checkpoint::hugging_face(&lab.path("source"), 7, 3);
    let alpha = lab.founder("alpha");
    alpha.add(&lab.path("source"), MODEL);
    alpha
}

#[test]
fn a_member_opens_what_another_added_by_read_only_descriptors() {
    let lab = Lab::new();
    let source = lab.path("source");
    let alpha = founder_with_model(&lab);
    let beta = lab.joined("beta", &alpha);
    beta.hears_of(MODEL);

    let mut loader = beta.loader();
    assert_eq!(loader.hello()["protocol"], 1);
    let opened = loader.open(MODEL).expect("opened");
    let expected = checkpoint::digests(&source);
    assert_eq!(read_all(&opened), expected);
    for file in opened.event["files"].as_array().expect("files") {
        let path = string(&file["path"]);
        assert_eq!(string(&file["sha256"]), expected[&path], "{path}");
        assert_eq!(number(&file["size"]), fs::metadata(source.join(&path)).expect("a file").len(), "{path}");
    }
    assert_eq!(opened.event["contract"]["max_seq_len"], 512, "{}", opened.event["contract"]);
    assert_eq!(opened.event["contract"]["param_count"], 3 * 2 * 96 * 128);
    let mut brief = beta.loader();
    brief.send(&json!({"op": "open", "ref": MODEL, "contract": false}));
    let (event, _) = brief.answer("opened").expect("opened");
    assert_eq!((&event["digest"], event["contract"].is_null()), (&opened.event["digest"], true));
    brief.send(&json!({"op": "contract", "digest": event["digest"]}));
    let (event, _) = brief.answer("contract").expect("it is open there");
    assert_eq!(event["contract"], opened.event["contract"]);
    let mut other = beta.loader();
    other.send(&json!({"op": "contract", "digest": opened.event["digest"]}));
    let error = other.answer("contract").expect_err("not there");
    assert!(string(&error["message"]).contains("is not open on this socket"), "{error}");

    for (path, mut file) in opened.files {
        let refused = |result: std::io::Result<usize>| result.expect_err("read-only").raw_os_error();
        assert_eq!(refused(file.write(b"x")), Some(9), "{path}: EBADF");
        assert_eq!(refused(file.write_at(b"x", 0)), Some(9), "{path}: EBADF");
        assert!(file.set_len(0).is_err(), "{path} is not cut");
        file.seek(SeekFrom::Start(0)).expect("sought");
    }

    // Single files, and only those of the artifact.
    let digest = string(&opened.event["digest"]);
    let some = loader.fds(&digest, &["config.json"]).expect("a descriptor");
    let mut config = String::new();
    (&some["config.json"]).read_to_string(&mut config).expect("read");
    assert_eq!(config, fs::read_to_string(source.join("config.json")).expect("the source"));
    for bad in ["../data/keys/host.key", "nothing.bin", ""] {
        let error = loader.fds(&digest, &[bad]).expect_err("refused");
        assert_eq!(error["code"], "refused", "{bad:?}: {error}");
    }
    loader.close(&digest);
    let error = loader.fds(&digest, &["config.json"]).expect_err("given back");
    assert_eq!(error["code"], "refused", "{error}");
    // The socket is of use still.
    loader.open(MODEL).expect("opened again");

    // It came from alpha, each byte once.
    let from_alpha = number(&beta.peer(&alpha).expect("a peer")["fetched_bytes"]);
    let total: u64 = expected.keys().map(|path| fs::metadata(source.join(path)).expect("a file").len()).sum();
    assert!((total..total + (1 << 20)).contains(&from_alpha), "{from_alpha} for {total}");
}

#[test]
fn later_hosts_fetch_from_whoever_has_it_and_a_restarted_host_needs_nobody() {
    let lab = Lab::new();
    let source = lab.path("source");
    let mut alpha = founder_with_model(&lab);
    let mut beta = lab.joined("beta", &alpha);
    beta.hears_of(MODEL);
    opens_as(&beta, MODEL, &source);

    // gamma joins later, and the first holder is gone.
    let gamma = lab.joined("gamma", &alpha);
    gamma.hears_of(MODEL);
    weighlock_tests::until("gamma is in touch with beta", || {
        gamma.peer(&beta).filter(|row| row["connected"] == true && row["held"] == 1)
    });
    assert!(alpha.term().success());
    opens_as(&gamma, MODEL, &source);
    assert!(number(&gamma.peer(&beta).expect("a peer")["fetched_bytes"]) > 0);

    // beta comes back with all it had, while alpha stays away.
    let (listed, key, status) = (beta.ok(&["ls"])["items"].clone(), beta.key(), beta.ok(&["status"]));
    assert!(beta.term().success());
    drop(gamma);
    beta.start();
    assert_eq!(beta.key(), key);
    let now = beta.listed(MODEL).expect("listed");
    for field in ["digest", "files", "total_bytes", "held_bytes", "complete", "publisher", "published"] {
        assert_eq!(now[field], listed[0][field], "{field}");
    }
    let again = beta.ok(&["status"]);
    for field in ["layers", "layer_bytes", "cluster", "members", "member"] {
        assert_eq!(again[field], status[field], "{field}");
    }
    opens_as(&beta, MODEL, &source);
    assert_eq!(beta.ok(&["peers"])["items"].as_array().map(Vec::len), Some(2));
    let fetched = |row: &serde_json::Value| number(&row["fetched_bytes"]);
    assert_eq!(beta.ok(&["peers"])["items"].as_array().expect("a list").iter().map(fetched).sum::<u64>(), 0);
}

#[test]
fn joining_twice_and_by_environment_are_fine() {
    let lab = Lab::new();
    let alpha = lab.founder("alpha");
    let beta = lab.joined("beta", &alpha);
    let ticket = alpha.ticket(&["--uses", "2"]);
    let file = lab.path("ticket");
    fs::write(&file, &ticket).expect("written");
    // The daemon runs, and is a member.
    assert_eq!(beta.ok(&["join", "--file", &text(&file)])["new"], false);
    let members = beta.ok(&["member", "list"]);
    assert_eq!(members["items"].as_array().map(Vec::len), Some(2), "{members}");

    let gamma = lab.host("gamma");
    let joined = gamma.command().args(["--json", "join"]).env("WEIGHLOCK_TICKET", &ticket).output();
    let joined = weighlock_tests::Ran::of(joined.expect("the program runs"));
    assert_eq!((joined.code, joined.stderr.as_str()), (Some(0), ""));
    assert_eq!(joined.last()["cluster"], alpha.cluster().as_str());
    // The daemon does not run, and the store belongs to the cluster.
    assert_eq!(gamma.ok(&["join", "--file", &text(&file)])["new"], false);
}

#[test]
fn the_same_bytes_are_stored_once_and_tags_do_not_move() {
    let lab = Lab::new();
    let source = lab.path("source");
    checkpoint::hugging_face(&source, 7, 3);
    let alpha = lab.founder("alpha");
    let added = alpha.add(&source, MODEL);
    assert_eq!(added["new"], true);
    let total = number(&added["total_bytes"]);
    assert!(number(&added["new_bytes"]) >= total, "{added}");

    let again = alpha.add(&source, MODEL);
    assert_eq!((&again["new"], &again["digest"]), (&false.into(), &added["digest"]));
    assert_eq!((&again["statement"], &again["new_bytes"]), (&added["statement"], &0.into()));
    let other_name = alpha.add(&source, "acme/other:2.0.0");
    assert_eq!((&other_name["new"], &other_name["new_bytes"]), (&true.into(), &0.into()), "{other_name}");
    assert_eq!(other_name["digest"], added["digest"], "a manifest says nothing of names");

    // One more file, the others the same: only it and the contract are new.
    let bigger = lab.path("bigger");
    checkpoint::hugging_face(&bigger, 7, 3);
    fs::write(bigger.join("notes.txt"), "twelve bytes").expect("written");
    let grown = alpha.add(&bigger, "acme/model:1.1.0");
    assert!((12..64 << 10).contains(&number(&grown["new_bytes"])), "{grown}");

    // The same tag with other bytes.
    let before = alpha.contents();
    checkpoint::hugging_face(&lab.path("different"), 8, 3);
    for other in ["different", "bigger"] {
        let ran = alpha.run(&["add", &text(&lab.path(other)), MODEL]);
        assert_eq!(ran.complaints(5), [""; 0], "{other}");
        assert!(ran.stderr.contains("immutable"), "{}", ran.stderr);
        assert_eq!(alpha.contents(), before, "{other}: the store is as it was");
    }
    opens_as(&alpha, MODEL, &source);
    opens_as(&alpha, "acme/model:1.1.0", &bigger);
}

#[test]
fn pull_and_path_give_directories_equal_to_the_source() {
    let lab = Lab::new();
    let source = lab.path("source");
    checkpoint::hugging_face(&source, 7, 2);
    checkpoint::many_files(&source.join("extra"), 7, 150);
    let alpha = lab.founder("alpha");
    alpha.add(&source, MODEL);
    let beta = lab.joined("beta", &alpha);
    beta.hears_of(MODEL);
    let expected = checkpoint::digests(&source);

    let target = lab.path("pulled");
    let pulled = beta.ok(&["pull", MODEL, "--to", &text(&target)]);
    assert_eq!(number(&pulled["files"]) as usize, expected.len());
    checkpoint::same(&checkpoint::digests(&target), &expected, "the pulled directory");
    // Files of one's own: they may be written.
    fs::write(target.join("config.json"), "{}").expect("a pulled file is the user's");
    opens_as(&beta, MODEL, &source);

    let full = beta.run(&["pull", MODEL, "--to", &text(&target)]);
    assert_eq!(full.complaints(5), [""; 0]);
    assert_eq!(fs::read(target.join("config.json")).expect("a file"), b"{}", "left as it was");
    let file = lab.path("a-file");
    fs::write(&file, "mine").expect("written");
    assert_eq!(beta.run(&["pull", MODEL, "--to", &text(&file)]).complaints(5), [""; 0]);
    let empty = lab.path("empty");
    fs::create_dir(&empty).expect("made");
    beta.ok(&["pull", MODEL, "--to", &text(&empty)]);
    checkpoint::same(&checkpoint::digests(&empty), &expected, "the pulled directory");
    let left = fs::read_dir(lab.path(".")).expect("a directory").flatten();
    let hidden = left.filter(|entry| entry.file_name().to_string_lossy().starts_with(".weighlock-pull"));
    assert_eq!(hidden.count(), 0, "nothing is left beside the target");

    let viewed = string(&beta.ok(&["path", MODEL])["path"]);
    let view = Path::new(&viewed);
    checkpoint::same(&checkpoint::view_digests(view), &expected, "the view");
    assert_eq!(string(&beta.ok(&["path", MODEL])["path"]), viewed, "it stays the same");
    for path in expected.keys() {
        let mode = fs::metadata(view.join(path)).expect("a file").permissions().mode();
        assert_eq!(mode & 0o222, 0, "{path} has mode {mode:o}");
    }
    let mode = fs::metadata(view).expect("a directory").permissions().mode();
    assert_eq!(mode & 0o222, 0, "the directory has mode {mode:o}");
}

#[test]
fn ls_and_inspect_tell_what_is_there() {
    let lab = Lab::new();
    let source = lab.path("source");
    let alpha = founder_with_model(&lab);
    let row = alpha.listed(MODEL).expect("listed");
    let expected = checkpoint::digests(&source);
    assert_eq!((&row["complete"], &row["copies_elsewhere"]), (&true.into(), &0.into()));
    assert_eq!(number(&row["files"]) as usize, expected.len());
    assert_eq!(row["held_bytes"], row["total_bytes"]);
    assert_eq!(string(&row["publisher"]), alpha.key());
    assert!(row["problem"].is_null());
    assert_eq!(alpha.ok(&["ls", "nothing-like-it"])["items"].as_array().map(Vec::len), Some(0));

    let digest = string(&row["digest"]);
    for reference in [MODEL.to_owned(), format!("acme/model@{digest}")] {
        let inspected = alpha.ok(&["inspect", &reference]);
        assert_eq!(string(&inspected["digest"]), digest);
        let files = inspected["files"].as_array().expect("files");
        let found: BTreeMap<String, String> =
            files.iter().map(|file| (string(&file["path"]), string(&file["sha256"]))).collect();
        assert_eq!(found, expected, "{reference}");
        assert_eq!(inspected["contract"]["precision"], "f32", "{}", inspected["contract"]);
        let tensors = inspected["contract"]["tensors"].as_array().expect("a tensor index");
        assert_eq!(tensors.len(), 3, "one list per shard");
    }
    // A path needs no daemon.
    let nobody = lab.host("nobody");
    let local = nobody.ok(&["inspect", &text(&source)]);
    assert_eq!(local["files"].as_array().map(Vec::len), Some(expected.len()));
    assert_eq!(local["total_bytes"], row["total_bytes"]);
    assert!(!nobody.data_dir.exists(), "and makes no store");
}

/// A file with so many tensors that their index makes the contract long.
fn many_tensors(path: &Path, count: u64) {
    let tensor = |n: u64| {
        let name = format!("model.layers.{n}.mlp.experts.{n}.down_proj.weight");
        (name, json!({"dtype": "F32", "shape": [1], "data_offsets": [4 * n, 4 * n + 4]}))
    };
    let header: serde_json::Map<String, Value> = (0..count).map(tensor).collect();
    fs::create_dir(path.parent().expect("a directory around it")).expect("a directory");
    checkpoint::safetensors(path, &header.into(), 4 * count, count);
}

#[test]
fn a_contract_too_long_for_an_answer_leaves_out_its_tensor_index_and_nothing_else() {
    let lab = Lab::new();
    let alpha = lab.founder("alpha");
    // About 3.5 and 7 MiB.
    for (count, is_whole) in [(18_000, true), (36_000, false)] {
        let (source, reference) = (lab.path(&count.to_string()), format!("acme/experts:{count}"));
        many_tensors(&source.join("model.safetensors"), count);
        alpha.add(&source, &reference);
        // The second time it is the text that was kept.
        for _ in 0..2 {
            let opened = alpha.loader().open(&reference).expect("opened");
            let contract = &opened.event["contract"];
            assert_eq!(number(&contract["param_count"]), count);
            let listed = contract["tensors"].as_array().map_or(0, |files| {
                files.iter().map(|file| file["tensors"].as_array().map_or(0, Vec::len)).sum()
            });
            assert_eq!(listed as u64, if is_whole { count } else { 0 }, "{reference}");
            assert_eq!(read_all(&opened), checkpoint::digests(&source));
        }
    }
}
