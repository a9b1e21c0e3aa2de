//! Starts a control plane: builds the swarm and opens its ports.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use libp2p::core::transport::ListenerId;
use libp2p::swarm::SwarmEvent;
use libp2p::{Swarm, SwarmBuilder, noise, tcp, yamux};
use tokio_util::sync::CancellationToken;

use super::backend::Backend;
use super::behaviour::{Behaviour, BehaviourEvent};
use super::config::ControlConfig;
use super::driver::ControlDriver;
use super::handle::{ControlError, ControlHandle};
use super::identity::{keypair_id, quic_addr, socket_addr, tcp_addr};

/// How often a free port is looked for when the port is 0.
const PORT_TRIES_MAX: usize = 16;
/// How long the system may take to tell the addresses behind a listener.
const LISTEN_MAX: Duration = Duration::from_secs(10);

/// Opens all ports and returns the control plane, ready to [run](ControlDriver::run). Nobody can connect
/// before [`ControlHandle::set_members`]. The driver stops when `cancel` is cancelled.
///
/// Errors if the key is not Ed25519 or an address cannot be opened for both QUIC and TCP.
pub async fn start(
    config: ControlConfig,
    backend: Arc<dyn Backend>,
    cancel: CancellationToken,
) -> Result<(ControlHandle, ControlDriver), ControlError> {
    let own = keypair_id(&config.keypair)
        .ok_or_else(|| ControlError::Start("the host key is not an Ed25519 key".into()))?;
    let mut addrs = Vec::new();
    for addr in &config.listen {
        let free =
            free_port(*addr).map_err(|e| ControlError::Listen { addr: *addr, reason: e.to_string() })?;
        addrs.push(free);
    }
    let behaviour = Behaviour::new(&config).map_err(|e| ControlError::Start(e.to_string()))?;
    let mut swarm = SwarmBuilder::with_existing_identity(config.keypair.clone())
        .with_tokio()
        .with_tcp(tcp::Config::default().nodelay(true), noise::Config::new, yamux::Config::default)
        .map_err(|e| ControlError::Start(e.to_string()))?
        .with_quic()
        .with_behaviour(|_| behaviour)
        .map_err(|e| ControlError::Start(e.to_string()))?
        .with_swarm_config(|c| {
            // Connections between members are kept; pings find those that are dead.
            c.with_idle_connection_timeout(Duration::from_secs(365 * 24 * 3600)).with_smart_dial()
        })
        .build();
    let listeners = open(&mut swarm, &addrs).await?;
    Ok(ControlDriver::new(swarm, backend, config, own, listeners, cancel))
}

/// The address with a port that is free for TCP and UDP. Also finds out whether another daemon has it,
/// which the swarm's own sockets, made for sharing a port, would not notice.
fn free_port(addr: SocketAddr) -> io::Result<SocketAddr> {
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..PORT_TRIES_MAX {
        let tcp = TcpListener::bind(addr)?;
        let found = tcp.local_addr()?;
        match UdpSocket::bind(found) {
            Ok(_) => return Ok(found),
            Err(e) if addr.port() == 0 && e.kind() == io::ErrorKind::AddrInUse => last = e,
            Err(e) => return Err(e),
        }
    }
    Err(last)
}

async fn open(
    swarm: &mut Swarm<Behaviour>,
    addrs: &[SocketAddr],
) -> Result<BTreeSet<SocketAddr>, ControlError> {
    let mut waiting: HashMap<ListenerId, SocketAddr> = HashMap::new();
    for addr in addrs {
        for multiaddr in [quic_addr(*addr), tcp_addr(*addr)] {
            let id = swarm
                .listen_on(multiaddr)
                .map_err(|e| ControlError::Listen { addr: *addr, reason: e.to_string() })?;
            waiting.insert(id, *addr);
        }
    }
    let mut found = BTreeSet::new();
    let deadline = tokio::time::Instant::now() + LISTEN_MAX;
    while let Some(addr) = waiting.values().next() {
        let listen = |addr: &SocketAddr, reason: String| ControlError::Listen { addr: *addr, reason };
        let event: SwarmEvent<BehaviourEvent> = tokio::time::timeout_at(deadline, swarm.select_next_some())
            .await
            .map_err(|_| listen(addr, "the system names no address for it".into()))?;
        match event {
            SwarmEvent::NewListenAddr { listener_id, address } => {
                waiting.remove(&listener_id);
                found.extend(socket_addr(&address));
            }
            SwarmEvent::ListenerClosed { listener_id, reason, .. } => {
                if let Some(addr) = waiting.get(&listener_id) {
                    return Err(listen(addr, reason.err().map_or("closed".into(), |e| e.to_string())));
                }
            }
            _ => {}
        }
    }
    Ok(found)
}
