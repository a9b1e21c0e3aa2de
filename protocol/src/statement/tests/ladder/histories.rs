//! Made-up histories of the ladder: two sides of a network, honest and hostile signers, and all that may go wrong.

use std::collections::BTreeSet;

use super::*;

/// One step: what happens, to whom, and how.
pub(super) type Step = (u8, u8, u8, u8);

/// Witnesses that sign whatever they are given; all others ask their ledger.
pub(super) const HOSTILE: [u8; 2] = [12, 15];
const ELSEWHERE: &str = "nvidia/sm_90";

/// A history while it is made.
pub(super) struct Play {
    sides: [Side; 2],
    pub(super) all: Vec<Envelope>,
    /// What honest witnesses cosigned.
    pub(super) votes: Vec<(u8, OnChannel<Cosignature>)>,
    /// A rollback that is said later than it was thought of.
    kept: Option<OnChannel<Rollback>>,
    cluster: ClusterId,
    clock: u64,
}

/// What one side of a network has heard.
struct Side {
    ledger: Ledger,
    heard: usize,
    admin: Voice,
}

/// Plays the steps, after versions 1 to 5 were published and mostly a policy set.
pub(super) fn play(steps: &[Step]) -> Play {
    let mut play = Play::new();
    for n in 1..=5 {
        play.say(0, 20, 0, publish(&n.to_string(), n));
    }
    if steps.first().is_none_or(|(what, ..)| what % 5 > 0) {
        play.policy(0, 0, 1);
    }
    play.meet();
    for step in steps {
        play.step(*step);
    }
    play
}

/// As many steps as wanted, drawn from a number.
pub(super) fn steps(seed: u32, count: u32) -> Vec<Step> {
    let of = |n: u32| {
        let h = blake3::hash(&[seed.to_le_bytes(), n.to_le_bytes()].concat());
        let b = h.as_bytes();
        (b[0], b[1], b[2], b[3])
    };
    (0..count).map(of).collect()
}

impl Play {
    fn new() -> Self {
        let (admin, ledger) = cluster_of(Self::root(&[10, 11, 12]));
        let cluster = ledger.cluster();
        let all: Vec<Envelope> = ledger.root_chain().cloned().collect();
        let side = |admin| Side { ledger: ledger.clone(), heard: 1, admin };
        // Each side has an admin of its own, or every chain would fork.
        let sides = [side(admin), side(Voice::new(4, cluster))];
        Self { sides, all, votes: Vec::new(), kept: None, cluster, clock: 0 }
    }

    fn root(witnesses: &[u8]) -> Root {
        let mut root = root_of(&[1, 4], 1);
        root.roles.insert(Role::Evaluator, role(&[30], 1, &["acme"], false));
        root.roles.insert(Role::Promoter, role(&[2, 3, 5], 1, &["acme"], false));
        root.roles.insert(Role::Witness, role(witnesses, 1, &["*"], false));
        root
    }

    fn step(&mut self, (what, a, b, t): Step) {
        self.clock += 1;
        let side = usize::from(a % 2);
        let n = 1 + b % 5;
        let stage = if t % 3 == 0 { Stage::Production } else { Stage::Canary };
        let hardware = if t % 16 == 15 { ELSEWHERE } else { HARDWARE };
        let on = Channel { artifact: bot(), stage, hardware: hardware.to_owned() };
        let promoter = [2, 3, 5][usize::from(a / 2 % 3)];
        match what % 32 {
            0 => self.say(side, 20, t, publish(&n.to_string(), 1 + t % 5)),
            1 if a % 8 < 4 => self.policy(side, b, t),
            1 => {
                // Two admins at once.
                self.meet();
                self.policy(side, b, t);
                self.policy(1 - side, b.wrapping_add(1), t);
            }
            2 => {
                let id = self.all[usize::from(b) % self.all.len()].id();
                self.by_admin(side, t, revoke(Target::Statement { id }));
            }
            3 => {
                let key = id([2, 3, 20, 30, 10, 11, 12, 40][usize::from(b % 8)]);
                let since = [None, Some(UnixTime(0)), Some(at(u64::from(t)))][usize::from(t % 3)];
                self.by_admin(side, t, revoke(Target::Key { key, since }));
            }
            4 => {
                let key = [10, 11, 12, 2][usize::from(b % 4)];
                self.by_admin(side, t, admit(key, None));
            }
            5 => self.rotate(side, b, t),
            6 => {
                // The next statement of this admin will stand where this one does.
                let before = self.sides[side].admin.next;
                self.by_admin(side, t, invite(43, 1));
                self.sides[side].admin.next = before;
            }
            7 | 8 => self.meet(),
            9 => self.judge(side, t, n, &on, [Outcome::Fail, Outcome::NoEvidence][usize::from(t % 2)]),
            10 => self.approve(side, promoter, t, &on, n),
            11 => self.roll_back(side, promoter, b, t, &on),
            12 => {
                let ledger = &self.sides[side].ledger;
                self.kept = ledger.draft_rollback(&on, None, String::new()).ok().or(self.kept.take());
            }
            22 => {
                if let Some(late) = self.kept.take() {
                    self.say(side, promoter, t, Kind::Rollback(late));
                }
            }
            13 => self.promote(side, promoter, b, t, &on, n),
            14 | 15 => self.vote(side),
            16..=18 => self.vote_blindly(side, a, b, t),
            19 => self.climb(side, promoter, n, &on, false),
            20 | 21 => {
                self.meet();
                self.climb(side, promoter, n, &on, false);
                self.climb(1 - side, promoter, 1 + n % 5, &on, false);
            }
            _ => self.climb(side, promoter, n, &on, true),
        }
    }

    /// Both sides hear all that was said.
    fn meet(&mut self) {
        for side in &mut self.sides {
            let new = self.all[side.heard..].iter();
            let checked: Vec<Checked> = new.map(|e| side.ledger.check(e).expect("well made")).collect();
            side.ledger.apply_all(checked);
            side.heard = self.all.len();
        }
    }

    fn now(&self, skew: u8) -> UnixTime {
        match skew % 16 {
            14 => at(self.clock + 3_600),
            13 => UnixTime(at(self.clock).0 - 3_600),
            _ => at(self.clock),
        }
    }

    fn hear(&mut self, side: usize, envelope: Envelope) {
        put(&mut self.sides[side].ledger, &envelope);
        self.all.push(envelope);
    }

    fn say(&mut self, side: usize, by: u8, skew: u8, kind: Kind) {
        let envelope = Voice::new(by, self.cluster).say(self.now(skew), kind);
        self.hear(side, envelope);
    }

    fn by_admin(&mut self, side: usize, skew: u8, kind: Kind) {
        let time = self.now(skew);
        let envelope = self.sides[side].admin.say(time, kind);
        self.hear(side, envelope);
    }

    fn policy(&mut self, side: usize, which: u8, skew: u8) {
        let text = match which % 8 {
            4 => format!("{POLICY}[stage.production]\napprovals = 1\n"),
            5 => format!("{POLICY}[stage.canary]\nmin_duration = \"5s\"\n"),
            6 => format!("{POLICY}[stage.production]\nhardware = [\"{ELSEWHERE}\"]\n"),
            3 => format!("publish = \"requires-verdict\"\n{POLICY}"),
            7 => "[from_the_future]\nx = 1\n".to_owned(),
            n => POLICY.replace("3.0", ["3.0", "2.5", "2.0"][usize::from(n)]),
        };
        let digest = Policy::parse(&text).map_or(Sha256([0; 32]), |policy| policy.digest());
        let scope = if skew.is_multiple_of(4) { "acme/bot" } else { "acme" };
        let draft = self.sides[side].ledger.draft_policy(scope.parse().expect("scope"), digest, text);
        self.by_admin(side, skew, Kind::Policy(draft));
    }

    fn rotate(&mut self, side: usize, which: u8, skew: u8) {
        let witnesses: &[&[u8]] =
            &[&[10, 11, 12], &[10], &[11, 12, 13], &[10, 11, 12, 13, 14], &[13, 14, 15], &[]];
        let mut next = Self::root(witnesses[usize::from(which) % witnesses.len()]);
        let ledger = &self.sides[side].ledger;
        let Some(root) = ledger.root(NOW) else { return };
        (next.version, next.prev_root) = (root.root.version + 1, Some(root.id));
        next.settled = ledger.settled();
        if which.is_multiple_of(7) {
            next.roles.insert(Role::Promoter, role(&[3], 1, &["acme"], false));
        }
        self.by_admin(side, skew, Kind::Root(next));
    }

    /// Everything that is needed of evaluators.
    fn judge(&mut self, side: usize, skew: u8, n: u8, on: &Channel, outcome: Outcome) {
        let ledger = &self.sides[side].ledger;
        let baseline = ledger.head(&bot(), on.stage, &on.hardware).map(|head| head.manifest);
        let policy = ledger.policy_of(&bot()).and_then(|p| p.in_force).map_or(Sha256([9; 32]), |p| p.2);
        let elsewhere = if skew % 8 == 7 { Some(ELSEWHERE) } else { None };
        for hardware in [Some(on.hardware.as_str()), elsewhere].into_iter().flatten() {
            let Kind::Verdict(mut verdict) = weighing::verdict(n, outcome) else { panic!("a verdict") };
            (verdict.ruling.policy, verdict.ruling.baseline) = (policy, baseline);
            verdict.ruling.hardware = hardware.to_owned();
            self.say(side, 30, skew, Kind::Verdict(verdict));
        }
    }

    fn approve(&mut self, side: usize, by: u8, skew: u8, on: &Channel, n: u8) {
        let draft = self.draft(side, by, on, n);
        let said = Approval { parent: draft.said.parent, policy: draft.said.policy, note: String::new() };
        self.say(
            side,
            by,
            skew,
            Kind::Approve(OnChannel { channel: on.clone(), manifest: manifest(n), said }),
        );
    }

    fn draft(&self, side: usize, by: u8, on: &Channel, n: u8) -> OnChannel<Promotion> {
        let now = at(self.clock);
        self.sides[side].ledger.draft_promotion(&id(by), on, manifest(n), now, String::new()).promotion
    }

    /// A promotion as it should be, or with one thing wrong.
    fn promote(&mut self, side: usize, by: u8, how: u8, skew: u8, on: &Channel, n: u8) {
        let mut p = self.draft(side, by, on, n);
        match how % 12 {
            0 => p.said.epoch = u64::MAX,
            1 => p.said.epoch = 1,
            2 => p.said.root = u32::MAX,
            3 => p.said.root = 1,
            4 => p.said.parent = None,
            5 => p.said.parent = Some(self.all[usize::from(skew) % self.all.len()].id()),
            6 => p.said.policy = None,
            7 => p.said.policy = Some(Sha256([skew; 32])),
            8 => p.said.verdicts = BTreeSet::new(),
            9 => p.said.from = None,
            10 => p.said.epoch += 1,
            _ => {}
        }
        self.say(side, by, skew, Kind::Promote(p));
    }

    fn roll_back(&mut self, side: usize, by: u8, how: u8, skew: u8, on: &Channel) {
        let ledger = &self.sides[side].ledger;
        let Ok(mut r) = ledger.draft_rollback(on, None, "bad answers".to_owned()) else { return };
        match how % 8 {
            0 => r.manifest = manifest(1 + skew % 5),
            1 => r.said.to = Some(self.all[usize::from(skew) % self.all.len()].id()),
            2 => r.said.root = 1,
            3 => r.said.to = None,
            // Everything that this channel had, one after the other.
            4 => r.said.over = self.all[usize::from(skew) % self.all.len()].id(),
            _ => {}
        }
        self.say(side, by, skew, Kind::Rollback(r));
    }

    /// Honest witnesses of this side do what they do.
    fn vote(&mut self, side: usize) {
        for witness in (10..15u8).filter(|n| usize::from(n % 2) == side && !HOSTILE.contains(n)) {
            for promotion in self.sides[side].ledger.pending_promotions() {
                if let Vote::Cosign(said) =
                    self.sides[side].ledger.vote(&id(witness), &promotion, at(self.clock))
                {
                    self.votes.push((witness, said.clone()));
                    self.say(side, witness, 0, Kind::Cosign(said));
                }
            }
        }
    }

    /// Hostile witnesses sign what they should not.
    fn vote_blindly(&mut self, side: usize, who: u8, which: u8, skew: u8) {
        let promotions: Vec<(StatementId, OnChannel<Promotion>)> = self.all[..]
            .iter()
            .filter_map(|e| match Statement::parse(e.payload()).ok()?.kind {
                Kind::Promote(p) => Some((e.id(), p)),
                _ => None,
            })
            .collect();
        // Mostly one of the last, so that it comes to something.
        let back = usize::from(which % 4).min(promotions.len().saturating_sub(1));
        let Some((promotion, p)) = promotions.iter().rev().nth(back) else { return };
        let said = Cosignature {
            promotion: *promotion,
            parent: p.said.parent,
            epoch: p.said.epoch,
            root: p.said.root,
        };
        let mut cosign = OnChannel { channel: p.channel.clone(), manifest: p.manifest, said };
        if skew.is_multiple_of(8) {
            cosign.said.epoch = 1 + u64::from(which % 3);
        }
        for witness in HOSTILE.into_iter().take(1 + usize::from(who / 2 % 2)) {
            self.say(side, witness, skew, Kind::Cosign(cosign.clone()));
        }
    }

    /// Judged, approved, promoted, and cosigned by the honest witnesses of this side or of both.
    fn climb(&mut self, side: usize, promoter: u8, n: u8, on: &Channel, together: bool) {
        if together {
            self.meet();
        }
        // The other hardware is judged where both sides are at hand.
        self.judge(side, if together { 7 } else { 0 }, n, on, Outcome::Pass);
        let other = if promoter == 2 { 3 } else { 2 };
        self.approve(side, other, 0, on, n);
        self.promote(side, promoter, 11, 0, on, n);
        self.vote(side);
        if together {
            self.meet();
            self.vote(1 - side);
            self.meet();
        } else {
            self.vote_blindly(side, 0, 0, 1);
        }
    }
}

/// A ledger without statements for what was played.
pub(super) fn empty(all: &[Envelope]) -> Ledger {
    Ledger::new(LedgerConfig::new(ClusterId(all[0].id().0)))
}

/// A ledger with all of it.
pub(super) fn ledger_of(all: &[Envelope]) -> Ledger {
    let mut ledger = empty(all);
    let checked: Vec<Checked> = all.iter().map(|e| ledger.check(e).expect("well made")).collect();
    ledger.apply_all(checked);
    ledger
}
