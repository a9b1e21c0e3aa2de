//! Policies: versions, scopes, disputes, and what a policy asks of a stage.

use super::*;

fn policy(world: &World, scope: &str, text: &str) -> SetPolicy {
    let digest = Policy::parse(text).map(|p| p.digest()).unwrap_or(Sha256([0; 32]));
    world.ledger.draft_policy(scope.parse().expect("scope"), digest, text.to_owned())
}

#[test]
fn only_admins_set_policies_and_the_narrower_scope_wins() {
    let mut world = World::new(1);
    let draft = policy(&world, "acme", POLICY);
    let mut promoter = Voice::new(2, world.cluster);
    assert_eq!(
        put(&mut world.ledger, &promoter.say(at(1), Kind::Policy(draft))),
        Applied::Ignored { why: Why::NotAllowed }
    );
    assert!(!world.ledger.is_gated(&bot()));
    world.set_policy(POLICY);
    let own = policy(&world, "acme/bot", "[metric.eval_loss]\ndirection = \"lower\"\nmax = 1.0\n");
    let envelope = world.admin.say(at(9), Kind::Policy(own.clone()));
    world.put(&envelope);
    assert_eq!(world.policy(), own.policy);
    assert!(world.ledger.is_gated(&"acme/other".parse().expect("artifact")));
    assert!(!world.ledger.is_gated(&"acme-x/bot".parse().expect("artifact")));
}

#[test]
fn a_disputed_policy_stops_promotions_and_opens_nothing() {
    let mut world = World::gated(1);
    world.ship(1);
    let one = policy(&world, "acme", &POLICY.replace("3.0", "2.0"));
    let two = policy(&world, "acme", &POLICY.replace("3.0", "9.0"));
    let (one, two) =
        (world.admin.say(at(100), Kind::Policy(one)), world.admin.say(at(101), Kind::Policy(two)));
    world.put(&one);
    assert_eq!(world.put(&two), Applied::Ignored { why: Why::PolicyConflict });
    let status = world.ledger.policy_of(&bot()).expect("gated").in_force.expect("the one before");
    assert_eq!(status.1, 1);
    assert!(world.may_open(1).is_ok() && world.may_open(2).is_err());
    let revoked = world.admin.say(at(102), revoke(Target::Statement { id: two.id() }));
    world.put(&revoked);
    assert_eq!(world.ledger.status(&one.id()), Some(Status::Effective));
}

#[test]
fn neither_a_stolen_key_nor_revoking_every_policy_opens_a_namespace() {
    let mut world = World::gated(1);
    world.ship(1);
    let mut stolen = world.clone();
    // Another body at the first place of the admin's chain.
    let mut thief = world.admin.clone();
    thief.next = Chain { seq: 1, prev: world.ledger.root(NOW).map(|root| root.id) };
    let forged = thief.say(at(90), invite(44, 1));
    stolen.put(&forged);
    assert!(stolen.ledger.is_gated(&bot()), "a gate never falls by theft");
    assert!(stolen.may_open(1).is_ok() && stolen.may_open(2).is_err());
    assert_eq!(stolen.head(Stage::Production), Some(1), "effective heads stay");

    let id = world.ledger.policies().next().and_then(|p| p.in_force).expect("in force").0;
    let revoked = world.admin.say(at(100), revoke(Target::Statement { id }));
    world.put(&revoked);
    assert!(world.ledger.is_gated(&bot()) && world.may_open(1).is_err() && world.may_open(2).is_err());
    world.clock = 200;
    world.set_policy(POLICY);
    assert!(world.may_open(1).is_ok(), "its head was made under these very words");
}

#[test]
fn a_policy_that_this_release_cannot_read_passes_nothing() {
    let mut world = World::gated(1);
    world.ship(1);
    let draft = policy(&world, "acme", "[from_the_future]\nx = 1\n");
    let envelope = world.admin.say(at(100), Kind::Policy(draft));
    assert_eq!(world.put(&envelope), Applied::Effective);
    world.judge(2, Outcome::Pass, Some(1));
    let (_, draft) = world.draft(2, 2, Stage::Canary);
    assert!(draft.holds.contains(&Hold::PolicyUnreadable), "{:?}", draft.holds);
    assert!(world.may_open(1).is_ok(), "the head was made under one that is readable");
}

#[test]
fn durations_requests_and_other_hardware_are_asked_for() {
    let text = format!(
        "{POLICY}[stage.canary]\nmin_duration = \"10m\"\n[stage.production]\nhardware = [\"nvidia/sm_90\"]\n"
    );
    let mut world = World::new(1);
    world.publish(1);
    world.set_policy(&text);
    world.judge(1, Outcome::Pass, None);
    world.promote(1, Stage::Canary);
    let (_, draft) = world.draft(2, 1, Stage::Production);
    assert!(
        matches!(draft.holds[..], [Hold::NoVerdictElsewhere, Hold::TooSoon { stage: Stage::Canary, .. }]),
        "{:?}",
        draft.holds
    );
    world.clock += 700;
    let Kind::Verdict(mut verdict) = weighing::verdict(1, Outcome::Pass) else { panic!("a verdict") };
    (verdict.ruling.policy, verdict.ruling.hardware) = (world.policy(), "nvidia/sm_90".to_owned());
    let envelope = world.say(30, Kind::Verdict(verdict));
    world.put(&envelope);
    let (promotion, draft) = world.draft(2, 1, Stage::Production);
    assert_eq!((draft.holds.len(), draft.promotion.said.verdicts.len()), (0, 2));
    world.put(&promotion);
    world.cosign(10, &promotion.id()).expect("cosigns");

    let mut requests = World::new(1);
    requests.publish(1);
    requests.set_policy(&format!("{POLICY}[stage.canary]\nmin_requests = 500\n"));
    requests.judge(1, Outcome::Pass, None);
    requests.promote(1, Stage::Canary);
    let (_, draft) = requests.draft(2, 1, Stage::Production);
    assert_eq!(
        draft.holds,
        [Hold::Requests { stage: Stage::Canary, needed: 500 }],
        "what nobody counts is no evidence"
    );
}

#[test]
fn an_expired_promotion_is_served_or_stops_as_the_policy_says() {
    for (rule, opens) in [("serve", true), ("stop", false)] {
        let mut world = World::new(1);
        world.publish(1);
        world.set_policy(&format!(
            "on_expiry = \"{rule}\"\nladder = [\"production\"]\n[metric.eval_loss]\ndirection = \"lower\"\nmax = 3.0\n[stage.production]\nvalid_for = \"1h\"\n"
        ));
        world.judge(1, Outcome::Pass, None);
        world.promote(1, Stage::Production);
        let may = |secs| world.ledger.may_open(&bot(), &manifest(1), HARDWARE, at(secs)).is_ok();
        assert_eq!((may(3_500), may(9_000)), (true, opens));
        let alarms = format!("{:?}", world.ledger.alarms(at(9_000)));
        assert!(alarms.contains("HeadExpired"), "{alarms}");
        world.clock = 9_000;
        let (again, draft) = world.draft(2, 1, Stage::Production);
        assert_eq!(draft.holds, []);
        world.put(&again);
        world.cosign(10, &again.id()).expect("renews");
        assert!(world.ledger.may_open(&bot(), &manifest(1), HARDWARE, at(9_100)).is_ok());
    }
}
