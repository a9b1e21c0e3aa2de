//! Making a complete layer permanent, opening it again, and setting aside what turned out wrong.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use weighlock_protocol::LayerId;

use super::outboard::{hash_file, tree_bytes};
use super::partial::{Fate, PartialLayer};
use super::{LayerReader, Layout, SealedLayer};
use crate::config::VerifyOnRead;
use crate::error::{StoreError, at, is_unreadable};
use crate::fs::{self, Stamp};
use crate::meta::{DamageRow, LayerInfo};
use crate::store::Store;

/// Mode of a sealed file: nobody writes.
pub(crate) const SEALED_MODE: u32 = 0o440;

impl Store {
    /// Makes a complete layer permanent: synced, read-only, under its own name, on record. Doing it twice is fine.
    ///
    /// # Errors
    /// [`StoreError::NotHeld`] while groups are missing; no space; an io error. It can be tried again.
    pub fn seal(&self, layer: &Arc<PartialLayer>) -> Result<LayerInfo, StoreError> {
        self.seal_all(std::slice::from_ref(layer))?;
        self.meta().layer(&layer.id())?.ok_or(StoreError::NotHeld(layer.id()))
    }

    /// Seals several complete layers with one database transaction and, from
    /// [`sync_each_max`](crate::StoreConfig::sync_each_max) on, syncs of the file system instead of each file and directory.
    ///
    /// # Errors
    /// As [`seal`](Self::seal). Layers that were sealed before the error stay so or are put right by trying again.
    pub fn seal_all(&self, layers: &[Arc<PartialLayer>]) -> Result<(), StoreError> {
        let sync_each = layers.len() <= self.config().sync_each_max;
        if !sync_each {
            self.sync_together(layers)?;
        }
        let _placing = self.placing();
        // In one order everywhere: two callers that share layers wait for each other in turn, never in a circle.
        let mut layers: Vec<&Arc<PartialLayer>> = layers.iter().collect();
        layers.sort_by_key(|layer| layer.id());
        layers.dedup_by_key(|layer| layer.id());
        // All locks are held to the end: no late write may change a file between its sync and its record.
        let mut fates = Vec::with_capacity(layers.len());
        for layer in layers {
            let id = layer.id();
            let mut fate = layer.fate.write().unwrap_or_else(PoisonError::into_inner);
            if self.meta().layer(&id)?.is_some() {
                if *fate == Fate::Open {
                    // An import brought the same bytes first.
                    layer.paths().remove()?;
                    *fate = Fate::Sealed;
                }
                continue;
            }
            if *fate != Fate::Open {
                // It was let go of while it waited for its turn; the others are not to miss theirs for that.
                continue;
            }
            if !layer.complete() {
                return Err(StoreError::NotHeld(id));
            }
            fates.push((layer, fate));
        }
        let mut placed = Vec::with_capacity(fates.len());
        let open: Vec<Arc<PartialLayer>> = fates.iter().map(|(layer, _)| Arc::clone(layer)).collect();
        if let Err(e) = self.place_synced(&open, sync_each, &mut placed) {
            for layer in placed {
                // The error that made us stop is the one to report.
                let _ = take_back(self.layout(), layer);
            }
            for (layer, fate) in &mut fates {
                if layer.check_writes().is_err() {
                    **fate = Fate::Removed;
                    let _ = layer.paths().remove();
                    self.forget_partial(&layer.id());
                }
            }
            return Err(e);
        }
        for (layer, fate) in &mut fates {
            fs::remove_file(&layer.paths().have)?;
            **fate = Fate::Sealed;
            self.forget_partial(&layer.id());
        }
        Ok(())
    }

    /// Syncs the files of layers, puts them in their places, which `placed` tells, and on record.
    fn place_synced<'a>(
        &self,
        layers: &'a [Arc<PartialLayer>],
        sync_each: bool,
        placed: &mut Vec<&'a PartialLayer>,
    ) -> Result<(), StoreError> {
        if layers.is_empty() {
            return Ok(());
        }
        let mut rows = Vec::with_capacity(layers.len());
        for layer in layers {
            let (id, paths) = (layer.id(), layer.paths());
            if sync_each {
                layer.sync_content()?
            } else {
                layer.check_writes()?
            }
            placed.push(layer);
            for path in [&paths.tree, &paths.data] {
                match fs::chmod(path, SEALED_MODE) {
                    Err(StoreError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {}
                    other => other?,
                }
            }
            rows.push((id, place(self.layout(), &id, layer.size(), &paths.data, &paths.tree)?));
        }
        if sync_each {
            sync_places(self.layout(), rows.iter().map(|(id, _)| id))?;
        } else {
            // They lie in as many directories as there are.
            self.sync_together(layers)?;
        }
        self.meta().commit(&rows, &[], &[], &[])
    }

    /// Syncs the file system. If that fails, whose bytes are lost is found by a sync of each, also of those that are sealed
    /// later: they would not hear of it.
    fn sync_together(&self, layers: &[Arc<PartialLayer>]) -> Result<(), StoreError> {
        self.sync_fs().inspect_err(|_| {
            for layer in layers.iter().chain(&self.live()) {
                let _ = layer.sync_content();
            }
        })
    }

    /// Opens a sealed layer for reading. If its size, modification time or inode are not as recorded (or always, if
    /// configured), its bytes are proven first, which reads the whole file.
    ///
    /// # Errors
    /// [`StoreError::NotHeld`]; [`StoreError::Corrupt`] when the bytes are wrong (the layer is then set aside); an
    /// io error.
    pub fn open_sealed(&self, id: &LayerId) -> Result<SealedLayer, StoreError> {
        self.open_proven(id, self.meta().layer(id)?, self.config().verify_on_read)
    }

    /// As [`open_sealed`](Self::open_sealed), several in their order, looked up together. All are tried, so that all that
    /// are damaged are found.
    ///
    /// # Errors
    /// The first of theirs.
    pub fn open_all_sealed(&self, ids: &[LayerId]) -> Result<Vec<SealedLayer>, StoreError> {
        let verify = self.config().verify_on_read;
        let open = |(id, info)| self.open_proven(id, info, verify);
        let opened: Vec<_> = ids.iter().zip(self.meta().layers_of(ids)?).map(open).collect();
        opened.into_iter().collect()
    }

    /// As [`open_sealed`](Self::open_sealed), proven whatever the configuration says: reading it failed.
    pub(crate) fn open_proven_now(&self, id: &LayerId) -> Result<SealedLayer, StoreError> {
        self.open_proven(id, self.meta().layer(id)?, VerifyOnRead::Always)
    }

    fn open_proven(
        &self,
        id: &LayerId,
        info: Option<LayerInfo>,
        verify: VerifyOnRead,
    ) -> Result<SealedLayer, StoreError> {
        let info = info.ok_or(StoreError::NotHeld(*id))?;
        let (layer, stamp) = self.open_recorded(id, &info)?;
        let changed = stamp != info.stamp();
        if !changed && verify == VerifyOnRead::Changed {
            return Ok(layer);
        }
        // One at a time: two openers need not hash the same file twice.
        let slot = self.slot(id);
        let mut one = slot.lock().unwrap_or_else(PoisonError::into_inner);
        let info = self.meta().layer(id)?.ok_or(StoreError::NotHeld(*id))?;
        let (layer, stamp) = self.open_recorded(id, &info)?;
        if stamp == info.stamp() && verify == VerifyOnRead::Changed {
            return Ok(layer);
        }
        if changed {
            tracing::warn!(layer = %id.short(), "a sealed layer changed on disk; proving it again");
        }
        let found = self.prove(id, &layer.file, &layer.path, info.size, changed)?;
        let after = Stamp::of(&layer.file.metadata().map_err(at(&layer.path, "stat"))?);
        match found {
            Ok(()) if after == stamp => {
                self.meta().update_layer(id, |row| *row = LayerInfo::new(stamp, row.sha256))?;
                Ok(layer)
            }
            Ok(()) => self.damaged(id, &mut one, "it is being written to".into()),
            Err(reason) => self.damaged(id, &mut one, reason),
        }
    }

    /// A reader for serving a layer, sealed or partial; `None` if nothing of it is here. The first reader of a
    /// partial layer after a reboot proves what the layer claims to hold. As who receives proves what it gets, sealed
    /// layers are proven here only when they changed, also under [`VerifyOnRead::Always`]. Of a layer that turns out
    /// damaged, what holds is served.
    ///
    /// # Errors
    /// As [`open_sealed`](Self::open_sealed).
    pub fn reader(&self, id: &LayerId) -> Result<Option<LayerReader>, StoreError> {
        match self.open_proven(id, self.meta().layer(id)?, VerifyOnRead::Changed) {
            Ok(layer) => Ok(Some(LayerReader::sealed(layer, &self.layout().layer_tree(id))?)),
            Err(StoreError::NotHeld(_) | StoreError::Corrupt { .. }) => {
                Ok(self.resume_partial(id)?.map(LayerReader::partial))
            }
            Err(e) => Err(e),
        }
    }

    /// Proves a file against a layer id. `Ok(Err(reason))` when the bytes are wrong. With `rebuild_tree` the tree
    /// file is written anew.
    pub(crate) fn prove(
        &self,
        id: &LayerId,
        file: &File,
        path: &Path,
        size: u64,
        rebuild_tree: bool,
    ) -> Result<Result<(), String>, StoreError> {
        let len = file.metadata().map_err(at(path, "stat"))?.len();
        if len != size {
            return Ok(Err(format!("it has {len} bytes instead of {size}")));
        }
        let judge = |found: Result<LayerId, StoreError>| match found {
            Ok(root) if root == *id => Ok(Ok(())),
            Ok(root) => Ok(Err(format!("its bytes hash to {}", root.short()))),
            Err(StoreError::Io { op: "read", source, .. }) if is_unreadable(&source) => {
                Ok(Err(format!("reading it: {source}")))
            }
            Err(e) => Err(e),
        };
        if !rebuild_tree || tree_bytes(size) == 0 {
            return judge(hash_file(file, path, size, |_, _| Ok(())));
        }
        let temp = self.temp_path("tree");
        let tree = fs::create_reserved(&temp, tree_bytes(size)).inspect_err(|_| {
            // The error that made us stop is the one to report.
            let _ = fs::remove_file(&temp);
        })?;
        let built =
            hash_file(file, path, size, |offset, bytes| tree.write_all_at(bytes, offset)).and_then(|root| {
                if root == *id {
                    tree.sync_data().map_err(at(&temp, "sync"))?;
                    fs::chmod(&temp, SEALED_MODE)?;
                    let target = self.layout().layer_tree(id);
                    std::fs::rename(&temp, &target).map_err(at(&target, "replace"))?;
                }
                Ok(root)
            });
        if !matches!(&built, Ok(root) if root == id) {
            fs::remove_file(&temp)?;
        }
        judge(built)
    }

    fn open_recorded(&self, id: &LayerId, info: &LayerInfo) -> Result<(SealedLayer, Stamp), StoreError> {
        let path = self.layout().layer(id);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let _placing = self.placing_alone();
                // Let go of a moment ago, or brought here again since: then the record is another, or gone.
                if self.meta().layer(id)? == Some(*info) && !path.exists() {
                    tracing::error!(layer = %id, "the file of a sealed layer is gone; it has to be fetched again");
                    self.meta().set_aside(&[(*id, DamageRow::all(info.size, "its file is gone".into()))])?;
                    fs::remove_file(&self.layout().layer_tree(id))?;
                }
                return Err(StoreError::NotHeld(*id));
            }
            Err(e) => return Err(at(&path, "open")(e)),
        };
        let stamp = Stamp::of(&file.metadata().map_err(at(&path, "stat"))?);
        let layer = SealedLayer { id: *id, file, path, size: info.size };
        Ok((layer, stamp))
    }
}

/// Moves finished files to a layer's place, the tree first: a layer in place always has its tree. Files already
/// there stay.
pub(crate) fn place(
    layout: &Layout,
    id: &LayerId,
    size: u64,
    data: &Path,
    tree: &Path,
) -> Result<LayerInfo, StoreError> {
    fs::create_dir(&layout.layer_dir(id), 0o750)?;
    if tree_bytes(size) > 0 {
        move_to(tree, &layout.layer_tree(id))?;
    }
    let target = layout.layer(id);
    move_to(data, &target)?;
    Ok(LayerInfo::new(Stamp::at(&target)?, None))
}

/// Moves the files of a layer that could not be put on record back, the data first: opening the store takes a tree
/// without its data after it.
fn take_back(layout: &Layout, layer: &PartialLayer) -> Result<(), StoreError> {
    let (id, paths) = (layer.id(), layer.paths());
    for (from, to) in [(layout.layer(&id), &paths.data), (layout.layer_tree(&id), &paths.tree)] {
        match std::fs::rename(&from, to) {
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            moved => moved.map_err(at(&from, "move back"))?,
        }
    }
    Ok(())
}

/// Makes the names of placed layers survive power loss.
pub(crate) fn sync_places<'a>(
    layout: &Layout,
    ids: impl IntoIterator<Item = &'a LayerId>,
) -> Result<(), StoreError> {
    let dirs: std::collections::BTreeSet<_> = ids.into_iter().map(|id| layout.layer_dir(id)).collect();
    for dir in dirs {
        fs::sync_dir(&dir)?;
    }
    fs::sync_dir(&layout.layers())
}

fn move_to(from: &Path, to: &Path) -> Result<(), StoreError> {
    match std::fs::rename(from, to) {
        // An attempt that was cut short has moved it before.
        Err(e) if e.kind() == ErrorKind::NotFound && to.exists() => Ok(()),
        other => other.map_err(at(from, "move into place")),
    }
}

#[cfg(test)]
mod tests {
    use weighlock_protocol::wire::bao::GROUP_BYTES;

    use super::*;
    use crate::config::StoreConfig;

    #[test]
    fn what_the_disk_lost_is_not_sealed_and_begins_anew() {
        let dir = tempfile::tempdir().expect("a directory");
        let config =
            StoreConfig { free_floor_bytes: 0, boot_id: Some("boot".into()), ..StoreConfig::default() };
        let store = Store::open(dir.path(), config).expect("opened");
        let bytes: Vec<u8> = (0..GROUP_BYTES - 9).map(|i| (i % 251) as u8).collect();
        let (id, size) = (LayerId::of(&bytes), bytes.len() as u64);
        let partial = store.partial(&id, size).expect("begun");
        partial.adopt(0, &bytes).expect("written");
        assert!(partial.complete());
        partial.disclaim();
        partial.flush_have().expect("nothing to say");
        partial.checkpoint().expect_err("for good");
        store.seal(&partial).expect_err("not to be believed");
        assert!(store.layer(&id).expect("read").is_none());
        let anew = store.partial(&id, size).expect("begun");
        assert_eq!(anew.have_count(), 0);
        anew.adopt(0, &bytes).expect("written");
        store.seal(&anew).expect("sealed");
        store.open_sealed(&id).expect("whole");
    }
}
