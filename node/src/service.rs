//! Tells systemd, where the daemon runs under it, that it is up, alive, or about to stop.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// All doors are open.
pub(crate) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// What is in flight is finished, for at most `drain`.
pub(crate) fn stopping(drain: Duration) {
    // The unit's own limit may be shorter than what the configuration allows.
    let micros = u32::try_from((drain + Duration::from_secs(10)).as_micros()).unwrap_or(u32::MAX);
    tell(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(micros), NotifyState::Status("draining")]);
}

/// Says that the daemon is alive, as often as the unit's `WatchdogSec=` wants it; until `stop`. A runtime that is stuck
/// says nothing.
pub(crate) async fn watchdog(stop: CancellationToken) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    let mut pause = tokio::time::interval((limit / 3).max(Duration::from_millis(100)));
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = pause.tick() => tell(&[NotifyState::Watchdog]),
        }
    }
}

/// Where nobody listens this does nothing.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(states) {
        warn!(error = %e, "systemd could not be told");
    }
}
