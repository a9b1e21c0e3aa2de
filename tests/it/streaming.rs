//! Opening what is still on its way: partial descriptors, waits, what is told of what is ready, and refusals.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use serde_json::{Value, json};
use weighlock_tests::host::{number, string, text};
use weighlock_tests::loader::Loader;
use weighlock_tests::{Host, Lab, checkpoint};

const MODEL: &str = "acme/big:1.0.0";
const PATH: &str = "model.safetensors";
/// Takes a while even over loopback.
const BYTES: u64 = 256 << 20;
const MIB: u64 = 1 << 20;

/// Two hosts; the first has a big file, the second fetches it from there at a limited rate.
struct Pair {
    alpha: Host,
    beta: Host,
    source: PathBuf,
    size: u64,
    _lab: Lab,
}

impl Pair {
    fn new() -> Self {
        let lab = Lab::new();
        let source = lab.path("source").join(PATH);
        checkpoint::single(&source, 9, BYTES);
        std::fs::write(lab.path("source").join("config.json"), "{\"hidden_size\": 4}").expect("a small file");
        let alpha = lab.founder("alpha");
        alpha.add(&lab.path("source"), MODEL);
        let mut beta = lab.joined("beta", &alpha);
        beta.configure("[limits]\ndownload_bytes_per_s = 67108864\n");
        assert!(beta.term().success());
        beta.start();
        beta.hears_of(MODEL);
        let size = source.metadata().expect("a file").len();
        Self { alpha, beta, source, size, _lab: lab }
    }

    fn original(&self, start: u64, end: u64) -> Vec<u8> {
        read(&File::open(&self.source).expect("the source"), start, end)
    }

    /// Bytes of the artifact that are on the second host.
    fn held(&self) -> u64 {
        number(&self.beta.listed(MODEL).expect("listed")["held_bytes"])
    }
}

fn read(file: &File, start: u64, end: u64) -> Vec<u8> {
    let mut bytes = vec![0; (end - start) as usize];
    file.read_exact_at(&mut bytes, start).expect("read");
    bytes
}

/// Opens, and stops the only source as soon as the first MiB is here.
fn opened_in_part(pair: &Pair) -> (Loader, String, File) {
    let mut loader = pair.beta.loader();
    let opened = loader.open_partial(MODEL).expect("opened");
    assert_eq!((&opened["complete"], &opened["fds"]), (&json!(false), &json!(0)), "{opened}");
    let digest = string(&opened["digest"]);
    loader.wait(&digest, PATH, &[(0, MIB)]).expect("the first MiB comes");
    pair.alpha.pause();
    assert!(pair.held() < pair.size / 2, "the fetch was over before it could be stopped");
    let file = loader.fds(&digest, &[PATH]).expect("a descriptor").remove(PATH).expect("it is there");
    (loader, digest, file)
}

#[test]
fn a_loader_reads_what_is_ready_and_waits_for_the_rest() {
    let pair = Pair::new();
    let (mut loader, digest, file) = opened_in_part(&pair);
    let size = pair.size;
    assert_eq!(file.metadata().expect("stat").len(), size, "of full length from the start");
    assert_eq!(file.metadata().expect("stat").mode() & 0o022, 0, "nobody else reopens it for writing");
    assert_eq!(file.write_at(b"x", 0).expect_err("read-only").raw_os_error(), Some(9), "EBADF");
    assert!(file.set_len(0).is_err());
    assert_eq!(read(&file, 0, MIB), pair.original(0, MIB));
    assert_eq!(read(&file, size - MIB, size), vec![0; MIB as usize], "not ready reads as zeros");

    // What is declared is the source's; the small files came first.
    let mut follower = pair.beta.loader();
    follower.open_partial(MODEL).expect("opened");
    follower.send(&json!({"op": "follow", "digest": digest}));
    let mut ready: BTreeMap<String, Vec<(u64, u64)>> = BTreeMap::new();
    let inode = file.metadata().expect("stat").ino();
    let mut hear = |event: &Value| {
        let ranges: Vec<(u64, u64)> = serde_json::from_value(event["ready"].clone()).expect("ranges");
        if event["path"] == PATH {
            assert_eq!(number(&event["inode"]), inode, "one file from the first byte to the last");
            for (start, end) in &ranges {
                assert!(start < end && *end <= size, "{event}");
                assert_eq!(read(&file, *start, *end), pair.original(*start, *end), "{start}..{end}");
            }
        }
        ready.entry(string(&event["path"])).or_default().extend(ranges);
        ready.len()
    };
    while hear(&follower.answer("ranges").expect("told").0) < 2 {}

    // A wait for the end does not end, and others are served meanwhile: on this host, by another socket.
    loader
        .send(&json!({"op": "wait", "digest": digest, "path": PATH, "ranges": [[size - MIB, size], [0, 1]]}));
    for _ in 0..2 {
        let (event, _) = loader.recv().expect("something");
        assert_eq!(event["event"], "progress", "{event}");
        assert!(number(&event["done_bytes"]) < number(&event["total_bytes"]), "{event}");
    }
    let mut other = pair.beta.loader();
    other.open_partial(MODEL).expect("opened");
    other.wait(&digest, "config.json", &[(0, 18)]).expect("ready");
    let config = other.fds(&digest, &["config.json"]).expect("a descriptor");
    assert_eq!(read(&config["config.json"], 0, 18), b"{\"hidden_size\": 4}");

    // Open in part is open.
    let removed = pair.beta.run(&["rm", MODEL]);
    assert_eq!(removed.complaints(5), [""; 0]);
    assert!(removed.stderr.contains("loader"), "{}", removed.stderr);

    pair.alpha.resume();
    let (event, _) = loader.answer("ready").expect("ready");
    assert_eq!(number(&event["inode"]), inode);
    assert_eq!(read(&file, size - MIB, size), pair.original(size - MIB, size));
    // All that is followed is told, once.
    loop {
        let (event, fds) = follower.recv().expect("an event");
        assert!(fds.is_empty());
        match event["event"].as_str() {
            Some("ranges") => drop(hear(&event)),
            Some("progress") => {}
            other => {
                assert_eq!(other, Some("complete"), "{event}");
                break;
            }
        }
    }
    let mut told = ready.remove(PATH).expect("told");
    told.sort_unstable();
    let ends: Vec<u64> = std::iter::once(0).chain(told.iter().map(|(_, end)| *end)).collect();
    let starts: Vec<u64> = told.iter().map(|(start, _)| *start).chain([size]).collect();
    assert_eq!(ends, starts, "no gap, no overlap");
    assert_eq!(ready["config.json"], [(0, 18)]);

    // Everything stays usable, and a later open finds the same file sealed.
    loader.wait(&digest, PATH, &[(0, size)]).expect("at once");
    let opened = pair.beta.loader().open_partial(MODEL).expect("opened");
    assert_eq!((&opened["complete"], &opened["incomplete"]), (&json!(true), &Value::Null), "{opened}");
    let sealed = pair.beta.loader().open(MODEL).expect("opened").files.remove(PATH).expect("it is there");
    assert_eq!(
        sealed.metadata().expect("stat").ino(),
        inode,
        "a mapping of the partial file is of the sealed one"
    );
    assert_eq!(sealed.metadata().expect("stat").mode() & 0o777, 0o440);
}

#[test]
fn a_wait_ends_with_the_fetch_and_may_be_asked_again() {
    let mut pair = Pair::new();
    let (mut loader, digest, file) = opened_in_part(&pair);
    let inode = file.metadata().expect("stat").ino();
    let size = pair.size;
    loader.send(&json!({"op": "wait", "digest": digest, "path": PATH, "ranges": [[0, size]]}));
    // By force it goes, and whoever waits is told.
    pair.beta.ok(&["rm", MODEL, "--force"]);
    let error = loader.answer("ready").expect_err("removed");
    assert_eq!(error["code"], "unavailable", "{error}");
    assert!(error["message"].as_str().is_some_and(|message| message.contains("removed")), "{error}");
    // What was mapped stays readable.
    assert_eq!(read(&file, 0, MIB), pair.original(0, MIB));

    // Asked again, it is fetched again, into another file; nobody is left in the belief that the old one grows.
    pair.alpha.resume();
    let (again, _) = loader.wait(&digest, PATH, &[(0, 1), (size - 1, size)]).expect("ready");
    assert_ne!(again, inode, "the old descriptor is out of date");
    let file = loader.fds(&digest, &[PATH]).expect("a descriptor").remove(PATH).expect("it is there");
    assert_eq!(file.metadata().expect("stat").ino(), again);
    loader.wait(&digest, PATH, &[(0, size)]).expect("ready");
    assert_eq!(read(&file, size - MIB, size), pair.original(size - MIB, size));
    assert!(pair.alpha.term().success());
}

#[test]
fn an_import_that_brings_the_bytes_first_gives_another_file() {
    let pair = Pair::new();
    let (mut loader, digest, file) = opened_in_part(&pair);
    let size = pair.size;
    loader.send(&json!({"op": "wait", "digest": digest, "path": PATH, "ranges": [[0, size]]}));
    pair.beta.add(&pair.source, "acme/same:1.0.0");
    let (event, _) = loader.answer("ready").expect("ready without the source");
    assert_ne!(number(&event["inode"]), file.metadata().expect("stat").ino());
    let now = loader.fds(&digest, &[PATH]).expect("a descriptor").remove(PATH).expect("it is there");
    assert_eq!(now.metadata().expect("stat").ino(), number(&event["inode"]));
    assert_eq!(read(&now, size - MIB, size), pair.original(size - MIB, size));
    assert_eq!(read(&file, 0, MIB), pair.original(0, MIB), "the old one keeps what was proven");
    pair.alpha.resume();
}

#[test]
fn absurd_waits_are_refused_and_the_socket_stays_usable() {
    let lab = Lab::new();
    checkpoint::single(&lab.path("source").join(PATH), 3, 100_000);
    let alpha = lab.founder("alpha");
    let digest = string(&alpha.add(&lab.path("source"), MODEL)["digest"]);
    let size = lab.path("source").join(PATH).metadata().expect("a file").len();
    let mut loader = alpha.loader();
    let refused = loader.wait(&digest, PATH, &[(0, 1)]).expect_err("not open");
    assert_eq!(refused["code"], "refused", "{refused}");
    let opened = loader.open_partial(MODEL).expect("opened");
    assert_eq!(opened["complete"], true, "{opened}");

    let many = vec![(0, 1); 1025];
    let ranges: [&[(u64, u64)]; 8] = [
        &[],
        &[(0, 0)],
        &[(2, 1)],
        &[(0, size + 1)],
        &[(0, u64::MAX)],
        &[(u64::MAX - 1, u64::MAX)],
        &[(0, 1), (size, size)],
        &many,
    ];
    for ranges in ranges {
        let error = loader.wait(&digest, PATH, ranges).expect_err("refused");
        assert_eq!(error["code"], "invalid", "{:?}: {error}", &ranges[..ranges.len().min(2)]);
    }
    for path in ["", "nothing.bin", "../weighlock.redb", "/etc/passwd", &text(&lab.path("source").join(PATH))]
    {
        let error = loader.wait(&digest, path, &[(0, 1)]).expect_err("refused");
        assert_eq!(error["code"], "refused", "{path:?}: {error}");
        loader.send(&json!({"op": "follow", "digest": digest, "paths": [path]}));
        assert_eq!(loader.answer("complete").expect_err("refused")["code"], "refused", "{path:?}");
    }
    loader.send(&json!({"op": "follow", "digest": digest, "paths": [PATH, PATH]}));
    assert_eq!(loader.answer("complete").expect_err("refused")["code"], "invalid");
    let other = format!("sha256:{}", "0".repeat(64));
    loader.send(&json!({"op": "follow", "digest": other}));
    assert_eq!(loader.answer("complete").expect_err("refused")["code"], "refused");

    // What is here is ready, all of it, at once.
    let (_, progress) = loader.wait(&digest, PATH, &[(0, size), (5, 6)]).expect("ready");
    assert!(progress.is_empty(), "{progress:?}");
    loader.send(&json!({"op": "follow", "digest": digest}));
    let (event, _) = loader.answer("ranges").expect("told");
    assert_eq!(event["ready"], json!([[0, size]]), "{event}");
    loader.answer("complete").expect("complete");

    // Numbers that are none end the conversation, as any frame does that is not understood.
    for ranges in ["[[-1,2]]", "[[0]]", "[[0,1,2]]", "[[0,1e3]]", "[[0,\"1\"]]", "7"] {
        let mut loader = alpha.loader();
        loader.open_partial(MODEL).expect("opened");
        let ranges: Value = serde_json::from_str(ranges).expect("JSON");
        loader.send(&json!({"op": "wait", "digest": digest, "path": PATH, "ranges": ranges}));
        assert_eq!(loader.answer("ready").expect_err("refused")["code"], "invalid", "{ranges}");
        assert!(loader.recv().is_err(), "{ranges}");
    }
}
