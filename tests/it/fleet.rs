//! One host of many: configured by its environment, checked before it starts, changed while it runs, forgotten when gone.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use rustix::process::Signal;
use weighlock_tests::host::{string, text};
use weighlock_tests::{Host, Lab, until};

fn set(host: &mut Host, variables: &[(&str, &str)]) {
    host.environment = variables.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
}

#[test]
fn every_key_can_come_from_the_environment() {
    let lab = Lab::new();
    let mut host = lab.host("alpha");
    host.configure("hardware = \"cpu/x86-64-v2\"\n[limits]\nuploads_max = 3\nneighbours_max = 9\n");
    set(
        &mut host,
        &[
            ("WEIGHLOCK_LIMITS__UPLOADS_MAX", "8"),
            ("WEIGHLOCK_LABELS__RACK", "r7"),
            ("WEIGHLOCK_DISCOVERY__KADEMLIA", "false"),
            ("WEIGHLOCK_LISTEN__HTTP", "127.0.0.1:1"),
            ("WEIGHLOCK_LOG__LEVEL", "warn"),
            // What Kubernetes sets for a service of that name, and what flags read.
            ("WEIGHLOCK_PORT_7402_TCP", "tcp://10.0.0.1:7402"),
            ("WEIGHLOCK_SERVICE_PORT", "7402"),
        ],
    );
    let shown = host.ok(&["config", "show"]);
    assert_eq!(
        (&shown["config"]["limits"]["uploads_max"], &shown["config"]["labels"]["rack"]),
        (&8.into(), &"r7".into())
    );
    let origins = &shown["origins"];
    assert_eq!(origins["limits.uploads_max"], "WEIGHLOCK_LIMITS__UPLOADS_MAX", "{origins}");
    assert_eq!(origins["limits.neighbours_max"], "file", "{origins}");
    assert_eq!(origins["limits.connections_max"], serde_json::Value::Null, "{origins}");
    let plain = host.command().args(["config", "show"]).output().expect("it runs");
    let plain = String::from_utf8(plain.stdout).expect("text");
    assert!(plain.contains("uploads_max = 8  # WEIGHLOCK_LIMITS__UPLOADS_MAX\n"), "{plain}");
    assert!(plain.contains("hardware = \"cpu/x86-64-v2\"  # file\n"), "{plain}");

    // What is shown can be given back as a file.
    let file = lab.path("shown.toml");
    fs::write(&file, &plain).expect("written");
    assert_eq!(host.ok(&["config", "check", "--file-only", &text(&file)])["ok"], true);

    // The daemon runs by it, and the flag of `up` (here the HTTP address) beats it.
    host.start();
    assert_ne!(host.http().port(), 1);
    assert_eq!(host.ok(&["log-level"])["filter"], "warn");
    host.term();

    for (name, value) in [
        ("WEIGHLOCK_LIMITS__UPLODS_MAX", "8"),
        ("WEIGHLOCK_LIMITS__UPLOADS_MAX", "0"),
        ("WEIGHLOCK_LIMITS__UPLOADS_MAX", "many"),
        ("WEIGHLOCK_LISTEN__CONTROL", "nowhere"),
        ("WEIGHLOCK_NOTHING__HERE", "1"),
    ] {
        set(&mut host, &[(name, value)]);
        let ran = host.run(&["config", "check"]);
        assert_eq!(ran.complaints(2), [""; 0], "{name}={value}");
        assert!(ran.stderr.contains(&format!("environment variable {name}")), "{}", ran.stderr);
    }
}

#[test]
fn config_check_looks_at_the_machine() {
    let lab = Lab::new();
    let mut host = lab.host("alpha");
    let about = |host: &Host| {
        let ran = host.run(&["config", "check"]);
        let first = ran.stdout.lines().next().unwrap_or_default();
        let answer: serde_json::Value = serde_json::from_str(first).expect("an object");
        let wrong =
            answer["findings"].as_array().expect("findings").iter().filter(|one| one["verdict"] == "error");
        (ran.code, wrong.map(|one| string(&one["about"])).collect::<Vec<_>>())
    };
    assert_eq!(about(&host), (Some(0), vec![]));
    host.configure("[sockets]\nloader_group = \"no-such-group\"\n");
    assert_eq!(about(&host), (Some(2), vec!["sockets".into()]));
    host.configure("[limits]\nfree_bytes_min = 9000000000000000000\n");
    assert_eq!(about(&host), (Some(2), vec!["room".into()]));
    host.configure("");

    host.start();
    let keys = lab.path("alpha/keys");
    let cluster = fs::read_dir(&keys).expect("keys").flatten().next().expect("a cluster").path();
    fs::set_permissions(cluster.join("admin.key"), fs::Permissions::from_mode(0o640)).expect("changed");
    assert_eq!(about(&host), (Some(2), vec!["role keys".into()]), "beside a daemon that runs");
    assert!(host.runs());
}

#[test]
fn log_level_and_labels_change_while_it_runs() {
    let lab = Lab::new();
    let mut alpha = lab.host("alpha");
    alpha.configure("[log]\nlevel = \"warn\"\n[labels]\npool = \"old\"\n");
    alpha.start();
    let beta = lab.joined("beta", &alpha);
    let says = |alpha: &Host, word: &str| alpha.log().contains(word);
    assert!(!says(&alpha, "DEBUG"));

    let level = alpha.ok(&["log-level", "debug"]);
    assert_eq!((&level["filter"], &level["configured"]), (&"debug".into(), &"warn".into()));
    alpha.loader().open("acme/nothing:1.0.0").expect_err("nothing by that name");
    until("alpha logs more", || says(&alpha, "DEBUG").then_some(()));
    let wrong = alpha.run(&["log-level", "loud"]);
    assert_eq!(wrong.complaints(2), [""; 0]);
    assert_eq!(alpha.ok(&["log-level"])["filter"], "debug", "a wrong one changes nothing");

    // By signal: the file's level comes back, labels reach others, the rest waits for a restart.
    alpha.configure("[log]\nlevel = \"error\"\n[labels]\npool = \"new\"\n[limits]\nuploads_max = 2\n");
    alpha.signal(Signal::HUP);
    until("the file's level is in force", || (alpha.ok(&["log-level"])["filter"] == "error").then_some(()));
    let source = lab.path("source");
    weighlock_tests::checkpoint::hugging_face(&source, 5, 1);
    alpha.add(&source, "acme/model:1.0.0");
    until("beta hears of the new label", || {
        let holders = beta.run(&["where", "acme/model:1.0.0"]);
        holders.stdout.contains("\"pool\":\"new\"").then_some(())
    });
    let reloaded = alpha.ok(&["config", "reload"]);
    assert_eq!(reloaded["needs_restart"], serde_json::json!(["limits.uploads_max"]));
    assert_eq!(reloaded["applied"], serde_json::json!([]), "the signal did it already");

    // A wrong file changes nothing and ends nothing.
    alpha.configure("[log]\nlevel = \"loud\"\n");
    assert_eq!(alpha.run(&["config", "reload"]).complaints(2), [""; 0]);
    alpha.signal(Signal::HUP);
    std::thread::sleep(std::time::Duration::from_millis(500));
    alpha.configure("[log]\nlevel = \"error\"\n");
    assert_eq!(alpha.ok(&["log-level"])["filter"], "error");
    assert!(alpha.runs());
}

#[test]
fn a_host_that_is_gone_is_forgotten_until_it_speaks() {
    let lab = Lab::new();
    let mut alpha = lab.founder("alpha");
    let mut beta = lab.joined("beta", &alpha);
    let key = beta.key();
    let lists = |alpha: &Host| {
        let listed = |what: &[&str]| {
            let rows = alpha.ok(what);
            rows["items"].as_array().expect("a list").iter().any(|row| row["host"] == *key)
        };
        (listed(&["member", "list"]), listed(&["peers"]))
    };
    let alive = alpha.run(&["member", "forget", "beta"]);
    assert_eq!(alive.complaints(5), [""; 0]);
    assert!(alive.stderr.contains("connected"), "{}", alive.stderr);
    assert_eq!(alpha.run(&["member", "forget", "alpha"]).complaints(5), [""; 0], "not itself");
    assert_eq!(alpha.run(&["member", "forget", "gamma"]).complaints(4), [""; 0], "nobody");

    beta.kill9();
    until("alpha lost beta", || alpha.peer(&beta).filter(|row| row["connected"] == false));
    assert_eq!(lists(&alpha), (true, true));
    assert_eq!(alpha.ok(&["member", "forget", "beta"])["host"], *key);
    assert_eq!(lists(&alpha), (false, false));
    alpha.term();
    alpha.start();
    assert_eq!(lists(&alpha), (false, false), "after a restart, too");

    // It was never shut out: it comes back by itself.
    beta.start();
    until("beta is listed again", || (lists(&alpha) == (true, true)).then_some(()));
    until("both are connected", || alpha.peer(&beta).filter(|row| row["connected"] == true));
}
