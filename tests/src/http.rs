//! The least HTTP client that can lie about the host it asks for, and a reader of metrics.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::wait::PATIENCE;

/// Status and body of `GET path`, asked of `address` under the name `host`.
///
/// # Panics
/// Nobody answers, or not in HTTP.
pub fn get(address: SocketAddr, host: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("somebody listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout is taken");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer in UTF-8");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    let body = if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        unchunked(body)
    } else {
        body.to_owned()
    };
    (status, body)
}

/// All samples of `/metrics` by name.
///
/// # Panics
/// They are not OpenMetrics text.
pub fn metrics(address: SocketAddr) -> BTreeMap<String, f64> {
    let (status, body) = get(address, &address.to_string(), "/metrics");
    assert_eq!(status, 200, "{body}");
    assert!(body.ends_with("# EOF\n"), "OpenMetrics ends with # EOF");
    let sample = |line: &str| {
        let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("not a sample: {line:?}"));
        let value = value.parse().unwrap_or_else(|_| panic!("not a number: {line:?}"));
        (name.to_owned(), value)
    };
    body.lines().filter(|line| !line.starts_with('#')).map(sample).collect()
}

fn unchunked(mut body: &str) -> String {
    let mut out = String::new();
    while let Some((len, rest)) = body.split_once("\r\n") {
        let len = usize::from_str_radix(len.trim(), 16).expect("the length of a chunk");
        out += &rest[..len];
        body = rest[len..].trim_start_matches("\r\n");
    }
    out
}
