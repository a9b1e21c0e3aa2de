//! Letting go: artifacts that may go, and what nobody needs. Who decides is not here.

use std::collections::BTreeSet;
use std::path::PathBuf;

use weighlock_protocol::manifest::Manifest;
use weighlock_protocol::{LayerId, ManifestDigest};

use crate::artifacts::layer_ids;
use crate::error::{StoreError, at};
use crate::fs;
use crate::layers::damage::aside_since;
use crate::layers::partial::PartialPaths;
use crate::room::taken;
use crate::store::Store;
use crate::usage::{mtime, now};

/// What kind of thing nobody needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum GarbageKind {
    /// A damaged layer that was set aside.
    Quarantined,
    /// A begun layer that no held artifact has.
    Partial,
    /// A sealed layer that no held artifact has.
    Layer,
    /// A directory of an artifact that nobody asked for lately.
    View,
}

/// Something that nobody needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Garbage {
    /// What it is.
    pub kind: GarbageKind,
    /// Its name: of a layer, or of a manifest's digest.
    pub name: String,
    /// Bytes that removing it frees.
    pub bytes: u64,
    /// It goes now; otherwise it goes when room is needed.
    pub due: bool,
    path: PathBuf,
}

impl Store {
    /// Removes what this host holds of an artifact, unless it is leased or pinned: then nothing changes and the answer is
    /// `None`.
    /// Otherwise the bytes freed. Files that are open stay readable.
    ///
    /// # Errors
    /// [`StoreError::NoManifest`]; the database failed or an io error.
    pub fn evict(&self, digest: &ManifestDigest) -> Result<Option<u64>, StoreError> {
        self.evict_if(digest, || Ok(true))
    }

    /// As [`evict`](Self::evict), if `still` says so at the last moment. Nobody has a lease on it then, and who wants one
    /// waits until it is decided. `still` may ask the store, but for such a lease, and may wait for who changes it.
    ///
    /// # Errors
    /// As [`evict`](Self::evict), and what `still` says.
    pub fn evict_if<E: From<StoreError>>(
        &self,
        digest: &ManifestDigest,
        still: impl FnOnce() -> Result<bool, E>,
    ) -> Result<Option<u64>, E> {
        let Some(going) = self.leases_book().going(*digest) else {
            return Ok(None);
        };
        // Before the lock: it may wait for somebody who writes statements, which takes the lock.
        if !still()? {
            return Ok(None);
        }
        let change = self.change_lock();
        if self.meta().is_pinned(digest)? {
            return Ok(None);
        }
        let gone = self.drop_artifact(digest)?;
        // From here on whoever opens it finds it missing and fetches it; the bytes go meanwhile.
        drop((going, change));
        self.drop_view(digest)?;
        Ok(Some(self.remove_gone(gone)?))
    }

    /// What nobody needs: damaged layers that were set aside, layers of no held artifact, directories that are idle.
    ///
    /// # Errors
    /// The database failed or an io error.
    pub fn garbage(&self) -> Result<Vec<Garbage>, StoreError> {
        let (now, config, layout) = (now(), self.config(), self.layout());
        let age = |path: &PathBuf| now.saturating_sub(mtime(path));
        let mut found = Vec::new();
        let mut aside = Vec::new();
        for path in entries(&layout.quarantine())? {
            // One that went meanwhile counts nothing.
            let since = std::fs::symlink_metadata(&path).map_or((0, 0), |meta| aside_since(&meta));
            aside.push((since, path));
        }
        aside.sort();
        let mut kept = 0u64;
        // The newest first.
        for ((since_s, _), path) in aside.into_iter().rev() {
            let bytes = fs::path_bytes(&path)?;
            let old = now.saturating_sub(u64::try_from(since_s).unwrap_or(0)) > config.quarantine_keep_s;
            let due = old || kept.saturating_add(bytes) > config.quarantine_bytes_max;
            kept = kept.saturating_add(if due { 0 } else { bytes });
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            found.push(Garbage { kind: GarbageKind::Quarantined, name, bytes, due, path });
        }
        let (wanted, complete) = self.wanted_layers()?;
        for (id, size) in self.partials()? {
            let path = PartialPaths::new(&layout.partial(), &id).have;
            if !wanted.contains(&id) && !self.is_live(&id) {
                let due = age(&path) > config.partial_keep_s;
                let (kind, name) = (GarbageKind::Partial, id.hex());
                found.push(Garbage { kind, name, bytes: taken(size), due, path });
            }
        }
        for (id, info) in self.layers()? {
            if !wanted.contains(&id) {
                let path = layout.layer(&id);
                let due = age(&path) > config.partial_keep_s;
                let (kind, name) = (GarbageKind::Layer, id.hex());
                found.push(Garbage { kind, name, bytes: taken(info.size), due, path });
            }
        }
        for path in entries(&layout.views())? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Some(digest) = of_view(&name) else { continue };
            if !self.view_is_idle(&digest) {
                continue;
            }
            let bytes = if crate::materialise::is_shared(&path) { 0 } else { fs::dir_bytes(&path)? };
            let due = !complete.contains(&digest);
            found.push(Garbage { kind: GarbageKind::View, name, bytes, due, path });
        }
        Ok(found)
    }

    /// Removes something that nobody needs, if that is still so. Returns the bytes freed, or `None` if it is needed again
    /// and nothing changed.
    ///
    /// # Errors
    /// The database failed or an io error.
    pub fn sweep(&self, one: &Garbage) -> Result<Option<u64>, StoreError> {
        match one.kind {
            GarbageKind::Quarantined => {
                if one.path.is_dir() {
                    fs::remove_dir(&one.path)?
                } else {
                    fs::remove_file(&one.path)?
                }
            }
            GarbageKind::View => {
                let Some(digest) = of_view(&one.name) else { return Ok(None) };
                let _views = self.view_lock();
                // Handed out again since, perhaps while this waited for the lock.
                if !one.path.exists() || !self.view_is_idle(&digest) {
                    return Ok(None);
                }
                fs::remove_dir_at_once(&one.path)?;
            }
            GarbageKind::Partial | GarbageKind::Layer => {
                let Ok(id) = one.name.parse::<LayerId>() else { return Ok(None) };
                let change = self.change_lock();
                if self.wanted_layers()?.0.contains(&id) {
                    return Ok(None);
                }
                if one.kind == GarbageKind::Partial {
                    if self.is_live(&id) {
                        return Ok(None);
                    }
                    self.remove_partial(&id)?;
                } else {
                    let gone = self.drop_layers(&BTreeSet::from([id]), None)?;
                    drop(change);
                    return self.remove_gone(gone).map(Some);
                }
            }
        }
        Ok(Some(one.bytes))
    }

    /// Forgets an artifact and its layers that no other held artifact has and nobody leases. The caller holds the change
    /// lock.
    pub(crate) fn drop_artifact(&self, digest: &ManifestDigest) -> Result<Gone, StoreError> {
        let bytes = self.manifest(digest)?.ok_or(StoreError::NoManifest(*digest))?;
        let mut ids: BTreeSet<LayerId> = &layer_ids(&Manifest::parse(&bytes)?) - &self.leased_layers();
        for other in self.held()?.into_iter().filter(|other| other != digest) {
            if let Some(bytes) = self.manifest(&other)? {
                let used = layer_ids(&Manifest::parse(&bytes)?);
                ids.retain(|id| !used.contains(id));
            }
        }
        let mut gone = self.drop_layers(&ids, Some(digest))?;
        self.forget_used(digest);
        for id in &ids {
            gone.freed = gone.freed.saturating_add(self.partial_size(id)?);
            self.remove_partial(id)?;
        }
        Ok(gone)
    }

    /// Removes the view of an artifact that was let go of, unless it is kept again by then. Not under the change lock:
    /// who makes a view may copy for minutes.
    pub(crate) fn drop_view(&self, digest: &ManifestDigest) -> Result<(), StoreError> {
        self.remove_view(digest, || !self.meta().is_held(digest).unwrap_or(true)).map(drop)
    }

    /// Layers of held artifacts and leased ones, and the held artifacts that are complete.
    fn wanted_layers(&self) -> Result<(BTreeSet<LayerId>, BTreeSet<ManifestDigest>), StoreError> {
        let (mut wanted, mut complete) = (self.leased_layers(), BTreeSet::new());
        for digest in self.held()? {
            if let Some(bytes) = self.manifest(&digest)? {
                let manifest = Manifest::parse(&bytes)?;
                if self.manifest_complete(&manifest)? {
                    complete.insert(digest);
                }
                wanted.extend(layer_ids(&manifest));
            }
        }
        Ok((wanted, complete))
    }

    /// Whether a directory was handed out to nobody for so long that it may go.
    fn view_is_idle(&self, digest: &ManifestDigest) -> bool {
        let used = self.view_used(digest);
        used.is_none_or(|used| now().saturating_sub(used) > self.config().view_keep_s)
    }

    fn partial_size(&self, id: &LayerId) -> Result<u64, StoreError> {
        let path = PartialPaths::new(&self.layout().partial(), id).have;
        if !path.exists() {
            return Ok(0);
        }
        Ok(crate::layers::partial::PartialLayer::peek(&path)?.map_or(0, |header| taken(header.size)))
    }
}

/// Files that no record names any more, moved out of the way.
#[derive(Debug, Default)]
pub(crate) struct Gone {
    pub(crate) layers: Vec<LayerId>,
    pub(crate) files: Vec<PathBuf>,
    pub(crate) freed: u64,
}

/// The artifact that a directory is of, by its name.
fn of_view(name: &str) -> Option<ManifestDigest> {
    format!("sha256:{name}").parse().ok()
}

fn entries(dir: &PathBuf) -> Result<Vec<PathBuf>, StoreError> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(at(dir, "list"))? {
        paths.push(entry.map_err(at(dir, "list"))?.path());
    }
    paths.sort();
    Ok(paths)
}
