//! Garbage on every port and socket: the daemon says no, or nothing, and works on.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use weighlock_tests::{Host, Lab, PATIENCE, checkpoint};

const MODEL: &str = "acme/model:1.0.0";

fn random(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    ChaCha8Rng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

/// A frame of the local sockets.
fn frame(body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32).to_be_bytes()[..], body].concat()
}

/// Datagrams that are nothing, and some that begin as QUIC packets do.
fn datagrams() -> Vec<Vec<u8>> {
    let mut draw = ChaCha8Rng::seed_from_u64(11);
    let mut all: Vec<Vec<u8>> = (0..200).map(|i| random(i, draw.random_range(0..1500))).collect();
    for first in [0xc0u8, 0xd0, 0xe0, 0xf0, 0x40, 0x7f, 0xff] {
        for version in [0u32, 1, 0x6b33_43cf, 0xffff_ffff] {
            // Long header: version, connection ids with lengths that may lie, then rubbish.
            for id_len in [0u8, 8, 20, 255] {
                let tail = random(u64::from(first) + u64::from(id_len), 1300);
                all.push([&[first][..], &version.to_be_bytes(), &[id_len], &tail].concat());
            }
        }
    }
    all
}

/// Byte strings for a stream.
fn streams() -> Vec<Vec<u8>> {
    let mut all = vec![
        vec![0],
        vec![0; 4096],
        vec![0xff; 4096],
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        b"\x13/multistream/1.0.0\n\x07/noise\n".to_vec(),
        [&b"\x13/multistream/1.0.0\n\x07/noise\n"[..], &random(1, 500)].concat(),
        b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f/multistream".to_vec(),
    ];
    all.extend((0..20).map(|seed| random(seed, 3000)));
    all
}

/// Sends bytes, closes the sending side and reads until the other side closes.
fn send<S: Read + Write>(mut stream: S, bytes: &[u8], half_close: impl Fn(&S)) -> Vec<u8> {
    // The other side may have closed before all of it was sent.
    let _ = stream.write_all(bytes);
    half_close(&stream);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

fn send_unix(socket: &Path, bytes: &[u8]) -> Vec<u8> {
    let stream = UnixStream::connect(socket).expect("somebody listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout is taken");
    send(stream, bytes, |stream| drop(stream.shutdown(Shutdown::Write)))
}

fn check_alive(host: &mut Host, source: &Path) {
    assert!(host.runs(), "{} died:\n{}", host.name, host.log());
    assert!(!host.log().contains("panicked"), "{}", host.log());
    let opened = host.loader().open(MODEL).expect("opened");
    let expected = checkpoint::digests(source);
    for (path, file) in opened.files {
        assert_eq!(checkpoint::sha256(file), expected[&path]);
    }
}

#[test]
fn garbage_on_network_ports() {
    let lab = Lab::new();
    let source = lab.path("source");
    checkpoint::hugging_face(&source, 1, 1);
    let mut alpha = lab.founder("alpha");
    alpha.add(&source, MODEL);
    let before = alpha.contents();

    let udp = UdpSocket::bind("127.0.0.1:0").expect("a port");
    for target in [alpha.control(), alpha.data()] {
        for bytes in datagrams() {
            udp.send_to(&bytes, target).expect("sent");
        }
    }
    for target in [alpha.control(), alpha.http()] {
        for bytes in streams() {
            let stream = TcpStream::connect(target).expect("somebody listens");
            stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout is taken");
            let answer = send(stream, &bytes, |stream| drop(stream.shutdown(Shutdown::Write)));
            let answer = String::from_utf8_lossy(&answer);
            assert!(!answer.contains("acme") && !answer.contains("weighlock_"), "{answer}");
        }
    }
    // A head without end.
    let long = [b"GET / HTTP/1.1\r\nX: ".to_vec(), vec![b'x'; 1 << 20]].concat();
    let stream = TcpStream::connect(alpha.http()).expect("somebody listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout is taken");
    let answer = send(stream, &long, |_| {});
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"), "{:?}", String::from_utf8_lossy(&answer));

    assert_eq!(alpha.contents(), before);
    check_alive(&mut alpha, &source);
    assert_eq!(weighlock_tests::http::get(alpha.http(), "localhost", "/healthz").0, 200);
    // Both planes work for those who speak their protocols.
    let mut beta = lab.joined("beta", &alpha);
    beta.hears_of(MODEL);
    check_alive(&mut beta, &source);
}

#[test]
fn garbage_on_local_sockets() {
    let lab = Lab::new();
    let source = lab.path("source");
    checkpoint::hugging_face(&source, 1, 1);
    let mut alpha = lab.founder("alpha");
    alpha.add(&source, MODEL);
    let before = alpha.contents();
    let deep = [vec![b'['; 100_000], vec![b']'; 100_000]].concat();
    let mut cases: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", vec![]),
        ("half a length", vec![0, 0]),
        ("an absurd length", vec![0xff; 4]),
        ("a length just over the limit", ((16u32 << 20) + 1).to_be_bytes().to_vec()),
        ("a frame cut short", frame(b"{\"op\":\"hello\"}")[..8].to_vec()),
        ("an empty frame", frame(b"")),
        ("no JSON", frame(b"hello")),
        ("no object", frame(b"[1, 2]")),
        ("no op", frame(b"{}")),
        ("an unknown op", frame(b"{\"op\":\"frobnicate\"}")),
        ("fields of the wrong type", frame(b"{\"op\":\"open\",\"ref\":7}")),
        ("fields missing", frame(b"{\"op\":\"open\"}")),
        ("no UTF-8", frame(&[0xff, 0xfe, 0x80])),
        ("absurd nesting", frame(&deep)),
    ];
    cases.extend((0..10).map(|seed| ("random bytes", random(seed, 200))));
    cases.extend((0..10).map(|seed| ("a random frame", frame(&random(seed, 200)))));
    for socket in [alpha.loader_socket(), alpha.admin_socket()] {
        for (what, bytes) in &cases {
            let answer = send_unix(&socket, bytes);
            if answer.is_empty() {
                continue;
            }
            // What is answered is one error frame.
            let body: Value = serde_json::from_slice(&answer[4..]).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!(
                (&body["event"], &body["code"]),
                (&json!("error"), &json!("invalid")),
                "{what}: {body}"
            );
        }
    }
    // A bad reference leaves the socket usable.
    let mut loader = alpha.loader();
    for bad in ["", "acme", "acme/model", "../x:1"] {
        assert_eq!(loader.open(bad).expect_err("refused")["code"], "invalid", "{bad:?}");
    }
    assert_eq!(loader.open("acme/model:production").expect_err("none yet")["code"], "not_found");
    loader.open(MODEL).expect("the socket is usable");
    drop(loader);
    // Many that connect, say nothing and go.
    let idle: Vec<_> =
        (0..200).map(|_| UnixStream::connect(alpha.loader_socket()).expect("connected")).collect();
    check_alive(&mut alpha, &source);
    drop(idle);
    assert_eq!(alpha.contents(), before);
    check_alive(&mut alpha, &source);
}
