//! Roles of which several must sign together, across real daemons: one alone changes nothing, all of them at once do.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::json;
use weighlock_tests::host::string;
use weighlock_tests::{Host, Lab, checkpoint, until};

/// Runs a command that must be refused for want of signers, and answers its error.
fn refused(host: &Host, arguments: &[&str]) -> String {
    let ran = host.run(arguments);
    assert_eq!(ran.code, Some(5), "{arguments:?}: {}\n{}", ran.stdout, ran.stderr);
    assert!(ran.stderr.contains("--key"), "it says what to do: {}", ran.stderr);
    ran.stderr
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// A new key: its file and its public part.
fn new_key(lab: &Lab, host: &Host, name: &str) -> (String, String) {
    let file = text(&lab.path(name));
    let made = host.ok(&["keys", "new", &file]);
    (file, string(&made["key"]))
}

#[test]
fn two_admins_invite_admit_and_revoke_together_and_neither_does_alone() {
    let lab = Lab::new();
    let alpha = lab.founder("alpha");
    let first = lab.path("alpha").join("keys");
    let first = fs::read_dir(&first).expect("the keys").flatten().map(|e| e.path().join("admin.key"));
    let first = text(&first.filter(|path| path.is_file()).last().expect("the admin's key"));
    let (second, public) = new_key(&lab, &alpha, "second.key");
    alpha.ok(&["keys", "grant", "admin", &public]);
    let both = ["--key", &first, "--key", &second];
    alpha.ok(&[&["keys", "threshold", "admin", "2"][..], &both].concat());

    refused(&alpha, &["invite"]);
    refused(&alpha, &["invite", "--key", &second]);
    let ticket = lab.path("beta.ticket");
    fs::write(&ticket, alpha.ticket(&both)).expect("the ticket is written");
    let mut beta = lab.host("beta");
    beta.ok(&["join", "--file", &text(&ticket), "--name", "beta"]);
    beta.start();
    until("alpha is connected to beta", || alpha.peer(&beta).map(drop));
    let until_of = || {
        let rows = alpha.ok(&["member", "list"]);
        let rows = rows["items"].as_array().cloned().unwrap_or_default();
        rows.iter().find(|row| row["name"] == "beta").map(|row| row["expires"].clone())
    };
    let before = until_of().expect("beta is a member");

    let beta_key = beta.key();
    let admit = ["member", "admit", &beta_key, "--name", "beta", "--for", "700d"];
    refused(&alpha, &admit);
    assert_eq!(until_of(), Some(before.clone()));
    alpha.ok(&[&admit[..], &both].concat());
    assert_ne!(until_of(), Some(before));

    let revoke = ["member", "revoke", "beta"];
    refused(&alpha, &revoke);
    assert!(until_of().is_some());
    alpha.ok(&[&revoke[..], &both].concat());
    until("beta is no member", || until_of().is_none().then_some(()));
}

#[test]
fn two_evaluators_sign_evidence_and_verdicts_together() {
    let lab = Lab::new();
    let alpha = lab.founder("alpha");
    let (one, one_key) = new_key(&lab, &alpha, "one.key");
    let (two, two_key) = new_key(&lab, &alpha, "two.key");
    alpha.ok(&["keys", "grant", "evaluator", &one_key, &two_key]);
    alpha.ok(&["keys", "threshold", "evaluator", "2"]);
    checkpoint::hugging_face(&lab.path("model"), 1, 1);
    alpha.add(&lab.path("model"), "acme/bot:1.0.0");
    let report = lab.path("report.json");
    fs::write(&report, json!({"metrics": {"eval_loss": {"value": 2.0, "stderr": 0.01}}}).to_string())
        .expect("written");
    let policy = text(&lab.path("gate.toml"));
    fs::write(&policy, "[metric.eval_loss]\ndirection = \"lower\"\nmax = 3.0\n").expect("written");

    // One alone would still count for as long as clocks may be apart: the root before asked for no second one.
    let both = ["--key", &one, "--key", &two];
    let signers = |statement: &str| {
        let shown = alpha.ok(&["statement", "show", statement]);
        let signed_by = shown["signed_by"].as_array().cloned().unwrap_or_default();
        signed_by.iter().map(string).collect::<BTreeSet<_>>()
    };
    let keys = BTreeSet::from([one_key, two_key]);
    let add = ["evidence", "add", "acme/bot:1.0.0", &text(&report), "--suite", "s-1", "--ran-on", "here"];
    let added = alpha.ok(&[&add[..], &both].concat());
    assert_eq!(signers(&string(&added["statement"])), keys);

    let verdict = text(&lab.path("verdict.dsse"));
    let gate = ["gate", "acme/bot:1.0.0", "--policy", &policy, "--out", &verdict];
    let ran = alpha.run(&[&gate[..], &both].concat());
    assert_eq!(ran.code, Some(0), "{}\n{}", ran.stdout, ran.stderr);
    assert_eq!(signers(&verdict), keys);
    alpha.ok(&["statement", "import", &verdict]);
    let weighed = alpha.ok(&["evidence", "acme/bot:1.0.0"]);
    assert_eq!(weighed["verdicts"].as_array().map(Vec::len), Some(1), "{weighed}");
}
