//! Draining a host before it is restarted or taken away: what is under way ends, nothing new begins, others go elsewhere.

use std::time::Duration;

use weighlock_tests::host::{number, string, text};
use weighlock_tests::{Host, Lab, checkpoint, http, until};

const BIG: &str = "acme/big:1.0.0";
const SMALL: &str = "acme/small:1.0.0";
const LATER: &str = "acme/later:1.0.0";
const MIB: u64 = 1 << 20;

fn sent(host: &Host) -> u64 {
    http::metrics(host.http())["weighlock_sent_bytes_total"] as u64
}

/// Names of the hosts that hold all of something, as a host knows.
fn holders(host: &Host, reference: &str) -> Vec<String> {
    let ran = host.run(&["where", reference]);
    if ran.code != Some(0) {
        return Vec::new();
    }
    let rows = ran.last()["holders"].as_array().expect("holders").clone();
    let mut names: Vec<String> =
        rows.iter().filter(|row| row["complete"] == true).map(|row| string(&row["name"])).collect();
    names.sort();
    names
}

fn held(host: &Host, reference: &str) -> u64 {
    host.listed(reference).map_or(0, |row| number(&row["held_bytes"]))
}

#[test]
fn a_drained_host_ends_what_is_under_way_and_others_go_on_without_it() {
    let lab = Lab::new();
    let (big, small) = (lab.path("big"), lab.path("small"));
    checkpoint::single(&big.join("model.safetensors"), 1, 48 * MIB);
    checkpoint::hugging_face(&small, 2, 1);
    let slow = "[limits]\nupload_bytes_per_s = 4000000\n";
    let mut alpha = lab.host("alpha");
    alpha.configure(slow);
    alpha.start();
    alpha.add(&big, BIG);
    alpha.add(&small, SMALL);
    let mut gamma = lab.host("gamma");
    gamma.configure(slow);
    std::fs::write(lab.path("t"), alpha.ticket(&[])).expect("written");
    gamma.ok(&["join", "--file", &text(&lab.path("t")), "--name", "gamma"]);
    gamma.start();
    gamma.add(&big, BIG);
    let beta = lab.joined("beta", &alpha);
    until("beta knows both", || (holders(&beta, BIG) == ["alpha", "gamma"]).then_some(()));

    // Beta takes it from both.
    let mut pull = beta.command().args(["pull", BIG]).spawn().expect("the program runs");
    let (from_alpha, from_gamma) = (sent(&alpha), sent(&gamma));
    until("both give", || (sent(&alpha) > from_alpha + MIB && sent(&gamma) > from_gamma + MIB).then_some(()));
    let drained = alpha.ok(&["drain", "--wait", "--timeout", "30"]);
    assert_eq!((&drained["draining"], number(&drained["sending"])), (&true.into(), 0), "{drained}");
    let given = sent(&alpha);
    assert!(held(&beta, BIG) < 40 * MIB, "it was over before anything could be seen");
    until("others know that it leaves", || (holders(&gamma, BIG) == ["gamma"]).then_some(()));
    assert!(pull.wait().expect("it ends").success(), "beta goes on with gamma:\n{}", beta.log());
    assert_eq!(sent(&alpha), given, "nothing more was sent after it was drained");

    // Loaders open what is here; what is not here is not fetched.
    alpha.loader().open(SMALL).expect("it is here");
    let later = lab.path("later");
    checkpoint::hugging_face(&later, 3, 1);
    gamma.add(&later, LATER);
    alpha.hears_of(LATER);
    let ran = alpha.run(&["pull", LATER]);
    assert_eq!(ran.complaints(6), [""; 0]);
    assert!(ran.stderr.contains("drained") && ran.stderr.contains("drain --undo"), "{}", ran.stderr);
    assert_eq!(alpha.ok(&["status"])["draining"], true);
    assert_eq!(http::metrics(alpha.http())["weighlock_draining"], 1.0);
    assert_eq!(http::get(alpha.http(), "localhost", "/healthz"), (200, "draining\n".into()));

    // Back again, by command and by a restart.
    assert_eq!(alpha.ok(&["drain", "--undo"])["draining"], false);
    alpha.ok(&["pull", LATER]);
    until("others count on it again", || (holders(&gamma, BIG) == ["alpha", "beta", "gamma"]).then_some(()));
    alpha.ok(&["drain"]);
    assert!(alpha.term().success());
    alpha.start();
    assert_eq!(alpha.ok(&["status"])["draining"], false);
    until("it gives again", || (holders(&gamma, BIG).len() == 3).then_some(()));
}

#[test]
fn a_fetch_that_runs_is_waited_for_and_not_for_ever() {
    let lab = Lab::new();
    let source = lab.path("source");
    checkpoint::single(&source.join("model.safetensors"), 1, 24 * MIB);
    let alpha = lab.founder("alpha");
    alpha.add(&source, BIG);
    let mut beta = lab.joined("beta", &alpha);
    beta.term();
    beta.configure("[limits]\ndownload_bytes_per_s = 3000000\n");
    beta.start();
    beta.hears_of(BIG);
    let mut pull = beta.command().args(["pull", BIG]).spawn().expect("the program runs");
    until("it is on its way", || (held(&beta, BIG) > 0).then_some(()));
    let late = beta.run(&["drain", "--wait", "--timeout", "1"]);
    assert_eq!(late.complaints(6), [""; 0]);
    assert!(late.stderr.contains("1 artifact being fetched"), "{}", late.stderr);
    // It is drained all the same, and the fetch goes on to its end.
    let drained = beta.ok(&["drain", "--wait"]);
    assert_eq!(number(&drained["fetches"]), 0, "{drained}");
    assert!(pull.wait().expect("it ends").success());
    beta.loader().open(BIG).expect("all of it is here");
    std::thread::sleep(Duration::from_millis(300));
    assert!(!holders(&alpha, BIG).contains(&"beta".to_owned()), "what it has it gives to nobody");
}
