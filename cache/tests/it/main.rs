//! The store as its users see it: one binary, one module per concern.

mod adopt;
mod commit;
mod format;
mod full;
mod gc;
mod handout;
mod import;
mod materialise;
mod partial;
mod room;
mod scrub;
mod sealed;
mod support;
