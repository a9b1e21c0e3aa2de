//! Several hosts fetch at once: they give to each other what each has, survive kills, keep to rates and to the disk.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};
use weighlock_tests::checkpoint::Part;
use weighlock_tests::host::{number, string};
use weighlock_tests::loader::Opened;
use weighlock_tests::{Host, Lab, checkpoint, http, until};

use crate::bad_input::Tmpfs;

const MODEL: &str = "acme/big:1.0.0";
const MIB: u64 = 1 << 20;

fn metric(host: &Host, name: &str) -> u64 {
    http::metrics(host.http())[name] as u64
}

fn fetched(host: &Host) -> u64 {
    metric(host, "weighlock_fetched_bytes_total")
}

/// SHA-256 of what each descriptor reads as.
fn read_all(opened: &Opened) -> BTreeMap<String, String> {
    let digest = |file: &File| checkpoint::sha256(file.try_clone().expect("a second descriptor"));
    opened.files.iter().map(|(path, file)| (path.clone(), digest(file))).collect()
}

fn opens_as(host: &Host, reference: &str, expected: &BTreeMap<String, String>) {
    let opened = host.loader().open(reference).unwrap_or_else(|e| panic!("{e}\n{}", host.log()));
    checkpoint::same(&read_all(&opened), expected, &host.name);
}

fn bytes_below(dir: &Path) -> u64 {
    let files = weighlock_tests::host::files_below(dir);
    files.iter().map(|path| fs::metadata(path).expect("a file").len()).sum()
}

/// A checkpoint of one tensor, named as no other.
fn weights(path: &Path, seed: u64, bytes: u64) {
    let part = Part { name: format!("t{seed}"), bytes, seed };
    checkpoint::tensors(path, "", &[part]);
}

/// A running host with this configuration that made its own cluster.
fn founder_with(lab: &Lab, name: &str, toml: &str) -> Host {
    let mut host = lab.host(name);
    host.configure(toml);
    host.start();
    host
}

/// A running host with this configuration that joined the cluster of `member`.
fn joined_with(lab: &Lab, name: &str, member: &Host, toml: &str) -> Host {
    let mut host = lab.joined(name, member);
    host.configure(toml);
    assert!(host.term().success());
    host.start();
    host
}

#[test]
fn hosts_that_fetch_at_once_give_to_each_other_and_one_that_is_killed_goes_on() {
    let lab = Lab::new();
    let source = lab.path("source");
    weights(&source.join("one.safetensors"), 1, 20 * MIB);
    weights(&source.join("two.safetensors"), 2, 16 * MIB + 77);
    checkpoint::many_files(&source.join("notes"), 3, 300);
    fs::write(source.join("empty.txt"), "").expect("an empty file");
    let (bytes, expected) = (bytes_below(&source), checkpoint::digests(&source));
    // Slow enough that all of them are at it together, and that a kill meets them in the middle.
    let alpha = founder_with(&lab, "alpha", "[limits]\nupload_bytes_per_s = 6291456\n");
    alpha.add(&source, MODEL);
    let mut hosts = ["beta", "gamma", "delta"].map(|name| lab.joined(name, &alpha));
    for host in &hosts {
        host.hears_of(MODEL);
        for other in hosts.iter().filter(|other| other.name != host.name) {
            until(&format!("{} knows {}", host.name, other.name), || {
                let row = host.peer(other)?;
                row["data"].as_array().is_some_and(|data| !data.is_empty()).then_some(())
            });
        }
    }
    let [beta, gamma, delta] = &mut hosts;
    let from_like = |host: &Host, all: &[&Host]| -> u64 {
        let like = all.iter().filter(|other| other.name != host.name && other.name != alpha.name);
        like.filter_map(|other| host.peer(other)).map(|row| number(&row["fetched_bytes"])).sum()
    };
    let (mut before_kill, mut from_like_before_kill) = (0, 0);
    std::thread::scope(|scope| {
        for host in [&*beta, gamma] {
            let expected = &expected;
            scope.spawn(move || opens_as(host, MODEL, expected));
        }
        let mut loader = delta.loader();
        loader.send(&json!({"v": 1, "op": "open", "ref": MODEL, "fds": "none"}));
        before_kill = until("a third of it is on delta", || {
            let now = fetched(delta);
            (now > bytes / 3).then_some(now)
        });
        // Its counts end with it, and it may have little left to fetch when it is back.
        from_like_before_kill = from_like(delta, &[beta, gamma]);
        delta.kill9();
        assert!(before_kill < bytes, "the fetch was over before it could be killed");
        delta.start();
        opens_as(delta, MODEL, &expected);
    });
    let after = fetched(&hosts[2]);
    // Pieces that were under way at the kill, and a little of the looks' grain.
    assert!(before_kill + after < bytes + 12 * MIB, "{before_kill} before, {after} after, of {bytes}");
    let sent = metric(&alpha, "weighlock_sent_bytes_total");
    println!("alpha sent {:.2} copies", sent as f64 / bytes as f64);
    assert!(sent < bytes * 2, "alpha sent {sent} of {bytes} for three hosts");
    for host in &hosts {
        let before = if host.name == "delta" { from_like_before_kill } else { 0 };
        let between = before + from_like(host, &hosts.each_ref());
        assert!(between > 0, "{} took nothing from its like", host.name);
    }
}

#[test]
fn a_slow_fetch_keeps_to_its_rate_and_brings_first_what_a_loader_waits_for() {
    const RATE: u64 = 8 * MIB;
    const BYTES: u64 = 40 * MIB;
    let lab = Lab::new();
    let source = lab.path("source");
    weights(&source.join("model.safetensors"), 5, BYTES);
    let alpha = lab.founder("alpha");
    alpha.add(&source, MODEL);
    let beta = joined_with(&lab, "beta", &alpha, &format!("[limits]\ndownload_bytes_per_s = {RATE}\n"));
    beta.hears_of(MODEL);
    let size = fs::metadata(source.join("model.safetensors")).expect("a file").len();
    let started = Instant::now();
    let mut loader = beta.loader();
    let digest = string(&loader.open_partial(MODEL).expect("opened")["digest"]);
    loader.wait(&digest, "model.safetensors", &[(size - MIB, size)]).expect("ready");
    let held = number(&beta.listed(MODEL).expect("listed")["held_bytes"]);
    assert!(held < size / 2, "{held} of {size} came before what was waited for");
    opens_as(&beta, MODEL, &checkpoint::digests(&source));
    // A bound from below: a busy machine only makes it slower.
    let seconds = started.elapsed().as_secs_f64();
    let least = (BYTES - RATE / 4 - 4 * MIB) as f64 / RATE as f64;
    assert!(seconds > least, "{BYTES} bytes came in {seconds} s at {RATE} a second");
}

#[test]
fn artifacts_that_share_layers_fetch_them_once() {
    let lab = Lab::new();
    let alpha = founder_with(&lab, "alpha", "[limits]\nupload_bytes_per_s = 16777216\n");
    let mut expected = BTreeMap::new();
    for (n, seeds) in [(1, [1, 2]), (2, [2, 3])] {
        let source = lab.path(&format!("source-{n}"));
        for seed in seeds {
            weights(&source.join(format!("{seed}.safetensors")), seed, 10 * MIB);
        }
        checkpoint::many_files(&source.join("notes"), 7, 40);
        let reference = format!("acme/model:{n}.0.0");
        alpha.add(&source, &reference);
        expected.insert(reference, checkpoint::digests(&source));
    }
    let beta = lab.joined("beta", &alpha);
    expected.keys().for_each(|reference| drop(beta.hears_of(reference)));
    std::thread::scope(|scope| {
        for (reference, expected) in &expected {
            let beta = &beta;
            scope.spawn(move || opens_as(beta, reference, expected));
        }
    });
    let bytes = fetched(&beta);
    // What both asked for at the same moment may come twice.
    assert!(bytes < 34 * MIB, "{bytes} bytes for 30 MiB that differ");
}

#[test]
fn hosts_end_in_good_order_in_the_middle_of_a_fetch() {
    let lab = Lab::new();
    let source = lab.path("source");
    for n in 0..3 {
        weights(&source.join(format!("{n}.safetensors")), n, 8 * MIB);
    }
    let mut alpha = founder_with(&lab, "alpha", "[limits]\nupload_bytes_per_s = 6291456\n");
    alpha.add(&source, MODEL);
    let mut beta = lab.joined("beta", &alpha);
    beta.hears_of(MODEL);
    let under_way = |beta: &Host, more: u64| {
        let before = fetched(beta);
        let mut loader = beta.loader();
        loader.send(&json!({"v": 1, "op": "open", "ref": MODEL, "fds": "none"}));
        until("some of it came", || (fetched(beta) > before + more).then_some(()));
        loader
    };
    // The one that asks: who waits there is cut off, and opens again once it is back.
    let mut loader = under_way(&beta, 2 * MIB);
    assert!(beta.term().success(), "{}", beta.log());
    let end = loop {
        match loader.recv() {
            Ok((event, _)) => assert_eq!(event["event"], "progress", "{event}"),
            Err(end) => break end,
        }
    };
    assert_eq!(end.kind(), std::io::ErrorKind::UnexpectedEof, "{end}");
    beta.start();
    let held = number(&beta.hears_of(MODEL)["held_bytes"]);
    assert!(held >= 2 * MIB, "{held} bytes were kept");
    // The one that is asked, with requests that wait for their turn.
    let _loader = under_way(&beta, 2 * MIB);
    assert!(alpha.term().success(), "{}", alpha.log());
    alpha.start();
    opens_as(&beta, MODEL, &checkpoint::digests(&source));
}

#[test]
fn a_disk_that_fills_pauses_the_fetch_until_there_is_room() {
    fills_and_has_room_again(3, 12 * MIB);
}

#[test]
fn a_disk_that_fills_pauses_the_fetch_of_a_layer_that_was_begun_until_there_is_room() {
    fills_and_has_room_again(1, 36 * MIB);
}

fn fills_and_has_room_again(layers: u64, layer_bytes: u64) {
    if !rustix::process::geteuid().is_root() {
        eprintln!("NOT RUN: a full disk cannot be tried here, mounting a tmpfs needs root");
        return;
    }
    let lab = Lab::new();
    let source = lab.path("source");
    for n in 0..layers {
        weights(&source.join(format!("{n}.safetensors")), n, layer_bytes);
    }
    let alpha = lab.founder("alpha");
    alpha.add(&source, MODEL);
    let disk = Tmpfs::mount(lab.path("disk"), "80m");
    let mut beta = lab.joined("beta", &alpha);
    assert!(beta.term().success());
    let limits = "[limits]\nfree_bytes_min = 1048576\ndownload_bytes_per_s = 6291456\n";
    let beta = {
        // The same host, with its store on the small disk.
        let from = beta.data_dir.clone();
        beta.data_dir = disk.path().join("data");
        let copied = std::process::Command::new("cp").arg("-a").arg(&from).arg(&beta.data_dir).status();
        assert!(copied.expect("cp runs").success());
        beta.configure(limits);
        beta.start();
        beta
    };
    beta.hears_of(MODEL);
    let mut loader = beta.loader();
    loader.send(&json!({"v": 1, "op": "open", "ref": MODEL, "fds": "none"}));
    let progress = |loader: &mut weighlock_tests::loader::Loader| -> Value {
        let (event, _) = loader.recv().expect("an event");
        assert_eq!(event["event"], "progress", "{event}\n{}", beta.log());
        event
    };
    while number(&progress(&mut loader)["done_bytes"]) < MIB {}
    fill(disk.path());
    let full = loop {
        let event = progress(&mut loader);
        if event["phase"] == "no space" {
            break event;
        }
        assert!(number(&event["done_bytes"]) < number(&event["total_bytes"]), "it never was full");
    };
    // The daemon answers, keeps what it has, and does not spin.
    let held = number(&beta.listed(MODEL).expect("listed")["held_bytes"]);
    assert!(held >= MIB, "{held}");
    let before = fetched(&beta);
    for _ in 0..20 {
        let event = progress(&mut loader);
        assert!(number(&event["done_bytes"]) >= number(&full["done_bytes"]), "{event}");
    }
    assert!(fetched(&beta) <= before + 12 * MIB, "only what had room already came");
    // Far less than is missing: it would be full again at once.
    let filler = fs::File::options().write(true).open(disk.path().join("filler")).expect("opened");
    filler.set_len(filler.metadata().expect("a length").len() - 5 * MIB).expect("cut");
    // Or it would keep its room when it is removed.
    drop(filler);
    for _ in 0..20 {
        assert_eq!(progress(&mut loader)["phase"], "no space");
    }
    fs::remove_file(disk.path().join("filler")).expect("removed");
    let opened = loop {
        let (event, _) = loader.recv().expect("an event");
        match event["event"].as_str() {
            Some("progress") => {}
            _ => break event,
        }
    };
    assert_eq!(opened["event"], "opened", "{opened}");
    let bytes = fetched(&beta);
    assert!(bytes < 36 * MIB + 8 * MIB, "{bytes} bytes: nothing was lost");
    opens_as(&beta, MODEL, &checkpoint::digests(&source));
}

/// Takes all of a disk but some 4 MiB: room for records, and for no layer.
fn fill(disk: &Path) {
    let stat = rustix::fs::statvfs(disk).expect("a file system");
    let bytes = stat.f_bavail * stat.f_frsize - 4 * MIB;
    fs::write(disk.join("filler"), vec![0x5a; bytes as usize]).expect("room");
}
