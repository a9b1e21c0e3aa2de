//! Bytes between hosts: control and data plane messages, swarm frames, host records, joins.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weighlock_protocol::ClusterId;
use weighlock_protocol::wire::bao::bytes_in;
use weighlock_protocol::wire::control::{Gossip, Request as Ask, Response};
use weighlock_protocol::wire::data::{Hello, ObserveItem, Request};
use weighlock_protocol::wire::join::{JoinAnswer, JoinRequest};
use weighlock_protocol::wire::swarm::Frame;

fuzz_target!(|input: &[u8]| {
    let Some((kind, bytes)) = input.split_first() else { return };
    match kind % 9 {
        0 => {
            if let Ok(gossip) = Gossip::decode(bytes) {
                let again = Gossip::decode(&gossip.encode()).expect("what is written can be read");
                assert_eq!(again, gossip);
                if let Gossip::Host(record) = gossip {
                    let _ = record.verify(ClusterId([1; 32]));
                }
            }
        }
        1 => {
            if let Ok(ask) = Ask::decode(bytes) {
                assert_eq!(Ask::decode(&ask.encode()).as_ref(), Ok(&ask));
            }
        }
        2 => {
            if let Ok(answer) = Response::decode(bytes) {
                assert_eq!(Response::decode(&answer.encode()).as_ref(), Ok(&answer));
            }
        }
        3 => {
            if let Ok(Some(frame)) = Frame::parse(bytes) {
                let written = frame.encode();
                assert_eq!(written[..4], (written.len() as u32 - 4).to_be_bytes());
                assert_eq!(Frame::parse(&written[4..]).as_ref(), Ok(&Some(frame)));
            }
        }
        4 => {
            if let Ok(request) = Request::parse(bytes) {
                assert_eq!(Request::parse(&request.encode()).as_ref(), Ok(&request));
            }
        }
        5 => {
            if let Ok(item) = ObserveItem::parse(bytes) {
                for size in [0, 1, item.size, 1 << 40] {
                    assert!(bytes_in(&item.groups(size), size) <= size);
                }
                let written = item.encode().expect("it came in one message");
                let body = written.len() - written.iter().take_while(|byte| **byte >= 0x80).count() - 1;
                assert_eq!(ObserveItem::parse(&written[written.len() - body..]).as_ref(), Ok(&item));
            }
        }
        6 => {
            if let Ok(hello) = Hello::parse(bytes) {
                if hello.software.len() < 4000 {
                    assert_eq!(Hello::parse(&hello.encode()[2..]).as_ref(), Ok(&hello));
                }
            }
        }
        7 => {
            if let Ok(request) = JoinRequest::parse(bytes) {
                JoinRequest::parse(&request.encode()).expect("what is written can be read");
            }
        }
        _ => {
            if let Ok(answer) = JoinAnswer::parse(bytes) {
                JoinAnswer::parse(&answer.encode()).expect("what is written can be read");
            }
        }
    }
});
