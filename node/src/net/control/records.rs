//! The newest verified record of every host, and how old it is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use weighlock_protocol::wire::control::{
    HELLO_RECORDS_MAX, Heard, HostRecord, HostRecordError, REQUEST_BYTES_MAX, SignedHostRecord,
};
use weighlock_protocol::{ClusterId, KeyId};

/// Bytes of other hosts' records that one introduction carries, at most.
const HELLO_BYTES_MAX: usize = REQUEST_BYTES_MAX / 2;

/// What is known of a host, this one included.
#[derive(Debug, Clone)]
pub struct KnownHost {
    /// The newest valid record.
    pub record: Arc<HostRecord>,
    /// When it was first heard, here or by the host that told of it.
    pub heard: Instant,
}

/// All hosts with a fresh record, by key.
pub type HostRecords = Arc<BTreeMap<KeyId, KnownHost>>;

/// What became of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Newer than what was known.
    Newer(KeyId),
    /// Not newer, or of a host that is no member (yet).
    Nothing,
    /// Our own, of an earlier life, with this `seq`.
    Own(u64),
}

/// The newest record per member. Records that grew old stay, unseen, so that they cannot be replayed.
pub(super) struct HostTable {
    own: KeyId,
    cluster: ClusterId,
    members: BTreeSet<KeyId>,
    entries: BTreeMap<KeyId, Entry>,
    seen: watch::Sender<HostRecords>,
}

struct Entry {
    signed: SignedHostRecord,
    known: KnownHost,
    /// Grew old without being renewed.
    expired: bool,
}

impl HostTable {
    pub(super) fn new(own: KeyId, cluster: ClusterId) -> Self {
        let seen = watch::Sender::new(HostRecords::default());
        Self { own, cluster, members: BTreeSet::new(), entries: BTreeMap::new(), seen }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<HostRecords> {
        self.seen.subscribe()
    }

    /// How many hosts have a fresh record.
    pub(super) fn len(&self) -> usize {
        self.seen.borrow().len()
    }

    /// Only members' records count; forgets those of others.
    pub(super) fn set_members(&mut self, members: &BTreeSet<KeyId>) {
        self.members = members.clone();
        self.entries.retain(|host, _| members.contains(host) || *host == self.own);
        self.publish();
    }

    /// Takes in a record that a peer sent.
    pub(super) fn hear(&mut self, heard: Heard, now: Instant) -> Result<Outcome, HostRecordError> {
        // What is not newer says nothing, true or not; a signature costs much more than this.
        let is_old = |(host, seq): (KeyId, u64)| {
            self.entries.get(&host).is_some_and(|entry| entry.known.record.seq >= seq)
        };
        if heard.record.claims().is_some_and(is_old) {
            return Ok(Outcome::Nothing);
        }
        let record = heard.record.verify(self.cluster)?;
        if record.host == self.own {
            return Ok(Outcome::Own(record.seq));
        }
        let known = self.entries.get(&record.host).map(|e| e.known.record.seq);
        if !self.members.contains(&record.host) || known.is_some_and(|seq| seq >= record.seq) {
            return Ok(Outcome::Nothing);
        }
        let host = record.host;
        let heard_at = now.checked_sub(Duration::from_millis(heard.age_ms.into())).unwrap_or(now);
        self.insert(record, heard.record, heard_at);
        Ok(Outcome::Newer(host))
    }

    /// Takes in this host's own record.
    pub(super) fn insert(&mut self, record: HostRecord, signed: SignedHostRecord, heard: Instant) {
        let host = record.host;
        let known = KnownHost { record: Arc::new(record), heard };
        self.entries.insert(host, Entry { signed, known, expired: false });
        self.publish();
    }

    /// Hides records that were heard longer than `age_max` ago, our own aside; says whose.
    pub(super) fn expire(&mut self, now: Instant, age_max: Duration) -> Vec<KeyId> {
        let mut gone = Vec::new();
        for (host, entry) in &mut self.entries {
            let old = now.saturating_duration_since(entry.known.heard) > age_max;
            if old && !entry.expired && *host != self.own {
                entry.expired = true;
                gone.push(*host);
            }
        }
        if !gone.is_empty() {
            self.publish();
        }
        gone
    }

    /// Hides the record of another host until there is a newer one.
    pub(super) fn hide(&mut self, host: &KeyId) {
        if *host == self.own {
            return;
        }
        if let Some(entry) = self.entries.get_mut(host) {
            entry.expired = true;
            self.publish();
        }
    }

    /// Our own signed record, if one was announced.
    pub(super) fn own(&self) -> Option<SignedHostRecord> {
        Some(self.entries.get(&self.own)?.signed.clone())
    }

    /// The newest record of a host, however old.
    pub(super) fn record(&self, host: KeyId) -> Option<Arc<HostRecord>> {
        Some(Arc::clone(&self.entries.get(&host)?.known.record))
    }

    /// What to tell `to`: its own record of old, and fresh ones of others.
    pub(super) fn telling(&self, to: KeyId, now: Instant) -> Vec<Heard> {
        let seen = self.seen.borrow();
        let mut bytes_left = HELLO_BYTES_MAX;
        let others = seen.keys().filter(|host| **host != to && **host != self.own);
        std::iter::once(&to)
            .chain(others)
            .filter_map(|host| self.entries.get(host))
            .take(HELLO_RECORDS_MAX)
            .take_while(|entry| {
                let fits = entry.signed.size() <= bytes_left;
                bytes_left = bytes_left.saturating_sub(entry.signed.size());
                fits
            })
            .map(|entry| {
                let age = now.saturating_duration_since(entry.known.heard).as_millis();
                Heard { record: entry.signed.clone(), age_ms: u32::try_from(age).unwrap_or(u32::MAX) }
            })
            .collect()
    }

    fn publish(&mut self) {
        let fresh = self.entries.iter().filter(|(_, e)| !e.expired && !e.known.record.leaving);
        self.seen.send_replace(Arc::new(fresh.map(|(host, e)| (*host, e.known.clone())).collect()));
    }
}

#[cfg(test)]
mod tests {
    use libp2p::identity::Keypair;

    use super::super::identity::keypair_id;
    use super::*;

    const CLUSTER: ClusterId = ClusterId([1; 32]);

    fn signed(pair: &Keypair, seq: u64, leaving: bool) -> Heard {
        let mut record = HostRecord::new(CLUSTER, keypair_id(pair).expect("an Ed25519 pair"));
        (record.seq, record.leaving) = (seq, leaving);
        let record = record.sign(|b| pair.sign(b).expect("Ed25519 signs")).expect("within limits");
        Heard { record, age_ms: 0 }
    }

    #[test]
    fn newest_wins_old_ones_vanish_and_cannot_come_back() {
        let (own, peer) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
        let host = keypair_id(&peer).expect("an Ed25519 pair");
        let mut table = HostTable::new(keypair_id(&own).expect("an Ed25519 pair"), CLUSTER);
        let (seen, start) = (table.subscribe(), Instant::now());
        let at = |s| start + Duration::from_secs(s);
        assert_eq!(table.hear(signed(&peer, 5, false), start), Ok(Outcome::Nothing), "no member");
        table.set_members(&BTreeSet::from([host]));
        assert_eq!(table.hear(signed(&peer, 5, false), start), Ok(Outcome::Newer(host)));
        assert_eq!(table.hear(signed(&peer, 4, false), start), Ok(Outcome::Nothing));
        assert_eq!(table.hear(signed(&own, 9, false), start), Ok(Outcome::Own(9)));
        assert_eq!(table.telling(host, start).len(), 1);
        assert!(table.expire(at(10), Duration::from_secs(30)).is_empty());
        assert_eq!(table.expire(at(31), Duration::from_secs(30)), vec![host]);
        assert!(seen.borrow().is_empty());
        assert_eq!(table.hear(signed(&peer, 5, false), at(32)), Ok(Outcome::Nothing), "a replay");
        assert_eq!(table.telling(host, at(32)).len(), 1, "its own old record, so that it can go beyond");
        assert_eq!(table.hear(signed(&peer, 6, false), at(32)), Ok(Outcome::Newer(host)));
        assert_eq!(seen.borrow().len(), 1);
        table.hide(&host);
        assert!(seen.borrow().is_empty(), "it is forgotten");
        assert_eq!(
            table.hear(signed(&peer, 6, false), at(32)),
            Ok(Outcome::Nothing),
            "others pass on what was known"
        );
        assert_eq!(table.hear(signed(&peer, 7, true), at(33)), Ok(Outcome::Newer(host)));
        assert!(seen.borrow().is_empty(), "it left");
    }
}
