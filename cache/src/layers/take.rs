//! Taking a single file in as a layer that is known by name: what a host has of a model from elsewhere.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use weighlock_protocol::LayerId;

use super::import::open_source;
use super::import::staging::StagingDir;
use super::outboard::{hash_file, hash_file_beside, tree_bytes};
use super::seal::{SEALED_MODE, place, sync_places};
use crate::error::{StoreError, at};
use crate::fs;
use crate::store::Store;

/// Layers that a file may be.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Any of these; all have the size of the file.
    pub layers: BTreeSet<LayerId>,
    /// Only tell what would be taken.
    pub dry_run: bool,
}

/// A file that was taken in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// The layer that it is.
    pub layer: LayerId,
    /// Its size in bytes.
    pub size: u64,
    /// It shares its disk blocks with the file it came from; else it was copied.
    pub reflinked: bool,
}

impl Store {
    /// Seals a file as one of the wanted layers, by reflink where the file system can, else by copy. What is hashed is
    /// what is kept, so the file may change meanwhile. `None` if it is none of them; then nothing is left of it.
    ///
    /// # Errors
    /// Not a regular file, no space for a copy, an io error, the database failed.
    pub fn take_layer(&self, source: &Path, wanted: &Wanted) -> Result<Option<Taken>, StoreError> {
        let file = open_source(source)?;
        let meta = file.metadata().map_err(at(source, "stat"))?;
        if !meta.is_file() {
            return Err(StoreError::ChangedWhileRead {
                path: source.to_owned(),
                what: "it is no regular file",
            });
        }
        let size = meta.len();
        let dir = StagingDir::new(self.temp_path("take"))?;
        let (data, tree) = (dir.0.join("data"), dir.0.join("obao"));
        let out = fs::create_reserved(&data, 0)?;
        let out_tree = fs::create_reserved(&tree, tree_bytes(size))?;
        let reflinked = size > 0 && reflink_copy::reflink_file(&file, &out).is_ok();
        let sink = |offset: u64, bytes: &[u8]| out_tree.write_all_at(bytes, offset);
        let mut room = None;
        let id = if reflinked {
            hash_file(&File::open(&data).map_err(at(&data, "open"))?, &data, size, sink)?
        } else if wanted.dry_run {
            hash_file(&file, source, size, sink)?
        } else {
            out.set_len(0).map_err(at(&data, "truncate"))?;
            let room = room.insert(self.reserve_import(size, size)?);
            fs::reserve(&out, &data, size)?;
            room.arrived(size);
            let (mut offset, mut written) = (0, Ok(()));
            let id = hash_file_beside(&file, source, size, sink, |bytes| {
                if written.is_ok() {
                    written = out.write_all_at(bytes, offset);
                }
                offset += bytes.len() as u64;
            })?;
            written.map_err(at(&data, "write"))?;
            id
        };
        if !wanted.layers.contains(&id) {
            return Ok(None);
        }
        let taken = Taken { layer: id, size, reflinked };
        if wanted.dry_run {
            return Ok(Some(taken));
        }
        if reflinked {
            // It takes no room on the disk, but some of the quota.
            room = Some(self.reserve_import(0, size)?);
        }
        for (file, path) in [(&out, &data), (&out_tree, &tree)] {
            fs::chmod(path, SEALED_MODE)?;
            file.sync_all().map_err(at(path, "sync"))?;
        }
        let _change = self.change_lock();
        // As for an import.
        let placing = self.placing_alone();
        if self.meta().layer(&id)?.is_none() {
            let recorded = place(self.layout(), &id, size, &data, &tree).and_then(|row| {
                sync_places(self.layout(), [&id])?;
                self.meta().commit(&[(id, row)], &[], &[], &[])
            });
            recorded.inspect_err(|_| {
                // The error that made us stop is the one to report; the source is still there.
                let _ = fs::remove_file(&self.layout().layer(&id));
                let _ = fs::remove_file(&self.layout().layer_tree(&id));
            })?;
            drop(placing);
            self.remove_partial(&id)?;
            self.forget_partial(&id);
        }
        drop(room);
        Ok(Some(taken))
    }
}
