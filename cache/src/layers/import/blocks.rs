//! One file through the hashers: on its own thread while every core has a file, on more once cores are free.

use std::fs::File;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

use sha2::Digest;
use weighlock_protocol::{LayerId, Sha256};

use super::staging::Out;
use super::tensors::TensorHasher;
use super::{Run, read_block};
use crate::error::{StoreError, at};
use crate::layers::outboard::TreeBuilder;
use crate::plan::PlanFile;

/// Blocks on their way to the other thread.
const HANDED_BLOCKS: usize = 2;
/// Buffers of a file: when a block was handed over, the other thread is done with the one that many before it.
const BUFFERS: usize = HANDED_BLOCKS + 2;
/// Bytes after which the disk is given what was written, so that little is left to wait for at the end.
const WRITE_BACK_BYTES: u64 = 64 << 20;

/// What the bytes of a file hash to: the layer, SHA-256, each tensor.
pub(super) type Proof = (LayerId, Sha256, Vec<LayerId>);

impl Run<'_> {
    /// A file of one block.
    pub(super) fn small(
        &self,
        file: &PlanFile,
        from: &File,
        out: &Out,
        write: bool,
    ) -> Result<Proof, StoreError> {
        self.check_cancel()?;
        let mut bytes = vec![0; usize::try_from(file.size).unwrap_or(0)];
        read_block(from, &mut bytes, 0, &file.source)?;
        if write {
            out.write(0, &bytes)?;
        }
        let spare = self.spare_cores();
        let mut builder = TreeBuilder::new(file.size, self.block_bytes);
        let sink = |offset: u64, part: &[u8]| out.write_tree(offset, part);
        builder.block(&bytes, spare, sink).map_err(at(&out.tree, "write"))?;
        let id = builder.finish(sink).map_err(at(&out.tree, "write"))?;
        let mut tensors = TensorHasher::new(&file.tensors);
        tensors.block(&bytes, spare);
        self.advance(bytes.len());
        Ok((id, Sha256::of(&bytes), tensors.finish()))
    }

    /// A file of many blocks. All is done here, while a block is in the core's cache, until a core has no file of its
    /// own: it then gets SHA-256, which one core has to do in order, and all free ones share in BLAKE3.
    pub(super) fn large(
        &self,
        file: &PlanFile,
        from: &File,
        out: &Out,
        write: bool,
    ) -> Result<Proof, StoreError> {
        std::thread::scope(|scope| {
            let mut sha = ShaSide::new();
            let write_back = WriteBack::begin(scope, out.file.as_ref().filter(|_| write));
            let mut tree = TreeBuilder::new(file.size, self.block_bytes);
            let mut tensors = TensorHasher::new(&file.tensors);
            let sink = |offset: u64, part: &[u8]| out.write_tree(offset, part);
            let mut buffers: Vec<Arc<Vec<u8>>> = Vec::with_capacity(BUFFERS);
            let (mut offset, mut given) = (0, 0);
            while offset < file.size {
                self.check_cancel()?;
                let spare = self.spare_cores();
                if spare {
                    sha.hand_over(scope);
                }
                let len = usize::try_from(file.size - offset).unwrap_or(usize::MAX).min(self.block_bytes);
                let free = buffers.iter().position(|buffer| Arc::strong_count(buffer) == 1);
                let mut block = match free {
                    Some(free) => buffers.swap_remove(free),
                    None => Arc::default(),
                };
                // Nobody else has it, so this copies nothing.
                let bytes = Arc::make_mut(&mut block);
                bytes.resize(len, 0);
                read_block(from, bytes, offset, &file.source)?;
                if write {
                    out.write(offset, bytes)?;
                }
                sha.block(&block);
                tree.block(&block, spare, sink).map_err(at(&out.tree, "write"))?;
                tensors.block(&block, spare);
                if buffers.len() < BUFFERS {
                    buffers.push(block);
                }
                offset += len as u64;
                self.advance(len);
                if offset - given >= WRITE_BACK_BYTES {
                    write_back.ask();
                    given = offset;
                }
            }
            write_back.end().map_err(at(&out.data, "sync"))?;
            let id = tree.finish(sink).map_err(at(&out.tree, "write"))?;
            Ok((id, sha.finish(), tensors.finish()))
        })
    }
}

/// SHA-256 of a file: on the thread that reads it, or on one of its own.
enum ShaSide<'scope> {
    Here(sha2::Sha256),
    There(SyncSender<Arc<Vec<u8>>>, ScopedJoinHandle<'scope, sha2::Sha256>),
}

impl<'scope> ShaSide<'scope> {
    fn new() -> Self {
        Self::Here(sha2::Sha256::new())
    }

    fn hand_over(&mut self, scope: &'scope Scope<'scope, '_>) {
        let Self::Here(hasher) = self else {
            return;
        };
        let mut hasher = std::mem::take(hasher);
        let (sender, blocks) = sync_channel::<Arc<Vec<u8>>>(HANDED_BLOCKS);
        let thread = scope.spawn(move || {
            for block in blocks {
                hasher.update(&block[..]);
            }
            hasher
        });
        *self = Self::There(sender, thread);
    }

    fn block(&mut self, block: &Arc<Vec<u8>>) {
        match self {
            Self::Here(hasher) => hasher.update(&block[..]),
            // That thread ends early only by a panic, which `finish` passes on.
            Self::There(sender, _) => drop(sender.send(Arc::clone(block))),
        }
    }

    fn finish(self) -> Sha256 {
        let hasher = match self {
            Self::Here(hasher) => hasher,
            Self::There(sender, thread) => {
                drop(sender);
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            }
        };
        Sha256(hasher.finalize().into())
    }
}

/// Brings a file to the disk while it is still being written. An error of the disk is told once per open file, so it
/// is kept here until the end.
struct WriteBack<'scope>(Option<(SyncSender<()>, ScopedJoinHandle<'scope, std::io::Result<()>>)>);

impl<'scope> WriteBack<'scope> {
    fn begin<'env>(scope: &'scope Scope<'scope, 'env>, file: Option<&'env File>) -> Self {
        Self(file.map(|file| {
            let (sender, asked) = sync_channel(1);
            let thread = scope.spawn(move || asked.iter().try_for_each(|()| file.sync_data()));
            (sender, thread)
        }))
    }

    /// Does not wait: what a sync under way misses, the next one takes.
    fn ask(&self) {
        if let Some((sender, _)) = &self.0 {
            let _ = sender.try_send(());
        }
    }

    fn end(self) -> std::io::Result<()> {
        match self.0 {
            None => Ok(()),
            Some((sender, thread)) => {
                drop(sender);
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};

    use weighlock_protocol::manifest::LayerKind;

    use super::*;
    use crate::plan::TensorSpan;

    #[test]
    fn one_core_and_many_find_the_same() {
        let dir = tempfile::tempdir().expect("dir");
        let source = dir.path().join("file");
        let bytes: Vec<u8> =
            (0..3_000_001_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        std::fs::write(&source, &bytes).expect("written");
        let spans = [(100, 700_000), (700_100, 0), (700_100, 2_200_000)];
        let tensors = spans.map(|(offset, len)| TensorSpan {
            name: format!("at {offset}"),
            dtype: "U8".into(),
            shape: vec![len],
            offset,
            len,
        });
        let file = PlanFile {
            path: "file".into(),
            source: source.clone(),
            kind: LayerKind::Weights,
            size: bytes.len() as u64,
            tensors: tensors.to_vec(),
        };
        let from = File::open(&source).expect("opened");
        for (cores, block_bytes) in [(0, 64 << 10), (64, 64 << 10), (0, 1 << 20), (64, 1 << 20)] {
            let run = Run {
                dir: Some(dir.path()),
                block_bytes,
                reflink: AtomicBool::new(false),
                sync_each: false,
                cores,
                at_work: AtomicUsize::new(0),
                cancel: &AtomicBool::new(false),
                progress: &|_| {},
                done_bytes: AtomicU64::new(0),
                total_bytes: file.size,
                done_files: AtomicUsize::new(0),
                total_files: 1,
            };
            let out = Out::named(run.dir, &format!("{cores}-{block_bytes}"), file.size).expect("staged");
            let (id, sha256, hashes) = run.large(&file, &from, &out, true).expect("hashed");
            assert_eq!(id, LayerId::of(&bytes));
            assert_eq!(sha256, Sha256::of(&bytes));
            let wanted = spans.map(|(at, len)| LayerId::of(&bytes[at as usize..(at + len) as usize]));
            assert_eq!(hashes, wanted);
            assert!(std::fs::read(&out.data).expect("read") == bytes, "the copy is the file");
        }
    }
}
