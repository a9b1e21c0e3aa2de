//! Takes away the directories that `path` made of what may no longer be opened on this host.
//!
//! The loaders' doors ask the gate each time; a directory stays readable until it is gone. So each one is looked at when
//! a head may have moved, now and then for what expires, and once before the doors open. Who has files of it open keeps
//! those. A process that a reload hook runs is given the time to be told: the directory stays until the hook was started
//! for another head, though not for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::sync::broadcast::error::RecvError;
use tracing::{info, warn};
use weighlock_protocol::{Artifact, ManifestDigest};

use crate::cluster::now;
use crate::daemon::Node;
use crate::error::{Error, Result};
use crate::facts::Facts;
use crate::fetch::blocking;

/// How often it looks without being told of a change.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// How long a directory waits for the hook that shall turn a process away from it.
const HOOK_PATIENCE: Duration = Duration::from_secs(60);
/// Hooks that are remembered; those beyond run all the same, and nothing waits for them.
const HOOKS_MAX: usize = 1024;

/// What is known of the directories, beside what is on disk.
#[derive(Debug, Default)]
pub(crate) struct Views {
    state: Mutex<State>,
    woken: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Handed out to an evaluator or without evidence while the gate was shut, since this daemon started.
    granted: BTreeSet<ManifestDigest>,
    /// The gate was open for them at the last look.
    opened: BTreeSet<ManifestDigest>,
    /// Since when the gate has been seen shut.
    shut: BTreeMap<ManifestDigest, Instant>,
    /// What the process behind each reload hook runs.
    hooks: BTreeMap<u64, Option<ManifestDigest>>,
}

/// A reload hook that listens; forgotten when it is dropped.
pub(crate) struct Hook<'a> {
    views: &'a Views,
    id: u64,
}

impl Views {
    /// Something is handed out though the gate is shut, to somebody who may have it so.
    pub(crate) fn grant(&self, digest: ManifestDigest) {
        let mut state = self.state();
        state.opened.remove(&digest);
        state.granted.insert(digest);
    }

    /// Looks soon.
    pub(crate) fn wake(&self) {
        self.woken.notify_one();
    }

    /// A reload hook listens from now on.
    pub(crate) fn hook(&self, id: u64) -> Hook<'_> {
        let mut state = self.state();
        if state.hooks.len() < HOOKS_MAX {
            state.hooks.entry(id).or_default();
        }
        Hook { views: self, id }
    }

    /// The hook was started for this head: whatever ran before has been told.
    pub(crate) fn started(&self, id: u64, digest: ManifestDigest) {
        if let Some(runs) = self.state().hooks.get_mut(&id) {
            *runs = Some(digest);
        }
        self.wake();
    }

    /// Whether a directory that the gate is shut for goes now.
    fn is_due(&self, digest: &ManifestDigest, now: Instant) -> bool {
        let mut state = self.state();
        if state.opened.remove(digest) {
            // It was shut since: what was granted before is over.
            state.granted.remove(digest);
        }
        if state.granted.contains(digest) {
            return false;
        }
        let since = *state.shut.entry(*digest).or_insert(now);
        let runs = state.hooks.values().any(|runs| *runs == Some(*digest));
        !runs || now.duration_since(since) >= HOOK_PATIENCE
    }

    fn is_granted(&self, digest: &ManifestDigest) -> bool {
        self.state().granted.contains(digest)
    }

    fn is_open(&self, digest: ManifestDigest) {
        let mut state = self.state();
        state.shut.remove(&digest);
        state.opened.insert(digest);
    }

    fn is_gone(&self, digest: &ManifestDigest) {
        self.state().shut.remove(digest);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hook<'_> {
    /// The head that it listens to opens here. The first one is taken for what its process runs already.
    pub(crate) fn told(&self, digest: ManifestDigest) {
        if let Some(runs) = self.views.state().hooks.get_mut(&self.id) {
            runs.get_or_insert(digest);
        }
    }
}

impl Drop for Hook<'_> {
    fn drop(&mut self) {
        self.views.state().hooks.remove(&self.id);
        self.views.wake();
    }
}

/// Runs until the daemon stops.
pub(crate) async fn run(node: Arc<Node>) {
    let mut changes = node.facts.changes();
    loop {
        let copy = node.clone();
        if let Err(e) = blocking(move || sweep(&copy)).await {
            warn!(error = %e, "cannot look at the directories that were handed out");
        }
        let look = tokio::time::sleep(LOOK_INTERVAL);
        tokio::pin!(look);
        loop {
            tokio::select! {
                () = node.stop.cancelled() => return,
                () = &mut look => break,
                () = node.views.woken.notified() => break,
                change = changes.recv() => match change {
                    Ok(change) if change.moves => break,
                    Ok(_) => {}
                    Err(RecvError::Lagged(_)) => break,
                    Err(RecvError::Closed) => return,
                }
            }
        }
    }
}

/// Removes what may not be opened any more. Blocks on the disk.
///
/// # Errors
/// The directories cannot be listed or removed.
pub(crate) fn sweep(node: &Node) -> Result<()> {
    for digest in node.store.views().map_err(Error::from)? {
        let Some(why) = shut(&node.facts, &digest) else {
            node.views.is_open(digest);
            continue;
        };
        if !node.views.is_due(&digest, Instant::now()) {
            continue;
        }
        // Asked again while nobody makes it anew: it may have been promoted or granted since.
        let still = || !node.views.is_granted(&digest) && shut(&node.facts, &digest).is_some();
        match node.store.remove_view(&digest, still) {
            Ok(true) => info!(%digest, why, "removed its directory, which may not be opened here any more"),
            Ok(false) => {}
            Err(error) => {
                // The others are looked at all the same, and this one again at the next look.
                warn!(%digest, why, %error, "its directory, which may not be opened here any more, cannot be removed");
                continue;
            }
        }
        node.views.is_gone(&digest);
    }
    Ok(())
}

/// Why a manifest may not be opened on this host under any of its names.
fn shut(facts: &Facts, digest: &ManifestDigest) -> Option<String> {
    let ledger = facts.ledger();
    if ledger.is_evidence(digest) {
        return None;
    }
    let names: BTreeSet<Artifact> = ledger.publishes_of(digest).map(|p| p.publish.artifact).collect();
    let mut why = "nothing that is published means it".to_owned();
    for artifact in names {
        match ledger.may_open(&artifact, digest, facts.hardware(), now()) {
            Ok(_) => return None,
            Err(closed) => why = format!("{artifact}: {closed}"),
        }
    }
    Some(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: u8) -> ManifestDigest {
        ManifestDigest([n; 32])
    }

    #[test]
    fn a_directory_waits_for_the_hook_that_runs_it_and_no_other_and_not_for_ever() {
        let views = Views::default();
        let begun = Instant::now();
        assert!(views.is_due(&digest(1), begun), "nobody runs it");
        views.is_gone(&digest(1));
        let hook = views.hook(7);
        hook.told(digest(1));
        // What it is told later does not mean that it has been started for it.
        hook.told(digest(2));
        assert!(!views.is_due(&digest(1), begun) && views.is_due(&digest(3), begun));
        views.started(8, digest(2));
        assert!(!views.is_due(&digest(1), begun), "another hook");
        assert!(views.is_due(&digest(1), begun + HOOK_PATIENCE));
        views.started(7, digest(2));
        assert!(views.is_due(&digest(1), begun));
        views.is_gone(&digest(1));
        views.started(7, digest(1));
        assert!(!views.is_due(&digest(1), begun));
        drop(hook);
        assert!(views.is_due(&digest(1), begun), "nobody listens any more");
    }

    #[test]
    fn what_an_evaluator_was_given_stays_until_it_was_open_and_is_shut_again() {
        let views = Views::default();
        let begun = Instant::now();
        views.grant(digest(1));
        assert!(!views.is_due(&digest(1), begun + HOOK_PATIENCE));
        views.is_open(digest(1));
        assert!(views.is_due(&digest(1), begun), "promoted, and rolled back");
        // Given after it was shut, before anybody looked.
        views.is_open(digest(2));
        views.grant(digest(2));
        assert!(!views.is_due(&digest(2), begun));
    }
}
