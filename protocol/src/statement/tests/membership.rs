//! Invites, admissions, revocations, chains.

use std::collections::BTreeSet;

use super::*;

fn by_ticket(admin: &Voice, ticket: u8, host: u8, invite: &Envelope, time: UnixTime) -> Envelope {
    let cluster = admin.cluster.expect("founded");
    Voice::new(ticket, cluster).say(time, admit(host, Some(invite.id())))
}

#[test]
fn a_ticket_admits_and_its_labels_win() {
    let (mut admin, mut ledger) = cluster();
    let invited = admin.say(at(1), invite(40, 2));
    let admitted = by_ticket(&admin, 40, 50, &invited, at(2));
    assert_eq!(put(&mut ledger, &admitted), Applied::Pending { why: Why::Invite });
    assert!(!ledger.is_member(&id(50), at(3)));
    assert_eq!(put(&mut ledger, &invited), Applied::Effective);
    let member = ledger.member(&id(50), at(3)).expect("member");
    assert_eq!((member.name.as_str(), member.labels["rack"].as_str()), ("host-50", "r1"));
    assert_eq!((member.admitted_by, member.expires), (admitted.id(), at(50_000)));
    assert_eq!(put(&mut ledger, &admitted), Applied::Duplicate);
    assert!(ledger.is_member(&id(50), at(50_300)) && !ledger.is_member(&id(50), at(50_301)));
    assert_eq!(ledger.members(at(3)).count(), 1);
}

#[test]
fn an_invite_admits_as_many_as_it_says_the_earliest_first() {
    let (mut admin, mut ledger) = cluster();
    let invited = admin.say(at(1), invite(40, 2));
    put(&mut ledger, &invited);
    for (host, secs) in [(50, 9), (51, 8), (50, 10)] {
        assert_eq!(put(&mut ledger, &by_ticket(&admin, 40, host, &invited, at(secs))), Applied::Effective);
    }
    let third = by_ticket(&admin, 40, 52, &invited, at(11));
    let denied = ledger.may_join(&ledger.check(&third).expect("form"), at(11));
    assert_eq!(denied, Err(Denied::Invite { why: Why::InviteUsed }));
    assert_eq!(put(&mut ledger, &third), Applied::Ignored { why: Why::InviteUsed });
    assert_eq!(ledger.invites(at(11)).next().map(|i| i.used), Some(2));
    // An earlier one from a far partition pushes the latest out, on every host alike.
    put(&mut ledger, &by_ticket(&admin, 40, 53, &invited, at(2)));
    let members: BTreeSet<KeyId> = ledger.members(at(12)).map(|m| m.key).collect();
    assert_eq!(members, BTreeSet::from([id(51), id(53)]));
}

#[test]
fn strangers_keys_and_late_tickets_admit_nobody() {
    let (mut admin, mut ledger) = cluster();
    let invited = admin.say(at(1), invite(40, 5));
    put(&mut ledger, &invited);
    let forged = by_ticket(&admin, 41, 50, &invited, at(2));
    assert_eq!(put(&mut ledger, &forged), Applied::Ignored { why: Why::NotAllowed });
    let late = by_ticket(&admin, 40, 51, &invited, at(1_001));
    assert_eq!(put(&mut ledger, &late), Applied::Ignored { why: Why::InviteExpired });
    let cluster = admin.cluster.expect("founded");
    let mut stranger = Voice::new(9, cluster);
    let own = stranger.say(at(2), invite(42, 5));
    assert_eq!(put(&mut ledger, &own), Applied::Ignored { why: Why::NotAllowed });
    let through = by_ticket(&admin, 42, 52, &own, at(3));
    assert_eq!(put(&mut ledger, &through), Applied::Pending { why: Why::Invite });
    let named = stranger.say(at(3), admit(53, None));
    assert_eq!(put(&mut ledger, &named), Applied::Ignored { why: Why::NotAllowed });
    assert_eq!(ledger.members(at(3)).count(), 0);
}

#[test]
fn joining_asks_the_clock_where_the_fold_cannot() {
    let (mut admin, mut ledger) = cluster();
    let invited = admin.say(at(1), invite(40, 5));
    put(&mut ledger, &invited);
    let joins = |ledger: &Ledger, time, now| {
        let admitted = by_ticket(&admin, 40, 50, &invited, time);
        ledger.may_join(&ledger.check(&admitted).expect("form"), now)
    };
    assert_eq!(joins(&ledger, at(5), at(5)), Ok(()));
    assert_eq!(joins(&ledger, at(5), at(1_301)), Err(Denied::Invite { why: Why::InviteExpired }));
    assert!(matches!(joins(&ledger, at(900), at(5)), Err(Denied::Clock { .. })));
    put(&mut ledger, &by_ticket(&admin, 40, 50, &invited, at(5)));
    assert_eq!(joins(&ledger, at(5), at(2_000)), Ok(()), "it is a member already");
    put(&mut ledger, &admin.clone().say(at(6), revoke_key(50)));
    assert_eq!(joins(&ledger, at(7), at(7)), Err(Denied::Revoked { key: id(50) }));
}

#[test]
fn a_revoked_host_returns_only_through_an_admin() {
    let (mut admin, mut ledger) = cluster();
    let invited = admin.say(at(1), invite(40, 5));
    for e in [&invited, &by_ticket(&admin, 40, 50, &invited, at(2)), &admin.say(at(3), revoke_key(50))] {
        put(&mut ledger, e);
    }
    assert!(!ledger.is_member(&id(50), at(4)) && ledger.is_revoked(&id(50)));
    let again = by_ticket(&admin, 40, 50, &invited, at(4));
    assert_eq!(put(&mut ledger, &again), Applied::Ignored { why: Why::Revoked });
    assert_eq!(put(&mut ledger, &admin.say(at(3), admit(50, None))), Applied::Effective);
    assert!(ledger.is_member(&id(50), at(5)) && !ledger.is_revoked(&id(50)));
    assert_eq!(ledger.revocations().count(), 1);
}

#[test]
fn revoking_an_invite_keeps_whom_it_lists() {
    let (mut admin, mut ledger) = cluster();
    let invited = admin.say(at(1), invite(40, 5));
    let kept = by_ticket(&admin, 40, 50, &invited, at(2));
    for e in [&invited, &kept, &by_ticket(&admin, 40, 51, &invited, at(2))] {
        put(&mut ledger, e);
    }
    assert_eq!(ledger.members(at(3)).count(), 2);
    let target = Target::Invite { id: invited.id(), keep: BTreeSet::from([kept.id()]) };
    put(&mut ledger, &admin.say(at(4), revoke(target)));
    // Dated back, but too late.
    put(&mut ledger, &by_ticket(&admin, 40, 52, &invited, at(2)));
    assert_eq!(ledger.members(at(5)).map(|m| m.key).collect::<Vec<_>>(), [id(50)]);
    assert_eq!(ledger.invites(at(5)).count(), 0);
    let one = Target::Statement { id: kept.id() };
    put(&mut ledger, &admin.say(at(6), revoke(one)));
    assert_eq!(ledger.members(at(7)).count(), 0);
}

#[test]
fn a_missing_predecessor_holds_back_what_follows() {
    let (mut admin, mut ledger) = cluster();
    let first = admin.say(at(1), admit(50, None));
    let second = admin.say(at(2), admit(51, None));
    let third = admin.say(at(3), admit(52, None));
    let why = Why::Predecessor { missing: second.id() };
    assert_eq!(put(&mut ledger, &third), Applied::Pending { why });
    let why = Why::Predecessor { missing: first.id() };
    assert_eq!(put(&mut ledger, &second), Applied::Pending { why });
    assert_eq!(ledger.status(&third.id()), Some(Status::Pending(why)));
    assert_eq!(put(&mut ledger, &first), Applied::Effective);
    assert_eq!((ledger.members(at(4)).count(), ledger.next_chain(&id(1)).seq), (3, 4));
}

#[test]
fn saying_two_things_at_one_place_ends_what_a_key_grants_but_not_what_it_took() {
    let (mut admin, mut ledger) = cluster();
    put(&mut ledger, &admin.say(at(1), admit(50, None)));
    put(&mut ledger, &admin.say(at(2), admit(51, None)));
    let mut twin = admin.clone();
    let revoked = admin.say(at(3), revoke_key(50));
    let after = admin.say(at(4), admit(52, None));
    put(&mut ledger, &revoked);
    assert_eq!(put(&mut ledger, &after), Applied::Effective);
    let other = twin.say(at(5), admit(50, None));
    assert_eq!(put(&mut ledger, &other), Applied::Ignored { why: Why::Equivocation });
    assert_eq!(ledger.status(&after.id()), Some(Status::Ignored(Why::Equivocation)));
    assert_eq!(ledger.members(at(6)).map(|m| m.key).collect::<Vec<_>>(), [id(51)]);
    let statements = BTreeSet::from([revoked.id(), other.id()]);
    assert_eq!(
        ledger.alarms(at(6)),
        [Alarm::Equivocation { key: id(1), seq: 3, statements: statements.clone() }]
    );
    for id in statements {
        assert!(ledger.envelope(&id).is_some_and(|e| e.id() == id), "the proof is kept");
    }
    // Rotating the key away is the way out.
    let mut root = root_of(&[2], 1);
    (root.version, root.prev_root) = (2, ledger.root(NOW).map(|r| r.id));
    root.settled = ledger.settled();
    let mut envelope = admin.say(at(7), Kind::Root(root));
    envelope.endorse(&key(2));
    assert_eq!(put(&mut ledger, &envelope), Applied::Effective);
    let mut new = Voice::new(2, ledger.cluster());
    put(&mut ledger, &new.say(at(8), admit(52, None)));
    assert_eq!(
        ledger.members(at(9)).map(|m| m.key).collect::<BTreeSet<_>>(),
        BTreeSet::from([id(51), id(52)])
    );
}

#[test]
fn junk_fills_its_own_room_only() {
    let (mut admin, ledger) = cluster();
    let mut ledger = Ledger::new(LedgerConfig {
        idle_max: 3,
        idle_per_author_max: 2,
        ..LedgerConfig::new(ledger.cluster())
    });
    let invited = admin.say(at(1), invite(40, 5));
    let root = cluster().1.root_chain().next().cloned().expect("root");
    put(&mut ledger, &root);
    put(&mut ledger, &invited);
    let junk = Voice::new(9, ledger.cluster());
    let mut full = BTreeSet::new();
    for (voice, tag) in [(9, "1"), (9, "2"), (9, "3"), (10, "1"), (11, "1")] {
        let mut voice = Voice { key: key(voice), ..junk.clone() };
        if let Applied::Refused(Refusal::Full { limit, .. }) =
            put(&mut ledger, &voice.say(at(2), publish(tag, 1)))
        {
            full.insert(limit);
        }
    }
    assert_eq!(full, BTreeSet::from(["idle_max", "idle_per_author_max"]));
    assert_eq!(ledger.len(), 5);
    assert_eq!(put(&mut ledger, &by_ticket(&admin, 40, 50, &invited, at(3))), Applied::Effective);
    assert_eq!(put(&mut ledger, &admin.say(at(3), admit(51, None))), Applied::Effective);
    let published = Voice::new(50, ledger.cluster()).say(at(4), publish("1", 1));
    assert_eq!(put(&mut ledger, &published), Applied::Effective);
}

#[test]
fn one_batch_brings_no_more_junk_than_many() {
    let (mut admin, ledger) = cluster();
    let config = LedgerConfig { idle_max: 8, idle_per_author_max: 3, ..LedgerConfig::new(ledger.cluster()) };
    let mut ledger = Ledger::new(config);
    let mut all: Vec<Envelope> = cluster().1.root_chain().cloned().collect();
    // Nobody needs a role to sign these, and each hangs on something that is not there.
    for stranger in 60..80 {
        let mut stranger = Voice::new(stranger, ledger.cluster());
        for n in 0..5 {
            stranger.next = Chain { seq: 5 + n, prev: Some(StatementId([9; 32])) };
            all.push(stranger.say(at(1), revoke_key(50)));
        }
    }
    all.extend((81..101).map(|host| admin.say(at(1), admit(host, None))));
    let checked: Vec<Checked> = all.iter().map(|e| ledger.check(e).expect("form")).collect();
    ledger.apply_all(checked);
    assert_eq!(ledger.members(at(2)).count(), 20, "what has an effect needs none of that room");
    assert_eq!(ledger.len(), 1 + 20 + 8);
}

#[test]
fn the_first_root_finds_room_after_what_follows_it() {
    let (mut admin, ledger) = cluster();
    let mut junked = Ledger::new(LedgerConfig {
        idle_max: 3,
        idle_per_author_max: 2,
        ..LedgerConfig::new(ledger.cluster())
    });
    for host in 50..54 {
        put(&mut junked, &admin.say(at(1), admit(host, None)));
    }
    assert_eq!(junked.len(), 2);
    let root = ledger.root_chain().next().cloned().expect("root");
    assert_eq!(put(&mut junked, &root), Applied::Effective);
    assert_eq!(junked.members(at(2)).count(), 2);
}

#[test]
fn a_root_with_its_signatures_finds_room_whoever_wrote_it() {
    let (_, ledger) = cluster();
    let first = ledger.root_chain().next().cloned().expect("root");
    let config = LedgerConfig { idle_max: 1, ..LedgerConfig::new(ledger.cluster()) };
    let mut ledger = Ledger::new(config);
    put(&mut ledger, &first);
    let junk = Voice::new(9, ledger.cluster()).say(at(1), publish("1", 1));
    put(&mut ledger, &junk);
    let next = Root { version: 2, prev_root: Some(first.id()), ..root_of(&[1, 2], 1) };
    let mut envelope = Voice::new(2, ledger.cluster()).say(at(2), Kind::Root(next));
    assert!(matches!(put(&mut ledger, &envelope), Applied::Refused(_)), "not yet signed by an admin");
    envelope.endorse(&key(1));
    assert_eq!(put(&mut ledger, &envelope), Applied::Effective);
}

#[test]
fn whoever_publishes_without_end_can_still_be_revoked() {
    let (mut admin, ledger) = cluster();
    let config = LedgerConfig { statements_max: 32, ..LedgerConfig::new(ledger.cluster()) };
    let mut ledger = Ledger::new(config);
    put(&mut ledger, &cluster().1.root_chain().next().cloned().expect("root"));
    put(&mut ledger, &admin.say(at(1), admit(50, None)));
    let mut member = Voice::new(50, ledger.cluster());
    let published = (0..40).map(|n| put(&mut ledger, &member.say(at(2), publish(&format!("1.0.{n}"), 1))));
    let refused = published.filter(|applied| matches!(applied, Applied::Refused(_))).count();
    assert_eq!(refused, 40 - 28);
    assert_eq!(put(&mut ledger, &admin.say(at(3), revoke_key(50))), Applied::Effective);
    assert!(!ledger.is_member(&id(50), at(4)));
}

#[test]
fn long_statements_take_more_room_than_short_ones() {
    let (mut admin, ledger) = cluster();
    let config = LedgerConfig {
        idle_bytes_max: 2500,
        idle_bytes_per_author_max: 1500,
        bytes_max: 64_000,
        ..LedgerConfig::new(ledger.cluster())
    };
    let mut ledger = Ledger::new(config);
    put(&mut ledger, &cluster().1.root_chain().next().cloned().expect("root"));
    put(&mut ledger, &admin.say(at(1), admit(50, None)));
    let why = |applied: Applied| match applied {
        Applied::Refused(Refusal::Full { limit, .. }) => Some(limit),
        _ => None,
    };
    // A tag makes a statement long; strangers' have no effect.
    let mut say = |voice: u8, tag: usize, long: usize| {
        let said =
            Voice::new(voice, ledger.cluster()).say(at(2), publish(&format!("{tag}{}", "x".repeat(long)), 1));
        why(put(&mut ledger, &said))
    };
    assert_eq!(say(9, 1, 0), None);
    assert_eq!(say(9, 2, 100), None);
    assert_eq!(say(9, 3, 100), Some("idle_bytes_per_author_max"));
    assert_eq!(say(10, 1, 100), None);
    assert_eq!(say(11, 1, 100), Some("idle_bytes_max"));
    // A member's count, until all of it is full; but for what takes its role.
    let refused: Vec<_> = (0..200).filter_map(|tag| say(50, tag, 100)).collect();
    assert!(refused.len() > 50 && refused.len() < 180, "{}", refused.len());
    assert!(refused.iter().all(|limit| *limit == "bytes_max"), "{refused:?}");
    assert_eq!(put(&mut ledger, &admin.say(at(3), revoke_key(50))), Applied::Effective);
}
