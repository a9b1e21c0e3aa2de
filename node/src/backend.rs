//! What the two planes reach behind them: the control plane's view of statements and manifests, the data plane's of layers.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use futures::future::BoxFuture;
use quinn::{RecvStream, SendStream};
use tokio::sync::watch;
use tracing::warn;
use weighlock_cache::{LayerReader, Store};
use weighlock_protocol::statement::{Envelope, Signed, reconcile};
use weighlock_protocol::wire::bao::{GroupSet, all_groups};
use weighlock_protocol::{KeyId, LayerId, ManifestDigest, StatementId};

use crate::audit::Audit;
use crate::facts::{self, Facts};
use crate::fetch::Fetcher;
use crate::loader::Leases;
use crate::net::control::{Acceptance, Backend, IngestReport};
use crate::net::data::{Pass, Possession, refuse_link};
use crate::rollout;
use crate::scrub::Scrubber;

/// Manifests that came by gossip and wait for the statement beside them to be committed.
const OFFERED_MAX: usize = 32;

/// Statements and manifests for the control plane.
pub(crate) struct ControlBackend {
    facts: Facts,
    store: Store,
    audit: Audit,
    leases: Arc<Leases>,
    offered: Mutex<BTreeMap<ManifestDigest, Vec<u8>>>,
}

impl ControlBackend {
    pub(crate) fn new(facts: Facts, store: Store, audit: Audit, leases: Arc<Leases>) -> Self {
        Self { facts, store, audit, leases, offered: Mutex::default() }
    }

    fn offered(&self) -> MutexGuard<'_, BTreeMap<ManifestDigest, Vec<u8>>> {
        self.offered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps those offered manifests that an effective statement publishes by now.
    fn keep_published(&self, from: KeyId) {
        let taken: Vec<(ManifestDigest, Vec<u8>)> = {
            let known = |digest: &ManifestDigest, _: &mut Vec<u8>| self.facts.is_known(digest);
            self.offered().extract_if(.., known).collect()
        };
        for (digest, bytes) in taken {
            if let Err(e) = self.store.put_manifest(&bytes) {
                warn!(%from, %digest, error = %e, "a published manifest is not usable");
            }
        }
    }
}

impl Backend for ControlBackend {
    fn summary(&self) -> Vec<u8> {
        reconcile::summary(&self.facts.ledger()).0
    }

    fn differing(&self, summary: &[u8]) -> Result<Vec<u8>, String> {
        reconcile::differing(&self.facts.ledger(), summary)
    }

    fn ids_in(&self, buckets: &[u8]) -> Vec<StatementId> {
        let ledger = self.facts.ledger();
        buckets.iter().flat_map(|bucket| reconcile::entries(&ledger, *bucket)).collect()
    }

    fn statements(&self, ids: &[StatementId]) -> Vec<Vec<u8>> {
        let full = reconcile::named(&self.facts.ledger(), ids);
        self.facts.envelopes(&full).unwrap_or_else(|e| {
            warn!(error = %e, "statements could not be read for a peer");
            Vec::new()
        })
    }

    fn ingest(&self, from: KeyId, statements: Vec<Vec<u8>>) -> IngestReport {
        let ingested = self.facts.ingest(statements, false);
        self.keep_published(from);
        match ingested {
            Ok(ingested) => {
                let (accepted, refused) = (ingested.accepted.len(), ingested.refused);
                IngestReport { accepted, refused, failed: false }
            }
            Err(e) => {
                // Our own disk; the sender is not to blame.
                warn!(%from, error = %e, "statements could not be committed");
                IngestReport { failed: true, ..IngestReport::default() }
            }
        }
    }

    fn validate_gossip(&self, _from: KeyId, statements: &[Vec<u8>], manifest: Option<&[u8]>) -> Acceptance {
        let (mut named, mut anything_new) = (Vec::new(), false);
        for bytes in statements {
            let Ok(envelope) = Envelope::parse(bytes) else {
                return Acceptance::Reject;
            };
            // Looked at before; signatures cost much more than this.
            let is_known = self.facts.ledger().has_all_of(&envelope);
            let Ok(signed) = Signed::parse(envelope) else {
                return Acceptance::Reject;
            };
            named.extend(facts::brings(&signed.body().kind));
            if is_known {
                continue;
            }
            anything_new = true;
            if self.facts.ledger().check(signed.envelope()).is_err() {
                return Acceptance::Reject;
            }
        }
        match manifest {
            _ if !anything_new => Acceptance::Ignore,
            Some(bytes) if !named.contains(&ManifestDigest::of(bytes)) => Acceptance::Reject,
            _ => Acceptance::Accept,
        }
    }

    fn manifest(&self, digest: &ManifestDigest) -> Option<Arc<[u8]>> {
        // A kept manifest that nobody published is nobody's business.
        if self.facts.is_known(digest) { self.store.manifest(digest).ok().flatten() } else { None }
    }

    /// Comes before the statement that it belongs to, which alone tells whether anyone may publish it: kept in memory
    /// until then, a few of them.
    fn put_manifest(&self, _from: KeyId, bytes: Vec<u8>) {
        let mut offered = self.offered();
        if offered.len() >= OFFERED_MAX {
            offered.pop_first();
        }
        offered.insert(ManifestDigest::of(&bytes), bytes);
    }

    fn audit(&self, _from: KeyId, query: &[u8]) -> Vec<u8> {
        if let Some(artifact) = rollout::question(query) {
            return rollout::answer(&self.facts, &self.store, &self.leases, &artifact);
        }
        self.audit.answer_bytes(query)
    }
}

/// Layers for the data plane.
pub(crate) struct DataBackend {
    pub(crate) store: Store,
    pub(crate) facts: Facts,
    pub(crate) grown: watch::Sender<u64>,
    pub(crate) scrubber: Arc<Scrubber>,
    /// Set once the fetcher stands, which itself needs the data plane.
    pub(crate) fetcher: OnceLock<Fetcher>,
}

impl Possession for DataBackend {
    fn reader(&self, layer: &LayerId) -> Option<LayerReader> {
        self.store.reader(layer).unwrap_or_else(|e| {
            warn!(%layer, error = %e, "a layer cannot be served");
            None
        })
    }

    fn have(&self, layer: &LayerId) -> Option<(u64, GroupSet)> {
        match self.store.layer(layer) {
            Ok(Some(info)) => Some((info.size, all_groups(info.size))),
            _ => self.reader(layer).map(|reader| (reader.size(), reader.have())),
        }
    }

    fn grown(&self) -> watch::Receiver<u64> {
        self.grown.subscribe()
    }

    fn sent(&self, peer: &KeyId, bytes: u64) {
        if let Some(fetcher) = self.fetcher.get() {
            fetcher.count_sent(peer, bytes);
        }
    }

    fn doubted(&self, peer: KeyId, layer: LayerId, at: u64) {
        self.scrubber.doubt(peer, layer, at);
    }

    fn admit(&self, peer: KeyId, layer: LayerId, groups: Range<u64>) -> BoxFuture<'static, Option<Pass>> {
        let fetcher = self.fetcher.get().cloned();
        Box::pin(async move { fetcher?.admit(peer, layer, groups).await })
    }

    fn link(&self, peer: KeyId, manifest: ManifestDigest, send: SendStream, recv: RecvStream) {
        // What nobody published is nobody's business.
        match self.fetcher.get().filter(|_| self.facts.is_known(&manifest)) {
            Some(fetcher) => fetcher.link(peer, manifest, send, recv),
            None => refuse_link(send, recv),
        }
    }
}
