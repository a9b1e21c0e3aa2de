//! Connections that are being made, counted by where they come from: one address never takes all handshakes.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::task::{Context, Poll};

use libp2p::PeerId;
use libp2p::core::transport::PortUse;
use libp2p::core::{Endpoint, Multiaddr};
use libp2p::swarm::behaviour::ListenFailure;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent,
    ToSwarm, dummy,
};

use super::identity::socket_addr;
use crate::net::site::site;

/// Refuses further inbound connections from an address that has too many unfinished ones.
pub(super) struct Behaviour {
    per_address_max: usize,
    pending: HashMap<ConnectionId, IpAddr>,
}

/// Why a connection was refused.
#[derive(Debug)]
struct Crowded(IpAddr);

impl Behaviour {
    pub(super) fn new(per_address_max: usize) -> Self {
        Self { per_address_max, pending: HashMap::new() }
    }
}

impl std::fmt::Display for Crowded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "too many unfinished connections from {}", self.0)
    }
}

impl std::error::Error for Crowded {}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        id: ConnectionId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        let Some(address) = socket_addr(remote).map(|addr| site(addr.ip())) else { return Ok(()) };
        // At most as many as handshakes may be under way at all, so counting them is cheap.
        if self.pending.values().filter(|other| **other == address).count() >= self.per_address_max {
            return Err(ConnectionDenied::new(Crowded(address)));
        }
        self.pending.insert(id, address);
        Ok(())
    }

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.pending.remove(&id);
        Ok(dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        if let FromSwarm::ListenFailure(ListenFailure { connection_id, .. }) = event {
            self.pending.remove(&connection_id);
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_leaves_room_for_others() {
        let mut crowd = Behaviour::new(2);
        let here: Multiaddr = "/ip4/127.0.0.1/tcp/1".parse().expect("an address");
        let from = |ip: u8| -> Multiaddr { format!("/ip4/10.0.0.{ip}/tcp/9").parse().expect("an address") };
        let id = ConnectionId::new_unchecked;
        let mut pending = |n, ip| crowd.handle_pending_inbound_connection(id(n), &here, &from(ip)).is_ok();
        assert_eq!([pending(1, 1), pending(2, 1), pending(3, 1), pending(4, 2)], [true, true, false, true]);
        let peer = PeerId::random();
        crowd.handle_established_inbound_connection(id(1), peer, &here, &from(1)).expect("made");
        crowd.handle_pending_inbound_connection(id(5), &here, &from(1)).expect("room again");
        assert!(crowd.handle_pending_inbound_connection(id(6), &here, &from(1)).is_err());
    }
}
