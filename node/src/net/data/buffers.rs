//! Batch buffers that are used again: fresh ones would cost a page fault for every 4 KiB that moves.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};

/// Buffers for all gets and uploads of a data plane. Cheap to clone; clones share them.
#[derive(Debug, Clone)]
pub struct Buffers {
    kept: Arc<Mutex<VecDeque<Bytes>>>,
    kept_max: usize,
}

impl Buffers {
    /// Keeps at most `kept_max` buffers that nobody uses.
    pub fn new(kept_max: usize) -> Self {
        Self { kept: Arc::default(), kept_max }
    }

    /// `len` bytes to write over; what they hold is of no meaning.
    pub(super) fn take(&self, len: usize) -> BytesMut {
        let free = {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            // The newest is likeliest to be in the processor's cache, the oldest likeliest to have left the wire.
            match (kept.back().is_some_and(Bytes::is_unique), kept.front().is_some_and(Bytes::is_unique)) {
                (true, _) => kept.pop_back(),
                (false, true) => kept.pop_front(),
                (false, false) => None,
            }
        };
        let mut buffer = free
            .and_then(|bytes| bytes.try_into_mut().ok())
            .filter(|buffer| buffer.capacity() >= len)
            .unwrap_or_else(|| BytesMut::with_capacity(len));
        buffer.resize(len, 0);
        buffer
    }

    /// Gives back a buffer. Others may still read it; it is used again once nobody does.
    pub(super) fn give(&self, buffer: Bytes) {
        if buffer.is_empty() {
            // Of no use, and one that never held anything never counts as free.
            return;
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < self.kept_max {
            kept.push_back(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_only_when_nobody_reads_it() {
        let buffers = Buffers::new(2);
        let mut first = buffers.take(1000);
        first[..5].copy_from_slice(b"first");
        let place = first.as_ptr();
        let mut whole = first.freeze();
        let read = whole.split_to(5);
        buffers.give(whole);
        let second = buffers.take(1000);
        assert_ne!(second.as_ptr(), place, "somebody reads the first");
        assert_eq!(&read[..], b"first");
        drop(read);
        let third = buffers.take(900);
        assert_eq!(third.len(), 900);
        buffers.give(second.freeze());
        buffers.give(third.freeze());
        buffers.give(Bytes::from(vec![0; 10]));
        assert_eq!(buffers.kept.lock().expect("whole").len(), 2);
        assert_eq!(buffers.take(5000).len(), 5000, "one that is too small is not stretched");
        let empty = Buffers::new(2);
        (0..4).for_each(|_| empty.give(Bytes::new()));
        empty.give(empty.take(100).freeze());
        let kept = empty.kept.lock().expect("whole").len();
        assert_eq!(kept, 1, "nothing but what can be used again");
    }
}
