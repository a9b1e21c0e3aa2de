//! A bare libp2p peer that knows a cluster's protocol names and sends whatever bytes a test likes.

use std::io;
use std::time::Duration;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, StreamExt};
use libp2p::gossipsub::{self, IdentTopic, MessageAuthenticity};
use libp2p::identity::Keypair;
use libp2p::request_response::{self, Message, ProtocolSupport};
use libp2p::swarm::{NetworkBehaviour, SwarmEvent};
use libp2p::{Multiaddr, StreamProtocol, Swarm, SwarmBuilder, noise, tcp, yamux};
use weighlock::net::control::peer_id;
use weighlock_protocol::{ClusterId, KeyId};

/// How a request ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// With these bytes.
    Answer(Vec<u8>),
    /// Without an answer, and the connection is gone or was never made.
    Refused,
}

/// The peer, and what gossip reached it.
pub(crate) struct Raw {
    swarm: Swarm<Behaviour>,
    pub(crate) gossip: Vec<Vec<u8>>,
}

#[derive(NetworkBehaviour)]
struct Behaviour {
    sync: request_response::Behaviour<Bytes>,
    gossip: gossipsub::Behaviour,
}

impl Raw {
    pub(crate) fn new(keypair: Keypair, cluster: ClusterId) -> Raw {
        let name = |what: &str| format!("/weighlock/{}/{what}/1", &cluster.hex()[..16]);
        let sync = StreamProtocol::try_from_owned(name("sync")).expect("a protocol name");
        let settings = gossipsub::ConfigBuilder::default()
            .protocol_id(name("gossip"), gossipsub::Version::V1_1)
            .build()
            .expect("valid settings");
        let mut gossip = gossipsub::Behaviour::new(MessageAuthenticity::Signed(keypair.clone()), settings)
            .expect("valid settings");
        gossip.subscribe(&IdentTopic::new(name("news"))).expect("a topic");
        let sync = request_response::Behaviour::with_codec(
            Bytes,
            [(sync, ProtocolSupport::Full)],
            request_response::Config::default().with_request_timeout(Duration::from_secs(60)),
        );
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

    /// Sends one request; waits for an answer or for the end of the connection.
    pub(crate) async fn ask(&mut self, host: KeyId, addr: Multiaddr, request: Vec<u8>) -> Outcome {
        let peer = peer_id(host).expect("a key");
        // Dials by itself.
        self.swarm.behaviour_mut().sync.send_request_with_addresses(&peer, request, vec![addr]);
        loop {
            match self.swarm.select_next_some().await {
                SwarmEvent::Behaviour(BehaviourEvent::Sync(request_response::Event::Message {
                    message: Message::Response { response, .. },
                    ..
                })) => return Outcome::Answer(response),
                SwarmEvent::Behaviour(BehaviourEvent::Gossip(gossipsub::Event::Message {
                    message, ..
                })) => {
                    self.gossip.push(message.data);
                }
                SwarmEvent::Behaviour(BehaviourEvent::Sync(request_response::Event::OutboundFailure {
                    ..
                })) => return Outcome::Refused,
                SwarmEvent::ConnectionClosed { .. } | SwarmEvent::OutgoingConnectionError { .. } => {
                    return Outcome::Refused;
                }
                _ => {}
            }
        }
    }
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
    let mut bytes = vec![0; u32::from_be_bytes(length) as usize];
    io.read_exact(&mut bytes).await?;
    Ok(bytes)
}

async fn write<T: AsyncWrite + Unpin + Send>(io: &mut T, bytes: &[u8]) -> io::Result<()> {
    io.write_all(&(bytes.len() as u32).to_be_bytes()).await?;
    io.write_all(bytes).await?;
    io.flush().await
}
