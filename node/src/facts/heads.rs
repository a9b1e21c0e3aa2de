//! Heads on disk: each is committed with the statement that moves it, and no door sees it before.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tracing::{error, info};
use weighlock_cache::{Commit, HeadChange, Staged};
use weighlock_protocol::statement::{
    Applied, Channel, Checked, Envelope, Head, Keypair, Kind, Ledger, LedgerConfig, Statement, Vote,
};
use weighlock_protocol::{Artifact, ManifestDigest, StatementId};

use super::{Facts, Rows};
use crate::cluster::now;
use crate::error::{Error, Result};

/// A head as it stands in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct HeadRow {
    channel: Channel,
    statement: StatementId,
    manifest: ManifestDigest,
    epoch: u64,
}

/// Heads by artifact and their channel's text.
pub(super) type Heads = BTreeMap<Artifact, BTreeMap<String, HeadRow>>;

/// Whether a statement may move a head.
pub(super) fn moves(statement: &Statement) -> bool {
    // Whatever stands in a chain may be what a revocation or a policy waits for.
    statement.chain.is_some()
        || matches!(statement.kind, Kind::Verdict(_))
        || statement.kind.channel().is_some()
}

impl Facts {
    /// Folds statements that may move heads and commits them with the heads that they moved. The ledger is locked
    /// until that is done, so nobody acts on a head that is not on disk.
    pub(super) fn move_heads(
        &self,
        ids: &[StatementId],
        checked: Vec<Checked>,
        rows: &mut Rows,
        staged: Option<Staged>,
    ) -> Result<Vec<Applied>> {
        let mut ledger = self.inner.ledger.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let applied = ledger.apply_all(checked);
        let refused = |id: &StatementId| {
            ids.iter()
                .zip(&applied)
                .any(|(other, applied)| other == id && matches!(applied, Applied::Refused(_)))
        };
        rows.retain(|(id, _)| !refused(id));
        let mut known = self.inner.heads.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let moved = ledger.take_moved();
        let changed = changed_heads(&ledger, moved, &known);
        let heads = changed.iter().map(stored).collect::<Result<Vec<HeadChange>>>();
        let commit = |heads| Commit { staged, manifests: Vec::new(), statements: rows.clone(), heads };
        if let Err(e) = heads.and_then(|heads| self.inner.store.commit(commit(heads)).map_err(Error::from)) {
            // What is not on disk must not be in the ledger either.
            match load(&self.inner.store, &ledger) {
                Ok(fresh) => *ledger = fresh,
                Err(again) => {
                    error!(error = %again, "the statements cannot be read again; restart the daemon")
                }
            }
            return Err(e);
        }
        keep(&mut known, changed);
        Ok(applied)
    }

    /// Reads the heads that were committed, and writes those that an older release did not.
    pub(super) fn load_heads(&self) -> Result<()> {
        let mut known = Heads::new();
        for (channel, bytes) in self.inner.store.heads().map_err(Error::from)? {
            match serde_json::from_slice(&bytes) {
                Ok(row) => {
                    let row: HeadRow = row;
                    known.entry(row.channel.artifact.clone()).or_default().insert(channel, row);
                }
                Err(e) => error!(channel, error = %e, "left out a stored head"),
            }
        }
        let changed = {
            let ledger = self.ledger();
            let artifacts: BTreeSet<Artifact> = ledger.promoted_artifacts().cloned().collect();
            changed_heads(&ledger, artifacts, &known)
        };
        if !changed.is_empty() {
            let heads = changed.iter().map(stored).collect::<Result<Vec<HeadChange>>>()?;
            self.inner.store.commit(Commit { heads, ..Commit::default() }).map_err(Error::from)?;
            keep(&mut known, changed);
        }
        *self.inner.heads.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = known;
        Ok(())
    }

    /// Channels whose head was made by a statement that this host no longer has: its store was damaged or is an older
    /// copy. They stay shut until other hosts have sent it again.
    pub fn behind(&self, artifact: &Artifact) -> Option<Channel> {
        // In the order of `move_heads`, which has the ledger first.
        let ledger = self.ledger();
        let known = self.inner.heads.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut rows = known.get(artifact)?.values();
        rows.find(|row| !ledger.contains(&row.statement)).map(|row| row.channel.clone())
    }

    /// Cosigns what waits for this host as a witness, each durably before it is told to anybody. Blocks on the disk.
    ///
    /// # Errors
    /// The store failed.
    pub fn cosign_pending(&self) -> Result<usize> {
        let writer = self.writer();
        let mut cosigned = 0;
        let pending = self.ledger().pending_promotions();
        for promotion in pending {
            let vote = self.ledger().vote(&self.host(), &promotion, now());
            let said = match vote {
                Vote::Cosign(said) => said,
                Vote::Withheld(holds) if !holds.is_empty() => {
                    let why: Vec<String> = holds.iter().map(ToString::to_string).collect();
                    tracing::debug!(promotion = %promotion.short(), why = why.join("; "), "does not cosign");
                    continue;
                }
                _ => continue,
            };
            let channel = said.channel.to_string();
            let envelope = self.own(Kind::Cosign(said));
            self.ingest_locked(&writer, vec![envelope.to_json()], true)?;
            info!(promotion = %promotion.short(), channel, "cosigned");
            cosigned += 1;
        }
        Ok(cosigned)
    }

    /// Something that this host says with its own key, in no chain.
    fn own(&self, kind: Kind) -> Envelope {
        let host: &Keypair = &self.inner.host;
        let cluster = Some(self.ledger().cluster());
        Statement { cluster, by: host.key_id(), time: now(), chain: None, kind }.sign(&[host])
    }
}

/// All statements of the store, folded.
pub(super) fn load(store: &weighlock_cache::Store, like: &Ledger) -> Result<Ledger> {
    let mut ledger = Ledger::new(LedgerConfig::new(like.cluster()));
    super::load::fill(store, &mut ledger)?;
    ledger.take_moved();
    Ok(ledger)
}

/// What is other than known of the artifacts that were folded anew.
fn changed_heads(
    ledger: &Ledger,
    artifacts: BTreeSet<Artifact>,
    known: &Heads,
) -> Vec<(String, Option<HeadRow>)> {
    let mut changed = Vec::new();
    for artifact in artifacts {
        let row = |head: Head| {
            let Head { channel, statement, manifest, epoch, .. } = head;
            (channel.to_string(), HeadRow { channel, statement, manifest, epoch })
        };
        let now: BTreeMap<String, HeadRow> = ledger.heads_of(&artifact).map(row).collect();
        let none = BTreeMap::new();
        let before = known.get(&artifact).unwrap_or(&none);
        for (channel, row) in before {
            // A statement that is lost takes no head back: it will be sent again.
            if !now.contains_key(channel) && ledger.contains(&row.statement) {
                changed.push((channel.clone(), None));
            }
        }
        for (channel, row) in now {
            let before = before.get(&channel);
            let lost =
                before.is_some_and(|before| before.epoch > row.epoch && !ledger.contains(&before.statement));
            if before != Some(&row) && !lost {
                changed.push((channel, Some(row)));
            }
        }
    }
    changed
}

fn stored((channel, head): &(String, Option<HeadRow>)) -> Result<HeadChange> {
    let head = head.as_ref().map(serde_json::to_vec).transpose().map_err(Error::internal)?;
    Ok((channel.clone(), head))
}

fn keep(known: &mut Heads, changed: Vec<(String, Option<HeadRow>)>) {
    for (channel, head) in changed {
        match head {
            Some(head) => {
                info!(channel, digest = %head.manifest, statement = %head.statement.short(), "new head");
                known.entry(head.channel.artifact.clone()).or_default().insert(channel, head);
            }
            None => {
                info!(channel, "no head any more");
                known.values_mut().for_each(|of| drop(of.remove(&channel)));
            }
        }
    }
}
