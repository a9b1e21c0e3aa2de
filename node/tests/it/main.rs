//! Tests of the daemon as a library, over real sockets.

mod control;
mod data;
mod diff;
mod facts;
mod flips;
mod interop;
mod liar;
mod plane;
mod sandbox;
