//! What one host remembers: verified layer files with their trees, manifests and statements in an embedded store.
//!
//! **Architecture invariant:** no byte enters a layer file before BLAKE3 proved it; a reader sees proven groups
//! only. Descriptors that are handed out are read-only; those of partial layers read as zeros where nothing is proven.
//!
//! A [`Store`] is one directory and one process. [`Store::import`] and [`Store::commit`] bring local files in;
//! [`Store::partial`], [`PartialLayer::write`] and [`Store::seal`] bring layers in from peers; [`Store::reader`],
//! [`Store::open_sealed`], [`Store::materialise`] and [`Store::view`] hand them out; [`Store::scrub`] reads them again.

mod artifacts;
pub mod config;
pub mod diff;
pub mod error;
mod fs;
mod gc;
pub mod inspect;
mod layers;
mod leases;
pub mod materialise;
mod meta;
pub mod plan;
mod room;
mod store;
mod usage;
mod used;

pub use artifacts::Commit;
pub use config::{StoreConfig, VerifyOnRead};
pub use error::StoreError;
pub use fs::network_fs;
pub use gc::{Garbage, GarbageKind};
pub use layers::damage::Damage;
pub use layers::import::{Identified, ImportOptions, ImportProgress, Staged, StagedLayer, identify};
pub use layers::partial::PartialLayer;
pub use layers::recover::Recovery;
pub use layers::scrub::{SCRUB_BLOCK_BYTES, Scrubbed};
pub use layers::take::{Taken, Wanted};
pub use layers::{LayerReader, SealedLayer, TreeWindow, Wait};
pub use leases::{LayerLease, Lease};
pub use materialise::{MaterialiseOptions, MaterialiseReport};
pub use meta::{HeadChange, LayerInfo};
pub use room::Reservation;
pub use store::Store;
pub use usage::{Holding, Usage};
pub use used::Pin;
