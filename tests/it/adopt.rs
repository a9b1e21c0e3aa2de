//! What another tool has downloaded becomes a copy of the cluster's artifact, without a fetch of its files.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use weighlock_tests::host::{number, string, text};
use weighlock_tests::wait::until;
use weighlock_tests::{Host, Lab, checkpoint, http};

const MODEL: &str = "acme/model:1.0.0";

/// The layout of huggingface_hub: files in `blobs/` under their hash, links to them in `snapshots/`.
fn hub_cache(cache: &Path, source: &Path) -> PathBuf {
    let repo = cache.join("models--acme--model");
    let snapshot = repo.join("snapshots/0123456789abcdef0123456789abcdef01234567");
    fs::create_dir_all(&snapshot).expect("made");
    fs::create_dir_all(repo.join("blobs")).expect("made");
    fs::create_dir_all(repo.join("refs")).expect("made");
    fs::write(repo.join("refs/main"), "0123456789abcdef0123456789abcdef01234567").expect("written");
    for (path, digest) in checkpoint::digests(source) {
        // Small files are named by another hash there.
        let name = if path.ends_with(".safetensors") { digest } else { digest[..40].to_owned() };
        fs::copy(source.join(&path), repo.join("blobs").join(&name)).expect("copied");
        symlink(format!("../../blobs/{name}"), snapshot.join(path)).expect("linked");
    }
    repo
}

fn fetched(host: &Host) -> u64 {
    http::metrics(host.http())["weighlock_fetched_bytes_total"] as u64
}

#[test]
fn a_hub_cache_becomes_a_seed_without_fetching_its_files() {
    let lab = Lab::new();
    let source = lab.path("source");
    checkpoint::hugging_face(&source, 3, 2);
    let mut alpha = lab.founder("alpha");
    alpha.add(&source, MODEL);
    let beta = lab.joined("beta", &alpha);
    beta.hears_of(MODEL);
    let cache = lab.path("hub");
    let repo = hub_cache(&cache, &source);
    // What is not of the cluster, what only has the size, and what is half there.
    fs::write(cache.join("notes.txt"), "not a layer").expect("written");
    let shard = fs::read(source.join("model-00001-of-00002.safetensors")).expect("read");
    fs::write(cache.join("impostor.bin"), vec![7; shard.len()]).expect("written");
    fs::write(repo.join("blobs/half.incomplete"), &shard[..1000]).expect("written");

    let manifests = || (number(&beta.listed(MODEL)?["files"]) > 0).then_some(());
    until("beta has the manifest", manifests);
    let would = beta.ok(&["adopt", &text(&cache), "--dry-run"]);
    assert_eq!(beta.ok(&["status"])["layers"], 0, "only told");
    let adopted = beta.ok(&["adopt", &text(&cache)]);
    assert_eq!(adopted["files"], would["files"]);
    let row = &adopted["artifacts"][0];
    assert_eq!(row["names"][0], MODEL, "{adopted}");
    assert_eq!(row["files"], row["files_here"], "{adopted}");
    let bytes: u64 = checkpoint::digests(&source)
        .keys()
        .map(|path| fs::metadata(source.join(path)).expect("a file").len())
        .sum();
    assert_eq!(number(&adopted["reflinked_bytes"]) + number(&adopted["copied_bytes"]), bytes, "{adopted}");
    let whole = || beta.listed(MODEL).filter(|row| row["complete"] == true);
    until("beta is a seed", whole);
    assert!(
        fetched(&beta) < 64 << 10,
        "only what no other tool has came over the network: {}",
        fetched(&beta)
    );
    let again = beta.ok(&["adopt", &text(&cache)]);
    assert_eq!(again["files"], 0, "{again}");

    // It gives it to others, and does not depend on the cache any more.
    let gamma = lab.joined("gamma", &alpha);
    gamma.hears_of(MODEL);
    assert!(alpha.term().success());
    fs::remove_dir_all(&cache).expect("removed");
    let to = lab.path("pulled");
    gamma.ok(&["pull", MODEL, "--to", &text(&to)]);
    checkpoint::same(&checkpoint::digests(&to), &checkpoint::digests(&source), "the copy");
}

#[test]
fn a_repository_of_a_hub_cache_is_published_under_a_reference() {
    let lab = Lab::new();
    let source = lab.path("source");
    checkpoint::hugging_face(&source, 4, 1);
    let alpha = lab.founder("alpha");
    let repo = hub_cache(&lab.path("hub"), &source);
    let added = alpha.ok(&["adopt", &text(&repo), MODEL]);
    let bytes = number(&added["new_bytes"]);
    let (shared, copied) = (number(&added["reflinked_bytes"]), number(&added["copied_bytes"]));
    assert!(bytes > 0 && shared + copied == bytes, "{added}");
    assert_eq!(added["copied_because"].is_string(), copied > 0, "{added}");
    let again = alpha.command().args(["adopt", &text(&repo), "acme/again:1.0.0"]).output().expect("it runs");
    let said = String::from_utf8_lossy(&again.stdout).into_owned();
    assert!(said.contains("share their disk blocks, 0 B copied"), "nothing is new: {said}");
    let direct = alpha.add(&source, "acme/direct:1.0.0");
    assert_eq!(string(&added["digest"]), string(&direct["digest"]));
    let ran = alpha.run(&["adopt", &text(&lab.path("nowhere"))]);
    assert_eq!(ran.complaints(2), [""; 0], "{}", ran.stderr);
}
