//! The next version of a model: only groups that differ from what a host already holds travel to it.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use weighlock_tests::checkpoint::{self, Part};
use weighlock_tests::host::{files_below, number, string, text};
use weighlock_tests::{Host, Lab, http};

const GROUP: u64 = 16 * 1024;

/// Tensors of one checkpoint, none of them a multiple of a group, each from its seed.
fn parts(seeds: &[u64]) -> Vec<Part> {
    let lengths = [700_001, 40_000, 16_384, 1_500_003, 9, 300_000, 20_000, 900_007];
    let part = |(n, seed): (usize, &u64)| Part { name: format!("t{n}"), bytes: lengths[n % 8], seed: *seed };
    seeds.iter().enumerate().map(part).collect()
}

/// Groups of a file of which not every byte lies in one of `known`, and the bytes of these groups.
fn changed(file: &Path, spans: &[(u64, u64, u64)], known: &[u64]) -> (u64, u64) {
    let size = fs::metadata(file).expect("a file").len();
    let same: Vec<_> = spans.iter().filter(|(_, _, seed)| known.contains(seed)).collect();
    let covered = |byte: u64| same.iter().any(|(start, len, _)| (*start..start + len).contains(&byte));
    let (mut groups, mut bytes) = (0, 0);
    for start in (0..size).step_by(GROUP as usize) {
        let end = (start + GROUP).min(size);
        // Spans are longer than a few bytes or rare, so a look at each byte is quick enough and beyond doubt.
        if !(start..end).all(covered) {
            groups += 1;
            bytes += end - start;
        }
    }
    (groups, bytes)
}

fn metric(host: &Host, name: &str) -> u64 {
    http::metrics(host.http())[name] as u64
}

/// Sizes of the layers that a host holds, by name.
fn layers(host: &Host) -> BTreeMap<String, u64> {
    let files = files_below(&host.data_dir.join("layers")).into_iter();
    let files = files.filter(|path| path.extension().is_none());
    let name = |path: &Path| path.file_name().expect("a name").to_str().expect("hex").to_owned();
    files.map(|path| (name(&path), fs::metadata(&path).expect("a file").len())).collect()
}

/// What one pull took.
#[derive(Debug)]
struct Pulled {
    reused_bytes: u64,
    /// Fetched, but for layers as small as a contract.
    weights_bytes: u64,
    sent_bytes: u64,
}

/// Pulls `reference` on `to`, compares all bytes with `source`, and says what travelled.
fn pull(from: &Host, to: &Host, reference: &str, source: &Path) -> Pulled {
    to.hears_of(reference);
    let before =
        (layers(to), metric(to, "weighlock_fetched_bytes_total"), metric(from, "weighlock_sent_bytes_total"));
    let target = source.with_extension(format!("on-{}", to.name));
    let pulled = to.ok(&["pull", reference, "--to", &text(&target)]);
    checkpoint::same(&checkpoint::digests(&target), &checkpoint::digests(source), reference);
    let fetched = metric(to, "weighlock_fetched_bytes_total") - before.1;
    let small: u64 = layers(to)
        .iter()
        .filter(|(name, size)| !before.0.contains_key(*name) && **size < 1 << 20)
        .map(|(_, size)| size)
        .sum();
    Pulled {
        reused_bytes: number(&pulled["reused_bytes"]),
        weights_bytes: fetched - small,
        sent_bytes: metric(from, "weighlock_sent_bytes_total") - before.2,
    }
}

struct Versions {
    lab: Lab,
    alpha: Host,
    beta: Host,
}

impl Versions {
    /// Two hosts, of which `alpha` has version 1 with these tensors, and `beta` pulled it.
    fn start(seeds: &[u64]) -> Self {
        let lab = Lab::new();
        let alpha = lab.founder("alpha");
        let beta = lab.joined("beta", &alpha);
        let this = Self { lab, alpha, beta };
        let (source, _) = this.publish(1, "", seeds);
        let size = fs::metadata(source.join("model.safetensors")).expect("a file").len();
        let first = pull(&this.alpha, &this.beta, "acme/model:1.0.0", &source);
        assert_eq!((first.reused_bytes, first.weights_bytes), (0, size), "a first fetch takes all of it");
        // Proofs are one pair for each group; with a tree beside them there would be twice as many.
        let proofs = size / GROUP * 64;
        assert!(first.sent_bytes < size + proofs * 3 / 2 + 50_000, "{first:?}: no tree is asked for");
        this
    }

    /// Adds a version on `alpha`. Answers its directory and the place of its tensors, with their seeds.
    fn publish(&self, version: u32, note: &str, seeds: &[u64]) -> (PathBuf, Vec<(u64, u64, u64)>) {
        let source = self.lab.path(&format!("v{version}"));
        let spans = checkpoint::tensors(&source.join("model.safetensors"), note, &parts(seeds));
        self.alpha.add(&source, &format!("acme/model:{version}.0.0"));
        (source, spans)
    }
}

#[test]
fn only_changed_groups_of_the_next_version_travel() {
    let v1 = [1, 2, 3, 4, 5, 6, 7, 8];
    let versions = Versions::start(&v1);
    let Versions { lab, alpha, beta } = &versions;

    // Two tensors differ, and the header has another length, so that every tensor lies elsewhere.
    let v2 = [1, 20, 3, 4, 5, 60, 7, 8];
    let (source, spans) = versions.publish(2, &"tuned ".repeat(300), &v2);
    let weights = source.join("model.safetensors");
    let size = fs::metadata(&weights).expect("a file").len();
    let (groups, bytes) = changed(&weights, &spans, &v1);
    let second = pull(alpha, beta, "acme/model:2.0.0", &source);
    assert_eq!(second.weights_bytes, bytes, "{groups} changed groups travel, and nothing else: {second:?}");
    assert_eq!(second.reused_bytes, size - bytes);
    assert!(second.sent_bytes < bytes + (bytes + size) / GROUP * 64 + 50_000, "{second:?}: tree and proofs");
    assert!(beta.log().contains(&format!("reused_bytes={}", second.reused_bytes)), "{}", beta.log());

    // The same tensors in another order and in two files: borders and headers travel.
    let source = lab.path("v3");
    let all = parts(&v2);
    let (mut expected, mut total) = (0, 0);
    for (n, take) in [(1, &all[4..]), (2, &all[..4])] {
        let file = source.join(format!("model-{n:05}-of-00002.safetensors"));
        let spans = checkpoint::tensors(&file, "split", take);
        expected += changed(&file, &spans, &v2).1;
        total += fs::metadata(&file).expect("a file").len();
    }
    alpha.add(&source, "acme/model:3.0.0");
    let third = pull(alpha, beta, "acme/model:3.0.0", &source);
    assert_eq!((third.weights_bytes, third.reused_bytes), (expected, total - expected), "{third:?}");
    assert!(expected < total / 10, "most of it was here");

    // A host that has none of it fetches all of it, from both that have.
    let gamma = lab.joined("gamma", alpha);
    let whole = pull(alpha, &gamma, "acme/model:3.0.0", &source);
    assert_eq!((whole.weights_bytes, whole.reused_bytes), (total, 0), "{whole:?}");
}

#[test]
fn local_bytes_that_rotted_are_fetched_instead() {
    let v1 = [1, 2, 3, 4, 5, 6, 7, 8];
    let versions = Versions::start(&v1);
    let Versions { alpha, beta, .. } = &versions;
    // Flips bits in beta's copy of version 1 behind everybody's back: same length, same times.
    let old = layers(beta);
    let (name, size) = old.iter().max_by_key(|(_, size)| **size).expect("the weights");
    let path = beta.data_dir.join("layers").join(&name[..2]).join(name);
    let times = fs::metadata(&path).expect("a file").modified().expect("a time");
    fs::set_permissions(&path, Permissions::from_mode(0o640)).expect("our own file");
    let file = File::options().read(true).write(true).open(&path).expect("writable");
    let damaged = [900_000, 1_600_000, 2_000_000, size - 500_000];
    for at in damaged {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("read");
        file.write_all_at(&[byte[0] ^ 0x10], at).expect("written");
    }
    file.set_modified(times).expect("set back");
    drop(file);
    fs::set_permissions(&path, Permissions::from_mode(0o440)).expect("as it was");

    let (source, spans) = versions.publish(2, "a longer note than before", &[1, 20, 3, 4, 5, 6, 7, 8]);
    let weights = source.join("model.safetensors");
    let (_, bytes) = changed(&weights, &spans, &v1);
    let second = pull(alpha, beta, "acme/model:2.0.0", &source);
    let more = second.weights_bytes - bytes;
    assert!((1..=damaged.len() as u64 * GROUP).contains(&more), "{more} bytes more than changed: {second:?}");
    assert!(second.reused_bytes > 0);
    let digest = string(&alpha.listed("acme/model:2.0.0").expect("listed")["digest"]);
    assert_eq!(string(&beta.listed("acme/model:2.0.0").expect("listed")["digest"]), digest);
}
