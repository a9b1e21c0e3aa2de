//! Control plane: who is there, what they hold, and what has been signed, over libp2p.
//!
//! One task, the [`ControlDriver`], owns the swarm. Everyone else holds a [`ControlHandle`]. Only members
//! get past the handshake; statements and manifests live behind the [`Backend`].
//!
//! **Architecture invariant:** a gossip message is passed on only after the backend has committed it.

mod backend;
mod behaviour;
mod codec;
mod config;
mod crowd;
mod driver;
mod gossip;
mod handle;
mod identity;
mod listen;
mod peers;
mod records;
mod serve;
mod stop;
mod sync;
mod tick;

pub use backend::{Acceptance, Backend, IngestReport};
pub use config::{ControlConfig, ControlLimits, ControlTiming};
pub use driver::ControlDriver;
pub use handle::{ControlError, ControlEvent, ControlHandle, ControlStats, Direction, PeerStatus};
pub use identity::{key_id, keypair_id, peer_id, public_key_id, quic_addr, socket_addr, tcp_addr};
pub use listen::start;
pub use records::{HostRecords, KnownHost};
