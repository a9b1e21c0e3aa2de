//! Keeps here what the channels that this host follows run, ran before, and may run next: so that a promotion finds
//! the bytes in place, and a rollback too.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;
use tracing::{debug, info};
use weighlock_cache::Store;
use weighlock_protocol::{Artifact, ManifestDigest, Reference, Selector, Stage};

use crate::cluster::now;
use crate::daemon::Node;
use crate::error::{Error, Result};
use crate::fetch::blocking;

/// Heads before the present one that stay on disk.
pub(crate) const PREVIOUS_HEADS: usize = 2;
/// Channels that a host can be told to follow by itself.
const FOLLOWS_MAX: usize = 1024;
/// How often it looks without being told of a change: a fetch may have failed.
const LOOK_INTERVAL: Duration = Duration::from_secs(15);
/// Setting of the store that lists the channels.
const SETTING_FOLLOWS: &str = "follows";

/// Why a host follows a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Because {
    /// A rule for its labels.
    Rule,
    /// Somebody on it said so.
    Told,
}

/// Runs until the daemon stops.
pub(crate) async fn run(node: Arc<Node>) {
    let mut changes = node.facts.changes();
    let mut nudged = node.facts.nudged();
    let mut begun: BTreeSet<ManifestDigest> = BTreeSet::new();
    let mut fetching = tokio::task::JoinSet::new();
    loop {
        let copy = node.clone();
        match blocking(move || wanted(&copy)).await {
            Ok(all) => {
                while let Some(ended) = fetching.try_join_next() {
                    if let Ok(digest) = ended {
                        begun.remove(&digest);
                    }
                }
                for digest in all.into_keys() {
                    let copy = node.clone();
                    let here = blocking(move || is_here(&copy, &digest)).await.unwrap_or(false);
                    if here || !begun.insert(digest) {
                        continue;
                    }
                    info!(%digest, "fetching ahead for a channel that this host follows");
                    let node = node.clone();
                    // Beside the loop: one that nobody has must not hold up a rollback's target.
                    fetching.spawn(async move {
                        if let Err(e) = node.fetcher.begin(digest).await {
                            debug!(%digest, error = %e, "cannot be fetched ahead now");
                        }
                        digest
                    });
                }
            }
            Err(e) => debug!(error = %e, "cannot tell what to fetch ahead"),
        }
        let look = tokio::time::sleep(LOOK_INTERVAL);
        tokio::pin!(look);
        loop {
            tokio::select! {
                () = node.stop.cancelled() => return,
                () = &mut look => break,
                Ok(()) = nudged.changed() => break,
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

/// The channels that this host follows: told by itself, or by a rule for its labels.
pub(crate) fn channels(node: &Node, told: &[String]) -> BTreeMap<(Artifact, Stage), Because> {
    let mut all = BTreeMap::new();
    let ledger = node.facts.ledger();
    let mut labels = ledger.member(&node.host, now()).map(|member| member.labels).unwrap_or_default();
    labels.extend(node.live.labels().borrow().as_ref().clone());
    for rule in ledger.follows() {
        if rule.on.iter().all(|(key, value)| labels.get(key) == Some(value)) {
            all.insert((rule.artifact, rule.stage), Because::Rule);
        }
    }
    for reference in told.iter().filter_map(|text| text.parse::<Reference>().ok()) {
        if let Selector::Stage(stage) = reference.selector {
            all.insert((reference.artifact, stage), Because::Told);
        }
    }
    all
}

/// What this host was told to follow. Blocks on the disk.
///
/// # Errors
/// The store cannot be read.
pub(crate) fn told(store: &Store) -> Result<Vec<String>> {
    Ok(store.setting(SETTING_FOLLOWS).map_err(Error::from)?.unwrap_or_default())
}

/// Begins or stops to follow a channel on this host. Blocks on the disk.
///
/// # Errors
/// Not a channel, too many, or the store cannot be written.
pub(crate) fn tell(store: &Store, reference: &Reference, stop: bool) -> Result<()> {
    if !matches!(reference.selector, Selector::Stage(_)) {
        return Err(Error::invalid(format!("{reference} is no channel"))
            .hint("follow a stage, such as ns/name:production"));
    }
    let mut all: BTreeSet<String> = told(store)?.into_iter().collect();
    if stop {
        all.remove(&reference.to_string());
    } else {
        all.insert(reference.to_string());
    }
    if all.len() > FOLLOWS_MAX {
        return Err(Error::refused(format!("this host follows {FOLLOWS_MAX} channels already")));
    }
    store.set_setting(SETTING_FOLLOWS, Some(&all)).map_err(Error::from)
}

/// What the followed channels run, ran and are about to run, each with a channel that wants it. Blocks on the disk.
///
/// # Errors
/// The store cannot be read.
pub(crate) fn wanted(node: &Node) -> Result<BTreeMap<ManifestDigest, String>> {
    let told = told(&node.store)?;
    let mut all = BTreeMap::new();
    for (artifact, stage) in channels(node, &told).into_keys() {
        let ledger = node.facts.ledger();
        let mut digests = ledger.wanted(&artifact, stage, node.facts.hardware());
        digests.extend(ledger.kept_in(&artifact, stage, node.facts.hardware(), PREVIOUS_HEADS));
        for digest in digests {
            all.entry(digest).or_insert_with(|| format!("{artifact}:{stage}"));
        }
    }
    Ok(all)
}

fn is_here(node: &Node, digest: &ManifestDigest) -> Result<bool> {
    match crate::facts::manifest(&node.store, digest)? {
        Some(manifest) => node.store.manifest_complete(&manifest).map_err(Error::from),
        None => Ok(false),
    }
}
