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
mod plain_user;
mod room;
mod scrub;
mod seal;
mod sealed;
mod support;
mod take;
