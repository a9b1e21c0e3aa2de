//! Publishes: who may, conflicts, revocations, kinds that are not known yet.

use super::*;

#[test]
fn publishers_that_disagree_leave_a_tag_without_meaning() {
    let (mut admin, mut ledger) = cluster();
    let cluster = ledger.cluster();
    put(&mut ledger, &admin.say(at(1), admit(50, None)));
    put(&mut ledger, &Voice::new(20, cluster).say(at(2), publish("1", 1)));
    put(&mut ledger, &Voice::new(50, cluster).say(at(3), publish("1", 1)));
    assert_eq!(resolve(&ledger, "1"), Resolution::Resolved(ManifestDigest([1; 32])));
    assert_eq!(ledger.publishes_of(&ManifestDigest([1; 32])).count(), 2);
    let other = Voice::new(50, cluster).say(at(4), publish("1", 2));
    assert_eq!(put(&mut ledger, &other), Applied::Effective);
    let Resolution::Conflict { digests } = resolve(&ledger, "1") else { panic!("a conflict") };
    assert_eq!(digests[&ManifestDigest([2; 32])].iter().copied().collect::<Vec<_>>(), [id(50)]);
    assert!(matches!(ledger.alarms(at(5))[..], [Alarm::TagConflict { .. }]));
    put(&mut ledger, &admin.say(at(5), revoke(Target::Statement { id: other.id() })));
    assert_eq!(resolve(&ledger, "1"), Resolution::Resolved(ManifestDigest([1; 32])));
    assert_eq!((ledger.alarms(at(6)).len(), resolve(&ledger, "2")), (0, Resolution::Unknown));
}

#[test]
fn only_publishers_and_members_publish_and_only_where_the_role_reaches() {
    let (mut admin, mut ledger) = cluster();
    let early = Voice::new(50, ledger.cluster()).say(at(2), publish("1", 1));
    assert_eq!(put(&mut ledger, &early), Applied::Ignored { why: Why::NotAllowed });
    put(&mut ledger, &admin.say(at(3), admit(50, None)));
    assert_eq!(ledger.status(&early.id()), Some(Status::Effective), "its author is known now");
    let Kind::Publish(mut elsewhere) = publish("1", 1) else { panic!("a publish") };
    elsewhere.artifact = "other/bot".parse().expect("artifact");
    let elsewhere = Voice::new(20, ledger.cluster()).say(at(2), Kind::Publish(elsewhere));
    assert_eq!(put(&mut ledger, &elsewhere), Applied::Ignored { why: Why::NotAllowed });
    assert_eq!(ledger.artifacts().count(), 1);
}

#[test]
fn a_threshold_of_publishers_signs_together() {
    let mut root = root_of(&[1], 1);
    root.roles.insert(Role::Publisher, role(&[20, 21], 2, &["*"], false));
    let (_, mut ledger) = cluster_of(root);
    let mut envelope = Voice::new(20, ledger.cluster()).say(at(1), publish("1", 1));
    assert_eq!(put(&mut ledger, &envelope), Applied::Ignored { why: Why::NotAllowed });
    envelope.endorse(&key(22));
    put(&mut ledger, &envelope);
    assert_eq!(resolve(&ledger, "1"), Resolution::Unknown);
    envelope.endorse(&key(21));
    assert_eq!(put(&mut ledger, &envelope), Applied::Effective);
    assert_eq!(resolve(&ledger, "1"), Resolution::Resolved(ManifestDigest([1; 32])));
}

#[test]
fn a_retired_hosts_publishes_stay_and_a_stolen_ones_go() {
    let (mut admin, mut ledger) = cluster();
    let mut host = Voice::new(50, ledger.cluster());
    put(&mut ledger, &admin.say(at(1), admit(50, None)));
    put(&mut ledger, &host.say(at(10), publish("1", 1)));
    put(&mut ledger, &host.say(at(20), publish("2", 2)));
    put(&mut ledger, &host.say(at(30), publish("3", 3)));
    let known = |ledger: &Ledger| ["1", "2", "3"].map(|tag| resolve(ledger, tag) != Resolution::Unknown);
    put(&mut ledger, &admin.say(at(25), revoke_key(50)));
    assert_eq!(known(&ledger), [true, true, false]);
    let since = Target::Key { key: id(50), since: Some(at(15)) };
    put(&mut ledger, &admin.say(at(40), revoke(since)));
    assert_eq!(known(&ledger), [true, false, false]);
    put(&mut ledger, &admin.say(at(50), admit(50, None)));
    assert_eq!(known(&ledger), [true, false, false], "coming back does not launder what was void");
    put(&mut ledger, &host.say(at(60), publish("3", 3)));
    assert_eq!(known(&ledger), [true, false, true]);
}

#[test]
fn kinds_of_later_releases_are_kept_and_hold_their_place() {
    let (mut admin, mut ledger) = cluster();
    let mut statement =
        admin.statement(at(1), Kind::Unknown { predicate_type: "https://weighlock.dev/later/v1".to_owned() });
    statement.chain = Some(admin.next);
    let later = statement.sign(&[&admin.key]);
    admin.next = Chain { seq: 2, prev: Some(later.id()) };
    let after = admin.say(at(2), admit(50, None));
    assert!(matches!(put(&mut ledger, &after), Applied::Pending { .. }));
    assert_eq!(put(&mut ledger, &later), Applied::Ignored { why: Why::UnknownKind });
    assert_eq!(ledger.status(&after.id()), Some(Status::Effective));
    assert_eq!(ledger.next_chain(&id(1)).seq, 3);
    assert!(ledger.contains(&later.id()));
}

#[test]
fn hosts_that_exchange_differing_buckets_end_up_equal() {
    let (mut admin, base) = cluster_of(root_of(&[1, 2], 2));
    let mut both = BTreeMap::new();
    let mut sides = [base.clone(), base];
    for n in 0..60u8 {
        let mut envelope = admin.say(at(1), admit(100 + n, None));
        let single = envelope.clone();
        envelope.endorse(&key(2));
        put(&mut sides[usize::from(n % 2)], if n == 7 { &single } else { &envelope });
        if n == 7 {
            put(&mut sides[0], &envelope);
        }
        both.insert(envelope.id(), envelope);
    }
    let buckets = sides[0].summary().differing(sides[1].summary());
    let asked: Vec<StatementId> = buckets
        .iter()
        .flat_map(|b| {
            let [left, right] = [0, 1].map(|n: usize| sides[n].ids_in(*b).collect::<Vec<_>>());
            let missing = |e: &&Entry| !(left.contains(e) && right.contains(e));
            left.iter().chain(&right).filter(missing).map(|e| e.id).collect::<Vec<_>>()
        })
        .collect();
    assert!(asked.contains(&StatementId(*both.keys().next().expect("some").as_bytes())));
    for side in &mut sides {
        for id in &asked {
            put(side, &both[id]);
        }
    }
    assert!(sides[0].summary().differing(sides[1].summary()).is_empty());
    assert_eq!(picture(&sides[0]), picture(&sides[1]));
}
