//! Founding, rotation, forks, expiry.

use std::collections::BTreeSet;

use super::*;

fn next(ledger: &Ledger, admins: &[u8], threshold: u32) -> Root {
    let now = ledger.root(NOW).expect("root");
    Root {
        version: now.root.version + 1,
        prev_root: Some(now.id),
        settled: ledger.settled(),
        ..root_of(admins, threshold)
    }
}

#[test]
fn only_this_cluster_is_heard() {
    let (mut admin, ledger) = cluster();
    let (other, _) = cluster_of(root_of(&[1, 2], 1));
    admin.cluster = other.cluster;
    let foreign = admin.say(at(1), admit(50, None));
    assert!(matches!(ledger.check(&foreign), Err(Refusal::OtherCluster { .. })));
    admin.cluster = None;
    admin.next = Chain { seq: 0, prev: None };
    let founding = admin.say(at(1), Kind::Root(root_of(&[1], 1)));
    assert!(matches!(ledger.check(&founding), Err(Refusal::OtherCluster { .. })));
    assert_eq!(ledger.root(NOW).map(|r| r.id), Some(StatementId(ledger.cluster().0)));
}

#[test]
fn rotation_needs_the_old_admins_and_the_new() {
    let (mut admin, mut ledger) = cluster_of(root_of(&[1], 1));
    let mut envelope = admin.say(at(1), Kind::Root(next(&ledger, &[2, 3], 2)));
    assert_eq!(put(&mut ledger, &envelope), Applied::Pending { why: Why::Threshold });
    envelope.endorse(&key(2));
    assert_eq!(put(&mut ledger, &envelope), Applied::Pending { why: Why::Threshold });
    // The last signature comes from elsewhere, without the one before.
    let mut other = Envelope::sign(envelope.payload().to_vec(), &[&admin.key]);
    other.endorse(&key(3));
    assert_eq!(put(&mut ledger, &other), Applied::Effective);
    assert_eq!(put(&mut ledger, &other), Applied::Duplicate);
    assert_eq!(ledger.root(NOW).map(|r| r.root.version), Some(2));
    assert_eq!(ledger.root_chain().nth(1).map(|e| e.signatures().len()), Some(3));
    assert!(ledger.merge(&mut envelope, &other));
    assert_eq!(envelope.signatures().len(), 3);
}

#[test]
fn a_root_of_strangers_changes_nothing() {
    let (_, mut ledger) = cluster();
    let mut stranger = Voice::new(9, ledger.cluster());
    let root = stranger.say(at(1), Kind::Root(next(&ledger, &[9], 1)));
    assert_eq!(put(&mut ledger, &root), Applied::Pending { why: Why::Threshold });
    let far = Root { version: 7, ..next(&ledger, &[9], 1) };
    assert!(matches!(put(&mut ledger, &stranger.say(at(1), Kind::Root(far))), Applied::Pending { .. }));
    assert_eq!(ledger.root(NOW).map(|r| r.root.version), Some(1));
}

#[test]
fn what_a_retired_key_said_stays_and_what_it_says_does_not_count() {
    let (mut admin, mut ledger) = cluster();
    put(&mut ledger, &admin.say(at(1), admit(50, None)));
    let mut old = admin.clone();
    let mut root = admin.say(at(2), Kind::Root(next(&ledger, &[2], 1)));
    root.endorse(&key(2));
    assert_eq!(put(&mut ledger, &root), Applied::Effective);
    assert!(ledger.is_member(&id(50), at(3)), "settled");
    let late = admin.say(at(1), admit(51, None));
    assert_eq!(put(&mut ledger, &late), Applied::Ignored { why: Why::NotAllowed });
    // A second body at a settled place cannot slip in either: the place is the root's own.
    let beside = old.say(at(1), admit(52, None));
    assert_eq!(put(&mut ledger, &beside), Applied::Ignored { why: Why::Equivocation });
    assert_eq!(ledger.members(at(3)).count(), 1);
}

#[test]
fn two_next_roots_freeze_rotation_until_a_person_chooses() {
    let (mut admin, mut ledger) = cluster_of(root_of(&[1, 2], 1));
    let one = admin.say(at(1), Kind::Root(next(&ledger, &[1], 1)));
    let two = Voice::new(2, ledger.cluster()).say(at(1), Kind::Root(next(&ledger, &[2], 1)));
    assert_eq!(put(&mut ledger, &one), Applied::Effective);
    assert_eq!(put(&mut ledger, &two), Applied::Ignored { why: Why::RootFork });
    assert_eq!(ledger.root(NOW).map(|r| r.root.version), Some(1));
    let statements = BTreeSet::from([one.id(), two.id()]);
    assert_eq!(ledger.alarms(NOW), [Alarm::RootFork { version: 2, statements }]);
    let mut chosen = Ledger::new(LedgerConfig {
        chosen_roots: BTreeSet::from([two.id()]),
        ..LedgerConfig::new(ledger.cluster())
    });
    let all =
        ledger.statements().filter_map(|id| ledger.envelope(&id)).map(|e| chosen.check(e).expect("form"));
    let all: Vec<Checked> = all.collect();
    chosen.apply_all(all);
    assert_eq!(chosen.root(NOW).map(|r| r.id), Some(two.id()));
    assert_eq!(chosen.alarms(NOW), []);
}

#[test]
fn an_expired_root_lets_nobody_publish_but_takes_nothing_away() {
    let (mut admin, mut ledger) = cluster();
    let artifact = "acme/bot".parse().expect("artifact");
    put(&mut ledger, &admin.say(at(1), admit(50, None)));
    let published = Voice::new(20, ledger.cluster()).say(at(1), publish("1", 1));
    put(&mut ledger, &published);
    for publisher in [20, 50] {
        assert_eq!(ledger.may_publish(&id(publisher), &artifact, at(2)), Ok(()));
    }
    let denied = ledger.may_publish(&id(9), &artifact, at(2));
    assert!(matches!(denied, Err(Denied::NotPublisher { .. })));
    let elsewhere = "other/bot".parse().expect("artifact");
    assert!(ledger.may_publish(&id(20), &elsewhere, at(2)).is_err());
    let expired = LATER.plus(301);
    assert_eq!(ledger.may_publish(&id(20), &artifact, expired), Err(Denied::RootExpired { expired: LATER }));
    assert!(ledger.root(expired).is_some_and(|r| r.expired));
    assert_eq!(ledger.alarms(expired), [Alarm::RootExpiring { version: 1, expires: LATER }]);
    assert_eq!(resolve(&ledger, "1"), Resolution::Resolved(ManifestDigest([1; 32])));
}
