//! What witnesses look at beside the fold: later failures, baselines that were rolled back, and the stage before.

use super::*;

#[test]
fn a_failure_beside_one_baseline_is_not_made_good_beside_another() {
    let mut world = World::gated(1);
    world.ship(1);
    world.ship(2);
    let first = world.judge(3, Outcome::Pass, Some(2));
    let failed = world.judge(3, Outcome::Fail, Some(2));
    // Against what production ran before, which the fold takes below production.
    let other = world.judge(3, Outcome::Pass, Some(1));
    let (_, draft) = world.draft(2, 3, Stage::Canary);
    let mut promotion = draft.promotion;
    promotion.said.verdicts = [first, other].into();
    let promotion = world.say(2, Kind::Promote(promotion));
    world.put(&promotion);
    assert_eq!(world.cosign(10, &promotion.id()), Err(vec![Hold::NotPassed { verdict: failed }]));
}

#[test]
fn what_production_rolled_back_is_no_baseline_below_it() {
    let mut world = World::gated(1);
    world.ship(1);
    world.ship(2);
    world.judge(3, Outcome::Pass, Some(2));
    world.promote(3, Stage::Canary);
    let rollback = world.rollback(Stage::Production);
    world.put(&rollback);
    assert_eq!(world.head(Stage::Production), Some(1));

    let verdict = world.judge(4, Outcome::Pass, Some(2));
    let (_, draft) = world.draft(2, 4, Stage::Canary);
    let mut promotion = draft.promotion;
    promotion.said.verdicts = [verdict].into();
    let promotion = world.say(2, Kind::Promote(promotion));
    world.put(&promotion);
    let hold = Hold::OtherBaseline { found: Some(manifest(2)), expected: Some(manifest(3)) };
    assert_eq!(world.cosign(10, &promotion.id()), Err(vec![hold]));

    world.judge(4, Outcome::Pass, Some(1));
    world.promote(4, Stage::Canary);
}

#[test]
fn what_came_back_to_the_stage_before_may_go_on() {
    let mut world = World::gated(1);
    world.ship(1);
    world.judge(2, Outcome::Pass, Some(1));
    world.promote(2, Stage::Canary);
    let rollback = world.rollback(Stage::Canary);
    world.put(&rollback);
    let (_, draft) = world.draft(2, 2, Stage::Production);
    assert!(draft.holds.contains(&Hold::StageBefore { stage: Stage::Canary }), "{:?}", draft.holds);

    world.judge(2, Outcome::Pass, Some(1));
    world.promote(2, Stage::Canary);
    world.judge(3, Outcome::Pass, Some(1));
    world.judge(3, Outcome::Pass, Some(2));
    world.promote(3, Stage::Canary);
    world.promote(2, Stage::Production);
}
