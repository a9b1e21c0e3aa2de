//! The store as its users see it: one binary, one module per concern.

mod adopt;
mod commit;
mod handout;
mod import;
mod materialise;
mod partial;
mod sealed;
mod support;
