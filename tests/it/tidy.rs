//! The workspace's own rules: who may depend on whom, what the pure crates stay clear of, how files look.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use weighlock_tests::binary::{cargo, workspace};
use weighlock_tests::host::string;

/// Lines that a source file may have.
const LINES_MAX: usize = 500;
/// Files that are longer, with their lines. They may only shrink; nothing may be added.
const LONGER: &[(&str, usize)] = &[];
/// What may lie at the top. Files and directories that begin with a dot may, too.
const TOP: &[&str] = &[
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "cache",
    "clippy.toml",
    "deny.toml",
    "node",
    "protocol",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "sim",
    "target",
    "tests",
];
const CRATES: [&str; 5] = ["cache", "node", "protocol", "sim", "tests"];

fn sources(below: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = below.iter().map(|name| workspace().join(name)).collect();
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
            let (path, kind) =
                entry.and_then(|entry| Ok((entry.path(), entry.file_type()?))).expect("an entry");
            if kind.is_dir() && path.file_name().is_none_or(|name| name != "target") {
                open.push(path);
            } else if kind.is_file() && path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn relative(path: &Path) -> String {
    path.strip_prefix(workspace()).expect("in the workspace").to_string_lossy().into_owned()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Lines of code, without comments that stand on lines of their own.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().enumerate().map(|(i, line)| (i + 1, line));
    lines.filter(|(_, line)| !line.trim_start().starts_with("//"))
}

/// Whether `word` stands in `line` and is not part of a longer name.
fn says(line: &str, word: &str) -> bool {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back().is_some_and(is_name);
        let after = line[at + word.len()..].chars().next().is_some_and(is_name);
        !before && !after
    })
}

#[test]
fn crates_depend_on_each_other_as_designed() {
    let output = cargo()
        .args(["metadata", "--no-deps", "--offline", "--locked", "--format-version", "1"])
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let ours: BTreeSet<String> = packages.iter().map(|package| string(&package["name"])).collect();
    let edges: BTreeMap<String, BTreeSet<String>> = packages
        .iter()
        .map(|package| {
            let all = package["dependencies"].as_array().expect("dependencies").iter();
            let to = all.map(|dependency| string(&dependency["name"])).filter(|name| ours.contains(name));
            (string(&package["name"]), to.collect())
        })
        .collect();
    let expected = [
        ("weighlock-protocol", &[][..]),
        ("weighlock-cache", &["weighlock-protocol"]),
        ("weighlock-sim", &["weighlock-protocol"]),
        ("weighlock", &["weighlock-cache", "weighlock-protocol"]),
        ("weighlock-tests", &["weighlock-protocol"]),
    ];
    let expected =
        expected.map(|(from, to)| (from.to_owned(), to.iter().map(|name| (*name).to_owned()).collect()));
    assert_eq!(edges, BTreeMap::from(expected));
}

#[test]
fn pure_crates_link_no_io() {
    let forbidden = [
        "tokio",
        "quinn",
        "libp2p",
        "iroh",
        "redb",
        "mio",
        "socket2",
        "async-std",
        "smol",
        "rustls",
        "getrandom",
    ];
    for package in ["weighlock-protocol", "weighlock-sim"] {
        let output = cargo()
            .args([
                "tree",
                "--package",
                package,
                "--edges",
                "normal",
                "--prefix",
                "none",
                "--offline",
                "--locked",
            ])
            .output()
            .expect("cargo runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let tree = String::from_utf8(output.stdout).expect("UTF-8");
        let names: BTreeSet<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
        assert!(names.contains("blake3"), "the tree is read: {tree}");
        let found = names
            .iter()
            .filter(|name| forbidden.iter().any(|bad| *name == bad || name.starts_with(&format!("{bad}-"))));
        assert_eq!(found.collect::<Vec<_>>(), [&""; 0], "{package} must stay pure");
    }
}

#[test]
fn pure_crates_use_no_clock_no_disk_no_net() {
    let forbidden = [
        "HashMap",
        "HashSet",
        "std::fs",
        "std::net::TcpStream",
        "std::net::UdpSocket",
        "TcpStream",
        "UdpSocket",
        "TcpListener",
        "SystemTime",
        "Instant",
        "tokio",
        "thread_rng",
        "getrandom",
        "std::env",
        "std::thread",
    ];
    // The simulator's command line takes arguments, writes its report and says how long it took; golden files are
    // read by a test.
    let excused = [
        ("sim/src/main.rs", "std::fs"),
        ("sim/src/main.rs", "Instant"),
        ("protocol/src/statement/tests/golden.rs", "std::fs"),
        ("protocol/src/wire/golden.rs", "std::fs"),
    ];
    let mut found = Vec::new();
    for path in sources(&["protocol/src", "sim/src"]) {
        let (name, text) = (relative(&path), read(&path));
        for (number, line) in code(&text) {
            for word in forbidden.iter().filter(|word| says(line, word)) {
                if !excused.contains(&(name.as_str(), word)) {
                    found.push(format!("{name}:{number}: {word}"));
                }
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// The names right behind `root` in a line: `fs` of `std::fs::File` behind `std::`. Of a list in braces, the brace.
fn behind<'a>(line: &'a str, root: &str) -> Vec<&'a str> {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let found =
        line.match_indices(root).filter(|(at, _)| !line[..*at].chars().next_back().is_some_and(is_name));
    let after = found.map(|(at, _)| &line[at + root.len()..]);
    after
        .map(|rest| match rest.find(|c| !is_name(c)) {
            Some(0) => &rest[..rest.chars().next().map_or(0, char::len_utf8)],
            Some(end) => &rest[..end],
            None => rest,
        })
        .collect()
}

#[test]
fn the_swarm_knows_only_what_it_is_told() {
    let of_std = ["env", "fs", "io", "net", "process", "thread", "{"];
    let words = ["HashMap", "HashSet", "Instant", "SystemTime"];
    // Ids, times that it is given, what goes over the wire; and itself.
    let of_crate = ["id", "swarm", "time", "wire"];
    let files = sources(&["protocol/src/swarm"]);
    assert!(files.len() > 20, "it is looked at: {files:?}");
    let mut wrong = Vec::new();
    for path in files {
        let (name, text) = (relative(&path), read(&path));
        let lines = text.lines().count();
        if lines > LINES_MAX {
            wrong.push(format!("{name} has {lines} lines; split it"));
        }
        for (number, line) in code(&text) {
            let theirs = behind(line, "std::").into_iter().filter(|module| of_std.contains(module));
            wrong.extend(theirs.map(|module| format!("{name}:{number}: std::{module}")));
            let ours = behind(line, "crate::").into_iter().filter(|module| !of_crate.contains(module));
            wrong.extend(ours.map(|module| format!("{name}:{number}: crate::{module}")));
            let said = words.iter().filter(|word| says(line, word));
            wrong.extend(said.map(|word| format!("{name}:{number}: {word}")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_stands_behind_a_root_is_found() {
    assert_eq!(behind("use std::fs::File; let x = ::std::io;", "std::"), ["fs", "io"]);
    assert_eq!(behind("use std::{fs, io};", "std::"), ["{"]);
    assert_eq!(behind("pub(in crate::swarm) fn of(my_crate::id: Id)", "crate::"), ["swarm"]);
    assert_eq!(behind("crate::", "crate::"), [""]);
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent = sources(&CRATES).into_iter().filter(|path| {
        let first = read(path).lines().next().unwrap_or_default().to_owned();
        !(first.starts_with("//! ") && first.len() > 8)
    });
    let silent: Vec<String> = silent.map(|path| relative(&path)).collect();
    assert!(silent.is_empty(), "these do not open with a `//!` sentence: {silent:#?}");
}

#[test]
fn files_stay_short() {
    let known: BTreeMap<&str, usize> = LONGER.iter().copied().collect();
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for path in sources(&CRATES) {
        let (name, lines) = (relative(&path), read(&path).lines().count());
        match known.get(name.as_str()) {
            None if lines > LINES_MAX => wrong.push(format!("{name} has {lines} lines; split it")),
            Some(max) if lines > *max => {
                wrong.push(format!("{name} grew from {max} lines to {lines}; split it"))
            }
            Some(_) if lines <= LINES_MAX => wrong.push(format!("{name} is short now; take it off the list")),
            _ => {}
        }
        seen.insert(name);
    }
    wrong.extend(
        known
            .keys()
            .filter(|name| !seen.contains(**name))
            .map(|name| format!("{name} is gone; take it off the list")),
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn nothing_is_left_to_do_later() {
    // Put together here, so that this file does not find itself.
    let forbidden = ["todo", "unimplemented", "dbg"].map(|name| format!("{name}!("));
    let mut found = Vec::new();
    for path in sources(&CRATES) {
        let text = read(&path);
        for (number, line) in code(&text) {
            if forbidden.iter().any(|word| line.contains(word.as_str())) {
                found.push(format!("{}:{number}: {}", relative(&path), line.trim()));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn the_top_level_holds_only_what_is_designed() {
    let entries = fs::read_dir(workspace()).expect("the workspace");
    let names = entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
    let odd: Vec<String> =
        names.filter(|name| !name.starts_with('.') && !TOP.contains(&name.as_str())).collect();
    assert!(odd.is_empty(), "these do not belong at the top: {odd:?}");
}
