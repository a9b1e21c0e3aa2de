//! Manifests, statements and settings: what becomes visible together, and what goes with an artifact.

use std::collections::BTreeSet;
use std::sync::Arc;

use weighlock_protocol::manifest::Manifest;
use weighlock_protocol::{LayerId, ManifestDigest, StatementId};

use crate::error::StoreError;
use crate::fs;
use crate::layers::import::Staged;
use crate::layers::seal::{place, sync_places};
use crate::meta::{HeadChange, LayerInfo};
use crate::store::Store;

/// Facts that become visible together or not at all.
#[derive(Debug, Default)]
pub struct Commit {
    /// An import: its layers and its manifest, which this host then holds.
    pub staged: Option<Staged>,
    /// Exact bytes of further manifests.
    pub manifests: Vec<Arc<[u8]>>,
    /// Statements with their exact bytes, in order. Those already here get the new bytes.
    pub statements: Vec<(StatementId, Vec<u8>)>,
    /// Heads that these statements move.
    pub heads: Vec<HeadChange>,
}

impl Store {
    /// Makes layers, manifests and statements visible in one transaction; all of it or nothing.
    ///
    /// # Errors
    /// A manifest that does not parse, no space, an io error, the database failed. Nothing is visible then.
    pub fn commit(&self, commit: Commit) -> Result<(), StoreError> {
        let Commit { staged, manifests, statements, heads } = commit;
        let mut parsed = Vec::with_capacity(manifests.len() + 1);
        for bytes in &manifests {
            parsed.push((Manifest::parse(bytes)?, false));
        }
        parsed.extend(staged.iter().map(|staged| (staged.manifest().clone(), true)));
        let _change = self.change_lock();
        // Alone until they are on record: a seal of the same layer that fails takes its file back, as does this.
        let placing = self.placing_alone();
        let mut placed = Vec::new();
        let done = (|| {
            let mut rows = Vec::new();
            for layer in staged.iter().flat_map(Staged::layers) {
                let known = self.meta().layer(&layer.id)?;
                let info = match known {
                    Some(info) => info,
                    None => {
                        placed.push(layer.id);
                        place(self.layout(), &layer.id, layer.size, &layer.data, &layer.tree)?
                    }
                };
                let row = LayerInfo { sha256: Some(layer.sha256), ..info };
                if known != Some(row) {
                    rows.push((layer.id, row));
                }
            }
            if !placed.is_empty() {
                sync_places(self.layout(), &placed)?;
            }
            let manifests: Vec<(ManifestDigest, &[u8], bool)> =
                parsed.iter().map(|(m, hold)| (m.digest(), &m.bytes()[..], *hold)).collect();
            self.meta().commit(&rows, &manifests, &statements, &heads)
        })();
        if done.is_err() {
            for id in &placed {
                // The error that made us stop is the one to report; what stays is unrecorded and swept at open.
                let _ = fs::remove_file(&self.layout().layer(id));
                let _ = fs::remove_file(&self.layout().layer_tree(id));
            }
            return done;
        }
        drop(placing);
        for id in &placed {
            self.remove_partial(id)?;
            self.forget_partial(id);
        }
        Ok(())
    }

    /// Appends statements in order; those already here get the new bytes, which carry more signatures. One durable
    /// transaction.
    ///
    /// # Errors
    /// No space, or the database failed; then none is stored.
    pub fn append_statements(&self, statements: &[(StatementId, Vec<u8>)]) -> Result<(), StoreError> {
        self.meta().commit(&[], &[], statements, &[])
    }

    /// The heads of all channels, as they were written with the statements that moved them.
    ///
    /// # Errors
    /// The database failed.
    pub fn heads(&self) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        self.meta().heads()
    }

    /// Removes statements that turned out to be over a limit. One durable transaction.
    ///
    /// # Errors
    /// The database failed.
    pub fn remove_statements(&self, ids: &[StatementId]) -> Result<(), StoreError> {
        if ids.is_empty() { Ok(()) } else { self.meta().remove_statements(ids) }
    }

    /// All statements with their exact bytes, in order of arrival.
    ///
    /// # Errors
    /// The database failed.
    pub fn statements(&self) -> Result<Vec<(StatementId, Vec<u8>)>, StoreError> {
        self.meta().statements()
    }

    /// The exact bytes of a statement.
    ///
    /// # Errors
    /// The database failed.
    pub fn statement(&self, id: &StatementId) -> Result<Option<Vec<u8>>, StoreError> {
        self.meta().statement(id)
    }

    /// Stores a manifest that came from elsewhere, as metadata; its content need not be here.
    ///
    /// # Errors
    /// Bytes that are not a manifest; the database failed.
    pub fn put_manifest(&self, bytes: &[u8]) -> Result<ManifestDigest, StoreError> {
        let manifest = Manifest::parse(bytes)?;
        self.meta().commit(&[], &[(manifest.digest(), bytes, false)], &[], &[])?;
        Ok(manifest.digest())
    }

    /// The exact bytes of a manifest.
    ///
    /// # Errors
    /// The database failed.
    pub fn manifest(&self, digest: &ManifestDigest) -> Result<Option<Arc<[u8]>>, StoreError> {
        self.meta().manifest(digest)
    }

    /// The digests of all manifests that are known here, whether their content is here or not.
    ///
    /// # Errors
    /// The database failed.
    pub fn manifests(&self) -> Result<Vec<ManifestDigest>, StoreError> {
        self.meta().manifests()
    }

    /// Forgets a manifest; its layers stay. False if it was not known.
    ///
    /// # Errors
    /// The database failed.
    pub fn remove_manifest(&self, digest: &ManifestDigest) -> Result<bool, StoreError> {
        self.meta().remove_manifest(digest)
    }

    /// Marks a manifest as one whose content this host keeps, also while it is still being fetched. An import does
    /// so by itself.
    ///
    /// # Errors
    /// The database failed.
    pub fn hold(&self, digest: &ManifestDigest) -> Result<(), StoreError> {
        let _change = self.change_lock();
        self.meta().set_held(digest, true)
    }

    /// Marks an artifact by [`hold`](Self::hold) and looks at what is here, so that nothing of it goes in between.
    /// Says whether it had the mark, and whether all of it is here.
    ///
    /// # Errors
    /// The database failed.
    pub fn begin(&self, manifest: &Manifest) -> Result<(bool, bool), StoreError> {
        let _change = self.change_lock();
        let digest = manifest.digest();
        let kept = self.meta().is_held(&digest)?;
        if !kept {
            self.meta().set_held(&digest, true)?;
        }
        Ok((kept, self.manifest_complete(manifest)?))
    }

    /// Whether [`begin`](Self::begin) has nothing to do: marked, and every layer is sealed here. Waits for no change.
    ///
    /// # Errors
    /// The database failed.
    pub fn is_begun_and_whole(&self, manifest: &Manifest) -> Result<bool, StoreError> {
        Ok(self.meta().is_held(&manifest.digest())? && self.manifest_complete(manifest)?)
    }

    /// Takes the mark of [`hold`](Self::hold) away; nothing is removed.
    ///
    /// # Errors
    /// The database failed.
    pub fn release(&self, digest: &ManifestDigest) -> Result<(), StoreError> {
        self.meta().set_held(digest, false)
    }

    /// The manifests that are marked by [`hold`](Self::hold).
    ///
    /// # Errors
    /// The database failed.
    pub fn held(&self) -> Result<Vec<ManifestDigest>, StoreError> {
        self.meta().held()
    }

    /// Whether every layer of a manifest is sealed here.
    ///
    /// # Errors
    /// The database failed.
    pub fn manifest_complete(&self, manifest: &Manifest) -> Result<bool, StoreError> {
        let ids: Vec<LayerId> = layer_ids(manifest).into_iter().collect();
        Ok(self.meta().layers_of(&ids)?.iter().all(Option::is_some))
    }

    /// Bytes of a manifest's distinct layers that are here, partial layers as their have-maps say.
    ///
    /// # Errors
    /// The database failed or an io error.
    pub fn held_bytes(&self, manifest: &Manifest) -> Result<u64, StoreError> {
        let mut sum = 0u64;
        for id in layer_ids(manifest) {
            let held = match self.meta().layer(&id)? {
                Some(info) => info.size,
                None => self.partial_bytes(&id)?,
            };
            sum = sum.saturating_add(held);
        }
        Ok(sum)
    }

    /// Removes what this host holds of an artifact: its layers that no other held manifest uses, its partial
    /// layers and its view, whoever has it open. The manifest stays as metadata. Returns the bytes of layers freed.
    ///
    /// # Errors
    /// [`StoreError::NoManifest`]; the database failed or an io error.
    pub fn remove_artifact(&self, digest: &ManifestDigest) -> Result<u64, StoreError> {
        let change = self.change_lock();
        let gone = self.drop_artifact(digest)?;
        drop(change);
        self.drop_view(digest)?;
        self.remove_gone(gone)
    }

    /// Sealed layers that no known manifest names.
    ///
    /// # Errors
    /// The database failed.
    pub fn unreferenced_layers(&self) -> Result<Vec<LayerId>, StoreError> {
        let mut ids: BTreeSet<LayerId> = self.layers()?.into_iter().map(|(id, _)| id).collect();
        for digest in self.manifests()? {
            if let Some(bytes) = self.manifest(&digest)? {
                for id in layer_ids(&Manifest::parse(&bytes)?) {
                    ids.remove(&id);
                }
            }
        }
        Ok(ids.into_iter().collect())
    }

    /// A small value of the node (peer book, join state); `None` if it was never set.
    ///
    /// # Errors
    /// A value that does not read as `T`; the database failed.
    pub fn setting<T: serde::de::DeserializeOwned>(&self, key: &str) -> Result<Option<T>, StoreError> {
        let bytes = self.meta().setting(key)?;
        let value = bytes.map(|bytes| serde_json::from_slice(&bytes)).transpose();
        value.map_err(|e| StoreError::Setting { key: key.to_owned(), reason: e.to_string() })
    }

    /// Sets a small value durably; `None` removes it.
    ///
    /// # Errors
    /// A value that JSON cannot hold; the database failed.
    pub fn set_setting<T: serde::Serialize>(&self, key: &str, value: Option<&T>) -> Result<(), StoreError> {
        let bytes = value.map(serde_json::to_vec).transpose();
        let bytes = bytes.map_err(|e| StoreError::Setting { key: key.to_owned(), reason: e.to_string() })?;
        self.meta().set_setting(key, bytes.as_deref())
    }
}

/// The distinct layers of a manifest.
pub(crate) fn layer_ids(manifest: &Manifest) -> BTreeSet<LayerId> {
    manifest.layers().map(|layer| layer.id).collect()
}
