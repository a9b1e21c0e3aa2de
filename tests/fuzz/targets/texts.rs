//! What people and files say: references, tickets, policies, lock files, manifests, contracts, audit logs.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weighlock_protocol::audit::Verifier;
use weighlock_protocol::gate::Policy;
use weighlock_protocol::lock::Lock;
use weighlock_protocol::manifest::{Contract, Manifest};
use weighlock_protocol::ticket::Ticket;
use weighlock_protocol::{Artifact, ManifestDigest, Reference, Stage, Tag};

fuzz_target!(|input: &[u8]| {
    let Some((kind, bytes)) = input.split_first() else { return };
    match kind % 5 {
        0 => {
            if let Ok(manifest) = Manifest::parse(bytes) {
                assert_eq!(manifest.bytes()[..], *bytes, "its bytes are its identity");
                assert_eq!(manifest.digest(), ManifestDigest::of(bytes));
                for file in manifest.files() {
                    assert!(!file.path.starts_with('/') && file.path.split('/').all(|part| part != ".."));
                }
            }
        }
        1 => {
            if let Ok(contract) = serde_json::from_slice::<Contract>(bytes) {
                let written = serde_json::to_vec(&contract).expect("written");
                let again: Contract = serde_json::from_slice(&written).expect("what is written can be read");
                assert_eq!(again, contract);
            }
        }
        2 => {
            let mut verifier = Verifier::new(None);
            for line in bytes.split(|byte| *byte == b'\n') {
                if verifier.line(line).is_err() {
                    break;
                }
            }
        }
        kind => {
            let Ok(text) = std::str::from_utf8(bytes) else { return };
            if kind == 3 {
                if let Ok(reference) = text.parse::<Reference>() {
                    let again: Reference =
                        reference.to_string().parse().expect("what is written can be read");
                    assert_eq!(again, reference);
                }
                let _ = (text.parse::<Artifact>(), text.parse::<Tag>(), text.parse::<Stage>());
                if let Ok(ticket) = text.parse::<Ticket>() {
                    let again: Ticket = ticket.to_text().parse().expect("what is written can be read");
                    assert_eq!(again.to_text(), ticket.to_text());
                }
            } else {
                if let Ok(policy) = Policy::parse(text) {
                    let _ = format!("{policy:?}");
                }
                if let Ok(lock) = Lock::parse(text) {
                    let written = lock.to_toml();
                    assert_eq!(
                        Lock::parse(&written).expect("what is written can be read").to_toml(),
                        written
                    );
                }
            }
        }
    }
});
