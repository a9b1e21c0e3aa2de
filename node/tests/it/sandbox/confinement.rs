//! What an evaluator cannot reach: files, sockets, networks, secrets.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::Duration;

use super::*;

/// What this binary does as an evaluator. The exit code says how it went: 0 as the act's name says.
pub(super) fn act(act: &str) -> i32 {
    let (act, rest) = act.split_once(' ').unwrap_or((act, ""));
    let worked = match act {
        "connect" => {
            let address = rest.parse().expect("an address");
            TcpStream::connect_timeout(&address, Duration::from_secs(5)).is_ok()
        }
        "unix" => UnixStream::connect(rest).is_ok(),
        "abstract" => SocketAddr::from_abstract_name(rest).and_then(|a| UnixStream::connect_addr(&a)).is_ok(),
        "loopback" => {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            TcpStream::connect(listener.local_addr().expect("bound")).is_ok()
        }
        "vsock" => {
            let family = rustix::net::AddressFamily::from_raw(40);
            rustix::net::socket(family, rustix::net::SocketType::STREAM, None).is_ok()
        }
        "reserve" => Vec::<u8>::with_capacity(4 << 30).capacity() > 0,
        "eat" => {
            let mut eaten = Vec::new();
            for _ in 0..rest.parse::<usize>().expect("MiB") {
                eaten.push(vec![1_u8; 1 << 20]);
            }
            eaten.iter().map(|part| usize::from(part[part.len() - 1])).sum::<usize>() == eaten.len()
        }
        _ => panic!("no act {act}"),
    };
    i32::from(!worked)
}

/// An address of this host that is not its loopback, if it has a route anywhere. Nothing is sent.
fn outer_address() -> Option<std::net::IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
}

#[test]
fn it_reads_the_model_and_leaves_a_report_and_a_log() {
    for mode in modes() {
        let script = r#"cat "$1/weights"; echo oops >&2; pwd; echo '{"n": 1}' > "$2/report.json"; mkdir "$2/d"; cp "$1/weights" "$2/d/s""#;
        let bench = Bench::sh(mode, script);
        let outcome = bench.outcome();
        assert_eq!(outcome.ended, Ended::Exit(0), "{mode:?}");
        assert_eq!(bench.log(), "weightsoops\n/\n", "{mode:?}");
        let files: Vec<(&str, u64)> =
            outcome.files.iter().map(|file| (file.path.as_str(), file.bytes)).collect();
        assert_eq!(files, [("d/s", 7), ("report.json", 9)]);
        assert_eq!((outcome.printed_bytes, outcome.left_out_bytes), (14, 0));
        let swept = mode.swept();
        assert_eq!(outcome.record.missing.is_empty(), !swept, "{:?}", outcome.record);
        assert_eq!(outcome.record.pids == Pids::Swept, swept);
    }
}

#[test]
fn what_it_prints_is_shown_live() {
    let order = Bench::sh(Mode::Full, "echo one; echo two >&2");
    let Bench { dir: _dir, order, .. } = order;
    let mut shown = Vec::new();
    run(&order.spec(), &mut |bytes| shown.extend_from_slice(bytes)).expect("run");
    assert_eq!(String::from_utf8_lossy(&shown), "one\ntwo\n");
}

#[test]
fn it_changes_nothing_outside_of_its_two_directories() {
    for mode in modes() {
        let script = r#"
            echo x > "$1/weights" || echo refused
            echo x > "$1/new" || echo refused
            rm -f "$1/weights" || echo refused
            chmod 600 "$1/weights" || echo refused
            mv "$1" "$1-moved" || echo refused
            echo x > "$2/../beside" || echo refused
            echo x > "$2/../../beside" || echo refused
            rmdir "$2" || echo refused
            ln "$1/weights" "$2/hard" || echo refused
            echo x > "$TMPDIR/mine" && echo allowed
            echo x > "$2/mine" && echo allowed"#;
        let bench = Bench::sh(mode, script);
        let outcome = bench.outcome();
        let log = bench.log();
        let of = |word| log.lines().filter(|line| *line == word).count();
        // Landlock knows no right over modes.
        let refused = if mode.swept() { 8..=9 } else { 9..=9 };
        assert!(refused.contains(&of("refused")) && of("allowed") == 2, "{mode:?}: {log}");
        assert_eq!(fs::read(bench.order.model.join("weights")).expect("there"), b"weights");
        assert_eq!(fs::read_dir(&bench.order.model).expect("there").count(), 1);
        assert!(!bench.dir.path().join("beside").exists() && !bench.order.work.join("beside").exists());
        assert_eq!(outcome.files.len(), 1, "{mode:?}: {:?}", outcome.files);
    }
}

#[test]
fn it_reaches_no_listener_of_the_host() {
    let mut listeners = vec![TcpListener::bind("127.0.0.1:0").expect("bound")];
    listeners.extend(outer_address().map(|ip| TcpListener::bind((ip, 0)).expect("bound")));
    for listener in &listeners {
        listener.set_nonblocking(true).expect("nonblocking");
        let address = listener.local_addr().expect("bound");
        assert_eq!(act(&format!("connect {address}")), 0, "without a sandbox it is reached");
        listener.accept().expect("that was us");
        for mode in modes() {
            let outcome = Bench::act(mode, &format!("connect {address}")).outcome();
            assert_eq!(outcome.ended, Ended::Exit(1), "{mode:?} {address}");
            let came = listener.accept().expect_err("nobody came");
            assert_eq!(came.kind(), std::io::ErrorKind::WouldBlock);
        }
    }
}

#[test]
fn it_has_a_loopback_of_its_own_and_no_other_kinds_of_sockets() {
    for mode in modes() {
        let expected = if mode.swept() { 101 } else { 0 };
        assert_eq!(Bench::act(mode, "loopback").outcome().ended, Ended::Exit(expected), "{mode:?}");
        assert_eq!(Bench::act(mode, "vsock").outcome().ended, Ended::Exit(1), "{mode:?}");
    }
}

#[test]
fn it_reaches_no_socket_of_other_programs() {
    for mode in modes().into_iter().filter(|mode| !mode.swept()) {
        let mut bench = Bench::act(mode, "");
        let path = bench.dir.path().join("a socket");
        let listener = UnixListener::bind(&path).expect("bound");
        fs::set_permissions(&path, Permissions::from_mode(0o777)).expect("opened to all");
        bench.order.env.push(format!("{ROLE}=act unix {}", path.display()));
        assert_eq!(bench.outcome().ended, Ended::Exit(1), "{mode:?}");
        drop(listener);
    }
    for mode in modes() {
        let bench = Bench::act(mode, "");
        let name = SocketAddr::from_abstract_name(&bench.token).expect("a name");
        let listener = UnixListener::bind_addr(&name).expect("bound");
        let mut bench = bench;
        bench.order.env.push(format!("{ROLE}=act abstract {}", bench.token));
        assert_eq!(bench.outcome().ended, Ended::Exit(1), "{mode:?}");
        drop(listener);
    }
}

#[test]
fn it_gets_a_small_environment_and_no_input() {
    for mode in modes() {
        let mut bench = Bench::sh(mode, "env; echo input $(wc -c); cat /proc/1/environ /proc/$PPID/environ");
        bench.order.env.push("CHOSEN=yes".into());
        let outcome = bench.outcome();
        let log = bench.log();
        assert!(!log.contains("A_SECRET") && !log.contains("CARGO"), "{mode:?}: {log}");
        let out = outcome.out.display();
        for line in [
            format!("TOKEN={}", bench.token),
            format!("WEIGHLOCK_OUT={out}"),
            "input 0".into(),
            "CHOSEN=yes".into(),
        ] {
            assert!(log.lines().any(|found| found == line), "{mode:?}: {line} in {log}");
        }
        assert!(log.lines().any(|line| line.starts_with("HOME=") && line.ends_with("/work/tmp")), "{log}");
    }
}

#[test]
fn what_is_hidden_is_gone_and_the_model_inside_of_it_is_there() {
    for mode in modes().into_iter().filter(|mode| !mode.swept()) {
        let mut bench = Bench::sh(mode, r#"cat "$1/weights"; ls -A "$1/.."; cat "$1/../key""#);
        fs::write(bench.dir.path().join("key"), "hush").expect("written");
        bench.order.hidden = vec![bench.dir.path().to_owned(), "/etc/passwd".into(), "/not/there".into()];
        bench.order.command[2].push_str("; cat /etc/passwd");
        assert_eq!(bench.outcome().ended, Ended::Exit(0), "{mode:?}");
        let log = bench.log();
        assert!(
            log.contains("weights") && !log.contains("hush") && !log.contains("root:"),
            "{mode:?}: {log}"
        );
    }
}

#[test]
fn it_has_no_rights_over_the_machine() {
    for mode in modes() {
        let script = "grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status
            test -w /proc/sys/kernel/core_pattern && (echo x > /proc/sys/kernel/core_pattern) && echo escaped
            mount -t tmpfs x /mnt && echo escaped
            mount -o remount,rw,bind / && echo escaped
            unshare -Urm mount -o remount,rw,bind / && echo escaped
            mknod \"$2/disk\" b 7 0 && echo escaped
            true";
        let bench = Bench::sh(mode, script);
        let before = fs::read("/proc/sys/kernel/core_pattern").expect("read");
        assert_eq!(bench.outcome().ended, Ended::Exit(0));
        let after = fs::read("/proc/sys/kernel/core_pattern").expect("read");
        if after != before {
            fs::write("/proc/sys/kernel/core_pattern", &before).expect("put back");
        }
        assert_eq!(after, before, "{mode:?}");
        let log = bench.log();
        // The superuser still reads files of other users.
        let root = rustix::process::geteuid().is_root() && !mode.nobody();
        let capabilities = format!("CapEff:\t{:016x}", if root { 4 } else { 0 });
        assert!(log.contains(&capabilities) && log.contains("NoNewPrivs:\t1"), "{mode:?}: {log}");
        assert!(log.contains("Seccomp:\t2") && !log.contains("escaped"), "{mode:?}: {log}");
    }
}

#[test]
fn devices_of_the_host_are_out_of_reach_and_common_ones_are_not() {
    for mode in modes().into_iter().filter(|mode| !mode.swept()) {
        let script = "head -c 4 /dev/urandom | wc -c; echo x > /dev/null && echo fine; echo x > /dev/shm/$0 && cat /dev/shm/$0
            for f in /dev/* /dev/*/*; do test -b $f && echo block $f; done; ls /run | wc -l";
        let bench = Bench::sh(mode, script);
        bench.outcome();
        assert_eq!(bench.log(), "4\nfine\nx\n0\n", "{mode:?}");
        assert!(!Path::new("/dev/shm").join(&bench.token).exists());
    }
}

#[test]
fn a_descriptor_that_the_caller_left_open_is_closed() {
    let bench = Bench::sh(Mode::Full, "ls /proc/self/fd | wc -l");
    let (mut read, write) = std::io::pipe().expect("pipe");
    // Not close-on-exec, as a careless parent would have it.
    rustix::io::fcntl_setfd(&write, rustix::io::FdFlags::empty()).expect("set");
    bench.outcome();
    drop(write);
    // Standard ones and that of the listing.
    assert_eq!(bench.log(), "4\n");
    let mut rest = Vec::new();
    read.read_to_end(&mut rest).expect("nobody holds it any more");
    std::io::sink().write_all(&rest).expect("nothing");
}
