//! `publish = "requires-verdict"`: a name means nothing on any host until a verdict that passed is there.

use super::*;

const STRICT: &str = "publish = \"requires-verdict\"\n";

fn strict() -> World {
    let mut world = World::new(1);
    world.set_policy(&format!("{STRICT}{POLICY}"));
    world
}

#[test]
fn a_name_that_was_published_past_its_own_host_means_nothing_without_a_verdict() {
    let mut world = strict();
    // As by a host that does not keep to the policy.
    world.publish(1);
    assert_eq!(resolve(&world.ledger, "1"), Resolution::Unproven(manifest(1)));
    assert_eq!(world.ledger.tags(&bot()).next().map(|(_, m)| m), Some(Resolution::Unproven(manifest(1))));
    for outcome in [Outcome::Fail, Outcome::NoEvidence] {
        world.judge(1, outcome, None);
        assert_eq!(resolve(&world.ledger, "1"), Resolution::Unproven(manifest(1)), "{outcome:?}");
    }
    // One under a policy that nobody set, one by a stranger, and one for another artifact.
    let Kind::Verdict(mut other) = weighing::verdict(1, Outcome::Pass) else { panic!("a verdict") };
    let unknown = world.say(30, Kind::Verdict(other.clone()));
    other.ruling.policy = world.policy();
    let stranger = world.say(40, Kind::Verdict(other.clone()));
    other.artifact = "acme/other".parse().expect("artifact");
    let elsewhere = world.say(30, Kind::Verdict(other));
    for envelope in [unknown, stranger, elsewhere] {
        world.put(&envelope);
        assert_eq!(resolve(&world.ledger, "1"), Resolution::Unproven(manifest(1)));
    }
    let verdict = world.judge(1, Outcome::Pass, None);
    assert_eq!(resolve(&world.ledger, "1"), Resolution::Resolved(manifest(1)));
    // Another policy of the kind takes no name away; an open one gives those that had none.
    world.publish(2);
    world.set_policy(&format!("{STRICT}{}", POLICY.replace("3.0", "2.5")));
    assert_eq!(resolve(&world.ledger, "1"), Resolution::Resolved(manifest(1)));
    assert_eq!(resolve(&world.ledger, "2"), Resolution::Unproven(manifest(2)));
    let envelope = world.admin.say(world.now(), revoke(Target::Statement { id: verdict }));
    world.put(&envelope);
    assert_eq!(resolve(&world.ledger, "1"), Resolution::Unproven(manifest(1)));
    world.set_policy(POLICY);
    assert_eq!(resolve(&world.ledger, "2"), Resolution::Resolved(manifest(2)));
}

#[test]
fn publish_and_verdict_may_come_in_any_order_and_twice() {
    let mut world = strict();
    let before = world.ledger.clone();
    let published = world.say(20, publish("1", 1));
    let Kind::Verdict(mut verdict) = weighing::verdict(1, Outcome::Pass) else { panic!("a verdict") };
    verdict.ruling.policy = world.policy();
    let verdict = world.say(30, Kind::Verdict(verdict));
    let mut pictures = std::collections::BTreeSet::new();
    for order in [[0, 1, 0], [1, 0, 1], [0, 0, 1], [1, 1, 0]] {
        let mut ledger = before.clone();
        for n in order {
            put(&mut ledger, [&published, &verdict][n]);
        }
        assert_eq!(resolve(&ledger, "1"), Resolution::Resolved(manifest(1)), "{order:?}");
        pictures.insert(picture(&ledger));
    }
    assert_eq!(pictures.len(), 1);
}

#[test]
fn where_policies_dispute_or_are_gone_the_strictest_that_is_known_holds() {
    let mut world = World::gated(1);
    assert!(!world.ledger.names_need_verdict(&bot()));
    let ids = [&format!("{STRICT}{POLICY}"), POLICY].map(|text| world.set_policy(text));
    assert!(!world.ledger.names_need_verdict(&bot()), "the one in force lets everything be published");
    let head = world.ledger.policy_of(&bot()).and_then(|p| p.in_force).expect("in force").0;
    assert_eq!(head, ids[1]);
    let envelope = world.admin.say(world.now(), revoke(Target::Statement { id: ids[1] }));
    world.put(&envelope);
    assert!(world.ledger.names_need_verdict(&bot()), "the strict one is in force again");
    assert_eq!(resolve(&world.ledger, "1"), Resolution::Unproven(manifest(1)));

    let mut world = strict();
    world.publish(1);
    let id = world.ledger.policy_of(&bot()).and_then(|p| p.in_force).expect("in force").0;
    let verdict = world.judge(1, Outcome::Pass, None);
    assert_eq!(resolve(&world.ledger, "1"), Resolution::Resolved(manifest(1)), "{verdict:?}");
    let envelope = world.admin.say(world.now(), revoke(Target::Statement { id }));
    world.put(&envelope);
    assert!(world.ledger.names_need_verdict(&bot()), "revoking it gives no name away");
    assert_eq!(resolve(&world.ledger, "1"), Resolution::Unproven(manifest(1)));
}
