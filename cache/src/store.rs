//! The store of one host: one directory, one process, every part of it composed here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use weighlock_protocol::manifest::ManifestError;
use weighlock_protocol::wire::bao::LAYER_BYTES_MAX;
use weighlock_protocol::{LayerId, ManifestDigest, Sha256};

use crate::config::StoreConfig;
use crate::error::{StoreError, at};
use crate::fs;
use crate::gc::Gone;
use crate::layers::Layout;
use crate::layers::outboard::hash_file_beside;
use crate::layers::partial::{PartialLayer, PartialPaths};
use crate::layers::recover::Recovery;
use crate::leases::Leases;
use crate::meta::{LayerInfo, Meta, Reserve};
use crate::room::{Promises, taken};
use crate::used::Used;

/// Where one partial layer is handed out, one opener at a time.
type Slot = Arc<Mutex<Weak<PartialLayer>>>;

/// Unused slots that are kept before they are swept.
const SLOTS_MAX: usize = 1024;

/// The store of one host. Clones share it. All methods block on the disk; async callers use a blocking thread.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    layout: Layout,
    config: StoreConfig,
    boot_id: String,
    meta: Meta,
    slots: Mutex<BTreeMap<LayerId, Slot>>,
    /// Held while layers come and go with their manifests.
    change: Mutex<()>,
    /// Held while a view is made.
    views: Mutex<()>,
    /// Shared while layers are put in their places, held alone while records and files are taken away together.
    placing: RwLock<()>,
    leases: Leases,
    promises: Promises,
    used: Used,
    temp_next: AtomicU64,
    recovery: Mutex<Recovery>,
    /// Released by the kernel when the process ends, however it ends.
    lock: File,
}

impl Store {
    /// Opens the store in `dir`, creating what is missing, and puts right what a kill or power loss left behind.
    ///
    /// # Errors
    /// Another process has it, it lies on a network file system, it is of a newer format, no space, an io error.
    pub fn open(dir: impl AsRef<Path>, config: StoreConfig) -> Result<Self, StoreError> {
        let dir = std::path::absolute(dir.as_ref()).map_err(at(dir.as_ref(), "resolve"))?;
        fs::refuse_network_fs(&dir)?;
        let layout = Layout { root: dir };
        if !layout.root.exists() {
            fs::create_dir(&layout.root, 0o750)?;
            // As well as it goes: where a directory may be made it may not always be opened.
            let _ = layout.root.parent().map(fs::sync_dir);
        }
        fs::create_dir(&layout.run(), 0o750)?;
        let lock = lock(&layout)?;
        fs::create_dir(&layout.layers(), 0o750)?;
        fs::create_dir(&layout.views(), 0o750)?;
        for private in [layout.partial(), layout.staging(), layout.quarantine(), layout.keys()] {
            fs::create_dir(&private, 0o700)?;
        }
        let boot_id = config.boot_id.clone().map_or_else(fs::boot_id, Ok)?;
        let reserve = Reserve::new(layout.reserve(), config.metadata_reserve_bytes);
        let meta = Meta::open(layout.meta(), &layout.root, config.meta_cache_bytes_max, reserve)?;
        let used = Used::new(meta.used()?.into_iter().collect());
        let store = Self {
            inner: Arc::new(Inner {
                layout,
                config,
                boot_id,
                meta,
                slots: Mutex::default(),
                change: Mutex::default(),
                views: Mutex::default(),
                placing: RwLock::default(),
                leases: Leases::default(),
                promises: Promises::default(),
                used,
                temp_next: AtomicU64::new(0),
                recovery: Mutex::default(),
                lock,
            }),
        };
        let report = store.recover()?;
        *lock_of(&store.inner.recovery) = report;
        store.refill_reserve();
        Ok(store)
    }

    /// What opening found and put right.
    pub fn recovery(&self) -> Recovery {
        lock_of(&self.inner.recovery).clone()
    }

    /// The data directory, absolute.
    pub fn dir(&self) -> &Path {
        &self.inner.layout.root
    }

    /// Where keys of this host lie, mode 0700.
    pub fn keys_dir(&self) -> PathBuf {
        self.inner.layout.keys()
    }

    /// Where sockets of this host lie, mode 0750.
    pub fn run_dir(&self) -> PathBuf {
        self.inner.layout.run()
    }

    /// Bytes that may still be written here above the configured floor.
    ///
    /// # Errors
    /// The file system cannot be asked.
    pub fn available_bytes(&self) -> Result<u64, StoreError> {
        let dir = self.dir();
        let free = fs::available_bytes(dir).map_err(at(dir, "ask for free space of"))?;
        Ok(free.saturating_sub(self.config().free_floor_bytes))
    }

    // --- Layers ---

    /// What is on record about a sealed layer; `None` if it is not held completely.
    ///
    /// # Errors
    /// The database failed.
    pub fn layer(&self, id: &LayerId) -> Result<Option<LayerInfo>, StoreError> {
        self.meta().layer(id)
    }

    /// As [`layer`](Self::layer), several in their order, as of one moment.
    ///
    /// # Errors
    /// The database failed.
    pub fn layers_of(&self, ids: &[LayerId]) -> Result<Vec<Option<LayerInfo>>, StoreError> {
        self.meta().layers_of(ids)
    }

    /// All sealed layers, by id.
    ///
    /// # Errors
    /// The database failed.
    pub fn layers(&self) -> Result<Vec<(LayerId, LayerInfo)>, StoreError> {
        self.meta().layers()
    }

    /// Records the SHA-256 of a sealed layer, once somebody computed it from the file.
    ///
    /// # Errors
    /// [`StoreError::NotHeld`]; the database failed.
    pub fn set_sha256(&self, id: &LayerId, sha256: Sha256) -> Result<(), StoreError> {
        let known = self.meta().update_layer(id, |row| row.sha256 = Some(sha256))?;
        if known { Ok(()) } else { Err(StoreError::NotHeld(*id)) }
    }

    /// Computes the SHA-256 of a sealed layer from its file and records it. The same read proves its bytes again: what
    /// rotted here must not look like a lie of who published it.
    ///
    /// # Errors
    /// As [`open_sealed`](Self::open_sealed).
    pub fn prove_sha256(&self, id: &LayerId) -> Result<Sha256, StoreError> {
        use sha2::Digest;
        let layer = self.open_sealed(id)?;
        let read = self.meta().layer(id)?.ok_or(StoreError::NotHeld(*id))?.stamp();
        let mut hasher = sha2::Sha256::new();
        let beside = |bytes: &[u8]| hasher.update(bytes);
        let root = hash_file_beside(&layer.file, &layer.path, layer.size, |_, _| Ok(()), beside)?;
        if root != *id {
            let reason = format!("its bytes hash to {}", root.short());
            return Err(match self.set_aside_read(id, read, reason, 0..0)? {
                Some(damage) => StoreError::Corrupt { layer: *id, reason: damage.reason },
                None => StoreError::NotHeld(*id),
            });
        }
        let sha256 = Sha256(hasher.finalize().into());
        self.set_sha256(id, sha256)?;
        Ok(sha256)
    }

    /// Removes a sealed layer and its tree, whatever refers to it. Files that are open stay readable.
    /// Returns the bytes freed.
    ///
    /// # Errors
    /// The database failed or an io error.
    pub fn remove_layer(&self, id: &LayerId) -> Result<u64, StoreError> {
        let change = self.change_lock();
        let gone = self.drop_layers(&BTreeSet::from([*id]), None)?;
        drop(change);
        self.remove_gone(gone)
    }

    /// A partial layer to write to: a new one with its space reserved, or the one that is already here. All callers
    /// get the same one while it lives.
    ///
    /// # Errors
    /// [`StoreError::AlreadySealed`] if it is complete here; no space; a size other than on record, or over the
    /// limit; an io error.
    pub fn partial(&self, id: &LayerId, size: u64) -> Result<Arc<PartialLayer>, StoreError> {
        if size > LAYER_BYTES_MAX {
            return Err(StoreError::Manifest(ManifestError::TooBig {
                what: "bytes in a layer",
                limit: LAYER_BYTES_MAX,
            }));
        }
        let slot = self.slot(id);
        let mut live = lock_of(&slot);
        if self.meta().layer(id)?.is_some() {
            return Err(StoreError::AlreadySealed(*id));
        }
        let paths = PartialPaths::new(&self.layout().partial(), id);
        let in_use = live.upgrade();
        let is_in_use = in_use.is_some();
        let found = match in_use {
            Some(layer) => Some(layer),
            None => self.resume_files(id, paths.clone())?,
        };
        if let Some(layer) = found {
            if layer.size() == size {
                *live = Arc::downgrade(&layer);
                return Ok(layer);
            }
            // A size is whatever some manifest says until the end is proven: one that is wrong must not keep others out.
            if layer.have_count() > 0 && (is_in_use || layer.has_end()) {
                return Err(StoreError::SizeMismatch { layer: *id, known: layer.size(), given: size });
            }
            layer.remove()?;
        }
        paths.remove()?;
        let create = || PartialLayer::create(paths, *id, size, self.boot_id());
        let layer = Arc::new(self.in_room(id, size, create)?);
        *live = Arc::downgrade(&layer);
        Ok(layer)
    }

    /// The partial layers that are here, with their sizes in bytes.
    ///
    /// # Errors
    /// An io error.
    pub fn partials(&self) -> Result<Vec<(LayerId, u64)>, StoreError> {
        let dir = self.layout().partial();
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&dir).map_err(at(&dir, "list"))? {
            let path = entry.map_err(at(&dir, "list"))?.path();
            if path.extension().is_some_and(|ext| ext == "have")
                && let Some(header) = PartialLayer::peek(&path)?
            {
                found.push((header.layer, header.size));
            }
        }
        found.sort();
        Ok(found)
    }

    /// The partial layer that is here, opened again if nobody has it open; `None` if nothing of it was begun. The
    /// first to open it after a reboot proves what it claims.
    ///
    /// # Errors
    /// An io error.
    pub fn begun(&self, id: &LayerId) -> Result<Option<Arc<PartialLayer>>, StoreError> {
        self.resume_partial(id)
    }

    /// Drops a partial layer and what was fetched of it. Those who still hold it write to nowhere.
    ///
    /// # Errors
    /// An io error.
    pub fn remove_partial(&self, id: &LayerId) -> Result<(), StoreError> {
        let slot = self.slot(id);
        let mut live = lock_of(&slot);
        let living = live.upgrade();
        *live = Weak::new();
        self.meta().forget_damage(id)?;
        match living {
            Some(layer) => layer.remove(),
            None => PartialPaths::new(&self.layout().partial(), id).remove(),
        }
    }

    // --- For the other modules of the store ---

    pub(crate) fn layout(&self) -> &Layout {
        &self.inner.layout
    }

    pub(crate) fn config(&self) -> &StoreConfig {
        &self.inner.config
    }

    pub(crate) fn meta(&self) -> &Meta {
        &self.inner.meta
    }

    pub(crate) fn boot_id(&self) -> &str {
        &self.inner.boot_id
    }

    /// Held by who adds or removes layers together with their manifests.
    pub(crate) fn change_lock(&self) -> MutexGuard<'_, ()> {
        lock_of(&self.inner.change)
    }

    pub(crate) fn view_lock(&self) -> MutexGuard<'_, ()> {
        lock_of(&self.inner.views)
    }

    /// A path in the staging directory that nobody else uses.
    pub(crate) fn temp_path(&self, what: &str) -> PathBuf {
        let n = self.inner.temp_next.fetch_add(1, Ordering::Relaxed);
        self.layout().staging().join(format!("{what}-{n}"))
    }

    /// Syncs the file system. By one descriptor: whoever opens one anew is not told what others were told before.
    pub(crate) fn sync_fs(&self) -> Result<(), StoreError> {
        fs::sync_fs_of(&self.inner.lock, self.dir())
    }

    /// Partial layers that somebody has open, but for those whose slot is taken.
    pub(crate) fn live(&self) -> Vec<Arc<PartialLayer>> {
        lock_of(&self.inner.slots).values().filter_map(|slot| slot.try_lock().ok()?.upgrade()).collect()
    }

    /// Shared by who puts layers in their places.
    pub(crate) fn placing(&self) -> RwLockReadGuard<'_, ()> {
        self.inner.placing.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Held by who takes records and files of layers away.
    pub(crate) fn placing_alone(&self) -> RwLockWriteGuard<'_, ()> {
        self.inner.placing.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn leases_book(&self) -> &Leases {
        &self.inner.leases
    }

    pub(crate) fn promises_book(&self) -> &Promises {
        &self.inner.promises
    }

    pub(crate) fn used_book(&self) -> &Used {
        &self.inner.used
    }

    /// Whether somebody has a partial layer open.
    pub(crate) fn is_live(&self, id: &LayerId) -> bool {
        let slot = lock_of(&self.inner.slots).get(id).cloned();
        slot.is_some_and(|slot| slot.try_lock().map_or(true, |live| live.strong_count() > 0))
    }

    /// Takes the space that is kept for the database again, if there is room.
    pub fn refill_reserve(&self) {
        if let Err(e) = self.meta().refill_reserve(self.config().free_floor_bytes) {
            tracing::debug!(error = %e, "no reserve for metadata now");
        }
    }

    /// The slot of a layer; whoever locks it is the only one who opens, creates or removes that partial layer.
    pub(crate) fn slot(&self, id: &LayerId) -> Slot {
        let mut slots = lock_of(&self.inner.slots);
        if slots.len() > SLOTS_MAX {
            slots.retain(|_, slot| {
                Arc::strong_count(slot) > 1 || slot.try_lock().map_or(true, |live| live.strong_count() > 0)
            });
        }
        slots.entry(*id).or_default().clone()
    }

    /// The partial layer that lives, or that can be opened again; `None` if there is none.
    pub(crate) fn resume_partial(&self, id: &LayerId) -> Result<Option<Arc<PartialLayer>>, StoreError> {
        let slot = self.slot(id);
        let mut live = lock_of(&slot);
        if let Some(layer) = live.upgrade() {
            return Ok(Some(layer));
        }
        let layer = self.resume_files(id, PartialPaths::new(&self.layout().partial(), id))?;
        if let Some(layer) = &layer {
            *live = Arc::downgrade(layer);
        }
        Ok(layer)
    }

    fn resume_files(
        &self,
        id: &LayerId,
        paths: PartialPaths,
    ) -> Result<Option<Arc<PartialLayer>>, StoreError> {
        let layer = PartialLayer::resume(paths, self.boot_id())?.map(Arc::new);
        if let Some(layer) = &layer {
            self.resumed(id, layer.size());
        }
        Ok(layer)
    }

    /// Takes a sealed layer's slot out of the book; those who hold it still read it.
    pub(crate) fn forget_partial(&self, id: &LayerId) {
        lock_of(&self.inner.slots).remove(id);
    }

    /// Forgets layers, and with them an artifact, and moves their files out of the way. The record goes first, with a
    /// note that the files are to go too: a kill in between loses nothing and brings nothing back.
    pub(crate) fn drop_layers(
        &self,
        ids: &BTreeSet<LayerId>,
        artifact: Option<&ManifestDigest>,
    ) -> Result<Gone, StoreError> {
        let mut gone = Gone::default();
        let _placing = self.placing_alone();
        for id in ids {
            if let Some(info) = self.meta().layer(id)? {
                gone.freed = gone.freed.saturating_add(taken(info.size));
                gone.layers.push(*id);
            }
        }
        self.meta().drop_for_good(artifact, &gone.layers)?;
        for id in &gone.layers {
            for path in [self.layout().layer(id), self.layout().layer_tree(id)] {
                let trash = self.temp_path("gone");
                match std::fs::rename(&path, &trash) {
                    Ok(()) => gone.files.push(trash),
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                    Err(e) => return Err(at(&path, "move away")(e)),
                }
            }
        }
        Ok(gone)
    }

    /// Removes what was moved out of the way. Returns the bytes freed.
    pub(crate) fn remove_gone(&self, gone: Gone) -> Result<u64, StoreError> {
        for path in &gone.files {
            fs::remove_file(path)?;
        }
        if !gone.layers.is_empty() {
            // Else they are back after a power loss, without a record and without a note.
            crate::layers::seal::sync_places(self.layout(), &gone.layers)?;
        }
        self.meta().clear_gone(&gone.layers)?;
        Ok(gone.freed)
    }
}

/// Locks; what the lock guards is whole at every point where its holder could panic.
fn lock_of<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes the lock of a data directory for this process, and writes who has it.
fn lock(layout: &Layout) -> Result<File, StoreError> {
    let path = layout.run().join("lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o640)
        .open(&path)
        .map_err(at(&path, "open"))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            let pid = pid.trim();
            return Err(StoreError::Locked {
                path: layout.root.clone(),
                pid: if pid.is_empty() { "unknown" } else { pid }.to_owned(),
            });
        }
        Err(TryLockError::Error(e)) => return Err(at(&path, "lock")(e)),
    }
    file.set_len(0).map_err(at(&path, "truncate"))?;
    writeln!(file, "{}", std::process::id()).map_err(at(&path, "write"))?;
    Ok(file)
}
