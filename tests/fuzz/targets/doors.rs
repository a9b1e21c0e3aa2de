//! Local files and sockets: frames of the doors, what loaders ask in them, and the have-map of a partial layer.
#![no_main]

use std::fs::File;
use std::io::{Seek, Write};

use libfuzzer_sys::fuzz_target;
use serde::de::DeserializeOwned;
use weighlock_protocol::LayerId;

use loader::LoaderRequest;

#[allow(dead_code)]
#[path = "../../../node/src/local/frame.rs"]
mod frame;
#[allow(dead_code, unreachable_pub)]
#[path = "../../../cache/src/layers/have.rs"]
mod have;
#[allow(dead_code)]
#[path = "../../../node/src/local/loader.rs"]
mod loader;
#[path = "../../../cache/src/error/unreadable.rs"]
mod unreadable;
mod error {
    pub(crate) use crate::unreadable::is_unreadable;
}
/// Only answers tell of files; no request does.
mod local {
    pub(crate) mod message {
        pub(crate) use serde_json::Value as File;
    }
}

/// Larger frames than this are refused.
const FRAME_MAX: usize = 1 << 16;

fuzz_target!(|input: &[u8]| {
    let Some((kind, bytes)) = input.split_first() else { return };
    if kind % 2 == 0 { frames(bytes) } else { have_map(bytes) }
});

fn frames(bytes: &[u8]) {
    // What the buffer of a socket takes without a reader.
    let bytes = &bytes[..bytes.len().min(100_000)];
    read_all(bytes, |_: serde_json::Value| {});
    read_all(bytes, |request: LoaderRequest| {
        let written = serde_json::to_vec(&request).expect("it came as JSON");
        let again: LoaderRequest = serde_json::from_slice(&written).expect("what is written can be read");
        assert_eq!(serde_json::to_vec(&again).expect("as before"), written);
    });
}

/// Reads frames as a door does, until one is not understood.
fn read_all<T: DeserializeOwned>(bytes: &[u8], take: impl Fn(T)) {
    let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
    theirs.write_all(bytes).expect("sent");
    drop(theirs);
    ours.set_nonblocking(true).expect("nonblocking");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut stream = tokio::net::UnixStream::from_std(ours).expect("a stream");
        let mut read = 0;
        while let Ok(Some(value)) = frame::read::<T>(&mut stream, FRAME_MAX).await {
            take(value);
            read += 5;
        }
        assert!(read <= bytes.len());
    });
}

fn have_map(bytes: &[u8]) {
    let memory = rustix::fs::memfd_create("have", rustix::fs::MemfdFlags::CLOEXEC).expect("a file in memory");
    let mut file = File::from(memory);
    file.write_all(bytes).expect("written");
    file.rewind().expect("rewound");
    let layer = LayerId([7; 32]);
    if let Ok(Some(header)) = have::read_header(&file) {
        let _ = format!("{header:?}");
    }
    for size in [0, 1, 16_384, 1 << 20, 1 << 33] {
        let (map, bad) = have::read_bitmap(&file, &layer, size).expect("a file in memory can be read");
        assert!(map.count() <= map.len());
        assert!(bad.len() as u64 <= have::page_count(size));
        assert!(bad.iter().all(|groups| groups.start < groups.end && groups.end <= map.len()));
        let groups = map.to_set();
        assert_eq!(groups.is_empty(), map.count() == 0);
        // No page claims anything without its checksum.
        if bad.len() as u64 == have::page_count(size) {
            assert_eq!(map.count(), 0);
        }
    }
}
