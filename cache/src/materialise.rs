//! Directories for tools that want one: an artifact's files by reflink or copy, whole or not there at all.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use weighlock_protocol::manifest::{Layer, Manifest};
use weighlock_protocol::{LayerId, ManifestDigest};

use crate::config::VerifyOnRead;
use crate::error::{StoreError, at, is_unreadable};
use crate::fs::{self, Stamp};
use crate::layers::outboard::hash_file;
use crate::room::Reservation;
use crate::store::Store;

/// Inside a materialised directory: the digest of what it is a copy of.
const MARKER: &str = ".weighlock/digest";
/// Inside a view: what tells whether its files were touched since they were put there.
const STAMPS: &str = ".weighlock/stamps";

/// Inside a view: all its files share their blocks with the store.
const SHARED: &str = ".weighlock/shared";

/// The file in a materialised directory that names what it is a copy of.
pub(crate) fn marker(dir: &Path) -> PathBuf {
    dir.join(MARKER)
}

/// The age of its marker tells when a view was last asked for.
fn touch(dir: &Path) -> Result<(), StoreError> {
    let marker = marker(dir);
    let touched = File::open(&marker).and_then(|file| file.set_modified(std::time::SystemTime::now()));
    touched.map_err(at(&marker, "touch"))
}

/// Whether a view takes no space of its own.
pub(crate) fn is_shared(dir: &Path) -> bool {
    dir.join(SHARED).exists()
}

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
        self.materialise_in(manifest, target, options, None)
    }

    /// As [`materialise`](Self::materialise), into room that was promised.
    fn materialise_in(
        &self,
        manifest: &Manifest,
        target: &Path,
        options: &MaterialiseOptions,
        room: Option<&Reservation>,
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
        let report = self.fill(manifest, &temp, options, room).and_then(|report| {
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
        if is_copy_of(manifest, &path) && self.view_holds(manifest, &path)? {
            touch(&path)?;
            return Ok(path);
        }
        if path.exists() {
            fs::remove_dir_at_once(&path)?;
        }
        let bytes = manifest.total_bytes();
        let room =
            if self.reflink_works(manifest)? { None } else { Some(self.reserve_import(bytes, bytes)?) };
        let report = self.materialise_in(manifest, &path, &options, room.as_ref())?;
        if report.copied == 0 {
            let shared = path.join(SHARED);
            std::fs::write(&shared, b"").map_err(at(&shared, "write"))?;
        }
        write_stamps(manifest, &path)?;
        // A stranger to the store may read a view, and nobody is invited to change it.
        fs::chmod_dirs(&path, 0o555)?;
        touch(&path)?;
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

    /// Whether the files of a view are those that were put there, by the same rule as for sealed layers: those that
    /// changed since, or all of them if so configured, are proven again.
    fn view_holds(&self, manifest: &Manifest, dir: &Path) -> Result<bool, StoreError> {
        let known = std::fs::read_to_string(dir.join(STAMPS)).unwrap_or_default();
        let known: BTreeSet<&str> = known.lines().collect();
        let mut proven = false;
        for layer in manifest.files() {
            let path = dir.join(&layer.path);
            let line = stamp_line(&Stamp::at(&path)?, &layer.path);
            if known.contains(line.as_str()) && self.config().verify_on_read == VerifyOnRead::Changed {
                continue;
            }
            proven = true;
            let file = File::open(&path).map_err(at(&path, "open"))?;
            if hash_file(&file, &path, layer.size, |_, _| Ok(())).ok() != Some(layer.id) {
                tracing::warn!(view = %dir.display(), file = layer.path, "a view does not hold; making it anew");
                return Ok(false);
            }
        }
        if proven {
            write_stamps(manifest, dir)?;
        }
        Ok(true)
    }

    /// A layer turned out damaged: views that have it, perhaps on the same blocks of the disk, are proven again before
    /// they are handed out.
    pub(crate) fn doubt_views(&self, id: &LayerId) {
        let doubt = || -> Result<(), StoreError> {
            for digest in self.manifests()? {
                let stamps = self.layout().views().join(digest.hex()).join(STAMPS);
                let manifest = match stamps.exists() {
                    true => self.manifest(&digest)?.map(|bytes| Manifest::parse(&bytes)).transpose()?,
                    false => None,
                };
                if manifest.is_some_and(|manifest| manifest.files().iter().any(|file| file.id == *id)) {
                    std::fs::write(&stamps, "").map_err(at(&stamps, "empty"))?;
                }
            }
            Ok(())
        };
        if let Err(error) = doubt() {
            tracing::warn!(layer = %id, %error, "views of a damaged layer could not be marked");
        }
    }

    /// Whether views share blocks with the layers, tried with the smallest file that has any.
    fn reflink_works(&self, manifest: &Manifest) -> Result<bool, StoreError> {
        let Some(least) = manifest.files().iter().filter(|f| f.size > 0).min_by_key(|f| f.size) else {
            return Ok(true);
        };
        let probe = self.temp_path("probe");
        let sealed = self.open_sealed(&least.id)?;
        let works = reflink_copy::reflink(&sealed.path, &probe).is_ok();
        fs::remove_file(&probe)?;
        Ok(works)
    }

    fn fill(
        &self,
        manifest: &Manifest,
        dir: &Path,
        options: &MaterialiseOptions,
        room: Option<&Reservation>,
    ) -> Result<MaterialiseReport, StoreError> {
        fs::create_dir(dir, 0o755)?;
        let mut report = MaterialiseReport::default();
        let sync_each = manifest.files().len() <= self.config().sync_each_max;
        for layer in manifest.files() {
            if layer.path == MARKER {
                return Err(StoreError::TargetExists { path: dir.join(MARKER) });
            }
            self.put(layer, &dir.join(&layer.path), (options, room), sync_each, &mut report)?;
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
        (options, room): (&MaterialiseOptions, Option<&Reservation>),
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
            if let Some(room) = room {
                fs::reserve(&out, path, layer.size)?;
                room.arrived(layer.size);
            }
            let copied = match io::copy(&mut sealed.file, &mut out) {
                Err(e) if is_unreadable(&e) => {
                    // Which of the two files? A layer that cannot be read is set aside, and heals.
                    self.open_proven_now(&layer.id)?;
                    return Err(at(path, "copy to")(e));
                }
                copied => copied.map_err(at(path, "copy to"))?,
            };
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

/// Writes down how the files of a view are now. Torn by a kill it only means that they are proven again.
fn write_stamps(manifest: &Manifest, dir: &Path) -> Result<(), StoreError> {
    let mut lines = String::new();
    for layer in manifest.files() {
        lines += &stamp_line(&Stamp::at(&dir.join(&layer.path))?, &layer.path);
        lines.push('\n');
    }
    let path = dir.join(STAMPS);
    std::fs::write(&path, lines).map_err(at(&path, "write"))
}

fn stamp_line(stamp: &Stamp, path: &str) -> String {
    format!("{} {} {} {path}", stamp.size, stamp.mtime_ns, stamp.inode)
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
