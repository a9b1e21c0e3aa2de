//! Votes that split, witnesses that sign twice, and rollbacks that meet promotions made on the other side.

use super::*;

/// Both have all that either has.
fn heal(a: &mut World, b: &mut World, said: &[Envelope]) {
    for envelope in said {
        a.put(envelope);
        b.put(envelope);
    }
    assert_eq!(picture(&a.ledger), picture(&b.ledger));
}

#[test]
fn of_two_promotions_at_once_one_wins_and_a_minority_cannot() {
    let mut world = World::gated(3);
    world.ship(1);
    for n in [2, 3] {
        world.judge(n, Outcome::Pass, Some(1));
    }
    let (mut minority, mut majority) = (world.clone(), world);
    let (lost, _) = minority.draft(2, 2, Stage::Canary);
    minority.put(&lost);
    let one = minority.cosign(10, &lost.id()).expect("cosigns");
    assert_eq!(minority.head(Stage::Canary), Some(1), "one of three is no majority");

    let (won, _) = majority.draft(3, 3, Stage::Canary);
    majority.put(&won);
    let two = majority.cosign(11, &won.id()).expect("cosigns");
    let three = majority.cosign(12, &won.id()).expect("cosigns");
    assert_eq!(majority.head(Stage::Canary), Some(3));

    heal(&mut minority, &mut majority, &[lost.clone(), one, won, two, three]);
    assert_eq!(minority.head(Stage::Canary), Some(3));
    assert_eq!(minority.ledger.status(&lost.id()), Some(Status::Ignored(Why::Overtaken)));
    let late = minority.cosign(11, &lost.id()).expect_err("what comes late is refused");
    assert_eq!(late.first(), Some(&Hold::Parent));
}

#[test]
fn a_split_vote_ends_with_the_next_epoch() {
    let mut world = World::gated(3);
    world.judge(1, Outcome::Pass, None);
    world.judge(2, Outcome::Pass, None);
    world.judge(3, Outcome::Pass, None);
    let all: Vec<Envelope> = [1, 2, 3].map(|n| world.draft(2, n, Stage::Canary).0).into();
    all.iter().for_each(|e| {
        world.put(e);
    });
    world.cosign(10, &all[0].id()).expect("cosigns");
    world.cosign(11, &all[1].id()).expect("cosigns");
    // Until the third has voted somebody may still win, so nobody may go on.
    let (_, draft) = world.draft(2, 4, Stage::Canary);
    assert_eq!(draft.promotion.said.epoch, 1);
    assert_eq!(world.cosign(10, &all[1].id()), Err(vec![Hold::Voted { promotion: all[0].id() }]));
    let mut early = draft.promotion;
    early.said.epoch = 2;
    early.said.verdicts = world.ledger.verdicts_on(&bot(), &manifest(1)).iter().map(|v| v.id).collect();
    early.manifest = manifest(1);
    let early = world.say(2, Kind::Promote(early));
    world.put(&early);
    assert_eq!(world.cosign(12, &early.id()), Err(vec![Hold::EpochOpen]));

    world.cosign(12, &all[2].id()).expect("cosigns");
    let (next, draft) = world.draft(2, 1, Stage::Canary);
    assert_eq!((draft.promotion.said.epoch, draft.holds.len()), (2, 0));
    world.put(&next);
    world.cosign(10, &next.id()).expect("cosigns");
    world.cosign(11, &next.id()).expect("cosigns");
    assert_eq!(world.head(Stage::Canary), Some(1));
}

#[test]
fn a_witness_that_forgot_its_vote_is_found_out_and_moves_nothing() {
    let mut world = World::gated(3);
    world.ship(1);
    world.judge(2, Outcome::Pass, Some(1));
    world.judge(3, Outcome::Pass, Some(1));
    let (mut a, mut b) = (world.clone(), world);
    let (left, _) = a.draft(2, 2, Stage::Canary);
    let (right, _) = b.draft(3, 3, Stage::Canary);
    a.put(&left);
    b.put(&right);
    // Witness 10 votes, is restored from a backup, and votes again on the other side.
    let said = [
        left.clone(),
        right.clone(),
        a.cosign(10, &left.id()).expect("cosigns"),
        a.cosign(11, &left.id()).expect("cosigns"),
        b.cosign(10, &right.id()).expect("cosigns again"),
        b.cosign(12, &right.id()).expect("cosigns"),
    ];
    assert_eq!((a.head(Stage::Canary), b.head(Stage::Canary)), (Some(2), Some(3)));
    heal(&mut a, &mut b, &said);
    assert_eq!(a.head(Stage::Canary), Some(1), "neither wins");
    assert_eq!(a.ledger.status(&left.id()), Some(Status::Ignored(Why::HeadConflict)));
    let alarms = format!("{:?}", a.ledger.alarms(a.now()));
    assert!(alarms.contains("DoubleVote") && alarms.contains("HeadConflict"), "{alarms}");
}

#[test]
fn what_was_built_upon_is_not_undone_by_a_second_vote() {
    let mut world = World::gated(3);
    world.ship(1);
    world.judge(2, Outcome::Pass, Some(1));
    world.judge(3, Outcome::Pass, Some(1));
    let mut other = world.clone();
    world.promote(2, Stage::Canary);
    world.judge(4, Outcome::Pass, Some(2));
    world.promote(4, Stage::Canary);
    let (late, _) = other.draft(3, 3, Stage::Canary);
    other.put(&late);
    let said = [
        late.clone(),
        other.cosign(10, &late.id()).expect("forgot"),
        other.cosign(11, &late.id()).expect("forgot"),
    ];
    said.iter().for_each(|e| {
        world.put(e);
    });
    assert_eq!(world.head(Stage::Canary), Some(4));
    assert_eq!(world.ledger.status(&late.id()), Some(Status::Ignored(Why::Overtaken)));
}

#[test]
fn a_rollback_beats_one_promotion_of_the_other_side_and_not_two() {
    let mut world = World::gated(3);
    world.ship(1);
    world.ship(2);
    let mut minority = world.clone();
    let rollback = minority.rollback(Stage::Production);
    minority.put(&rollback);
    assert_eq!(minority.head(Stage::Production), Some(1), "it needs nobody else");

    world.judge(3, Outcome::Pass, Some(2));
    world.promote(3, Stage::Canary);
    let one = world.promote(3, Stage::Production);
    let mut healed = world.clone();
    assert_eq!(healed.put(&rollback), Applied::Effective);
    assert_eq!(healed.head(Stage::Production), Some(1));
    assert_eq!(healed.ledger.status(&one), Some(Status::Ignored(Why::RolledBack)));

    world.judge(4, Outcome::Pass, Some(3));
    world.promote(4, Stage::Canary);
    world.promote(4, Stage::Production);
    assert_eq!(world.put(&rollback), Applied::Ignored { why: Why::TooLate });
    assert_eq!(world.head(Stage::Production), Some(4));
}

#[test]
fn two_rollbacks_of_one_head_are_one() {
    let mut world = World::gated(1);
    world.ship(1);
    world.ship(2);
    let (a, b) = (world.rollback(Stage::Production), world.rollback(Stage::Production));
    assert_ne!(a.id(), b.id());
    world.put(&a);
    world.put(&b);
    assert_eq!(world.head(Stage::Production), Some(1));
    assert!(!format!("{:?}", world.ledger.alarms(world.now())).contains("HeadConflict"));
}

#[test]
fn a_rollback_names_the_head_and_a_target_that_was_one() {
    let mut world = World::gated(1);
    world.ship(1);
    world.ship(2);
    let Ok(good) = world.ledger.draft_rollback(&channel(Stage::Production), None, String::new()) else {
        panic!("there is a head")
    };
    for (change, why) in [(1, Hold::NotTheHead), (2, Hold::Target), (3, Hold::Root)] {
        let mut bad = good.clone();
        match change {
            1 => bad.manifest = manifest(1),
            2 => bad.said.to = Some(StatementId([7; 32])),
            _ => bad.said.root = 9,
        }
        let envelope = world.say(2, Kind::Rollback(bad));
        match world.put(&envelope) {
            Applied::Pending { why: Why::Held(hold) } => assert_eq!(hold, why),
            Applied::Ignored { why: Why::NotAllowed } => assert_eq!(change, 3),
            other => panic!("{other:?}"),
        }
        assert_eq!(world.head(Stage::Production), Some(2));
    }
    let stranger = world.say(40, Kind::Rollback(good.clone()));
    assert_eq!(world.put(&stranger), Applied::Ignored { why: Why::NotAllowed });
    assert!(
        world.ledger.draft_rollback(&channel(Stage::Production), Some(manifest(5)), String::new()).is_err()
    );
}
