//! One host: its store, its ledger, and how statements get from the one into the other, as the daemon does it.

use std::collections::{BTreeMap, BTreeSet};

use rand_chacha::ChaCha8Rng;
use weighlock_protocol::statement::{Applied, Envelope, Keypair, Ledger, LedgerConfig};
use weighlock_protocol::{ClusterId, KeyId, StatementId, Time, UnixTime};

use super::sync::Session;
use super::world::shuffle;

/// When the run's clock stands at zero.
pub(super) const EPOCH: UnixTime = UnixTime(1_800_000_000);

/// A host.
#[derive(Debug)]
pub struct Host {
    /// Its own key, by which it is a member.
    pub key: Keypair,
    /// What it concluded. Gone with a crash.
    pub ledger: Ledger,
    /// What it committed: survives crashes.
    pub store: BTreeMap<StatementId, Envelope>,
    /// How far its clock is off, in seconds.
    pub skew_secs: i64,
    /// Whether it runs.
    pub up: bool,
    /// Whether it does what it should.
    pub honest: bool,
    /// Whether it has been let in, and so takes part.
    pub joined: bool,
    pub(super) config: LedgerConfig,
    /// Whether it will look at promotions soon.
    pub(super) voting: bool,
    pub(super) boots: u64,
    pub(super) heard: BTreeSet<[u8; 32]>,
    pub(super) sessions: BTreeMap<usize, Session>,
    pub(super) banned: BTreeMap<usize, Time>,
}

/// What became of a batch.
#[derive(Debug, Default)]
pub(super) struct Ingested {
    /// New statements, or such with new signatures, that are stored now.
    pub(super) accepted: Vec<StatementId>,
    /// Those for which there was no room.
    pub(super) over_limit: usize,
    /// Rubbish that no honest host would have sent.
    pub(super) refused: Option<String>,
}

impl Host {
    pub(super) fn new(key: Keypair, config: LedgerConfig, skew_secs: i64, honest: bool) -> Self {
        Self {
            key,
            ledger: Ledger::new(config.clone()),
            store: BTreeMap::new(),
            skew_secs,
            up: true,
            honest,
            joined: false,
            config,
            voting: false,
            boots: 0,
            heard: BTreeSet::new(),
            sessions: BTreeMap::new(),
            banned: BTreeMap::new(),
        }
    }

    /// This host's key.
    pub fn id(&self) -> KeyId {
        self.key.key_id()
    }

    /// The cluster.
    pub fn cluster(&self) -> ClusterId {
        self.config.cluster
    }

    /// What its clock shows.
    pub fn clock(&self, now: Time) -> UnixTime {
        UnixTime(EPOCH.0.saturating_add(now.0 / 1_000_000_000).saturating_add_signed(self.skew_secs))
    }

    /// Checks, commits, applies, and takes back what the ledger has no room for.
    pub(super) fn ingest(&mut self, all: &[Vec<u8>]) -> Ingested {
        let mut ingested = Ingested::default();
        let mut fresh = BTreeMap::new();
        for bytes in all {
            let checked = match Envelope::parse(bytes) {
                Ok(envelope) => self.ledger.check(&envelope).map_err(|e| e.to_string()),
                Err(e) => Err(e.to_string()),
            };
            let checked = match checked {
                Ok(checked) => checked,
                Err(e) => {
                    ingested.refused.get_or_insert(e);
                    continue;
                }
            };
            let id = checked.id();
            if fresh.contains_key(&id) {
                continue;
            }
            if let Some(stored) = self.store.get(&id).filter(|_| self.ledger.contains(&id)) {
                let mut merged = stored.clone();
                if !self.ledger.merge(&mut merged, checked.envelope()) {
                    continue;
                }
                self.store.insert(id, merged);
            } else {
                self.store.insert(id, checked.envelope().clone());
            }
            fresh.insert(id, checked);
        }
        let (ids, checked): (Vec<_>, Vec<_>) = fresh.into_iter().unzip();
        for (id, outcome) in ids.into_iter().zip(self.ledger.apply_all(checked)) {
            match outcome {
                Applied::Duplicate => {}
                Applied::Refused(_) => {
                    ingested.over_limit += 1;
                    self.store.remove(&id);
                }
                Applied::Effective | Applied::Pending { .. } | Applied::Ignored { .. } => {
                    ingested.accepted.push(id);
                }
            }
        }
        ingested
    }

    /// Loses everything but the store.
    pub(super) fn crash(&mut self) {
        self.up = false;
        self.boots += 1;
        self.ledger = Ledger::new(self.config.clone());
        self.heard.clear();
        self.sessions.clear();
        self.banned.clear();
    }

    /// Reads the store again in an order of its own: at once, or in batches of `batch`.
    pub(super) fn restart(&mut self, batch: usize, rng: &mut ChaCha8Rng) {
        self.up = true;
        let mut waiting: Vec<(&StatementId, &Envelope)> = self.store.iter().collect();
        shuffle(&mut waiting, rng);
        loop {
            let count = waiting.len();
            let mut refused = Vec::new();
            for some in waiting.chunks(batch.max(1)) {
                let (read, checked): (Vec<_>, Vec<_>) =
                    some.iter().filter_map(|one| Some((*one, self.ledger.check_stored(one.1).ok()?))).unzip();
                let outcomes = read.into_iter().zip(self.ledger.apply_all(checked));
                refused.extend(
                    outcomes
                        .filter(|(_, outcome)| matches!(outcome, Applied::Refused(_)))
                        .map(|(one, _)| one),
                );
            }
            // What there was no room for may have come after a root that made some: again, as long as it helps.
            if refused.is_empty() || refused.len() == count {
                return;
            }
            waiting = refused;
        }
    }

    /// The stored envelopes of these, as they travel.
    pub(super) fn read(&self, ids: &[StatementId]) -> Vec<Vec<u8>> {
        ids.iter().filter_map(|id| self.store.get(id)).map(Envelope::to_json).collect()
    }

    /// Whether it takes `key` for a member.
    pub(super) fn counts(&self, key: &KeyId, now: Time) -> bool {
        self.ledger.is_member(key, self.clock(now))
    }
}
