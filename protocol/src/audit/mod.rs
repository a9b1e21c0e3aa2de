//! The audit log of one host: what was opened, by whom, on which grounds, as lines that prove each other.
//!
//! A log is JSON Lines. Each line carries the SHA-256 of the line before it (its bytes without the newline), so none
//! can be changed, left out or moved; from time to time a line is a [checkpoint](Checkpoint) that the host signed.
//! What comes after the last checkpoint is proven by nobody yet. Any stretch of a log can be checked by itself: its
//! first line tells from where the chain goes on.

mod chain;
mod checkpoint;
mod entry;

pub use chain::{Fault, Line, LineError, Position, Verified, Verifier};
pub use checkpoint::{CHECKPOINT_PAYLOAD_TYPE, Checkpoint, CheckpointError, SignedCheckpoint};
pub use entry::{
    Caller, Closed, Door, Entry, Event, Gap, Grounds, REASON_CHARS_MAX, Segment, TEXT_CHARS_MAX, bounded,
};

/// Longest line, in bytes without the newline.
pub const LINE_BYTES_MAX: usize = 16 << 10;
