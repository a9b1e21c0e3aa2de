//! Taking a single file in as a layer that is known by name: what a host has of a model from elsewhere.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::Path;

use weighlock_protocol::LayerId;

use super::import::open_source;
use super::import::staging::StagingDir;
use super::outboard::{hash_file, hash_file_beside, tree_bytes};
use super::seal::{SEALED_MODE, place, sync_places};
use crate::error::{StoreError, at};
use crate::fs;
use crate::leases::LayerLease;
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
    /// what is kept, so the file may change meanwhile. `None` if it is none of them; then nothing is left of it. What was
    /// taken stays at least as long as the lease.
    ///
    /// # Errors
    /// Not a regular file, or one whose size changed under our hands; no space for a copy, an io error, the database
    /// failed.
    pub fn take_layer(
        &self,
        source: &Path,
        wanted: &Wanted,
        lease: &LayerLease,
    ) -> Result<Option<Taken>, StoreError> {
        let file = open_source(source)?;
        let meta = file.metadata().map_err(at(source, "stat"))?;
        let source = Source { path: source, file, size: meta.len() };
        if !meta.is_file() {
            return Err(source.changed("it is no regular file"));
        }
        self.take(&source, wanted, lease, |from, to| reflink_copy::reflink_file(from, to).is_ok())
    }

    /// `clone` makes an empty file share the blocks of another one, if it can.
    fn take(
        &self,
        source: &Source<'_>,
        wanted: &Wanted,
        lease: &LayerLease,
        clone: impl FnOnce(&File, &File) -> bool,
    ) -> Result<Option<Taken>, StoreError> {
        let Source { path, file, size } = source;
        let size = *size;
        let dir = StagingDir::new(self.temp_path("take"))?;
        let (data, tree) = (dir.0.join("data"), dir.0.join("obao"));
        let out = fs::create_reserved(&data, 0)?;
        // Who only asks needs no room.
        let out_tree = fs::create_reserved(&tree, if wanted.dry_run { 0 } else { tree_bytes(size) })?;
        let reflinked = size > 0 && clone(file, &out);
        // A clone is as long as the file is by now. All of it would be handed out, but only `size` bytes are proven.
        if reflinked && out.metadata().map_err(at(&data, "stat"))?.len() != size {
            return Err(source.changed("its size changed"));
        }
        let sink = |offset: u64, bytes: &[u8]| {
            if wanted.dry_run { Ok(()) } else { out_tree.write_all_at(bytes, offset) }
        };
        let mut room = None;
        let id = if reflinked {
            hash_file(&File::open(&data).map_err(at(&data, "open"))?, &data, size, sink)?
        } else if wanted.dry_run {
            hash_file(file, path, size, sink).map_err(|e| source.judge(e))?
        } else {
            out.set_len(0).map_err(at(&data, "truncate"))?;
            let room = room.insert(self.reserve_import(size, size)?);
            fs::reserve(&out, &data, size)?;
            room.arrived(size);
            let (mut offset, mut written) = (0, Ok(()));
            let id = hash_file_beside(file, path, size, sink, |bytes| {
                if written.is_ok() {
                    written = out.write_all_at(bytes, offset);
                }
                offset += bytes.len() as u64;
            });
            let id = id.map_err(|e| source.judge(e))?;
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
        // Before anybody else may look for what belongs to nothing.
        lease.add(id);
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

/// A file as it was when it was looked at.
struct Source<'a> {
    path: &'a Path,
    file: File,
    size: u64,
}

impl Source<'_> {
    fn changed(&self, what: &'static str) -> StoreError {
        StoreError::ChangedWhileRead { path: self.path.to_owned(), what }
    }

    /// What an error of reading it says: one that ends early was cut meanwhile.
    fn judge(&self, error: StoreError) -> StoreError {
        let cut = matches!(
            &error,
            StoreError::Io { op: "read", source, .. } if source.kind() == ErrorKind::UnexpectedEof
        );
        if cut { self.changed("it became shorter") } else { error }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::StoreConfig;

    type Reflink = fn(&File, &File) -> bool;

    /// Stands for a reflink where the file system has none.
    fn clone(mut from: &File, mut to: &File) -> bool {
        std::io::copy(&mut from, &mut to).is_ok()
    }

    fn never(_: &File, _: &File) -> bool {
        false
    }

    #[test]
    fn a_file_that_changes_after_it_was_looked_at_leaves_no_byte_that_is_not_proven() {
        let dir = tempfile::tempdir().expect("a directory");
        let config =
            StoreConfig { free_floor_bytes: 0, boot_id: Some("boot".into()), ..StoreConfig::default() };
        let store = Store::open(dir.path().join("store"), config).expect("opened");
        let bytes: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        let (id, size) = (LayerId::of(&bytes), bytes.len() as u64);
        let lease = store.lease_layers(BTreeSet::new()).expect("a lease");
        let path = dir.path().join("file");
        // As if it had been of the right size when it was looked at, and is of another by now.
        let take = |now: u64, dry_run: bool, clone: Reflink| {
            std::fs::write(&path, &bytes).expect("written");
            File::options().write(true).open(&path).and_then(|file| file.set_len(now)).expect("resized");
            let source = Source { path: &path, file: File::open(&path).expect("opened"), size };
            store.take(&source, &Wanted { layers: BTreeSet::from([id]), dry_run }, &lease, clone)
        };
        let changed: [(u64, bool, Reflink, &str); 5] = [
            (size + 1, false, clone, "its size changed"),
            (size + 1, true, clone, "its size changed"),
            (size - 1, false, clone, "its size changed"),
            (size - 1, false, never, "it became shorter"),
            (size - 1, true, never, "it became shorter"),
        ];
        for (now, dry_run, clone, what) in changed {
            match take(now, dry_run, clone) {
                Err(StoreError::ChangedWhileRead { path: at, what: said }) => {
                    assert_eq!((at, said), (path.clone(), what), "{now} {dry_run}");
                }
                other => panic!("{now} bytes, dry run {dry_run}: {other:?}"),
            }
            assert!(store.layer(&id).expect("read").is_none(), "{now} {dry_run}");
            assert_eq!(std::fs::read_dir(store.layout().staging()).expect("listed").count(), 0);
        }
        // A copy ends where the proof ends; so does the clone of a file that stayed as it was.
        let right: [(u64, Reflink); 2] = [(size + 1, never), (size, clone)];
        for (now, clone) in right {
            assert!(take(now, true, clone).expect("told").is_some_and(|taken| taken.layer == id));
            assert!(store.layer(&id).expect("read").is_none(), "only told");
            let taken = take(now, false, clone).expect("no error").expect("it is the layer");
            assert_eq!((taken.layer, taken.size, taken.reflinked), (id, size, now == size));
            let sealed = store.open_sealed(&id).expect("sealed");
            assert_eq!(std::fs::read(&sealed.path).expect("read"), bytes);
            assert_eq!(sealed.size, size);
            store.remove_layer(&id).expect("removed");
        }
    }
}
