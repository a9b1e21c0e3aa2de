//! Whose word counts: roles, namespaces, revocations, rotated roots, clocks.

use super::*;

#[test]
fn strangers_move_nothing() {
    let mut world = World::gated(1);
    world.judge(1, Outcome::Pass, None);
    let (promotion, _) = world.draft(2, 1, Stage::Canary);
    let Ok(Kind::Promote(said)) = Statement::parse(promotion.payload()).map(|s| s.kind) else {
        panic!("parses")
    };
    let by_stranger = world.say(40, Kind::Promote(said.clone()));
    assert_eq!(world.put(&by_stranger), Applied::Ignored { why: Why::NotAllowed });
    assert_eq!(world.cosign(10, &by_stranger.id()), Err(Vec::new()));
    let mut elsewhere = said;
    elsewhere.channel.artifact = "other/bot".parse().expect("artifact");
    let elsewhere = world.say(2, Kind::Promote(elsewhere));
    assert_eq!(world.put(&elsewhere), Applied::Ignored { why: Why::NotAllowed });

    // Nobody but a witness counts, however many sign.
    world.put(&promotion);
    let Vote::Cosign(vote) = world.ledger.vote(&id(10), &promotion.id(), world.now()) else {
        panic!("votes")
    };
    for by in [2, 20, 40] {
        let envelope = world.say(by, Kind::Cosign(vote.clone()));
        assert_eq!(world.put(&envelope), Applied::Ignored { why: Why::NotAllowed });
    }
    // A cosignature that says something else than the promotion is none.
    let mut other = vote.clone();
    other.said.epoch = 7;
    let envelope = world.say(10, Kind::Cosign(other));
    world.put(&envelope);
    let mut other = vote.clone();
    other.manifest = manifest(2);
    let envelope = world.say(10, Kind::Cosign(other));
    world.put(&envelope);
    assert_eq!(world.head(Stage::Canary), None);
}

#[test]
fn approvals_are_by_others_and_for_this_step() {
    let mut world = World::new(1);
    (1..=2).for_each(|n| world.publish(n));
    world.set_policy(&format!("{POLICY}[stage.production]\napprovals = 1\n"));
    world.judge(1, Outcome::Pass, None);
    world.promote(1, Stage::Canary);
    let (promotion, draft) = world.draft(2, 1, Stage::Production);
    assert_eq!(draft.holds, [Hold::Approvals { have: 0, needed: 1 }]);
    world.put(&promotion);
    let approval = OnChannel {
        channel: channel(Stage::Production),
        manifest: manifest(1),
        said: Approval { parent: None, policy: Some(world.policy()), note: String::new() },
    };
    for (by, n, counts) in [(2, 1, false), (40, 1, false), (3, 2, false), (3, 1, true)] {
        let mut approval = approval.clone();
        approval.manifest = manifest(n);
        let envelope = world.say(by, Kind::Approve(approval));
        world.put(&envelope);
        assert_eq!(world.cosign(10, &promotion.id()).is_ok(), counts, "{by} {n}");
    }
    assert_eq!(world.head(Stage::Production), Some(1));
}

#[test]
fn a_revoked_verdict_or_key_takes_its_heads_along_and_a_retired_one_does_not() {
    let mut world = World::gated(1);
    world.ship(1);
    world.ship(2);
    let mut revoked = world.clone();
    let verdict = revoked.ledger.verdicts_on(&bot(), &manifest(2))[0].id;
    let envelope = revoked.admin.say(at(500), revoke(Target::Statement { id: verdict }));
    revoked.put(&envelope);
    assert_eq!(revoked.head(Stage::Production), Some(1));
    assert!(revoked.may_open(2).is_err() && revoked.may_open(1).is_ok());

    let retired = world.admin.say(at(500), revoke_key(30));
    world.put(&retired);
    assert_eq!(world.head(Stage::Production), Some(2), "what it said before stays");
}

#[test]
fn rotation_keeps_heads_and_old_witnesses_no_longer_vote() {
    let mut world = World::gated(1);
    world.ship(1);
    world.judge(2, Outcome::Pass, Some(1));
    let (old, _) = world.draft(2, 2, Stage::Canary);
    world.put(&old);
    let mut next = World::root(1);
    let root = world.ledger.root(world.now()).expect("root");
    (next.version, next.prev_root, next.settled) = (2, Some(root.id), world.ledger.settled());
    next.roles.insert(Role::Witness, role(&[11], 1, &["*"], false));
    next.roles.insert(Role::Promoter, role(&[3], 1, &["acme"], false));
    let envelope = world.admin.say(at(500), Kind::Root(next));
    assert_eq!(world.put(&envelope), Applied::Effective);
    assert_eq!((world.head(Stage::Production), world.may_open(1).is_ok()), (Some(1), true));
    assert_eq!(world.cosign(10, &old.id()), Err(vec![Hold::RootReplaced]));
    world.clock = 600;
    let (by_retired, draft) = world.draft(2, 2, Stage::Canary);
    assert_eq!(draft.promotion.said.root, 2);
    assert_eq!(world.put(&by_retired), Applied::Ignored { why: Why::NotAllowed });
    let (new, _) = world.draft(3, 2, Stage::Canary);
    world.put(&new);
    assert_eq!(world.cosign(10, &new.id()), Err(Vec::new()), "no witness any more");
    world.cosign(11, &new.id()).expect("cosigns");
    assert_eq!(world.head(Stage::Canary), Some(2));
    // A retired promoter rolls nothing back that came after it.
    let draft = world.ledger.draft_rollback(&channel(Stage::Canary), None, String::new()).expect("a head");
    for root in [1, 2] {
        let mut draft = draft.clone();
        draft.said.root = root;
        let envelope = world.say(2, Kind::Rollback(draft));
        world.put(&envelope);
        assert_eq!(world.head(Stage::Canary), Some(2), "root {root}");
    }
}

#[test]
fn clocks_and_expired_roots_stop_promotions_and_not_rollbacks() {
    let mut world = World::gated(1);
    world.ship(1);
    world.ship(2);
    world.judge(3, Outcome::Pass, Some(2));
    let (promotion, _) = world.draft(2, 3, Stage::Canary);
    world.put(&promotion);
    let holds = |now| match world.ledger.vote(&id(10), &promotion.id(), now) {
        Vote::Withheld(holds) => holds,
        other => panic!("{other:?}"),
    };
    assert!(matches!(holds(UnixTime(NOW.0 - 3_600))[..], [Hold::Clock { .. }]), "an hour off");
    assert!(matches!(holds(at(30 * 86_400))[..], [Hold::Clock { .. }]), "a month old");
    assert!(holds(LATER.plus(1_000)).contains(&Hold::RootExpired));
    let rollback = world.rollback(Stage::Production);
    assert_eq!(world.put(&rollback), Applied::Effective);
    assert!(world.ledger.may_open(&bot(), &manifest(1), HARDWARE, LATER.plus(1_000)).is_ok());
}

#[test]
fn a_rollback_under_a_root_that_nobody_has_is_refused_whatever_its_number() {
    let mut world = World::gated(1);
    world.ship(1);
    world.ship(2);
    for root in [2, u32::MAX] {
        let mut draft =
            world.ledger.draft_rollback(&channel(Stage::Production), None, String::new()).expect("a head");
        draft.said.root = root;
        let said = world.say(3, Kind::Rollback(draft));
        assert_eq!(world.put(&said), Applied::Ignored { why: Why::NotAllowed }, "root {root}");
        assert_eq!(world.head(Stage::Production), Some(2));
    }
}
