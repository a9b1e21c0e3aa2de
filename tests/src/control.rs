//! A bare libp2p peer that knows a cluster's protocol names and sends whatever bytes a test likes.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, StreamExt};
use libp2p::gossipsub::{self, IdentTopic, MessageAuthenticity};
use libp2p::identity::{Keypair, PublicKey, ed25519};
use libp2p::request_response::{self, Message, ProtocolSupport};
use libp2p::swarm::{NetworkBehaviour, SwarmEvent};
use libp2p::{Multiaddr, PeerId, StreamProtocol, Swarm, SwarmBuilder, noise, tcp, yamux};
use weighlock_protocol::{ClusterId, KeyId};

use crate::wait::PATIENCE;

/// Longest answer that the peer takes, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// How a request ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With these bytes.
    Answer(Vec<u8>),
    /// The other side closed the connection, or it was never made.
    Closed,
    /// The connection stands, but nothing came within [`PATIENCE`].
    Silence,
}

/// Which transport to dial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// UDP.
    Quic,
    /// TCP with noise and yamux.
    Tcp,
}

/// The peer, and what gossip reached it.
pub struct Raw {
    swarm: Swarm<Behaviour>,
    /// Payloads in the order of their arrival.
    pub gossip: Vec<Vec<u8>>,
}

#[derive(NetworkBehaviour)]
struct Behaviour {
    sync: request_response::Behaviour<Bytes>,
    gossip: gossipsub::Behaviour,
}

/// The libp2p name of a host.
///
/// # Panics
/// The key is not a point of the curve.
pub fn peer_id(host: &KeyId) -> PeerId {
    let key = ed25519::PublicKey::try_from_bytes(&host.0).expect("a host key");
    PublicKey::from(key).to_peer_id()
}

/// The key of a libp2p identity.
///
/// # Panics
/// It is not Ed25519.
pub fn key_id(keypair: &Keypair) -> KeyId {
    KeyId(keypair.public().try_into_ed25519().expect("an Ed25519 key").to_bytes())
}

impl Raw {
    /// A peer with this identity that speaks the protocols of `cluster`. Needs a tokio runtime.
    ///
    /// # Panics
    /// The library refuses the settings.
    pub fn new(keypair: Keypair, cluster: ClusterId) -> Raw {
        let name = |what: &str| format!("/weighlock/{}/{what}/1", &cluster.hex()[..16]);
        let sync = StreamProtocol::try_from_owned(name("sync")).expect("a protocol name");
        let settings = gossipsub::ConfigBuilder::default()
            .protocol_id(name("gossip"), gossipsub::Version::V1_1)
            .build()
            .expect("valid settings");
        let mut gossip = gossipsub::Behaviour::new(MessageAuthenticity::Signed(keypair.clone()), settings)
            .expect("valid settings");
        gossip.subscribe(&IdentTopic::new(name("news"))).expect("a topic");
        let config = request_response::Config::default().with_request_timeout(2 * PATIENCE);
        let sync = request_response::Behaviour::with_codec(Bytes, [(sync, ProtocolSupport::Full)], config);
        let swarm = SwarmBuilder::with_existing_identity(keypair)
            .with_tokio()
            .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
            .expect("a TCP transport")
            .with_quic()
            .with_behaviour(|_| Behaviour { sync, gossip })
            .expect("a behaviour")
            .with_swarm_config(|c| c.with_idle_connection_timeout(Duration::from_secs(3600)))
            .build();
        Raw { swarm, gossip: Vec::new() }
    }

    /// Dials `host`, sends one request and waits for an answer or the end of the connection.
    ///
    /// # Panics
    /// The key is not a host's.
    pub async fn ask(
        &mut self,
        host: &KeyId,
        transport: Transport,
        at: SocketAddr,
        request: Vec<u8>,
    ) -> Outcome {
        let addr = multiaddr(transport, at);
        let sync = &mut self.swarm.behaviour_mut().sync;
        sync.send_request_with_addresses(&peer_id(host), request, vec![addr]);
        let ended = async {
            loop {
                match self.swarm.select_next_some().await {
                    SwarmEvent::Behaviour(BehaviourEvent::Sync(request_response::Event::Message {
                        message: Message::Response { response, .. },
                        ..
                    })) => return Outcome::Answer(response),
                    SwarmEvent::Behaviour(BehaviourEvent::Gossip(gossipsub::Event::Message {
                        message,
                        ..
                    })) => self.gossip.push(message.data),
                    SwarmEvent::ConnectionClosed { .. } | SwarmEvent::OutgoingConnectionError { .. } => {
                        return Outcome::Closed;
                    }
                    _ => {}
                }
            }
        };
        tokio::time::timeout(PATIENCE, ended).await.unwrap_or(Outcome::Silence)
    }
}

fn multiaddr(transport: Transport, at: SocketAddr) -> Multiaddr {
    let (ip, port) = (at.ip(), at.port());
    let family = if ip.is_ipv4() { "ip4" } else { "ip6" };
    let text = match transport {
        Transport::Quic => format!("/{family}/{ip}/udp/{port}/quic-v1"),
        Transport::Tcp => format!("/{family}/{ip}/tcp/{port}"),
    };
    text.parse().expect("a multiaddress")
}

/// Length, then bytes of the test's choice.
#[derive(Clone, Copy)]
struct Bytes;

impl request_response::Codec for Bytes {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = Vec<u8>;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        read(io).await
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        read(io).await
    }

    async fn write_request<T>(&mut self, _: &StreamProtocol, io: &mut T, bytes: Vec<u8>) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        write(io, &bytes).await
    }

    async fn write_response<T>(&mut self, _: &StreamProtocol, io: &mut T, bytes: Vec<u8>) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        write(io, &bytes).await
    }
}

async fn read<T: AsyncRead + Unpin + Send>(io: &mut T) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    io.read_exact(&mut length).await?;
    let length = u32::from_be_bytes(length) as usize;
    if length > ANSWER_BYTES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; length];
    io.read_exact(&mut bytes).await?;
    Ok(bytes)
}

async fn write<T: AsyncWrite + Unpin + Send>(io: &mut T, bytes: &[u8]) -> io::Result<()> {
    io.write_all(&(bytes.len() as u32).to_be_bytes()).await?;
    io.write_all(bytes).await?;
    io.flush().await
}
