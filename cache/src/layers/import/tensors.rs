//! Tensor hashes out of blocks of a file that come in order.

use weighlock_protocol::LayerId;

use crate::plan::TensorSpan;

/// Bytes of a tensor below which one core is as fast as all.
const PARALLEL_BYTES_MIN: usize = 256 * 1024;

/// Hashes tensors out of blocks that come in order.
pub(super) struct TensorHasher<'a> {
    spans: &'a [TensorSpan],
    hasher: blake3::Hasher,
    done: Vec<LayerId>,
    at: u64,
}

impl<'a> TensorHasher<'a> {
    pub(super) fn new(spans: &'a [TensorSpan]) -> Self {
        Self { spans, hasher: blake3::Hasher::new(), done: Vec::with_capacity(spans.len()), at: 0 }
    }

    /// Takes the next block, on all cores if `parallel`.
    pub(super) fn block(&mut self, block: &[u8], parallel: bool) {
        let block_end = self.at + block.len() as u64;
        while let Some(span) = self.spans.get(self.done.len()) {
            let (start, end) = (span.offset.max(self.at), (span.offset + span.len).min(block_end));
            if start < end {
                let part = &block[(start - self.at) as usize..(end - self.at) as usize];
                if parallel && part.len() >= PARALLEL_BYTES_MIN {
                    self.hasher.update_rayon(part);
                } else {
                    self.hasher.update(part);
                }
            }
            if span.offset + span.len > block_end {
                break;
            }
            self.done.push(LayerId(*self.hasher.finalize().as_bytes()));
            self.hasher.reset();
        }
        self.at = block_end;
    }

    pub(super) fn finish(self) -> Vec<LayerId> {
        debug_assert_eq!(self.done.len(), self.spans.len());
        self.done
    }
}
