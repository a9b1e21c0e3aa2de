//! What is put right when a store is opened after its process was killed or power was lost.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use weighlock_protocol::LayerId;

use super::partial::{PartialLayer, PartialPaths};
use crate::error::{StoreError, at};
use crate::fs::{self, Stamp};
use crate::meta::{DamageRow, LayerInfo};
use crate::store::Store;

/// Complete layers that are sealed together: each has three files open until then, and a sync of its own costs as much as
/// one for all.
const SEALED_AT_ONCE_MAX: usize = 256;

/// What opening a store found and put right.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Layers in place without a record: proven and recorded.
    pub registered: Vec<LayerId>,
    /// Files in the place of layers that were not what their names say, or trees without a layer: removed.
    pub removed: Vec<PathBuf>,
    /// Layers on record whose files are gone or of another size: forgotten, to be fetched again.
    pub lost: Vec<LayerId>,
    /// Partial layers that were complete: sealed.
    pub sealed: Vec<LayerId>,
    /// Partial layers that can go on, with their sizes in bytes.
    pub resumable: Vec<(LayerId, u64)>,
}

impl Store {
    /// Puts right what a kill or a power loss left behind. Runs once, before anybody else sees the store.
    pub(crate) fn recover(&self) -> Result<Recovery, StoreError> {
        let mut report = Recovery::default();
        let staging = self.layout().staging();
        fs::remove_dir(&staging)?;
        fs::create_dir(&staging, 0o700)?;
        for path in entries(&self.layout().views())? {
            if name_of(&path).starts_with('.')
                && let Err(error) = fs::remove_dir(&path)
            {
                // Root may have left something of its own in it.
                tracing::warn!(path = %path.display(), %error, "what is left of a directory cannot be removed");
            }
        }
        self.finish_removals()?;
        self.undo_half_moves()?;
        self.check_layers(&mut report)?;
        self.check_records(&mut report)?;
        self.check_partials(&mut report)?;
        if report != Recovery::default() {
            tracing::info!(
                registered = report.registered.len(),
                removed = report.removed.len(),
                lost = report.lost.len(),
                sealed = report.sealed.len(),
                resumable = report.resumable.len(),
                "store recovered"
            );
        }
        Ok(report)
    }

    /// Layers that were let go of while their files were still there.
    fn finish_removals(&self) -> Result<(), StoreError> {
        let gone = self.meta().gone()?;
        for id in &gone {
            if self.meta().layer(id)?.is_none() {
                fs::remove_file(&self.layout().layer(id))?;
                fs::remove_file(&self.layout().layer_tree(id))?;
            }
        }
        self.meta().clear_gone(&gone)
    }

    /// A seal that was cut between its two renames has moved the tree alone: back with it.
    fn undo_half_moves(&self) -> Result<(), StoreError> {
        for path in entries(&self.layout().partial())? {
            let Some(id) = layer_named(&path, "data") else {
                continue;
            };
            let paths = PartialPaths::new(&self.layout().partial(), &id);
            let moved = self.layout().layer_tree(&id);
            if !paths.tree.exists() && moved.exists() && !self.layout().layer(&id).exists() {
                std::fs::rename(&moved, &paths.tree).map_err(at(&moved, "move back"))?;
            }
        }
        Ok(())
    }

    /// Layer files without a record: a crash between rename and commit. Proven and recorded, or removed.
    fn check_layers(&self, report: &mut Recovery) -> Result<(), StoreError> {
        for dir in entries(&self.layout().layers())?.into_iter().filter(|path| path.is_dir()) {
            for path in entries(&dir)? {
                if let Some(id) = layer_named(&path, "obao") {
                    if !self.layout().layer(&id).exists() {
                        fs::remove_file(&path)?;
                        report.removed.push(path);
                    }
                    continue;
                }
                let id = layer_named(&path, "").filter(|id| self.layout().layer(id) == path);
                let Some(id) = id else {
                    tracing::warn!(path = %path.display(), "unknown file among the layers; leaving it alone");
                    continue;
                };
                if self.meta().layer(&id)?.is_some() {
                    continue;
                }
                let file = File::open(&path).map_err(at(&path, "open"))?;
                let stamp = Stamp::of(&file.metadata().map_err(at(&path, "stat"))?);
                match self.prove(&id, &file, &path, stamp.size, true)? {
                    Ok(()) => {
                        fs::chmod(&path, super::seal::SEALED_MODE)?;
                        file.sync_all().map_err(at(&path, "sync"))?;
                        super::seal::sync_places(self.layout(), [&id])?;
                        self.meta().commit(&[(id, LayerInfo::new(stamp, None))], &[], &[], &[])?;
                        report.registered.push(id);
                    }
                    // A kill while it was set aside: its have-map is there already.
                    Err(reason) if self.was_set_aside(&id, stamp.size)? => {
                        tracing::warn!(layer = %id, reason, "a damaged layer; keeping what of it holds");
                        let paths = PartialPaths::new(&self.layout().partial(), &id);
                        self.move_aside(&id, &paths, stamp.size)?;
                    }
                    Err(reason) => {
                        tracing::warn!(layer = %id, reason, "a file that is not its layer; removing it");
                        fs::remove_file(&path)?;
                        fs::remove_file(&self.layout().layer_tree(&id))?;
                        report.removed.push(path);
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether a have-map claims all of a layer that is not on record any more.
    fn was_set_aside(&self, id: &LayerId, size: u64) -> Result<bool, StoreError> {
        let have = PartialPaths::new(&self.layout().partial(), id).have;
        if !have.exists() {
            return Ok(false);
        }
        let header = PartialLayer::peek(&have)?;
        Ok(header.is_some_and(|h| h.layer == *id && h.size == size && h.boot_id.is_empty()))
    }

    /// Records whose files are gone or of another size.
    fn check_records(&self, report: &mut Recovery) -> Result<(), StoreError> {
        let mut rows = Vec::new();
        for (id, info) in self.meta().layers()? {
            let path = self.layout().layer(&id);
            let size = std::fs::metadata(&path).map(|meta| meta.len()).ok();
            if size == Some(info.size) {
                continue;
            }
            let reason = match size {
                None => "its file is gone".to_owned(),
                Some(size) => format!("it has {size} bytes instead of {}", info.size),
            };
            tracing::error!(layer = %id, reason, "a sealed layer is damaged; it has to be fetched again");
            self.quarantine(&id)?;
            rows.push((id, DamageRow::all(info.size, reason)));
            report.lost.push(id);
        }
        self.meta().set_aside(&rows)
    }

    fn check_partials(&self, report: &mut Recovery) -> Result<(), StoreError> {
        let dir = self.layout().partial();
        let mut known = std::collections::BTreeSet::new();
        let (mut complete, mut resumable) = (Vec::new(), Vec::new());
        // On a full disk, say, they wait for whoever opens them.
        let mut seal = |complete: &mut Vec<Arc<PartialLayer>>, resumable: &mut Vec<(LayerId, u64)>| {
            let sealed = self.seal_all(complete);
            if let Err(error) = &sealed {
                tracing::warn!(%error, "complete layers could not be sealed");
            }
            for layer in complete.drain(..) {
                match sealed {
                    Ok(()) => report.sealed.push(layer.id()),
                    Err(_) => resumable.push((layer.id(), layer.size())),
                }
            }
        };
        for path in entries(&dir)? {
            let Some(id) = layer_named(&path, "have") else {
                continue;
            };
            let header = PartialLayer::peek(&path)?.filter(|header| header.layer == id);
            let (Some(header), None) = (header, self.meta().layer(&id)?) else {
                PartialPaths::new(&dir, &id).remove()?;
                continue;
            };
            known.insert(id);
            // After a reboot its groups must be proven first, which may take long: then it waits for its user. So does one
            // that cannot be opened, who will be told why.
            let resumed = if header.boot_id == self.boot_id() { self.resume_partial(&id) } else { Ok(None) };
            let resumed = resumed.unwrap_or_else(|error| {
                tracing::warn!(layer = %id, %error, "a begun layer cannot be opened");
                None
            });
            if let Some(layer) = resumed
                && layer.complete()
            {
                complete.push(layer);
                if complete.len() >= SEALED_AT_ONCE_MAX {
                    seal(&mut complete, &mut resumable);
                }
                continue;
            }
            resumable.push((id, header.size));
        }
        seal(&mut complete, &mut resumable);
        report.resumable = resumable;
        for path in entries(&dir)? {
            let of = ["data", "obao", "have"].iter().find_map(|ext| layer_named(&path, ext));
            if !of.is_some_and(|id| known.contains(&id)) {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }
}

/// The paths in a directory, sorted.
fn entries(dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(at(dir, "list"))? {
        paths.push(entry.map_err(at(dir, "list"))?.path());
    }
    paths.sort();
    Ok(paths)
}

fn name_of(path: &Path) -> &str {
    path.file_name().and_then(OsStr::to_str).unwrap_or("")
}

/// The layer that a file is named after, if its extension is `extension`.
fn layer_named(path: &Path, extension: &str) -> Option<LayerId> {
    let name = name_of(path);
    let (stem, found) = name.split_once('.').unwrap_or((name, ""));
    (found == extension).then(|| stem.parse().ok()).flatten()
}
