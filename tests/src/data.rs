//! A bare QUIC client with a libp2p certificate: what anybody can send to the data plane.

use std::net::SocketAddr;
use std::sync::Arc;

use libp2p::identity::Keypair;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, ConnectionError, Endpoint, VarInt};
use weighlock_protocol::KeyId;

use crate::control::peer_id;
use crate::wait::PATIENCE;

/// The client. Needs a tokio runtime.
pub struct Client {
    endpoint: Endpoint,
    keypair: Keypair,
}

/// What came of a request.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Bytes that came, whatever they were.
    pub bytes: Vec<u8>,
    /// The code with which the other side closed the connection, if it did.
    pub closed: Option<u64>,
    /// Whether nothing happened within [`PATIENCE`].
    pub silence: bool,
}

impl Client {
    /// On a free loopback port, with this identity.
    ///
    /// # Panics
    /// No port is free.
    pub fn new(keypair: Keypair) -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let endpoint = Endpoint::client(any).expect("a free UDP port");
        Self { endpoint, keypair }
    }

    /// Connects to `host` by this ALPN.
    ///
    /// # Errors
    /// The handshake failed.
    ///
    /// # Panics
    /// The library refuses the settings.
    pub async fn connect(
        &self,
        host: &KeyId,
        at: SocketAddr,
        alpn: &[u8],
    ) -> Result<Connection, ConnectionError> {
        let mut tls =
            libp2p_tls::make_client_config(&self.keypair, Some(peer_id(host))).expect("a certificate");
        tls.alpn_protocols = vec![alpn.to_vec()];
        let crypto = QuicClientConfig::try_from(tls).expect("suites for QUIC");
        let config = quinn::ClientConfig::new(Arc::new(crypto));
        self.endpoint.connect_with(config, at, "l").expect("valid settings").await
    }

    /// Connects, sends `request` on a stream of its own and reads what comes until the connection or the stream ends.
    pub async fn ask(&self, host: &KeyId, at: SocketAddr, alpn: &[u8], request: &[u8]) -> Answer {
        let connection = match self.connect(host, at, alpn).await {
            Ok(connection) => connection,
            Err(e) => {
                return Answer { closed: code(&e), ..Answer::default() };
            }
        };
        let mut answer = Answer::default();
        let exchange = async {
            let Ok((mut send, mut recv)) = connection.open_bi().await else {
                return;
            };
            let _ = send.write_all(request).await;
            let _ = send.finish();
            while let Ok(Some(chunk)) = recv.read_chunk(1 << 16, true).await {
                answer.bytes.extend_from_slice(&chunk.bytes);
            }
        };
        if tokio::time::timeout(PATIENCE, exchange).await.is_err() {
            answer.silence = true;
        }
        answer.closed = connection.close_reason().as_ref().and_then(code);
        connection.close(VarInt::from_u32(0), b"");
        answer
    }
}

/// The code with which the other side's application closed a connection.
pub fn code(error: &ConnectionError) -> Option<u64> {
    match error {
        ConnectionError::ApplicationClosed(close) => Some(close.error_code.into_inner()),
        _ => None,
    }
}
