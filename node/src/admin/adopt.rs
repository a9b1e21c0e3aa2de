//! `adopt`: what this host has of the cluster's artifacts in other directories becomes its own copy, without a fetch.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::net::UnixStream;
use tokio::sync::watch;
use tracing::{info, warn};
use weighlock_cache::{LayerLease, StoreError, Taken, Wanted};
use weighlock_protocol::manifest::{Layer, Manifest};
use weighlock_protocol::{LayerId, ManifestDigest};

use super::room::{is_full, with_room};
use super::{add, tell};
use crate::daemon::Node;
use crate::error::{Error, Result};
use crate::facts;
use crate::local::message::*;

/// Files that are looked at.
const FILES_MAX: usize = 1_000_000;

/// Looks through the files below `path` for layers of published artifacts.
///
/// # Errors
/// The directory cannot be read; no space for copies, whatever may go; the store failed; the command line went away.
pub(super) async fn adopt(
    node: &Arc<Node>,
    stream: &mut UnixStream,
    path: PathBuf,
    dry_run: bool,
) -> Result<Adopted> {
    let started = Instant::now();
    let (steps, mut seen) = watch::channel(Progress { phase: "adopt".into(), ..Progress::default() });
    let cancel = Arc::new(AtomicBool::new(false));
    let (worker, stop) = (node.clone(), cancel.clone());
    let mut working = tokio::task::spawn_blocking(move || take(&worker, &path, dry_run, &steps, &stop));
    let (mut adopted, lease) = loop {
        tokio::select! {
            done = &mut working => break done.map_err(|e| Error::internal(format!("a worker ended: {e}")))?,
            () = tokio::time::sleep(Duration::from_millis(100)) => {
                let step = seen.borrow_and_update().clone();
                if tell(stream, step).await.is_err() || node.stop.is_cancelled() {
                    cancel.store(true, Ordering::Relaxed);
                }
            }
        }
    }?;
    if !dry_run {
        let whole: Vec<ManifestDigest> = adopted
            .artifacts
            .iter()
            .filter(|row| row.files_here == row.files)
            .map(|row| row.digest)
            .collect();
        for digest in whole {
            // Its contract is a few KiB that no other tool has: it comes from who published it.
            if let Err(e) = node.fetcher.begin(digest).await {
                warn!(%digest, error = %e, "adopted, but its contract is not here yet");
            }
        }
        node.fetcher.note_change();
    }
    // Not before what is whole is held: until then its layers belong to no artifact, and would go first.
    drop(lease);
    adopted.seconds = started.elapsed().as_secs_f64();
    let Adopted { files, reflinked_bytes, copied_bytes, .. } = &adopted;
    info!(files, reflinked_bytes, copied_bytes, dry_run, "adopted");
    Ok(adopted)
}

/// A file that may be a layer.
struct Candidate {
    path: PathBuf,
    size: u64,
}

/// Blocking: finds candidates by size, takes those that hash right. They stay as long as the lease.
fn take(
    node: &Node,
    path: &Path,
    dry_run: bool,
    steps: &watch::Sender<Progress>,
    cancel: &AtomicBool,
) -> Result<(Adopted, LayerLease)> {
    let manifests = published(node)?;
    let ids = manifests.iter().flat_map(|(manifest, _)| manifest.files()).map(|layer| layer.id);
    // What an adoption before this one has left counts as here, so it has to stay, too.
    let lease = node.store.lease_layers(ids.collect()).map_err(Error::from)?;
    let (mut by_size, mut by_sha256) = (BTreeMap::<u64, BTreeSet<LayerId>>::new(), BTreeSet::new());
    let mut sealed = BTreeSet::new();
    for layer in manifests.iter().flat_map(|(manifest, _)| manifest.files()) {
        if node.store.layer(&layer.id).map_err(Error::from)?.is_some() {
            sealed.insert(layer.id);
        } else if layer.size > 0 {
            by_size.entry(layer.size).or_default().insert(layer.id);
            by_sha256.insert(layer.sha256.hex());
        }
    }
    let candidates = candidates(path, &by_size, &by_sha256)?;
    let mut adopted = Adopted { path: path.to_owned(), dry_run, ..Adopted::default() };
    let total_bytes = candidates.iter().map(|file| file.size).sum();
    let mut done_bytes = 0;
    let mut found = BTreeSet::new();
    for file in candidates {
        if cancel.load(Ordering::Relaxed) {
            return Err(
                Error::unavailable("adopting was stopped; what was taken is kept").hint("run it again")
            );
        }
        let size = file.size;
        let layers = by_size.get(&size).cloned().unwrap_or_default();
        if !layers.is_empty() {
            match take_file(node, &file, Wanted { layers, dry_run }, &lease, cancel) {
                Ok(Some(taken)) => {
                    adopted.files += 1;
                    let bytes = if taken.reflinked {
                        &mut adopted.reflinked_bytes
                    } else {
                        &mut adopted.copied_bytes
                    };
                    *bytes += taken.size;
                    found.insert(taken.layer);
                    if let Some(left) = by_size.get_mut(&size) {
                        left.remove(&taken.layer);
                    }
                }
                Ok(None) => {}
                Err(StoreError::ChangedWhileRead { path, what }) => {
                    adopted.warnings.push(format!("{}: {what}", path.display()));
                }
                // One file that is gone or not to be read keeps nobody from the others.
                Err(StoreError::Io { path: at, source, .. }) if at == file.path => {
                    adopted.warnings.push(format!("{}: {source}", at.display()));
                }
                Err(e) => return Err(e.into()),
            }
        }
        done_bytes += size;
        let step = Progress { phase: "adopt".into(), done_bytes, total_bytes, ..Progress::default() };
        steps.send_replace(step);
    }
    if adopted.copied_bytes > 0 {
        adopted.copied_because = Some(add::copied_because(path, node.store.dir()));
    }
    let mut here = found.clone();
    for id in sealed {
        // Some may have gone since, with an artifact that made room.
        if node.store.layer(&id).map_err(Error::from)?.is_some() {
            here.insert(id);
        }
    }
    for (manifest, names) in manifests {
        // What was here before is not this command's doing.
        if manifest.files().iter().any(|layer| found.contains(&layer.id)) {
            let is_here = |file: &&Layer| file.size == 0 || here.contains(&file.id);
            adopted.artifacts.push(AdoptedArtifact {
                digest: manifest.digest(),
                names,
                files: manifest.files().len(),
                files_here: manifest.files().iter().filter(is_here).count(),
            });
        }
    }
    Ok((adopted, lease))
}

/// Takes one file. Where there is no room, something goes for it, but only if it is a layer: files of other models have
/// the same sizes.
fn take_file(
    node: &Node,
    file: &Candidate,
    wanted: Wanted,
    lease: &LayerLease,
    cancel: &AtomicBool,
) -> std::result::Result<Option<Taken>, StoreError> {
    let take = |wanted: &Wanted| node.store.take_layer(&file.path, wanted, lease);
    match take(&wanted) {
        Err(error) if is_full(&error) && !wanted.dry_run => {}
        done => return done,
    }
    let asked = take(&Wanted { dry_run: true, ..wanted.clone() });
    if let Ok(None) = asked {
        return asked;
    }
    with_room(node, file.size, cancel, || take(&wanted))
}

/// Manifests that somebody published, with their names.
fn published(node: &Node) -> Result<Vec<(Manifest, Vec<String>)>> {
    let mut found = Vec::new();
    for digest in node.store.manifests().map_err(Error::from)? {
        let names: BTreeSet<String> = {
            let ledger = node.facts.ledger();
            ledger
                .publishes_of(&digest)
                .map(|p| format!("{}:{}", p.publish.artifact, p.publish.tag))
                .collect()
        };
        if let Some(manifest) = facts::manifest(&node.store, &digest)?.filter(|_| !names.is_empty()) {
            found.push((manifest, names.into_iter().collect()));
        }
    }
    Ok(found)
}

/// Regular files below `root` that have the size of a layer that is wanted. Links are not followed: a Hub cache keeps
/// the files themselves in `blobs/`. A blob that is named by its SHA-256 is left out if no layer has that.
fn candidates(
    root: &Path,
    by_size: &BTreeMap<u64, BTreeSet<LayerId>>,
    by_sha256: &BTreeSet<String>,
) -> Result<Vec<Candidate>> {
    let mut found = Vec::new();
    for (seen, entry) in walkdir::WalkDir::new(root).sort_by_file_name().into_iter().enumerate() {
        if seen >= FILES_MAX {
            return Err(Error::invalid(format!("{} has more than {FILES_MAX} files", root.display()))
                .hint("name one of its directories"));
        }
        let entry = match entry {
            Ok(entry) => entry,
            Err(e) if e.depth() == 0 => {
                return Err(Error::invalid(format!("cannot read {}: {e}", root.display()))
                    .hint("the daemon reads it, so its user must be allowed to"));
            }
            Err(_) => continue,
        };
        let Some(size) = entry.metadata().ok().filter(|meta| meta.is_file()).map(|meta| meta.len()) else {
            continue;
        };
        let name = entry.file_name().to_string_lossy();
        let is_blob = name.len() == 64
            && name.bytes().all(|b| b.is_ascii_hexdigit())
            && entry.path().parent().is_some_and(|dir| dir.ends_with("blobs"));
        if by_size.contains_key(&size) && (!is_blob || by_sha256.contains(name.as_ref())) {
            found.push(Candidate { path: entry.path().to_owned(), size });
        }
    }
    Ok(found)
}
