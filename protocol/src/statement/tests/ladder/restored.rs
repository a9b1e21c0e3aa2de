//! A witness whose store is an older copy: how long it keeps silent, and that it signs nothing twice that it can hear of.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::histories::{Step, empty, play};
use super::*;

fn heard(reconciled: &[u8], connected: &[u8], up_secs: u64) -> Heard {
    let keys = |of: &[u8]| of.iter().map(|n| id(*n)).collect();
    Heard { reconciled: keys(reconciled), connected: keys(connected), up_secs }
}

#[test]
fn a_witness_votes_after_it_has_heard_more_than_half_of_the_others() {
    let three = World::gated(3);
    let five = World::gated(5);
    let may = |world: &World, heard: Heard| world.ledger.may_vote(&id(10), &heard, world.now());
    assert!(!may(&three, heard(&[], &[11, 12], 0)));
    assert!(!may(&three, heard(&[11], &[11, 12], 0)), "half of the others is not more than half");
    assert!(may(&three, heard(&[11, 12], &[11, 12], 0)));
    assert!(!may(&three, heard(&[20, 30, 11], &[11], 0)), "only witnesses count");
    // One that is away holds it up for a while, one that is there until it has been heard.
    assert!(may(&three, heard(&[11], &[11], 30)));
    assert!(!may(&three, heard(&[11], &[11, 12], 3_000)));
    assert!(!may(&three, heard(&[], &[], 3_000)), "alone it makes no majority");
    assert!(!may(&five, heard(&[11, 12], &[11, 12], 29)));
    assert!(may(&five, heard(&[11, 12, 13], &[11, 12, 13, 14], 0)));
    // Who is no witness votes never.
    assert!(!three.ledger.may_vote(&id(20), &heard(&[10, 11, 12], &[], 90), three.now()));
}

#[test]
fn the_only_witness_waits_for_any_member_and_not_for_ever() {
    let mut world = World::gated(1);
    let may = |world: &World, heard: Heard| world.ledger.may_vote(&id(10), &heard, world.now());
    assert!(may(&world, heard(&[], &[], 0)), "nobody else is there");
    let envelope = world.admin.say(world.now(), admit(50, None));
    world.put(&envelope);
    assert!(!may(&world, heard(&[], &[50], 29)));
    assert!(may(&world, heard(&[50], &[50], 0)) && may(&world, heard(&[], &[], 30)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// The witness lost everything but a prefix, hears some of what was said from others, and then votes on all that
    /// waits: never where any of them knew its vote.
    #[test]
    fn what_others_know_of_its_votes_binds_a_restored_witness(
        steps in prop::collection::vec(any::<Step>(), 8..40),
        kept in any::<u16>(),
        knows in prop::collection::vec(any::<u64>(), 1..4),
    ) {
        let all = play(&steps).all;
        let kept = usize::from(kept) % all.len();
        // Each of the others has its own part of what was said.
        let has = |n: usize| knows.iter().any(|mask| mask >> (n % 61) & 1 == 1);
        let mut ledger = empty(&all);
        let parts = all.iter().enumerate().filter(|(n, _)| *n < kept || has(*n));
        let checked: Vec<Checked> = parts.map(|(_, e)| ledger.check(e).expect("well made")).collect();
        ledger.apply_all(checked);
        for witness in 10..15u8 {
            let mut mine = ledger.clone();
            let places = |ledger: &Ledger| -> Vec<(Channel, Option<StatementId>, u64, u32, StatementId)> {
                let said = ledger.statements().filter_map(|s| ledger.statement(&s));
                said.filter(|s| s.by == id(witness)).filter_map(|s| match &s.kind {
                    Kind::Cosign(c) => {
                        Some((c.channel.clone(), c.said.parent, c.said.epoch, c.said.root, c.said.promotion))
                    }
                    _ => None,
                }).collect()
            };
            let before: BTreeSet<_> = places(&mine).into_iter().map(|(c, p, e, r, _)| (c, p, e, r)).collect();
            for promotion in mine.pending_promotions() {
                let Vote::Cosign(said) = mine.vote(&id(witness), &promotion, NOW.plus(60)) else { continue };
                let place = (said.channel.clone(), said.said.parent, said.said.epoch, said.said.root);
                prop_assert!(!before.contains(&place), "{witness} signs twice at {place:?}");
                let again = Voice::new(witness, mine.cluster()).say(NOW.plus(60), Kind::Cosign(said));
                put(&mut mine, &again);
            }
        }
    }
}

#[test]
fn a_vote_that_only_others_have_is_its_own_again() {
    let mut world = World::gated(3);
    world.ship(1);
    world.judge(2, Outcome::Pass, Some(1));
    world.judge(3, Outcome::Pass, Some(1));
    let backup = world.clone();
    let (left, _) = world.draft(2, 2, Stage::Canary);
    world.put(&left);
    let vote = world.cosign(10, &left.id()).expect("cosigns");
    let mut restored = backup;
    let (right, _) = restored.draft(3, 3, Stage::Canary);
    restored.put(&right);
    let forgot = restored.clone().cosign(10, &right.id());
    assert!(forgot.is_ok(), "it would sign, so it must hear first");
    // The vote comes, from whomever, even before the promotion that it is for.
    restored.put(&vote);
    assert_eq!(restored.cosign(10, &right.id()), Err(vec![Hold::Voted { promotion: left.id() }]));
    restored.put(&left);
    assert_eq!(restored.cosign(10, &left.id()), Err(Vec::new()), "it has signed that");
}
