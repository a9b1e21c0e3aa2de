//! The one owner of the statement set: checks, commits, then applies, then tells the change feed.
//!
//! **Architecture invariant:** a statement is in the store before anybody sees it in the ledger, and in the ledger
//! before it is announced. Readers see the ledger through a lock that no disk access happens under, but for the commit
//! of what moves a head: that stands in one transaction with the head that it moves.

mod heads;
mod load;
mod open;
mod resolve;

pub(crate) use open::EvaluatorAsks;
pub use open::{Admitted, Basis, Purpose};

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard};

use tokio::sync::{broadcast, watch};
use tracing::{info, warn};
use weighlock_cache::{Commit, Staged, Store};
use weighlock_protocol::manifest::Manifest;
use weighlock_protocol::statement::{
    Applied, Checked, Envelope, Keypair, Kind, Ledger, LedgerConfig, Publish, Resolution, Role, Statement,
    Status,
};
use weighlock_protocol::wire::join::{JoinAnswer, JoinRequest};
use weighlock_protocol::{Artifact, ClusterId, KeyId, ManifestDigest, Reference, StatementId};

use crate::cluster::now;
use crate::error::{Error, Result};

/// Changes that a slow listener may fall behind before it loses the oldest; it reconciles then.
const CHANGES_MAX: usize = 1024;

/// Statements with their bytes.
type Rows = Vec<(StatementId, Vec<u8>)>;

/// A committed statement, as the change feed tells it.
#[derive(Debug, Clone)]
pub struct Committed {
    /// Its id.
    pub id: StatementId,
    /// Its envelope, DSSE JSON.
    pub bytes: Arc<[u8]>,
    /// The manifest that it publishes, or that holds the report that it speaks of.
    pub manifest: Option<ManifestDigest>,
    /// Whether this host said it or heard it from a local command, so that it is for this host to spread.
    pub ours: bool,
    /// Whether it may have moved a head.
    pub moves: bool,
}

/// What became of a batch.
#[derive(Debug, Default)]
pub struct Ingested {
    /// New ones, with what they do.
    pub accepted: Vec<(StatementId, Applied)>,
    /// Rubbish that no honest host would have sent.
    pub refused: Option<String>,
}

/// Statements of this host's cluster. Cheap to clone.
#[derive(Clone)]
pub struct Facts {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    host: Keypair,
    ledger: RwLock<Ledger>,
    /// As they are on disk.
    heads: Mutex<heads::Heads>,
    /// This host's hardware key.
    hardware: OnceLock<String>,
    /// Held from check to announcement, so that commits and applications happen in one order.
    writer: Mutex<()>,
    members: watch::Sender<Arc<BTreeSet<KeyId>>>,
    changes: broadcast::Sender<Committed>,
    /// Counts what this host was told to follow.
    nudges: watch::Sender<u64>,
}

impl Facts {
    /// Loads all statements of the store.
    ///
    /// # Errors
    /// The store cannot be read. A stored statement that does not parse is reported and left out.
    pub fn open(store: Store, host: Keypair, cluster: ClusterId) -> Result<Self> {
        let mut ledger = Ledger::new(LedgerConfig::new(cluster));
        load::fill(&store, &mut ledger)?;
        ledger.take_moved();
        let facts = Self {
            inner: Arc::new(Inner {
                store,
                host,
                ledger: RwLock::new(ledger),
                heads: Mutex::default(),
                hardware: OnceLock::new(),
                writer: Mutex::new(()),
                members: watch::Sender::new(Arc::default()),
                changes: broadcast::Sender::new(CHANGES_MAX),
                nudges: watch::Sender::new(0),
            }),
        };
        facts.load_heads()?;
        facts.refresh_members();
        Ok(facts)
    }

    /// This host's key.
    pub fn host(&self) -> KeyId {
        self.inner.host.key_id()
    }

    /// The ledger, for reading. Keep the guard short and never across an await.
    pub fn ledger(&self) -> RwLockReadGuard<'_, Ledger> {
        self.inner.ledger.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Admitted hosts other than this one, now and as they change.
    pub fn members(&self) -> watch::Receiver<Arc<BTreeSet<KeyId>>> {
        self.inner.members.subscribe()
    }

    /// Committed statements from now on.
    pub fn changes(&self) -> broadcast::Receiver<Committed> {
        self.inner.changes.subscribe()
    }

    /// Takes envelopes (DSSE JSON) from a peer or a local command. Blocks on the disk. `ours` marks what this host is
    /// to spread.
    pub fn ingest(&self, all: Vec<Vec<u8>>, ours: bool) -> Result<Ingested> {
        let writer = self.writer();
        self.ingest_locked(&writer, all, ours)
    }

    fn ingest_locked(&self, writer: &MutexGuard<'_, ()>, all: Vec<Vec<u8>>, ours: bool) -> Result<Ingested> {
        let mut refused = None;
        let mut fresh: BTreeMap<StatementId, Checked> = BTreeMap::new();
        let mut rows = Vec::new();
        for bytes in all {
            let checked = match Envelope::parse(&bytes) {
                Ok(envelope) if self.ledger().has_all_of(&envelope) => continue,
                Ok(envelope) => self.ledger().check(&envelope).map_err(|e| e.to_string()),
                Err(e) => Err(e.to_string()),
            };
            let checked = match checked {
                Ok(checked) => checked,
                Err(e) => {
                    refused.get_or_insert(e);
                    continue;
                }
            };
            let id = checked.id();
            if fresh.contains_key(&id) {
                // Once more in one batch: further signatures come with the next reconciliation.
                continue;
            }
            if let Some(stored) = self.stored(&id)? {
                // Known; it may carry further signatures, as a root does while admins sign it one by one.
                let mut merged = stored.clone();
                if !self.ledger().merge(&mut merged, checked.envelope()) {
                    continue;
                }
                rows.push((id, merged.to_json()));
            } else {
                rows.push((id, checked.envelope().to_json()));
            }
            fresh.insert(id, checked);
        }
        let accepted = self.commit_and_apply(writer, fresh, rows, ours, None)?;
        Ok(Ingested { accepted, refused })
    }

    /// Takes a statement from a local command. Unlike one from a peer it is refused when its place in its author's
    /// chain is taken: two commands at once would else accuse their own key of equivocation.
    ///
    /// # Errors
    /// Its place is taken, the form is wrong, or the store failed.
    pub fn submit(&self, envelope: &Envelope) -> Result<Ingested> {
        let writer = self.writer();
        {
            let ledger = self.ledger();
            let checked = ledger.check(envelope).map_err(|e| Error::refused(e.to_string()))?;
            let statement = checked.statement();
            if let Some(chain) = statement.chain
                && !ledger.contains(&checked.id())
                && chain != ledger.next_chain(&statement.by)
            {
                return Err(
                    Error::refused("another command signed with this key in between").hint("try again")
                );
            }
        }
        self.ingest_locked(&writer, vec![envelope.to_json()], true)
    }

    /// Publishes an imported artifact: layers, manifest and the signed statement in one transaction.
    ///
    /// # Errors
    /// This host may not publish there, or the tag means something else already.
    pub fn publish(&self, reference: &Reference, staged: Staged) -> Result<(StatementId, bool)> {
        let tag = reference.require_tag()?.clone();
        let digest = staged.manifest().digest();
        let writer = self.writer();
        let known = self.may_publish(reference, Some(digest))?;
        if let Some(id) = known {
            // The same again: only the bytes may have been dropped here since.
            self.inner.store.commit(whole(staged, &[])).map_err(Error::from)?;
            return Ok((id, false));
        }
        let statement = Statement {
            cluster: Some(self.ledger().cluster()),
            by: self.host(),
            time: now(),
            chain: None,
            kind: Kind::Publish(Publish {
                artifact: reference.artifact.clone(),
                tag,
                manifest: digest,
                total_bytes: staged.manifest().total_bytes(),
            }),
        };
        let envelope = statement.sign(&[&self.inner.host]);
        let checked = self.ledger().check(&envelope).map_err(Error::internal)?;
        let id = checked.id();
        let rows = vec![(id, envelope.to_json())];
        let fresh = BTreeMap::from([(id, checked)]);
        self.commit_and_apply(&writer, fresh, rows, true, Some(staged))?;
        Ok((id, true))
    }

    /// Keeps a report with its samples, for the evaluation that will speak of it.
    ///
    /// # Errors
    /// The store failed.
    pub fn keep_evidence(&self, staged: Staged) -> Result<()> {
        let _writer = self.writer();
        self.inner.store.commit(whole(staged, &[])).map_err(Error::from)
    }

    /// Whether a statement that counts speaks of this manifest: others are nobody's business.
    pub fn is_known(&self, digest: &ManifestDigest) -> bool {
        let ledger = self.ledger();
        ledger.publishes_of(digest).next().is_some() || ledger.is_evidence(digest)
    }

    /// Whether this host may publish `reference`, asked before hours of hashing. Answers the statement that already
    /// says exactly this, if `digest` is given and there is one.
    ///
    /// # Errors
    /// Why not.
    pub fn may_publish(
        &self,
        reference: &Reference,
        digest: Option<ManifestDigest>,
    ) -> Result<Option<StatementId>> {
        let tag = reference.require_tag()?;
        let ledger = self.ledger();
        ledger
            .may_publish(&self.host(), &reference.artifact, now())
            .map_err(|e| Error::refused(e.to_string()))?;
        if let Some(digest) = digest {
            open::has_verdict(&ledger, &reference.artifact, &digest)?;
        }
        match (ledger.resolve_tag(&reference.artifact, tag), digest) {
            (Resolution::Unknown, _) | (Resolution::Resolved(_) | Resolution::Unproven(_), None) => Ok(None),
            (Resolution::Resolved(there) | Resolution::Unproven(there), Some(digest)) if there == digest => {
                let same = |p: &weighlock_protocol::statement::Published| {
                    p.publish.artifact == reference.artifact && p.publish.tag == *tag
                };
                Ok(ledger.publishes_of(&digest).find(same).map(|published| published.id))
            }
            (Resolution::Resolved(there) | Resolution::Unproven(there), Some(_)) => Err(Error::refused(
                format!("{reference} is immutable and means {there}, from which these files differ"),
            )
            .hint("add it under a new tag")),
            (Resolution::Conflict { .. }, _) => Err(resolve::conflict(reference)),
        }
    }

    /// A stranger with a ticket asks to be admitted. `key` is what its connection proved.
    pub fn join(&self, key: KeyId, request: &[u8]) -> JoinAnswer {
        match self.try_join(key, request) {
            Ok(statements) => JoinAnswer::Welcome { statements, hosts: Vec::new() },
            Err(reason) => {
                info!(host = %key, reason, "refused a host that wants to join");
                JoinAnswer::Refused { reason }
            }
        }
    }

    fn try_join(&self, key: KeyId, request: &[u8]) -> std::result::Result<Vec<Envelope>, String> {
        let request = JoinRequest::parse(request).map_err(|e| e.to_string())?;
        // Cheap checks first: whoever connects may ask, and the rest costs in proportion to the cluster.
        let now = now();
        {
            let ledger = self.ledger();
            let admins =
                ledger.root(now).and_then(|root| root.root.roles.get(&Role::Admin)).map(|role| &role.keys);
            let mut invited = false;
            for envelope in &request.statements {
                let checked = ledger.check(envelope).map_err(|e| e.to_string())?;
                let statement = checked.statement();
                invited |= matches!(&statement.kind, Kind::Invite(_))
                    && admins.is_some_and(|admins| admins.contains(&statement.by));
            }
            if !invited {
                return Err("the ticket's invite is not by an admin of this cluster".to_owned());
            }
        }
        // Judged in a scratch ledger that knows what this host knows of authority: a stranger's statements reach
        // the store only when they prove an admission.
        let mut scratch = Ledger::new(LedgerConfig::new(self.ledger().cluster()));
        let authority: Vec<Envelope> = {
            let ledger = self.ledger();
            ledger.statements().filter_map(|id| ledger.envelope(&id).cloned()).collect()
        };
        let ours =
            authority.iter().filter_map(|envelope| scratch.check_stored(envelope).ok()).collect::<Vec<_>>();
        scratch.apply_all(ours);
        // The admission is asked about before it is applied: the fold orders those of one ticket by their dates, so a
        // dated-back one would take the place of a host that was let in before.
        let mut admission = None;
        for envelope in &request.statements {
            let checked = scratch.check(envelope).map_err(|e| e.to_string())?;
            if matches!(&checked.statement().kind, Kind::Admit(admit) if admit.host == key) {
                admission = Some(checked);
            } else if !matches!(&checked.statement().kind, Kind::Admit(_)) {
                scratch.apply(checked);
            }
        }
        let admission = admission.ok_or("the request holds no admission of the host that sends it")?;
        scratch.may_join(&admission, now).map_err(|e| e.to_string())?;
        scratch.apply(admission.clone());
        if !scratch.is_member(&key, now) {
            return Err(match scratch.status(&admission.id()) {
                Some(Status::Pending(why)) | Some(Status::Ignored(why)) => {
                    format!("the admission has no effect: {why}")
                }
                _ => "the admission has expired or was revoked".to_owned(),
            });
        }
        let effective = |envelope: &&Envelope| scratch.status(&envelope.id()) == Some(Status::Effective);
        let new = request.statements.iter().filter(effective).map(Envelope::to_json).collect();
        self.ingest(new, true).map_err(|e| e.to_string())?;
        info!(host = %key, "admitted a host by its ticket");
        let ledger = self.ledger();
        Ok(ledger.statements().filter_map(|id| ledger.envelope(&id).cloned()).collect())
    }

    /// Recomputes who is admitted; time passes even when no statement comes.
    pub fn refresh_members(&self) {
        let own = self.host();
        let members: BTreeSet<KeyId> =
            self.ledger().members(now()).map(|m| m.key).filter(|key| *key != own).collect();
        self.inner.members.send_if_modified(|current| {
            let changed = **current != members;
            if changed {
                *current = Arc::new(members);
            }
            changed
        });
    }

    /// Envelopes (DSSE JSON) of these statements, those that are not here left out.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn envelopes(&self, ids: &[StatementId]) -> Result<Vec<Vec<u8>>> {
        let read = |id| self.inner.store.statement(id).map_err(Error::from);
        Ok(ids.iter().map(read).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    fn stored(&self, id: &StatementId) -> Result<Option<Envelope>> {
        if !self.ledger().contains(id) {
            return Ok(None);
        }
        let bytes = self.inner.store.statement(id).map_err(Error::from)?;
        bytes.map(|bytes| Envelope::parse(&bytes).map_err(Error::internal)).transpose()
    }

    fn commit_and_apply(
        &self,
        _writer: &MutexGuard<'_, ()>,
        fresh: BTreeMap<StatementId, Checked>,
        mut rows: Rows,
        ours: bool,
        staged: Option<Staged>,
    ) -> Result<Vec<(StatementId, Applied)>> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let manifests: BTreeMap<StatementId, ManifestDigest> = fresh
            .iter()
            .filter_map(|(id, checked)| Some((*id, brings(&checked.statement().kind)?)))
            .collect();
        let may_move = fresh.values().any(|checked| heads::moves(checked.statement()));
        let (ids, checked): (Vec<_>, Vec<_>) = fresh.into_iter().unzip();
        let applied = if may_move {
            self.move_heads(&ids, checked, &mut rows, staged)?
        } else {
            let commit = Commit { staged, statements: rows.clone(), ..Commit::default() };
            self.inner.store.commit(commit).map_err(Error::from)?;
            self.inner.ledger.write().unwrap_or_else(PoisonError::into_inner).apply_all(checked)
        };
        let mut accepted = Vec::new();
        let mut over_limit = Vec::new();
        for (id, outcome) in ids.into_iter().zip(applied) {
            match outcome {
                Applied::Duplicate => {}
                Applied::Refused(refusal) => {
                    warn!(statement = %id.short(), %refusal, "statement not kept");
                    over_limit.push(id);
                }
                outcome => accepted.push((id, outcome)),
            }
        }
        self.inner.store.remove_statements(&over_limit)?;
        self.refresh_members();
        for (id, bytes) in rows {
            if accepted.iter().any(|(accepted, _)| *accepted == id) {
                let manifest = manifests.get(&id).copied();
                // Nobody listening is no error: a command may run without a daemon.
                let _ = self.inner.changes.send(Committed {
                    id,
                    bytes: bytes.into(),
                    manifest,
                    ours,
                    moves: may_move,
                });
            }
        }
        Ok(accepted)
    }

    fn writer(&self) -> MutexGuard<'_, ()> {
        self.inner.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The manifest that goes with a statement.
pub fn brings(kind: &Kind) -> Option<ManifestDigest> {
    match kind {
        Kind::Publish(publish) => Some(publish.manifest),
        Kind::Evaluate(said) => Some(said.findings.evidence),
        _ => None,
    }
}

fn whole(staged: Staged, statements: &[(StatementId, Vec<u8>)]) -> Commit {
    Commit { staged: Some(staged), statements: statements.to_vec(), ..Commit::default() }
}

/// Manifests that are published, with the artifact's size as the publisher states it.
pub fn published(ledger: &Ledger) -> Vec<(Artifact, weighlock_protocol::Tag, Resolution)> {
    let mut all = Vec::new();
    for artifact in ledger.artifacts() {
        all.extend(
            ledger.tags(artifact).map(|(tag, resolution)| (artifact.clone(), tag.clone(), resolution)),
        );
    }
    all
}

/// Reads a stored manifest.
///
/// # Errors
/// The store cannot be read, or is damaged.
pub fn manifest(store: &Store, digest: &ManifestDigest) -> Result<Option<Manifest>> {
    let Some(bytes) = store.manifest(digest).map_err(Error::from)? else {
        return Ok(None);
    };
    stored_manifest(digest, &bytes).map(Some)
}

/// The manifest that the store holds as `bytes`.
///
/// # Errors
/// They do not parse.
pub(crate) fn stored_manifest(digest: &ManifestDigest, bytes: &[u8]) -> Result<Manifest> {
    Manifest::parse(bytes).map_err(|e| Error::integrity(format!("stored manifest {digest}: {e}")))
}
