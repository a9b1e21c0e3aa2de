//! What one host remembers: verified layer files with their trees, manifests and statements in an embedded store.
//!
//! **Architecture invariant:** no byte enters a layer file before BLAKE3 proved it; a reader never sees a layer
//! file that is not sealed.

pub mod inspect;
pub mod plan;
