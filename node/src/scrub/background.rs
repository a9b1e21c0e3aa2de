//! The two tasks: one reads what is due, slowly, and remembers how far it is; one reads what peers doubt.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tracing::{debug, info, warn};
use weighlock_cache::Scrubbed;
use weighlock_protocol::LayerId;

use super::{Doubt, heal};
use crate::cluster::now;
use crate::daemon::Node;
use crate::error::{Error, Result};
use crate::fetch::blocking;

/// Store setting: how far the layer is that is being read.
const SETTING_POSITION: &str = "scrub_position";
/// How often that is written down.
const REMEMBER: Duration = Duration::from_secs(60);
/// Pause while nothing is due.
const LOOK: Duration = Duration::from_secs(60);
/// Pause after a block that a peer doubted.
const DOUBT_REST: Duration = Duration::from_millis(200);
/// A fetch, or somebody who opens something, goes first, but does not hold up one block for longer, and none at all once
/// a layer is late.
const YIELD_MAX: Duration = Duration::from_secs(30);
/// An open that was so recent is still being read.
const OPEN_RECENT: Duration = Duration::from_secs(5);
const NAP: Duration = Duration::from_millis(100);

#[derive(Serialize, Deserialize)]
struct Position {
    layer: LayerId,
    at: u64,
}

/// Reads what is due until the daemon stops.
pub(crate) async fn run(node: Arc<Node>) {
    loop {
        let worker = node.clone();
        let read = blocking(move || next(&worker)).await;
        let pause = match read {
            Ok(Some((layer, Scrubbed::Damaged(_)))) => {
                node.fetcher.note_change();
                heal::begin(&node, &[layer]).await;
                NAP
            }
            Ok(Some(_)) => NAP,
            Ok(None) => LOOK,
            Err(e) => {
                warn!(error = %e, "scrubbing failed; trying again later");
                LOOK
            }
        };
        tokio::select! {
            () = node.stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Reads blocks that peers doubt, until the daemon stops.
pub(crate) async fn doubts(node: Arc<Node>, mut heard: mpsc::Receiver<Doubt>) {
    loop {
        let doubt = tokio::select! {
            () = node.stop.cancelled() => return,
            Some(doubt) = heard.recv() => doubt,
        };
        let Doubt { peer, layer, at } = doubt;
        info!(%peer, %layer, at, "a peer says that bytes from here fail verification; reading them again");
        let store = node.store.clone();
        match blocking(move || store.scrub_at(&layer, at).map_err(Error::from)).await {
            Ok(scrubbed) => {
                node.scrubber.found(&layer, &scrubbed);
                match scrubbed {
                    Scrubbed::Damaged(_) => {
                        node.fetcher.note_change();
                        heal::begin(&node, &[layer]).await;
                    }
                    Scrubbed::Gone => {}
                    // Those bytes are right; the rest is looked at before its time.
                    Scrubbed::Whole { .. } | Scrubbed::Stopped { .. } => node.scrubber.suspect(layer),
                }
            }
            Err(e) => warn!(%layer, error = %e, "a doubted layer cannot be read"),
        }
        tokio::time::sleep(DOUBT_REST).await;
    }
}

/// Blocking: reads the layer that is due most, if one is.
fn next(node: &Node) -> Result<Option<(LayerId, Scrubbed)>> {
    let settings = &node.config.integrity;
    let layers = node.store.layers().map_err(Error::from)?;
    let total: u64 = layers.iter().map(|(_, info)| info.size).sum();
    let period_s = settings.scrub_days.saturating_mul(86_400);
    let position: Option<Position> = node.store.setting(SETTING_POSITION).map_err(Error::from)?;
    let rested = layers.iter().filter(|(id, _)| !node.scrubber.rests(id));
    let proven: Vec<(LayerId, u64)> = rested.map(|(id, info)| (*id, info.proven_s)).collect();
    let oldest_s = proven.iter().map(|(_, at)| *at).min().unwrap_or(u64::MAX);
    let begun = position.filter(|_| period_s > 0);
    let begun = begun.filter(|begun| layers.iter().any(|(id, _)| *id == begun.layer));
    let begun = begun.filter(|begun| !node.scrubber.rests(&begun.layer));
    let (layer, from) = if let Some(suspect) = node.scrubber.next_suspect() {
        (suspect, 0)
    } else if let Some(begun) = begun {
        (begun.layer, begun.at)
    } else {
        match due(&proven, period_s, now().0) {
            Some(layer) => (layer, 0),
            None => return Ok(None),
        }
    };
    let rate = || {
        // What is left of the period once a layer is late.
        let within_s = if is_late(oldest_s, period_s, now().0) { period_s / 4 } else { period_s / 2 };
        bytes_per_s(settings.scrub_bytes_per_s, total, within_s)
    };
    debug!(%layer, from, rate = rate(), "reading a layer again");
    let (mut at, mut remembered) = (from, Instant::now());
    let mut pace = |bytes: u64| {
        node.scrubber.count_read(bytes);
        at += bytes;
        if remembered.elapsed() > REMEMBER {
            remembered = Instant::now();
            remember(node, Some(&Position { layer, at }));
        }
        let pause = Duration::from_secs_f64(bytes as f64 / rate() as f64);
        // Asked each time: one large layer may take days.
        rest(node, pause, || is_late(oldest_s, period_s, now().0))
    };
    let scrubbed = node.store.scrub(&layer, from, &mut pace).map_err(Error::from);
    node.scrubber.tried(&layer, scrubbed.as_ref().err());
    let scrubbed = scrubbed.inspect_err(|_| remember(node, None))?;
    match scrubbed {
        Scrubbed::Stopped { at } => remember(node, Some(&Position { layer, at })),
        _ => remember(node, None),
    }
    node.scrubber.found(&layer, &scrubbed);
    Ok(Some((layer, scrubbed)))
}

/// Sleeps as long as the rate asks for, and while others need the disk. False when the daemon stops.
fn rest(node: &Node, pause: Duration, late: impl Fn() -> bool) -> bool {
    let since = Instant::now();
    loop {
        let busy = !node.fetcher.running().is_empty() || node.leases.taken_within(OPEN_RECENT);
        let until = pause_of(pause, busy, late());
        let Some(left) = until.checked_sub(since.elapsed()) else { return !node.stop.is_cancelled() };
        if node.stop.is_cancelled() {
            return false;
        }
        std::thread::sleep(left.min(NAP));
    }
}

fn remember(node: &Node, position: Option<&Position>) {
    if let Err(e) = node.store.set_setting(SETTING_POSITION, position) {
        debug!(error = %e, "how far scrubbing is was not written down");
    }
}

/// The layer that was proven longest ago, if that is half of the period or more: the other half is for reading, so that
/// all are done in time.
fn due(proven: &[(LayerId, u64)], period_s: u64, now_s: u64) -> Option<LayerId> {
    let before = now_s.saturating_sub(period_s / 2);
    let due = proven.iter().filter(|(_, at)| period_s > 0 && *at <= before);
    due.min_by_key(|(_, at)| *at).map(|(layer, _)| *layer)
}

/// Whether three quarters of the period are over since the layer that was proven longest ago was: a host that is always
/// busy would not be done in time.
fn is_late(oldest_s: u64, period_s: u64, now_s: u64) -> bool {
    period_s > 0 && now_s.saturating_sub(oldest_s) > period_s / 4 * 3
}

/// How long the next block waits.
fn pause_of(pause: Duration, busy: bool, late: bool) -> Duration {
    if busy && !late { pause.max(YIELD_MAX) } else { pause }
}

/// As configured, or so much that all is read within that time.
fn bytes_per_s(configured: u64, total_bytes: u64, within_s: u64) -> u64 {
    let needed = total_bytes.checked_div(within_s).unwrap_or(0);
    configured.max(needed).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_S: u64 = 86_400;

    #[test]
    fn what_was_proven_longest_ago_is_read_first_and_nothing_before_half_of_the_period() {
        let layer = |n: u8| LayerId([n; 32]);
        let now = 1000 * DAY_S;
        let proven = [(layer(1), now - 16 * DAY_S), (layer(2), now - 20 * DAY_S), (layer(3), now - DAY_S)];
        assert_eq!(due(&proven, 30 * DAY_S, now), Some(layer(2)));
        assert_eq!(due(&proven[2..], 30 * DAY_S, now), None);
        assert_eq!(due(&proven, 0, now), None, "off");
        // A clock that was set back makes nothing due, and nothing panics.
        assert_eq!(due(&proven, 30 * DAY_S, 5), None);
    }

    #[test]
    fn a_busy_host_goes_first_until_a_layer_is_late() {
        let now = 1000 * DAY_S;
        let usual = Duration::from_millis(250);
        let pause = |busy: bool, age_days: u64, period_days: u64| {
            pause_of(usual, busy, is_late(now - age_days * DAY_S, period_days * DAY_S, now))
        };
        assert_eq!(pause(true, 22, 30), YIELD_MAX);
        assert_eq!(pause(true, 23, 30), usual, "late");
        assert_eq!(pause(false, 22, 30), usual);
        assert_eq!(pause(false, 23, 30), usual);
        assert_eq!(pause(true, 900, 0), YIELD_MAX, "off: only what peers doubt is read");
        assert_eq!(pause_of(YIELD_MAX * 2, true, false), YIELD_MAX * 2, "a slow rate stays slow");
        // Nothing to read, or a clock that was set back.
        assert!(!is_late(u64::MAX, 30 * DAY_S, now) && !is_late(now, 30 * DAY_S, 5));
    }

    #[test]
    fn a_store_too_large_for_the_rate_is_read_faster() {
        assert_eq!(bytes_per_s(16 << 20, 1 << 40, 30 * DAY_S), 16 << 20, "1 TiB takes 18 hours");
        assert_eq!(bytes_per_s(16 << 20, (15 * DAY_S) << 30, 15 * DAY_S), 1 << 30);
        assert_eq!(bytes_per_s(16 << 20, 1 << 40, 0), 16 << 20);
    }
}
