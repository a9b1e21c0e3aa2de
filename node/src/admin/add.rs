//! `add`: a path becomes layers, a manifest and a published tag.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::net::UnixStream;
use tokio::sync::watch;
use tracing::info;
use weighlock_cache::inspect;
use weighlock_cache::{ImportOptions, ImportProgress};
use weighlock_protocol::Reference;
use weighlock_protocol::manifest::contract::MlflowOrigin;

use super::room::with_room;
use crate::cluster::now;
use crate::daemon::Node;
use crate::error::{Error, Result};
use crate::local::frame;
use crate::local::message::*;

/// What an import takes.
pub(super) struct Taken {
    pub(super) path: PathBuf,
    pub(super) include: Vec<String>,
    pub(super) exclude: Vec<String>,
    pub(super) datasets: Vec<PathBuf>,
    pub(super) origin: Option<Box<MlflowOrigin>>,
}

pub(super) async fn add(
    node: &Arc<Node>,
    stream: &mut UnixStream,
    taken: Taken,
    reference: &str,
) -> Result<Added> {
    let reference: Reference = reference.parse()?;
    // Asked first: nobody wants to hear it after an hour of hashing.
    node.facts.may_publish(&reference, None)?;
    let started = Instant::now();
    let (steps, mut seen) = watch::channel(Progress { phase: "import".into(), ..Progress::default() });
    let cancel = Arc::new(AtomicBool::new(false));
    let (worker, stop) = (node.clone(), cancel.clone());
    let mut import = tokio::task::spawn_blocking(move || {
        let step = |p: ImportProgress| {
            let phase = if p.syncing { "sync" } else { "import" }.to_owned();
            steps.send_replace(Progress {
                phase,
                done_bytes: p.done_bytes,
                total_bytes: p.total_bytes,
                ..Progress::default()
            });
        };
        import(&worker, taken, &reference, &step, &stop)
    });
    let stopping = node.stop.clone();
    let result = loop {
        tokio::select! {
            done = &mut import => break done.map_err(|e| Error::internal(format!("the import ended: {e}")))?,
            () = stopping.cancelled(), if !cancel.load(Ordering::Relaxed) => cancel.store(true, Ordering::Relaxed),
            () = tokio::time::sleep(Duration::from_millis(100)) => {
                let step = seen.borrow_and_update().clone();
                // A command line that went away wants nothing added.
                if frame::write(stream, &Event::Progress(step)).await.is_err() {
                    cancel.store(true, Ordering::Relaxed);
                }
            }
        }
    };
    let added = result?;
    Ok(Added { seconds: started.elapsed().as_secs_f64(), ..added })
}

/// Blocking: inspects, imports, publishes.
fn import(
    node: &Node,
    taken: Taken,
    reference: &Reference,
    step: &(dyn Fn(ImportProgress) + Sync),
    cancel: &AtomicBool,
) -> Result<Added> {
    let Taken { path, include, exclude, datasets, origin } = taken;
    let options = inspect::Options { include, exclude, ..inspect::Options::default() };
    let mut plan = inspect::plan(&path, &options).map_err(Error::from)?;
    for file in &datasets {
        plan.contract.datasets.extend(inspect::dvc::read(file).map_err(|e| Error::invalid(e.to_string()))?);
    }
    plan.contract.datasets.sort_by(|a, b| a.name.cmp(&b.name));
    plan.contract.datasets.dedup();
    if let Some(origin) = origin {
        origin.check().map_err(Error::invalid)?;
        plan.contract.lineage = Some(origin.lineage());
        plan.contract.mlflow = Some(*origin);
    }
    let known: BTreeSet<_> =
        node.store.layers().map_err(Error::from)?.into_iter().map(|(id, _)| id).collect();
    let import = || node.store.import(&plan, &ImportOptions::default(), step, cancel);
    let staged = with_room(node, plan.total_bytes(), cancel, import).map_err(Error::from)?;
    let manifest = staged.manifest().clone();
    // Of the files alone, as the total is: the contract and the configuration blob are ours.
    let new_files: BTreeMap<_, _> =
        manifest.files().iter().map(|f| (f.id, f.size)).filter(|(id, _)| !known.contains(id)).collect();
    let new_bytes: u64 = new_files.values().sum();
    let shared = new_files.iter().filter(|(id, _)| staged.is_reflinked(id));
    let reflinked_bytes: u64 = shared.map(|(_, size)| size).sum();
    let copied_bytes = new_bytes - reflinked_bytes;
    let had_all = node.store.held().map_err(Error::from)?.contains(&manifest.digest())
        && node.store.manifest_complete(&manifest).map_err(Error::from)?;
    let (statement, new) = node.facts.publish(reference, staged)?;
    node.store.note_used(&manifest.digest(), now().0);
    node.fetcher.note_change();
    info!(%reference, digest = %manifest.digest(), new, "added");
    Ok(Added {
        reference: reference.to_string(),
        digest: manifest.digest(),
        statement,
        new,
        again: !new && !had_all,
        files: manifest.files().len(),
        total_bytes: manifest.total_bytes(),
        new_bytes,
        reflinked_bytes,
        copied_bytes,
        copied_because: (copied_bytes > 0).then(|| copied_because(&path, node.store.dir())),
        seconds: 0.0,
        warnings: plan.warnings,
    })
}

/// Why files of `source` do not share their disk blocks with the store.
pub(super) fn copied_because(source: &Path, store: &Path) -> String {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| std::fs::metadata(path).map(|meta| meta.dev()).ok();
    match device(source) == device(store) {
        true => {
            "the file system of the store cannot share blocks between files (XFS and Btrfs can)".to_owned()
        }
        false => format!("the store {} is on another file system", store.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_copied_is_told_why() {
        let dir = tempfile::tempdir().expect("a directory");
        let why = |source: &Path| copied_because(source, dir.path());
        assert!(why(dir.path()).contains("cannot share blocks"));
        // Never on a disk.
        assert!(why(Path::new("/proc")).contains("another file system"));
    }
}
