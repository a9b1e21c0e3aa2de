//! The way back: dropping copies, stopping with loaders connected, shutting a member out.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::Value;
use weighlock_tests::host::{number, string};
use weighlock_tests::{Lab, checkpoint, until};

const MODEL: &str = "acme/model:1.0.0";

#[test]
fn rm_refuses_what_is_open_and_the_last_copy() {
    let lab = Lab::new();
    let source = lab.path("source");
    checkpoint::hugging_face(&source, 3, 2);
    let alpha = lab.founder("alpha");
    let digest = string(&alpha.add(&source, MODEL)["digest"]);

    // The last copy.
    let before = alpha.contents();
    let last = alpha.run(&["rm", MODEL]);
    assert_eq!(last.complaints(5), [""; 0]);
    assert!(last.stderr.contains("last known copy"), "{}", last.stderr);
    assert_eq!(alpha.contents(), before);

    // Open, although another host has it.
    let beta = lab.joined("beta", &alpha);
    beta.hears_of(MODEL);
    beta.loader().open(MODEL).expect("opened");
    until("alpha knows of beta's copy", || alpha.listed(MODEL).filter(|row| row["copies_elsewhere"] == 1));
    let mut loader = alpha.loader();
    let opened = loader.open(MODEL).expect("opened");
    let before = alpha.contents();
    let open = alpha.run(&["rm", MODEL]);
    assert_eq!(open.complaints(5), [""; 0]);
    assert!(open.stderr.contains("open"), "{}", open.stderr);
    assert_eq!(alpha.contents(), before);

    // Given back: it goes, since beta has it, and comes again when it is opened.
    loader.close(&digest);
    let removed = alpha.ok(&["rm", MODEL]);
    assert!(number(&removed["freed_bytes"]) > 0, "{removed}");
    let row = alpha.listed(MODEL).expect("the name stays");
    assert_eq!((&row["complete"], &row["held_bytes"]), (&false.into(), &0.into()), "{row}");
    assert_eq!(alpha.ok(&["status"])["layers"], 0);
    let gone = alpha.run(&["rm", MODEL]);
    assert_eq!(gone.code, Some(4), "{}", gone.stderr);
    let back = alpha.loader().open(MODEL).expect("fetched from beta");
    assert!(!back.progress.is_empty() || !back.files.is_empty());
    // What was mapped before the removal is whole still.
    for (path, file) in opened.files {
        assert_eq!(checkpoint::sha256(file), checkpoint::digests(&source)[&path], "{path}");
    }

    // By force, even the last one while it is open.
    let mut loader = beta.loader();
    let held = loader.open(MODEL).expect("opened");
    beta.ok(&["rm", MODEL, "--force"]);
    alpha.ok(&["rm", MODEL, "--force"]);
    assert_eq!(beta.ok(&["status"])["layers"], 0);
    for (path, file) in held.files {
        assert_eq!(checkpoint::sha256(file), checkpoint::digests(&source)[&path], "{path}");
    }
    // The same can be added again under its name.
    let again = alpha.add(&source, MODEL);
    assert_eq!((string(&again["digest"]), &again["new"]), (digest, &Value::from(false)));
    assert_eq!((&again["again"], &again["new_bytes"]), (&true.into(), &again["total_bytes"]), "{again}");
    let there = alpha.add(&source, MODEL);
    assert_eq!((&there["again"], &there["new_bytes"]), (&false.into(), &0.into()), "{there}");
    // Another name of the same goes with it, and is told.
    alpha.add(&source, "acme/twin:1.0.0");
    assert_eq!(alpha.ok(&["rm", MODEL, "--force"])["also"], serde_json::json!(["acme/twin:1.0.0"]));
    alpha.add(&source, MODEL);
    assert_eq!(alpha.listed(MODEL).expect("listed")["complete"], true);
}

#[test]
fn rm_refuses_what_is_left_of_the_last_copy() {
    let lab = Lab::new();
    let source = lab.path("source");
    checkpoint::hugging_face(&source, 3, 2);
    let alpha = lab.founder("alpha");
    alpha.add(&source, MODEL);
    let inspected = alpha.ok(&["inspect", MODEL]);
    let files = inspected["files"].as_array().expect("files");
    let hex = files.iter().map(|file| string(&file["blake3"])).next_back().expect("a file");
    let layer = alpha.data_dir.join("layers").join(&hex[..2]).join(&hex);
    let mut bytes = fs::read(&layer).expect("read");
    bytes[100] ^= 1;
    fs::set_permissions(&layer, fs::Permissions::from_mode(0o640)).expect("opened");
    fs::write(&layer, bytes).expect("rotten");
    alpha.run(&["scrub", MODEL]);
    assert_eq!(alpha.listed(MODEL).expect("listed")["complete"], false);

    let last = until("healing is given up", || {
        let refused = alpha.run(&["rm", MODEL]);
        (!refused.stderr.contains("is being fetched")).then_some(refused)
    });
    assert_eq!(last.complaints(5), [""; 0]);
    assert!(last.stderr.contains("what is left of the last known copy"), "{}", last.stderr);
    assert!(number(&alpha.listed(MODEL).expect("listed")["held_bytes"]) > 0);
    alpha.ok(&["rm", MODEL, "--force"]);
}

#[test]
fn files_that_two_artifacts_share_outlive_one_of_them() {
    let lab = Lab::new();
    let (one, two) = (lab.path("one"), lab.path("two"));
    checkpoint::hugging_face(&one, 3, 2);
    checkpoint::hugging_face(&two, 3, 2);
    fs::write(two.join("README.md"), "# another\n").expect("written");
    let alpha = lab.founder("alpha");
    alpha.add(&one, MODEL);
    alpha.add(&two, "acme/model:2.0.0");
    alpha.ok(&["rm", MODEL, "--force"]);
    let opened = alpha.loader().open("acme/model:2.0.0").expect("opened");
    for (path, file) in opened.files {
        assert_eq!(checkpoint::sha256(file), checkpoint::digests(&two)[&path], "{path}");
    }
}

#[test]
fn sigterm_ends_a_daemon_that_loaders_are_connected_to() {
    let lab = Lab::new();
    let source = lab.path("source");
    checkpoint::hugging_face(&source, 3, 2);
    let mut alpha = lab.founder("alpha");
    alpha.add(&source, MODEL);
    let mut holding = alpha.loader();
    let opened = holding.open(MODEL).expect("opened");
    let _idle = alpha.loader();
    let (admin, loader) = (alpha.admin_socket(), alpha.loader_socket());
    let ended = alpha.term();
    assert_eq!(ended.code(), Some(0), "{ended}\n{}", alpha.log());
    assert!(!admin.exists() && !loader.exists(), "its sockets are gone");
    assert!(holding.recv().is_err(), "the loader hears of it");
    for (path, file) in opened.files {
        assert_eq!(checkpoint::sha256(file), checkpoint::digests(&source)[&path], "{path}");
    }
}

#[test]
fn a_host_revokes_itself_only_by_force_and_then_says_so() {
    let lab = Lab::new();
    let alpha = lab.founder("alpha");
    let before = alpha.ok(&["status"]);
    assert!(before["revoked"].is_null() && before["member"] == true, "{before}");
    let refused = alpha.run(&["member", "revoke", "alpha"]);
    assert_eq!(refused.complaints(5), [""; 0]);
    assert!(refused.stderr.contains("--force"), "{}", refused.stderr);
    assert_eq!(alpha.ok(&["status"])["member"], true);

    alpha.ok(&["member", "revoke", "alpha", "--force", "--reason", "retired"]);
    let after = alpha.ok(&["status"]);
    assert!(string(&after["revoked"]).contains("retired") && after["member"] == false, "{after}");
    alpha.ok(&["member", "admit", &alpha.key(), "--name", "alpha"]);
    let again = alpha.ok(&["status"]);
    assert!(again["revoked"].is_null() && again["member"] == true, "{again}");
}

#[test]
fn status_waits_for_the_daemon_and_its_peers() {
    let lab = Lab::new();
    let mut alpha = lab.host("alpha");
    // Without a daemon, in time.
    let nobody = alpha.run(&["status", "--wait", "0"]);
    assert_eq!(nobody.complaints(6), [""; 0]);
    let mut waiting = alpha.command();
    waiting.args(["--json", "status", "--wait", "60"]);
    let waiting = waiting.stdout(std::process::Stdio::piped()).spawn().expect("the program runs");
    alpha.start();
    let said = waiting.wait_with_output().expect("it ends");
    assert_eq!(said.status.code(), Some(0));
    let said: Value = serde_json::from_slice(&said.stdout).expect("JSON");
    assert_eq!(string(&said["host"]), alpha.key());

    // Nobody is connected.
    let alone = alpha.run(&["status", "--wait", "0", "--peers", "1"]);
    assert_eq!(alone.complaints(6), [""; 0]);
    assert!(alone.stderr.contains("0 of 1 host"), "{}", alone.stderr);
    let _beta = lab.joined("beta", &alpha);
    assert_eq!(alpha.ok(&["status", "--wait", "--peers", "1"])["peers"], 1);
    assert_eq!(alpha.run(&["status", "--peers", "1"]).code, Some(2), "nothing is waited for");
}

#[test]
fn a_revoked_member_is_cut_off_and_gets_nothing_more() {
    let lab = Lab::new();
    let alpha = lab.founder("alpha");
    let beta = lab.joined("beta", &alpha);
    let (first, second) = (lab.path("first"), lab.path("second"));
    checkpoint::hugging_face(&first, 4, 2);
    checkpoint::hugging_face(&second, 5, 2);
    alpha.add(&first, MODEL);
    alpha.add(&second, "acme/model:2.0.0");
    beta.hears_of(MODEL);
    beta.hears_of("acme/model:2.0.0");
    // A data connection is open.
    beta.loader().open(MODEL).expect("opened while a member");
    until("alpha has a data connection to beta", || {
        alpha.peer(&beta).filter(|row| number(&row["data_connections"]) > 0)
    });

    alpha.ok(&["member", "revoke", "beta", "--reason", "test"]);
    let gone = |host: &weighlock_tests::Host| number(&host.ok(&["status"])["peers"]) == 0;
    until("alpha lets beta go", || gone(&alpha).then_some(()));
    until("beta is cut off", || gone(&beta).then_some(()));
    assert!(alpha.peer(&beta).is_none(), "it is no member any more");
    let metric = |host: &weighlock_tests::Host, name: &str| weighlock_tests::http::metrics(host.http())[name];
    until("both data connections are closed", || {
        let open = metric(&alpha, "weighlock_data_connections") + metric(&beta, "weighlock_data_connections");
        (open == 0.0).then_some(())
    });

    // What it knows by name it cannot have.
    let before = metric(&beta, "weighlock_fetched_bytes_total");
    let error = beta.loader().open("acme/model:2.0.0").expect_err("nobody gives it anything");
    assert!(error["code"] == "unavailable" || error["code"] == "refused", "{error}");
    assert_eq!(metric(&beta, "weighlock_fetched_bytes_total"), before, "not one byte");
    // What is published after it was revoked it does not hear of.
    let third = lab.path("third");
    checkpoint::hugging_face(&third, 6, 1);
    alpha.add(&third, "acme/secret:1.0.0");
    assert!(alpha.listed("acme/secret:1.0.0").is_some());
    assert!(beta.listed("acme/secret:1.0.0").is_none());
    // What it has it keeps.
    beta.loader().open(MODEL).expect("its own copy");
}

#[test]
fn a_host_whose_ticket_came_to_nothing_joins_with_another() {
    let lab = Lab::new();
    let mut alpha = lab.founder("alpha");
    let first = alpha.ok(&["invite"]);
    alpha.term();
    let mut beta = lab.host("beta");
    let join = |beta: &weighlock_tests::Host, ticket: &Value| {
        let path = lab.path("ticket");
        fs::write(&path, string(ticket)).expect("written");
        beta.run(&["join", "--name", "beta", "--file", &weighlock_tests::host::text(&path)])
    };
    let joined = join(&beta, &first["ticket"]);
    assert_eq!(joined.last()["pending"], true, "{}", joined.stdout);
    alpha.start();
    alpha.ok(&["revoke", &string(&first["invite"]), "--reason", "too late"]);
    assert_eq!(join(&beta, &first["ticket"]).code, Some(5), "refused for good");
    // While it waits in vain it says so, rather than that all is well.
    beta.start();
    let second = alpha.ok(&["invite"]);
    let told = join(&beta, &second["ticket"]);
    assert_eq!(told.code, Some(5), "{}", told.stdout);
    assert!(told.stderr.contains("stop its daemon"), "{}", told.stderr);
    beta.term();
    let joined = join(&beta, &second["ticket"]);
    assert_eq!(joined.last()["pending"], false, "{} {}", joined.stdout, joined.stderr);
    beta.start();
    until("beta is a member", || (beta.ok(&["status"])["member"] == true).then_some(()));
}
