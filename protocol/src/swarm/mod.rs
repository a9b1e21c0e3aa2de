//! Scheduling: which host is asked for which range, decided without IO or a clock.
//!
//! Big bytes never enter a scheduler. It emits [`Action::Fetch`] and hears [`Input::Stored`] or
//! [`Input::Failed`]. A driver calls `handle(now, input)`, then `poll()` until it is idle, and decides nothing.
//!
//! **Architecture invariant:** all randomness comes from a seed and all collections are ordered, so the
//! same inputs give the same decisions on every machine. `sim` relies on it.

mod config;
mod io;
mod peers;
mod pieces;
mod simple;

pub use config::FetchConfig;
pub use io::{Action, Event, Fault, Input, Poll, SlotId};
pub use pieces::{LayerWant, piece_bytes};
pub use simple::SimpleFetch;
