//! Bad input, commands: names, tickets, sockets, ports, configuration, space. One line, a hint, a documented exit code.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use weighlock_tests::host::{Ran, number, string, text};
use weighlock_tests::{Host, Lab, checkpoint, until};

/// Collects what is wrong with many refusals, so that one run shows all.
#[derive(Default)]
struct Report(Vec<String>);

impl Report {
    fn expect(&mut self, what: &str, ran: &Ran, code: i32, words: &[&str]) {
        let mut wrong = ran.complaints(code);
        let missing = words.iter().filter(|word| !ran.stderr.contains(**word));
        wrong.extend(missing.map(|word| format!("{word:?} is not in {:?}", ran.stderr)));
        let wrong = wrong.join("; ");
        // The same said by several commands is told once.
        if !wrong.is_empty() && !self.0.iter().any(|told| told.ends_with(&wrong)) {
            self.0.push(format!("{what}: {wrong}"));
        }
    }

    fn done(self) {
        assert!(self.0.is_empty(), "{} cases:\n{}", self.0.len(), self.0.join("\n"));
    }
}

/// Runs `up`, which must end by itself.
fn up(host: &Host, arguments: &[&str]) -> Ran {
    let mut child = host
        .up_command()
        .args(arguments)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the program runs");
    let ended = weighlock_tests::wait::found_within(weighlock_tests::PATIENCE, || {
        child.try_wait().expect("it can be waited for")
    });
    if ended.is_none() {
        child.kill().expect("it can be killed");
    }
    let ran = Ran::of(child.wait_with_output().expect("its output"));
    assert!(ended.is_some(), "it runs instead of refusing: {}", ran.stdout);
    ran
}

#[test]
fn exit_codes_are_documented() {
    let help = Ran::of(Lab::new().host("nobody").command().arg("--help").output().expect("the program runs"));
    assert_eq!(help.code, Some(0));
    let text = help.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    for words in ["2 wrong usage", "4 not found", "5 refused", "6 unavailable", "7 bytes failed verification"]
    {
        assert!(text.contains(words), "{words:?} is not in {text}");
    }
}

#[test]
fn wrong_and_unknown_references() {
    let lab = Lab::new();
    let source = lab.path("source");
    checkpoint::hugging_face(&source, 1, 1);
    let alpha = lab.founder("alpha");
    alpha.add(&source, "acme/model:1.0.0");
    let before = alpha.contents();
    let mut report = Report::default();
    let long = format!("acme/{}:1", "x".repeat(200));
    let malformed = [
        "acme",
        "acme/",
        "/model:1",
        "acme/model:",
        "acme/model@",
        "acme/model@sha256:12",
        "Acme/Model:1.0.0",
        "a/b/c:1",
        "../etc:1",
        "acme/..:1",
        "acme/model:a/b",
        "acme/model:..",
        "acme/mo del:1",
        "acme/model:1\n2",
        "acme/model:\u{1b}[31m",
        "",
        long.as_str(),
        "acme/model",
        "acme/model:latest",
        "acme/model@sha256:0123abc",
    ];
    for reference in malformed {
        for arguments in [
            vec!["add", &text(&source), reference],
            vec!["pull", reference],
            vec!["path", reference],
            vec!["rm", reference],
        ] {
            let ran = alpha.run(&arguments);
            report.expect(&format!("{} {reference:?}", arguments[0]), &ran, 2, &[]);
        }
    }
    report.expect(
        "add latest",
        &alpha.run(&["add", &text(&source), "acme/model:latest"]),
        2,
        &["cannot be a tag", "hint: name a version"],
    );
    // A bare name never means a silent "latest": the stages are listed.
    for command in ["pull", "path", "inspect"] {
        let ran = alpha.run(&[command, "acme/model"]);
        report.expect(command, &ran, 2, &["production", "canary", "shadow", "sandbox"]);
    }
    for stage in ["sandbox", "shadow", "canary", "production"] {
        let ran = alpha.run(&["add", &text(&source), &format!("acme/model:{stage}")]);
        report.expect(&format!("add {stage}"), &ran, 2, &[stage]);
        let ran = alpha.run(&["path", &format!("acme/model:{stage}")]);
        report.expect(&format!("path {stage}"), &ran, 4, &[stage]);
    }
    // A digest may be shortened.
    let short = &string(&alpha.listed("acme/model:1.0.0").expect("listed")["digest"])[..15];
    let inspected = alpha.ok(&["inspect", &format!("acme/model@{short}")]);
    assert!(string(&inspected["digest"]).starts_with(short), "{inspected}");
    alpha.loader().open(&format!("acme/model@{short}")).expect("opened");

    let digest = format!("acme/model@sha256:{}", "0".repeat(64));
    let elsewhere =
        format!("other/model@{}", string(&alpha.listed("acme/model:1.0.0").expect("listed")["digest"]));
    for unknown in ["acme/model:9.9.9", "acme/nothing:1.0.0", &digest, &elsewhere] {
        for command in ["pull", "path", "inspect", "rm"] {
            report.expect(&format!("{command} {unknown}"), &alpha.run(&[command, unknown]), 4, &[]);
        }
        let error = alpha.loader().open(unknown).expect_err("unknown");
        assert_eq!(error["code"], "not_found", "{error}");
    }
    assert_eq!(alpha.contents(), before, "the store is as it was");
    report.done();
}

#[test]
fn no_daemon_and_wrong_usage() {
    let lab = Lab::new();
    let nobody = lab.host("nobody");
    let mut report = Report::default();
    let source = lab.path("source");
    checkpoint::hugging_face(&source, 1, 1);
    for arguments in [
        vec!["status"],
        vec!["ls"],
        vec!["peers"],
        vec!["invite"],
        vec!["member", "list"],
        vec!["path", "acme/model:1.0.0"],
        vec!["pull", "acme/model:1.0.0"],
        vec!["add", &text(&source), "acme/model:1.0.0"],
    ] {
        report.expect(
            &format!("{arguments:?}"),
            &nobody.run(&arguments),
            6,
            &["no daemon answers", "weighlock up"],
        );
    }
    for arguments in
        [vec!["frobnicate"], vec!["add"], vec!["ls", "--frobnicate"], vec!["invite", "--expires", "soon"]]
    {
        let ran = nobody.run(&arguments);
        assert_eq!(ran.code, Some(2), "{arguments:?}: {}", ran.stderr);
    }
    assert!(!nobody.data_dir.exists(), "none of them made a store");
    report.done();
}

#[test]
fn a_daemon_that_cannot_start_says_why() {
    let lab = Lab::new();
    let mut alpha = lab.founder("alpha");
    let mut report = Report::default();

    // A second one on the same store, whatever its sockets.
    let sockets = lab.path("sockets");
    report.expect("second daemon", &up(&alpha, &[]), 6, &["in use", "--data-dir"]);
    let elsewhere = up(&alpha, &["--socket-dir", &text(&sockets)]);
    report.expect("second daemon, other sockets", &elsewhere, 6, &["in use"]);
    // init and join need the store, too.
    report.expect("init beside a daemon", &alpha.run(&["init"]), 6, &["in use"]);

    // Another store, but the same sockets.
    let beta = lab.host("beta");
    let shared = text(alpha.admin_socket().parent().expect("a directory"));
    report.expect("socket in use", &up(&beta, &["--socket-dir", &shared]), 6, &["another daemon listens"]);
    // Ports that are taken.
    for (flag, taken) in [
        ("--control-listen", alpha.control()),
        ("--data-listen", alpha.data()),
        ("--http-listen", alpha.http()),
    ] {
        let gamma = lab.host(&format!("gamma{}", taken.port()));
        let mut command = gamma.command();
        command.args(["up", "--no-mdns"]);
        for other in ["--control-listen", "--data-listen", "--http-listen"] {
            let address = if other == flag { taken.to_string() } else { "127.0.0.1:0".into() };
            command.args([other, &address]);
        }
        let mut child = command
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .expect("the program runs");
        let ended = weighlock_tests::wait::found_within(weighlock_tests::PATIENCE, || {
            child.try_wait().expect("waited")
        });
        if ended.is_none() {
            child.kill().expect("killed");
        }
        let ran = Ran::of(child.wait_with_output().expect("its output"));
        report.expect(&format!("{flag} taken"), &ran, 6, &[flag, &taken.to_string()]);
        let keys = lab.path(&format!("gamma{}", taken.port())).join("keys");
        assert!(!keys.exists(), "{flag} taken: it founded a cluster all the same");
    }

    // Paths that do not fit into a socket address, and things in the way of a socket.
    let deep = lab.path(&"d".repeat(120));
    report.expect(
        "over-long socket path",
        &up(&beta, &["--socket-dir", &text(&deep)]),
        2,
        &["107", "--socket-dir"],
    );
    assert!(!deep.exists(), "nothing was made there");
    let blocked = lab.path("blocked");
    fs::create_dir_all(&blocked).expect("made");
    fs::write(blocked.join("weighlock.sock"), "mine").expect("written");
    report.expect(
        "a file in place of the socket",
        &up(&beta, &["--socket-dir", &text(&blocked)]),
        2,
        &["not a socket"],
    );
    assert_eq!(fs::read(blocked.join("weighlock.sock")).expect("there"), b"mine");

    // A data directory that is a file.
    let file = lab.path("file");
    fs::write(&file, "mine").expect("written");
    let mut delta = lab.host("delta");
    delta.data_dir = file.clone();
    let ran = up(&delta, &[]);
    assert!(ran.code != Some(0) && ran.stderr.contains("error: "), "{}", ran.stderr);
    assert_eq!(fs::read(&file).expect("there"), b"mine");

    assert!(alpha.runs() && alpha.run(&["status"]).code == Some(0), "the first one never noticed");
    report.done();
}

#[test]
fn configuration_is_checked_to_the_letter() {
    let lab = Lab::new();
    let host = lab.host("alpha");
    let mut report = Report::default();
    let cases = [
        ("unknown key", "frobnicate = 1\n", "frobnicate"),
        ("unknown key in a table", "[limits]\nuplods_max = 3\n", "uplods_max"),
        ("unknown table", "[limts]\nuploads_max = 3\n", "limts"),
        ("wrong type", "[limits]\nuploads_max = \"many\"\n", "uploads_max"),
        ("out of range", "[limits]\nuploads_max = 0\n", "limits.uploads_max"),
        ("no TOML", "[limits\n", "config.toml"),
        ("bad address", "[listen]\ncontrol = \"nowhere\"\n", "control"),
        ("bad log level", "[log]\nlevel = \"infoo\"\n", "infoo"),
    ];
    for (what, toml, word) in cases {
        host.configure(toml);
        // Any command reads it, the daemon and the checker with it.
        for arguments in [vec!["config", "check"], vec!["ls"]] {
            report.expect(&format!("{what}: {arguments:?}"), &host.run(&arguments), 2, &[word]);
        }
        report.expect(&format!("{what}: up"), &up(&host, &[]), 2, &[word]);
    }
    host.configure("");
    report.expect(
        "missing file",
        &host.run(&["config", "check", &text(&lab.path("gone.toml"))]),
        2,
        &["gone.toml"],
    );
    assert_eq!(host.ok(&["config", "check"])["ok"], true);
    assert!(!host.data_dir.exists(), "no store was made");
    report.done();
}

#[test]
fn tickets_that_do_not_let_in() {
    let lab = Lab::new();
    let alpha = lab.founder("alpha");
    let other = lab.founder("other");
    let (ours, theirs) = (alpha.ticket(&[]), other.ticket(&[]));
    let mut report = Report::default();
    let join = |host: &Host, ticket: &str| {
        let file = lab.path("ticket");
        fs::write(&file, ticket).expect("written");
        host.run(&["join", "--file", &text(&file)])
    };

    let fresh = lab.host("fresh");
    let mut flipped = ours.clone().into_bytes();
    let middle = flipped.len() / 2;
    flipped[middle] = if flipped[middle] == b'A' { b'B' } else { b'A' };
    let flipped = String::from_utf8(flipped).expect("ASCII");
    for (what, ticket) in [
        ("empty", ""),
        ("no ticket", "hello"),
        ("cut short", &ours[..ours.len() - 9]),
        ("cut to its head", &ours[..12]),
        ("a letter changed", &flipped),
        ("of a later format", &ours.replacen("weighlock1", "weighlock9", 1)),
        ("two glued together", &format!("{ours}{theirs}")),
    ] {
        report.expect(what, &join(&fresh, ticket), 2, &[]);
    }
    report.expect("a missing file", &fresh.run(&["join", "--file", &text(&lab.path("gone"))]), 2, &["gone"]);
    report.expect("none at all", &fresh.run(&["join"]), 2, &["no ticket"]);
    assert!(!fresh.data_dir.join("weighlock.redb").exists(), "no store was made of them");

    // Expired, by the joiner's own clock.
    let invited = alpha.ok(&["invite", "--expires", "1s"]);
    until("the ticket has expired", || (unix_now() > number(&invited["expires"])).then_some(()));
    report.expect("expired", &join(&fresh, &string(&invited["ticket"])), 5, &["expired"]);

    // Of another cluster, on a host that belongs to one, with its daemon and without.
    report.expect("another cluster, daemon runs", &join(&alpha, &theirs), 5, &["belongs to cluster"]);
    let mut member = lab.joined("member", &alpha);
    assert!(member.term().success());
    report.expect("another cluster, daemon stopped", &join(&member, &theirs), 5, &["belongs to cluster"]);

    // Used up, on another host, with the inviter there to say so.
    let once = alpha.ticket(&["--uses", "1"]);
    let first = join(&lab.host("first"), &once);
    assert_eq!((first.code, &first.last()["pending"]), (Some(0), &false.into()), "{}", first.stdout);
    let second = join(&lab.host("second"), &once);
    assert_ne!(
        second.code,
        Some(0),
        "a used ticket let another host in: {}; now {}",
        second.stdout,
        alpha.ok(&["member", "list"])
    );
    report.expect("used up", &second, 5, &[]);
    assert_eq!(alpha.ok(&["status"])["members"], 3, "alpha, member and first");
    report.done();
}

fn unix_now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.expect("a clock after 1970").as_secs()
}

/// A tmpfs that is unmounted on drop.
pub(crate) struct Tmpfs(PathBuf);

impl Tmpfs {
    pub(crate) fn mount(path: PathBuf, size: &str) -> Self {
        let root = rustix::process::geteuid().is_root();
        assert!(root, "this test mounts a small tmpfs to run out of space: it must be run as root");
        fs::create_dir_all(&path).expect("a mount point");
        let option = format!("size={size}");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &option, "weighlock-test"]).arg(&path).status();
        assert!(mounted.expect("mount runs").success(), "cannot mount a tmpfs");
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_loses_nothing() {
    let lab = Lab::new();
    let disk = Tmpfs::mount(lab.path("disk"), "40m");
    let (small, big) = (lab.path("small"), lab.path("big/model.safetensors"));
    checkpoint::hugging_face(&small, 1, 2);
    checkpoint::single(&big, 2, 64 << 20);
    let mut tight = lab.host("tight");
    tight.data_dir = disk.path().join("data");
    tight.configure("[limits]\nfree_bytes_min = 4194304\n");
    tight.start();
    tight.add(&small, "acme/small:1.0.0");
    let before = tight.contents();
    let mut report = Report::default();
    report.expect("add", &tight.run(&["add", &text(&big), "acme/big:1.0.0"]), 6, &["space"]);
    assert_eq!(tight.contents(), before, "nothing of it is left");

    // The same on the receiving side.
    let roomy = lab.joined("roomy", &tight);
    roomy.add(&big, "acme/big:1.0.0");
    tight.hears_of("acme/big:1.0.0");
    report.expect("path", &tight.run(&["path", "acme/big:1.0.0"]), 6, &["space"]);
    let error = tight.loader().open("acme/big:1.0.0").expect_err("no space");
    assert_eq!(error["code"], "unavailable", "{error}");
    assert!(tight.runs(), "{}", tight.log());
    // Everything else goes on.
    tight.loader().open("acme/small:1.0.0").expect("opened");
    roomy.hears_of("acme/small:1.0.0");
    roomy.loader().open("acme/small:1.0.0").expect("fetched from the full host");
    assert_eq!(tight.ok(&["status"])["layers"], before_layers(&tight, "acme/small:1.0.0"));
    assert!(tight.term().success());
    report.done();
}

/// Sealed layers that a host with only `reference` has: its files, its contract and its configuration.
fn before_layers(host: &Host, reference: &str) -> serde_json::Value {
    let files = host.ok(&["inspect", reference])["files"].as_array().map_or(0, Vec::len);
    (files + 2).into()
}
