//! Local abuse: descriptors run out, a thousand loaders, halves of frames, readers that do not read. Others go on.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use serde_json::json;
use weighlock_tests::host::text;
use weighlock_tests::loader::Loader;
use weighlock_tests::{Host, Lab, PATIENCE, checkpoint, http, until};

const MODEL: &str = "acme/model:1.0.0";
const MIB: u64 = 1 << 20;

fn founder_with_model(lab: &Lab, toml: &str) -> Host {
    let source = lab.path("source");
    checkpoint::hugging_face(&source, 1, 2);
    let mut alpha = lab.host("alpha");
    alpha.configure(toml);
    alpha.start();
    alpha.add(&source, MODEL);
    alpha
}

fn opens(loader: &mut Loader, lab: &Lab) {
    let opened = loader.open(MODEL).expect("opened");
    let expected = checkpoint::digests(&lab.path("source"));
    for (path, file) in opened.files {
        assert_eq!(checkpoint::sha256(file), expected[&path], "{path}");
    }
}

/// This process needs a descriptor for each connection, too.
fn raise_own_limit(wanted: u64) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|now| now < wanted) {
        let raised = Rlimit { current: Some(wanted), maximum: limit.maximum.map(|max| max.max(wanted)) };
        setrlimit(Resource::Nofile, raised).expect("this test needs descriptors: ulimit -n 4096");
    }
}

#[test]
fn without_descriptors_it_waits_and_goes_on() {
    let lab = Lab::new();
    let mut alpha = founder_with_model(&lab, "");
    let mut before_them = alpha.loader();
    before_them.hello();
    let contents = alpha.contents();
    let process = alpha.process();

    // A few are left: what needs more fails in one line and leaves nothing.
    until("the daemon is at rest", || {
        let now = process.descriptors();
        std::thread::sleep(Duration::from_millis(200));
        (process.descriptors() == now).then_some(())
    });
    process.limit_descriptors(process.descriptors() + 2);
    let ran = alpha.run(&["add", &text(&lab.path("source")), "acme/other:1.0.0"]);
    if ran.code != Some(0) {
        assert_eq!(ran.complaints(6), [""; 0]);
        assert!(ran.stderr.contains("Too many open files"), "{}", ran.stderr);
        assert!(ran.stderr.contains("LimitNOFILE"), "{}", ran.stderr);
    }
    let refused = before_them.open(MODEL);
    if let Err(error) = &refused {
        assert!(error["message"].as_str().is_some_and(|m| m.contains("open files")), "{error}");
        assert_eq!(error["code"], "unavailable", "{error}");
        assert!(error["hint"].as_str().is_some_and(|hint| hint.contains("LimitNOFILE")), "{error}");
    }
    drop(refused);

    // None is left: every door waits, without heat, and says so once.
    process.limit_descriptors(process.descriptors() + 4);
    let loaders: Vec<_> =
        (0..30).map(|_| UnixStream::connect(alpha.loader_socket()).expect("the kernel takes it")).collect();
    let pages: Vec<_> = (0..30).map(|_| TcpStream::connect(alpha.http()).expect("taken")).collect();
    let peers: Vec<_> = (0..30).map(|_| TcpStream::connect(alpha.control()).expect("taken")).collect();
    until("it says that it cannot accept", || {
        (alpha.logged("a local connection cannot be accepted") > 0).then_some(())
    });
    let (started, ticks) = (Instant::now(), process.ticks());
    std::thread::sleep(Duration::from_secs(3));
    let (waited, used) = (started.elapsed().as_millis() as u64 / 10, process.ticks() - ticks);
    assert!(used < waited / 4, "it runs hot: {used} of {waited} ticks");
    assert!(alpha.runs(), "{}", alpha.log());
    let said = alpha.logged("cannot be accepted");
    assert!((1..=3).contains(&said), "one line for each door: {said}\n{}", alpha.log());
    // Who has a connection is served as far as it goes.
    assert_eq!(before_them.hello()["event"], "hello");

    drop((loaders, pages, peers));
    alpha.loader().hello();
    process.limit_descriptors(4096);
    opens(&mut alpha.loader(), &lab);
    until("it says that it accepts again", || {
        // It hears of it with the next connection.
        alpha.loader().hello();
        (alpha.logged("local connections are accepted again") == 1).then_some(())
    });
    if ran.code == Some(0) {
        alpha.ok(&["rm", "acme/other:1.0.0"]);
    }
    assert_eq!(alpha.contents(), contents, "nothing half-written");
    alpha.add(&lab.path("source"), "acme/other:1.0.0");
    let beta = lab.joined("beta", &alpha);
    beta.hears_of(MODEL);
    opens(&mut beta.loader(), &lab);
    assert_eq!(alpha.logged("panicked"), 0);
}

#[test]
fn a_thousand_loaders_and_then_no_more() {
    raise_own_limit(4096);
    let lab = Lab::new();
    let alpha = founder_with_model(&lab, "[limits]\nlocal_connections_max = 1000\n");
    let before = alpha.process().anonymous_bytes();
    let mut loaders: Vec<Loader> = (0..1000).map(|_| alpha.loader()).collect();
    for loader in &mut loaders {
        loader.send(&json!({"v": 1, "op": "open", "ref": MODEL, "fds": "none"}));
    }
    for loader in &mut loaders {
        loader.answer("opened").expect("opened");
    }
    let grown = alpha.process().anonymous_bytes().saturating_sub(before);
    assert!(grown < 96 * MIB, "{} MiB for 1,000 loaders", grown / MIB);
    // One more is told why; the command line has room of its own.
    let (event, _) = alpha.loader().recv().expect("told");
    assert_eq!(
        (event["event"].as_str(), event["code"].as_str()),
        (Some("error"), Some("unavailable")),
        "{event}"
    );
    assert!(event["hint"].as_str().is_some_and(|hint| hint.contains("local_connections_max")), "{event}");
    for _ in 0..20 {
        drop(UnixStream::connect(alpha.loader_socket()).expect("connected"));
    }
    assert_eq!(alpha.logged("too many local connections"), 1, "{}", alpha.log());
    alpha.ok(&["status"]);
    assert_eq!(http::metrics(alpha.http())["weighlock_leases"], 1.0);
    assert_eq!(alpha.run(&["rm", MODEL]).code, Some(5), "it is open");
    opens(&mut loaders[500], &lab);

    drop(loaders);
    until("all leases are given back", || {
        (http::metrics(alpha.http())["weighlock_leases"] == 0.0).then_some(())
    });
    opens(&mut alpha.loader(), &lab);
}

#[test]
fn two_hundred_opens_at_once() {
    raise_own_limit(4096);
    let lab = Lab::new();
    let alpha = founder_with_model(&lab, "");
    let mut sources = vec![(MODEL.to_owned(), checkpoint::digests(&lab.path("source")))];
    for i in 1..20 {
        let (dir, reference) = (lab.path(&format!("source-{i}")), format!("acme/model-{i}:1.0.0"));
        checkpoint::hugging_face(&dir, 100 + i, 1);
        alpha.add(&dir, &reference);
        sources.push((reference, checkpoint::digests(&dir)));
    }
    let beta = lab.joined("beta", &alpha);
    for (reference, _) in &sources {
        beta.hears_of(reference);
    }
    let expected = &sources;
    // Of one, and of different ones; where they are, and where they are not yet.
    for (what, host, spread) in
        [("of one", &alpha, 1), ("of many", &alpha, 20), ("of many, on their way", &beta, 20)]
    {
        let together = Barrier::new(200);
        let before = host.process().anonymous_bytes();
        std::thread::scope(|scope| {
            for i in 0..200 {
                let together = &together;
                scope.spawn(move || {
                    let mut loader = host.loader();
                    together.wait();
                    let (reference, digests) = &expected[i % spread];
                    let opened =
                        loader.open(reference).unwrap_or_else(|e| panic!("{what}: {reference}: {e}"));
                    assert_eq!(opened.files.len(), digests.len(), "{what}: {reference}");
                    for (path, file) in opened.files {
                        assert_eq!(checkpoint::sha256(file), digests[&path], "{what}: {reference}: {path}");
                    }
                });
            }
        });
        let grown = host.process().anonymous_bytes().saturating_sub(before);
        assert!(grown < 128 * MIB, "{what}: {} MiB", grown / MIB);
    }
}

#[test]
fn halves_of_frames_and_readers_that_do_not_read_cost_nobody_else() {
    raise_own_limit(4096);
    let lab = Lab::new();
    let alpha = founder_with_model(&lab, "");
    let before = alpha.process().anonymous_bytes();
    let connect = || {
        let stream = UnixStream::connect(alpha.loader_socket()).expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout is taken");
        stream
    };
    let mut halves: Vec<UnixStream> = Vec::new();
    for i in 0..200u32 {
        let mut stream = connect();
        // A length that promises two MiB, and less, and nothing.
        let promised = (2u32 << 20) - 1;
        stream.write_all(&promised.to_be_bytes()[..1 + i as usize % 4]).expect("sent");
        if i % 4 == 3 {
            stream.write_all(&vec![b' '; 100_000]).expect("sent");
        }
        halves.push(stream);
    }
    // Requests whose answers nobody reads. They stop when the daemon no longer takes them.
    let request = json!({"op": "resolve", "ref": MODEL}).to_string();
    let frame = [&(request.len() as u32).to_be_bytes()[..], request.as_bytes()].concat().repeat(100);
    let mut deaf: Vec<UnixStream> = (0..20).map(|_| connect()).collect();
    for stream in &mut deaf {
        stream.set_write_timeout(Some(Duration::from_millis(300))).expect("a timeout is taken");
        while stream.write_all(&frame).is_ok() {}
    }
    let grown = alpha.process().anonymous_bytes().saturating_sub(before);
    assert!(grown < 64 * MIB, "{} MiB", grown / MIB);
    opens(&mut alpha.loader(), &lab);
    alpha.ok(&["status"]);
    // Given up, not waited for.
    for mut stream in halves {
        let mut rest = Vec::new();
        let ended = stream.read_to_end(&mut rest);
        let timed_out = |e: &std::io::Error| e.kind() == std::io::ErrorKind::WouldBlock;
        assert!(!ended.as_ref().is_err_and(timed_out), "it waits for the other half for ever");
    }
    opens(&mut alpha.loader(), &lab);
    drop(deaf);
    assert_eq!(alpha.logged("panicked"), 0);
}

#[test]
fn silence_and_dribbles_on_the_http_port_end() {
    raise_own_limit(4096);
    let lab = Lab::new();
    let alpha = lab.founder("alpha");
    let silent: Vec<TcpStream> = (0..200)
        .map(|i| {
            let mut stream = TcpStream::connect(alpha.http()).expect("the kernel takes it");
            if i % 2 == 0 {
                stream.write_all(b"GET /metrics HTTP/1.1\r\nX: ").expect("sent");
            }
            stream
        })
        .collect();
    let descriptors = alpha.process().descriptors();
    assert!(descriptors < 250, "{descriptors} descriptors");
    // It waits behind them, not for ever.
    assert_eq!(http::get(alpha.http(), "localhost", "/healthz").0, 200);
    alpha.ok(&["status"]);
    drop(silent);
}
