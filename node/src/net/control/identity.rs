//! One Ed25519 key names a host: conversions between our ids and addresses and those of libp2p.

use std::net::{IpAddr, SocketAddr};

use libp2p::identity::{Keypair, PublicKey, ed25519};
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use weighlock_protocol::KeyId;

/// The libp2p name of a host. `None` if the 32 bytes are no Ed25519 public key.
pub fn peer_id(key: KeyId) -> Option<PeerId> {
    let key = ed25519::PublicKey::try_from_bytes(key.as_bytes()).ok()?;
    Some(PublicKey::from(key).to_peer_id())
}

/// The key behind a libp2p name. `None` if the name is not that of an Ed25519 key.
pub fn key_id(peer: PeerId) -> Option<KeyId> {
    // A peer id of a short key holds the key itself, as an "identity multihash" (code 0).
    let hash = peer.as_ref();
    if hash.code() != 0 {
        return None;
    }
    public_key_id(&PublicKey::try_decode_protobuf(hash.digest()).ok()?)
}

/// Our id of a libp2p public key. `None` if it is not an Ed25519 key.
pub fn public_key_id(key: &PublicKey) -> Option<KeyId> {
    Some(KeyId(key.clone().try_into_ed25519().ok()?.to_bytes()))
}

/// The id of a host's own key pair. `None` if it is not an Ed25519 pair.
pub fn keypair_id(keypair: &Keypair) -> Option<KeyId> {
    public_key_id(&keypair.public())
}

/// A QUIC address on UDP.
pub fn quic_addr(addr: SocketAddr) -> Multiaddr {
    Multiaddr::empty().with(addr.ip().into()).with(Protocol::Udp(addr.port())).with(Protocol::QuicV1)
}

/// A TCP address.
pub fn tcp_addr(addr: SocketAddr) -> Multiaddr {
    Multiaddr::empty().with(addr.ip().into()).with(Protocol::Tcp(addr.port()))
}

/// IP address and port of a QUIC or TCP address. `None` for every other kind (names, relays, ...).
pub fn socket_addr(addr: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = addr.iter();
    let ip: IpAddr = match parts.next()? {
        Protocol::Ip4(ip) => ip.into(),
        Protocol::Ip6(ip) => ip.into(),
        _ => return None,
    };
    let port = match parts.next()? {
        Protocol::Tcp(port) => port,
        Protocol::Udp(port) if parts.next()? == Protocol::QuicV1 => port,
        _ => return None,
    };
    match parts.next() {
        None | Some(Protocol::P2p(_)) => Some(SocketAddr::new(ip, port)),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_peer_ids_name_each_other() {
        let pair = Keypair::generate_ed25519();
        let key = keypair_id(&pair).expect("an Ed25519 pair");
        assert_eq!(peer_id(key), Some(pair.public().to_peer_id()));
        assert_eq!(key_id(pair.public().to_peer_id()), Some(key));
        assert_eq!(key_id(PeerId::random()), None);
    }

    #[test]
    fn addresses_round_trip_and_other_kinds_are_refused() {
        for text in ["192.0.2.7:4000", "[2001:db8::7]:4000"] {
            let addr: SocketAddr = text.parse().expect("an address");
            assert_eq!(socket_addr(&quic_addr(addr)), Some(addr));
            assert_eq!(socket_addr(&tcp_addr(addr)), Some(addr));
        }
        for text in
            ["/dns4/example.org/tcp/1", "/ip4/192.0.2.7/udp/1", "/ip4/192.0.2.7/tcp/1/ws", "/ip4/1.2.3.4"]
        {
            let addr: Multiaddr = text.parse().expect("a multiaddr");
            assert_eq!(socket_addr(&addr), None, "{text}");
        }
    }
}
