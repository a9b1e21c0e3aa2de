//! What uses the store: layers, partial layers, directories, what was set aside, the database.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::PoisonError;
use std::time::UNIX_EPOCH;

use weighlock_protocol::manifest::Manifest;
use weighlock_protocol::wire::bao::bytes_in;
use weighlock_protocol::{LayerId, ManifestDigest};

use crate::error::{StoreError, at};
use crate::fs;
use crate::layers::have;
use crate::layers::partial::{PartialLayer, PartialPaths};
use crate::room::taken;
use crate::store::Store;

/// Bytes by what they are for. Trees count with their layers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Sealed layers.
    pub layers: usize,
    /// Their bytes.
    pub layer_bytes: u64,
    /// Of these, bytes of layers that more than one held artifact has.
    pub shared_bytes: u64,
    /// Of these, bytes of layers that no held artifact has.
    pub unreferenced_bytes: u64,
    /// Layers that are not complete.
    pub partials: usize,
    /// What is reserved for them.
    pub partial_bytes: u64,
    /// Directories that were handed out, copies only: blocks that are shared with layers are not counted again.
    pub view_bytes: u64,
    /// Layers that were set aside because they are damaged.
    pub quarantine_bytes: u64,
    /// Imports under way, and what is being removed.
    pub staging_bytes: u64,
    /// The database.
    pub metadata_bytes: u64,
    /// The file that is given back when the disk is full.
    pub reserve_bytes: u64,
    /// Bytes that count for the quota.
    pub used_bytes: u64,
    /// The quota; 0 is none.
    pub quota_bytes: u64,
    /// Bytes that stay free on the file system.
    pub floor_bytes: u64,
    /// Bytes that are free on the file system.
    pub free_bytes: u64,
}

/// An artifact that this host keeps, whole or not.
#[derive(Debug, Clone)]
pub struct Holding {
    /// Its manifest.
    pub manifest: Manifest,
    /// Its layers that are here or begun, with the bytes that each takes.
    pub layers: BTreeMap<LayerId, u64>,
    /// Whether all of it is here.
    pub complete: bool,
    /// Whether some layer is complete.
    pub sealed: bool,
    /// When it was last used, Unix seconds; when its newest layer came where that is not known.
    pub last_used: u64,
}

impl Store {
    /// What uses the store.
    ///
    /// # Errors
    /// The database failed or an io error.
    pub fn usage(&self) -> Result<Usage, StoreError> {
        let mut users: BTreeMap<LayerId, usize> = BTreeMap::new();
        for holding in self.holdings()? {
            for id in holding.layers.into_keys() {
                *users.entry(id).or_default() += 1;
            }
        }
        let layers = self.layers()?;
        let sum = |wanted: &dyn Fn(usize) -> bool| {
            let those = layers.iter().filter(|(id, _)| wanted(users.get(id).copied().unwrap_or_default()));
            those.fold(0u64, |sum, (_, info)| sum.saturating_add(taken(info.size)))
        };
        let partials = self.partials()?;
        let layout = self.layout();
        let length = |path: &Path| std::fs::metadata(path).map_or(0, |meta| meta.len());
        Ok(Usage {
            layers: layers.len(),
            layer_bytes: sum(&|_| true),
            shared_bytes: sum(&|n| n > 1),
            unreferenced_bytes: sum(&|n| n == 0),
            partials: partials.len(),
            partial_bytes: partials.iter().fold(0, |sum, (_, size)| sum.saturating_add(taken(*size))),
            view_bytes: self.view_bytes()?,
            quarantine_bytes: fs::dir_bytes(&layout.quarantine())?,
            staging_bytes: fs::dir_bytes(&layout.staging())?,
            metadata_bytes: length(&layout.meta()),
            reserve_bytes: length(&layout.reserve()),
            used_bytes: self.used_bytes()?,
            quota_bytes: self.config().quota_bytes,
            floor_bytes: self.config().free_floor_bytes,
            free_bytes: self.free_bytes()?,
        })
    }

    /// Bytes that count for the quota: layers, partial layers, copies in directories, what was set aside.
    ///
    /// # Errors
    /// The database failed or an io error.
    pub fn used_bytes(&self) -> Result<u64, StoreError> {
        let layers = self.layers()?.into_iter().map(|(_, info)| taken(info.size));
        let partials = self.partials()?.into_iter().map(|(_, size)| taken(size));
        let sum = layers.chain(partials).fold(0u64, u64::saturating_add);
        let rest = self.view_bytes()?.saturating_add(fs::dir_bytes(&self.layout().quarantine())?);
        Ok(sum.saturating_add(rest))
    }

    /// The artifacts that this host keeps.
    ///
    /// # Errors
    /// The database failed or an io error.
    pub fn holdings(&self) -> Result<Vec<Holding>, StoreError> {
        let sealed: BTreeMap<LayerId, _> = self.layers()?.into_iter().collect();
        let begun: BTreeMap<LayerId, u64> = self.partials()?.into_iter().collect();
        let mut holdings = Vec::new();
        for digest in self.held()? {
            let Some(bytes) = self.manifest(&digest)? else { continue };
            let manifest = Manifest::parse(&bytes)?;
            let (mut layers, mut complete, mut newest, mut any) = (BTreeMap::new(), true, 0, false);
            for layer in manifest.layers() {
                if let Some(info) = sealed.get(&layer.id) {
                    layers.insert(layer.id, taken(info.size));
                    newest = newest.max(u64::try_from(info.mtime_ns / 1_000_000_000).unwrap_or(0));
                    any = true;
                    continue;
                }
                complete = false;
                if let Some(size) = begun.get(&layer.id) {
                    layers.insert(layer.id, taken(*size));
                    newest = newest.max(mtime(&PartialPaths::new(&self.layout().partial(), &layer.id).have));
                }
            }
            let last_used = self.last_used(&digest).unwrap_or(newest);
            holdings.push(Holding { manifest, layers, complete, sealed: any, last_used });
        }
        Ok(holdings)
    }

    /// When a directory of the artifact was last handed out, Unix seconds; `None` if there is none.
    pub fn view_used(&self, digest: &ManifestDigest) -> Option<u64> {
        let marker = crate::materialise::marker(&self.layout().views().join(digest.hex()));
        std::fs::metadata(&marker).is_ok().then(|| mtime(&marker))
    }

    pub(crate) fn partial_bytes(&self, id: &LayerId) -> Result<u64, StoreError> {
        if let Some(layer) = self.slot(id).lock().unwrap_or_else(PoisonError::into_inner).upgrade() {
            return Ok(bytes_in(&layer.have(), layer.size()));
        }
        let path = PartialPaths::new(&self.layout().partial(), id).have;
        let Ok(file) = File::open(&path) else {
            return Ok(0);
        };
        let Some(header) = PartialLayer::peek(&path)? else {
            return Ok(0);
        };
        let (have, _) = have::read_bitmap(&file, id, header.size).map_err(at(&path, "read"))?;
        Ok(bytes_in(&have.to_set(), header.size))
    }

    /// Bytes of directories that share nothing with the layers. One that is being written counts as promised.
    pub(crate) fn view_bytes(&self) -> Result<u64, StoreError> {
        let dir = self.layout().views();
        let mut sum = 0u64;
        for entry in std::fs::read_dir(&dir).map_err(at(&dir, "list"))? {
            let path = entry.map_err(at(&dir, "list"))?.path();
            let is_hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
            if !is_hidden && !crate::materialise::is_shared(&path) {
                sum = sum.saturating_add(fs::dir_bytes(&path)?);
            }
        }
        Ok(sum)
    }
}

/// Modification time in Unix seconds; 0 if it cannot be asked.
pub(crate) fn mtime(path: &Path) -> u64 {
    let modified = std::fs::symlink_metadata(path).map(|meta| meta.mtime()).unwrap_or(0);
    u64::try_from(modified).unwrap_or(0)
}

/// Unix seconds by the clock of this host.
pub(crate) fn now() -> u64 {
    std::time::SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
