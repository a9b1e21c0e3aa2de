//! Taking files in: one read gives the copy, the tree, SHA-256 and the tensor hashes; nothing shows until commit.

mod blocks;
mod identify;
pub(super) mod staging;
mod tensors;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use weighlock_protocol::manifest::{self, Contract, Layer, LayerKind, Manifest};
use weighlock_protocol::{LayerId, Sha256};

use super::describe;
use super::outboard::{TreeBuilder, tree_bytes};
use crate::error::{StoreError, at};
use crate::fs::{self, Stamp};
use crate::plan::{Plan, PlanFile};
use crate::room::Reservation;
use crate::store::Store;
pub use identify::{Identified, identify};
use staging::{Out, StagingDir};

/// How files are taken in.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// Share disk blocks with the source where the file system can, instead of copying.
    pub reflink: bool,
}

impl Default for ImportOptions {
    fn default() -> Self {
        Self { reflink: true }
    }
}

/// How far an import is. Reports come from several threads; each number only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImportProgress {
    /// Bytes read and hashed.
    pub done_bytes: u64,
    /// Bytes of all files.
    pub total_bytes: u64,
    /// Files done.
    pub done_files: usize,
    /// Files in all.
    pub total_files: usize,
    /// Everything is hashed, and the disk is being waited for.
    pub syncing: bool,
}

/// An import that is on disk but not visible. Dropping it removes it; [`Store::commit`] makes it visible.
#[derive(Debug)]
pub struct Staged {
    layers: Vec<StagedLayer>,
    manifest: Manifest,
    contract: Contract,
    reflinked_files: usize,
    reflinked: BTreeSet<LayerId>,
    _dir: StagingDir,
    _room: Reservation,
}

impl Staged {
    /// The manifest, as it will be committed.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The contract, tensors included.
    pub fn contract(&self) -> &Contract {
        &self.contract
    }

    /// The distinct layers.
    pub fn layers(&self) -> &[StagedLayer] {
        &self.layers
    }

    /// Files that share their disk blocks with the source.
    pub fn reflinked_files(&self) -> usize {
        self.reflinked_files
    }

    /// Whether a layer shares its disk blocks with the source; else it was copied.
    pub fn is_reflinked(&self, layer: &LayerId) -> bool {
        self.reflinked.contains(layer)
    }
}

/// One layer of a [`Staged`] import.
#[derive(Debug, Clone)]
pub struct StagedLayer {
    /// BLAKE3 root.
    pub id: LayerId,
    /// SHA-256.
    pub sha256: Sha256,
    /// Length in bytes.
    pub size: u64,
    pub(crate) data: PathBuf,
    pub(crate) tree: PathBuf,
}

impl Store {
    /// Takes the files of a plan in. Each is read once; what is hashed is what is stored. Equal files are stored
    /// once. The disk space is checked first; on any error nothing is left.
    ///
    /// # Errors
    /// No space, a file that changed while it was read or since it was inspected, cancelled, too many tensors or
    /// layers for a manifest, an io error.
    pub fn import(
        &self,
        plan: &Plan,
        options: &ImportOptions,
        progress: &(dyn Fn(ImportProgress) + Sync),
        cancel: &AtomicBool,
    ) -> Result<Staged, StoreError> {
        describe::check(plan)?;
        let dir = StagingDir::new(self.temp_path("import"))?;
        let reflink = options.reflink && reflink_works(plan, &dir.0);
        let trees: u64 = plan.files.iter().map(|file| tree_bytes(file.size)).sum();
        let counted = trees.saturating_add(plan.total_bytes());
        let room = self.reserve_import(if reflink { trees } else { counted }, counted)?;

        let run = Run {
            dir: Some(&dir.0),
            room: Some(&room),
            block_bytes: self.config().import_block_bytes.max(64 << 10).next_power_of_two(),
            reflink: AtomicBool::new(reflink),
            sync_each: plan.files.len() <= self.config().sync_each_max,
            cores: cores(),
            at_work: AtomicUsize::new(0),
            cancel,
            progress,
            done_bytes: AtomicU64::new(0),
            total_bytes: plan.total_bytes(),
            done_files: AtomicUsize::new(0),
            total_files: plan.files.len(),
        };
        let described = run.describe(plan, self.config().import_files_max.max(1))?;
        let mut layers = BTreeMap::new();
        described.layers.into_iter().try_for_each(|layer| keep_one(&mut layers, layer))?;

        run.report(true);
        if !run.sync_each {
            fs::sync_fs(&dir.0)?;
        }
        fs::sync_dir(&dir.0)?;
        let Described { manifest, contract, reflinked_files, reflinked, .. } = described;
        let layers = layers.into_values().collect();
        Ok(Staged { layers, manifest, contract, reflinked_files, reflinked, _dir: dir, _room: room })
    }
}

/// What one read of a file gave.
pub(crate) struct Hashed {
    pub(crate) layer: StagedLayer,
    /// BLAKE3 of each tensor, in the order of the plan.
    pub(crate) tensors: Vec<LayerId>,
    reflinked: bool,
}

/// What a plan becomes.
struct Described {
    manifest: Manifest,
    contract: Contract,
    /// Of files, contract and configuration; equal ones are not joined yet.
    layers: Vec<StagedLayer>,
    reflinked_files: usize,
    reflinked: BTreeSet<LayerId>,
}

/// One import at work.
struct Run<'a> {
    /// Where layers are staged; nowhere if only their names are wanted.
    dir: Option<&'a Path>,
    room: Option<&'a Reservation>,
    block_bytes: usize,
    /// Turned off by the first file that cannot.
    reflink: AtomicBool,
    sync_each: bool,
    /// Cores of this machine.
    cores: usize,
    /// Files at work, each on a core.
    at_work: AtomicUsize,
    cancel: &'a AtomicBool,
    progress: &'a (dyn Fn(ImportProgress) + Sync),
    done_bytes: AtomicU64,
    total_bytes: u64,
    done_files: AtomicUsize,
    total_files: usize,
}

impl Run<'_> {
    /// Reads all files once and says what they are.
    fn describe(&self, plan: &Plan, workers_max: usize) -> Result<Described, StoreError> {
        let hashed = self.all(&plan.files, workers_max)?;
        let shares = |file: &&Hashed| file.reflinked;
        let reflinked_files = hashed.iter().filter(shares).count();
        let reflinked = hashed.iter().filter(shares).map(|file| file.layer.id).collect();
        let contract = describe::contract(plan, &hashed)?;
        let (mut files, mut layers) = (Vec::with_capacity(plan.files.len()), Vec::new());
        for (file, hashed) in plan.files.iter().zip(hashed) {
            files.push(Layer {
                path: file.path.clone(),
                kind: file.kind,
                size: file.size,
                id: hashed.layer.id,
                sha256: hashed.layer.sha256,
            });
            layers.push(hashed.layer);
        }
        let contract_layer = self.bytes(&describe::to_json(&contract)?, LayerKind::Contract, "contract")?;
        let diff_ids = files.iter().map(|file| file.sha256).chain([contract_layer.0.sha256]);
        let config = describe::model_config(&contract, diff_ids);
        let config_layer = self.bytes(&describe::to_json(&config)?, LayerKind::Other, "config")?;
        let manifest = manifest::build(&files, &contract_layer.0, &config_layer.0)?;
        layers.extend([contract_layer.1, config_layer.1]);
        Ok(Described { manifest, contract, layers, reflinked_files, reflinked })
    }

    /// All files, several at a time, the largest first so that no long one is left for the end.
    fn all(&self, files: &[PlanFile], workers_max: usize) -> Result<Vec<Hashed>, StoreError> {
        let mut order: Vec<usize> = (0..files.len()).collect();
        order.sort_by_key(|index| std::cmp::Reverse(files[*index].size));
        let next = AtomicUsize::new(0);
        let failed = AtomicBool::new(false);
        let results: Mutex<Vec<(usize, Result<Hashed, StoreError>)>> = Mutex::default();
        std::thread::scope(|scope| {
            for _ in 0..workers_max.min(files.len()) {
                scope.spawn(|| {
                    while !failed.load(Ordering::Relaxed) {
                        let Some(index) = order.get(next.fetch_add(1, Ordering::Relaxed)) else {
                            return;
                        };
                        self.at_work.fetch_add(1, Ordering::Relaxed);
                        let result = self.file(&files[*index], *index);
                        self.at_work.fetch_sub(1, Ordering::Relaxed);
                        failed.fetch_or(result.is_err(), Ordering::Relaxed);
                        results.lock().unwrap_or_else(PoisonError::into_inner).push((*index, result));
                    }
                });
            }
        });
        let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
        results.sort_by_key(|(index, _)| *index);
        results.into_iter().map(|(_, result)| result).collect()
    }

    fn file(&self, file: &PlanFile, index: usize) -> Result<Hashed, StoreError> {
        let changed = |what| StoreError::ChangedWhileRead { path: file.source.clone(), what };
        let source = open_source(&file.source)?;
        let before = source.metadata().map_err(at(&file.source, "stat"))?;
        if !before.is_file() {
            return Err(changed("it is no regular file any more"));
        }
        if before.len() != file.size {
            return Err(changed("its size differs from when it was inspected"));
        }
        let before = Stamp::of(&before);
        let mut out = Out::named(self.dir, &index.to_string(), file.size)?;
        let mut reflinked = false;
        if let Some(staged) = out.file.as_ref().filter(|_| file.size > 0) {
            let tried = self.reflink.load(Ordering::Relaxed);
            reflinked = tried && reflink_copy::reflink_file(&source, staged).is_ok();
            if tried && !reflinked {
                self.reflink.store(false, Ordering::Relaxed);
                staged.set_len(0).map_err(at(&out.data, "truncate"))?;
            }
            // One of a single block is told of a full disk by its single write.
            if !reflinked && file.size > self.block_bytes as u64 {
                fs::reserve(staged, &out.data, file.size)?;
                if let Some(room) = self.room {
                    room.arrived(file.size);
                }
            }
        }
        // Of a clone, the clone is what is hashed: it can no longer change.
        let clone =
            if reflinked { Some(File::open(&out.data).map_err(at(&out.data, "open"))?) } else { None };
        let from = clone.as_ref().unwrap_or(&source);
        let (id, sha256, tensors) = if file.size <= self.block_bytes as u64 {
            self.small(file, from, &out, !reflinked)
        } else {
            self.large(file, from, &out, !reflinked)
        }?;
        let mut beyond = [0];
        let grew = source.read_at(&mut beyond, file.size).map_err(at(&file.source, "read"))? > 0;
        let after = Stamp::of(&source.metadata().map_err(at(&file.source, "stat"))?);
        if grew || after.size != before.size {
            return Err(changed("its size changed"));
        }
        if after.mtime_ns != before.mtime_ns {
            return Err(changed("it was written to"));
        }
        match std::fs::metadata(&file.source) {
            Ok(meta) if Stamp::of(&meta) == before => {}
            Ok(_) => return Err(changed("it was replaced")),
            Err(e) if e.kind() == ErrorKind::NotFound => return Err(changed("it was removed")),
            Err(e) => return Err(at(&file.source, "stat")(e)),
        }
        out.finish(self.sync_each)?;
        self.done_files.fetch_add(1, Ordering::Relaxed);
        self.report(false);
        Ok(Hashed {
            layer: StagedLayer { id, sha256, size: file.size, data: out.data, tree: out.tree },
            tensors,
            reflinked,
        })
    }

    /// A layer from bytes that we made ourselves.
    fn bytes(&self, bytes: &[u8], kind: LayerKind, name: &str) -> Result<(Layer, StagedLayer), StoreError> {
        let size = bytes.len() as u64;
        let mut out = Out::named(self.dir, name, size)?;
        out.write(0, bytes)?;
        let mut builder = TreeBuilder::new(size, self.block_bytes);
        let sink = |offset: u64, part: &[u8]| out.write_tree(offset, part);
        for block in bytes.chunks(self.block_bytes) {
            builder.block(block, true, sink).map_err(at(&out.tree, "write"))?;
        }
        let id = builder.finish(sink).map_err(at(&out.tree, "write"))?;
        out.finish(self.sync_each)?;
        let sha256 = Sha256::of(bytes);
        let layer = Layer { path: name.to_owned(), kind, size, id, sha256 };
        let staged = StagedLayer { id, sha256, size, data: out.data, tree: out.tree };
        Ok((layer, staged))
    }

    /// Whether there is a core that no file is at work on.
    fn spare_cores(&self) -> bool {
        self.at_work.load(Ordering::Relaxed) < self.cores
    }

    fn check_cancel(&self) -> Result<(), StoreError> {
        if self.cancel.load(Ordering::Relaxed) { Err(StoreError::Cancelled) } else { Ok(()) }
    }

    fn advance(&self, bytes: usize) {
        self.done_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.report(false);
    }

    fn report(&self, syncing: bool) {
        (self.progress)(ImportProgress {
            done_bytes: self.done_bytes.load(Ordering::Relaxed),
            total_bytes: self.total_bytes,
            done_files: self.done_files.load(Ordering::Relaxed),
            total_files: self.total_files,
            syncing,
        });
    }
}

/// Keeps the first of equal layers; the files of the others go.
fn keep_one(layers: &mut BTreeMap<LayerId, StagedLayer>, layer: StagedLayer) -> Result<(), StoreError> {
    if layers.contains_key(&layer.id) {
        fs::remove_file(&layer.data)?;
        return fs::remove_file(&layer.tree);
    }
    layers.insert(layer.id, layer);
    Ok(())
}

/// Whether the staging directory can share blocks with every directory of the plan, tried with one file of each.
fn reflink_works(plan: &Plan, dir: &Path) -> bool {
    let mut parents = BTreeSet::new();
    let target = dir.join("probe");
    let works =
        plan.files.iter().filter(|file| file.size > 0 && parents.insert(file.source.parent())).all(|file| {
            let _ = std::fs::remove_file(&target);
            reflink_copy::reflink(&file.source, &target).is_ok()
        });
    let _ = std::fs::remove_file(&target);
    works
}

/// Cores that this process may use.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Opens without waiting: a pipe put in the place of a file must not hang the import.
pub(super) fn open_source(path: &Path) -> Result<File, StoreError> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(at(path, "open"))
}

fn read_block(file: &File, buffer: &mut [u8], offset: u64, source: &Path) -> Result<(), StoreError> {
    file.read_exact_at(buffer, offset).map_err(|e| match e.kind() {
        ErrorKind::UnexpectedEof => {
            StoreError::ChangedWhileRead { path: source.to_owned(), what: "it became shorter" }
        }
        _ => at(source, "read")(e),
    })
}
