//! One envelope of every kind, byte for byte: what release 0.1.0 signed, every later one must read.

use std::fs;
use std::path::PathBuf;

use super::*;

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden/0.1.0").join(format!("{name}.json"))
}

fn made() -> (ClusterId, Vec<(&'static str, Envelope)>) {
    let (mut admin, ledger) = cluster();
    let root = ledger.root_chain().next().cloned().expect("root");
    let invited = admin.say(at(1), invite(40, 2));
    let cluster = ledger.cluster();
    let all = vec![
        ("root", root),
        ("admit", Voice::new(40, cluster).say(at(2), admit(50, Some(invited.id())))),
        ("invite", invited),
        ("publish", Voice::new(50, cluster).say(at(3), publish("1.0.0", 1))),
        ("evaluate", Voice::new(50, cluster).say(at(3), weighing::evaluate(1, 9))),
        ("verdict", Voice::new(50, cluster).say(at(3), weighing::verdict(1, crate::gate::Outcome::Fail))),
        ("revoke", admin.say(at(4), revoke_key(50))),
        ("policy", admin.say(at(5), ladder::set_policy())),
        ("approve", Voice::new(50, cluster).say(at(6), ladder::approve())),
        ("promote", Voice::new(50, cluster).say(at(6), ladder::promote())),
        ("cosign", Voice::new(50, cluster).say(at(7), ladder::cosign())),
        ("rollback", Voice::new(50, cluster).say(at(8), ladder::rollback())),
        ("follow", Voice::new(50, cluster).say(at(8), ladder::follow("r1", false))),
    ];
    (cluster, all)
}

#[test]
fn what_was_signed_then_is_read_and_counts_now() {
    let (cluster, made) = made();
    let mut ledger = Ledger::new(LedgerConfig::new(cluster));
    let mut read = Vec::new();
    for (name, envelope) in &made {
        let bytes = fs::read(path(name)).unwrap_or_else(|e| panic!("golden/{name}.json: {e}"));
        assert_eq!(
            String::from_utf8_lossy(&bytes),
            String::from_utf8_lossy(&envelope.to_json()),
            "{name}: the bytes that are signed have changed, so a new predicate version is due"
        );
        let parsed = Envelope::parse(&bytes).expect("reads");
        read.push(ledger.check(&parsed).expect("verifies"));
    }
    ledger.apply_all(read);
    let counts: Vec<bool> =
        made.iter().map(|(_, e)| ledger.status(&e.id()) == Some(Status::Effective)).collect();
    assert_eq!(
        counts,
        [true, false, true, true, false, false, true, true, false, false, false, false, false],
        "no evaluator, promoter or witness is named"
    );
    assert_eq!(resolve(&ledger, "1.0.0"), Resolution::Resolved(ManifestDigest([1; 32])));
}

#[test]
#[ignore = "writes the files; run it only for a new kind"]
fn write_golden_files() {
    for (name, envelope) in made().1 {
        fs::write(path(name), envelope.to_json()).expect("writable");
    }
}
