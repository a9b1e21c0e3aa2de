//! Bytes of every release, kept in `golden/RELEASE/`: what was sent then is read now, and what is sent now are those bytes.

use std::fs;
use std::path::PathBuf;

use super::bao::GroupSet;
use super::control::{Gossip, Request as ControlRequest, Response};
use super::data::{Hello, ObserveItem, Request};
use super::join::{Contact, JoinAnswer, JoinRequest};
use super::swarm::Frame;
use crate::statement::{Envelope, Keypair};
use crate::swarm::RackId;
use crate::{ClusterId, KeyId, LayerId, ManifestDigest};

/// The release whose bytes this build must send.
const CURRENT: &str = "0.1.0";

fn releases() -> Vec<PathBuf> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden");
    let entries = fs::read_dir(&dir).expect("golden/ lies in the package");
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    found.sort();
    assert!(found.iter().all(|path| path.is_dir()), "golden/ holds one directory for each release");
    assert!(found.iter().any(|path| path.ends_with(CURRENT)), "one of them is this one's");
    found
}

/// Frames of links, requests and messages of the data port, by kind.
fn samples() -> Vec<(String, Vec<u8>)> {
    let named = |kind: &str, of: &str, bytes: Vec<u8>| (format!("{kind}-{of}"), bytes);
    let frame = |of: &str, frame: Frame| named("frame", of, frame.encode());
    let request = |of: &str, request: Request| named("request", of, request.encode());
    let layer = LayerId([5; 32]);
    let observed = ObserveItem::of_groups(&GroupSet::from(1..3), 60_000).encode().expect("a short item");
    let contact = Contact {
        host: KeyId([3; 32]),
        control: vec![([127, 0, 0, 1], 7400).into()],
        data: vec![([127, 0, 0, 1], 7401).into()],
    };
    let envelope = Envelope::sign(b"{}".to_vec(), &[&Keypair::from_seed([1; 32])]);
    let hello = Hello {
        version: 1,
        cluster: ClusterId([1; 32]),
        capabilities: 7,
        software: "weighlock 0.1.0".into(),
    };
    vec![
        frame("begin", Frame::Begin { piece_bytes: 1 << 20, rack: Some(RackId(7)), releasing: true }),
        frame(
            "bitfield",
            Frame::Bitfield { layers: vec![(0, GroupSet::from(0..4)), (9, GroupSet::from(2..))] },
        ),
        frame("news", Frame::News { held: vec![0, 3, 4_000_000_000], load: 4 }),
        frame("coming", Frame::Coming { pieces: vec![1] }),
        frame("lost", Frame::Lost { pieces: vec![2] }),
        frame("grant", Frame::Grant { piece: Some(300) }),
        frame("decline", Frame::Decline { piece: None, load: 3 }),
        frame("ask", Frame::Ask { piece: 5, urgent: true }),
        request("get", Request::get(layer, &GroupSet::from(1..3), 60_000)),
        request("observe", Request::Observe { layer }),
        request("link", Request::Link { manifest: ManifestDigest([6; 32]) }),
        request("tree", Request::Tree { layer }),
        named("observed", "item", observed),
        named("hello", "data", hello.encode()),
        named("join", "request", JoinRequest { statements: vec![envelope.clone()] }.encode()),
        named(
            "welcome",
            "answer",
            JoinAnswer::Welcome { statements: vec![envelope], hosts: vec![contact] }.encode(),
        ),
        named("welcome", "refusal", JoinAnswer::Refused { reason: "expired".into() }.encode()),
    ]
}

/// Whether this build understands a line of a golden file.
fn understood(name: &str, bytes: &[u8]) -> bool {
    match name.split('-').next() {
        Some("frame") => Frame::parse(&bytes[4..]).is_ok_and(|frame| frame.is_some()),
        Some("request") => Request::parse(bytes).is_ok(),
        // A length of one byte in front.
        Some("observed") => ObserveItem::parse(&bytes[1..]).is_ok(),
        Some("hello") => Hello::parse(&bytes[2..]).is_ok(),
        Some("join") => JoinRequest::parse(bytes).is_ok(),
        Some("welcome") => JoinAnswer::parse(bytes).is_ok(),
        _ => false,
    }
}

fn control_understood(name: &str, bytes: &[u8]) -> bool {
    match name.split('-').next() {
        Some("gossip") => Gossip::decode(bytes).is_ok(),
        Some("request") => ControlRequest::decode(bytes).is_ok(),
        Some("response") => Response::decode(bytes).is_ok(),
        _ => false,
    }
}

fn lines(text: &str) -> Vec<(String, Vec<u8>)> {
    let parse = |line: &str| {
        let (name, hex) = line.split_once(' ').expect("a name and hex digits");
        (name.to_owned(), data_encoding::HEXLOWER.decode(hex.as_bytes()).expect("hex digits"))
    };
    text.lines().map(parse).collect()
}

#[test]
fn the_bytes_that_this_build_must_send_are_those_of_its_own_version() {
    let why = "a new version freezes bytes of its own: set CURRENT, then run `write_golden_file`";
    assert_eq!(CURRENT, env!("CARGO_PKG_VERSION"), "{why}");
}

#[test]
fn bytes_of_every_release_are_read() {
    let mut read = 0;
    for release in releases() {
        for entry in fs::read_dir(&release).expect("a directory") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            let text = fs::read_to_string(&path).expect("text");
            match name.as_str() {
                "data.txt" => {
                    for (line, bytes) in lines(&text) {
                        assert!(understood(&line, &bytes), "{}: {line}", path.display());
                        read += 1;
                    }
                }
                _ if name.starts_with("control-") => {
                    for (line, bytes) in lines(&text) {
                        assert!(control_understood(&line, &bytes), "{}: {line}", path.display());
                        read += 1;
                    }
                }
                _ if name.ends_with(".json") => {
                    Envelope::parse(text.as_bytes()).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                    read += 1;
                }
                _ => panic!("{} is of no kind that is tested", path.display()),
            }
        }
    }
    assert!(read >= 40, "{read} messages and statements");
}

#[test]
fn this_build_sends_the_bytes_of_its_release() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden").join(CURRENT).join("data.txt");
    let text = fs::read_to_string(&path).expect("the golden file");
    let known = lines(&text);
    let now = samples();
    assert_eq!(known.len(), now.len(), "a kind without golden bytes, or one that is gone");
    for ((name, bytes), (known_name, known_bytes)) in now.into_iter().zip(known) {
        assert_eq!(
            (&name, data_encoding::HEXLOWER.encode(&bytes)),
            (&known_name, data_encoding::HEXLOWER.encode(&known_bytes)),
            "the wire format of {name} changed: that needs a new kind or version"
        );
    }
}

#[test]
fn what_a_newer_release_appends_or_adds_is_skipped() {
    for (name, bytes) in samples() {
        let longer = [&bytes[..], &[9, 9, 9]].concat();
        // Others are one request a stream, and the join door is versioned by its first byte.
        if let Some("frame" | "hello") = name.split('-').next() {
            assert!(understood(&name, &longer), "{name} with appended fields");
        }
    }
    assert_eq!(Frame::parse(&[0xee, 1, 2, 3]), Ok(None), "a kind of frame that is not known yet");
}

#[test]
#[ignore = "writes the file; run it only for a new release or a new kind"]
fn write_golden_file() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden").join(CURRENT);
    fs::create_dir_all(&dir).expect("a directory");
    let line =
        |(name, bytes): (String, Vec<u8>)| format!("{name} {}\n", data_encoding::HEXLOWER.encode(&bytes));
    fs::write(dir.join("data.txt"), samples().into_iter().map(line).collect::<String>()).expect("writable");
}
