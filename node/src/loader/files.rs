//! Which layers a request means, and their descriptors.

use std::collections::BTreeMap;
use std::fs::File;

use weighlock_cache::{Store, StoreError};
use weighlock_protocol::LayerId;
use weighlock_protocol::manifest::{Layer, Manifest};

use crate::error::{Error, Result};
use crate::fetch::blocking;

/// Descriptors that the daemon opens for one request.
const FDS_MAX: usize = 512;

/// Layers to be opened for one request, with their sizes: at most as many as one process can hold.
pub(super) fn layers_to_open(manifest: &Manifest, paths: &[String]) -> Result<Vec<(LayerId, u64)>> {
    if paths.len() > FDS_MAX {
        return Err(Error::refused(format!(
            "{} descriptors at once are too many (limit {FDS_MAX})",
            paths.len()
        ))
        .hint("ask for descriptors by path, some at a time"));
    }
    Ok(layers_at(manifest, paths)?.into_iter().map(|layer| (layer.id, layer.size)).collect())
}

/// All are tried, so that all that are damaged are found.
pub(super) fn open_files(
    store: &Store,
    layers: &[(LayerId, u64)],
    partial: bool,
) -> std::result::Result<Vec<File>, StoreError> {
    if !partial {
        let ids: Vec<LayerId> = layers.iter().map(|(id, _)| *id).collect();
        return Ok(store.open_all_sealed(&ids)?.into_iter().map(|sealed| sealed.file).collect());
    }
    let opened: Vec<_> = layers.iter().map(|(id, size)| open_file(store, id, *size)).collect();
    opened.into_iter().collect()
}

/// The files at `paths`, in their order.
pub(super) fn layers_at<'a>(manifest: &'a Manifest, paths: &[String]) -> Result<Vec<&'a Layer>> {
    let by_path: BTreeMap<&str, &Layer> =
        manifest.files().iter().map(|layer| (layer.path.as_str(), layer)).collect();
    let layers = paths.iter().map(|path| {
        by_path.get(path.as_str()).copied().ok_or_else(|| {
            Error::refused(format!("{path:?} is not a file of {}", manifest.digest()))
                .hint("`weighlock inspect` lists its files")
        })
    });
    layers.collect()
}

/// Whether one of the layers is not sealed here.
pub(super) async fn lacks(store: &Store, layers: &[(LayerId, u64)]) -> Result<bool> {
    let (store, layers) = (store.clone(), layers.to_vec());
    blocking(move || {
        let ids: Vec<LayerId> = layers.iter().map(|(id, _)| *id).collect();
        Ok(store.layers_of(&ids).map_err(Error::from)?.iter().any(Option::is_none))
    })
    .await
}

/// A read-only descriptor of a sealed layer, or of one that is on its way.
fn open_file(store: &Store, id: &LayerId, size: u64) -> std::result::Result<File, StoreError> {
    match store.open_sealed(id) {
        Err(StoreError::NotHeld(_)) => {}
        sealed => return sealed.map(|sealed| sealed.file),
    }
    // It was whole once, and loaders were told so: they would take what is blank in it for bytes.
    if let Some(damage) = store.damage_of(id)? {
        return Err(StoreError::Corrupt { layer: *id, reason: damage.reason });
    }
    match store.partial(id, size).and_then(|partial| partial.open_data()) {
        // Sealed meanwhile.
        Err(StoreError::AlreadySealed(_) | StoreError::NotHeld(_)) => {
            store.open_sealed(id).map(|sealed| sealed.file)
        }
        opened => opened,
    }
}

/// Paths of files that are not all here. Blocks on the disk.
pub(super) fn incomplete(store: &Store, manifest: &Manifest) -> Result<Vec<String>> {
    let ids: Vec<LayerId> = manifest.files().iter().map(|layer| layer.id).collect();
    let rows = store.layers_of(&ids).map_err(Error::from)?;
    let missing = manifest.files().iter().zip(rows).filter(|(_, row)| row.is_none());
    Ok(missing.map(|(layer, _)| layer.path.clone()).collect())
}
