//! The set of statements that a host holds, and what follows from it.

mod room;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::authority::{Authority, Held, Set};
use super::body::{Kind, Statement};
use super::chain::Chains;
use super::envelope::{Envelope, SIGNATURES_MAX, Signed, StatementError, Unverified, Verified};
use super::ladder::Ladder;
use super::summary::Summary;
use super::tags::Tags;
use super::weighed::Weighed;
use super::why::{Status, Why};
use crate::gate::Policy;
use crate::id::{ClusterId, KeyId, StatementId};
use crate::names::Artifact;
use room::Idle;
pub(super) use room::Room;

/// One in so many places of a ledger is kept free of publishes and unknown kinds.
pub const SAID_SHARE: usize = 16;

/// What a ledger is told from outside the set.
#[derive(Debug, Clone)]
pub struct LedgerConfig {
    /// The cluster; its first root is the only statement that needs no other.
    pub cluster: ClusterId,
    /// Roots that a person here chose, where two of one version exist.
    pub chosen_roots: BTreeSet<StatementId>,
    /// How far clocks may be apart, in seconds: things expire this much later than they say.
    pub clock_tolerance_secs: u64,
    /// How old a promotion may be when a witness first sees it, in seconds.
    pub promotion_secs_max: u64,
    /// How long before its expiry a root raises an alarm, in seconds.
    pub root_warning_secs: u64,
    /// Most statements held. A part of the room, one in [`SAID_SHARE`], is only for what changes authority.
    pub statements_max: usize,
    /// Most statements held that have no effect.
    pub idle_max: usize,
    /// Most of one author that have no effect.
    pub idle_per_author_max: usize,
    /// Most bytes of payloads and signatures held, with the same part kept free.
    pub bytes_max: usize,
    /// Most bytes of statements held that have no effect.
    pub idle_bytes_max: usize,
    /// Most bytes of one author's statements that have no effect.
    pub idle_bytes_per_author_max: usize,
}

impl LedgerConfig {
    /// The usual limits, for `cluster`.
    pub fn new(cluster: ClusterId) -> Self {
        Self {
            cluster,
            chosen_roots: BTreeSet::new(),
            clock_tolerance_secs: 300,
            promotion_secs_max: 7 * 86_400,
            root_warning_secs: 30 * 86_400,
            statements_max: 1_000_000,
            idle_max: 100_000,
            idle_per_author_max: 10_000,
            bytes_max: 4 << 30,
            idle_bytes_max: 512 << 20,
            idle_bytes_per_author_max: 64 << 20,
        }
    }
}

/// Why a statement is not taken into the set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Form or signature.
    #[error(transparent)]
    Statement(#[from] StatementError),
    /// It belongs to another cluster.
    #[error("the statement belongs to cluster {}, this is {}; use a ticket of this cluster", .theirs.short(), .ours.short())]
    OtherCluster {
        /// The cluster that it names, or that it would found.
        theirs: ClusterId,
        /// The ledger's.
        ours: ClusterId,
    },
    /// A limit of [`LedgerConfig`], in statements or bytes. The statement is welcome later.
    #[error("the ledger is full ({limit} = {max}); raise it in the configuration or revoke who floods it")]
    Full {
        /// The limit's name.
        limit: &'static str,
        /// Its value.
        max: usize,
    },
}

/// A statement of this cluster whose form and signatures are proven.
#[derive(Debug, Clone)]
pub struct Checked(Signed<Statement, Verified>);

impl Checked {
    /// Its id.
    pub fn id(&self) -> StatementId {
        self.0.id()
    }

    /// What it says.
    pub fn statement(&self) -> &Statement {
        self.0.body()
    }

    /// The envelope, to be stored before anything is announced.
    pub fn envelope(&self) -> &Envelope {
        self.0.envelope()
    }
}

/// What became of a statement that was applied. All but the last two are new and must be stored and passed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Applied {
    /// It counts.
    Effective,
    /// It waits for another statement or signature.
    Pending {
        /// For what.
        why: Why,
    },
    /// It does not count, and is kept because later statements may change that.
    Ignored {
        /// Why.
        why: Why,
    },
    /// The set had it, with all these signatures.
    Duplicate,
    /// It was not kept.
    Refused(Refusal),
}

/// The set of statements and the state that is a pure function of it: whatever the order, however often.
#[derive(Debug, Clone)]
pub struct Ledger {
    pub(super) config: LedgerConfig,
    pub(super) set: Set,
    /// Of all in the set.
    bytes: usize,
    pub(super) authority_ids: BTreeSet<StatementId>,
    /// What is said of artifacts, by author, and whether each counts.
    said: BTreeMap<KeyId, BTreeMap<StatementId, bool>>,
    pub(super) chains: Chains,
    pub(super) authority: Authority,
    authority_idle: Idle,
    /// What came since the last fold and may have no effect.
    fresh: Idle,
    /// What is said, and unknown statements, without effect.
    said_idle: Idle,
    pub(super) tags: Tags,
    pub(super) weighed: Weighed,
    pub(super) ladder: Ladder,
    pub(super) summary: Summary,
}

impl Ledger {
    /// An empty set.
    pub fn new(config: LedgerConfig) -> Self {
        Self {
            config,
            set: Set::new(),
            bytes: 0,
            authority_ids: BTreeSet::new(),
            said: BTreeMap::new(),
            chains: Chains::default(),
            authority: Authority::default(),
            authority_idle: Idle::default(),
            fresh: Idle::default(),
            said_idle: Idle::default(),
            tags: Tags::default(),
            weighed: Weighed::default(),
            ladder: Ladder::default(),
            summary: Summary::default(),
        }
    }

    /// Proves form, cluster and signatures. Says nothing about whether the statement counts.
    ///
    /// # Errors
    /// See [`Refusal`]; nothing that fails here may be stored or passed on.
    pub fn check(&self, envelope: &Envelope) -> Result<Checked, Refusal> {
        Ok(Checked(self.of_this_cluster(envelope)?.verify()?))
    }

    /// As [`check`](Self::check), without proving the signatures again: for envelopes that this host checked
    /// before it stored them.
    ///
    /// # Errors
    /// Form or cluster, which means that the store is damaged.
    pub fn check_stored(&self, envelope: &Envelope) -> Result<Checked, Refusal> {
        Ok(Checked(self.of_this_cluster(envelope)?.trust_own_store()))
    }

    /// Whether the set has this statement with signatures of all these keys, so that it says nothing new. Proves none of
    /// them.
    pub fn has_all_of(&self, envelope: &Envelope) -> bool {
        self.set.get(&envelope.id()).is_some_and(|held| {
            envelope.signatures().iter().all(|signature| held.signers.binary_search(&signature.key).is_ok())
        })
    }

    /// Adds one statement to the set.
    ///
    /// A publish costs a look-up; what changes authority folds everything anew, so add many with
    /// [`apply_all`](Self::apply_all).
    pub fn apply(&mut self, checked: Checked) -> Applied {
        self.apply_all([checked]).pop().unwrap_or(Applied::Duplicate)
    }

    /// Adds statements to the set and folds once. Answers in their order, each as things stand at the end.
    pub fn apply_all(&mut self, all: impl IntoIterator<Item = Checked>) -> Vec<Applied> {
        let mut all: Vec<(usize, Checked)> = all.into_iter().enumerate().collect();
        // Authority first and chains in order, so that nothing waits or is refused that need not be.
        all.sort_by_key(|(_, c)| {
            let s = c.statement();
            (is_said(s), s.chain.map_or(0, |chain| chain.seq))
        });
        let mut applied: Vec<(usize, Result<StatementId, Applied>)> = Vec::with_capacity(all.len());
        let mut stale = false;
        for (n, checked) in all {
            let said = is_said(checked.statement());
            if stale && (said || self.may_make_room(&checked)) {
                self.refold();
                stale = false;
            }
            let id = checked.id();
            let outcome = self.insert(checked);
            stale |= !said && outcome.is_ok();
            applied.push((n, outcome.map(|()| id)));
        }
        if stale {
            self.refold();
        }
        self.ladder.fold(&self.set, &self.authority);
        applied.sort_by_key(|(n, _)| *n);
        applied
            .into_iter()
            .map(|(_, outcome)| match outcome {
                Ok(id) => match self.status(&id) {
                    Some(Status::Pending(why)) => Applied::Pending { why },
                    Some(Status::Ignored(why)) => Applied::Ignored { why },
                    Some(Status::Effective) | None => Applied::Effective,
                },
                Err(applied) => applied,
            })
            .collect()
    }

    /// The artifacts whose heads may have moved since this was last asked.
    pub fn take_moved(&mut self) -> BTreeSet<Artifact> {
        self.ladder.take_refolded()
    }

    fn of_this_cluster(&self, envelope: &Envelope) -> Result<Signed<Statement, Unverified>, Refusal> {
        let signed = Signed::parse(envelope.clone())?;
        let theirs = signed.body().cluster.unwrap_or(ClusterId(signed.id().0));
        if theirs != self.config.cluster {
            return Err(Refusal::OtherCluster { theirs, ours: self.config.cluster });
        }
        Ok(signed)
    }

    /// Puts a statement or its new signatures into the set; what follows from it is the caller's.
    fn insert(&mut self, checked: Checked) -> Result<(), Applied> {
        let id = checked.id();
        let (statement, envelope) = checked.0.into_parts();
        let theirs = statement.cluster.unwrap_or(ClusterId(id.0));
        if theirs != self.config.cluster {
            return Err(Applied::Refused(Refusal::OtherCluster { theirs, ours: self.config.cluster }));
        }
        if self.set.contains_key(&id) {
            return self.insert_signatures(id, &envelope);
        }
        let mut signers: Vec<KeyId> = envelope.signatures().iter().map(|s| s.key).collect();
        signers.sort_unstable();
        // What a chain is judged from anew when a stranger asks to join: all that take a place in it.
        let keep = statement.chain.is_some() || matches!(statement.kind, Kind::Admit(_));
        let policy = match &statement.kind {
            Kind::Policy(set) => {
                let policy = Policy::parse(&set.text).ok();
                policy.filter(|policy| policy.digest() == set.policy).map(Arc::new)
            }
            _ => None,
        };
        let room = Room::of(&envelope);
        let held = Held { signers, envelope: keep.then_some(envelope), policy, room, statement };
        let effective = held.statement.kind.namespace().is_some()
            && self.authority.said_status(&id, &held) == Status::Effective;
        if !effective {
            self.check_room(&held.statement, &held.signers, room).map_err(Applied::Refused)?;
        }
        let said =
            held.statement.kind.namespace().is_some() || matches!(held.statement.kind, Kind::Unknown { .. });
        // Whoever publishes without end must leave room for its own revocation, and for a rollback.
        let said = said && !(effective && held.statement.kind.channel().is_some());
        self.check_all(room, said).map_err(Applied::Refused)?;

        for signer in &held.signers {
            self.summary.insert(&id, signer);
        }
        let by = held.statement.by;
        if let Some(chain) = held.statement.chain {
            self.chains.insert(id, by, chain);
        }
        match &held.statement.kind {
            kind if kind.namespace().is_some() => {
                self.said.entry(by).or_default().insert(id, effective);
                if effective {
                    self.ladder.insert(id, by, kind);
                    count(&mut self.tags, &mut self.weighed, id, by, kind);
                } else {
                    self.ladder.insert_void(id, by, kind);
                    self.said_idle.add(by, room);
                }
            }
            Kind::Unknown { .. } => self.said_idle.add(by, room),
            _ => {
                self.authority_ids.insert(id);
                self.fresh.add(by, room);
            }
        }
        self.bytes += room.bytes;
        self.set.insert(id, Box::new(held));
        Ok(())
    }

    fn insert_signatures(&mut self, id: StatementId, envelope: &Envelope) -> Result<(), Applied> {
        let Some(mut held) = self.set.remove(&id) else {
            return Err(Applied::Duplicate);
        };
        let before = held.signers.clone();
        let new = envelope.signatures().iter().map(|s| s.key);
        held.signers.extend(new.filter(|key| !before.contains(key)));
        if held.signers.len() > SIGNATURES_MAX {
            held.signers.sort_by_key(|key| (!self.prefers(&held.statement, key), *key));
            held.signers.truncate(SIGNATURES_MAX);
        }
        held.signers.sort_unstable();
        let changed = held.signers != before;
        let more = Room::of_signatures(held.signers.len().saturating_sub(before.len()));
        let said = held.statement.kind.namespace().is_some();
        if changed && let Err(refusal) = self.check_all(more, said) {
            held.signers = before;
            self.set.insert(id, held);
            return Err(Applied::Refused(refusal));
        }
        self.bytes += more.bytes;
        if changed {
            if let Some(mut kept) = held.envelope.take() {
                kept.merge(envelope, |key| self.prefers(&held.statement, key));
                held.envelope = Some(kept);
            }
            before.iter().for_each(|key| self.summary.remove(&id, key));
            held.signers.iter().for_each(|key| self.summary.insert(&id, key));
        }
        self.set.insert(id, held);
        if !changed {
            return Err(Applied::Duplicate);
        }
        self.recount(&id);
        Ok(())
    }

    /// Which signatures to keep where there are more than may be kept.
    pub(super) fn prefers(&self, statement: &Statement, key: &KeyId) -> bool {
        statement.by == *key
            || matches!(&statement.kind, Kind::Root(root) if root.names(key))
            || self.authority.names(key)
    }

    fn refold(&mut self) {
        let after = Authority::fold(
            &self.set,
            &self.authority_ids,
            &self.chains,
            StatementId(self.config.cluster.0),
            &self.config.chosen_roots,
        );
        let before = std::mem::replace(&mut self.authority, after);
        (self.authority_idle, self.fresh) = (Idle::default(), Idle::default());
        for held in self.authority.idle(&self.set) {
            self.authority_idle.add(held.statement.by, held.room);
        }
        // What is said is much, and one change of authority touches few of its authors.
        let touched = self.said.iter().filter(|(by, _)| self.authority.differs_for(&before, by));
        let mut ids: Vec<StatementId> = touched.flat_map(|(_, ids)| ids.keys().copied()).collect();
        ids.extend(self.authority.voided_differently(&before));
        for id in ids {
            self.recount(&id);
        }
        let roots_differ = !self.authority.root_ids().eq(before.root_ids());
        let scopes = self.authority.policies.changed_from(&before.policies);
        if roots_differ || !scopes.is_empty() {
            self.ladder.touch(roots_differ, &scopes);
        }
    }

    /// Judges one thing that is said of an artifact anew.
    fn recount(&mut self, id: &StatementId) {
        let Some(held) = self.set.get(id) else { return };
        let kind = &held.statement.kind;
        let (by, room) = (held.statement.by, held.room);
        let Some(counted) = self.said.get_mut(&by).and_then(|ids| ids.get_mut(id)) else {
            return;
        };
        let counts = self.authority.said_status(id, held) == Status::Effective;
        if counts == *counted {
            return;
        }
        *counted = counts;
        if counts {
            self.said_idle.remove(&by, room);
            self.ladder.insert(*id, by, kind);
            count(&mut self.tags, &mut self.weighed, *id, by, kind);
        } else {
            self.said_idle.add(by, room);
            if let Kind::Publish(publish) = kind {
                self.tags.remove(*id, by, publish);
            }
            self.weighed.remove(*id, kind);
            self.ladder.remove(*id, by, kind);
        }
    }
}

fn count(tags: &mut Tags, weighed: &mut Weighed, id: StatementId, by: KeyId, kind: &Kind) {
    if let Kind::Publish(publish) = kind {
        tags.insert(id, by, publish);
    }
    weighed.insert(id, kind);
}

/// Whether it grants or takes no authority, and no chain waits for it.
fn is_said(s: &Statement) -> bool {
    s.chain.is_none() && (s.kind.namespace().is_some() || matches!(s.kind, Kind::Unknown { .. }))
}
