//! Makes room: when the store is over its quota or the disk under its floor, and when an add or a fetch needs space.

mod known;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tracing::{debug, info, warn};
use weighlock_cache::{Garbage, GarbageKind};
use weighlock_protocol::{ManifestDigest, keep};

use crate::cluster::now;
use crate::daemon::Node;
use crate::error::{Error, Result};
use crate::fetch::blocking;
use crate::local::store::{Collected, Gone, Kept};

use known::may_go;
pub(crate) use known::{Known, kept_by, known};

/// How often it looks without being asked.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// How often last uses are written down.
const NOTE_INTERVAL: Duration = Duration::from_secs(60);
/// Requests for room that wait at once.
const ASKS_MAX: usize = 64;

/// Asks for room. Cheap to clone; works once the daemon is whole.
#[derive(Debug, Clone)]
pub(crate) struct Room {
    asks: mpsc::Sender<Ask>,
}

/// What [`run`] needs beside the node.
pub(crate) struct Asked {
    asks: mpsc::Receiver<Ask>,
}

struct Ask {
    bytes: u64,
    done: oneshot::Sender<()>,
}

impl Room {
    pub(crate) fn new() -> (Self, Asked) {
        let (send, asks) = mpsc::channel(ASKS_MAX);
        (Self { asks: send }, Asked { asks })
    }

    /// Lets go of what may go until `bytes` more fit; returns when that is so, or when nothing more may go.
    pub(crate) async fn make(&self, bytes: u64) {
        let (done, wait) = oneshot::channel();
        if self.asks.send(Ask { bytes, done }).await.is_ok() {
            let _ = wait.await;
        }
    }

    /// As [`make`](Self::make), for a thread that may block.
    pub(crate) fn make_blocking(&self, bytes: u64) {
        let (done, wait) = oneshot::channel();
        if self.asks.blocking_send(Ask { bytes, done }).is_ok() {
            let _ = wait.blocking_recv();
        }
    }
}

/// Counters since the daemon started.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Times that something went.
    pub(crate) runs: AtomicU64,
    /// Bytes that went.
    pub(crate) bytes: AtomicU64,
    /// One at a time.
    turn: tokio::sync::Mutex<()>,
    /// The last thing said of a store that stays too full, so that it is said once.
    short: AtomicU64,
    /// How far fetches were at the last look.
    moved: Mutex<BTreeMap<ManifestDigest, u64>>,
}

impl Counts {
    fn moved(&self) -> MutexGuard<'_, BTreeMap<ManifestDigest, u64>> {
        self.moved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a person should look at.
    pub(crate) fn alarm(&self) -> Option<String> {
        let short = self.short.load(Ordering::Relaxed);
        (short > 0).then(|| {
            format!(
                "the store is {short} bytes too full and nothing more may go; see `weighlock gc --dry-run`"
            )
        })
    }
}

/// Runs until the daemon stops.
pub(crate) async fn run(node: Arc<Node>, mut asked: Asked) {
    let mut noted = tokio::time::Instant::now();
    loop {
        let ask = tokio::select! {
            () = node.stop.cancelled() => break,
            ask = asked.asks.recv() => ask,
            () = tokio::time::sleep(LOOK_INTERVAL) => None,
        };
        // What was abandoned is looked for seldom.
        let quick = noted.elapsed() < NOTE_INTERVAL;
        if !quick {
            noted = tokio::time::Instant::now();
            note(&node).await;
        }
        let bytes = ask.as_ref().map_or(0, |ask| ask.bytes);
        match collect(&node, What { more: bytes, quick, ..What::default() }).await {
            // What somebody asked for and did not get they are told themselves.
            Ok(collected) if bytes == 0 => say(&node, &collected),
            Ok(_) => {}
            Err(e) => warn!(error = %e, "cannot make room"),
        }
        if let Some(ask) = ask {
            let _ = ask.done.send(());
        }
    }
    note(&node).await;
}

/// What to collect.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct What {
    /// Bytes that are to fit beside what is there.
    pub(crate) more: u64,
    /// All that may go, whether there is room or not.
    pub(crate) all: bool,
    /// Only tell.
    pub(crate) dry_run: bool,
    /// Look at artifacts only if something is too full.
    pub(crate) quick: bool,
}

/// Lets go of what has to go, or tells what would.
///
/// # Errors
/// The store failed.
pub(crate) async fn collect(node: &Arc<Node>, what: What) -> Result<Collected> {
    let _turn = node.gc.turn.lock().await;
    let mut collected = Collected { dry_run: what.dry_run, ..Collected::default() };
    let copy = node.clone();
    let (garbage, mut short, mut own) = blocking(move || {
        copy.store.refill_reserve();
        Ok((
            copy.store.garbage().map_err(Error::from)?,
            copy.store.short_bytes(what.more).map_err(Error::from)?,
            copy.store.short_bytes(0).map_err(Error::from)?,
        ))
    })
    .await?;
    for one in garbage {
        if !(one.due || what.all || short > 0) {
            continue;
        }
        let swept = if what.dry_run {
            Some(one.bytes)
        } else {
            let (copy, thing) = (node.clone(), one.clone());
            match blocking(move || copy.store.sweep(&thing).map_err(Error::from)).await {
                Ok(swept) => swept,
                Err(error) => {
                    // The rest goes all the same: others may wait for room.
                    warn!(name = one.name, %error, "could not be removed");
                    continue;
                }
            }
        };
        // Otherwise somebody needs it again.
        let Some(bytes) = swept else { continue };
        (short, own) = (short.saturating_sub(bytes), own.saturating_sub(bytes));
        if bytes > 0 || one.kind == GarbageKind::View {
            collected.gone.push(gone(&one, bytes));
        }
    }
    if what.quick && short == 0 {
        return Ok(finished(node, collected));
    }
    let copy = node.clone();
    let known = blocking(move || known(&copy)).await?;
    let held: Vec<keep::Held> = known.iter().map(|one| one.held.clone()).collect();
    let mut plan = keep::plan(&held, if what.all { u64::MAX } else { short });
    if !what.all && plan.freed_bytes < short {
        // There is no room for what was asked for, whatever goes: then nothing goes for it.
        plan = keep::plan(&held, own);
    }
    for (digest, bytes) in plan.go {
        let Some(one) = known.iter().find(|one| one.held.digest == digest) else { continue };
        let kind = if one.complete { "artifact" } else { "partial fetch" };
        let freed = if what.dry_run { Some(bytes) } else { let_go(node, one).await? };
        match freed {
            Some(bytes) => collected.gone.push(Gone {
                kind: kind.into(),
                name: one.name.clone(),
                digest: Some(digest),
                bytes,
                last_used: Some(one.held.last_used),
            }),
            None => debug!(%digest, "stays: somebody needs it since it was chosen"),
        }
    }
    let went = |one: &&Known| !collected.gone.iter().any(|gone| gone.digest == Some(one.held.digest));
    collected.kept = known.iter().filter(went).map(kept).collect();
    let freed_bytes: u64 = collected.gone.iter().map(|gone| gone.bytes).sum();
    let copy = node.clone();
    let left = blocking(move || copy.store.short_bytes(what.more).map_err(Error::from)).await?;
    collected.short_bytes = if what.dry_run { left.saturating_sub(freed_bytes) } else { left };
    Ok(finished(node, collected))
}

/// Counts and tells what went.
fn finished(node: &Node, mut collected: Collected) -> Collected {
    collected.freed_bytes = collected.gone.iter().map(|gone| gone.bytes).sum();
    if !collected.dry_run && !collected.gone.is_empty() {
        node.gc.runs.fetch_add(1, Ordering::Relaxed);
        node.gc.bytes.fetch_add(collected.freed_bytes, Ordering::Relaxed);
        for gone in &collected.gone {
            info!(kind = gone.kind, name = gone.name, bytes = gone.bytes, "let go of");
        }
        node.fetcher.note_change();
    }
    collected
}

/// Removes an artifact, unless there is a reason to keep it by now: what was chosen before it may have taken minutes.
async fn let_go(node: &Arc<Node>, one: &Known) -> Result<Option<u64>> {
    let digest = one.held.digest;
    if one.held.abandoned {
        // Not the fetch of what somebody waits for again.
        let copy = node.clone();
        if !blocking(move || may_go(&copy, &digest)).await? {
            return Ok(None);
        }
        node.fetcher.cancel(&digest).await;
    }
    let copy = node.clone();
    let freed = blocking(move || copy.store.evict_if(&digest, || may_go(&copy, &digest))).await?;
    if freed.is_some() {
        node.fetcher.retire(&digest);
    }
    Ok(freed)
}

fn gone(one: &Garbage, bytes: u64) -> Gone {
    let kind = match one.kind {
        GarbageKind::Quarantined => "damaged layer",
        GarbageKind::Partial => "partial layer",
        GarbageKind::Layer => "layer of no artifact",
        GarbageKind::View => "directory",
    };
    Gone { kind: kind.into(), name: one.name.clone(), digest: None, bytes, last_used: None }
}

fn kept(one: &Known) -> Kept {
    Kept {
        name: one.name.clone(),
        digest: one.held.digest,
        bytes: one.held.layers.values().sum(),
        last_used: one.held.last_used,
        because: one.held.because.iter().map(ToString::to_string).collect(),
    }
}

/// Says once that the store stays too full.
fn say(node: &Node, collected: &Collected) {
    let before = node.gc.short.swap(collected.short_bytes, Ordering::Relaxed);
    if collected.short_bytes > 0 && before == 0 {
        warn!(
            short_bytes = collected.short_bytes,
            "the store is too full and nothing more may go; `weighlock gc --dry-run` says why"
        );
    }
}

/// Notes what is being used now, and writes down what was noted.
async fn note(node: &Arc<Node>) {
    let node = node.clone();
    let noted = blocking(move || {
        for digest in node.store.leased().keys() {
            node.store.note_used(digest, now().0);
        }
        node.store.flush_used().map_err(Error::from)
    });
    if let Err(e) = noted.await {
        debug!(error = %e, "last uses are not written down now");
    }
}
