//! Bytes that went bad on one host's disk: kept from every door, healed from other hosts, told.

use std::fs::{self, File, FileTimes, Permissions};
use std::io::Read;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use weighlock_tests::host::{number, string, text};
use weighlock_tests::wait::until;
use weighlock_tests::{Host, Lab, checkpoint, http};

const MODEL: &str = "acme/model:1.0.0";
const BYTES: u64 = 20 << 20;
const FILE: &str = "model.safetensors";

/// Two hosts that hold the model, and where it came from.
fn pair(lab: &Lab) -> (Host, Host, PathBuf) {
    let source = lab.path("source");
    checkpoint::single(&source.join(FILE), 7, BYTES);
    let alpha = lab.founder("alpha");
    alpha.add(&source, MODEL);
    let beta = lab.joined("beta", &alpha);
    beta.hears_of(MODEL);
    beta.ok(&["pull", MODEL]);
    (alpha, beta, source)
}

/// Where a host keeps the layer of the model's file.
fn layer(host: &Host) -> PathBuf {
    layer_of(host, FILE)
}

fn layer_of(host: &Host, path: &str) -> PathBuf {
    let inspected = host.ok(&["inspect", MODEL]);
    let files = inspected["files"].as_array().expect("files");
    let file = files.iter().find(|file| file["path"] == path).expect("the model's file");
    let hex = string(&file["blake3"]);
    host.data_dir.join("layers").join(&hex[..2]).join(hex)
}

/// Changes one bit, and the time if not `silent`.
fn flip(host: &Host, at: u64, silent: bool) {
    flip_in(&layer(host), at, silent);
}

fn flip_in(path: &Path, at: u64, silent: bool) {
    fs::set_permissions(path, Permissions::from_mode(0o640)).expect("opened");
    let file = File::options().read(true).write(true).open(path).expect("opened");
    let mtime = file.metadata().and_then(|meta| meta.modified()).expect("a time");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("read");
    file.write_all_at(&[byte[0] ^ 4], at).expect("written");
    let mtime = if silent { mtime } else { mtime + Duration::from_secs(1) };
    file.set_times(FileTimes::new().set_modified(mtime)).expect("set");
    file.sync_all().expect("synced");
}

fn is_whole(host: &Host, source: &std::path::Path) -> bool {
    fs::read(layer(host)).ok() == fs::read(source.join(FILE)).ok()
}

fn measured(host: &Host, name: &str) -> u64 {
    http::metrics(host.http())[name] as u64
}

#[test]
fn a_silent_flip_is_found_by_scrub_and_healed_from_a_peer_group_by_group() {
    let lab = Lab::new();
    // Whoever added it has its SHA-256 already, so that nothing but the scrub reads it.
    let (alpha, _beta, source) = pair(&lab);
    let clean = alpha.ok(&["scrub"]);
    assert_eq!(clean["damaged"].as_array().map(Vec::len), Some(0), "{clean}");
    assert!(number(&clean["bytes"]) >= BYTES, "{clean}");
    flip(&alpha, 9_000_000, true);
    let before = measured(&alpha, "weighlock_fetched_bytes_total");
    let scrubbed = alpha.ok(&["scrub", MODEL]);
    let row = &scrubbed["damaged"][0];
    assert!(row["bad_groups"] == 1 && row["healed"] == true, "{scrubbed}");
    assert!(is_whole(&alpha, &source));
    let fetched = measured(&alpha, "weighlock_fetched_bytes_total") - before;
    assert_eq!(fetched, 16_384, "one group came over the network");
    assert_eq!(measured(&alpha, "weighlock_scrub_damaged_layers_total"), 1);
    assert_eq!(measured(&alpha, "weighlock_scrub_damaged_groups_total"), 1);
    assert_eq!(measured(&alpha, "weighlock_healed_layers_total"), 1);
    assert_eq!(measured(&alpha, "weighlock_quarantined_layers"), 0);
    let status = alpha.ok(&["status"]);
    assert_eq!(status["integrity"]["healed"], 1, "{status}");
    assert_eq!(status["alarms"].as_array().map(Vec::len), Some(0), "{status}");
    let log = alpha.log();
    assert!(log.contains("scrub found a damaged layer") && log.contains("are whole again"), "{log}");
}

#[test]
fn what_nobody_has_stays_set_aside_with_an_alarm_and_heals_when_somebody_comes() {
    let lab = Lab::new();
    let (mut alpha, beta, source) = pair(&lab);
    assert!(alpha.term().success());
    flip(&beta, 5, true);
    let ran = beta.run(&["scrub"]);
    assert_eq!(ran.code, Some(7), "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stderr.contains("1 layer stays damaged"), "{}", ran.stderr);
    let status = beta.ok(&["status"]);
    assert!(string(&status["alarms"][0]).contains("damaged on this disk"), "{status}");
    assert_eq!(measured(&beta, "weighlock_quarantined_layers"), 1);
    assert!(!layer(&beta).exists());
    alpha.start();
    until("the layer is healed by itself", || is_whole(&beta, &source).then_some(()));
    until("nothing is damaged any more", || {
        (beta.ok(&["status"])["integrity"]["damaged"].as_array().map(Vec::len) == Some(0)).then_some(())
    });
}

#[test]
fn no_door_hands_out_what_was_touched_and_each_heals_it() {
    let lab = Lab::new();
    let (_alpha, beta, source) = pair(&lab);
    let expected = fs::read(source.join(FILE)).expect("read");
    let doors: [(&str, &dyn Fn() -> Vec<u8>); 3] = [
        ("loader", &|| {
            let mut loader = beta.loader();
            let mut opened = loader.open(MODEL).expect("it opens");
            let mut bytes = Vec::new();
            opened.files.get_mut(FILE).expect("a descriptor").read_to_end(&mut bytes).expect("read");
            bytes
        }),
        ("pull", &|| {
            let to = lab.path("pulled");
            beta.ok(&["pull", MODEL, "--to", &text(&to)]);
            fs::read(to.join(FILE)).expect("read")
        }),
        ("path", &|| {
            let viewed = beta.ok(&["path", MODEL]);
            fs::read(PathBuf::from(string(&viewed["path"])).join(FILE)).expect("read")
        }),
    ];
    for (i, (name, door)) in doors.into_iter().enumerate() {
        flip(&beta, 1_000_000 + i as u64, false);
        assert!(door() == expected, "{name} handed out wrong bytes");
        assert!(is_whole(&beta, &source), "{name}");
        assert_eq!(measured(&beta, "weighlock_healed_layers_total"), i as u64 + 1, "{name}");
    }
    // A view of its own that was touched is made anew.
    let view = PathBuf::from(string(&beta.ok(&["path", MODEL])["path"])).join(FILE);
    fs::set_permissions(&view, Permissions::from_mode(0o644)).expect("opened");
    let file = File::options().write(true).open(&view).expect("opened");
    file.write_all_at(b"wrong", 500_000).expect("written");
    let again = PathBuf::from(string(&beta.ok(&["path", MODEL])["path"])).join(FILE);
    assert!(fs::read(again).expect("read") == expected, "the view");
}

#[test]
fn a_contract_that_was_answered_with_before_is_looked_at_each_time() {
    let lab = Lab::new();
    let (_alpha, beta, _) = pair(&lab);
    let open = || beta.loader().open(MODEL).expect("it opens").event["contract"].clone();
    let contract = open();
    assert_eq!(contract, beta.ok(&["inspect", MODEL])["contract"]);
    let is_contract = |path: &Path| {
        let parsed =
            fs::read(path).ok().and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok());
        parsed.is_some_and(|value| value == contract)
    };
    let within =
        |dir: &Path| fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").path());
    let path =
        within(&beta.data_dir.join("layers")).flat_map(|dir| within(&dir)).find(|path| is_contract(path));
    let path = path.expect("its layer");
    flip_in(&path, 3, false);
    assert_eq!(open(), contract);
    assert!(is_contract(&path), "it is whole again");
    assert_eq!(measured(&beta, "weighlock_healed_layers_total"), 1);
}

#[test]
fn under_always_a_silent_flip_is_not_handed_out_either() {
    let lab = Lab::new();
    let (_alpha, mut beta, source) = pair(&lab);
    beta.configure("[integrity]\nverify_on_read = \"always\"\n");
    assert!(beta.term().success());
    beta.start();
    let expected = fs::read(source.join(FILE)).expect("read");
    flip(&beta, 3_000_000, true);
    let mut opened = beta.loader().open(MODEL).expect("it opens");
    let mut bytes = Vec::new();
    opened.files.get_mut(FILE).expect("a descriptor").read_to_end(&mut bytes).expect("read");
    assert!(bytes == expected, "the loader got wrong bytes");
    flip(&beta, 3_000_001, true);
    let viewed = beta.ok(&["path", MODEL]);
    let bytes = fs::read(PathBuf::from(string(&viewed["path"])).join(FILE)).expect("read");
    assert!(bytes == expected, "the view has wrong bytes");
    assert_eq!(measured(&beta, "weighlock_healed_layers_total"), 2);
}

#[test]
fn who_got_wrong_bytes_says_so_and_the_accused_looks_and_heals() {
    let lab = Lab::new();
    let (alpha, mut beta, source) = pair(&lab);
    let gamma = lab.joined("gamma", &alpha);
    gamma.hears_of(MODEL);
    // Only the rotten copy is there to fetch from.
    assert!(beta.term().success());
    flip(&alpha, 7_000_000, true);
    let mut pull = gamma.command().args(["pull", MODEL]).spawn().expect("the program runs");
    until("the accused hears of it", || (measured(&alpha, "weighlock_scrub_doubts_total") > 0).then_some(()));
    until("it has set the layer aside", || {
        (measured(&alpha, "weighlock_quarantined_layers") == 1).then_some(())
    });
    beta.start();
    until("it is healed", || is_whole(&alpha, &source).then_some(()));
    until("gamma has it too", || gamma.listed(MODEL).filter(|row| row["complete"] == true));
    let _ = pull.kill();
    let _ = pull.wait();
    assert!(is_whole(&gamma, &source));
}

#[test]
fn what_is_found_while_another_layer_heals_is_waited_for_too() {
    let lab = Lab::new();
    let source = lab.path("source");
    let files = ["a.safetensors", "b.safetensors"];
    for (seed, file) in files.into_iter().enumerate() {
        let part = checkpoint::Part { name: format!("w{seed}"), bytes: BYTES, seed: seed as u64 };
        checkpoint::tensors(&source.join(file), "", &[part]);
    }
    let alpha = lab.founder("alpha");
    alpha.add(&source, MODEL);
    let mut beta = lab.joined("beta", &alpha);
    beta.hears_of(MODEL);
    beta.ok(&["pull", MODEL]);
    beta.term();
    beta.configure("[limits]\ndownload_bytes_per_s = 2000000\n");
    beta.start();
    let rot = |file: &str, at: u64, len: usize| {
        let path = layer_of(&beta, file);
        fs::set_permissions(&path, Permissions::from_mode(0o640)).expect("opened");
        let layer = File::options().write(true).open(&path).expect("opened");
        layer.write_all_at(&vec![0xa5; len], at).expect("written");
        layer.sync_all().expect("synced");
    };
    rot(files[0], 4 << 20, 6 << 20);
    let mut first = beta.command().args(["scrub", MODEL]).spawn().expect("the program runs");
    until("the first heals", || (measured(&beta, "weighlock_fetches") == 1).then_some(()));
    rot(files[1], 9_000_000, 1);
    let scrubbed = beta.ok(&["scrub", MODEL]);
    let rows = scrubbed["damaged"].as_array().expect("a list").clone();
    assert!(rows.len() == 2 && rows.iter().all(|row| row["healed"] == true), "{scrubbed}");
    assert!(first.wait().expect("it ends").success());
    for file in files {
        assert!(fs::read(layer_of(&beta, file)).ok() == fs::read(source.join(file)).ok(), "{file}");
    }
}

#[test]
fn rot_that_the_proof_of_sha256_meets_is_told_to_others_at_once() {
    // Where the proof ends before there is rot, it is for the next to show.
    assert!((0..4).any(|_| the_proof_meets_rot()), "four times the proof came before the rot");
}

/// False if the proof was through before the rot came.
fn the_proof_meets_rot() -> bool {
    let lab = Lab::new();
    let source = lab.path("source");
    checkpoint::single(&source.join(FILE), 7, BYTES);
    let alpha = lab.founder("alpha");
    alpha.add(&source, MODEL);
    let beta = lab.joined("beta", &alpha);
    let gamma = lab.joined("gamma", &alpha);
    until("beta and gamma are connected", || beta.peer(&gamma).filter(|row| row["connected"] == true));
    beta.hears_of(MODEL);
    gamma.hears_of(MODEL);
    let counts_on_beta = || {
        let told = gamma.ok(&["where", MODEL]);
        let rows = told["holders"].as_array().expect("holders").clone();
        rows.iter().any(|row| row["name"] == "beta" && row["complete"] == true)
    };
    beta.ok(&["log-level", "info,weighlock=debug"]);
    let layer = layer(&beta);
    beta.ok(&["pull", MODEL]);
    until("gamma counts on beta", || counts_on_beta().then_some(()));
    // It rots before it is read for the first time, at its end, which is read last; and nobody can heal it.
    alpha.pause();
    if beta.logged("a layer was read for its SHA-256") > 0 {
        alpha.resume();
        return false;
    }
    flip_in(&layer, BYTES, true);
    until("beta has found it", || (beta.logged("a layer is damaged on disk") > 0).then_some(()));
    until("gamma counts on beta no more", || (!counts_on_beta()).then_some(()));
    alpha.resume();
    until("it is healed", || is_whole(&beta, &source).then_some(()));
    until("gamma counts on beta again", || counts_on_beta().then_some(()));
    true
}

/// Where Debian and others put it.
const FAKETIME: [&str; 3] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib64/faketime/libfaketimeMT.so.1",
];

#[test]
fn what_was_not_read_for_half_of_the_period_is_read_in_the_background_and_healed() {
    let Some(faketime) = FAKETIME.iter().find(|path| std::path::Path::new(path).exists()) else {
        eprintln!("SKIPPED: libfaketime is not installed (faketime of Debian), so no clock was moved");
        return;
    };
    let lab = Lab::new();
    // Whoever added it has its SHA-256 already, so that nothing but the scrub reads it.
    let (mut alpha, _beta, source) = pair(&lab);
    flip(&alpha, 9_000_000, true);
    assert!(alpha.term().success());
    // Sixteen days later: half of 30 days is over.
    for (name, value) in [
        ("LD_PRELOAD", *faketime),
        ("FAKETIME", "+16d"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("NO_FAKE_STAT", "1"),
    ] {
        alpha.environment.push((name.into(), value.into()));
    }
    alpha.start();
    until("the background pass has found it", || {
        (measured(&alpha, "weighlock_scrub_damaged_layers_total") == 1).then_some(())
    });
    until("it is healed", || is_whole(&alpha, &source).then_some(()));
    until("all is read", || (measured(&alpha, "weighlock_scrub_oldest_seconds") < 600).then_some(()));
    assert!(measured(&alpha, "weighlock_scrub_read_bytes_total") > 0, "up to the wrong bytes");
    assert_eq!(measured(&alpha, "weighlock_quarantined_layers"), 0);
}

#[test]
fn who_opened_it_while_it_might_have_been_on_its_way_gets_no_blank_bytes_of_what_is_damaged() {
    let lab = Lab::new();
    let (mut alpha, beta, source) = pair(&lab);
    let whole = |file: &File| checkpoint::sha256(file.try_clone().expect("a second descriptor"));
    let expected = checkpoint::digests(&source)[FILE].clone();
    let mut loader = beta.loader();
    let opened = loader.open_partial(MODEL).expect("opened");
    assert_eq!(opened["complete"], true, "{opened}");
    let digest = string(&opened["digest"]);
    // It was told that all is here, so it asks for nothing to be waited for.
    flip(&beta, 5 << 20, false);
    let files = loader.fds(&digest, &[FILE]).expect("healed first");
    assert_eq!(whole(&files[FILE]), expected);
    // Nobody is there to heal it.
    alpha.term();
    flip(&beta, 5 << 20, false);
    let error = loader.fds(&digest, &[FILE]).expect_err("no bytes rather than wrong ones");
    assert_eq!(string(&error["code"]), "integrity", "{error}");
    // Who comes now is told.
    let mut late = beta.loader();
    let opened = late.open_partial(MODEL).expect("opened");
    assert_eq!((&opened["complete"], &opened["incomplete"]), (&false.into(), &serde_json::json!([FILE])));
    alpha.start();
    let opens = || beta.loader().open(MODEL).ok().map(|opened| whole(&opened.files[FILE]));
    assert_eq!(until("it is healed", opens), expected);
}
