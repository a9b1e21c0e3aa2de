//! What binds a witness and what does not: votes that no longer count, evidence that was taken back, wrong clocks.

use super::*;

#[test]
fn a_channel_moves_on_when_the_evidence_of_its_head_is_revoked() {
    let mut world = World::gated(3);
    world.ship(1);
    let verdict = world.judge(2, Outcome::Pass, Some(1));
    world.promote(2, Stage::Canary);
    let mut late = world.clone();
    let revoked = world.admin.say(at(500), revoke(Target::Statement { id: verdict }));
    world.put(&revoked);
    assert_eq!(world.head(Stage::Canary), Some(1));

    // All three have signed a child of that head, so there is a next one.
    world.judge(3, Outcome::Pass, Some(1));
    let (next, draft) = world.draft(2, 3, Stage::Canary);
    assert_eq!((draft.holds, draft.promotion.said.epoch), (vec![], 3));
    world.put(&next);
    let votes: Vec<Envelope> =
        [10, 11].iter().map(|n| world.cosign(*n, &next.id()).expect("cosigns")).collect();
    assert_eq!(world.head(Stage::Canary), Some(3));

    // Where neither revocation nor verdict is known nothing changes yet.
    for envelope in [&next].into_iter().chain(&votes) {
        late.put(envelope);
    }
    assert_eq!(late.head(Stage::Canary), Some(2), "without its verdict it does not stand");
}

#[test]
fn of_two_epochs_that_both_stand_the_later_one_wins() {
    let mut world = World::gated(1);
    world.ship(1);
    world.judge(3, Outcome::Pass, Some(1));
    let verdict = world.judge(2, Outcome::Pass, Some(1));
    let mut late = world.clone();
    let old = world.draft(2, 2, Stage::Canary).0;
    let mut said = vec![old.clone()];
    world.put(&old);
    said.push(world.cosign(10, &old.id()).expect("cosigns"));
    let revoked = world.admin.say(at(500), revoke(Target::Statement { id: verdict }));
    world.put(&revoked);
    let new = world.draft(2, 3, Stage::Canary).0;
    world.put(&new);
    said.push(new);
    said.push(world.cosign(10, &said[2].id()).expect("cosigns"));
    assert_eq!(world.head(Stage::Canary), Some(3));
    said.iter().for_each(|envelope| {
        late.put(envelope);
    });
    assert_eq!(late.head(Stage::Canary), Some(3), "who has not heard of the revocation has the same head");
}

#[test]
fn a_vote_that_was_revoked_still_binds_its_witness() {
    let mut world = World::gated(3);
    world.ship(1);
    world.judge(2, Outcome::Pass, Some(1));
    world.judge(3, Outcome::Pass, Some(1));
    let (one, other) = (world.draft(2, 2, Stage::Canary).0, world.draft(3, 3, Stage::Canary).0);
    world.put(&one);
    world.put(&other);
    let vote = world.cosign(10, &one.id()).expect("cosigns");
    let revoked = world.admin.say(at(500), revoke(Target::Statement { id: vote.id() }));
    world.put(&revoked);
    assert_eq!(world.cosign(10, &one.id()), Err(vec![]), "it has signed");
    assert_eq!(world.cosign(10, &other.id()), Err(vec![Hold::Voted { promotion: one.id() }]));
    // With the others split, nobody can win here any longer.
    world.cosign(11, &one.id()).expect("cosigns");
    world.cosign(12, &other.id()).expect("cosigns");
    let (next, draft) = world.draft(2, 3, Stage::Canary);
    assert_eq!((draft.holds, draft.promotion.said.epoch), (vec![], 3));
    world.put(&next);
    for witness in [10, 12] {
        world.cosign(witness, &next.id()).expect("cosigns");
    }
    assert_eq!(world.head(Stage::Canary), Some(3));
}

#[test]
fn what_is_rolled_back_again_is_bad_again_whatever_the_clock_shows() {
    let mut world = World::gated(1);
    world.ship(1);
    world.ship(2);
    world.clock += 3_600;
    let fast = world.rollback(Stage::Production);
    world.put(&fast);
    world.clock += 1;
    world.judge(2, Outcome::Pass, Some(1));
    world.promote(2, Stage::Production);
    assert!(world.may_open(2).is_ok());
    world.clock -= 3_600;
    let slow = world.rollback(Stage::Production);
    assert_eq!(world.put(&slow), Applied::Effective);
    assert_eq!(world.head(Stage::Production), Some(1));
    assert!(matches!(world.may_open(2), Err(Closed::RolledBack { .. })), "{:?}", world.may_open(2));
}

#[test]
fn a_second_cosignature_of_a_witness_makes_no_head_younger() {
    let text = format!("{POLICY}[stage.canary]\nmin_duration = \"10m\"\n");
    let mut world = World::new(1);
    world.publish(1);
    world.set_policy(&text);
    world.judge(1, Outcome::Pass, None);
    let canary = world.promote(1, Stage::Canary);
    world.clock += 700;
    world.promote(1, Stage::Production);
    let Some(Kind::Cosign(said)) = world
        .ledger
        .history(&bot())
        .into_iter()
        .map(|e| e.kind)
        .find(|kind| matches!(kind, Kind::Cosign(c) if c.said.promotion == canary))
    else {
        panic!("it was cosigned")
    };
    for late in 1..9 {
        let again = Voice::new(10, world.cluster).say(UnixTime(u64::MAX - late), Kind::Cosign(said.clone()));
        world.put(&again);
        assert_eq!(world.head(Stage::Production), Some(1), "what stands stays");
    }
}

#[test]
fn where_no_time_is_asked_for_a_fast_clock_holds_up_nothing() {
    for section in [String::new(), format!("[stage.canary]\nhardware = [\"{HARDWARE}\"]\n")] {
        let mut world = World::new(1);
        world.publish(1);
        world.set_policy(&format!("{POLICY}{section}"));
        world.judge(1, Outcome::Pass, None);
        world.clock += 60;
        world.promote(1, Stage::Canary);
        world.clock -= 60;
        world.promote(1, Stage::Production);
        assert_eq!(world.head(Stage::Production), Some(1), "{section}");
    }
}
