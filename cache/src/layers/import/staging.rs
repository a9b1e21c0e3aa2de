//! Where an import puts files before they count: one directory that goes when the import is dropped.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::error::{StoreError, at};
use crate::fs;
use crate::layers::outboard::tree_bytes;
use crate::layers::seal::SEALED_MODE;

/// The files of one layer in staging, or nothing where only the names of layers are wanted.
pub(super) struct Out {
    pub(super) file: Option<File>,
    tree_file: Option<File>,
    pub(super) data: PathBuf,
    pub(super) tree: PathBuf,
}

impl Out {
    pub(super) fn named(dir: Option<&Path>, name: &str, size: u64) -> Result<Self, StoreError> {
        let Some(dir) = dir else {
            return Ok(Self { file: None, tree_file: None, data: PathBuf::new(), tree: PathBuf::new() });
        };
        let data = dir.join(format!("{name}.data"));
        let tree = dir.join(format!("{name}.obao"));
        let file = fs::create_reserved(&data, 0)?;
        let tree_file = match tree_bytes(size) {
            0 => None,
            len => Some(fs::create_reserved(&tree, len)?),
        };
        Ok(Self { file: Some(file), tree_file, data, tree })
    }

    pub(super) fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        match &self.file {
            Some(file) => file.write_all_at(bytes, offset).map_err(at(&self.data, "write")),
            None => Ok(()),
        }
    }

    pub(super) fn write_tree(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        match &self.tree_file {
            Some(file) => file.write_all_at(bytes, offset),
            None => Ok(()),
        }
    }

    pub(super) fn finish(&mut self, sync: bool) -> Result<(), StoreError> {
        for (file, path) in [(self.file.as_ref(), &self.data), (self.tree_file.as_ref(), &self.tree)] {
            let Some(file) = file else {
                continue;
            };
            file.set_permissions(Permissions::from_mode(SEALED_MODE)).map_err(at(path, "set mode of"))?;
            if sync {
                file.sync_all().map_err(at(path, "sync"))?;
            }
        }
        Ok(())
    }
}

/// The directory of one import; what is left of it goes when it is dropped.
#[derive(Debug)]
pub(in crate::layers) struct StagingDir(pub(in crate::layers) PathBuf);

impl StagingDir {
    pub(in crate::layers) fn new(path: PathBuf) -> Result<Self, StoreError> {
        fs::create_dir(&path, 0o700)?;
        Ok(Self(path))
    }
}

impl Drop for StagingDir {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.0) {
            tracing::warn!(%error, "staging is left behind until the store is opened again");
        }
    }
}
