//! Statements and manifests in memory: "ok:" is valid, "bad:" is rubbish, anything else cannot be judged.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use weighlock::net::control::{Acceptance, Backend, IngestReport};
use weighlock_protocol::{KeyId, ManifestDigest, Sha256, StatementId};

/// An in-memory backend.
pub(crate) struct Memory {
    buckets: u16,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    statements: BTreeMap<StatementId, Vec<u8>>,
    manifests: BTreeMap<ManifestDigest, Arc<[u8]>>,
    gossiped: Vec<StatementId>,
}

impl Default for Memory {
    fn default() -> Self {
        Self::with_buckets(256)
    }
}

/// Summary of no statements.
pub(crate) fn empty_summary() -> Vec<u8> {
    Memory::default().summary()
}

impl Memory {
    /// A backend whose ids fall into that many buckets.
    pub(crate) fn with_buckets(buckets: u16) -> Self {
        Self { buckets, state: Mutex::default() }
    }

    pub(crate) fn insert(&self, statement: &[u8]) {
        self.lock().statements.insert(StatementId::of(statement), statement.to_vec());
    }

    pub(crate) fn has(&self, statement: &[u8]) -> bool {
        self.lock().statements.contains_key(&StatementId::of(statement))
    }

    pub(crate) fn ids(&self) -> BTreeSet<StatementId> {
        self.lock().statements.keys().copied().collect()
    }

    /// Statements that came by gossip, in order.
    pub(crate) fn gossiped(&self) -> Vec<StatementId> {
        self.lock().gossiped.clone()
    }

    pub(crate) fn manifests(&self) -> Vec<ManifestDigest> {
        self.lock().manifests.keys().copied().collect()
    }

    pub(crate) fn add_manifest(&self, bytes: &[u8]) -> ManifestDigest {
        let digest = ManifestDigest::of(bytes);
        self.lie_about(digest, bytes);
        digest
    }

    /// Hands out these bytes for that digest.
    pub(crate) fn lie_about(&self, digest: ManifestDigest, bytes: &[u8]) {
        self.lock().manifests.insert(digest, bytes.into());
    }

    fn bucket(&self, id: &StatementId) -> u8 {
        (u16::from(id.0[0]) % self.buckets) as u8
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics while it holds the lock")
    }
}

impl Backend for Memory {
    fn summary(&self) -> Vec<u8> {
        let mut hashes = vec![[0u8; 32]; self.buckets.into()];
        for id in self.lock().statements.keys() {
            let bucket = &mut hashes[usize::from(self.bucket(id))];
            *bucket = Sha256::of(&[bucket.as_slice(), id.as_bytes()].concat()).0;
        }
        hashes.concat()
    }

    fn differing(&self, summary: &[u8]) -> Result<Vec<u8>, String> {
        let own = self.summary();
        if summary.len() != own.len() {
            return Err(format!("a summary of {} bytes", summary.len()));
        }
        let pairs = own.chunks(32).zip(summary.chunks(32)).enumerate();
        Ok(pairs.filter(|(_, (a, b))| a != b).map(|(n, _)| n as u8).collect())
    }

    fn ids_in(&self, buckets: &[u8]) -> Vec<StatementId> {
        self.ids().into_iter().rev().filter(|id| buckets.contains(&self.bucket(id))).collect()
    }

    fn statements(&self, ids: &[StatementId]) -> Vec<Vec<u8>> {
        let state = self.lock();
        ids.iter().filter_map(|id| state.statements.get(id).cloned()).collect()
    }

    fn ingest(&self, _from: KeyId, statements: Vec<Vec<u8>>) -> IngestReport {
        let mut report = IngestReport::default();
        for statement in statements {
            if statement.starts_with(b"ok:") {
                let id = StatementId::of(&statement);
                report.accepted += usize::from(self.lock().statements.insert(id, statement).is_none());
            } else if statement.starts_with(b"bad:") {
                report.refused = Some("a bad statement".into());
            }
        }
        report
    }

    fn validate_gossip(&self, _from: KeyId, statements: &[Vec<u8>], manifest: Option<&[u8]>) -> Acceptance {
        let verdict = |statement: &Vec<u8>| match statement {
            s if s.starts_with(b"bad:") => Acceptance::Reject,
            s if s.starts_with(b"ok:") => Acceptance::Accept,
            _ => Acceptance::Ignore,
        };
        let named = |m: &[u8]| statements.iter().any(|s| s.ends_with(m));
        let statements_ok = statements.iter().map(verdict).max().unwrap_or(Acceptance::Ignore);
        if statements_ok == Acceptance::Accept {
            self.lock().gossiped.extend(statements.iter().map(|s| StatementId::of(s)));
        }
        if manifest.is_none_or(named) { statements_ok } else { Acceptance::Reject }
    }

    fn manifest(&self, digest: &ManifestDigest) -> Option<Arc<[u8]>> {
        self.lock().manifests.get(digest).cloned()
    }

    fn put_manifest(&self, _from: KeyId, bytes: Vec<u8>) {
        self.add_manifest(&bytes);
    }

    fn audit(&self, _from: KeyId, query: &[u8]) -> Vec<u8> {
        query.to_vec()
    }
}
