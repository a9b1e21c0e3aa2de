//! What honest authors do: admins invite, admit, revoke and rotate, ticket holders admit, publishers publish.

use std::collections::{BTreeMap, BTreeSet};

use rand::RngExt;
use weighlock_protocol::gate::Outcome;
use weighlock_protocol::statement::weighed::Verdict;
use weighlock_protocol::statement::{
    Admit, Envelope, Evaluate, Findings, Invite, Keypair, Kind, Labels, Ledger, Publish, Revoke, Root,
    Ruling, Status, Target, Why,
};
use weighlock_protocol::{KeyId, ManifestDigest, Sha256, StatementId, UnixTime};

use super::cast::{Ticket, key};
use super::host::EPOCH;
use super::world::{FoldWorld, pick};

/// A year, in seconds.
const YEAR: u64 = 31_536_000;
const ARTIFACTS: [&str; 3] = ["acme/bot", "acme-lab/bot", "other/bot"];
const TAGS: [&str; 4] = ["1.0.0", "1.1.0", "2.0.0", "nightly"];

/// An admission of `host`, by an admin or by the ticket of `invite`.
pub(super) fn admit(host: KeyId, time: UnixTime, invite: Option<StatementId>) -> Kind {
    Kind::Admit(Admit {
        host,
        name: format!("host-{}", host.short()),
        labels: Labels::from([("rack".to_owned(), format!("r{}", host.0[0] % 4))]),
        expires: time.plus(YEAR),
        invite,
    })
}

impl FoldWorld {
    /// One thing that an honest author does.
    pub(super) fn act(&mut self) {
        match self.rng.random_range(0..100u32) {
            0..35 => self.publish(),
            35..47 => self.invite(),
            47..55 => {
                let ghost = self.ghost().key_id();
                self.by_admin(|_, time| admit(ghost, time, None));
            }
            55..67 => self.admit_by_ticket(),
            67..77 => self.revoke_key(),
            77..80 => self.revoke_invite(),
            80..86 => self.revoke_statement(),
            86..90 => self.admit_again(),
            90..94 => self.rotate(),
            _ => self.endorse(),
        }
    }

    /// The host where an admin's key lies.
    pub(super) fn home(&self, admin: usize) -> usize {
        admin % self.options.admins.min(self.founders())
    }

    pub(super) fn an_admin(&mut self) -> usize {
        self.rng.random_range(0..self.cast.admins.len())
    }

    pub(super) fn ghost(&mut self) -> Keypair {
        let n = self.rng.random_range(0..self.cast.ghosts.len());
        self.cast.ghosts[n].clone()
    }

    /// An admin signs at home, where its chain is known.
    pub(super) fn by_admin(&mut self, kind: impl FnOnce(&Ledger, UnixTime) -> Kind) -> Option<Envelope> {
        let admin = self.an_admin();
        let home = self.home(admin);
        if !self.hosts[home].up {
            return None;
        }
        let time = self.hosts[home].clock(self.now);
        let kind = kind(&self.hosts[home].ledger, time);
        let author = &self.cast.admins[admin];
        let chain = kind.is_chained().then(|| self.hosts[home].ledger.next_chain(&author.key_id()));
        // Mostly enough admins sign at once; at times the others sign when it has come to them.
        let envelope = if self.rng.random_bool(0.7) {
            self.cast.sign_together(admin, time, chain, kind)
        } else {
            self.cast.sign(author, time, chain, kind)
        };
        self.say(home, &envelope);
        Some(envelope)
    }

    /// Notes an envelope and puts it in at `host`.
    pub(super) fn say(&mut self, host: usize, envelope: &Envelope) {
        self.note(envelope);
        self.inject(host, &[envelope.to_json()]);
    }

    pub(super) fn publish_kind(&mut self) -> Kind {
        let artifact = ARTIFACTS[self.rng.random_range(0..ARTIFACTS.len())];
        let tag = TAGS[self.rng.random_range(0..TAGS.len())];
        // Mostly one content for one tag, at times another.
        let content = if self.rng.random_bool(0.8) { 0 } else { self.rng.random_range(1..4u8) };
        Kind::Publish(Publish {
            artifact: artifact.parse().expect("an artifact"),
            tag: tag.parse().expect("a tag"),
            manifest: ManifestDigest::of(format!("{artifact} {tag} {content}").as_bytes()),
            total_bytes: u64::from(content),
        })
    }

    /// Some key that may publish, or might have been allowed to.
    pub(super) fn a_publisher(&mut self) -> Keypair {
        match self.rng.random_range(0..4u32) {
            0 => self.ghost(),
            1 => pick(&self.cast.offices.publishers, &mut self.rng).expect("two publishers").clone(),
            _ => {
                let n = self.rng.random_range(0..self.options.hosts);
                self.hosts[n].key.clone()
            }
        }
    }

    fn publish(&mut self) {
        let (Some(host), author, kind) = (self.someone(), self.a_publisher(), self.publish_kind()) else {
            return;
        };
        let time = self.hosts[host].clock(self.now);
        let envelope = self.cast.sign(&author, time, None, kind.clone());
        self.say(host, &envelope);
        if let Kind::Publish(published) = kind
            && self.options.weighed
        {
            // By one who may, and by one who mostly may not.
            for author in self.cast.offices.evaluators.first().cloned().into_iter().chain([author]) {
                for kind in weighed(&published) {
                    let envelope = self.cast.sign(&author, time, None, kind);
                    self.say(host, &envelope);
                }
            }
        }
    }

    fn invite(&mut self) {
        let ticket = key(self.options.seed, "ticket", self.cast.tickets.len());
        let uses = self.rng.random_range(1..=4);
        // Some tickets expire while the run lasts.
        let lasts = if self.rng.random_bool(0.8) { YEAR } else { self.rng.random_range(0..30) };
        let invited = self.by_admin(|_, time| {
            Kind::Invite(Invite {
                ticket: ticket.key_id(),
                expires: time.plus(lasts),
                uses,
                admit_secs_max: YEAR,
                labels: Labels::from([("zone".to_owned(), "z1".to_owned())]),
                note: String::new(),
            })
        });
        if let Some(invite) = invited {
            self.truth.admitters.insert(ticket.key_id());
            self.cast.tickets.push(Ticket { key: ticket, invite, signed: 0 });
        }
    }

    /// A ticket that has some admissions left to sign. Where room is short, one that signs more than its room would
    /// have hosts refuse different ones, and which of them come first would then depend on who heard what: a
    /// limit of the ledger, not a case to rehearse.
    pub(super) fn a_ticket(&mut self) -> Option<Ticket> {
        let max = self.options.idle_per_author_max;
        let left: Vec<usize> =
            (0..self.cast.tickets.len()).filter(|n| self.cast.tickets[*n].signed < max).collect();
        let n = *pick(&left, &mut self.rng)?;
        self.cast.tickets[n].signed += 1;
        Some(self.cast.tickets[n].clone())
    }

    /// Somebody joins through a host that is not simulated any further: only its admission is heard of.
    pub(super) fn admit_by_ticket(&mut self) {
        let (Some(host), Some(ticket)) = (self.someone(), self.a_ticket()) else { return };
        let ghost = self.ghost();
        let time = self.hosts[host].clock(self.now);
        let kind = admit(ghost.key_id(), time, Some(ticket.invite.id()));
        let envelope = self.cast.sign(&ticket.key, time, None, kind);
        self.say(host, &envelope);
    }

    /// Hosts that may be revoked: no admin is at home there, for a cluster without admins comes to rest nowhere.
    pub(super) fn a_victim(&mut self) -> Option<KeyId> {
        let first = self.options.admins.min(self.founders());
        (first < self.options.hosts).then(|| {
            let n = self.rng.random_range(first..self.options.hosts);
            self.hosts[n].id()
        })
    }

    fn revoke_key(&mut self) {
        let ghost = self.ghost().key_id();
        let victim = if self.rng.random_bool(0.2) { self.a_victim() } else { None };
        let since = match self.rng.random_range(0..3u32) {
            0 => None,
            1 => Some(UnixTime(0)),
            _ => Some(EPOCH.plus(self.rng.random_range(0..60))),
        };
        let target = Target::Key { key: victim.unwrap_or(ghost), since };
        self.by_admin(|_, _| revoke(target));
    }

    fn revoke_invite(&mut self) {
        let Some(ticket) = pick(&self.cast.tickets, &mut self.rng) else { return };
        let id = ticket.invite.id();
        let keep: BTreeSet<StatementId> =
            (0..self.rng.random_range(0..3u32)).map(|_| self.said_id()).collect();
        self.by_admin(|_, _| revoke(Target::Invite { id, keep }));
    }

    fn revoke_statement(&mut self) {
        if let Some(id) = pick(&self.truth.targets(), &mut self.rng).copied() {
            self.by_admin(|_, _| revoke(Target::Statement { id }));
        }
    }

    /// An admin admits somebody whom its host knows as revoked.
    fn admit_again(&mut self) {
        let revoked: Vec<KeyId> = self
            .truth
            .signed
            .values()
            .filter_map(|s| match &s.kind {
                Kind::Revoke(Revoke { target: Target::Key { key, .. }, .. }) => Some(*key),
                _ => None,
            })
            .collect();
        if let Some(host) = pick(&revoked, &mut self.rng).copied() {
            self.by_admin(|_, time| admit(host, time, None));
        }
    }

    /// The next root, with one admin out or another in. The signatures of the others come later.
    pub(super) fn rotate(&mut self) {
        let admins: Vec<usize> = {
            let all = 0..self.cast.admins.len();
            let out = self.rng.random_range(all.start..all.end);
            all.filter(|n| *n != out).collect()
        };
        let root = self.cast.root(1, None, &admins);
        self.by_admin(|ledger, _| Kind::Root(after(ledger, root)));
    }

    /// An admin signs what waits for signatures and has come to its host.
    fn endorse(&mut self) {
        let admin = self.an_admin();
        let home = self.home(admin);
        if !self.hosts[home].up {
            return;
        }
        let ledger = &self.hosts[home].ledger;
        let admins = &self.cast.admins;
        let waiting = |id: &StatementId| match ledger.status(id) {
            Some(Status::Pending(Why::Threshold)) => true,
            Some(Status::Ignored(Why::NotAllowed)) => {
                let said = ledger.statement(id);
                said.is_some_and(|s| s.chain.is_some() && admins.iter().any(|a| a.key_id() == s.by))
            }
            _ => false,
        };
        let waiting: Vec<StatementId> = ledger.statements().filter(waiting).collect();
        let Some(id) = pick(&waiting, &mut self.rng) else { return };
        let Some(mut envelope) = self.hosts[home].store.get(id).cloned() else { return };
        envelope.endorse(&self.cast.admins[admin]);
        self.say(home, &envelope);
    }
}

/// `root` as the successor of the one in force.
pub(super) fn after(ledger: &Ledger, root: Root) -> Root {
    let (version, prev) = ledger.root(EPOCH).map_or((1, [0; 32]), |r| (r.root.version, r.id.0));
    Root { version: version + 1, prev_root: Some(StatementId(prev)), settled: ledger.settled(), ..root }
}

pub(super) fn revoke(target: Target) -> Kind {
    Kind::Revoke(Revoke { target, reason: "rehearsed".to_owned() })
}

/// An evaluation of what was published, and the gate's word on it.
fn weighed(published: &Publish) -> [Kind; 2] {
    let Publish { artifact, manifest, .. } = published;
    let report = Sha256(manifest.0);
    let findings = Findings {
        evidence: ManifestDigest::of(&manifest.0),
        evidence_bytes: 1,
        report,
        suite: None,
        harness: "rehearsal".to_owned(),
        hardware: "any".to_owned(),
        runtime: String::new(),
        sandbox: String::new(),
        figures: BTreeMap::new(),
    };
    let ruling = Ruling {
        outcome: Outcome::Pass,
        policy: report,
        baseline: None,
        pinned: None,
        hardware: "any".to_owned(),
        reports: BTreeSet::from([report]),
        baseline_reports: BTreeSet::new(),
        verdict: report,
        sandbox: String::new(),
        reasons: Vec::new(),
    };
    [
        Kind::Evaluate(Evaluate { artifact: artifact.clone(), manifest: *manifest, findings }),
        Kind::Verdict(Verdict { artifact: artifact.clone(), manifest: *manifest, ruling }),
    ]
}
