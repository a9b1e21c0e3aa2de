//! Pushes news to everyone, and judges what others push before it goes any further.

use std::sync::Arc;
use std::time::{Duration, Instant};

use libp2p::PeerId;
use libp2p::gossipsub::{self, MessageAcceptance, MessageId, PublishError};
use weighlock_protocol::wire::control::{
    Blob, GOSSIP_PAYLOAD_BYTES_MAX, Gossip, Heard, MANIFEST_INLINE_BYTES_MAX, STATEMENTS_MAX,
    SignedHostRecord, WireError,
};

use super::backend::{Acceptance, Backend, IngestReport};
use super::driver::{ControlDriver, Done};
use super::handle::Counters;
use super::identity::key_id;
use super::sync::blocking;

/// Bytes that the frame adds to each statement and to a message, at most.
const FRAME_BYTES_MAX: usize = 16;

/// One in so many jobs may be of messages that one peer passed on.
const GOSSIP_JOBS_SHARE: usize = 4;

/// Verdict over a gossip message of statements, after it was committed or refused.
pub(super) struct Judged {
    pub(super) acceptance: Acceptance,
    pub(super) report: IngestReport,
}

impl ControlDriver {
    /// Pushes statements that are committed here. Whom the push misses, reconciliation serves.
    pub(super) fn publish(&mut self, statements: Vec<Vec<u8>>, manifest: Option<Vec<u8>>) {
        let messages = messages(statements, manifest);
        for message in messages {
            self.gossip(&message);
        }
    }

    pub(super) fn gossip_host(&mut self, record: SignedHostRecord) {
        self.gossip(&Gossip::Host(record));
    }

    fn gossip(&mut self, message: &Gossip) {
        let sent = self.swarm.behaviour_mut().gossip.publish(self.topic.clone(), message.encode());
        match sent {
            Ok(_) => {}
            // Peers may be connected that have not named their topics yet.
            Err(PublishError::NoPeersSubscribedToTopic | PublishError::AllQueuesFull(_)) => {
                if matches!(message, Gossip::Statements { .. }) {
                    self.reconcile_soon(None, self.config.limits.sync_fanout_max);
                }
            }
            Err(error) => tracing::warn!(%error, "a gossip message could not be sent"),
        }
    }

    pub(super) fn on_gossip(&mut self, event: gossipsub::Event) {
        match event {
            gossipsub::Event::Message { propagation_source, message_id, message } => {
                Counters::add(&self.counters.gossip_received, 1);
                self.on_message(propagation_source, message_id, message);
            }
            gossipsub::Event::Subscribed { peer_id, .. } => {
                // From now on pushes reach this peer, so a reconciliation that begins now misses nothing.
                // Both sides do it, one after the other: each only knows what it has pushed itself.
                let second = *self.swarm.local_peer_id() > peer_id;
                self.reconcile_at(peer_id, Duration::from_secs(if second { 2 } else { 0 }));
            }
            gossipsub::Event::SlowPeer { peer_id, .. } => {
                tracing::debug!(peer = %peer_id, "peer is slow to take gossip");
            }
            gossipsub::Event::Unsubscribed { .. } | gossipsub::Event::GossipsubNotSupported { .. } => {}
        }
    }

    fn on_message(&mut self, source: PeerId, id: MessageId, message: gossipsub::Message) {
        let author = message.source;
        let known = |peer: &PeerId| self.peers.is_member(peer) && !self.peers.is_banned(peer);
        let (Some(from), true) = (key_id(source), known(&source)) else {
            return self.report(&id, source, Acceptance::Ignore);
        };
        if !author.is_some_and(|a| a == *self.swarm.local_peer_id() || known(&a)) {
            return self.report(&id, source, Acceptance::Ignore);
        }
        match Gossip::decode(&message.data) {
            Ok(Gossip::Host(record)) => self.on_host_gossip(source, &id, record),
            Ok(Gossip::Statements { statements, manifest }) => {
                let of_peer = self.gossiping.entry(source).or_default();
                let most = self.config.limits.jobs_max;
                if self.jobs >= most || *of_peer >= most.div_ceil(GOSSIP_JOBS_SHARE) {
                    self.reconcile_soon(Some(source), 0);
                    return self.report(&id, source, Acceptance::Ignore);
                }
                *of_peer += 1;
                self.jobs += 1;
                let backend = Arc::clone(&self.backend);
                let statements: Vec<Vec<u8>> = statements.into_iter().map(|s| s.0).collect();
                self.tasks.spawn(async move {
                    let judge = move || judge(backend.as_ref(), from, statements, manifest.map(|m| m.0));
                    Done::Gossiped { peer: source, id, judged: blocking(judge).await.ok() }
                });
            }
            Err(WireError::Version(_)) => self.report(&id, source, Acceptance::Ignore),
            Err(error) => {
                self.report(&id, source, Acceptance::Reject);
                self.offend(source, error.to_string());
            }
        }
    }

    fn on_host_gossip(&mut self, source: PeerId, id: &MessageId, record: SignedHostRecord) {
        let newer = self.hear(source, Heard { record, age_ms: 0 }, Instant::now());
        let acceptance = match newer {
            Some(true) => Acceptance::Accept,
            Some(false) => Acceptance::Ignore,
            None => Acceptance::Reject,
        };
        self.report(id, source, acceptance);
    }

    /// The backend has judged, and committed what it accepted.
    pub(super) fn on_gossiped(&mut self, peer: PeerId, id: &MessageId, judged: Option<Judged>) {
        if let Some(of_peer) = self.gossiping.get_mut(&peer) {
            *of_peer = of_peer.saturating_sub(1);
        }
        self.gossiping.retain(|_, jobs| *jobs > 0);
        let Some(judged) = judged else {
            return self.report(id, peer, Acceptance::Ignore);
        };
        self.report(id, peer, judged.acceptance);
        self.ingested(peer, judged.report.accepted);
        if judged.acceptance == Acceptance::Reject {
            let reason = judged.report.refused.unwrap_or_else(|| "gossip that cannot be valid".into());
            self.offend(peer, reason);
        }
    }

    fn report(&mut self, id: &MessageId, source: PeerId, acceptance: Acceptance) {
        let acceptance = match acceptance {
            Acceptance::Accept => MessageAcceptance::Accept,
            Acceptance::Ignore => MessageAcceptance::Ignore,
            Acceptance::Reject => MessageAcceptance::Reject,
        };
        if !matches!(acceptance, MessageAcceptance::Accept) {
            Counters::add(&self.counters.gossip_ignored, 1);
        }
        self.swarm.behaviour_mut().gossip.report_message_validation_result(id, &source, acceptance);
    }
}

fn judge(
    backend: &dyn Backend,
    from: weighlock_protocol::KeyId,
    statements: Vec<Vec<u8>>,
    manifest: Option<Vec<u8>>,
) -> Judged {
    let acceptance = backend.validate_gossip(from, &statements, manifest.as_deref());
    if acceptance != Acceptance::Accept {
        return Judged { acceptance, report: IngestReport::default() };
    }
    // The manifest first: when a statement is announced, what it names should be there.
    if let Some(manifest) = manifest {
        backend.put_manifest(from, manifest);
    }
    let report = backend.ingest(from, statements);
    let acceptance = match &report {
        IngestReport { refused: Some(_), .. } => Acceptance::Reject,
        // Neither what is not stored nor what was known before is passed on: whoever says it over and over keeps only its
        // neighbours busy.
        IngestReport { failed: true, .. } | IngestReport { accepted: 0, .. } => Acceptance::Ignore,
        IngestReport { .. } => Acceptance::Accept,
    };
    Judged { acceptance, report }
}

/// Splits statements over as many messages as they need. The manifest goes along if everything fits into
/// one message, since a receiver takes it only beside the statement that names it.
fn messages(statements: Vec<Vec<u8>>, manifest: Option<Vec<u8>>) -> Vec<Gossip> {
    let mut batches: Vec<(usize, Vec<Blob>)> = Vec::new();
    for statement in statements {
        let bytes = statement.len() + FRAME_BYTES_MAX;
        match batches.last_mut() {
            Some((total, batch))
                if *total + bytes <= GOSSIP_PAYLOAD_BYTES_MAX && batch.len() < STATEMENTS_MAX =>
            {
                *total += bytes;
                batch.push(Blob(statement));
            }
            _ => batches.push((bytes + FRAME_BYTES_MAX, vec![Blob(statement)])),
        }
    }
    let one = batches.len() == 1;
    let mut manifest = manifest.filter(|m| one && m.len() <= MANIFEST_INLINE_BYTES_MAX);
    batches
        .into_iter()
        .map(|(total, statements)| {
            let room = GOSSIP_PAYLOAD_BYTES_MAX.saturating_sub(total + FRAME_BYTES_MAX);
            let manifest = manifest.take().filter(|m| m.len() <= room).map(Blob);
            Gossip::Statements { statements, manifest }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use weighlock_protocol::wire::control::STATEMENT_BYTES_MAX;
    use weighlock_protocol::{KeyId, ManifestDigest, StatementId};

    use super::*;

    #[test]
    fn batches_fit_and_keep_order_and_the_manifest_stays_with_its_statement() {
        let sizes = |messages: &[Gossip]| -> Vec<(usize, bool)> {
            let size = |m: &Gossip| {
                assert!(m.encode().len() <= GOSSIP_PAYLOAD_BYTES_MAX);
                match Gossip::decode(&m.encode()).expect("it decodes") {
                    Gossip::Statements { statements, manifest } => (statements.len(), manifest.is_some()),
                    Gossip::Host(_) => panic!("no host record was sent"),
                }
            };
            messages.iter().map(size).collect()
        };
        assert_eq!(sizes(&messages(vec![vec![1; 300]; 3], Some(vec![2; 1000]))), [(3, true)]);
        let large = vec![vec![1; STATEMENT_BYTES_MAX]; 3];
        assert_eq!(sizes(&messages(large.clone(), Some(vec![2; 10]))), [(1, false), (1, false), (1, false)]);
        let full = vec![2; MANIFEST_INLINE_BYTES_MAX];
        assert_eq!(sizes(&messages(vec![vec![1; 1000]], Some(full.clone()))), [(1, true)]);
        assert_eq!(sizes(&messages(large[..1].to_vec(), Some(full))), [(1, false)], "together too large");
        assert_eq!(sizes(&messages(vec![vec![1]; STATEMENTS_MAX + 1], None)), [(1024, false), (1, false)]);
        assert!(messages(vec![], Some(vec![1])).is_empty());
    }
    /// Takes everything for valid, keeps what its disk has room for, and knows what is empty.
    struct Disk {
        is_full: bool,
    }

    impl Backend for Disk {
        fn summary(&self) -> Vec<u8> {
            Vec::new()
        }

        fn differing(&self, _summary: &[u8]) -> Result<Vec<u8>, String> {
            Ok(Vec::new())
        }

        fn ids_in(&self, _buckets: &[u8]) -> Vec<StatementId> {
            Vec::new()
        }

        fn statements(&self, _ids: &[StatementId]) -> Vec<Vec<u8>> {
            Vec::new()
        }

        fn ingest(&self, _from: KeyId, statements: Vec<Vec<u8>>) -> IngestReport {
            let accepted = if self.is_full { 0 } else { statements.iter().filter(|s| !s.is_empty()).count() };
            IngestReport { accepted, refused: None, failed: self.is_full }
        }

        fn validate_gossip(&self, _: KeyId, _: &[Vec<u8>], _: Option<&[u8]>) -> Acceptance {
            Acceptance::Accept
        }

        fn manifest(&self, _digest: &ManifestDigest) -> Option<Arc<[u8]>> {
            None
        }

        fn put_manifest(&self, _from: KeyId, _bytes: Vec<u8>) {}

        fn audit(&self, _from: KeyId, _query: &[u8]) -> Vec<u8> {
            Vec::new()
        }
    }

    #[test]
    fn what_is_not_committed_here_is_not_passed_on() {
        let judged = |is_full, said| judge(&Disk { is_full }, KeyId([1; 32]), vec![said], None).acceptance;
        assert_eq!(judged(false, vec![1]), Acceptance::Accept);
        assert_eq!(judged(true, vec![1]), Acceptance::Ignore, "nobody is at fault");
        assert_eq!(judged(false, vec![]), Acceptance::Ignore, "nothing new");
    }
}
