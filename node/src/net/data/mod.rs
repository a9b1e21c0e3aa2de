//! The data plane: layers over QUIC in the iroh-blobs wire protocol, verified group by group.

mod answer;
mod batch;
mod buffers;
mod endpoint;
mod get;
mod inflow;
mod joining;
mod link;
mod pool;
mod request;
mod serve;
mod tree;

use std::sync::Arc;

pub use buffers::Buffers;
pub use endpoint::{DataPlane, Doors, JoinDoor};
pub use get::{Declared, GetError, GetOptions, Got, doubt, get, observe};
pub use link::{open_link, read_frame, refuse_link};
pub use serve::{Pass, Possession, Shares, serve_stream};
pub use tree::tree;

/// Largest UDP payload that may be configured: ten of them must fit into one message to the kernel.
pub const PACKET_BYTES_MAX: u16 = 6500;
/// Smallest one: what every path of QUIC carries.
pub const PACKET_BYTES_MIN: u16 = 1200;
/// Smallest window of a connection in bytes, however many there are.
pub const WINDOW_BYTES_MIN: u64 = 256 << 10;

/// Priority of streams that carry short messages: they go before the bytes of layers.
const PRIORITY_SHORT: i32 = 1;

/// Limits and tuning of the data plane. Sizes in bytes, times in seconds.
#[derive(Debug, Clone)]
pub struct DataConfig {
    /// Connections from others at once, all peers together.
    pub connections_max: usize,
    /// Connections that one member may have open to this host, both directions together.
    pub connections_per_peer_max: usize,
    /// Handshakes under way from one address (IPv6: one /64).
    pub handshakes_per_address_max: usize,
    /// Join attempts in progress at once; strangers share these.
    pub joins_max: usize,
    /// Join requests judged at once.
    pub joins_judged_max: usize,
    /// Join attempts in progress from one address.
    pub joins_per_address_max: usize,
    /// Requests that one connection may have open.
    pub streams_max: u32,
    /// Requests longer than 4 KiB that are being read at once, all connections together; of one peer, a quarter.
    pub long_requests_max: usize,
    /// A request must have come as a whole after this, from when its stream was opened.
    pub request_timeout_s: u64,
    /// Gets served at once, all connections together, of one peer a quarter; each holds two batches of
    /// [`DataConfig::batch_bytes`].
    pub uploads_max: usize,
    /// Unread bytes of one stream.
    pub stream_window_bytes: u32,
    /// Unread, and again unacknowledged, bytes of one connection at most.
    pub connection_window_bytes: u32,
    /// Unread and unacknowledged bytes of all connections together. Each has an equal part, but never less than
    /// [`WINDOW_BYTES_MIN`].
    pub windows_bytes_max: u64,
    /// Largest UDP payload that path MTU discovery tries. Above about 6,550 quinn 0.11 stalls with GSO on.
    pub packet_bytes_max: u16,
    /// Bytes read from disk at once when serving, and written at once when fetching. Larger ones fall out of the
    /// processor's cache between two steps, smaller ones wake the next step more often.
    pub batch_bytes: usize,
    /// Batches of one get that wait to be proven and written.
    pub batches_ahead: usize,
    /// Buffers of that size kept for use again.
    pub buffers_max: usize,
    /// Socket buffers asked of the kernel.
    pub socket_buffer_bytes: usize,
    /// A connection without a sign of life ends after this.
    pub idle_timeout_s: u64,
    /// A handshake must be done after this.
    pub connect_timeout_s: u64,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            connections_max: 512,
            connections_per_peer_max: 8,
            handshakes_per_address_max: 64,
            joins_max: 64,
            joins_judged_max: 4,
            joins_per_address_max: 16,
            streams_max: 256,
            long_requests_max: 16,
            request_timeout_s: 10,
            uploads_max: 64,
            stream_window_bytes: 4 << 20,
            connection_window_bytes: 16 << 20,
            windows_bytes_max: 64 << 20,
            packet_bytes_max: PACKET_BYTES_MAX,
            batch_bytes: 256 << 10,
            batches_ahead: 3,
            buffers_max: 64,
            socket_buffer_bytes: 4 << 20,
            idle_timeout_s: 10,
            connect_timeout_s: 10,
        }
    }
}

impl DataConfig {
    /// The window of each of `connections`, in bytes, in either direction.
    pub(super) fn window_bytes(&self, connections: usize) -> u64 {
        let part = self.windows_bytes_max / 2 / connections.max(1) as u64;
        part.clamp(WINDOW_BYTES_MIN, u64::from(self.connection_window_bytes).max(WINDOW_BYTES_MIN))
    }

    /// How each of its connections behaves.
    pub fn transport(&self) -> Arc<quinn::TransportConfig> {
        let mut discovery = quinn::MtuDiscoveryConfig::default();
        discovery.upper_bound(self.packet_bytes_max);
        let mut transport = quinn::TransportConfig::default();
        transport
            .mtu_discovery_config(Some(discovery))
            .stream_receive_window(self.stream_window_bytes.into())
            // Until it is a member's, who then gets a part of the budget: a stranger at the join door has little to say.
            .receive_window(quinn::VarInt::from_u32(WINDOW_BYTES_MIN as u32))
            .send_window(u64::from(self.connection_window_bytes))
            .max_concurrent_bidi_streams(self.streams_max.into())
            .max_concurrent_uni_streams(4u32.into())
            .keep_alive_interval(Some(std::time::Duration::from_secs((self.idle_timeout_s / 3).max(1))))
            .max_idle_timeout(Some(
                quinn::VarInt::from_u32((self.idle_timeout_s as u32).saturating_mul(1000)).into(),
            ));
        Arc::new(transport)
    }
}
