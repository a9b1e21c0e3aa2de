//! The audit log from outside: who had what open, through a kill, from another host, and proven by an export.

use std::fs;

use serde_json::{Value, json};
use weighlock_protocol::UnixTime;
use weighlock_tests::host::{number, string, text};
use weighlock_tests::{Host, Lab, checkpoint, http, until};

const MODEL: &str = "acme/model:1.0.0";

/// A running host with a small checkpoint.
fn with_model(lab: &Lab) -> Host {
    checkpoint::hugging_face(&lab.path("source"), 7, 1);
    let alpha = lab.founder("alpha");
    alpha.add(&lab.path("source"), MODEL);
    alpha
}

/// The events of one kind that `weighlock audit` tells, oldest first.
fn events(host: &Host, kind: &str, arguments: &[&str]) -> Vec<Value> {
    let page = host.ok(&[&["audit", "--limit", "1000"], arguments].concat());
    let all = page["events"].as_array().expect("a list");
    all.iter().filter(|event| event["event"] == kind).cloned().collect()
}

/// A time as `--at` takes it.
fn moment(ms: u64) -> String {
    UnixTime(ms / 1000).to_string().replace('Z', &format!(".{:03}Z", ms % 1000))
}

/// What was open at a time.
fn open_at(host: &Host, ms: u64, arguments: &[&str]) -> Vec<Value> {
    let page = host.ok(&[&["audit", "--at", &moment(ms)], arguments].concat());
    page["open"].as_array().expect("a list").clone()
}

#[test]
fn a_killed_daemon_tells_afterwards_what_was_open() {
    let lab = Lab::new();
    let mut alpha = with_model(&lab);
    let mut long = alpha.loader();
    long.send(&json!({"op": "hello", "client": "server 7 vllm 0.6.3"}));
    long.answer("hello").expect("a hello");
    let digest = string(&long.open(MODEL).expect("opened").event["digest"]);
    let mut short = alpha.loader();
    short.open(MODEL).expect("opened");
    short.close(&digest);
    alpha.loader().open("acme/model:2.0.0").expect_err("there is none");
    // Every answer above came after its line: a kill at any moment from here on loses none of them.
    alpha.kill9();
    drop(long);
    alpha.start();

    let opens = events(&alpha, "open", &[MODEL]);
    assert_eq!(opens.len(), 2, "{opens:?}");
    let first = &opens[0];
    assert_eq!((&first["digest"], &first["reference"]), (&json!(digest), &json!(MODEL)));
    assert_eq!((&first["door"], &first["grounds"]), (&json!("loader"), &json!("ungated")));
    assert_eq!(
        (&first["runtime"], &first["pid"]),
        (&json!("server 7 vllm 0.6.3"), &json!(std::process::id()))
    );
    assert_eq!(first["uid"], rustix::process::geteuid().as_raw());
    let closes = events(&alpha, "close", &[]);
    let reasons: Vec<&str> = closes.iter().filter_map(|close| close["reason"].as_str()).collect();
    assert_eq!(reasons, ["closed", "daemon stopped"]);
    let refused = events(&alpha, "refused", &[]);
    assert!(
        string(&refused[0]["reason"]).contains("nothing is published as acme/model:2.0.0"),
        "{refused:?}"
    );
    assert!(events(&alpha, "refused", &[MODEL]).is_empty());

    // Between the first open and its end: that one, until the daemon's last line.
    let opened = number(&first["time_ms"]);
    let held = open_at(&alpha, opened, &[]);
    let row = held.iter().find(|row| row["session"] == first["session"]).expect("it was open");
    assert_eq!((&row["closed"], &row["opened_ms"]), (&json!("daemon stopped"), &first["time_ms"]));
    assert_eq!(row["closed_ms"], closes[1]["time_ms"]);
    assert!(open_at(&alpha, opened - 1, &[]).is_empty());
    assert!(open_at(&alpha, number(&closes[1]["time_ms"]) + 1, &[]).is_empty());
    // The whole day, by another name of the same thing.
    let by_digest = format!("acme/model@{digest}");
    let day = &moment(opened)[..10];
    let page = alpha.ok(&["audit", "--at", day, &by_digest]);
    assert_eq!(page["open"].as_array().map(Vec::len), Some(2), "{page}");
    // And now: the daemon that runs has nothing open but this.
    let _again = alpha.loader().open(MODEL).expect("opened");
    assert!(http::metrics(alpha.http())["weighlock_audit_lines_total"] >= 2.0);
}

#[test]
fn copies_and_directories_are_noted_and_members_may_ask() {
    let lab = Lab::new();
    let alpha = with_model(&lab);
    let beta = lab.joined("beta", &alpha);
    alpha.ok(&["pull", MODEL, "--to", &text(&lab.path("copy"))]);
    alpha.ok(&["path", MODEL]);
    let mut loader = alpha.loader();
    loader.open(MODEL).expect("opened");

    let asked = ["--host", "alpha"];
    let doors: Vec<String> =
        events(&beta, "taken", &asked).iter().map(|event| string(&event["door"])).collect();
    assert_eq!(doors, ["pull", "path"]);
    let page = beta.ok(&["audit", "--host", &alpha.key(), "--at", "now"]);
    assert_eq!((&page["name"], &page["host"]), (&json!("alpha"), &json!(alpha.key())));
    assert_eq!(page["open"][0]["reference"], MODEL, "{page}");
    assert_eq!(page["open"][0]["closed_ms"], Value::Null);
    assert_eq!(page["taken"].as_array().map(Vec::len), Some(2), "{page}");
    assert!(events(&beta, "open", &[]).is_empty(), "beta's own log is another one");

    // The log of another host, proven to be signed by it.
    let file = text(&lab.path("alpha.jsonl"));
    beta.ok(&["audit", "export", "--host", "alpha", "--to", &file]);
    let seen = beta.ok(&["audit", "verify", &file, "--host-key", &alpha.key()]);
    assert_eq!((&seen["host"], &seen["unsigned_events"]), (&json!(alpha.key()), &json!(0)));
    assert!(number(&seen["events"]) >= 3, "{seen}");
    let foreign = beta.run(&["audit", "verify", &file, "--host-key", &beta.key()]);
    assert!(foreign.complaints(7).is_empty(), "{:?}", foreign.complaints(7));

    for (arguments, code) in [
        (&["audit", "--host", "gamma"][..], 4),
        (&["audit", "--at", "yesterday"], 2),
        (&["audit", "not a reference"], 2),
        (&["audit", "export", "--to", &file], 5),
        (&["audit", "verify", "/nowhere"], 2),
    ] {
        let ran = beta.run(arguments);
        assert_eq!(ran.code, Some(code), "{arguments:?}: {}", ran.stderr);
    }
    // Who is not there cannot be asked, and is named.
    let mut alpha = alpha;
    alpha.kill9();
    until("beta sees that alpha is gone", || {
        beta.peer(&alpha).is_none_or(|row| row["connected"] == false).then_some(())
    });
    let gone = beta.run(&["audit", "--host", "alpha"]);
    assert!(gone.complaints(6).is_empty(), "{:?}", gone.complaints(6));
    assert!(gone.stderr.contains(&alpha.key()), "{}", gone.stderr);
}

#[test]
fn an_export_shows_what_was_done_to_it() {
    let lab = Lab::new();
    let alpha = with_model(&lab);
    for _ in 0..5 {
        alpha.loader().open(MODEL).expect("opened");
    }
    let file = lab.path("export.jsonl");
    alpha.ok(&["audit", "export", "--since", "1h ago", "--to", &text(&file)]);
    let whole = fs::read_to_string(&file).expect("read");
    let lines: Vec<&str> = whole.lines().collect();
    let verify = |lines: &[&str]| {
        fs::write(&file, lines.concat()).expect("written");
        alpha.run(&["audit", "verify", &text(&file), "--host-key", &alpha.key()])
    };
    let with_ends: Vec<String> = lines.iter().map(|line| format!("{line}\n")).collect();
    let with_ends: Vec<&str> = with_ends.iter().map(String::as_str).collect();
    assert_eq!(verify(&with_ends).code, Some(0));
    let changed = with_ends[3].replacen("1.0.0", "1.0.1", 1);
    let mut other = with_ends.clone();
    other[3] = &changed;
    let mut without = with_ends.clone();
    without.remove(4);
    let mut swapped = with_ends.clone();
    swapped.swap(4, 5);
    let cut = &with_ends[with_ends.len() - 1][..40];
    let mut torn = with_ends.clone();
    *torn.last_mut().expect("a line") = cut;
    for (lines, what) in [
        (other, "not as it was written"),
        (without, "lines are missing before line 5 (1 of them)"),
        (swapped, "lines are missing"),
        (torn, "ends in the middle of line"),
        (with_ends[..3].to_vec(), "is signed"),
    ] {
        let ran = verify(&lines);
        assert!(ran.complaints(7).is_empty(), "{:?}", ran.complaints(7));
        assert!(ran.stderr.contains(what), "{what}: {}", ran.stderr);
    }
}
