//! `scrub`: reads layers again now, and waits until what was damaged is whole.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::net::UnixStream;
use tokio::sync::watch;
use weighlock_cache::{Damage, Scrubbed as Found};
use weighlock_protocol::{LayerId, Reference};

use super::tell;
use crate::cli::counted;
use crate::daemon::Node;
use crate::error::{Error, Result};
use crate::fetch::{Step, blocking};
use crate::local::message::*;
use crate::{facts, scrub};

/// Fetches that are waited for, one after the other.
const HEAL_TRIES_MAX: usize = 4;

/// What reading found.
#[derive(Default)]
struct Read {
    layers: usize,
    bytes: u64,
    trees_rebuilt: usize,
    damaged: BTreeMap<LayerId, Damage>,
    /// How many could not be read, and why the first of them.
    unread: Option<(usize, Error)>,
}

/// Reads the layers of an artifact, or all, at `bytes_per_s` (0: as fast as the disk gives them).
///
/// # Errors
/// Nothing of it is here; the store failed; the command line went away.
pub(super) async fn scrub(
    node: &Arc<Node>,
    stream: &mut UnixStream,
    reference: Option<&str>,
    bytes_per_s: u64,
) -> Result<Scrubbed> {
    let started = Instant::now();
    let wanted = match reference {
        Some(text) => Some(layers_of(node, text)?),
        None => None,
    };
    let (steps, mut seen) = watch::channel(Progress { phase: "scrub".into(), ..Progress::default() });
    let cancel = Arc::new(AtomicBool::new(false));
    let (worker, only, stop) = (node.clone(), wanted.clone(), cancel.clone());
    let mut reading =
        tokio::task::spawn_blocking(move || read(&worker, only.as_ref(), bytes_per_s, &steps, &stop));
    let read = loop {
        tokio::select! {
            done = &mut reading => break done.map_err(|e| Error::internal(format!("a worker ended: {e}")))?,
            () = tokio::time::sleep(Duration::from_millis(100)) => {
                let step = seen.borrow_and_update().clone();
                if tell(stream, step).await.is_err() {
                    cancel.store(true, Ordering::Relaxed);
                }
            }
        }
    }?;
    // Also what was damaged before and waits for a host that has it.
    let store = node.store.clone();
    let before = blocking(move || store.damaged_layers().map_err(Error::from)).await?;
    let (mut damaged, unread) = (read.damaged, read.unread);
    for damage in before {
        if wanted.as_ref().is_none_or(|wanted| wanted.contains(&damage.layer)) {
            damaged.insert(damage.layer, damage);
        }
    }
    if !damaged.is_empty() {
        node.fetcher.note_change();
        heal(node, stream, &damaged.keys().copied().collect::<Vec<_>>()).await?;
    }
    // The others were read, and healed, first.
    if let Some((count, first)) = unread {
        let all = counted(count, "layer");
        return Err(Error { message: format!("{all} could not be read again: {}", first.message), ..first });
    }
    let store = node.store.clone();
    let left: BTreeSet<String> =
        blocking(move || scrub::damaged(&store)).await?.into_iter().map(|row| row.layer).collect();
    let rows = damaged.into_values().map(|damage| DamagedRow {
        layer: damage.layer.hex(),
        size: damage.size,
        found: damage.found_s,
        reason: damage.reason,
        bad_groups: damage.bad_groups,
        groups: damage.groups,
        artifacts: Vec::new(),
        healed: !left.contains(&damage.layer.hex()),
    });
    Ok(Scrubbed {
        layers: read.layers,
        bytes: read.bytes,
        trees_rebuilt: read.trees_rebuilt,
        damaged: rows.collect(),
        seconds: started.elapsed().as_secs_f64(),
    })
}

fn layers_of(node: &Node, text: &str) -> Result<BTreeSet<LayerId>> {
    let reference: Reference = text.parse()?;
    let digest = node.facts.resolve(&reference)?;
    let nothing = || Error::not_found(format!("nothing of {reference} is on this host"));
    let manifest = facts::manifest(&node.store, &digest)?.ok_or_else(nothing)?;
    if node.store.held_bytes(&manifest).map_err(Error::from)? == 0 {
        return Err(nothing());
    }
    Ok(manifest.layers().map(|layer| layer.id).collect())
}

/// Blocking: reads them one after another.
fn read(
    node: &Node,
    only: Option<&BTreeSet<LayerId>>,
    bytes_per_s: u64,
    steps: &watch::Sender<Progress>,
    cancel: &AtomicBool,
) -> Result<Read> {
    let mut layers = node.store.layers().map_err(Error::from)?;
    layers.retain(|(id, _)| only.is_none_or(|only| only.contains(id)));
    let total_bytes = layers.iter().map(|(_, info)| info.size).sum();
    let (started, mut found) = (Instant::now(), Read::default());
    for (id, _) in layers {
        let mut pace = |bytes: u64| {
            node.scrubber.count_read(bytes);
            found.bytes += bytes;
            let step = Progress {
                phase: "scrub".into(),
                done_bytes: found.bytes,
                total_bytes,
                ..Progress::default()
            };
            steps.send_replace(step);
            let due = if bytes_per_s == 0 { 0.0 } else { found.bytes as f64 / bytes_per_s as f64 };
            let stopped = || cancel.load(Ordering::Relaxed) || node.stop.is_cancelled();
            while started.elapsed().as_secs_f64() < due && !stopped() {
                std::thread::sleep(Duration::from_millis(20));
            }
            !stopped()
        };
        let scrubbed = node.store.scrub(&id, 0, &mut pace).map_err(Error::from);
        node.scrubber.tried(&id, scrubbed.as_ref().err());
        let scrubbed = match scrubbed {
            Ok(scrubbed) => scrubbed,
            Err(error) => {
                found.unread.get_or_insert((0, error)).0 += 1;
                continue;
            }
        };
        node.scrubber.found(&id, &scrubbed);
        found.layers += 1;
        match scrubbed {
            Found::Whole { tree_rebuilt } => found.trees_rebuilt += usize::from(tree_rebuilt),
            Found::Damaged(damage) => drop(found.damaged.insert(id, damage)),
            Found::Gone => found.layers -= 1,
            Found::Stopped { .. } => {
                return Err(Error::unavailable("scrubbing was stopped").hint("start it again"));
            }
        }
    }
    Ok(found)
}

/// Waits until the layers are whole, or nobody has what is missing.
async fn heal(node: &Arc<Node>, stream: &mut UnixStream, layers: &[LayerId]) -> Result<()> {
    for _ in 0..HEAL_TRIES_MAX {
        let arrivals = scrub::begin(node, layers).await;
        if node.facts.members().borrow().is_empty() {
            // There is nobody to wait for; it goes on when somebody joins.
            return Ok(());
        }
        let mut failed = arrivals.is_empty();
        for mut arrival in arrivals {
            loop {
                match arrival.next().await {
                    Ok(Step::Progress(step)) => {
                        tell(stream, Progress { phase: "heal".into(), ..step }).await?;
                    }
                    Ok(Step::Here(_)) => break,
                    Err(_) => {
                        failed = true;
                        break;
                    }
                }
            }
        }
        let store = node.store.clone();
        let left = blocking(move || store.damaged_layers().map_err(Error::from)).await?;
        // What is left all the same was found when the fetch of that artifact was about to end, and knew nothing of it.
        if failed || !left.iter().any(|damage| layers.contains(&damage.layer)) {
            break;
        }
    }
    Ok(())
}
