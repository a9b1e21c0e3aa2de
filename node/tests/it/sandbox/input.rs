//! What a user can get wrong, and what the caller can demand.

use super::*;

const ALL: [Means; 7] = [
    Means::UserNamespace,
    Means::PidNamespace,
    Means::MountNamespace,
    Means::NetNamespace,
    Means::Landlock,
    Means::Seccomp,
    Means::Cgroup,
];

#[test]
fn a_program_that_cannot_be_run_is_named() {
    for mode in modes() {
        let error = Bench::new(mode, "no-such-program --x {path}").run().expect_err("not there");
        assert!(error.contains("\"no-such-program\""), "{error}");
        // Directories on PATH that are closed to nobody make another error of it.
        assert!(mode.nobody() || error.contains("No such file"), "{error}");
        assert!(error.contains("; give its full path"), "{error}");
        let error = Bench::new(mode, "{path}/weights").run().expect_err("not a program");
        assert!(error.contains("Permission denied"), "{error}");
    }
}

#[test]
fn words_and_directories_arrive_as_they_are() {
    let bench =
        Bench::new(Mode::Full, r#"printf '%s\n' '{path}' "a  b" --o={out}/r.json '$HOME' '*' {other}"#);
    let outcome = bench.outcome();
    let (model, out) = (bench.order.model.display(), outcome.out.display());
    assert!(model.to_string().contains("model's \"dir\""));
    assert_eq!(bench.log(), format!("{model}\na  b\n--o={out}/r.json\n$HOME\n*\n{{other}}\n"));
}

#[test]
fn a_full_sandbox_is_given_or_refused_before_anything_runs() {
    let mut bench = Bench::sh(Mode::Full, "touch $2/ran");
    bench.order.full = true;
    assert!(bench.run().expect("this host has all").record.missing.is_empty());
    for (lacking, name) in [
        (Means::PidNamespace, "PID namespace"),
        (Means::MountNamespace, "mount namespace"),
        (Means::Seccomp, "system call filter"),
    ] {
        let mut bench = Bench::sh(Mode::Full, "touch $2/ran");
        bench.order.full = true;
        bench.order.without.insert(lacking);
        let error = bench.run().expect_err("refused");
        assert!(error.contains(&format!("no {name} (not wanted)")), "{error}");
        assert!(!bench.order.work.join("out/ran").exists());
    }
}

#[test]
fn whatever_is_missing_the_rest_still_holds() {
    for lacking in ALL {
        let mut bench = Bench::sh(Mode::Full, r#"echo x > "$1/weights" || echo refused; echo x > "$2/r""#);
        bench.order.without.insert(lacking);
        let outcome = bench.outcome();
        assert_eq!((outcome.files.len(), bench.log().contains("refused")), (1, true), "{lacking:?}");
    }
    let mut bench = Bench::sh(Mode::Full, r#"echo x > "$1/weights"; echo x > "$2/r""#);
    bench.order.without.extend(ALL);
    let record = bench.outcome().record;
    assert_eq!((record.network, record.filesystem), (Network::Open, Filesystem::Open));
    assert!(record.to_string().contains("NETWORK OPEN, FILES WRITABLE"), "{record}");
}

#[test]
fn directories_and_limits_that_make_no_sense_are_refused() {
    type Change = fn(&mut Bench);
    let cases: [(Change, &str); 9] = [
        (|b| b.order.model.push("missing"), "cannot read"),
        (|b| b.order.work = b.order.model.clone(), "not empty"),
        (|b| b.order.work = b.order.model.join("work"), "lie in each other"),
        (|b| b.order.limits.wall_seconds = 0, "limit is zero"),
        (|b| b.order.limits.processes = 0, "limit is zero"),
        (|b| b.order.env.push("NOT_SET_ANYWHERE".into()), "NOT_SET_ANYWHERE is not set"),
        (|b| b.order.env.push("=x".into()), "names no variable"),
        (|b| b.order.hidden.push("relative".into()), "not absolute"),
        (|b| b.order.devices.push("/dev/no-such-gpu".into()), "not a character device"),
    ];
    for (change, expected) in cases {
        let mut bench = Bench::new(Mode::Full, "true");
        change(&mut bench);
        let error = bench.run().expect_err(expected);
        assert!(error.contains(expected) && error.contains("; "), "{error}");
    }
}

#[test]
fn the_hidden_command_by_hand_does_nothing() {
    for said in ["", "hello\n", "{\"Go\":1}\n"] {
        let mut child = Command::new(WEIGHLOCK)
            .arg("__sandbox")
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("started");
        std::io::Write::write_all(&mut child.stdin.take().expect("piped"), said.as_bytes()).expect("written");
        let ended = child.wait_with_output().expect("ended");
        assert_eq!(ended.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&ended.stderr).contains("`weighlock eval` alone"));
    }
}
