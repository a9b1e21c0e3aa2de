//! Who may connect, where members can be reached, and whom to dial next.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use libp2p::swarm::ConnectionId;
use libp2p::{Multiaddr, PeerId};
use weighlock_protocol::KeyId;

use super::config::{ControlLimits, ControlTiming};
use super::handle::{Direction, PeerStatus};
use super::identity::{key_id, peer_id, quic_addr, tcp_addr};

/// How an address came to be known; the first kinds are tried first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    /// A person, a ticket or the configuration named it.
    Told,
    /// It stands in the host's signed record.
    Record,
    /// The peer itself or multicast DNS named it.
    Heard,
}

/// What is known of every member, and what was told of keys that may yet become members.
pub(super) struct Peers {
    own: PeerId,
    members: BTreeSet<PeerId>,
    known: BTreeMap<PeerId, Known>,
    limits: ControlLimits,
    timing: ControlTiming,
}

#[derive(Default)]
struct Known {
    addrs: BTreeMap<Source, Vec<SocketAddr>>,
    connections: BTreeMap<ConnectionId, Connection>,
    rtt: Option<Duration>,
    agent: String,
    dialing: bool,
    failures: u32,
    next_dial: Option<Instant>,
    banned_until: Option<Instant>,
}

struct Connection {
    remote: Option<SocketAddr>,
    direction: Direction,
    since: Instant,
}

/// Who is to be let in and who is to be put out after a change.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Admission {
    pub(super) allow: Vec<PeerId>,
    pub(super) deny: Vec<PeerId>,
}

impl Peers {
    pub(super) fn new(own: PeerId, limits: ControlLimits, timing: ControlTiming) -> Self {
        Self { own, members: BTreeSet::new(), known: BTreeMap::new(), limits, timing }
    }

    /// Replaces the member list. What is known of former members is forgotten.
    pub(super) fn set_members(&mut self, keys: &BTreeSet<KeyId>) -> Admission {
        let members: BTreeSet<PeerId> = keys
            .iter()
            .filter_map(|key| peer_id(*key))
            .filter(|peer| *peer != self.own)
            .take(self.limits.members_max)
            .collect();
        let deny: Vec<PeerId> = self.members.difference(&members).copied().collect();
        let allow = members.difference(&self.members).filter(|p| !self.is_banned(p)).copied().collect();
        for peer in &deny {
            if let Some(Known { connections, .. }) = self.known.remove(peer)
                && !connections.is_empty()
            {
                // They stay on the books until the swarm has closed them.
                self.known.insert(*peer, Known { connections, ..Known::default() });
            }
        }
        self.members = members;
        Admission { allow, deny }
    }

    pub(super) fn is_member(&self, peer: &PeerId) -> bool {
        self.members.contains(peer)
    }

    pub(super) fn is_connected(&self, peer: &PeerId) -> bool {
        self.known.get(peer).is_some_and(|k| !k.connections.is_empty())
    }

    /// Members with at least one connection.
    pub(super) fn connected(&self) -> Vec<PeerId> {
        self.members.iter().filter(|p| self.is_connected(p)).copied().collect()
    }

    /// Notes addresses of a peer; the newest of one source push out the oldest. Addresses of keys that
    /// are no members yet are kept only if someone told us of them. Returns whether anything changed.
    pub(super) fn learn(
        &mut self,
        peer: PeerId,
        source: Source,
        addrs: impl IntoIterator<Item = SocketAddr>,
    ) -> bool {
        let known_max = 2 * self.limits.members_max;
        let wanted = self.members.contains(&peer) || (source == Source::Told && self.known.len() < known_max);
        if !wanted || peer == self.own {
            return false;
        }
        let known = self.known.entry(peer).or_default();
        let list = known.addrs.entry(source).or_default();
        let before = list.clone();
        if source == Source::Record {
            list.clear();
        }
        for addr in addrs {
            if !addr.ip().is_unspecified() && addr.port() != 0 && !list.contains(&addr) {
                list.insert(0, addr);
            }
        }
        list.truncate(self.limits.addrs_per_peer_max);
        let changed = *list != before;
        if source == Source::Told {
            known.next_dial = None;
        }
        changed
    }

    /// Drops all addresses of a peer that is not connected.
    pub(super) fn forget(&mut self, peer: &PeerId) {
        if let Some(known) = self.known.get_mut(peer).filter(|known| known.connections.is_empty()) {
            known.addrs.clear();
            known.failures = 0;
            known.next_dial = None;
        }
    }

    /// All addresses of a peer for both transports, best first.
    pub(super) fn addrs(&self, peer: &PeerId) -> Vec<Multiaddr> {
        let mut all: Vec<SocketAddr> = Vec::new();
        for addr in self.known.get(peer).into_iter().flat_map(|k| k.addrs.values().flatten()) {
            if !all.contains(addr) {
                all.push(*addr);
            }
        }
        all.iter().map(|a| quic_addr(*a)).chain(all.iter().map(|a| tcp_addr(*a))).collect()
    }

    /// Members to dial now. They count as being dialled until [`Peers::failed`] or [`Peers::opened`].
    pub(super) fn due(&mut self, now: Instant) -> Vec<PeerId> {
        let (mut connected, mut dialing) = (0, 0);
        for known in self.known.values() {
            connected += usize::from(!known.connections.is_empty());
            dialing += usize::from(known.dialing);
        }
        let room = self.limits.peers_max.saturating_sub(connected + dialing);
        let room = room.min(self.limits.dials_max.saturating_sub(dialing));
        let members = &self.members;
        let mut ready: Vec<(&PeerId, &mut Known)> = self
            .known
            .iter_mut()
            .filter(|(peer, k)| {
                members.contains(peer)
                    && k.connections.is_empty()
                    && !k.dialing
                    && k.banned_until.is_none()
                    && k.addrs.values().any(|list| !list.is_empty())
                    && k.next_dial.is_none_or(|at| at <= now)
            })
            .collect();
        ready.sort_by_key(|(_, k)| k.next_dial);
        ready.truncate(room);
        let pick = |(peer, known): (&PeerId, &mut Known)| {
            known.dialing = true;
            *peer
        };
        ready.into_iter().map(pick).collect()
    }

    /// A dial came to nothing.
    pub(super) fn failed(&mut self, peer: &PeerId, now: Instant) {
        if let Some(known) = self.known.get_mut(peer) {
            known.dialing = false;
            let pause = self.timing.redial_min.saturating_mul(1 << known.failures.min(16));
            known.next_dial = Some(now + pause.min(self.timing.redial_max));
            known.failures = known.failures.saturating_add(1);
        }
    }

    /// A connection was established. Returns whether it is the first to this peer.
    pub(super) fn opened(
        &mut self,
        peer: PeerId,
        id: ConnectionId,
        direction: Direction,
        remote: Option<SocketAddr>,
        now: Instant,
    ) -> bool {
        let known = self.known.entry(peer).or_default();
        let first = known.connections.is_empty();
        known.connections.insert(id, Connection { remote, direction, since: now });
        known.dialing = false;
        known.failures = 0;
        first
    }

    /// Age of the oldest connection to a peer.
    pub(super) fn connected_for(&self, peer: &PeerId, now: Instant) -> Option<Duration> {
        let connections = &self.known.get(peer)?.connections;
        connections.values().map(|connection| now.saturating_duration_since(connection.since)).max()
    }

    /// A connection ended. Returns whether it was the last to this peer.
    pub(super) fn closed(&mut self, peer: &PeerId, id: ConnectionId, now: Instant) -> bool {
        let Some(known) = self.known.get_mut(peer) else {
            return false;
        };
        if known.connections.remove(&id).is_none() || !known.connections.is_empty() {
            return false;
        }
        known.rtt = None;
        known.next_dial = Some(now + self.timing.redial_min);
        if !self.members.contains(peer) && known.addrs.is_empty() && known.banned_until.is_none() {
            self.known.remove(peer);
        }
        true
    }

    /// Connections that are one too many: when two hosts dialled each other at once, the one with the
    /// smaller id closes what the other dialled, once both had time to notice.
    pub(super) fn surplus(&self, now: Instant) -> Vec<ConnectionId> {
        let settled = |c: &Connection| now.saturating_duration_since(c.since) > Duration::from_secs(10);
        let mut surplus = Vec::new();
        for (_, known) in self.known.iter().filter(|(peer, _)| self.own < **peer) {
            let kept = known.connections.values().any(|c| c.direction == Direction::Outbound && settled(c));
            if kept {
                let inbound = known.connections.iter().filter(|(_, c)| c.direction == Direction::Inbound);
                surplus.extend(inbound.filter(|(_, c)| settled(c)).map(|(id, _)| *id));
            }
        }
        surplus
    }

    /// Whether the peer is, as far as its connections show, on this very machine.
    pub(super) fn is_on_loopback(&self, peer: &PeerId) -> bool {
        let connections = self.known.get(peer).into_iter().flat_map(|k| k.connections.values());
        connections.into_iter().any(|c| c.remote.is_some_and(|r| r.ip().is_loopback()))
    }

    pub(super) fn measured(&mut self, peer: &PeerId, rtt: Duration) {
        if let Some(known) = self.known.get_mut(peer) {
            known.rtt = Some(rtt);
        }
    }

    pub(super) fn identified(&mut self, peer: &PeerId, agent: &str) {
        if let Some(known) = self.known.get_mut(peer) {
            known.agent = agent.chars().filter(|c| !c.is_control()).take(64).collect();
        }
    }

    /// Keeps a peer out for a while.
    pub(super) fn ban(&mut self, peer: PeerId, now: Instant) {
        self.known.entry(peer).or_default().banned_until = Some(now + self.timing.ban);
    }

    pub(super) fn is_banned(&self, peer: &PeerId) -> bool {
        self.known.get(peer).is_some_and(|k| k.banned_until.is_some())
    }

    /// Ends bans that have run out; returns the members to let in again.
    pub(super) fn unban(&mut self, now: Instant) -> Vec<PeerId> {
        let mut free = Vec::new();
        for (peer, known) in &mut self.known {
            if known.banned_until.is_some_and(|until| until <= now) {
                known.banned_until = None;
                free.push(*peer);
            }
        }
        free.retain(|peer| self.members.contains(peer));
        free
    }

    /// Connected members, for people.
    pub(super) fn status(&self, now: Instant) -> Vec<PeerStatus> {
        let status = |peer: &PeerId| {
            let known = self.known.get(peer)?;
            let first = known.connections.values().min_by_key(|c| c.since)?;
            Some(PeerStatus {
                key: key_id(*peer)?,
                addrs: known.connections.values().filter_map(|c| c.remote).collect(),
                direction: first.direction,
                rtt_ms: known.rtt.map(|rtt| rtt.as_secs_f64() * 1000.0),
                agent: known.agent.clone(),
                connected_for: now.saturating_duration_since(first.since),
            })
        };
        self.members.iter().filter_map(status).collect()
    }
}

#[cfg(test)]
mod tests {
    use libp2p::identity::Keypair;

    use super::super::identity::keypair_id;
    use super::*;

    fn key() -> KeyId {
        keypair_id(&Keypair::generate_ed25519()).expect("an Ed25519 pair")
    }

    fn peers(limits: ControlLimits) -> Peers {
        Peers::new(PeerId::random(), limits, ControlTiming::default())
    }

    #[test]
    fn members_with_addresses_are_dialled_with_growing_pauses() {
        let (mut peers, start) = (peers(ControlLimits::default()), Instant::now());
        let at = |s: u64| start + Duration::from_secs(s);
        let (member, stranger) = (key(), key());
        let (m, s) = (peer_id(member).expect("a key"), peer_id(stranger).expect("a key"));
        let addr: SocketAddr = "192.0.2.1:4000".parse().expect("an address");
        peers.learn(s, Source::Heard, [addr]);
        peers.learn(s, Source::Told, [addr]);
        assert_eq!(peers.set_members(&BTreeSet::from([member])), Admission { allow: vec![m], deny: vec![] });
        assert!(peers.due(start).is_empty(), "no address yet, and the stranger is no member");
        peers.learn(m, Source::Heard, [addr, "0.0.0.0:1".parse().expect("an address")]);
        assert_eq!(peers.addrs(&m), vec![quic_addr(addr), tcp_addr(addr)]);
        assert_eq!(peers.due(start), vec![m]);
        assert!(peers.due(start).is_empty(), "under way");
        peers.failed(&m, start);
        assert!(peers.due(start).is_empty());
        assert_eq!(peers.due(at(1)), vec![m]);
        peers.failed(&m, at(1));
        assert!(peers.due(at(2)).is_empty(), "the pause doubled");
        assert_eq!(peers.due(at(3)), vec![m]);
        peers.failed(&m, at(3));
        peers.forget(&m);
        assert!(peers.due(at(60)).is_empty() && peers.addrs(&m).is_empty(), "forgotten");
        peers.learn(m, Source::Heard, [addr]);
        assert_eq!(peers.due(at(60)), vec![m], "it was heard again");
        let both = peers.set_members(&BTreeSet::from([stranger]));
        assert_eq!(both, Admission { allow: vec![s], deny: vec![m] });
        assert_eq!(peers.due(at(3)), vec![s], "told of before it became a member");
    }

    #[test]
    fn dials_stay_within_their_limits_and_bans_run_out() {
        let limits = ControlLimits { peers_max: 5, dials_max: 3, ..ControlLimits::default() };
        let (mut peers, start) = (peers(limits), Instant::now());
        let keys: BTreeSet<KeyId> = (0..10).map(|_| key()).collect();
        peers.set_members(&keys);
        for key in &keys {
            let addr: SocketAddr = "192.0.2.1:4000".parse().expect("an address");
            peers.learn(peer_id(*key).expect("a key"), Source::Told, [addr]);
        }
        let first = peers.due(start);
        assert_eq!(first.len(), 3);
        for (n, peer) in first.iter().enumerate() {
            let id = ConnectionId::new_unchecked(n);
            assert!(peers.opened(*peer, id, Direction::Outbound, None, start));
        }
        assert_eq!(peers.due(start).len(), 2, "five in all");
        peers.ban(first[0], start);
        assert!(peers.closed(&first[0], ConnectionId::new_unchecked(0), start));
        assert!(peers.unban(start).is_empty() && peers.is_banned(&first[0]));
        assert_eq!(peers.unban(start + Duration::from_secs(60)), vec![first[0]]);
    }
}
