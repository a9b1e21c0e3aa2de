//! Reading sealed layers again in the background: which one is next, how fast, and what became of it.

mod background;
mod heal;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;
use tracing::{error, warn};
use weighlock_cache::{Damage, SCRUB_BLOCK_BYTES, Scrubbed, Store};
use weighlock_protocol::{KeyId, LayerId};

pub(crate) use background::{doubts, run};
pub(crate) use heal::{begin, whole};

use crate::error::{Error, Result};
use crate::facts;
use crate::local::message::{DamagedRow, Integrity};

/// Doubts of peers that wait; further ones are dropped.
const DOUBTS_MAX: usize = 64;
/// Blocks whose last doubt is remembered.
const DOUBTED_MAX: usize = 1024;
/// Layers that could not be read which are remembered.
const UNREAD_MAX: usize = 1024;
/// One of them is tried again after this long; the others come first.
const UNREAD_PAUSE: Duration = Duration::from_secs(3600);
/// One block is read again for others so often at most.
const DOUBT_PAUSE: Duration = Duration::from_secs(60);

/// A peer says that bytes of a layer that it got from here fail verification.
pub(crate) struct Doubt {
    peer: KeyId,
    layer: LayerId,
    at: u64,
}

/// What reading again has found since the daemon started, and what peers doubt.
pub(crate) struct Scrubber {
    doubt: mpsc::Sender<Doubt>,
    doubted: Mutex<BTreeMap<(LayerId, u64), Instant>>,
    /// Layers that come before their time, since somebody doubts them.
    suspects: Mutex<BTreeSet<LayerId>>,
    /// Layers that could not be read again, for another reason than damage: since when, and why.
    unread: Mutex<BTreeMap<LayerId, (Instant, String)>>,
    read_bytes: AtomicU64,
    damaged_layers: AtomicU64,
    damaged_groups: AtomicU64,
    trees_rebuilt: AtomicU64,
    doubts: AtomicU64,
}

impl Scrubber {
    pub(crate) fn new() -> (Self, mpsc::Receiver<Doubt>) {
        let (doubt, heard) = mpsc::channel(DOUBTS_MAX);
        let scrubber = Self {
            doubt,
            doubted: Mutex::default(),
            suspects: Mutex::default(),
            unread: Mutex::default(),
            read_bytes: AtomicU64::new(0),
            damaged_layers: AtomicU64::new(0),
            damaged_groups: AtomicU64::new(0),
            trees_rebuilt: AtomicU64::new(0),
            doubts: AtomicU64::new(0),
        };
        (scrubber, heard)
    }

    /// A peer doubts a block. Nothing is believed: it is only read again, and not too often.
    pub(crate) fn doubt(&self, peer: KeyId, layer: LayerId, at: u64) {
        let now = Instant::now();
        {
            let mut doubted = self.doubted.lock().unwrap_or_else(PoisonError::into_inner);
            doubted.retain(|_, since| now.duration_since(*since) < DOUBT_PAUSE);
            let block = (layer, at / SCRUB_BLOCK_BYTES);
            if doubted.contains_key(&block) || doubted.len() >= DOUBTED_MAX {
                return;
            }
            doubted.insert(block, now);
        }
        self.doubts.fetch_add(1, Ordering::Relaxed);
        let _ = self.doubt.try_send(Doubt { peer, layer, at });
    }

    /// Counts what was found and writes it to the log.
    pub(crate) fn found(&self, layer: &LayerId, scrubbed: &Scrubbed) {
        match scrubbed {
            Scrubbed::Damaged(damage) => {
                self.damaged_layers.fetch_add(1, Ordering::Relaxed);
                self.damaged_groups.fetch_add(damage.bad_groups, Ordering::Relaxed);
                let Damage { bad_groups, groups, reason, .. } = damage;
                error!(%layer, bad_groups, groups, reason, "scrub found a damaged layer; healing it from other hosts");
            }
            Scrubbed::Whole { tree_rebuilt: true } => {
                self.trees_rebuilt.fetch_add(1, Ordering::Relaxed);
                warn!(%layer, "scrub built a damaged tree anew");
            }
            _ => {}
        }
    }

    /// A layer was read again, or could not be. One that cannot be read must not keep others from their turn.
    pub(crate) fn tried(&self, layer: &LayerId, error: Option<&Error>) {
        let mut unread = self.unread.lock().unwrap_or_else(PoisonError::into_inner);
        match error {
            Some(error) if unread.len() < UNREAD_MAX || unread.contains_key(layer) => {
                unread.insert(*layer, (Instant::now(), error.message.clone()));
            }
            Some(_) => {}
            None => drop(unread.remove(layer)),
        }
    }

    /// Whether it could not be read a short while ago.
    fn rests(&self, layer: &LayerId) -> bool {
        let unread = self.unread.lock().unwrap_or_else(PoisonError::into_inner);
        unread.get(layer).is_some_and(|(since, _)| since.elapsed() < UNREAD_PAUSE)
    }

    /// What to tell people of layers that cannot be read: one line each.
    pub(crate) fn alarms(&self) -> Vec<String> {
        let unread = self.unread.lock().unwrap_or_else(PoisonError::into_inner);
        let alarm = |(layer, (_, why)): (&LayerId, &(Instant, String))| {
            format!(
                "layer {} could not be read again: {why}; the log of the kernel (`dmesg`) says more of its disk",
                &layer.hex()[..12]
            )
        };
        unread.iter().map(alarm).collect()
    }

    pub(crate) fn count_read(&self, bytes: u64) {
        self.read_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn suspect(&self, layer: LayerId) {
        let mut suspects = self.suspects.lock().unwrap_or_else(PoisonError::into_inner);
        if suspects.len() < DOUBTED_MAX {
            suspects.insert(layer);
        }
    }

    fn next_suspect(&self) -> Option<LayerId> {
        self.suspects.lock().unwrap_or_else(PoisonError::into_inner).pop_first()
    }

    /// As `status` tells it. Blocks on the disk.
    ///
    /// # Errors
    /// The store cannot be read.
    pub(crate) fn report(&self, store: &Store) -> Result<Integrity> {
        let layers = store.layers().map_err(Error::from)?;
        {
            let here: BTreeSet<LayerId> = layers.iter().map(|(id, _)| *id).collect();
            let mut unread = self.unread.lock().unwrap_or_else(PoisonError::into_inner);
            unread.retain(|layer, _| here.contains(layer));
        }
        Ok(Integrity {
            proven_since: layers.iter().map(|(_, info)| info.proven_s).min(),
            read_bytes: self.read_bytes.load(Ordering::Relaxed),
            damaged: damaged(store)?,
            healed: store.healed_layers(),
        })
    }

    /// Adds its numbers to those of `/metrics`. Blocks on the disk.
    ///
    /// # Errors
    /// The store cannot be read.
    pub(crate) fn measure(&self, store: &Store, registry: &mut Registry) -> Result<()> {
        let report = self.report(store)?;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let now = now.map_or(0, |since| since.as_secs());
        let oldest = report.proven_since.map_or(0, |since| now.saturating_sub(since));
        for (name, help, value) in [
            (
                "quarantined_layers",
                "Layers that were found damaged and are not whole again",
                report.damaged.len() as u64,
            ),
            ("scrub_oldest_seconds", "Time since the layer that was proven longest ago was proven", oldest),
        ] {
            registry.register(name, help, ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)));
        }
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        for (name, help, value) in [
            ("scrub_read_bytes", "Bytes of sealed layers read again", report.read_bytes),
            (
                "scrub_damaged_layers",
                "Layers found damaged by reading them again",
                count(&self.damaged_layers),
            ),
            ("scrub_damaged_groups", "Groups of 16 KiB found damaged by it", count(&self.damaged_groups)),
            ("scrub_trees_rebuilt", "Damaged trees of whole layers built anew", count(&self.trees_rebuilt)),
            (
                "scrub_doubts",
                "Times that a peer said that bytes from here fail verification",
                count(&self.doubts),
            ),
            ("healed_layers", "Damaged layers that became whole again", report.healed),
        ] {
            registry.register(name, help, ConstCounter::new(value));
        }
        Ok(())
    }
}

/// What to tell people about damaged layers: one line each.
pub(crate) fn alarms(report: &Integrity) -> Vec<String> {
    let alarm = |row: &DamagedRow| {
        let of = row.artifacts.first().map_or_else(String::new, |name| format!(" of {name}"));
        let (bad, all) = (row.bad_groups, row.groups);
        format!(
            "layer {}{of} is damaged on this disk: {}; {bad} of {all} groups have to come from a host that has them",
            &row.layer[..12.min(row.layer.len())],
            row.reason
        )
    };
    report.damaged.iter().map(alarm).collect()
}

/// Layers that are damaged, with the artifacts that have them. Blocks on the disk.
///
/// # Errors
/// The store cannot be read.
pub(crate) fn damaged(store: &Store) -> Result<Vec<DamagedRow>> {
    let all = store.damaged_layers().map_err(Error::from)?;
    if all.is_empty() {
        return Ok(Vec::new());
    }
    let mut manifests = Vec::new();
    for digest in store.held().map_err(Error::from)? {
        manifests.extend(facts::manifest(store, &digest)?);
    }
    let row = |damage: Damage| {
        let has = |manifest: &&weighlock_protocol::manifest::Manifest| {
            manifest.layers().any(|layer| layer.id == damage.layer)
        };
        let artifacts = manifests.iter().filter(has).map(|manifest| manifest.digest().to_string()).collect();
        DamagedRow {
            layer: damage.layer.hex(),
            size: damage.size,
            found: damage.found_s,
            reason: damage.reason,
            bad_groups: damage.bad_groups,
            groups: damage.groups,
            artifacts,
            healed: false,
        }
    };
    Ok(all.into_iter().map(row).collect())
}
