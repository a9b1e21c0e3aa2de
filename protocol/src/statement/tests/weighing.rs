//! Evaluations and verdicts: who may say them, and what takes them back.

use super::*;
use crate::gate::Outcome;
use crate::id::Sha256;
use crate::statement::weighed::Verdict;

/// The one evaluator, for `acme` and what begins with `acme-`.
const EVALUATOR: u8 = 30;

pub(super) fn evaluate(manifest: u8, evidence: u8) -> Kind {
    Kind::Evaluate(Evaluate {
        artifact: "acme/bot".parse().expect("artifact"),
        manifest: ManifestDigest([manifest; 32]),
        findings: Findings {
            evidence: ManifestDigest([evidence; 32]),
            evidence_bytes: 10,
            report: Sha256([3; 32]),
            suite: None,
            harness: "custom 1".to_owned(),
            hardware: "cpu/x86-64-v4".to_owned(),
            runtime: String::new(),
            sandbox: String::new(),
            figures: BTreeMap::from([("eval_loss".to_owned(), "2.31".to_owned())]),
        },
    })
}

pub(super) fn verdict(manifest: u8, outcome: Outcome) -> Kind {
    Kind::Verdict(Verdict {
        artifact: "acme/bot".parse().expect("artifact"),
        manifest: ManifestDigest([manifest; 32]),
        ruling: Ruling {
            outcome,
            policy: Sha256([4; 32]),
            baseline: None,
            pinned: None,
            hardware: "any".to_owned(),
            reports: [Sha256([3; 32])].into(),
            baseline_reports: [].into(),
            verdict: Sha256([5; 32]),
            sandbox: String::new(),
            reasons: vec!["eval_loss 2.31 is above max 2".to_owned()],
        },
    })
}

fn bot() -> crate::names::Artifact {
    "acme/bot".parse().expect("artifact")
}

fn cluster_with_evaluator() -> (Voice, Ledger) {
    let mut root = root_of(&[1], 1);
    root.roles.insert(Role::Evaluator, role(&[EVALUATOR], 1, &["acme", "acme-*"], false));
    cluster_of(root)
}

#[test]
fn only_evaluators_are_believed_and_only_in_their_namespaces() {
    let (mut admin, mut ledger) = cluster_with_evaluator();
    let mut evaluator = Voice::new(EVALUATOR, ledger.cluster());
    let said = evaluator.say(at(1), evaluate(1, 9));
    assert_eq!(put(&mut ledger, &said), Applied::Effective);
    assert_eq!(
        put(&mut ledger, &admin.say(at(2), evaluate(1, 8))),
        Applied::Ignored { why: Why::NotAllowed }
    );
    let Kind::Evaluate(mut elsewhere) = evaluate(1, 7) else { panic!("an evaluation") };
    elsewhere.artifact = "other/bot".parse().expect("artifact");
    let elsewhere = evaluator.say(at(3), Kind::Evaluate(elsewhere));
    assert_eq!(put(&mut ledger, &elsewhere), Applied::Ignored { why: Why::NotAllowed });
    // Of another artifact with the same manifest, said by one who may say it there.
    let Kind::Evaluate(mut like) = evaluate(1, 6) else { panic!("an evaluation") };
    like.artifact = "acme-x/bot".parse().expect("artifact");
    assert_eq!(put(&mut ledger, &evaluator.say(at(3), Kind::Evaluate(like))), Applied::Effective);
    let judged = evaluator.say(at(4), verdict(1, Outcome::Fail));
    assert_eq!(put(&mut ledger, &judged), Applied::Effective);

    let of = ledger.evaluations_of(&bot(), &ManifestDigest([1; 32]));
    assert_eq!(of.iter().map(|said| said.id).collect::<Vec<_>>(), [said.id()]);
    let on = ledger.verdicts_on(&bot(), &ManifestDigest([1; 32]));
    assert_eq!(on.iter().map(|said| said.body.ruling.outcome).collect::<Vec<_>>(), [Outcome::Fail]);
    assert_eq!(ledger.evidence_sizes(&ManifestDigest([9; 32])), [10].into());
    assert_eq!(ledger.evidence_sizes(&ManifestDigest([8; 32])), [].into());
    assert!(ledger.is_evidence(&ManifestDigest([9; 32])) && !ledger.is_evidence(&ManifestDigest([8; 32])));
    let may = |n, namespace| ledger.may_evaluate(&id(n), namespace, NOW);
    assert!(may(EVALUATOR, "acme-x").is_ok() && may(EVALUATOR, "other").is_err() && may(1, "acme").is_err());
}

#[test]
fn what_is_revoked_no_longer_counts_and_comes_back_with_nothing() {
    let (mut admin, mut ledger) = cluster_with_evaluator();
    let mut evaluator = Voice::new(EVALUATOR, ledger.cluster());
    let (one, two) = (evaluator.say(at(1), evaluate(1, 9)), evaluator.say(at(2), evaluate(1, 10)));
    put(&mut ledger, &one);
    put(&mut ledger, &two);
    put(&mut ledger, &admin.say(at(3), revoke(Target::Statement { id: one.id() })));
    let left: Vec<_> = ledger.evaluations_of(&bot(), &ManifestDigest([1; 32])).iter().map(|s| s.id).collect();
    assert_eq!(left, [two.id()]);
    assert!(!ledger.is_evidence(&ManifestDigest([9; 32])));
    let of_key = Target::Key { key: id(EVALUATOR), since: Some(UnixTime(0)) };
    put(&mut ledger, &admin.say(at(4), revoke(of_key)));
    assert_eq!(ledger.evaluations_of(&bot(), &ManifestDigest([1; 32])), []);
    assert_eq!(ledger.status(&two.id()), Some(Status::Ignored(Why::Revoked)));
    assert!(ledger.may_evaluate(&id(EVALUATOR), "acme", NOW).is_err());
}

#[test]
fn too_much_in_one_statement_is_refused() {
    let (_, ledger) = cluster_with_evaluator();
    let mut evaluator = Voice::new(EVALUATOR, ledger.cluster());
    let Kind::Verdict(mut long) = verdict(1, Outcome::Pass) else { panic!("a verdict") };
    long.ruling.reasons = vec!["again".to_owned(); crate::statement::weighed::LINES_MAX + 1];
    assert!(ledger.check(&evaluator.say(at(1), Kind::Verdict(long.clone()))).is_err());
    long.ruling.reasons = vec!["\u{1b}[2J".to_owned()];
    assert!(ledger.check(&evaluator.say(at(1), Kind::Verdict(long))).is_err());
    let Kind::Verdict(mut shut_in) = verdict(1, Outcome::Pass) else { panic!("a verdict") };
    shut_in.ruling.sandbox = "sandbox: no network; missing: landlock".to_owned();
    let said = evaluator.say(at(1), Kind::Verdict(shut_in.clone()));
    assert!(ledger.check(&said).is_ok());
    let read = Statement::parse(said.payload()).expect("reads");
    assert_eq!(read.kind, Kind::Verdict(shut_in.clone()));
    for bad in ["a\nb".to_owned(), "x".repeat(crate::statement::body::NOTE_LEN_MAX + 1)] {
        shut_in.ruling.sandbox = bad;
        assert!(ledger.check(&evaluator.say(at(1), Kind::Verdict(shut_in.clone()))).is_err());
    }
}
