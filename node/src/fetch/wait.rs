//! What those need who use an artifact while it is on its way: hints of what they wait for, growth, and the end.

use std::sync::PoisonError;

use tokio::sync::{mpsc, watch};
use weighlock_protocol::manifest::Manifest;
use weighlock_protocol::wire::bao::GroupSet;
use weighlock_protocol::{LayerId, ManifestDigest};

use super::{Arrival, Fetcher};
use crate::error::{Error, Result};
use crate::local::message::Progress;

/// Hints that wait for the driver; further ones are dropped, since a hint only changes an order.
pub(super) const URGENT_MAX: usize = 256;

/// Groups of a layer that somebody waits for.
pub(super) type Urgent = (LayerId, GroupSet);

/// Both ends of the way from those who wait to the driver.
pub(super) fn urgent() -> (mpsc::Sender<Urgent>, mpsc::Receiver<Urgent>) {
    mpsc::channel(URGENT_MAX)
}

impl Fetcher {
    /// Tells the running fetch of `digest` that somebody waits for these groups of a layer. Without effect when none
    /// runs, or when too many hints wait already.
    pub fn want_soon(&self, digest: &ManifestDigest, layer: LayerId, groups: GroupSet) {
        let running = self.inner.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(one) = running.get(digest) {
            let _ = one.urgent.try_send((layer, groups));
        }
    }

    /// Changes whenever a layer of this host grew.
    pub fn grown(&self) -> watch::Receiver<u64> {
        self.inner.grown.subscribe()
    }
}

impl Arrival {
    /// What arrives.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// How far it is; `None` when all of it was here from the start.
    pub fn progress(&self) -> Option<Progress> {
        self.running.as_ref().map(|running| running.progress.borrow().clone())
    }

    /// Waits for the end of the fetch. May be dropped and called again.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub async fn ended(&mut self) -> Result<()> {
        let Some(running) = &mut self.running else { return Ok(()) };
        let done = running.done.wait_for(Option::is_some).await.ok().and_then(|done| done.clone());
        done.unwrap_or_else(|| {
            Err(Error::unavailable("the daemon is stopping").hint("open it again when it runs"))
        })
    }
}
