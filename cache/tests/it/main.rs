//! The store as its users see it: one binary, one module per concern.

mod adopt;
mod commit;
mod gc;
mod handout;
mod import;
mod materialise;
mod partial;
mod room;
mod sealed;
mod support;
