//! Seeing the cluster at work: who holds an artifact, what moves, what neighbours share, and what is not there.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::{Value, json};
use weighlock_tests::host::{number, string, text};
use weighlock_tests::{Host, Lab, checkpoint, until};

const MODEL: &str = "acme/big:1.0.0";
const MIB: u64 = 1 << 20;
const BYTES: u64 = 24 * MIB;

/// The holders that `weighlock where` names on `host`; none where it is refused.
fn holders(host: &Host, reference: &str) -> Vec<Value> {
    let ran = host.run(&["where", reference]);
    if ran.code != Some(0) {
        return Vec::new();
    }
    ran.last()["holders"].as_array().expect("a list").clone()
}

fn named<'a>(all: &'a [Value], name: &str) -> Option<&'a Value> {
    all.iter().find(|row| row["name"] == name)
}

/// The line of an artifact and of a peer in `weighlock top`.
fn moving(host: &Host, digest: &str, peer: &Host) -> Option<(Value, Value)> {
    let top = host.ok(&["top", "--once"]);
    let find = |list: &Value, key: &str, value: &str| {
        list.as_array().expect("a list").iter().find(|row| row[key] == value).cloned()
    };
    Some((find(&top["artifacts"], "digest", digest)?, find(&top["peers"], "host", &peer.key())?))
}

#[test]
fn a_fetch_is_seen_from_both_ends_and_afterwards_both_hold_it() {
    let lab = Lab::new();
    let source = lab.path("source");
    checkpoint::single(&source.join("model.safetensors"), 5, BYTES);
    let mut alpha = lab.host("alpha");
    alpha.configure("[labels]\nzone = \"z1\"\nrack = \"r7\"\n");
    alpha.start();
    let digest = string(&alpha.add(&source, MODEL)["digest"]);
    let mut beta = lab.joined("beta", &alpha);
    // Slow enough to be looked at: a dozen seconds.
    beta.configure("[limits]\ndownload_bytes_per_s = 2097152\n");
    assert!(beta.term().success());
    beta.start();
    beta.hears_of(MODEL);

    // Before: alpha alone, as its record says.
    let before = until("beta hears that alpha holds it", || {
        Some(holders(&beta, MODEL)).filter(|all| all.iter().any(|row| row["complete"] == true))
    });
    assert_eq!(before.len(), 1, "{before:?}");
    let row = &before[0];
    assert_eq!(
        (&row["name"], &row["complete"], &row["this_host"]),
        (&json!("alpha"), &json!(true), &json!(false))
    );
    assert_eq!((&row["labels"]["rack"], &row["labels"]["zone"]), (&json!("r7"), &json!("z1")), "{row}");
    assert_eq!(row["data"][0], alpha.data().to_string(), "{row}");
    assert_eq!(string(&row["host"]), alpha.key());

    // In the middle of it.
    let mut loader = beta.loader();
    loader.open_partial(MODEL).expect("opened");
    let (artifact, peer) = until("beta is in the middle of it", || {
        moving(&beta, &digest, &alpha).filter(|(artifact, _)| number(&artifact["held_pieces"]) > 0)
    });
    assert_eq!((&artifact["phase"], &artifact["names"]), (&json!("fetch"), &json!([MODEL])), "{artifact}");
    let (done, total) = (number(&artifact["done_bytes"]), number(&artifact["total_bytes"]));
    assert!(0 < done && done < total && total >= BYTES, "{artifact}");
    assert!(number(&artifact["held_pieces"]) < number(&artifact["pieces"]), "{artifact}");
    assert_eq!((number(&artifact["sources"]), number(&artifact["links"])), (1, 1), "{artifact}");
    assert_eq!(number(&artifact["loaders"]), 1, "{artifact}");
    assert_eq!(
        (&peer["shared"], &peer["near"]),
        (&json!([digest]), &json!(true)),
        "beta has no rack: {peer}"
    );
    assert!(number(&peer["fetched_bytes"]) > 0 && peer["banned_s"].is_null(), "{peer}");
    let (fast, _) = until("it tells how fast, and how long it will take", || {
        moving(&beta, &digest, &alpha).filter(|(artifact, _)| artifact["left_s"].is_u64())
    });
    assert!(number(&fast["rate_bytes_per_s"]) > 0, "{fast}");
    let shared = beta.peer(&alpha).expect("a peer");
    assert_eq!(shared["shared"], json!([digest]), "{shared}");
    let serving = until("alpha gives it", || {
        moving(&alpha, &digest, &beta).filter(|(_, peer)| number(&peer["sent_bytes"]) > 0)
    });
    assert_eq!((&serving.0["phase"], &serving.0["links"]), (&json!("serve"), &json!(1)), "{}", serving.0);

    let all = holders(&beta, MODEL);
    let (there, here) = (named(&all, "alpha").expect("alpha"), named(&all, "beta").expect("beta"));
    assert_eq!((&there["complete"], &there["connected"]), (&json!(true), &json!(true)), "{there}");
    assert_eq!((&here["complete"], &here["this_host"]), (&json!(false), &json!(true)), "{here}");
    let percent = here["held_percent"].as_f64().expect("a number");
    assert!(0.0 < percent && percent < 100.0, "{here}");
    assert!((1..BYTES).contains(&number(&here["held_bytes"])), "{here}");
    assert_eq!(number(&beta.ok(&["where", MODEL])["loaders_here"]), 1);
    // Its neighbour knows how far it is.
    let told = until("alpha sees beta's part", || named(&holders(&alpha, MODEL), "beta").cloned());
    assert!(told["held_percent"].as_f64().is_some_and(|percent| percent > 0.0), "{told}");

    // Afterwards, on both.
    beta.ok(&["pull", MODEL]);
    for host in [&alpha, &beta] {
        let all = until(&format!("{} sees both holders", host.name), || {
            let all = holders(host, MODEL);
            (all.len() == 2 && all.iter().all(|row| row["complete"] == true)).then_some(all)
        });
        let mut names: Vec<String> = all.iter().map(|row| string(&row["name"])).collect();
        names.sort();
        assert_eq!(names, ["alpha", "beta"]);
        assert!(all.iter().all(|row| row["held_percent"] == 100.0), "{all:?}");
    }

    // For people; without a terminal it is one snapshot that a file can keep.
    for arguments in [&["top"][..], &["top", "--once"], &["where", MODEL], &["peers"]] {
        let ran = beta.command().args(arguments).output().expect("the program runs");
        let told = String::from_utf8(ran.stdout).expect("UTF-8");
        assert!(ran.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&ran.stderr));
        assert!(told.contains("alpha"), "{arguments:?}: {told}");
        assert!(!told.contains(|c: char| c.is_control() && c != '\n'), "{arguments:?}: {told:?}");
    }

    // For scripts: lines, as long as somebody reads.
    let mut command = beta.command();
    let mut top = command.args(["--json", "top"]).stdout(Stdio::piped()).spawn().expect("the program runs");
    let mut lines = BufReader::new(top.stdout.take().expect("a pipe")).lines();
    let mut line = || -> Value {
        let line = lines.next().expect("a line").expect("it can be read");
        serde_json::from_str(&line).expect("JSON")
    };
    let (first, second) = (line(), line());
    assert_eq!((&first["schema_version"], &first["fetched_bytes_per_s"]), (&json!(1), &Value::Null));
    assert_eq!(number(&second["fetched_bytes_per_s"]), 0, "it is over: {second}");
    assert!(number(&second["at_ms"]) > number(&first["at_ms"]));
    drop(lines);
    let ended = until("it ends when nobody reads", || top.try_wait().expect("it can be waited for"));
    assert!(ended.success(), "{ended}");
}

#[test]
fn what_nobody_holds_is_not_found() {
    let lab = Lab::new();
    let source = lab.path("source");
    checkpoint::single(&source.join("model.safetensors"), 6, MIB);
    let alpha = lab.founder("alpha");
    alpha.add(&source, MODEL);
    let beta = lab.joined("beta", &alpha);
    beta.hears_of(MODEL);

    for reference in ["acme/nothing:1.0.0", "acme/big:2.0.0"] {
        let ran = beta.run(&["where", reference]);
        assert_eq!(ran.complaints(4), [""; 0], "{reference}");
        assert_eq!(ran.last()["error"]["code"], "not_found", "{reference}");
    }
    for reference in ["", "acme", "acme/big:latest", &text(&source)] {
        assert_eq!(beta.run(&["where", reference]).complaints(2), [""; 0], "{reference:?}");
    }

    // It is known by name, and the last copy goes.
    alpha.ok(&["rm", MODEL, "--force"]);
    assert_eq!(alpha.run(&["where", MODEL]).complaints(4), [""; 0]);
    let gone = until("beta hears that nobody holds it", || {
        Some(beta.run(&["where", MODEL])).filter(|ran| ran.code != Some(0))
    });
    assert_eq!(gone.complaints(4), [""; 0]);
    assert_eq!(gone.last()["error"]["code"], "not_found");

    // And without a daemon there is nobody to ask.
    let nobody = lab.host("nobody");
    for arguments in [&["where", MODEL][..], &["top"], &["top", "--once"]] {
        assert_eq!(nobody.run(arguments).complaints(6), [""; 0], "{arguments:?}");
    }
}
