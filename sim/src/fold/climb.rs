//! What moves channels: policies, verdicts, approvals, promotions, rollbacks, and witnesses that look before they sign.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::RngExt;
use weighlock_protocol::gate::{Outcome, Policy};
use weighlock_protocol::statement::weighed::Verdict;
use weighlock_protocol::statement::{
    Approval, Channel, HARDWARE_ANY, Hold, Keypair, Kind, OnChannel, Publish, Resolution, Ruling, Vote,
};
use weighlock_protocol::{Artifact, ManifestDigest, Sha256, Stage};

use super::cast::key;
use super::check::Seen;
use super::host::EPOCH;
use super::world::{Event, FoldWorld, pick};

/// Artifacts that have channels.
pub(super) const ARTIFACTS: [&str; 2] = ["acme/bot", "acme-lab/bot"];
/// Hardware keys of channels.
pub(super) const HARDWARE: [&str; 3] = ["cpu/x86-64-v4", "nvidia/sm_90", HARDWARE_ANY];
/// Longest that a witness takes to look, in milliseconds.
const LOOKS_MS_MAX: u64 = 50;
/// Longest that a witness stays away that died after it signed, in milliseconds.
const AWAY_MS_MAX: u64 = 20_000;
/// Most witnesses of a root.
const WITNESSES_MAX: usize = 5;
const RULES: &str =
    "ladder = [\"canary\", \"production\"]\n[metric.eval_loss]\ndirection = \"lower\"\nmax = 3.0\n";

impl FoldWorld {
    /// One thing that somebody does about a channel.
    pub(super) fn climb(&mut self) {
        match self.rng.random_range(0..100u32) {
            0..6 => self.set_policy(),
            6..10 => self.judge_oddly(),
            10..19 => self.roll_back(),
            19..21 => self.change_witnesses(),
            _ => self.take_up(),
        }
    }

    /// Looks at what waits before long, if this may be a witness.
    pub(super) fn vote_soon(&mut self, host: usize) {
        let may = self.options.witnesses > 0 && host < self.founders();
        if may && !self.hosts[host].voting && self.hosts[host].up {
            self.hosts[host].voting = true;
            let at = self.now + Duration::from_nanos(self.rng.random_range(0..LOOKS_MS_MAX * 1_000_000));
            self.queue.push(at, Event::Vote { host });
        }
    }

    /// Cosigns what this host finds in order. A cosignature is stored before it is sent, as a daemon does it.
    pub(super) fn vote(&mut self, host: usize) {
        self.hosts[host].voting = false;
        if !self.hosts[host].up || !self.hosts[host].joined {
            return;
        }
        let witness = self.hosts[host].key.clone();
        for promotion in self.hosts[host].ledger.pending_promotions() {
            let clock = self.hosts[host].clock(self.now);
            let Vote::Cosign(said) = self.hosts[host].ledger.vote(&witness.key_id(), &promotion, clock)
            else {
                continue;
            };
            let envelope = self.cast.sign(&witness, clock, None, Kind::Cosign(said));
            self.counts.votes += 1;
            if self.healed || self.rng.random_range(0..1000) >= self.options.dies_permille {
                self.say(host, &envelope);
                continue;
            }
            self.note(&envelope);
            self.hosts[host].ingest(&[envelope.to_json()]);
            let away = self.rng.random_range(0..AWAY_MS_MAX * 1_000_000);
            let back = self.now + Duration::from_nanos(away);
            self.queue.push(self.now, Event::Crash { host, back });
            return;
        }
    }

    /// One channel, drawn.
    pub(super) fn a_channel(&mut self) -> Channel {
        let artifact = ARTIFACTS[[0, 0, 1][self.rng.random_range(0..3)]];
        let stage = [Stage::Canary, Stage::Production][self.rng.random_range(0..2)];
        let hardware = HARDWARE[[0, 0, 0, 1, 2][self.rng.random_range(0..5)]];
        Channel { artifact: artifact.parse().expect("an artifact"), stage, hardware: hardware.to_owned() }
    }

    pub(super) fn a_promoter(&mut self) -> Keypair {
        pick(&self.cast.offices.promoters, &mut self.rng).expect("there are promoters").clone()
    }

    /// Something that a host knows under a tag of this artifact.
    pub(super) fn a_candidate(&mut self, host: usize, artifact: &Artifact) -> Option<ManifestDigest> {
        let known: Vec<ManifestDigest> = self.hosts[host]
            .ledger
            .tags(artifact)
            .filter_map(|(_, meaning)| match meaning {
                Resolution::Resolved(digest) | Resolution::Unproven(digest) => Some(digest),
                Resolution::Conflict { .. } | Resolution::Unknown => None,
            })
            .collect();
        pick(&known, &mut self.rng).copied()
    }

    /// A version that nobody has heard of.
    fn publish_new(&mut self, host: usize, artifact: &Artifact) -> ManifestDigest {
        let n = self.truth.signed.len();
        let manifest = ManifestDigest::of(format!("{artifact} {n}").as_bytes());
        let tag = format!("c-{n}").parse().expect("a tag");
        let said = Publish { artifact: artifact.clone(), tag, manifest, total_bytes: 1 };
        let publisher = pick(&self.cast.offices.publishers, &mut self.rng).expect("two publishers").clone();
        let clock = self.hosts[host].clock(self.now);
        let envelope = self.cast.sign(&publisher, clock, None, Kind::Publish(said));
        self.say(host, &envelope);
        manifest
    }

    fn set_policy(&mut self) {
        let text = match self.rng.random_range(0..6u32) {
            0 => format!("{RULES}[stage.production]\napprovals = 1\n"),
            1 => format!("{RULES}[stage.canary]\nmin_duration = \"3s\"\n"),
            2 => format!("{RULES}[stage.production]\nhardware = [\"{}\"]\n", HARDWARE[1]),
            3 => RULES.replace("3.0", "2.0"),
            _ => RULES.to_owned(),
        };
        let digest = Policy::parse(&text).expect("a policy").digest();
        let scope = ["acme", "acme-lab", "acme/bot"][self.rng.random_range(0..3)].parse().expect("a scope");
        self.by_admin(|ledger, _| Kind::Policy(ledger.draft_policy(scope, digest, text)));
    }

    /// A verdict that does not help: failed, under another policy, or against another baseline.
    fn judge_oddly(&mut self) {
        let (Some(host), on) = (self.someone(), self.a_channel()) else { return };
        let Some(manifest) = self.a_candidate(host, &on.artifact) else { return };
        let promoter = self.a_promoter().key_id();
        let clock = self.hosts[host].clock(self.now);
        let draft =
            self.hosts[host].ledger.draft_promotion(&promoter, &on, manifest, clock, String::new()).promotion;
        let (mut outcome, mut policy, mut baseline) = (Outcome::Pass, draft.said.policy, None);
        match self.rng.random_range(0..4u32) {
            0 => outcome = Outcome::Fail,
            1 => outcome = Outcome::NoEvidence,
            2 => policy = Some(Sha256([7; 32])),
            _ => baseline = Some(ManifestDigest([7; 32])),
        }
        self.weigh(host, &on, manifest, outcome, policy, baseline);
    }

    fn weigh(
        &mut self,
        host: usize,
        on: &Channel,
        manifest: ManifestDigest,
        outcome: Outcome,
        policy: Option<Sha256>,
        baseline: Option<ManifestDigest>,
    ) {
        let Some(evaluator) = self.cast.offices.evaluators.first().cloned() else { return };
        let report = Sha256(manifest.0);
        let ruling = Ruling {
            outcome,
            policy: policy.unwrap_or(report),
            baseline,
            pinned: None,
            hardware: on.hardware.clone(),
            reports: BTreeSet::from([report]),
            baseline_reports: BTreeSet::new(),
            verdict: report,
            sandbox: String::new(),
            reasons: Vec::new(),
        };
        let said = Verdict { artifact: on.artifact.clone(), manifest, ruling };
        let clock = self.hosts[host].clock(self.now);
        let envelope = self.cast.sign(&evaluator, clock, None, Kind::Verdict(said));
        self.say(host, &envelope);
    }

    /// Evaluates a candidate and promotes it, wherever that is: on whichever side of a partition.
    fn take_up(&mut self) {
        let (Some(host), mut on, promoter) = (self.someone(), self.a_channel(), self.a_promoter()) else {
            return;
        };
        let known = if self.rng.random_bool(0.7) { self.a_candidate(host, &on.artifact) } else { None };
        let manifest = known.unwrap_or_else(|| self.publish_new(host, &on.artifact));
        let by = promoter.key_id();
        let clock = self.hosts[host].clock(self.now);
        let draft = self.hosts[host].ledger.draft_promotion(&by, &on, manifest, clock, String::new());
        if draft.holds.iter().any(|hold| matches!(hold, Hold::StageBefore { .. })) {
            on.stage = Stage::Canary;
        }
        let draft = |world: &Self| {
            let clock = world.hosts[host].clock(world.now);
            world.hosts[host].ledger.draft_promotion(&by, &on, manifest, clock, String::new())
        };
        let first = draft(self);
        let policy = first.promotion.said.policy;
        if policy.is_some() && first.holds.contains(&Hold::NoVerdict)
            || first
                .holds
                .iter()
                .any(|hold| matches!(hold, Hold::OtherBaseline { .. } | Hold::OtherPolicy { .. }))
        {
            self.weigh(host, &on, manifest, Outcome::Pass, policy, first.replaces);
        }
        if draft(self).holds.contains(&Hold::NoVerdictElsewhere) {
            let elsewhere = Channel { hardware: HARDWARE[1].to_owned(), ..on.clone() };
            self.weigh(host, &elsewhere, manifest, Outcome::Pass, policy, first.replaces);
        }
        if draft(self).holds.iter().any(|hold| matches!(hold, Hold::Approvals { .. })) {
            let other = self.a_promoter();
            let said = Approval { parent: first.promotion.said.parent, policy, note: String::new() };
            let approval = OnChannel { channel: on.clone(), manifest, said };
            let clock = self.hosts[host].clock(self.now);
            let envelope = self.cast.sign(&other, clock, None, Kind::Approve(approval));
            self.say(host, &envelope);
        }
        let last = draft(self);
        // Mostly people wait until nothing is missing.
        let anyway = self.rng.random_bool(0.15);
        if last.same.is_some() || !(last.holds.is_empty() || anyway) {
            return;
        }
        let clock = self.hosts[host].clock(self.now);
        let envelope = self.cast.sign(&promoter, clock, None, Kind::Promote(last.promotion));
        self.counts.promotions += 1;
        self.say(host, &envelope);
    }

    /// Undoes a head on whichever side somebody is awake.
    fn roll_back(&mut self) {
        let (Some(host), promoter) = (self.someone(), self.a_promoter()) else { return };
        let heads: Vec<Channel> = self.hosts[host].ledger.heads().map(|head| head.channel).collect();
        let Some(on) = pick(&heads, &mut self.rng) else { return };
        let Ok(said) = self.hosts[host].ledger.draft_rollback(on, None, "bad answers".to_owned()) else {
            return;
        };
        let clock = self.hosts[host].clock(self.now);
        let envelope = self.cast.sign(&promoter, clock, None, Kind::Rollback(said));
        self.counts.rollbacks += 1;
        self.say(host, &envelope);
        self.see(&Seen::RolledBack { host, rollback: envelope.id() });
    }

    /// A new root with other witnesses.
    fn change_witnesses(&mut self) {
        let pool = self.founders();
        let most = pool.min(WITNESSES_MAX);
        let count = [1, 3, 5][self.rng.random_range(0..3)].min(most);
        let count = if count % 2 == 0 { count - 1 } else { count };
        let mut witnesses = BTreeSet::new();
        while witnesses.len() < count {
            let n = self.rng.random_range(0..pool);
            witnesses.insert(self.hosts[n].id());
        }
        self.cast.offices.witnesses = witnesses;
        self.rotate();
    }

    /// A stolen key cosigns two promotions in one place, or one that it never looked at.
    pub(super) fn vote_twice(&mut self) {
        let Some(host) = self.someone() else { return };
        // One key is stolen and no more: nobody promises anything if most witnesses lie.
        let witness = if self.options.stolen {
            key(self.options.seed, "host", 0)
        } else {
            key(self.options.seed, "stranger", 4)
        };
        self.forgetful.insert(witness.key_id());
        let all: Vec<_> = self.truth.moves.keys().copied().collect();
        let clock = self.hosts[host].clock(self.now);
        for promotion in all.into_iter().rev() {
            let Some(Kind::Promote(p)) = self.truth.signed.get(&promotion).map(|s| s.kind.clone()) else {
                continue;
            };
            if self.rng.random_bool(0.5) {
                continue;
            }
            let said = weighlock_protocol::statement::Cosignature {
                promotion,
                parent: p.said.parent,
                epoch: p.said.epoch,
                root: p.said.root,
            };
            let said = OnChannel { channel: p.channel, manifest: p.manifest, said };
            let envelope = self.cast.sign(&witness, clock, None, Kind::Cosign(said));
            self.say(host, &envelope);
        }
    }

    /// A promotion that lacks everything, by a promoter's stolen key or by a stranger's.
    pub(super) fn promote_falsely(&mut self) {
        let (Some(host), on) = (self.someone(), self.a_channel()) else { return };
        let Some(manifest) = self.a_candidate(host, &on.artifact) else { return };
        let author =
            if self.rng.random_bool(0.7) { self.a_promoter() } else { key(self.options.seed, "stranger", 5) };
        let clock = self.hosts[host].clock(self.now);
        let mut p = self.hosts[host]
            .ledger
            .draft_promotion(&author.key_id(), &on, manifest, clock, String::new())
            .promotion;
        match self.rng.random_range(0..6u32) {
            0 => p.said.policy = None,
            1 => p.said.epoch = u64::MAX,
            2 => p.said.root = 1,
            3 => p.said.parent = self.truth.moves.keys().next().copied(),
            4 => p.said.verdicts = BTreeSet::new(),
            _ => p.said.from = None,
        }
        let time = if self.rng.random_bool(0.2) { EPOCH.plus(1_000_000_000) } else { clock };
        let envelope = self.cast.sign(&author, time, None, Kind::Promote(p));
        self.counts.promotions += 1;
        self.say(host, &envelope);
    }
}
