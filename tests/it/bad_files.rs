//! Bad input, files: whatever is wrong with a source, `weighlock add` says so in one line and the store stays as it is.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use weighlock_tests::host::{Ran, text};
use weighlock_tests::{Lab, checkpoint};

/// Makes a bad source at a path. The path is of a directory that exists.
type Make = fn(&Path);

/// What is wrong, how to make it, and words that the message must hold.
const CASES: &[(&str, Make, &[&str])] = &[
    ("missing path", |dir| fs::remove_dir(dir).expect("removed"), &["does not exist"]),
    ("empty directory", |_| {}, &["nothing to add"]),
    (
        "index that names a missing shard",
        |dir| {
            checkpoint::hugging_face(dir, 1, 3);
            fs::remove_file(dir.join("model-00002-of-00003.safetensors")).expect("removed");
        },
        &["model-00002-of-00003.safetensors", "index"],
    ),
    (
        "index that places a tensor in the wrong shard",
        |dir| {
            checkpoint::hugging_face(dir, 1, 2);
            let path = dir.join("model.safetensors.index.json");
            let index = fs::read_to_string(&path).expect("read").replace("00001-of", "00002-of");
            fs::write(path, index).expect("written");
        },
        &["layers.1."],
    ),
    (
        "index that is no JSON",
        |dir| {
            checkpoint::hugging_face(dir, 1, 1);
            fs::write(dir.join("model.safetensors.index.json"), "{\"weight_map\": {").expect("written");
        },
        &["model.safetensors.index.json", "JSON"],
    ),
    (
        "config that is no JSON",
        |dir| fs::write(dir.join("config.json"), "{nope").expect("written"),
        &["config.json", "JSON"],
    ),
    ("truncated safetensors data", |dir| cut(&model(dir), 100), &["model.safetensors", "truncated"]),
    ("safetensors cut in the header", |dir| cut_to(&model(dir), 20), &["model.safetensors", "truncated"]),
    ("safetensors of four bytes", |dir| cut_to(&model(dir), 4), &["model.safetensors", "short"]),
    (
        "safetensors with trailing bytes",
        |dir| {
            let mut file = File::options().append(true).open(model(dir)).expect("opened");
            file.write_all(b"surplus").expect("written");
        },
        &["model.safetensors", "7 bytes"],
    ),
    (
        "safetensors with a header length that lies",
        |dir| {
            let file = File::options().write(true).open(model(dir)).expect("opened");
            file.write_all_at(&u64::MAX.to_le_bytes(), 0).expect("written");
        },
        &["model.safetensors", "18446744073709551615"],
    ),
    (
        "safetensors whose tensors overlap",
        |dir| header(dir, &json!({"a": tensor(0, 8), "b": tensor(4, 12)}), 12),
        &["model.safetensors", "overlaps"],
    ),
    (
        "safetensors with a hole",
        |dir| header(dir, &json!({"a": tensor(0, 8), "b": tensor(12, 20)}), 20),
        &["model.safetensors", "belong to no tensor"],
    ),
    (
        "safetensors whose shape and length differ",
        |dir| header(dir, &json!({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}), 8),
        &["model.safetensors", "12"],
    ),
    (
        "safetensors whose shape overflows",
        |dir| {
            let shape = [u64::MAX, u64::MAX];
            header(dir, &json!({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 8]}}), 8);
        },
        &["model.safetensors", "overflows"],
    ),
    (
        "safetensors with an unknown dtype",
        |dir| header(dir, &json!({"a": {"dtype": "F7", "shape": [8], "data_offsets": [0, 8]}}), 8),
        &["model.safetensors", "F7"],
    ),
    (
        "safetensors with a key twice",
        |dir| {
            let entry = r#""a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}"#;
            raw(&dir.join("model.safetensors"), format!("{{{entry},{entry}}}").as_bytes(), 8);
        },
        &["model.safetensors", "a"],
    ),
    (
        "Git LFS pointer instead of weights",
        |dir| {
            let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n";
            fs::write(dir.join("model.safetensors"), pointer).expect("written");
        },
        &["git lfs pull"],
    ),
    ("GGUF of four bytes", |dir| gguf(dir, b"GGUF"), &["model.gguf"]),
    ("GGUF of another version", |dir| gguf(dir, &gguf_head(99, 0, 0)), &["model.gguf", "99"]),
    ("GGUF with a wrong magic", |dir| gguf(dir, b"GGML0000000000000000000000000000"), &["model.gguf"]),
    ("GGUF that claims a trillion tensors", |dir| gguf(dir, &gguf_head(3, 1 << 40, 0)), &["model.gguf"]),
    ("GGUF that claims a trillion keys", |dir| gguf(dir, &gguf_head(3, 0, 1 << 40)), &["model.gguf"]),
    ("GGUF cut in its keys", |dir| gguf(dir, &[gguf_head(3, 1, 1), vec![5, 0, 0]].concat()), &["model.gguf"]),
    (
        "GGUF whose tensor lies after its end",
        |dir| {
            let mut bytes = gguf_head(3, 1, 0);
            bytes.extend(5u64.to_le_bytes());
            bytes.extend(b"blk.0");
            bytes.extend(1u32.to_le_bytes());
            bytes.extend(1_000_000u64.to_le_bytes());
            bytes.extend(0u32.to_le_bytes());
            bytes.extend(0u64.to_le_bytes());
            gguf(dir, &bytes);
        },
        &["model.gguf", "blk.0"],
    ),
    (
        "link out of the directory",
        |dir| {
            fs::write(dir.join("config.json"), "{}").expect("written");
            symlink("/etc/hostname", dir.join("notes.txt")).expect("linked");
        },
        &["notes.txt", "leads out"],
    ),
    (
        "link out by a relative path",
        |dir| {
            fs::write(dir.with_extension("secret"), "secret").expect("written");
            let name = format!("../{}.secret", dir.file_name().and_then(|n| n.to_str()).expect("a name"));
            symlink(name, dir.join("model.safetensors")).expect("linked");
        },
        &["model.safetensors", "leads out"],
    ),
    ("link to nothing", |dir| symlink("gone.bin", dir.join("model.bin")).expect("linked"), &["model.bin"]),
    ("link to itself", |dir| symlink("loop", dir.join("loop")).expect("linked"), &["loop"]),
    (
        "link to the directory around it",
        |dir| {
            fs::write(dir.join("config.json"), "{}").expect("written");
            symlink(".", dir.join("again")).expect("linked");
        },
        &["again"],
    ),
    (
        "a socket among the files",
        |dir| {
            fs::write(dir.join("config.json"), "{}").expect("written");
            // The file stays when the listener goes.
            std::os::unix::net::UnixListener::bind(dir.join("odd")).expect("bound");
        },
        &["odd"],
    ),
    (
        "a name with a line break",
        |dir| fs::write(dir.join("a\nerror: b"), "x").expect("written"),
        &["rename"],
    ),
];

#[test]
fn every_bad_source_is_refused_in_one_line_and_leaves_nothing() {
    let lab = Lab::new();
    let mut alpha = lab.founder("alpha");
    let good = lab.path("good");
    checkpoint::hugging_face(&good, 1, 1);
    alpha.add(&good, "acme/good:1.0.0");
    let before = alpha.contents();
    let mut wrong = Vec::new();
    for (i, (what, make, words)) in CASES.iter().enumerate() {
        let source = lab.path(&format!("bad-{i:02}"));
        fs::create_dir(&source).expect("made");
        make(&source);
        let ran = alpha.run(&["add", &text(&source), "acme/bad:1.0.0"]);
        let mut complaints = ran.complaints(2);
        let missing = words.iter().filter(|word| !ran.stderr.contains(**word));
        complaints.extend(missing.map(|word| format!("{word:?} is not in {:?}", ran.stderr)));
        if alpha.contents() != before {
            complaints.push("the store is not as it was".into());
        }
        // Inspecting the path needs no daemon and says the same.
        let inspected = lab.host("nobody").run(&["inspect", &text(&source)]);
        if inspected.code != ran.code {
            complaints.push(format!("inspect ends with {:?}: {:?}", inspected.code, inspected.stderr));
        }
        if !complaints.is_empty() {
            wrong.push(format!("{what}: {}", complaints.join("; ")));
        }
    }
    assert!(alpha.runs(), "the daemon lives:\n{}", alpha.log());
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), CASES.len(), wrong.join("\n"));
}

#[test]
fn an_unreadable_shard_is_named() {
    let lab = Lab::new();
    let source = lab.path("source");
    checkpoint::hugging_face(&source, 1, 2);
    let shard = "model-00002-of-00002.safetensors";
    fs::set_permissions(source.join(shard), Permissions::from_mode(0o000)).expect("closed");
    let host = lab.host("nobody");
    let mut command = host.command();
    if rustix::process::geteuid().is_root() {
        // Root reads everything, so somebody else looks: with a copy of the program where anybody can run it.
        let program = lab.path("weighlock");
        fs::copy(weighlock_tests::binary::weighlock(), &program).expect("copied");
        for open in [lab.path("."), program.clone(), source.clone(), lab.path("nobody")] {
            fs::set_permissions(open, Permissions::from_mode(0o755)).expect("opened");
        }
        let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
        command = std::process::Command::new(program);
        command.args(arguments).uid(65_534).gid(65_534);
    }
    let ran = Ran::of(command.arg("inspect").arg(&source).output().expect("the program runs"));
    assert_eq!(ran.complaints(2), [""; 0]);
    assert!(ran.stderr.contains(shard), "{}", ran.stderr);
}

#[test]
fn a_hub_cache_snapshot_is_taken_with_its_links_into_its_own_blobs() {
    let lab = Lab::new();
    let plain = lab.path("plain");
    checkpoint::hugging_face(&plain, 2, 2);
    let repo = lab.path("models--acme--model");
    let snapshot = repo.join("snapshots/0123456789abcdef");
    fs::create_dir_all(&snapshot).expect("made");
    fs::create_dir_all(repo.join("blobs")).expect("made");
    for (path, digest) in checkpoint::digests(&plain) {
        fs::copy(plain.join(&path), repo.join("blobs").join(&digest)).expect("copied");
        symlink(format!("../../blobs/{digest}"), snapshot.join(path)).expect("linked");
    }
    let alpha = lab.founder("alpha");
    let (linked, direct) = (alpha.add(&snapshot, "acme/hub:1.0.0"), alpha.add(&plain, "acme/plain:1.0.0"));
    assert_eq!(linked["digest"], direct["digest"]);
    assert_eq!(direct["new_bytes"], 0);

    // Another repository's blobs are not its own.
    let other = lab.path("models--acme--other/blobs");
    fs::create_dir_all(&other).expect("made");
    fs::write(other.join("secret"), "secret").expect("written");
    symlink("../../../models--acme--other/blobs/secret", snapshot.join("stolen.txt")).expect("linked");
    let before = alpha.contents();
    let ran = alpha.run(&["add", &text(&snapshot), "acme/hub:2.0.0"]);
    assert!(ran.stderr.contains("stolen.txt") && ran.code == Some(2), "{}", ran.stderr);
    assert_eq!(alpha.contents(), before);
}

#[test]
fn a_file_that_changes_while_it_is_added_is_refused() {
    let lab = Lab::new();
    let alpha = lab.founder("alpha");
    let source = lab.path("changing/model.safetensors");
    checkpoint::single(&source, 5, 32 << 20);
    let before = alpha.contents();
    let stop = AtomicBool::new(false);
    let ran = std::thread::scope(|scope| {
        scope.spawn(|| {
            let file = File::options().write(true).open(&source).expect("opened");
            let mut i = 0u64;
            while !stop.load(Ordering::Relaxed) {
                file.write_all_at(&i.to_le_bytes(), 1 << 20).expect("written");
                i += 1;
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        });
        let ran = alpha.run(&["add", &text(&source), "acme/changing:1.0.0"]);
        stop.store(true, Ordering::Relaxed);
        ran
    });
    assert_eq!(ran.complaints(2), [""; 0]);
    assert!(ran.stderr.contains("changed"), "{}", ran.stderr);
    assert_eq!(alpha.contents(), before);
    // Once nothing writes to it, it is taken.
    alpha.add(&source, "acme/changing:1.0.0");
}

fn model(dir: &Path) -> std::path::PathBuf {
    let path = dir.join("model.safetensors");
    checkpoint::single(&path, 1, 1000);
    path
}

fn cut(path: &Path, bytes: u64) {
    let len = fs::metadata(path).expect("a file").len();
    cut_to(path, len - bytes);
}

fn cut_to(path: &Path, len: u64) {
    File::options().write(true).open(path).and_then(|file| file.set_len(len)).expect("cut");
}

fn tensor(start: u64, end: u64) -> Value {
    json!({"dtype": "U8", "shape": [end - start], "data_offsets": [start, end]})
}

fn header(dir: &Path, header: &Value, data_bytes: usize) {
    raw(&dir.join("model.safetensors"), header.to_string().as_bytes(), data_bytes);
}

fn raw(path: &Path, header: &[u8], data_bytes: usize) {
    let len = (header.len() as u64).to_le_bytes();
    fs::write(path, [&len[..], header, &vec![7; data_bytes]].concat()).expect("written");
}

fn gguf(dir: &Path, bytes: &[u8]) {
    fs::write(dir.join("model.gguf"), bytes).expect("written");
}

fn gguf_head(version: u32, tensors: u64, keys: u64) -> Vec<u8> {
    [&b"GGUF"[..], &version.to_le_bytes(), &tensors.to_le_bytes(), &keys.to_le_bytes()].concat()
}
