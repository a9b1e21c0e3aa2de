//! Store life across real processes: a quota that makes room, what stays and why, copies elsewhere, a full disk.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use weighlock_tests::checkpoint::{self, Part};
use weighlock_tests::disk::SmallDisk;
use weighlock_tests::host::{number, string, text};
use weighlock_tests::{Host, Lab, http, until};

/// A checkpoint of one tensor; about `kib` KiB.
fn model(lab: &Lab, name: &str, seed: u64, kib: u64) -> PathBuf {
    let dir = lab.path(name);
    let part = Part { name: "w".into(), bytes: kib << 10, seed };
    checkpoint::tensors(&dir.join("model.safetensors"), "", &[part]);
    dir
}

fn complete(host: &Host, reference: &str) -> bool {
    host.listed(reference).is_some_and(|row| row["complete"] == true)
}

/// Why something stays, as `gc --dry-run` tells.
fn because(host: &Host, name: &str) -> Option<String> {
    let told = host.ok(&["gc", "--dry-run"]);
    let kept = told["kept"].as_array().expect("a list").clone();
    let row = kept.into_iter().find(|row| row["name"] == name)?;
    let reasons: Vec<String> = row["because"].as_array().expect("a list").iter().map(string).collect();
    Some(reasons.join("; "))
}

fn names(value: &Value) -> Vec<String> {
    value.as_array().expect("a list").iter().map(|row| string(&row["name"])).collect()
}

#[test]
fn a_full_quota_lets_go_of_the_least_recently_used_and_of_nothing_in_use() {
    let lab = Lab::new();
    let alpha = lab.founder("alpha");
    for n in 1..=5u64 {
        alpha.add(&model(&lab, &format!("m{n}"), n, 2048), &format!("acme/m:{n}.0.0"));
    }
    let mut beta = lab.joined("beta", &alpha);
    beta.term();
    // Three fit, a fourth does not.
    beta.configure("[store]\nquota_bytes = 7000000\n");
    beta.start();
    let reference = |n: u64| format!("acme/m:{n}.0.0");
    for n in 1..=5 {
        beta.hears_of(&reference(n));
    }
    let pull = |n: u64| beta.ok(&["pull", &reference(n), "--to", &text(&lab.path(&format!("out{n}")))]);
    pull(1);
    beta.ok(&["pin", &reference(1), "--reason", "the audit needs it"]);
    let mut held = beta.loader();
    let opened = held.open(&reference(2)).expect("opened");
    std::thread::sleep(std::time::Duration::from_millis(1100));
    pull(3);
    until("alpha is known to hold them", || {
        (because(&beta, &reference(3)).as_deref() == Some("")).then_some(())
    });
    assert!(because(&beta, &reference(1)).expect("kept").contains("the audit needs it"));
    assert!(because(&beta, &reference(2)).expect("kept").contains("open by 1 loader"));
    // Nothing went so far; the fourth makes room for itself.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    pull(4);
    assert!(
        complete(&beta, &reference(1)) && complete(&beta, &reference(2)) && complete(&beta, &reference(4))
    );
    assert!(!complete(&beta, &reference(3)), "the only one that may go went");
    let used = beta.ok(&["df"]);
    assert!(number(&used["used_bytes"]) <= 7_000_000, "{used}");
    assert_eq!(number(&used["quota_bytes"]), 7_000_000);
    assert!(
        number(&used["pinned_bytes"]) > 2_000_000 && number(&used["reclaimable_bytes"]) > 2_000_000,
        "{used}"
    );
    // All of them in use: the fetch says so in one line, and breaks nothing.
    let mut other = beta.loader();
    other.open(&reference(4)).expect("opened");
    let ran = beta.run(&["pull", &reference(5), "--to", &text(&lab.path("out5"))]);
    assert_eq!(ran.complaints(6), [""; 0], "{}", ran.stderr);
    assert!(ran.stderr.contains("quota"), "{}", ran.stderr);
    beta.ok(&["rm", &reference(5), "--force"]);
    drop(other);
    // The loader that had its model open all the time reads it still.
    for (path, file) in opened.files {
        let source = checkpoint::digests(&lab.path("m2"));
        assert_eq!(checkpoint::sha256(file), source[&path], "{path}");
    }
    let metrics = http::metrics(beta.http());
    assert!(metrics["weighlock_gc_runs_total"] >= 1.0 && metrics["weighlock_gc_bytes_total"] > 2e6);
    assert!(metrics["weighlock_used_bytes"] <= metrics["weighlock_quota_bytes"]);

    // The publisher keeps its originals, quota or not: too few others hold them.
    let dry = alpha.ok(&["gc", "--all", "--dry-run"]);
    assert_eq!(names(&dry["gone"]), [""; 0], "{dry}");
    let freed = beta.ok(&["prune", "--all"]);
    assert_eq!(names(&freed["gone"]), [reference(4)], "{freed}");
    beta.ok(&["unpin", &reference(1)]);
    assert_eq!(beta.ok(&["pin", "--list"])["items"].as_array().map(Vec::len), Some(0));
    drop(held);
    until("the rest may go", || {
        beta.ok(&["gc", "--all"]);
        (!complete(&beta, &reference(1)) && !complete(&beta, &reference(2))).then_some(())
    });
    assert_eq!(beta.ok(&["status"])["layers"], 0);
}

#[test]
fn adopting_makes_room_by_nothing_that_it_took_and_for_nothing_but_layers() {
    let (old, new) = ("acme/old:1.0.0", "acme/new:1.0.0");
    let lab = Lab::new();
    let alpha = lab.founder("alpha");
    alpha.add(&model(&lab, "old", 1, 2048), old);
    let source = lab.path("new");
    for (name, seed) in [("one", 2), ("two", 3)] {
        let part = Part { name: name.into(), bytes: 1 << 20, seed };
        checkpoint::tensors(&source.join(format!("{name}.safetensors")), "", &[part]);
    }
    alpha.add(&source, new);
    let mut beta = lab.joined("beta", &alpha);
    beta.term();
    // One model fits, and half of the other.
    beta.configure("[store]\nquota_bytes = 3500000\n");
    beta.start();
    beta.hears_of(old);
    beta.hears_of(new);
    beta.ok(&["pull", old, "--to", &text(&lab.path("out"))]);
    until("alpha is known to hold it", || (because(&beta, old).as_deref() == Some("")).then_some(()));
    until("beta has the manifest", || (number(&beta.listed(new)?["files"]) > 0).then_some(()));
    // As large as one half, and something else: two of them do not fit, and nothing goes for them.
    let impostors = lab.path("impostors");
    fs::create_dir(&impostors).expect("made");
    let bytes = fs::read(source.join("one.safetensors")).expect("read").len();
    fs::write(impostors.join("0"), vec![7; bytes]).expect("written");
    fs::copy(source.join("one.safetensors"), impostors.join("1")).expect("copied");
    fs::write(impostors.join("2"), vec![8; bytes]).expect("written");
    let adopted = beta.ok(&["adopt", &text(&impostors)]);
    assert_eq!(
        (&adopted["files"], &adopted["artifacts"][0]["files_here"]),
        (&1.into(), &1.into()),
        "{adopted}"
    );
    assert!(complete(&beta, old), "nothing went for files that are no layers");

    // What is here of it belongs to no artifact yet, and is what goes first; but not while the rest is taken in.
    let fetched = || http::metrics(beta.http())["weighlock_fetched_bytes_total"] as u64;
    let before = fetched();
    let adopted = beta.ok(&["adopt", &text(&source)]);
    assert_eq!(
        (&adopted["files"], &adopted["artifacts"][0]["files_here"]),
        (&1.into(), &2.into()),
        "{adopted}"
    );
    assert!(!complete(&beta, old), "it made room");
    until("all of it is here", || complete(&beta, new).then_some(()));
    assert!(fetched() - before < 64 << 10, "only what no other tool has came over the network");
    assert!(number(&beta.ok(&["df"])["used_bytes"]) <= 3_500_000);
}

#[test]
fn an_original_goes_once_enough_others_hold_it_and_add_can_wait_for_them() {
    let lab = Lab::new();
    let alpha = lab.founder("alpha");
    let beta = lab.joined("beta", &alpha);
    let gamma = lab.joined("gamma", &alpha);
    let source = text(&model(&lab, "m", 1, 300));
    let ran = alpha.run(&["add", &source, "acme/m:1.0.0", "--wait-copies", "2", "--timeout", "1"]);
    assert_eq!(ran.code, Some(6), "{}", ran.stderr);
    assert!(ran.stderr.contains("1 of 2 hosts hold all of it"), "{}", ran.stderr);
    assert!(ran.stderr.contains("weighlock follow acme/m:STAGE --on LABEL"), "{}", ran.stderr);
    assert!(complete(&alpha, "acme/m:1.0.0"), "it is added all the same");
    let refused = alpha.run(&["rm", "acme/m:1.0.0"]);
    assert_eq!(refused.complaints(5), [""; 0]);
    assert!(refused.stderr.contains("last known copy"), "{}", refused.stderr);

    let waiting = alpha
        .command()
        .args(["--json", "add", &source, "acme/m:1.0.0", "--wait-copies", "3"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("the program runs");
    for host in [&beta, &gamma] {
        host.hears_of("acme/m:1.0.0");
        host.ok(&["pull", "acme/m:1.0.0", "--to", &text(&lab.path(&format!("out-{}", host.name)))]);
    }
    let waited = weighlock_tests::Ran::of(waiting.wait_with_output().expect("it ends"));
    assert_eq!(waited.code, Some(0), "{}", waited.stdout);
    assert_eq!(waited.last()["copies"], serde_json::json!(["alpha", "beta", "gamma"]));

    // Two others hold it: the original may go, and those two may not.
    let reasons = |host: &Host| because(host, "acme/m:1.0.0");
    until("alpha may let go of it", || (reasons(&alpha).as_deref() == Some("")).then_some(()));
    for host in [&beta, &gamma] {
        until("the others keep it", || reasons(host).filter(|why| why.contains("of the 2 copies")));
    }
    assert_eq!(names(&alpha.ok(&["gc", "--all"])["gone"]), ["acme/m:1.0.0"]);
    assert!(!complete(&alpha, "acme/m:1.0.0"));
    for host in [&beta, &gamma] {
        assert_eq!(names(&host.ok(&["gc", "--all"])["gone"]), [""; 0]);
        assert!(complete(host, "acme/m:1.0.0"));
    }
    // By force, and then it says what is lost.
    beta.ok(&["rm", "acme/m:1.0.0"]);
    until("gamma knows that it has the last", || reasons(&gamma).filter(|why| why.contains("no other host")));
    assert_eq!(gamma.run(&["rm", "acme/m:1.0.0"]).code, Some(5));
    assert_eq!(gamma.ok(&["rm", "acme/m:1.0.0", "--force"])["last_copy"], true);
}

#[test]
fn what_was_begun_and_nobody_wants_any_more_goes_after_its_time() {
    let lab = Lab::new();
    let alpha = lab.founder("alpha");
    alpha.add(&model(&lab, "m", 1, 24 << 10), "acme/m:1.0.0");
    let mut beta = lab.joined("beta", &alpha);
    beta.term();
    beta.configure("[limits]\ndownload_bytes_per_s = 2000000\n[store]\npartial_keep_s = 1\n");
    beta.start();
    beta.hears_of("acme/m:1.0.0");
    let mut loader = beta.loader();
    loader.send(&serde_json::json!({"v": 1, "op": "open", "ref": "acme/m:1.0.0", "fds": "none"}));
    let held = || number(&beta.listed("acme/m:1.0.0").expect("listed")["held_bytes"]);
    until("a part of it is here", || (held() > 1 << 20).then_some(()));
    // Whoever has it hangs, and is known to have it still.
    alpha.pause();
    let mut before = 0;
    until("nothing comes any more", || (held() == std::mem::replace(&mut before, held())).then_some(()));
    std::thread::sleep(std::time::Duration::from_millis(2500));
    for _ in 0..2 {
        assert_eq!(names(&beta.ok(&["gc"])["gone"]), [""; 0], "a loader waits for it");
    }
    assert!(held() > 1 << 20);
    drop(loader);
    let gone = until("it is let go of", || {
        let gone = beta.ok(&["gc"])["gone"].clone();
        (gone != serde_json::json!([])).then_some(gone)
    });
    assert_eq!(
        (&gone[0]["kind"], &gone[0]["name"]),
        (&"partial fetch".into(), &"acme/m:1.0.0".into()),
        "{gone}"
    );
    assert_eq!(held(), 0);
    assert!(leftovers(&beta.data_dir).is_empty(), "{:?}", leftovers(&beta.data_dir));
    alpha.resume();
    beta.ok(&["pull", "acme/m:1.0.0"]);
}

/// The directories of a store in which nothing half-made may lie.
fn leftovers(data: &Path) -> Vec<PathBuf> {
    let below = |name: &str| weighlock_tests::host::files_below(&data.join(name));
    [below("staging"), below("partial")].concat()
}

#[test]
fn a_full_disk_is_told_in_a_line_and_work_goes_on_when_it_has_room() {
    let lab = Lab::new();
    let Some(disk) = SmallDisk::new(&lab.path("disk"), 64 << 20) else { return };
    let config = "[limits]\nfree_bytes_min = 1048576\n[store]\nmetadata_reserve_bytes = 8388608\n";
    let alpha = lab.founder("alpha");
    alpha.add(&model(&lab, "big", 1, 8192), "acme/big:1.0.0");
    alpha.add(&model(&lab, "small", 2, 200), "acme/small:1.0.0");
    let mut beta = lab.joined("beta", &alpha);
    beta.term();
    fs::rename(&beta.data_dir, disk.path("data"))
        .or_else(|_| copy_dir(&beta.data_dir, &disk.path("data")))
        .expect("moved");
    beta.data_dir = disk.path("data");
    beta.configure(config);
    beta.start();
    beta.hears_of("acme/big:1.0.0");
    beta.hears_of("acme/small:1.0.0");
    beta.ok(&["pull", "acme/small:1.0.0", "--to", &text(&lab.path("out"))]);
    assert_eq!(number(&beta.ok(&["df"])["reserve_bytes"]), 8 << 20);
    // Another host has it, so that it would go.
    beta.ok(&["pin", "acme/small:1.0.0"]);

    disk.fill(0);
    let own = model(&lab, "own", 3, 4096);
    let shot = |arguments: &[&str]| {
        let ran = beta.run(arguments);
        assert_eq!(ran.complaints(6), [""; 0], "{arguments:?}");
        assert!(ran.stderr.contains("space") || ran.stderr.contains("disk"), "{}", ran.stderr);
    };
    shot(&["add", &text(&own), "acme/own:1.0.0"]);
    shot(&["pull", "acme/big:1.0.0", "--to", &text(&lab.path("out-big"))]);
    shot(&["path", "acme/small:1.0.0"]);
    assert!(leftovers(&beta.data_dir).is_empty(), "{:?}", leftovers(&beta.data_dir));
    // What others say is written down from the reserve, and what is here opens.
    alpha.add(&model(&lab, "later", 4, 50), "acme/later:1.0.0");
    beta.hears_of("acme/later:1.0.0");
    beta.loader().open("acme/small:1.0.0").expect("it opens on a full disk");
    assert_eq!(number(&beta.ok(&["df"])["reserve_bytes"]), 0, "it is in use");
    disk.fill(0);
    until("the store says that it is too full", || {
        beta.ok(&["status"])["alarms"].to_string().contains("too full").then_some(())
    });

    disk.empty();
    until("the reserve is there again", || {
        beta.ok(&["gc"]);
        (number(&beta.ok(&["df"])["reserve_bytes"]) == 8 << 20).then_some(())
    });
    beta.ok(&["pull", "acme/big:1.0.0", "--to", &text(&lab.path("out-big"))]);
    beta.ok(&["pin", "acme/big:1.0.0"]);
    beta.add(&own, "acme/own:1.0.0");
    assert!(complete(&beta, "acme/own:1.0.0") && complete(&beta, "acme/big:1.0.0"));
    // A restart on a full disk works, too.
    disk.fill(0);
    beta.term();
    beta.start();
    assert!(complete(&beta, "acme/own:1.0.0"), "what was acknowledged is there");
    let opened = beta.loader().open("acme/big:1.0.0").expect("it opens");
    for (path, file) in opened.files {
        assert_eq!(checkpoint::sha256(file), checkpoint::digests(&lab.path("big"))[&path], "{path}");
    }
}

fn copy_dir(from: &Path, to: &Path) -> std::io::Result<()> {
    let done = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status()?;
    if done.success() { fs::remove_dir_all(from) } else { Err(std::io::Error::other("cp failed")) }
}
