//! Directories for tools that want one: an artifact's files by reflink or copy, whole or not there at all.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use weighlock_protocol::ManifestDigest;
use weighlock_protocol::manifest::{Layer, Manifest};

use crate::error::{StoreError, at};
use crate::fs;
use crate::store::Store;

/// Inside a materialised directory: the digest of what it is a copy of.
const MARKER: &str = ".weighlock/digest";

/// How a directory is filled.
#[derive(Debug, Clone, Default)]
pub struct MaterialiseOptions {
    /// Hard-link the sealed files instead of copying: no space and no time, but whoever may write the store's files
    /// then writes both. Falls back to a copy across file systems.
    pub hard_link: bool,
    /// Replace what is at the target, whatever it is.
    pub force: bool,
}

/// What filling a directory did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MaterialiseReport {
    /// Files.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Files that share disk blocks with the store.
    pub reflinked: usize,
    /// Files that were copied.
    pub copied: usize,
    /// Files that are hard links into the store.
    pub hard_linked: usize,
    /// The target was a copy of this artifact already; nothing was done.
    pub up_to_date: bool,
}

impl Store {
    /// Fills the directory `target` with the artifact's files, mode 0444. It appears whole, by rename. A target that
    /// is an untouched copy of the same artifact stays as it is.
    ///
    /// # Errors
    /// [`StoreError::NotHeld`]; [`StoreError::TargetExists`] if it holds something else and `force` was not said;
    /// no space; an io error.
    pub fn materialise(
        &self,
        manifest: &Manifest,
        target: &Path,
        options: &MaterialiseOptions,
    ) -> Result<MaterialiseReport, StoreError> {
        if is_copy_of(manifest, target) {
            return Ok(MaterialiseReport {
                files: manifest.files().len(),
                bytes: manifest.total_bytes(),
                up_to_date: true,
                ..MaterialiseReport::default()
            });
        }
        let taken = match std::fs::read_dir(target) {
            Ok(mut entries) => entries.next().is_some(),
            Err(e) if e.kind() == ErrorKind::NotFound => false,
            Err(e) if e.kind() == ErrorKind::NotADirectory => true,
            Err(e) => return Err(at(target, "list")(e)),
        };
        if taken && !options.force {
            return Err(StoreError::TargetExists { path: target.to_owned() });
        }
        let absolute = std::path::absolute(target).map_err(at(target, "resolve"))?;
        let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
            return Err(StoreError::TargetExists { path: absolute });
        };
        fs::create_dir(parent, 0o777)?;
        let beside = |what: &str| {
            let id = format!(".{}.{}-{what}", name.to_string_lossy(), std::process::id());
            parent.join(id)
        };
        let (temp, old) = (beside("new"), beside("old"));
        fs::remove_dir(&temp)?;
        let report = self.fill(manifest, &temp, options).and_then(|report| {
            if taken {
                std::fs::rename(&absolute, &old).map_err(at(&absolute, "move away"))?;
            }
            std::fs::rename(&temp, &absolute).map_err(at(&absolute, "put in place"))?;
            fs::sync_dir(parent)?;
            Ok(report)
        });
        if report.is_err() {
            // The error that made us stop is the one to report.
            let _ = fs::remove_dir(&temp);
        } else if taken {
            match std::fs::symlink_metadata(&old) {
                Ok(meta) if meta.is_dir() => fs::remove_dir(&old)?,
                _ => fs::remove_file(&old)?,
            }
        }
        report
    }

    /// A read-only directory with the artifact's files inside the store, made once and used again.
    ///
    /// # Errors
    /// As [`materialise`](Self::materialise).
    pub fn view(&self, manifest: &Manifest) -> Result<PathBuf, StoreError> {
        let path = self.layout().views().join(manifest.digest().hex());
        let options = MaterialiseOptions {
            // A view that was touched is made anew.
            force: true,
            ..MaterialiseOptions::default()
        };
        let _one = self.view_lock();
        if !self.materialise(manifest, &path, &options)?.up_to_date {
            // A stranger to the store may read a view, and nobody is invited to change it.
            fs::chmod_dirs(&path, 0o555)?;
        }
        Ok(path)
    }

    /// The artifacts of which there are views, whole ones only.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn views(&self) -> Result<Vec<ManifestDigest>, StoreError> {
        let dir = self.layout().views();
        let mut all = Vec::new();
        for entry in std::fs::read_dir(&dir).map_err(at(&dir, "list"))? {
            let name = entry.map_err(at(&dir, "list"))?.file_name();
            let name = name.to_string_lossy();
            all.extend(format!("sha256:{name}").parse::<ManifestDigest>().ok());
        }
        all.sort();
        Ok(all)
    }

    /// Removes a view if `still` says so once nobody else makes or removes one; `true` if there was one. It is gone at
    /// once, by rename. Who has its files open keeps them.
    ///
    /// # Errors
    /// An io error; what is left of it has no name that anybody was told.
    pub fn remove_view(
        &self,
        digest: &ManifestDigest,
        still: impl FnOnce() -> bool,
    ) -> Result<bool, StoreError> {
        let path = self.layout().views().join(digest.hex());
        let _one = self.view_lock();
        if !path.exists() || !still() {
            return Ok(false);
        }
        fs::remove_dir_at_once(&path)?;
        Ok(true)
    }

    fn fill(
        &self,
        manifest: &Manifest,
        dir: &Path,
        options: &MaterialiseOptions,
    ) -> Result<MaterialiseReport, StoreError> {
        fs::create_dir(dir, 0o755)?;
        let mut report = MaterialiseReport::default();
        let sync_each = manifest.files().len() <= self.config().sync_each_max;
        for layer in manifest.files() {
            if layer.path == MARKER {
                return Err(StoreError::TargetExists { path: dir.join(MARKER) });
            }
            self.put(layer, &dir.join(&layer.path), options, sync_each, &mut report)?;
        }
        let marker = dir.join(MARKER);
        fs::create_dir(&dir.join(".weighlock"), 0o755)?;
        std::fs::write(&marker, format!("{}\n", manifest.digest())).map_err(at(&marker, "write"))?;
        if sync_each {
            File::open(&marker).and_then(|file| file.sync_all()).map_err(at(&marker, "sync"))?;
        } else {
            fs::sync_fs(dir)?;
        }
        Ok(report)
    }

    fn put(
        &self,
        layer: &Layer,
        path: &Path,
        options: &MaterialiseOptions,
        sync: bool,
        report: &mut MaterialiseReport,
    ) -> Result<(), StoreError> {
        let mut sealed = self.open_sealed(&layer.id)?;
        if sealed.size != layer.size {
            return Err(StoreError::SizeMismatch { layer: layer.id, known: sealed.size, given: layer.size });
        }
        if let Some(parent) = path.parent() {
            fs::create_dir(parent, 0o755)?;
        }
        report.files += 1;
        report.bytes = report.bytes.saturating_add(layer.size);
        if options.hard_link && std::fs::hard_link(&sealed.path, path).is_ok() {
            report.hard_linked += 1;
            return Ok(());
        }
        let mut out = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(at(path, "create"))?;
        if reflink_copy::reflink_file(&sealed.file, &out).is_ok() {
            report.reflinked += 1;
        } else {
            out.set_len(0).map_err(at(path, "truncate"))?;
            let copied = io::copy(&mut sealed.file, &mut out).map_err(at(path, "copy to"))?;
            if copied != layer.size {
                return Err(StoreError::ChangedWhileRead { path: sealed.path, what: "its size changed" });
            }
            report.copied += 1;
        }
        out.set_permissions(Permissions::from_mode(0o444)).map_err(at(path, "set mode of"))?;
        if sync {
            out.sync_all().map_err(at(path, "sync"))?;
        }
        Ok(())
    }
}

/// Whether a directory is a copy of the artifact, as far as marker, names and sizes tell.
fn is_copy_of(manifest: &Manifest, dir: &Path) -> bool {
    let marker = std::fs::read_to_string(dir.join(MARKER));
    marker.is_ok_and(|text| text.trim() == manifest.digest().to_string())
        && manifest.files().iter().all(|layer| {
            std::fs::symlink_metadata(dir.join(&layer.path))
                .is_ok_and(|meta| meta.is_file() && meta.len() == layer.size)
        })
}
