//! The QUIC endpoint: who may connect, what a connection may ask, and how it ends.

mod bursts;
mod end;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use quinn::{Connection, ConnectionError, Endpoint, EndpointConfig, Incoming, Runtime, TokioRuntime, VarInt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};
use weighlock_protocol::wire::capability;
use weighlock_protocol::wire::data::{ALPN_DATA, ALPN_JOIN, HELLO_BYTES_MAX, Hello, close};
use weighlock_protocol::wire::join::{JOIN_ANSWER_BYTES_MAX, JOIN_REQUEST_BYTES_MAX};
use weighlock_protocol::{ClusterId, KeyId};

use bursts::Bursts;

use super::buffers::Buffers;
use super::joining::{Handshakes, Joining};
use super::pool::{PeerLimits, Pool};
use super::serve::{Possession, Shares, serve_stream};
use super::{DataConfig, GetError, PRIORITY_SHORT};
use crate::net::control;
use crate::net::tls::{self, Identity};

/// Answers a stranger's request to join. Takes the host key that the connection proved and the request's bytes.
pub type JoinDoor = Arc<dyn Fn(KeyId, Vec<u8>) -> BoxFuture<'static, Vec<u8>> + Send + Sync>;

/// Pause before the next address of a host is tried beside those that have not answered yet (RFC 8305).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Attempts at a join door that is crowded, and the pause between them.
const JOIN_TRIES_MAX: usize = 8;
const JOIN_PAUSE: Duration = Duration::from_millis(250);

/// What connections reach behind the endpoint.
#[derive(Clone)]
pub struct Doors {
    /// Who is admitted, now and as it changes. Connections of hosts that leave the set are closed.
    pub members: watch::Receiver<Arc<BTreeSet<KeyId>>>,
    /// What this host has.
    pub possession: Arc<dyn Possession>,
    /// Who answers join requests.
    pub join: JoinDoor,
}

/// This host's side of the data plane. Cheap to clone.
#[derive(Clone)]
pub struct DataPlane {
    inner: Arc<Inner>,
}

struct Inner {
    endpoint: Endpoint,
    /// Ends with the last handle, so that what is sent while all comes to its end still goes out.
    _bursts: DropGuard,
    identity: Identity,
    config: DataConfig,
    cluster: ClusterId,
    doors: Doors,
    pool: Pool,
    buffers: Buffers,
    inbound: Arc<Semaphore>,
    handshakes: Handshakes,
    joining: Joining,
    judging: Semaphore,
    uploads: Arc<Semaphore>,
    long_requests: Semaphore,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl DataPlane {
    /// Opens the socket and starts accepting.
    ///
    /// # Errors
    /// The address is taken or not ours, or TLS cannot be set up.
    pub fn bind(
        listen: SocketAddr,
        keypair: &libp2p::identity::Keypair,
        cluster: ClusterId,
        config: DataConfig,
        doors: Doors,
        stop: CancellationToken,
    ) -> std::io::Result<Self> {
        let identity = Identity::new(keypair).map_err(std::io::Error::other)?;
        let server = identity.server(&[ALPN_DATA, ALPN_JOIN]).map_err(std::io::Error::other)?;
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(server));
        server.transport_config(config.transport());
        server.migration(false);

        let socket = std::net::UdpSocket::bind(listen)?;
        // Larger buffers are a wish; the kernel's limit (net.core.rmem_max) may say less.
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, config.socket_buffer_bytes);
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(&socket, config.socket_buffer_bytes);
        let socket = TokioRuntime.wrap_udp_socket(socket)?;
        let (gso, gro) = (socket.max_transmit_segments(), socket.max_receive_segments());
        if gso == 1 {
            warn!("UDP segmentation offload (GSO) is off: expect a quarter of the usual throughput");
        }
        if gro == 1 {
            warn!("UDP receive offload (GRO) is off: expect more CPU time for each byte fetched");
        }
        // Derived from the host key, so that after a restart this host can tell its peers at once that the connections
        // of its earlier life are gone (RFC 9000, section 10.3).
        let secret = keypair.derive_secret(b"weighlock data plane stateless reset").unwrap_or_default();
        let reset_key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &secret);
        let mut endpoint_config = EndpointConfig::new(Arc::new(reset_key));
        // Random ids rather than ids under a key of this process: those of its earlier life would be dropped unanswered.
        endpoint_config.cid_generator(|| Box::new(quinn_proto::RandomConnectionIdGenerator::default()));
        endpoint_config
            .max_udp_payload_size(config.packet_bytes_max)
            .map_err(|e| std::io::Error::other(format!("packet_bytes_max: {e}")))?;
        let bursts = Bursts::new(socket);
        let bursts_end = CancellationToken::new();
        tokio::spawn(bursts.clone().run(bursts_end.clone()));
        let endpoint = Endpoint::new_with_abstract_socket(
            endpoint_config,
            Some(server),
            bursts,
            Arc::new(TokioRuntime),
        )?;
        info!(listen = %endpoint.local_addr()?, gso, gro, "data plane open");

        let plane = Self {
            inner: Arc::new(Inner {
                endpoint,
                _bursts: bursts_end.drop_guard(),
                identity,
                cluster,
                doors,
                // One peer never takes all.
                pool: Pool::new(PeerLimits {
                    uploads_max: (config.uploads_max / 4).max(1),
                    long_requests_max: (config.long_requests_max / 4).max(1),
                }),
                buffers: Buffers::new(config.buffers_max),
                inbound: Arc::new(Semaphore::new(config.connections_max)),
                handshakes: Handshakes::new(config.handshakes_per_address_max),
                joining: Joining::new(config.joins_max, config.joins_per_address_max),
                judging: Semaphore::new(config.joins_judged_max),
                uploads: Arc::new(Semaphore::new(config.uploads_max)),
                long_requests: Semaphore::new(config.long_requests_max),
                tasks: TaskTracker::new(),
                stop,
                config,
            }),
        };
        let accept = plane.clone();
        plane.inner.tasks.spawn(async move { accept.accept_loop().await });
        let watch = plane.clone();
        plane.inner.tasks.spawn(async move { watch.close_former_members().await });
        Ok(plane)
    }

    /// The address in use; tells the port where 0 was asked for.
    ///
    /// # Errors
    /// The socket is gone.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.inner.endpoint.local_addr()
    }

    /// The configuration.
    pub fn config(&self) -> &DataConfig {
        &self.inner.config
    }

    /// Buffers for gets, shared with what is served.
    pub fn buffers(&self) -> &Buffers {
        &self.inner.buffers
    }

    /// A connection to `peer`, an open one if there is one. Tries `addresses` in order.
    ///
    /// # Errors
    /// Not a member, no address answers as that peer, or time is up.
    pub async fn connect(&self, peer: KeyId, addresses: &[SocketAddr]) -> Result<Connection, GetError> {
        let inner = &self.inner;
        if !inner.doors.members.borrow().contains(&peer) {
            return Err(GetError::Lost(format!("{peer} is not a member of this cluster")));
        }
        let connect = || async {
            let connection = self.dial(peer, addresses, ALPN_DATA).await?;
            self.keep(peer, &connection);
            let serve = self.clone();
            let served = connection.clone();
            // The other side may ask us over the connection that we opened.
            inner.tasks.spawn(async move { serve.serve_connection(peer, served).await });
            Ok(connection)
        };
        inner.pool.get_or_connect(peer, connect).await
    }

    /// Sends a join request to `peer` and returns its answer.
    ///
    /// # Errors
    /// No address answers as that peer, it closes, or time is up.
    pub async fn join(
        &self,
        peer: KeyId,
        addresses: &[SocketAddr],
        request: &[u8],
    ) -> Result<Vec<u8>, GetError> {
        let mut tries = JOIN_TRIES_MAX;
        loop {
            tries -= 1;
            let connection = self.dial(peer, addresses, ALPN_JOIN).await?;
            let exchange = async {
                let (mut send, mut recv) = connection.open_bi().await?;
                send.write_all(request).await.map_err(std::io::Error::other)?;
                send.finish().map_err(std::io::Error::other)?;
                recv.read_to_end(JOIN_ANSWER_BYTES_MAX).await.map_err(std::io::Error::other)
            };
            let answer = tokio::time::timeout(self.connect_timeout(), exchange).await;
            let crowded = matches!(connection.close_reason(), Some(ConnectionError::ApplicationClosed(closed))
                if closed.error_code == VarInt::from_u32(close::LIMIT));
            connection.close(VarInt::from_u32(close::DONE), b"");
            match answer {
                Ok(Ok(bytes)) => return Ok(bytes),
                _ if crowded && tries > 0 => tokio::time::sleep(JOIN_PAUSE).await,
                Ok(Err(e)) => return Err(GetError::Lost(e.to_string())),
                Err(_) => return Err(GetError::Lost("no answer in time".into())),
            }
        }
    }

    /// Live connections: peer, remote address, round-trip time in milliseconds, path MTU in bytes.
    pub fn connections(&self) -> Vec<(KeyId, SocketAddr, f64, u16)> {
        let stats = |connection: &Connection| {
            let path = connection.stats().path;
            (connection.remote_address(), path.rtt.as_secs_f64() * 1000.0, path.current_mtu)
        };
        let open = self.inner.pool.open();
        open.iter()
            .map(|(key, connection)| (*key, stats(connection)))
            .map(|(k, (a, r, m))| (k, a, r, m))
            .collect()
    }

    fn connect_timeout(&self) -> Duration {
        Duration::from_secs(self.inner.config.connect_timeout_s)
    }

    async fn dial(&self, peer: KeyId, addresses: &[SocketAddr], alpn: &[u8]) -> Result<Connection, GetError> {
        let inner = &self.inner;
        let peer_id =
            control::peer_id(peer).ok_or_else(|| GetError::Lost(format!("{peer} is not a host key")))?;
        let crypto = inner.identity.client(alpn, peer_id).map_err(|e| GetError::Lost(e.to_string()))?;
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(inner.config.transport());
        let mut last = format!("no data address is known for {peer}");
        let mut waiting = addresses.iter();
        let mut attempts = FuturesUnordered::new();
        loop {
            if let Some(address) = waiting.next() {
                match inner.endpoint.connect_with(config.clone(), *address, "weighlock") {
                    Ok(connecting) => attempts.push(self.attempt(*address, connecting)),
                    Err(e) => {
                        last = format!("{address}: {e}");
                        continue;
                    }
                }
            }
            tokio::select! {
                Some(attempt) = attempts.next() => match attempt {
                    Ok(connection) => return Ok(connection),
                    Err(e) => last = e,
                },
                () = tokio::time::sleep(ATTEMPT_DELAY), if waiting.len() > 0 => {}
                else => return Err(GetError::Lost(last)),
            }
        }
    }

    async fn attempt(
        &self,
        address: SocketAddr,
        connecting: quinn::Connecting,
    ) -> Result<Connection, String> {
        match tokio::time::timeout(self.connect_timeout(), connecting).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(e)) => Err(format!("{address}: {e}")),
            Err(_) => Err(format!("{address}: no answer in {} s", self.inner.config.connect_timeout_s)),
        }
    }

    async fn accept_loop(&self) {
        loop {
            let incoming = tokio::select! {
                () = self.inner.stop.cancelled() => break,
                incoming = self.inner.endpoint.accept() => incoming,
            };
            let Some(incoming) = incoming else { break };
            let Ok(permit) = self.inner.inbound.clone().try_acquire_owned() else {
                incoming.refuse();
                continue;
            };
            // Makes a sender prove its address before it costs us a handshake, once half of the room is taken.
            if !incoming.remote_address_validated()
                && self.inner.inbound.available_permits() < self.inner.config.connections_max / 2
            {
                let _ = incoming.retry();
                continue;
            }
            let plane = self.clone();
            self.inner.tasks.spawn(async move { plane.admit(incoming, permit).await });
        }
    }

    async fn admit(&self, incoming: Incoming, _permit: OwnedSemaphorePermit) {
        let remote = incoming.remote_address();
        let Some(handshake) = self.inner.handshakes.begin(remote.ip()) else {
            // Unanswered rather than refused: it tries again by itself.
            return incoming.ignore();
        };
        let connection = match tokio::time::timeout(self.connect_timeout(), incoming).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(e)) => return debug!(%remote, error = %e, "handshake failed"),
            Err(_) => return debug!(%remote, "handshake took too long"),
        };
        drop(handshake);
        let Some(peer) = tls::remote_key(&connection) else {
            return connection.close(VarInt::from_u32(close::NOT_A_MEMBER), b"host keys are Ed25519");
        };
        let handshake = connection.handshake_data();
        let alpn = handshake
            .and_then(|data| data.downcast::<quinn::crypto::rustls::HandshakeData>().ok())
            .and_then(|data| data.protocol)
            .unwrap_or_default();
        if alpn == ALPN_JOIN {
            return self.serve_join(peer, connection).await;
        }
        if !self.inner.doors.members.borrow().contains(&peer) {
            info!(%peer, %remote, "refused a stranger on the data plane");
            return connection.close(VarInt::from_u32(close::NOT_A_MEMBER), b"not a member of this cluster");
        }
        if self.inner.pool.count(peer) >= self.inner.config.connections_per_peer_max {
            debug!(%peer, "refused a member's connection: it has as many as it may");
            return connection.close(VarInt::from_u32(close::LIMIT), b"too many connections");
        }
        self.keep(peer, &connection);
        self.serve_connection(peer, connection).await;
    }

    async fn serve_join(&self, peer: KeyId, connection: Connection) {
        let inner = &self.inner;
        let full =
            || connection.close(VarInt::from_u32(close::LIMIT), b"too many hosts are joining; try again");
        let Some(place) = inner.joining.enter(connection.remote_address().ip()) else {
            return full();
        };
        let exchange = async {
            let (mut send, mut recv) = connection.accept_bi().await.map_err(|e| e.to_string())?;
            let request = recv.read_to_end(JOIN_REQUEST_BYTES_MAX).await.map_err(|e| e.to_string())?;
            place.judged(true);
            let answer = {
                let _turn = inner.judging.acquire().await.map_err(|e| e.to_string())?;
                (inner.doors.join)(peer, request).await
            };
            place.judged(false);
            send.write_all(&answer).await.map_err(|e| e.to_string())?;
            send.finish().map_err(|e| e.to_string())?;
            // The joiner closes once it has read the answer.
            connection.closed().await;
            Ok::<(), String>(())
        };
        let done = tokio::select! {
            done = tokio::time::timeout(self.connect_timeout(), exchange) => done,
            () = place.put_out() => return full(),
        };
        match done {
            Ok(Ok(())) => {}
            Ok(Err(e)) => debug!(%peer, error = %e, "join attempt failed"),
            Err(_) => connection.close(VarInt::from_u32(close::LIMIT), b"took too long"),
        }
    }

    /// Opens our one-way stream and says who we are.
    async fn greet(&self, connection: &Connection) -> std::io::Result<()> {
        let hello = Hello {
            version: 1,
            cluster: self.inner.cluster,
            capabilities: capability::OURS,
            software: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let say = async {
            let mut stream = connection.open_uni().await?;
            let _ = stream.set_priority(PRIORITY_SHORT);
            stream.write_all(&hello.encode()).await?;
            Ok(())
        };
        tokio::time::timeout(self.connect_timeout(), say)
            .await
            .unwrap_or(Err(std::io::ErrorKind::TimedOut.into()))
    }

    async fn serve_connection(&self, peer: KeyId, connection: Connection) {
        // It is in the pool by now, or a revocation in between would be missed.
        if !self.inner.doors.members.borrow().contains(&peer) {
            connection.close(VarInt::from_u32(close::NOT_A_MEMBER), b"no longer a member");
        }
        let hello = self.clone();
        let greeted = connection.clone();
        self.inner.tasks.spawn(async move {
            if let Err(e) = hello.greet(&greeted).await {
                debug!(%peer, error = %e, "hello could not be sent");
            }
            hello.check_hello(peer, greeted).await;
        });
        let part = self.inner.pool.part(peer);
        loop {
            let (send, recv) = tokio::select! {
                () = self.inner.stop.cancelled() => {
                    connection.close(VarInt::from_u32(close::DONE), b"shutting down");
                    break;
                }
                stream = connection.accept_bi() => match stream {
                    Ok(stream) => stream,
                    Err(e) => { debug!(%peer, reason = %e, "data connection ended"); break }
                },
            };
            let plane = self.clone();
            let part = part.clone();
            self.inner.tasks.spawn(async move {
                let inner = &plane.inner;
                let shares = Shares {
                    buffers: &inner.buffers,
                    uploads: [&part.uploads, &inner.uploads],
                    long_requests: [&part.long_requests, &inner.long_requests],
                };
                serve_stream(inner.doors.possession.clone(), &inner.config, shares, peer, send, recv).await;
            });
        }
        drop(part);
        self.inner.pool.forget(peer, &connection);
        self.inner.pool.share(|open| self.inner.config.window_bytes(open));
    }

    fn keep(&self, peer: KeyId, connection: &Connection) {
        self.inner.pool.add(peer, connection.clone());
        self.inner.pool.share(|open| self.inner.config.window_bytes(open));
    }

    /// The first one-way stream must be a hello of our own cluster.
    async fn check_hello(&self, peer: KeyId, connection: Connection) {
        let read = async {
            let mut stream = connection.accept_uni().await.ok()?;
            let mut len = [0; 2];
            stream.read_exact(&mut len).await.ok()?;
            let len = usize::from(u16::from_be_bytes(len));
            if len > HELLO_BYTES_MAX {
                return Some(Err(()));
            }
            let mut body = vec![0; len];
            stream.read_exact(&mut body).await.ok()?;
            Some(Hello::parse(&body).map_err(|_| ()))
        };
        match tokio::time::timeout(self.connect_timeout(), read).await {
            Ok(Some(Ok(hello))) if hello.cluster == self.inner.cluster => {
                debug!(%peer, software = hello.software, "hello");
            }
            Ok(Some(_)) => {
                warn!(%peer, "closed a data connection: its hello is malformed or of another cluster");
                connection.close(VarInt::from_u32(close::PROTOCOL), b"hello");
            }
            // Ended by itself, or silent: an idle connection costs one slot and times out.
            Ok(None) | Err(_) => {}
        }
    }

    async fn close_former_members(&self) {
        let mut members = self.inner.doors.members.clone();
        loop {
            tokio::select! {
                () = self.inner.stop.cancelled() => break,
                changed = members.changed() => if changed.is_err() { break },
            }
            let now = members.borrow_and_update().clone();
            for (peer, connection) in self.inner.pool.open() {
                if !now.contains(&peer) {
                    info!(%peer, "closed the data connection of a host that is no longer a member");
                    connection.close(VarInt::from_u32(close::NOT_A_MEMBER), b"no longer a member");
                }
            }
        }
    }
}
