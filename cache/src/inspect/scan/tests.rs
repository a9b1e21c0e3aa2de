//! Trees with links, odd names and housekeeping files, and what the scan makes of them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use super::*;

struct Tree(tempfile::TempDir);

impl Tree {
    fn new(files: &[&str]) -> Self {
        let tree = Self(tempfile::tempdir().expect("temporary directory"));
        for file in files {
            let path = tree.at(file);
            fs::create_dir_all(path.parent().expect("has a parent")).expect("mkdir");
            fs::write(path, file).expect("write");
        }
        tree
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn link(&self, target: &str, at: &str) {
        symlink(target, self.at(at)).expect("symlink");
    }

    fn scan(&self, at: &str) -> Result<Vec<String>, InspectError> {
        self.scan_with(at, &Options::default())
    }

    fn scan_with(&self, at: &str, options: &Options) -> Result<Vec<String>, InspectError> {
        Ok(scan(&self.at(at), options)?.into_iter().map(|found| found.path).collect())
    }
}

fn only(include: &[&str], exclude: &[&str]) -> Options {
    let owned = |globs: &[&str]| globs.iter().map(|glob| glob.to_string()).collect();
    Options { include: owned(include), exclude: owned(exclude), ..Options::default() }
}

#[test]
fn housekeeping_is_skipped_and_the_rest_taken() {
    let tree = Tree::new(&[
        "config.json",
        "sub/a.bin",
        "poetry.lock",
        ".git/HEAD",
        ".cache/huggingface/x.lock",
        ".gitattributes",
        "w.incomplete",
        ".DS_Store",
    ]);
    assert_eq!(tree.scan("").expect("scan"), ["config.json", "poetry.lock", "sub/a.bin"]);
    assert_eq!(tree.scan("config.json").expect("scan"), ["config.json"]);
}

#[test]
fn globs_choose() {
    let tree = Tree::new(&["a.json", "b.txt", "sub/c.json", "sub/d.txt"]);
    let chosen =
        |include: &[&str], exclude: &[&str]| tree.scan_with("", &only(include, exclude)).expect("scan");
    assert_eq!(chosen(&["*.json"], &[]), ["a.json", "sub/c.json"]);
    assert_eq!(chosen(&[], &["sub/"]), ["a.json", "b.txt"]);
    assert_eq!(chosen(&["*.json"], &["sub/*"]), ["a.json"]);
    assert!(matches!(tree.scan_with("", &only(&["x*"], &[])), Err(InspectError::Empty { .. })));
    assert!(matches!(tree.scan_with("", &only(&["a[b"], &[])), Err(InspectError::Glob { .. })));
}

#[test]
fn links_inside_are_read_through_and_others_refused() {
    let outside = Tree::new(&["secret"]);
    let tree = Tree::new(&["real/a", "b"]);
    tree.link("real", "alias");
    tree.link("b", "c");
    assert_eq!(tree.scan("").expect("scan"), ["alias/a", "b", "c", "real/a"]);
    symlink(outside.at("secret"), tree.at("leak")).expect("symlink");
    let error = tree.scan("").expect_err("leaves");
    assert!(matches!(error, InspectError::LinkLeaves { .. }));
    assert!(error.to_string().contains("leak") && error.to_string().contains("secret"), "{error}");
    assert!(tree.scan_with("", &only(&[], &["leak"])).is_ok());
    fs::remove_file(tree.at("leak")).expect("rm");
    symlink(outside.0.path(), tree.at("leakdir")).expect("symlink");
    assert!(matches!(tree.scan(""), Err(InspectError::LinkLeaves { .. })));
    for pattern in ["leakdir", "leakdir/", "leakdir/*"] {
        let found = tree.scan_with("", &only(&[], &[pattern])).expect("left out");
        assert_eq!(found, ["alias/a", "b", "c", "real/a"]);
    }
}

#[test]
fn dangling_and_circular_links_are_refused() {
    let tree = Tree::new(&["sub/a"]);
    tree.link("nowhere", "gone");
    let error = tree.scan("").expect_err("dangles");
    assert!(matches!(error, InspectError::LinkDangles { .. }), "{error}");
    assert!(error.to_string().contains("nowhere"), "{error}");
    assert_eq!(tree.scan_with("", &only(&[], &["gone"])).expect("scan"), ["sub/a"]);
    let tree = Tree::new(&["sub/a"]);
    tree.link("..", "sub/up");
    assert!(matches!(tree.scan(""), Err(InspectError::LinkCycle { .. })));
    assert_eq!(tree.scan_with("", &only(&[], &["sub/up/"])).expect("left out"), ["sub/a"]);
    let tree = Tree::new(&["a"]);
    tree.link("y", "x");
    tree.link("x", "y");
    assert!(matches!(tree.scan(""), Err(InspectError::LinkCycle { .. })));
}

#[test]
fn a_hub_snapshot_may_link_into_its_own_blobs_only() {
    let tree = Tree::new(&[
        "models--a--b/blobs/0123",
        "models--a--b/snapshots/abc/README.md",
        "models--a--b/refs/main",
        "models--c--d/blobs/4567",
    ]);
    let snapshot = "models--a--b/snapshots/abc";
    fs::create_dir(tree.at(snapshot).join("sub")).expect("mkdir");
    tree.link("../../blobs/0123", &format!("{snapshot}/model.safetensors"));
    tree.link("../../../blobs/0123", &format!("{snapshot}/sub/copy"));
    let found = scan(&tree.at(snapshot), &Options::default()).expect("scan");
    let paths: Vec<&str> = found.iter().map(|found| found.path.as_str()).collect();
    assert_eq!(paths, ["README.md", "model.safetensors", "sub/copy"]);
    assert!(found[1].source.ends_with("blobs/0123"));
    assert_eq!(found[1].size, "models--a--b/blobs/0123".len() as u64);
    assert_eq!(tree.scan(&format!("{snapshot}/model.safetensors")).expect("file"), ["model.safetensors"]);
    tree.link("../../../models--c--d/blobs/4567", &format!("{snapshot}/other"));
    assert!(matches!(tree.scan(snapshot), Err(InspectError::LinkLeaves { .. })));
    fs::remove_file(tree.at(snapshot).join("other")).expect("rm");
    tree.link("../../refs/main", &format!("{snapshot}/other"));
    assert!(matches!(tree.scan(snapshot), Err(InspectError::LinkLeaves { .. })));
    fs::remove_file(tree.at(snapshot).join("other")).expect("rm");
    tree.link("../../blobs", &format!("{snapshot}/other"));
    assert!(matches!(tree.scan(snapshot), Err(InspectError::LinkLeaves { .. })));
}

#[test]
fn odd_entries_are_refused() {
    let tree = Tree::new(&["a"]);
    assert!(matches!(tree.scan("none"), Err(InspectError::Missing { .. })));
    fs::create_dir(tree.at("empty")).expect("mkdir");
    assert!(matches!(tree.scan("empty"), Err(InspectError::Empty { .. })));
    let _socket = UnixListener::bind(tree.at("sock")).expect("bind");
    assert!(matches!(tree.scan(""), Err(InspectError::Special { .. })));
    assert!(matches!(tree.scan("sock"), Err(InspectError::Special { .. })));
    assert!(tree.scan_with("", &only(&[], &["sock"])).is_ok());
    for (name, refusal) in [(&b"bad\xff"[..], "UTF-8"), (b"back\\slash", "safe"), (b"new\nline", "safe")] {
        let tree = Tree::new(&["a"]);
        fs::write(tree.0.path().join(OsStr::from_bytes(name)), "x").expect("write");
        let error = tree.scan("").expect_err("odd name").to_string();
        assert!(error.contains(refusal) && !error.contains('\n'), "{error}");
    }
}

#[test]
fn limits_hold() {
    let tree = Tree::new(&["a", "b/c/d"]);
    let with = |limits: InspectConfig| tree.scan_with("", &Options { limits, ..Options::default() });
    let limits = InspectConfig::default;
    assert!(matches!(with(InspectConfig { files_max: 1, ..limits() }), Err(InspectError::Files { .. })));
    assert!(matches!(with(InspectConfig { depth_max: 2, ..limits() }), Err(InspectError::Depth { .. })));
    assert!(with(InspectConfig { depth_max: 3, files_max: 2, ..limits() }).is_ok());
    let long = InspectConfig { path_bytes_max: 4, ..limits() };
    assert!(matches!(with(long), Err(InspectError::PathTooLong { .. })));
    assert!(matches!(with(InspectConfig { entries_max: 2, ..limits() }), Err(InspectError::Entries { .. })));
}
