//! The ladder: what moves a head, what does not, and what a partition leaves behind.

mod authority;
mod bound;
mod histories;
mod holds;
mod model;
mod names;
mod partition;
mod policy;
mod properties;
mod restored;

use super::weighing;
use super::*;
use crate::gate::{Outcome, Policy};
use crate::id::Sha256;
use crate::names::{Artifact, Stage};

const HARDWARE: &str = "cpu/x86-64-v4";
const POLICY: &str =
    "ladder = [\"canary\", \"production\"]\n[metric.eval_loss]\ndirection = \"lower\"\nmax = 3.0\n";

/// A cluster with everyone whom a promotion needs: promoters 2 and 3, evaluator 30, witnesses from 10.
#[derive(Clone)]
struct World {
    admin: Voice,
    ledger: Ledger,
    cluster: ClusterId,
    clock: u64,
    witnesses: u8,
}

impl World {
    fn new(witnesses: u8) -> Self {
        let (admin, ledger) = cluster_of(Self::root(witnesses));
        let cluster = ledger.cluster();
        Self { admin, ledger, cluster, clock: 0, witnesses }
    }

    fn root(witnesses: u8) -> Root {
        let mut root = root_of(&[1], 1);
        let all: Vec<u8> = (10..10 + witnesses).collect();
        root.roles.insert(Role::Evaluator, role(&[30], 1, &["acme"], false));
        root.roles.insert(Role::Promoter, role(&[2, 3], 1, &["acme"], false));
        root.roles.insert(Role::Witness, role(&all, 1, &["*"], false));
        root
    }

    /// With a policy, and versions 1 to 6 published.
    fn gated(witnesses: u8) -> Self {
        let mut world = Self::new(witnesses);
        (1..=6).for_each(|n| world.publish(n));
        world.set_policy(POLICY);
        world
    }

    fn now(&self) -> UnixTime {
        at(self.clock)
    }

    fn say(&mut self, by: u8, kind: Kind) -> Envelope {
        self.clock += 1;
        Voice::new(by, self.cluster).say(self.now(), kind)
    }

    fn put(&mut self, envelope: &Envelope) -> Applied {
        put(&mut self.ledger, envelope)
    }

    fn publish(&mut self, n: u8) {
        let envelope = self.say(20, publish(&n.to_string(), n));
        assert_eq!(self.put(&envelope), Applied::Effective);
    }

    fn set_policy(&mut self, text: &str) -> StatementId {
        let digest = Policy::parse(text).expect("policy").digest();
        let draft = self.ledger.draft_policy("acme".parse().expect("scope"), digest, text.to_owned());
        self.clock += 1;
        let envelope = self.admin.say(at(self.clock), Kind::Policy(draft));
        assert_eq!(put(&mut self.ledger, &envelope), Applied::Effective);
        envelope.id()
    }

    fn policy(&self) -> Sha256 {
        let status = self.ledger.policy_of(&bot()).expect("gated");
        status.in_force.expect("in force").2
    }

    fn judge(&mut self, n: u8, outcome: Outcome, baseline: Option<u8>) -> StatementId {
        let Kind::Verdict(mut verdict) = weighing::verdict(n, outcome) else { panic!("a verdict") };
        verdict.ruling.policy = self.policy();
        verdict.ruling.baseline = baseline.map(manifest);
        verdict.ruling.hardware = HARDWARE.to_owned();
        let envelope = self.say(30, Kind::Verdict(verdict));
        assert_eq!(self.put(&envelope), Applied::Effective);
        envelope.id()
    }

    /// What `by` would sign to promote version `n`, signed.
    fn draft(&mut self, by: u8, n: u8, stage: Stage) -> (Envelope, Draft) {
        let draft =
            self.ledger.draft_promotion(&id(by), &channel(stage), manifest(n), self.now(), String::new());
        (self.say(by, Kind::Promote(draft.promotion.clone())), draft)
    }

    /// The cosignature of a witness, stored; or why it gives none.
    fn cosign(&mut self, witness: u8, promotion: &StatementId) -> Result<Envelope, Vec<Hold>> {
        match self.ledger.vote(&id(witness), promotion, self.now()) {
            Vote::Cosign(said) => {
                let envelope = self.say(witness, Kind::Cosign(said));
                self.put(&envelope);
                Ok(envelope)
            }
            Vote::Done => Err(Vec::new()),
            Vote::Withheld(holds) => Err(holds),
        }
    }

    /// Promotes with the votes of all witnesses.
    fn promote(&mut self, n: u8, stage: Stage) -> StatementId {
        let (envelope, draft) = self.draft(2, n, stage);
        assert_eq!(draft.holds, [], "{n} to {stage}");
        self.put(&envelope);
        for witness in 10..10 + self.witnesses {
            let cosigned = self.cosign(witness, &envelope.id());
            assert!(cosigned.is_ok() || self.head(stage) == Some(n), "{cosigned:?}");
        }
        assert_eq!(self.head(stage), Some(n));
        envelope.id()
    }

    /// Judges a version against what production has and takes it all the way.
    fn ship(&mut self, n: u8) {
        let production = self.head(Stage::Production);
        let canary = self.head(Stage::Canary);
        self.judge(n, Outcome::Pass, production);
        if canary != production {
            self.judge(n, Outcome::Pass, canary);
        }
        self.promote(n, Stage::Canary);
        self.promote(n, Stage::Production);
    }

    fn rollback(&mut self, stage: Stage) -> Envelope {
        let draft =
            self.ledger.draft_rollback(&channel(stage), None, "bad answers".to_owned()).expect("a head");
        self.say(3, Kind::Rollback(draft))
    }

    fn head(&self, stage: Stage) -> Option<u8> {
        self.ledger.head(&bot(), stage, HARDWARE).map(|head| head.manifest.0[0])
    }

    fn may_open(&self, n: u8) -> Result<Grounds, Closed> {
        self.ledger.may_open(&bot(), &manifest(n), HARDWARE, self.now())
    }
}

fn bot() -> Artifact {
    "acme/bot".parse().expect("artifact")
}

fn manifest(n: u8) -> ManifestDigest {
    ManifestDigest([n; 32])
}

fn channel(stage: Stage) -> Channel {
    Channel { artifact: bot(), stage, hardware: HARDWARE.to_owned() }
}

/// One of each kind, for the golden files.
pub(super) fn set_policy() -> Kind {
    Kind::Policy(SetPolicy {
        scope: "acme".parse().expect("scope"),
        version: 1,
        replaces: None,
        policy: Policy::parse(POLICY).expect("policy").digest(),
        text: POLICY.to_owned(),
    })
}

pub(super) fn approve() -> Kind {
    let said = Approval { parent: None, policy: Some(Sha256([4; 32])), note: "read the evals".to_owned() };
    Kind::Approve(OnChannel { channel: channel(Stage::Production), manifest: manifest(1), said })
}

pub(super) fn promote() -> Kind {
    let said = Promotion {
        parent: Some(StatementId([6; 32])),
        epoch: 2,
        root: 1,
        policy: Some(Sha256([4; 32])),
        verdicts: [StatementId([8; 32])].into(),
        from: Some(StatementId([7; 32])),
        note: String::new(),
    };
    Kind::Promote(OnChannel { channel: channel(Stage::Production), manifest: manifest(1), said })
}

pub(super) fn cosign() -> Kind {
    let said = Cosignature {
        promotion: StatementId([9; 32]),
        parent: Some(StatementId([6; 32])),
        epoch: 2,
        root: 1,
    };
    Kind::Cosign(OnChannel { channel: channel(Stage::Production), manifest: manifest(1), said })
}

pub(super) fn rollback() -> Kind {
    let said = Rollback {
        over: StatementId([9; 32]),
        to: Some(StatementId([6; 32])),
        root: 1,
        reason: "bad answers".to_owned(),
    };
    Kind::Rollback(OnChannel { channel: channel(Stage::Production), manifest: manifest(1), said })
}

pub(super) fn follow(rack: &str, stop: bool) -> Kind {
    let on = Labels::from([("rack".to_owned(), rack.to_owned())]);
    Kind::Follow(Follow { artifact: bot(), stage: Stage::Production, on, stop })
}

#[test]
fn of_rules_to_follow_the_newest_counts_and_what_may_be_next_is_wanted() {
    let mut world = World::gated(1);
    for (by, kind, counts) in
        [(40, follow("r9", false), false), (2, follow("r1", false), true), (2, follow("r2", false), true)]
    {
        let envelope = world.say(by, kind);
        assert_eq!(world.put(&envelope) == Applied::Effective, counts);
    }
    let stop = world.say(3, follow("r1", true));
    world.put(&stop);
    let racks: Vec<String> = world.ledger.follows().into_iter().map(|f| f.on["rack"].clone()).collect();
    assert_eq!(racks, ["r2"]);

    let wanted = |world: &World| world.ledger.wanted(&bot(), Stage::Production, HARDWARE);
    world.ship(1);
    world.judge(2, Outcome::Pass, Some(1));
    let (promotion, _) = world.draft(2, 2, Stage::Canary);
    world.put(&promotion);
    assert_eq!(wanted(&world), [1, 2].map(manifest).into(), "before the head moves");
    assert_eq!(world.ledger.wanted(&bot(), Stage::Production, "nvidia/sm_90"), [].into());
}

#[test]
fn a_candidate_climbs_with_evidence_and_cosignatures_only() {
    let mut world = World::gated(3);
    assert!(matches!(world.may_open(1), Err(Closed::NoEvidence { passed: false, failed: None })));
    let (early, draft) = world.draft(2, 1, Stage::Canary);
    assert_eq!(draft.holds, [Hold::NoVerdict]);
    world.put(&early);
    assert_eq!(world.cosign(10, &early.id()), Err(vec![Hold::NoVerdict]));

    world.judge(1, Outcome::Pass, None);
    assert!(matches!(world.may_open(1), Err(Closed::NoEvidence { passed: true, .. })));
    // What was signed without its verdict never gets one.
    assert_eq!(world.cosign(10, &early.id()), Err(vec![Hold::NoVerdict]));
    let (skips, draft) = world.draft(2, 1, Stage::Production);
    assert_eq!(draft.holds, [Hold::StageBefore { stage: Stage::Canary }]);
    world.put(&skips);
    assert_eq!(world.cosign(10, &skips.id()), Err(draft.holds));

    let (canary, draft) = world.draft(2, 1, Stage::Canary);
    assert_eq!(draft.holds, []);
    assert!(matches!(
        world.put(&canary),
        Applied::Pending { why: Why::Held(Hold::Cosignatures { have: 0, needed: 2 }) }
    ));
    world.cosign(10, &canary.id()).expect("cosigns");
    assert_eq!((world.head(Stage::Canary), world.may_open(1).is_ok()), (None, false));
    world.cosign(11, &canary.id()).expect("cosigns");
    assert_eq!(world.head(Stage::Canary), Some(1));
    assert!(matches!(world.may_open(1), Ok(Grounds::Promoted { stage: Stage::Canary, .. })));
    world.promote(1, Stage::Production);
    assert!(matches!(world.may_open(1), Ok(Grounds::Promoted { stage: Stage::Production, .. })));
    assert!(world.may_open(2).is_err());
}

#[test]
fn the_same_promotion_twice_is_one() {
    let mut world = World::gated(1);
    world.judge(1, Outcome::Pass, None);
    let (first, draft) = world.draft(2, 1, Stage::Canary);
    assert_eq!(draft.same, None);
    world.put(&first);
    let (_, again) = world.draft(3, 1, Stage::Canary);
    assert_eq!(again.same, Some(first.id()));
    world.cosign(10, &first.id()).expect("cosigns");
    let (_, again) = world.draft(3, 1, Stage::Canary);
    assert_eq!(again.same, Some(first.id()));
}

#[test]
fn verdicts_count_only_for_what_they_are_about() {
    let mut world = World::gated(1);
    world.ship(1);
    world.judge(2, Outcome::Pass, None);
    let (_, draft) = world.draft(2, 2, Stage::Canary);
    assert_eq!(draft.holds, [Hold::OtherBaseline { found: None, expected: Some(manifest(1)) }]);
    world.judge(3, Outcome::Pass, Some(1));
    let (promotion, draft) = world.draft(2, 3, Stage::Canary);
    assert_eq!(draft.holds, []);
    // Another policy comes into force between the verdict and the vote.
    world.put(&promotion);
    let before = world.policy();
    world.set_policy(&POLICY.replace("3.0", "2.5"));
    let after = world.policy();
    assert_eq!(world.cosign(10, &promotion.id()), Err(vec![Hold::PolicyReplaced { in_force: Some(after) }]));
    let (_, draft) = world.draft(2, 3, Stage::Canary);
    assert_eq!(draft.holds, [Hold::OtherPolicy { policy: before }]);
    assert_eq!((world.head(Stage::Production), world.may_open(1).is_ok()), (Some(1), true), "heads stay");
}

#[test]
fn a_later_failure_stops_what_an_older_verdict_passed() {
    let mut world = World::gated(1);
    world.ship(1);
    world.judge(2, Outcome::Pass, Some(1));
    let (promotion, _) = world.draft(2, 2, Stage::Canary);
    world.put(&promotion);
    let verdict = world.judge(2, Outcome::Fail, Some(1));
    assert_eq!(world.cosign(10, &promotion.id()), Err(vec![Hold::NotPassed { verdict }]));
}

#[test]
fn a_rollback_needs_one_promoter_and_its_digest_stays_out() {
    let mut world = World::gated(3);
    world.ship(1);
    world.ship(2);
    world.ship(3);
    let rollback = world.rollback(Stage::Production);
    assert_eq!(world.put(&rollback), Applied::Effective);
    assert_eq!(world.head(Stage::Production), Some(2));
    assert!(matches!(world.may_open(3), Err(Closed::RolledBack { .. })));
    assert!(world.may_open(2).is_ok() && world.may_open(1).is_ok());
    assert_eq!(world.head(Stage::Canary), Some(3), "each stage is rolled back by itself");
    let (_, draft) = world.draft(2, 3, Stage::Production);
    assert!(
        draft.holds.iter().any(|h| matches!(h, Hold::OtherBaseline { .. } | Hold::RolledBack { .. })),
        "{:?}",
        draft.holds
    );

    // Two in a row go further back, past what was bad before.
    let again = world.rollback(Stage::Production);
    assert_eq!(world.put(&again), Applied::Effective);
    assert_eq!(world.head(Stage::Production), Some(1));
    // After a new verdict it may come back.
    world.judge(3, Outcome::Pass, Some(1));
    world.promote(3, Stage::Production);
    assert!(world.may_open(3).is_ok() && world.may_open(2).is_err());
    assert_eq!(world.ledger.kept(&bot(), 2), [1, 2, 3].map(manifest).into());
}

#[test]
fn a_first_head_that_is_bad_leaves_none() {
    let mut world = World::gated(1);
    world.ship(1);
    let rollback = world.rollback(Stage::Production);
    assert_eq!(world.put(&rollback), Applied::Effective);
    assert_eq!(world.head(Stage::Production), None);
    assert!(matches!(world.may_open(1), Err(Closed::RolledBack { .. })));
    world.judge(2, Outcome::Pass, None);
    world.judge(2, Outcome::Pass, Some(1));
    world.promote(2, Stage::Canary);
    world.promote(2, Stage::Production);
}

#[test]
fn without_a_policy_everything_opens_and_stages_may_be_skipped() {
    let mut world = World::new(1);
    world.publish(1);
    assert_eq!(world.may_open(1), Ok(Grounds::Ungated));
    world.promote(1, Stage::Production);
    world.set_policy(POLICY);
    assert_eq!(world.head(Stage::Production), Some(1));
    assert!(matches!(world.may_open(1), Err(Closed::BeforePolicy { stage: Stage::Production })));
    world.judge(1, Outcome::Pass, None);
    world.promote(1, Stage::Canary);
    world.promote(1, Stage::Production);
    assert!(world.may_open(1).is_ok());
}
