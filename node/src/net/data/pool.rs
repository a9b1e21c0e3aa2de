//! Open data connections by peer: one dial at a time per peer, dead ones dropped.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use quinn::{Connection, VarInt};
use tokio::sync::Semaphore;
use weighlock_protocol::KeyId;

use super::GetError;

/// Both directions share a connection, whoever opened it. When two hosts dial each other at once both connections
/// live; the newest is used for new requests.
pub(super) struct Pool {
    peers: Mutex<BTreeMap<KeyId, Slot>>,
    limits: PeerLimits,
}

/// How much of what all share one peer has at once, however many connections it has.
#[derive(Debug, Clone, Copy)]
pub(super) struct PeerLimits {
    /// Answers that are being sent.
    pub(super) uploads_max: usize,
    /// Long requests that are being read.
    pub(super) long_requests_max: usize,
}

/// What all connections of one peer take leave from.
pub(super) struct Part {
    /// Leave to send.
    pub(super) uploads: Semaphore,
    /// Leave to read a long request.
    pub(super) long_requests: Semaphore,
}

struct Slot {
    connections: Vec<Connection>,
    /// Held by whoever dials; when the last dial failed, and why.
    dialing: Arc<tokio::sync::Mutex<Option<(Instant, String)>>>,
    part: Arc<Part>,
}

impl Slot {
    fn new(limits: PeerLimits) -> Self {
        let part = Part {
            uploads: Semaphore::new(limits.uploads_max),
            long_requests: Semaphore::new(limits.long_requests_max),
        };
        Self { connections: Vec::new(), dialing: Arc::default(), part: Arc::new(part) }
    }

    /// Nobody dials, is served, or waits to be.
    fn is_idle(&self) -> bool {
        self.connections.is_empty()
            && Arc::strong_count(&self.dialing) == 1
            && Arc::strong_count(&self.part) == 1
    }
}

impl Pool {
    /// No connections yet.
    pub(super) fn new(limits: PeerLimits) -> Self {
        Self { peers: Mutex::default(), limits }
    }

    /// An open connection to `peer`, or the one that `connect` makes and adds. Callers for one peer wait for one dial, and
    /// share its failure.
    pub(super) async fn get_or_connect<F, C>(&self, peer: KeyId, connect: C) -> Result<Connection, GetError>
    where
        C: FnOnce() -> F,
        F: Future<Output = Result<Connection, GetError>>,
    {
        if let Some(connection) = self.newest(peer) {
            return Ok(connection);
        }
        let dialing = self.slot(&mut self.lock(), peer).dialing.clone();
        let queued = Instant::now();
        let mut failed = dialing.lock().await;
        if let Some(connection) = self.newest(peer) {
            return Ok(connection);
        }
        if let Some((_, why)) = failed.as_ref().filter(|(at, _)| *at >= queued) {
            // While this one waited: it would fare no better, and those behind it would wait the longer.
            return Err(GetError::Lost(why.clone()));
        }
        let connected = connect().await;
        *failed = match &connected {
            Err(GetError::Lost(why)) => Some((Instant::now(), why.clone())),
            _ => None,
        };
        connected
    }

    pub(super) fn add(&self, peer: KeyId, connection: Connection) {
        self.slot(&mut self.lock(), peer).connections.push(connection);
    }

    /// What everything that `peer` asks for takes leave from.
    pub(super) fn part(&self, peer: KeyId) -> Arc<Part> {
        self.slot(&mut self.lock(), peer).part.clone()
    }

    /// Live connections with `peer`.
    pub(super) fn count(&self, peer: KeyId) -> usize {
        let peers = self.lock();
        let Some(slot) = peers.get(&peer) else { return 0 };
        slot.connections.iter().filter(|open| open.close_reason().is_none()).count()
    }

    /// Also drops what is kept of peers that nothing goes on with any more.
    pub(super) fn forget(&self, peer: KeyId, connection: &Connection) {
        let mut peers = self.lock();
        if let Some(slot) = peers.get_mut(&peer) {
            slot.connections.retain(|open| open.stable_id() != connection.stable_id());
        }
        peers.retain(|_, slot| !slot.is_idle());
    }

    /// The live connections.
    pub(super) fn open(&self) -> Vec<(KeyId, Connection)> {
        let peers = self.lock();
        let live =
            peers.iter().flat_map(|(key, slot)| slot.connections.iter().map(|open| (*key, open.clone())));
        live.filter(|(_, connection)| connection.close_reason().is_none()).collect()
    }

    /// Gives each of them its part of the windows' budget.
    pub(super) fn share(&self, window_bytes: impl FnOnce(usize) -> u64) {
        let open = self.open();
        let bytes = window_bytes(open.len());
        let receive = VarInt::from_u64(bytes).unwrap_or(VarInt::MAX);
        for (_, connection) in open {
            connection.set_receive_window(receive);
            connection.set_send_window(bytes);
        }
    }

    fn newest(&self, peer: KeyId) -> Option<Connection> {
        let peers = self.lock();
        peers.get(&peer)?.connections.iter().rev().find(|open| open.close_reason().is_none()).cloned()
    }

    fn slot<'a>(&self, peers: &'a mut BTreeMap<KeyId, Slot>, peer: KeyId) -> &'a mut Slot {
        peers.entry(peer).or_insert_with(|| Slot::new(self.limits))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<KeyId, Slot>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn those_who_wait_for_a_dial_share_its_failure_and_the_next_one_tries_anew() {
        let pool = Pool::new(PeerLimits { uploads_max: 1, long_requests_max: 1 });
        let dials = AtomicUsize::new(0);
        let dial = || async {
            dials.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_secs(10)).await;
            Err(GetError::Lost("timed out".to_owned()))
        };
        let peer = KeyId([1; 32]);
        let all = futures::future::join_all((0..20).map(|_| pool.get_or_connect(peer, dial))).await;
        assert!(all.iter().all(|one| matches!(one, Err(GetError::Lost(why)) if why == "timed out")));
        assert_eq!(dials.load(Ordering::Relaxed), 1);
        assert!(pool.get_or_connect(peer, dial).await.is_err());
        assert_eq!(dials.load(Ordering::Relaxed), 2);
    }
}
