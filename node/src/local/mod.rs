//! What crosses the local sockets: frames, and the messages in them.

pub mod fleet;
pub mod frame;
pub mod integrity;
pub mod ladder;
pub mod loader;
pub mod message;
pub mod observe;
pub mod request;
pub mod store;
pub mod weighed;
