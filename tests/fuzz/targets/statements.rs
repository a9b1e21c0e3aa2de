//! Statements: envelopes as they come, and payloads under right signatures, through to the fold of a ledger.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use weighlock_protocol::statement::{Envelope, Keypair, Ledger, LedgerConfig};
use weighlock_protocol::{ClusterId, UnixTime};

/// The cluster and keys of the golden statements.
static ROOT: LazyLock<Envelope> =
    LazyLock::new(|| Envelope::parse(include_bytes!("../../../protocol/golden/0.1.0/root.json")).expect("golden"));
const CLUSTER: &str = "641660c28c1cdc1f9929746aac18f29ac9f9d9c008db8362cff924c8bbbb9398";

/// The input is a list: one byte that says who signs (255: the bytes are an envelope as it is), a length (u16,
/// little-endian) and so many bytes.
fn parts(mut input: &[u8]) -> Vec<(u8, &[u8])> {
    let mut parts = Vec::new();
    while let [signer, low, high, rest @ ..] = input {
        let len = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let (part, after) = rest.split_at(len);
        parts.push((*signer, part));
        input = after;
        if parts.len() == 12 {
            break;
        }
    }
    parts
}

fn ledger(envelopes: &[Envelope], order: impl Iterator<Item = usize>) -> Ledger {
    let mut ledger = Ledger::new(LedgerConfig::new(CLUSTER.parse::<ClusterId>().expect("hex")));
    let root = ledger.check(&ROOT).expect("golden");
    ledger.apply_all([root]);
    for i in order {
        if let Ok(checked) = ledger.check(&envelopes[i]) {
            ledger.apply(checked);
        }
    }
    ledger
}

fuzz_target!(|input: &[u8]| {
    let mut envelopes = Vec::new();
    for (signer, bytes) in parts(input) {
        if signer == 255 {
            envelopes.extend(Envelope::parse(bytes));
        } else {
            let key = Keypair::from_seed([signer; 32]);
            envelopes.push(Envelope::sign(bytes.to_vec(), &[&key]));
        }
    }
    for envelope in &envelopes {
        if let Ok(again) = Envelope::parse(&envelope.to_json()) {
            assert_eq!(again.id(), envelope.id());
        }
    }
    // The state is that of the set: order and repetition do not matter.
    let count = envelopes.len();
    let one = ledger(&envelopes, 0..count);
    let other = ledger(&envelopes, (0..count).rev().chain(0..count));
    for now in [UnixTime(0), UnixTime(1_800_000_100), UnixTime(u64::MAX)] {
        assert_eq!(one.alarms(now).len(), other.alarms(now).len());
        let members =
            |ledger: &Ledger| ledger.members(now).map(|member| format!("{member:?}")).collect::<Vec<_>>();
        assert_eq!(members(&one), members(&other));
    }
    for envelope in &envelopes {
        let (here, there) = (one.status(&envelope.id()), other.status(&envelope.id()));
        assert_eq!(format!("{here:?}"), format!("{there:?}"));
    }
});
