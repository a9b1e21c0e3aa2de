//! The statement world: events in order of time, a network that loses, delays and parts, and the end that must be one.

mod begin;
mod network;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use weighlock_protocol::statement::reconcile::ReconcileConfig;
use weighlock_protocol::statement::{Chain, Envelope, Keypair, Kind, Ledger, LedgerConfig, Statement};
use weighlock_protocol::{ClusterId, KeyId, StatementId, Time};

use super::canon::fold_hash;
use super::cast::{Cast, Offices, Truth, key};
use super::check::{self, Check, FoldViolation, Seen};
use super::host::{EPOCH, Host, Ingested};
use super::options::FoldOptions;
use super::report::{FoldCounts, FoldReport};
use crate::queue::Queue;
pub(super) use network::Message;

/// Something that happens.
#[derive(Debug)]
pub(super) enum Event {
    /// An honest author does something.
    Act,
    /// Somebody does something about a channel.
    Climb,
    /// A host that may be a witness looks at what waits for its cosignature.
    Vote { host: usize },
    /// A copy of a host's disk is made.
    Backup { host: usize },
    /// It is all that the host has left.
    Restore { host: usize },
    /// A hostile author does something.
    Attack,
    /// A message arrives.
    Deliver { to: usize, from: usize, message: Message },
    /// A host reconciles with a few others.
    Timer { host: usize },
    /// A host that has a ticket, or will have one, wants to join.
    Join { host: usize },
    /// A statement that was held back comes out after all.
    Release { host: usize, envelope: Vec<u8> },
    /// A host dies.
    Crash { host: usize, back: Time },
    /// It comes back.
    Restart { host: usize },
    /// The network falls into parts: one number for each host.
    Part(Vec<u8>),
    /// It is whole again.
    Whole,
    /// Faults, acts and gossip are over.
    Heal,
    /// Are all equal?
    Round(u32),
}

/// The world.
#[derive(Debug)]
pub struct FoldWorld {
    pub(super) options: FoldOptions,
    pub(super) now: Time,
    pub(super) rng: ChaCha8Rng,
    pub(super) hosts: Vec<Host>,
    pub(super) cast: Cast,
    pub(super) truth: Truth,
    /// Every envelope that was really signed, in order.
    pub(super) said: Vec<Envelope>,
    pub(super) counts: FoldCounts,
    pub(super) queue: Queue<Event>,
    pub(super) healed: bool,
    /// Admissions by ticket, as they were brought to the door: the invite and the admission.
    pub(super) admissions: BTreeMap<usize, [Envelope; 2]>,
    pub(super) forgeries: Vec<Vec<u8>>,
    banished: BTreeSet<usize>,
    neighbours: Vec<Vec<usize>>,
    parts: Option<Vec<u8>>,
    backups: BTreeMap<usize, BTreeMap<StatementId, Envelope>>,
    /// Hosts that lost what was not in a backup, and keys that are in other hands, too.
    pub(super) forgetful: BTreeSet<KeyId>,
    checks: Vec<Box<dyn Check>>,
    violations: Vec<FoldViolation>,
    trace: blake3::Hasher,
    sessions: u64,
    rounds: Option<u32>,
}

impl FoldWorld {
    /// A world at its beginning: a founded cluster, and everything that will happen drawn.
    pub fn new(options: FoldOptions) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(options.seed);
        let keys = |role: &str, n| (0..n).map(|i| key(options.seed, role, i)).collect::<Vec<Keypair>>();
        let admins = keys("admin", options.admins + 1);
        let publishers = keys("publisher", 2);
        let ghosts = keys("ghost", 6);
        let evaluators = keys("evaluator", usize::from(options.weighed));
        let promoters = keys("promoter", if options.witnesses > 0 { PROMOTERS } else { 0 });
        let hosts = keys("host", options.witnesses);
        // One more admin is at hand for rotations.
        let offices = Offices {
            publishers,
            evaluators,
            promoters,
            witnesses: hosts.iter().map(Keypair::key_id).collect(),
        };
        let first = offices.root(1, None, admins[..options.admins].iter(), options.threshold);
        let first = Statement {
            cluster: None,
            by: admins[0].key_id(),
            time: EPOCH,
            chain: Some(Chain { seq: 0, prev: None }),
            kind: Kind::Root(first),
        };
        let first = first.sign(&admins[..options.threshold as usize].iter().collect::<Vec<_>>());
        let cluster = ClusterId(first.id().0);
        let cast = Cast::new(cluster, admins, offices, ghosts, options.threshold);
        let mut world = Self {
            now: Time(0),
            rng,
            hosts: Vec::new(),
            cast,
            truth: Truth::default(),
            said: Vec::new(),
            counts: FoldCounts::default(),
            queue: Queue::new(&[]),
            healed: false,
            admissions: BTreeMap::new(),
            forgeries: Vec::new(),
            banished: BTreeSet::new(),
            neighbours: Vec::new(),
            parts: None,
            backups: BTreeMap::new(),
            forgetful: BTreeSet::new(),
            checks: check::all(),
            violations: Vec::new(),
            trace: blake3::Hasher::new(),
            sessions: 0,
            rounds: None,
            options,
        };
        world.found(first);
        world.draw_faults();
        world
    }

    /// Plays to the end and looks at it.
    pub fn run(mut self) -> FoldReport {
        self.play();
        self.judge()
    }

    /// Plays until all are equal, or should be.
    pub fn play(&mut self) {
        while let Some((at, event)) = self.queue.pop() {
            self.now = at;
            self.counts.events += 1;
            self.trace(&format!("{} {event:?}", at.0));
            if self.handle(event) {
                break;
            }
        }
    }

    /// What the run showed, and what did not hold in the end.
    fn judge(mut self) -> FoldReport {
        let mut checks = std::mem::take(&mut self.checks);
        for check in &mut checks {
            if let Err(what) = check.end(&self) {
                self.violate(check.name(), what);
            }
        }
        self.counts.heads = checks.iter().map(|check| check.heads()).sum();
        let states: Vec<String> =
            self.hosts.iter().map(|h| fold_hash(&h.ledger, EPOCH, true).to_string()).collect();
        self.trace(&format!("{states:?}"));
        FoldReport {
            statements: self.truth.signed.len(),
            equal: self.circle().len(),
            rounds: self.rounds,
            counts: self.counts,
            trace: self.trace.finalize().to_hex().to_string(),
            violations: self.violations,
            options: self.options,
        }
    }

    /// All hosts, the honest ones first.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// What was really said.
    pub fn truth(&self) -> &Truth {
        &self.truth
    }

    /// What decides the run.
    pub fn options(&self) -> &FoldOptions {
        &self.options
    }

    /// The hosts that this one can reach, itself included.
    pub fn side_of(&self, host: usize) -> impl Iterator<Item = usize> + '_ {
        (0..self.hosts.len()).filter(move |other| !self.is_parted(host, *other))
    }

    /// Whether the network is whole.
    pub fn is_whole(&self) -> bool {
        self.parts.is_none()
    }

    /// Whether a witness may have signed twice: it lost what it knew, or others have its key.
    pub fn is_forgetful(&self, witness: &KeyId) -> bool {
        self.forgetful.contains(witness)
    }

    /// The time of the run.
    pub fn now(&self) -> Time {
        self.now
    }

    /// Rounds of reconciliation after which all were equal; `None` if they never were.
    pub fn rounds(&self) -> Option<u32> {
        self.rounds
    }

    /// The honest hosts that must agree in the end: those whom the fold of everything that they know together takes
    /// for members.
    pub fn circle(&self) -> BTreeSet<usize> {
        let joined = |(n, h): (usize, &Host)| (h.honest && h.joined).then_some(n);
        let mut circle: BTreeSet<usize> = self.hosts.iter().enumerate().filter_map(joined).collect();
        circle.retain(|n| !self.banished.contains(n));
        loop {
            let all = self.union(&circle);
            let before = circle.len();
            circle.retain(|n| all.is_member(&self.hosts[*n].id(), EPOCH));
            if circle.len() == before {
                return circle;
            }
        }
    }

    /// The fold of everything that these hosts have stored, without limits.
    pub fn union(&self, hosts: &BTreeSet<usize>) -> Ledger {
        let mut ledger = Ledger::new(LedgerConfig::new(self.cast.cluster));
        let envelopes = hosts.iter().flat_map(|n| self.hosts[*n].store.values());
        let checked: Vec<_> = envelopes.filter_map(|e| ledger.check_stored(e).ok()).collect();
        ledger.apply_all(checked);
        ledger
    }

    fn handle(&mut self, event: Event) -> bool {
        match event {
            Event::Act => self.act(),
            Event::Climb => self.climb(),
            Event::Vote { host } => self.vote(host),
            Event::Backup { host } => {
                let store = self.hosts[host].store.clone();
                self.backups.insert(host, store);
            }
            Event::Restore { host } => self.restore(host),
            Event::Attack => self.attack(),
            Event::Deliver { to, from, message } => self.deliver(to, from, message),
            Event::Timer { host } => self.timer(host),
            Event::Join { host } => self.join(host),
            Event::Release { host, envelope } => self.inject(host, &[envelope]),
            Event::Crash { host, back } => {
                if self.hosts[host].up {
                    self.counts.crashes += 1;
                    self.hosts[host].crash();
                    self.queue.push(back, Event::Restart { host });
                }
            }
            Event::Restart { host } => self.restart(host),
            Event::Part(parts) => {
                self.counts.partitions += 1;
                self.truth.spell += 1;
                self.parts = Some(parts);
            }
            Event::Whole => {
                self.truth.spell += 1;
                self.parts = None;
            }
            Event::Heal => self.heal(),
            Event::Round(n) => return self.round(n),
        }
        false
    }

    fn restart(&mut self, host: usize) {
        if self.hosts[host].up {
            return;
        }
        let batch = [1, 5, usize::MAX][self.rng.random_range(0..3)];
        // The daemon reads all at once; where room is short, only that keeps what it had.
        let batch = if self.options.flood { usize::MAX } else { batch };
        self.hosts[host].restart(batch, &mut self.rng);
        self.see(&Seen::Restarted { host });
        self.vote_soon(host);
        // As a host does that connects.
        self.queue.push(self.now, Event::Timer { host });
    }

    /// A host dies and comes back with what a backup has. What it said since is not lost if another host heard it.
    fn restore(&mut self, host: usize) {
        let Some(store) = self.backups.remove(&host) else { return };
        self.counts.restores += 1;
        let id = self.hosts[host].id();
        self.forgetful.insert(id);
        self.hosts[host].crash();
        self.hosts[host].store = store;
        self.see(&Seen::Restored { host });
        self.restart(host);
    }

    fn heal(&mut self) {
        (self.healed, self.parts) = (true, None);
        self.truth.spell += 1;
        for host in 0..self.hosts.len() {
            if !self.hosts[host].up {
                self.restart(host);
            }
        }
        // A host that only one other knew of is a stranger to the rest: it knocks again with its old admission.
        for (host, envelopes) in self.admissions.clone() {
            let door = self.rng.random_range(0..self.options.admins.min(self.founders()));
            let known = self.hosts[door].counts(&self.hosts[host].id(), self.now);
            if !known && !self.knock(host, door, &envelopes) {
                self.banished.insert(host);
            }
        }
        let first = self.now + self.round_length();
        self.queue.push(first, Event::Round(1));
    }

    /// Long enough for a reconciliation that moves one thing at a time to begin and to end.
    fn round_length(&self) -> Duration {
        let page = self.options.page_ids_max.min(self.options.page_statements_max).max(1);
        let messages = 4 + 3 * self.truth.signed.len().div_ceil(page) as u64;
        Duration::from_millis(self.options.reconcile_ms + 2 * self.options.latency_ms * messages)
    }

    fn round(&mut self, n: u32) -> bool {
        // What is about to be said will have to spread.
        let still = self.hosts.iter().all(|host| !host.voting);
        if still && self.is_equal() {
            self.rounds = Some(n);
            return true;
        }
        if n >= self.options.rounds_max() {
            return true;
        }
        self.queue.push(self.now + self.round_length(), Event::Round(n + 1));
        false
    }

    fn is_equal(&self) -> bool {
        let circle = self.circle();
        let mut states = circle.iter().map(|n| {
            let ledger = &self.hosts[*n].ledger;
            if self.options.flood {
                fold_hash(ledger, EPOCH, false)
            } else {
                blake3::hash(&weighlock_protocol::statement::reconcile::summary(ledger).0)
            }
        });
        let first = states.next();
        states.all(|state| Some(state) == first)
    }

    /// Notes what was really signed.
    pub(super) fn note(&mut self, envelope: &Envelope) {
        self.truth.note(envelope);
        self.said.push(envelope.clone());
    }

    /// A host takes statements from a local command, and spreads them.
    pub(super) fn inject(&mut self, host: usize, envelopes: &[Vec<u8>]) {
        if !self.hosts[host].up || !self.hosts[host].joined {
            return;
        }
        let ingested = self.hosts[host].ingest(envelopes);
        let sound = ingested.refused.is_none();
        self.ingested(host, None, ingested);
        if sound && !self.healed {
            self.gossip(host, None, envelopes);
        }
    }

    /// Shows the checkers what a host took in.
    fn ingested(&mut self, host: usize, from: Option<usize>, ingested: Ingested) {
        self.counts.accepted += ingested.accepted.len() as u64;
        self.counts.over_limit += ingested.over_limit as u64;
        if !ingested.accepted.is_empty() {
            self.trace(&format!("{host} has {:?}", ingested.accepted));
            self.see(&Seen::Ingested { host, new: &ingested.accepted });
            self.vote_soon(host);
        }
        if let (Some(from), Some(reason)) = (from, ingested.refused) {
            self.accuse(host, from, &reason);
        }
    }

    /// A host will not hear of another for a while.
    fn accuse(&mut self, by: usize, of: usize, reason: &str) {
        self.counts.accusations += 1;
        self.hosts[by].sessions.remove(&of);
        self.hosts[by].banned.insert(of, self.now + Duration::from_secs(10));
        self.see(&Seen::Accused { by, of, reason });
    }

    pub(super) fn see(&mut self, seen: &Seen<'_>) {
        let mut checks = std::mem::take(&mut self.checks);
        for check in &mut checks {
            if let Err(what) = check.see(self, seen) {
                self.violate(check.name(), what);
            }
        }
        self.checks = checks;
    }

    fn violate(&mut self, check: &'static str, what: String) {
        // The first few tell the story.
        if self.violations.len() < 20 {
            self.violations.push(FoldViolation { check, at_ns: self.now.0, what });
        }
    }

    fn trace(&mut self, what: &str) {
        self.trace.update(what.as_bytes());
    }

    /// Some time before the faults heal.
    pub(super) fn moment(&mut self) -> Time {
        self.within(self.options.span_ms)
    }

    fn within(&mut self, ms: u64) -> Time {
        Time(self.rng.random_range(0..ms.max(1) * 1_000_000))
    }

    /// The limits that reconciliations run with.
    fn reconcile_config(&self) -> ReconcileConfig {
        ReconcileConfig {
            ids_max: self.options.page_ids_max,
            ask_max: self.options.page_statements_max,
            push_max: self.options.page_statements_max,
            ..ReconcileConfig::default()
        }
    }

    /// A host that is up and takes part.
    pub(super) fn someone(&mut self) -> Option<usize> {
        let up = |(n, h): (usize, &Host)| (h.up && h.joined).then_some(n);
        let up: Vec<usize> = self.hosts.iter().enumerate().filter_map(up).collect();
        pick(&up, &mut self.rng).copied()
    }

    /// Ids of everything that was really said.
    pub(super) fn said_id(&mut self) -> StatementId {
        let n = self.rng.random_range(0..self.said.len());
        self.said[n].id()
    }
}

/// Keys that may promote and roll back, in worlds with channels.
const PROMOTERS: usize = 3;

/// One of `all`.
pub(super) fn pick<'a, T>(all: &'a [T], rng: &mut ChaCha8Rng) -> Option<&'a T> {
    if all.is_empty() { None } else { all.get(rng.random_range(0..all.len())) }
}

/// Any order, each as likely.
pub(super) fn shuffle<T>(all: &mut [T], rng: &mut ChaCha8Rng) {
    for n in (1..all.len()).rev() {
        all.swap(n, rng.random_range(0..=n));
    }
}
