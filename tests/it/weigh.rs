//! Evidence, verdicts and the lock file across real daemons: what one host measures, another weighs.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use weighlock_tests::checkpoint::{self, Part};
use weighlock_tests::host::string;
use weighlock_tests::{Host, Lab, until};

const POLICY: &str = "[metric.eval_loss]\ndirection = \"lower\"\nmax = 3.0\nmax_regression = 0.02\n";

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn model(lab: &Lab, name: &str, seed: u64) -> PathBuf {
    let dir = lab.path(name);
    let part = Part { name: "w".into(), bytes: 4096, seed };
    checkpoint::tensors(&dir.join("model.safetensors"), "", &[part]);
    fs::write(dir.join("tokenizer.json"), "{\"model\":{\"vocab\":{}}}").expect("written");
    dir
}

/// A report over 60 documents, each worse than 2.0 by `shift` and a little of its own.
fn report(lab: &Lab, name: &str, shift: f64) -> PathBuf {
    let value = |n: u32| 2.0 + shift + f64::from(n % 7) / 1000.0;
    let samples: Vec<Value> = (0..60).map(|n| json!({"id": format!("d{n}"), "value": value(n)})).collect();
    let mean = (0..60).map(value).sum::<f64>() / 60.0;
    let path = lab.path(&format!("{name}.json"));
    let report = json!({"metrics": {"eval_loss": {"value": mean, "samples": samples}}});
    fs::write(&path, report.to_string()).expect("written");
    path
}

fn policy(lab: &Lab) -> String {
    let path = lab.path("gate.toml");
    fs::write(&path, POLICY).expect("written");
    text(&path)
}

/// Runs a command that must fail, and answers its error.
fn refused(host: &Host, arguments: &[&str], code: i32) -> String {
    let ran = host.run(arguments);
    assert_eq!(ran.code, Some(code), "{arguments:?}: {}\n{}", ran.stdout, ran.stderr);
    ran.stderr
}

#[test]
fn what_one_host_measures_another_weighs() {
    let lab = Lab::new();
    let alpha = lab.founder("alpha");
    let policy = policy(&lab);
    for (tag, seed, shift) in [("1.0.0", 1, 0.0), ("1.1.0", 2, -0.1), ("1.2.0", 3, 0.1)] {
        let reference = format!("acme/bot:{tag}");
        alpha.add(&model(&lab, tag, seed), &reference);
        let report = text(&report(&lab, tag, shift));
        let added =
            alpha.ok(&["evidence", "add", &reference, &report, "--suite", "suite-1", "--ran-on", "here"]);
        assert_eq!(added["with_samples"], 1, "{added}");
    }
    let beta = lab.joined("beta", &alpha);
    until("beta hears of the evidence", || {
        let weighed = beta.run(&["evidence", "acme/bot:1.2.0"]);
        weighed.stdout.contains("suite").then_some(())
    });
    // The reports and their samples come from alpha, since beta never had them.
    let gate = |tag: &str| {
        let candidate = format!("acme/bot:{tag}");
        beta.run(&["gate", &candidate, "--against", "acme/bot:1.0.0", "--policy", &policy])
    };
    let good = gate("1.1.0");
    assert_eq!(good.code, Some(0), "{}\n{}", good.stdout, good.stderr);
    // The whole of it: the reports were fetched on the way, and no progress stands before the verdict.
    let good: Value = serde_json::from_str(&good.stdout).expect("one JSON document");
    assert_eq!(good["metrics"][0]["comparison"]["method"], "paired", "{good}");
    assert_eq!(gate("1.2.0").code, Some(1));

    // A verdict is signed where the key is, and counts everywhere.
    let verdict = text(&lab.path("verdict.dsse"));
    let against = ["--against", "acme/bot:1.0.0", "--policy", &policy, "--out", &verdict];
    let failed = alpha.run(&[&["gate", "acme/bot:1.2.0"], &against[..]].concat());
    assert_eq!(failed.code, Some(1), "{}", failed.stderr);
    beta.ok(&["statement", "import", &verdict]);
    until("alpha hears of the verdict", || {
        let weighed = alpha.ok(&["evidence", "acme/bot:1.2.0"]);
        (weighed["verdicts"][0]["outcome"] == "fail").then_some(())
    });
    // A host that holds no role signs nothing that counts.
    let error = refused(&beta, &["evidence", "add", "acme/bot:1.0.0", &text(&lab.path("1.0.0.json"))], 5);
    assert!(error.contains("key"), "{error}");
    let key = lab.path("stranger.key");
    let stranger = lab.founder("stranger");
    drop(stranger);
    fs::copy(lab.path("stranger/data/keys/host.key"), &key).expect("a key");
    let error = refused(
        &beta,
        &["evidence", "add", "acme/bot:1.0.0", &text(&lab.path("1.0.0.json")), "--key", &text(&key)],
        5,
    );
    assert!(error.contains("may not evaluate"), "{error}");
}

#[test]
fn bad_reports_change_nothing() {
    let lab = Lab::new();
    let alpha = lab.founder("alpha");
    alpha.add(&model(&lab, "model", 1), "acme/bot:1.0.0");
    // The directory that an evaluator reads, which stays.
    alpha.ok(&["path", "acme/bot:1.0.0"]);
    let before = alpha.contents();
    let digest = "sha256:".to_owned() + &"ab".repeat(32);
    for (body, why) in [
        ("{".to_owned(), "report"),
        (r#"{"metrics": {"eval_loss": NaN}}"#.to_owned(), "eval_loss"),
        (r#"{"metrics": {"eval_loss": {"value": 2, "stderr": "N/A"}}}"#.to_owned(), "stderr"),
        (r#"{"metrics": {"eval_loss": {"value": 2, "n": 10, "n_total": 100}}}"#.to_owned(), "10 of 100"),
        (format!(r#"{{"artifact": "{digest}", "metrics": {{"eval_loss": 2}}}}"#), "is about"),
        (
            format!(r#"{{"chat_template_sha256": "{digest}", "metrics": {{"eval_loss": 2}}}}"#),
            "chat template",
        ),
        (
            r#"{"metrics": {"eval_loss": {"value": 9, "samples": [{"id": "a", "value": 1}]}}}"#.to_owned(),
            "samples",
        ),
        (r#"{"metrics": {"eval_loss": 2}, "colour": 1}"#.to_owned(), "colour"),
    ] {
        let path = lab.path("bad.json");
        fs::write(&path, &body).expect("written");
        let error = refused(&alpha, &["evidence", "add", "acme/bot:1.0.0", &text(&path)], 2);
        assert!(error.contains(why), "{body}: {error}");
        assert_eq!(error.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{error}");
    }
    for (run, why) in [
        ("false", "exit code 1"),
        ("true", "no report"),
        ("sh -c 'while :; do :; done'", "time"),
        ("sh -c 'echo hello; exit 3'", "hello"),
        ("no-such-program {path}", "no-such-program"),
        ("sh -c 'echo > {path}/model.safetensors'", "exit code"),
    ] {
        let error = refused(&alpha, &["eval", "acme/bot:1.0.0", "--timeout", "3", "--run", run], 2);
        assert!(error.contains(why), "{run}: {error}");
    }
    assert_eq!(alpha.contents(), before);
    let none = alpha.ok(&["evidence", "acme/bot:1.0.0"]);
    assert_eq!(none["evaluations"], json!([]));
}

#[test]
fn an_evaluator_is_run_and_signed_for() {
    let lab = Lab::new();
    let alpha = lab.founder("alpha");
    alpha.add(&model(&lab, "model", 1), "acme/bot:1.0.0");
    let script = r#"test -r {path}/model.safetensors && echo measured && echo '{"metrics":{"acc":0.5}}' > {out}/report.json"#;
    let run = format!("sh -c '{}'", script.replace('\'', r"'\''"));
    let signed = alpha.ok(&["eval", "acme/bot:1.0.0", "--suite", "s", "--run", &run]);
    assert_eq!(signed["metrics"], 1, "{signed}");
    let weighed = alpha.ok(&["evidence", "acme/bot:1.0.0"]);
    let said = &weighed["evaluations"][0];
    assert!(string(&said["sandbox"]).contains("sandbox"), "{said}");
    assert_eq!(said["figures"]["acc"], "0.5000", "{said}");
}

#[test]
fn without_a_daemon_the_lock_file_is_the_baseline() {
    let lab = Lab::new();
    let host = lab.host("alone");
    let policy = policy(&lab);
    let lock = text(&lab.path("weighlock.lock"));
    let (one, two) = (model(&lab, "one", 1), model(&lab, "two", 2));
    let common = ["--lock-file", &lock, "--policy", &policy, "--suite", "suite-1"];
    fn joined<'a>(one: &[&'a str], other: &[&'a str]) -> Vec<&'a str> {
        [one, other].concat()
    }
    let base = text(&report(&lab, "base", 0.0));
    host.ok(&joined(&["lock", "acme/bot:1.0.0", "--path", &text(&one), "--report", &base], &common));
    let (good, bad) = (text(&report(&lab, "good", -0.1)), text(&report(&lab, "bad", 0.1)));
    let gate = |report: &str, path: &Path| {
        let path = text(path);
        host.run(&joined(&["gate", &path, "--report", report], &common)).code.expect("an exit code")
    };
    assert_eq!([gate(&good, &two), gate(&bad, &two)], [0, 1]);
    // A runner without weights has what another one saw of them.
    let seen = lab.path("two.json");
    fs::write(&seen, host.run(&["inspect", &text(&two), "--hash"]).stdout).expect("written");
    let without_weights = |report: &str| {
        let seen = text(&seen);
        let extra = ["gate", "--candidate-manifest", &seen, "--report", report];
        host.run(&joined(&extra, &common)).code.expect("an exit code")
    };
    assert_eq!([without_weights(&good), without_weights(&bad)], [0, 1]);
    // The very run that is pinned settles itself, although the lock file has no samples.
    assert_eq!(gate(&base, &one), 0);
    // What is pinned elsewhere, or a lock file that is not there, does not read as if nothing were pinned.
    fs::remove_file(&lock).expect("removed");
    let elsewhere = ["--hardware", "nvidia/sm_90"];
    let two_text = text(&two);
    let ran = host.run(&joined(
        &["lock", "acme/bot:1.0.0", "--path", &text(&one), "--report", &base, "--ran-on", "cpu/one"],
        &common,
    ));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let candidate = [&["gate", &two_text, "--report", &bad], &elsewhere[..]].concat();
    let error = refused(&host, &joined(&candidate, &common), 2);
    assert!(error.contains("pinned for cpu/one"), "{error}");
    assert_eq!(gate(&bad, &two), 1, "pinned for one kind of hardware, and none is named");
    let nowhere = ["gate", &text(&two), "--report", &bad, "--policy", &policy, "--lock-file", "nowhere.lock"];
    refused(&host, &nowhere, 2);
    // Another report than the pinned one cannot stand in for it.
    let weaker = joined(&["gate", &two_text, "--report", &bad, "--baseline-report", &bad], &common);
    let error = refused(&host, &weaker, 2);
    assert!(error.contains("not the report that is pinned"), "{error}");
    // Another tokenizer is another contract, however good the loss.
    fs::write(two.join("tokenizer.json"), "{\"model\":{\"vocab\":{\"a\":0}}}").expect("written");
    assert_eq!(gate(&good, &two), 1);
    // A run without errors or samples decides nothing.
    let bare = lab.path("bare.json");
    fs::write(&bare, r#"{"metrics": {"eval_loss": 1.9}}"#).expect("written");
    assert_eq!(gate(&text(&bare), &one), 3);

    let check = |path: &Path| {
        host.run(&["lock", "--check", "--lock-file", &lock, "--path", &text(path)])
            .code
            .expect("an exit code")
    };
    assert_eq!([check(&one), check(&two)], [0, 7]);
    let unknown = lab.path("unknown.toml");
    fs::write(&unknown, "[metric.eval_loss]\ndirection = \"lower\"\nmaximum = 3\n").expect("written");
    let error = refused(&host, &["policy", "check", &text(&unknown)], 2);
    assert!(error.contains("maximum"), "{error}");
}
