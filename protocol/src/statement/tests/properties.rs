//! State is a function of the set: whatever the order, however often, and unmoved by damage.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use proptest::prelude::*;

use super::*;

/// One step of a made-up history: what happens, to whom, and when.
type Step = (u8, u8, u8, u8);

/// Plays steps: two admins, forks of chains and roots, tickets, hosts, publishes, revocations of everything.
fn history(steps: &[Step]) -> Vec<Envelope> {
    let (admin, ledger) = cluster_of(root_of(&[1, 2], 1));
    let cluster = ledger.cluster();
    let first = ledger.root_chain().next().cloned().expect("root");
    let mut admins = [admin, Voice::new(2, cluster), Voice::new(3, cluster)];
    let mut invites: Vec<StatementId> = vec![StatementId([9; 32])];
    let mut all = vec![first];
    let mut root = (1, all[0].id());
    for (what, a, b, t) in steps {
        let pick = |ids: &[StatementId]| ids[usize::from(*b) % ids.len()];
        let ids: Vec<StatementId> = all.iter().map(Envelope::id).collect();
        let time = at(u64::from(*t));
        let host = 50 + b % 4;
        let admin = &mut admins[usize::from(a % 3).min(if *a < 200 { 1 } else { 2 })];
        let before = admin.next;
        let envelope = match what % 16 {
            0 | 1 => admin.say(time, invite(40 + a % 3, u32::from(b % 3))),
            2 | 3 => admin.say(time, admit(host, None)),
            4 => admin.say(time, revoke_key(host)),
            5 => {
                let keep = BTreeSet::from([pick(&ids)]);
                admin.say(time, revoke(Target::Invite { id: pick(&invites), keep }))
            }
            6 => admin.say(time, revoke(Target::Statement { id: pick(&ids) })),
            7 => {
                let since = Some(at(u64::from(*b)));
                admin.say(time, revoke(Target::Key { key: id(host), since }))
            }
            8 | 9 => Voice::new(40 + a % 3, cluster).say(time, admit(host, Some(pick(&invites)))),
            10..=12 => {
                let tag = ["1", "2", "3"][usize::from(a % 3)];
                let by = if b % 5 == 4 { 20 } else { host };
                Voice::new(by, cluster).say(time, publish(tag, t % 3))
            }
            13 => {
                let mut next = root_of(
                    &[1, 2, 3][..usize::from(1 + a % 3)],
                    u32::from(1 + b % 2).min(1 + u32::from(a % 3)),
                );
                (next.version, next.prev_root) = (root.0 + 1, Some(root.1));
                next.settled = BTreeMap::from([(id(1), u64::from(b % 8)), (id(2), u64::from(t % 8))]);
                let mut envelope = admin.say(time, Kind::Root(next));
                envelope.endorse(&key(1 + t % 3));
                if b % 3 > 0 {
                    root = (root.0 + 1, envelope.id());
                }
                envelope
            }
            14 => {
                let mut again = all[usize::from(*b) % all.len()].clone();
                again.endorse(&key(1 + t % 3));
                again
            }
            _ => {
                // The next statement of this admin will stand where this one does.
                let envelope = admin.say(time, invite(43, 1));
                admin.next = before;
                envelope
            }
        };
        if what % 16 <= 1 {
            invites.push(envelope.id());
        }
        all.push(envelope);
    }
    all
}

fn ledger_of(all: &[Envelope]) -> Ledger {
    Ledger::new(LedgerConfig::new(ClusterId(all[0].id().0)))
}

fn sample() -> &'static (Vec<Vec<u8>>, Ledger, String) {
    static SAMPLE: OnceLock<(Vec<Vec<u8>>, Ledger, String)> = OnceLock::new();
    SAMPLE.get_or_init(|| {
        let all =
            history(&[(0, 0, 2, 1), (2, 1, 0, 2), (8, 0, 1, 3), (10, 0, 0, 4), (4, 1, 2, 5), (6, 0, 3, 6)]);
        let mut ledger = ledger_of(&all);
        all.iter().for_each(|e| {
            put(&mut ledger, e);
        });
        let picture = picture(&ledger);
        (all.iter().map(Envelope::to_json).collect(), ledger, picture)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn only_the_set_matters(
        steps in prop::collection::vec(any::<Step>(), 1..40),
        order in prop::collection::vec(any::<u16>(), 80),
    ) {
        let all = history(&steps);
        let mut batch = ledger_of(&all);
        let checked: Vec<Checked> = all.iter().map(|e| batch.check(e).expect("well made")).collect();
        batch.apply_all(checked.clone());

        // Every statement once or twice, in an order of its own, one by one.
        let mut shuffled: Vec<(u16, &Checked)> = order.iter().copied().zip(checked.iter().cycle()).collect();
        shuffled.truncate((2 * checked.len()).max(checked.len()));
        shuffled.sort_by_key(|(at, _)| *at);
        let mut single = ledger_of(&all);
        for (_, c) in &shuffled {
            single.apply((*c).clone());
        }
        prop_assert_eq!(picture(&batch), picture(&single));
    }

    #[test]
    fn a_flipped_byte_is_refused_or_changes_nothing(which in any::<u8>(), at in any::<u32>(), mask in 1..=255u8) {
        let (all, ledger, before) = sample();
        let mut json = all[usize::from(which) % all.len()].clone();
        let at = usize::try_from(at).expect("32 bits") % json.len();
        json[at] ^= mask;
        if let Ok(checked) = Envelope::parse(&json).map_err(Refusal::from).and_then(|e| ledger.check(&e)) {
            let mut ledger = ledger.clone();
            prop_assert_eq!(ledger.apply(checked), Applied::Duplicate);
            prop_assert_eq!(&picture(&ledger), before);
        }
    }

    #[test]
    fn no_bytes_bring_the_parser_down(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Envelope::parse(&bytes);
        let _ = Statement::parse(&bytes);
        let _ = postcard::from_bytes::<Envelope>(&bytes);
        let _ = postcard::from_bytes::<Summary>(&bytes);
    }
}

#[test]
fn histories_reach_what_they_are_meant_to_reach() {
    let mut seen = BTreeSet::new();
    let mut members = 0;
    for seed in 0..200u32 {
        let steps: Vec<Step> = (0..40u32)
            .map(|n| {
                let h = blake3::hash(&[seed.to_le_bytes(), n.to_le_bytes()].concat());
                let b = h.as_bytes();
                (b[0], b[1], b[2], b[3])
            })
            .collect();
        let all = history(&steps);
        let mut ledger = ledger_of(&all);
        let checked: Vec<Checked> = all.iter().map(|e| ledger.check(e).expect("well made")).collect();
        ledger.apply_all(checked);
        members += ledger.members(NOW).count();
        for id in ledger.statements().collect::<Vec<_>>() {
            let kind = ledger.statement(&id).map(|s| s.kind.predicate_type());
            seen.insert((
                kind,
                ledger.status(&id).map(|s| format!("{s:?}").split(" {").next().map(str::to_owned)),
            ));
        }
    }
    let text = format!("{seen:?}");
    for what in [
        "Equivocation",
        "RootFork",
        "Superseded",
        "Threshold",
        "InviteUsed",
        "Revoked",
        "NotAllowed",
        "Effective",
    ] {
        assert!(text.contains(what), "no history shows {what}: {text}");
    }
    assert!(members > 100, "{members} members");
}
