//! The ladder across real daemons: heads that move with evidence only, and a rollback that works while others are away.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use weighlock_tests::checkpoint::{self, Part};
use weighlock_tests::disk::SmallDisk;
use weighlock_tests::host::{string, text};
use weighlock_tests::{Host, Lab, until};

const POLICY: &str = "ladder = [\"canary\", \"production\"]\n[metric.eval_loss]\ndirection = \"lower\"\nmax = 3.0\nmax_regression = 0.02\n";

/// A founder, two members that are witnesses too, a policy, and some versions.
struct Fleet {
    lab: Lab,
    hosts: [Host; 3],
    policy: String,
}

impl Fleet {
    fn new(versions: &[&str]) -> Self {
        let lab = Lab::new();
        let alpha = lab.founder("alpha");
        Self::of(lab, alpha, versions)
    }

    fn of(lab: Lab, alpha: Host, versions: &[&str]) -> Self {
        let beta = lab.joined("beta", &alpha);
        let gamma = lab.joined("gamma", &alpha);
        let path = lab.path("gate.toml");
        fs::write(&path, POLICY).expect("written");
        let policy = text(&path);
        for (seed, tag) in (1u64..).zip(versions) {
            alpha.add(&model(&lab, tag, seed), &format!("acme/bot:{tag}"));
        }
        alpha.ok(&["keys", "grant", "witness", "beta", "gamma"]);
        alpha.ok(&["policy", "set", "acme", &policy]);
        let fleet = Self { lab, hosts: [alpha, beta, gamma], policy };
        for host in &fleet.hosts {
            until(&format!("{} hears of the policy and its witnesses", host.name), || {
                let keys = host.ok(&["keys"]);
                let witnesses = keys["roles"]["witness"]["keys"].as_array().map_or(0, Vec::len);
                (witnesses == 3 && host.run(&["policy", "show", "acme/bot"]).code == Some(0)).then_some(())
            });
        }
        fleet
    }

    /// Weighs a version against what production has and imports the verdict.
    fn gate(&self, tag: &str, shift: f64, baseline: Option<(&str, f64)>, code: i32) {
        let alpha = &self.hosts[0];
        let (own, verdict) = (text(&report(&self.lab, tag, shift)), text(&self.lab.path("verdict.dsse")));
        let candidate = format!("acme/bot:{tag}");
        let against =
            baseline.map(|(tag, shift)| (format!("acme/bot:{tag}"), text(&report(&self.lab, tag, shift))));
        let mut arguments = vec!["gate", &candidate, "--report", &own, "--ran-on", "here"];
        arguments.extend(["--suite", "suite-1", "--policy", &self.policy, "--out", &verdict]);
        if let Some((reference, report)) = &against {
            alpha.run(&["evidence", "add", reference, report, "--suite", "suite-1", "--ran-on", "here"]);
            arguments.extend(["--against", reference]);
        }
        let ran = alpha.run(&arguments);
        assert_eq!(ran.code, Some(code), "{}\n{}", ran.stdout, ran.stderr);
        alpha.ok(&["statement", "import", &verdict]);
    }

    fn promote(&self, tag: &str, stages: &[&str]) {
        for stage in stages {
            self.hosts[0].ok(&["promote", &format!("acme/bot:{tag}"), "--to", stage]);
        }
    }
}

fn model(lab: &Lab, name: &str, seed: u64) -> PathBuf {
    let dir = lab.path(name);
    let part = Part { name: "w".into(), bytes: 4096, seed };
    checkpoint::tensors(&dir.join("model.safetensors"), "", &[part]);
    dir
}

/// A report over 60 documents, each worse than 2.0 by `shift` and a little of its own.
fn report(lab: &Lab, name: &str, shift: f64) -> PathBuf {
    let value = |n: u32| 2.0 + shift + f64::from(n % 7) / 1000.0;
    let samples: Vec<Value> = (0..60).map(|n| json!({"id": format!("d{n}"), "value": value(n)})).collect();
    let mean = (0..60).map(value).sum::<f64>() / 60.0;
    let path = lab.path(&format!("{name}.json"));
    fs::write(&path, json!({"metrics": {"eval_loss": {"value": mean, "samples": samples}}}).to_string())
        .expect("written");
    path
}

/// The digest of a channel's head on this host, if it opens.
fn head(host: &Host, stage: &str) -> Option<String> {
    let status = host.ok(&["rollout", "status", "acme/bot"]);
    let heads = status["heads"].as_array()?;
    heads.iter().find(|head| head["stage"] == stage).map(|head| string(&head["digest"]))
}

/// Bytes are handed out, or refused with exit code 5.
fn opens(host: &Host, reference: &str) -> Result<(), String> {
    let ran = host.run(&["path", reference]);
    match ran.code {
        Some(0) => Ok(()),
        Some(5) => Err(ran.stderr),
        other => panic!("{reference} on {}: {other:?} {}", host.name, ran.stderr),
    }
}

fn until_head(hosts: &[Host], stage: &str, digest: &str) {
    for host in hosts {
        until(&format!("{} has the head", host.name), || {
            (head(host, stage).as_deref() == Some(digest)).then_some(())
        });
    }
}

#[test]
fn nothing_opens_anywhere_without_evidence_and_a_kill_moves_no_head() {
    let mut fleet = Fleet::new(&["1.0.0", "1.1.0", "1.2.0"]);
    let digest = |fleet: &Fleet, tag: &str| {
        string(&fleet.hosts[0].ok(&["inspect", &format!("acme/bot:{tag}")])["digest"])
    };
    let (first, second) = (digest(&fleet, "1.0.0"), digest(&fleet, "1.1.0"));
    // By version, by digest, by channel; at every host.
    for host in &fleet.hosts {
        for reference in ["acme/bot:1.0.0".to_owned(), format!("acme/bot@{first}")] {
            let why = opens(host, &reference).expect_err("it is gated");
            assert!(why.contains("no evidence") && why.contains("weighlock gate"), "{why}");
        }
        assert_eq!(host.run(&["pull", "acme/bot:production"]).code, Some(4));
    }
    fleet.gate("1.0.0", 0.0, None, 0);
    fleet.promote("1.0.0", &["canary", "production"]);
    until_head(&fleet.hosts, "production", &first);
    for host in &fleet.hosts {
        assert_eq!(opens(host, "acme/bot:production"), Ok(()));
        assert_eq!(opens(host, &format!("acme/bot@{first}")), Ok(()));
        assert!(opens(host, "acme/bot:1.1.0").is_err(), "{}", host.name);
    }
    // A worse one fails, and its verdict opens nothing.
    fleet.gate("1.2.0", 0.2, Some(("1.0.0", 0.0)), 1);
    let refused = fleet.hosts[0].run(&["promote", "acme/bot:1.2.0", "--to", "canary"]);
    assert_eq!(refused.code, Some(5), "{}", refused.stderr);
    assert!(opens(&fleet.hosts[1], "acme/bot:1.2.0").is_err());
    // Its evaluator may look at it all the same, and nobody else.
    fleet.hosts[0].ok(&["path", "acme/bot:1.2.0", "--evaluate"]);
    let [alpha, beta, _] = &fleet.hosts;
    fs::copy(fleet.lab.path("beta/data/keys/host.key"), fleet.lab.path("other.key")).expect("copied");
    let other = text(&fleet.lab.path("other.key"));
    assert_eq!(beta.run(&["path", "acme/bot:1.2.0", "--evaluate", "--key", &other]).code, Some(5));
    assert_eq!(
        alpha.run(&["pull", "acme/bot:1.2.0", "--ungated"]).code,
        Some(5),
        "the policy does not allow it"
    );

    fleet.gate("1.1.0", -0.1, Some(("1.0.0", 0.0)), 0);
    fleet.promote("1.1.0", &["canary", "production"]);
    let again = fleet.hosts[0].ok(&["promote", "acme/bot:1.1.0", "--to", "production"]);
    assert_eq!(again["items"][0]["again"], true, "{again}");
    for n in 0..3 {
        fleet.hosts[n].kill9();
        fleet.hosts[n].start();
    }
    until_head(&fleet.hosts, "production", &second);
    assert_eq!(fleet.hosts[0].run(&["rm", "acme/bot:1.0.0"]).code, Some(5), "it may be rolled back to");

    // Nor does it go where nobody follows the channel; what is nobody's head does.
    let [alpha, _, gamma] = &fleet.hosts;
    alpha.add(&model(&fleet.lab, "plain", 9), "plain/thing:1.0.0");
    gamma.hears_of("plain/thing:1.0.0");
    gamma.ok(&["pull", "plain/thing:1.0.0"]);
    assert_eq!(opens(gamma, "acme/bot:production"), Ok(()));
    let is_here = |reference: &str| gamma.listed(reference).is_some_and(|row| row["complete"] == true);
    until("the collector takes what is no head", || {
        gamma.ok(&["gc", "--all"]);
        (!is_here("plain/thing:1.0.0")).then_some(())
    });
    assert!(is_here("acme/bot:1.0.0") && is_here("acme/bot:1.1.0"));
}

#[test]
fn tickets_that_are_made_after_a_policy_let_hosts_in_until_they_are_taken_back() {
    let fleet = Fleet::new(&["1.0.0"]);
    let alpha = &fleet.hosts[0];
    let delta = fleet.lab.joined("delta", alpha);
    delta.hears_of("acme/bot:1.0.0");

    let invited = alpha.ok(&["invite"]);
    alpha.ok(&["revoke", &string(&invited["invite"]), "--reason", "it leaked"]);
    let stranger = fleet.lab.host("stranger");
    let ticket = fleet.lab.path("leaked.ticket");
    fs::write(&ticket, string(&invited["ticket"])).expect("written");
    let refused = stranger.run(&["join", "--file", &text(&ticket)]);
    assert_eq!(refused.code, Some(5), "{} {}", refused.stdout, refused.stderr);
}

#[test]
fn a_minority_promotes_nothing_and_its_rollback_wins() {
    let fleet = Fleet::new(&["1.0.0", "1.1.0", "1.2.0"]);
    fleet.gate("1.0.0", 0.0, None, 0);
    fleet.promote("1.0.0", &["canary", "production"]);
    let good = head(&fleet.hosts[0], "production").expect("a head");
    fleet.gate("1.1.0", -0.1, Some(("1.0.0", 0.0)), 0);
    fleet.promote("1.1.0", &["canary", "production"]);
    let bad = head(&fleet.hosts[0], "production").expect("a head");
    until_head(&fleet.hosts, "production", &bad);
    fleet.gate("1.2.0", -0.2, Some(("1.1.0", -0.1)), 0);

    let [alpha, beta, gamma] = &fleet.hosts;
    beta.pause();
    gamma.pause();
    let waits = alpha.run(&["promote", "acme/bot:1.2.0", "--to", "canary", "--wait", "1"]);
    assert_eq!(waits.code, Some(6), "{}", waits.stderr);
    // Its own vote may be missing too: a witness that has just started first hears what others know.
    assert!(waits.stderr.contains("of 2 cosignatures"), "{}", waits.stderr);
    assert_eq!(head(alpha, "canary").as_deref(), Some(bad.as_str()));
    alpha.ok(&["rollback", "acme/bot", "--reason", "it answers nonsense"]);
    assert_eq!(head(alpha, "production").as_deref(), Some(good.as_str()));
    let why = opens(alpha, "acme/bot:1.1.0").expect_err("rolled back");
    assert!(why.contains("rolled back"), "{why}");
    beta.resume();
    gamma.resume();
    until_head(&fleet.hosts, "production", &good);
    // What waited gets its votes now, in the stage that nobody rolled back.
    let digest = string(&alpha.ok(&["inspect", "acme/bot:1.2.0"])["digest"]);
    until_head(&fleet.hosts, "canary", &digest);
    for host in &fleet.hosts {
        let log = host.ok(&["log", "acme/bot"]);
        let said: Vec<String> =
            log["events"].as_array().expect("a list").iter().map(|e| string(&e["kind"])).collect();
        assert!(said.iter().any(|kind| kind == "rollback"), "{said:?}");
        until(&format!("{} tells of all hosts", host.name), || {
            let status = host.ok(&["rollout", "status", "acme/bot"]);
            let hosts = status["hosts"].as_array()?;
            hosts.iter().all(|row| row["heard"] == true && row["lags"].is_null()).then_some(())
        });
    }
}

/// Where this host keeps the directory of a digest for whoever asked for one.
fn view(fleet: &Fleet, host: &Host, digest: &str) -> PathBuf {
    fleet.lab.path(&host.name).join("data/views").join(digest.trim_start_matches("sha256:"))
}

#[test]
fn a_rollback_to_what_nobody_holds_is_refused_and_a_rollout_waits_for_its_followers_bytes() {
    let mut fleet = Fleet::new(&["1.0.0", "1.1.0"]);
    fleet.gate("1.0.0", 0.0, None, 0);
    fleet.promote("1.0.0", &["canary", "production"]);
    // A witness that has just started hears the others before it votes, and votes then.
    fleet.hosts[1].kill9();
    fleet.hosts[1].start();
    fleet.gate("1.1.0", -0.1, Some(("1.0.0", 0.0)), 0);
    fleet.promote("1.1.0", &["canary", "production"]);
    let [alpha, beta, gamma] = &fleet.hosts;
    let all = |more: &[&str]| {
        let wait: &[&str] = &["rollout", "status", "acme/bot", "--wait", "--timeout", "30"];
        alpha.run(&[wait, more].concat())
    };
    let ran = all(&[]);
    assert_eq!(ran.code, Some(0), "nobody follows it: {}", ran.stderr);

    alpha.ok(&["rm", "acme/bot:1.0.0", "--force"]);
    let refused = alpha.run(&["rollback", "acme/bot:production", "--reason", "it answers nonsense"]);
    assert_eq!(refused.code, Some(5), "{}", refused.stderr);
    assert!(refused.stderr.contains("no host is known to hold"), "{}", refused.stderr);
    alpha.ok(&["rollback", "acme/bot:production", "--reason", "it answers nonsense", "--force", "--wait"]);
    gamma.ok(&["follow", "acme/bot:production"]);
    let late = alpha.run(&["rollout", "status", "acme/bot", "--wait", "--timeout", "1"]);
    assert_eq!(late.code, Some(6), "{}", late.stderr);
    let why = "gamma follows production and does not hold all of 1.0.0 yet";
    assert!(late.stderr.contains(why) && !late.stderr.contains("beta"), "{}", late.stderr);
    let other = all(&["--stage", "canary"]);
    assert_eq!(other.code, Some(0), "canary has nothing to wait for: {}", other.stderr);
    let none = alpha.run(&["rollout", "status", "acme/bot:shadow", "--wait", "--timeout", "0"]);
    assert!(none.code == Some(6) && none.stderr.contains("shadow has no head"), "{}", none.stderr);
    beta.pause();
    let deaf = alpha.run(&["rollout", "status", "acme/bot:canary", "--wait", "--timeout", "0"]);
    beta.resume();
    assert!(deaf.code == Some(6) && deaf.stderr.contains("beta has not heard"), "{}", deaf.stderr);
    alpha.add(&fleet.lab.path("1.0.0"), "acme/bot:1.0.0");
    let ran = all(&[]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let shown: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    let rows = shown["hosts"].as_array().expect("a list");
    let gamma = rows.iter().find(|row| row["name"] == "gamma").expect("gamma");
    let production =
        gamma["stages"].as_array().and_then(|all| all.iter().find(|s| s["stage"] == "production"));
    let production = production.expect("a stage");
    assert!(production["follows"] == true && production["holds"] == true, "{production}");
}

#[test]
fn every_host_asks_for_the_verdict_that_a_strict_policy_wants_of_a_name() {
    let mut fleet = Fleet::new(&["1.0.0"]);
    let strict = fleet.lab.path("strict.toml");
    fs::write(&strict, format!("publish = \"requires-verdict\"\n{POLICY}")).expect("written");
    fleet.policy = text(&strict);
    // As if published by a host that does not ask: it was there before the policy.
    fleet.hosts[0].ok(&["policy", "set", "acme", &fleet.policy]);
    for host in &fleet.hosts {
        let why = until(&format!("{} refuses the name", host.name), || {
            opens(host, "acme/bot:1.0.0").err().filter(|why| why.contains("means nothing yet"))
        });
        assert!(
            why.contains("verdict that passed") && why.contains("weighlock gate acme/bot:1.0.0"),
            "{why}"
        );
        let row = host.listed("acme/bot:1.0.0").expect("it is listed all the same");
        assert!(string(&row["problem"]).contains("verdict"), "{row}");
    }
    // How the verdict comes about.
    fleet.hosts[0].ok(&["path", "acme/bot:1.0.0", "--evaluate"]);
    fleet.gate("1.0.0", 0.0, None, 0);
    for host in &fleet.hosts {
        until(&format!("{} takes the name", host.name), || {
            opens(host, "acme/bot:1.0.0").err().filter(|why| why.contains("was not promoted"))
        });
    }
    fleet.promote("1.0.0", &["canary", "production"]);
    for host in &fleet.hosts {
        until(&format!("{} opens it", host.name), || opens(host, "acme/bot:1.0.0").ok());
    }
}

#[test]
fn what_is_followed_is_here_before_the_head_moves_and_watchers_hear_of_it() {
    let mut fleet = Fleet::new(&["1.0.0", "1.1.0"]);
    let [alpha, beta, gamma] = &fleet.hosts;
    beta.ok(&["follow", "acme/bot:production"]);
    alpha.ok(&["follow", "acme/bot:production", "--on", "rack=none"]);
    let out = fleet.lab.path("watched");
    let hook = format!("cp {{path}}/model.safetensors {}", out.display());
    let mut watcher = beta.command();
    watcher.args(["--json", "watch", "acme/bot:production", "--exec", &hook]);
    watcher.stdout(fs::File::create(fleet.lab.path("heads")).expect("a file"));
    let mut watcher = watcher.spawn().expect("it runs");
    fleet.gate("1.0.0", 0.0, None, 0);
    fleet.promote("1.0.0", &["canary"]);
    let ahead = |host: &Host| {
        let row = host.listed("acme/bot:1.0.0");
        row.is_some_and(|row| row["complete"] == true)
    };
    until("beta has what is next for production", || ahead(beta).then_some(()));
    assert!(!ahead(gamma), "gamma follows nothing");
    fleet.promote("1.0.0", &["production"]);
    until("the hook has run", || same(&out, &fleet.lab.path("1.0.0/model.safetensors")).then_some(()));
    fleet.gate("1.1.0", -0.1, Some(("1.0.0", 0.0)), 0);
    fleet.promote("1.1.0", &["canary", "production"]);
    until("the hook has run again", || same(&out, &fleet.lab.path("1.1.0/model.safetensors")).then_some(()));
    let [good, bad] =
        ["1.0.0", "1.1.0"].map(|tag| string(&alpha.ok(&["inspect", &format!("acme/bot:{tag}")])["digest"]));
    until_head(&fleet.hosts, "production", &bad);
    for reference in ["acme/bot:1.0.0", "acme/bot:production"] {
        gamma.ok(&["path", reference]);
    }
    let views = [gamma, beta].map(|host| [&good, &bad].map(|digest| view(&fleet, host, digest)));
    assert!(views.iter().flatten().all(|view| view.is_dir()), "{views:?}");
    let mut reads = fs::File::open(views[0][1].join("model.safetensors")).expect("opens");
    alpha.ok(&["rollback", "acme/bot", "--reason", "it answers nonsense", "--wait"]);
    for [good, bad] in &views {
        until("the directory of what is bad is gone", || (!bad.exists()).then_some(()));
        assert!(good.is_dir(), "what may be opened stays");
    }
    let mut read = Vec::new();
    std::io::Read::read_to_end(&mut reads, &mut read).expect("who has it open keeps it");
    assert_eq!(read, fs::read(fleet.lab.path("1.1.0/model.safetensors")).expect("read"));
    until("the rollback reached the hook", || {
        same(&out, &fleet.lab.path("1.0.0/model.safetensors")).then_some(())
    });
    watcher.kill().expect("it runs");
    watcher.wait().expect("it ends");
    let heads = fs::read_to_string(fleet.lab.path("heads")).expect("told");
    let last: Value = serde_json::from_str(heads.lines().last().expect("a line")).expect("JSON");
    assert_eq!(last["rolled_back"], true, "{last}");
    assert_eq!(beta.run(&["watch", "acme/bot:1.0.0"]).code, Some(2), "a version is no channel");
    // One that was left on disk goes before a daemon that starts opens its doors.
    let [kept, left] = views[0].clone();
    fleet.hosts[2].kill9();
    fs::create_dir(&left).expect("a directory");
    fleet.hosts[2].start();
    assert!(!left.exists() && kept.is_dir());
}

fn same(a: &Path, b: &Path) -> bool {
    fs::read(a).is_ok_and(|a| fs::read(b).is_ok_and(|b| a == b))
}

#[test]
fn a_rollback_takes_effect_on_a_disk_that_is_full_to_its_last_byte() {
    let lab = Lab::new();
    let Some(disk) = SmallDisk::new(&lab.path("disk"), 64 << 20) else { return };
    let mut alpha = lab.host("alpha");
    alpha.data_dir = disk.path("data");
    alpha.configure("[limits]\nfree_bytes_min = 1048576\n");
    alpha.start();
    let fleet = Fleet::of(lab, alpha, &["1.0.0", "1.1.0"]);
    fleet.gate("1.0.0", 0.0, None, 0);
    fleet.promote("1.0.0", &["canary", "production"]);
    fleet.gate("1.1.0", -0.1, Some(("1.0.0", 0.0)), 0);
    fleet.promote("1.1.0", &["canary", "production"]);
    let alpha = &fleet.hosts[0];
    let first = string(&alpha.ok(&["inspect", "acme/bot:1.0.0"])["digest"]);
    disk.fill(0);
    alpha.ok(&["rollback", "acme/bot", "--reason", "it answers nonsense"]);
    assert_eq!(head(alpha, "production"), Some(first.clone()));
    until_head(&fleet.hosts, "production", &first);
    disk.fill(0);
    assert!(opens(alpha, "acme/bot:1.1.0").is_err(), "it is shut");
    alpha.loader().open("acme/bot:production").expect("the last good one opens");
}
