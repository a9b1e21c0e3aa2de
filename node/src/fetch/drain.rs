//! A host that is being drained begins no fetch and gives nothing new to others; what is under way ends by itself.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use weighlock_protocol::manifest::Manifest;
use weighlock_protocol::swarm::{Input, WorkId};

use super::driver::Driver;
use super::happening::Happening;
use super::{Fetcher, blocking};
use crate::error::{Error, Result};

impl Fetcher {
    /// From here on nothing new begins, or things are as before again.
    pub async fn drain(&self, on: bool) {
        self.inner.draining.store(on, Ordering::Relaxed);
        let _ = self.inner.swarm.send(Happening::Drain { on }).await;
    }

    /// Whether a fetch of `manifest` may begin, or need not.
    pub(super) async fn may_begin(&self, manifest: &Manifest) -> Result<()> {
        let runs = || {
            let running = self.inner.running.lock().unwrap_or_else(PoisonError::into_inner);
            running.contains_key(&manifest.digest())
        };
        if !self.inner.draining.load(Ordering::Relaxed) || runs() {
            return Ok(());
        }
        let (store, copy) = (self.inner.store.clone(), manifest.clone());
        if blocking(move || store.manifest_complete(&copy).map_err(Error::from)).await? {
            return Ok(());
        }
        Err(Error::unavailable("this host is being drained and fetches nothing that it does not have yet")
            .hint("`weighlock drain --undo` ends that, and so does a restart of its daemon"))
    }
}

impl Driver {
    /// Gives nothing new to others from here on, or takes part again. What is being sent is sent to its end; requests that
    /// wait for their turn are refused, so that they go elsewhere at once.
    pub(super) fn drain_others(&mut self, on: bool) {
        self.draining = on;
        self.end_served();
        let waiting = if on { std::mem::take(&mut self.waiting) } else { Default::default() };
        for (request, admitted) in waiting {
            drop(admitted);
            self.input(Input::Served { request, bytes: 0, complete: false });
        }
    }

    /// While this host is drained it takes no part in what it does not fetch.
    pub(super) fn end_served(&mut self) {
        let served = self.works.iter().filter(|(_, work)| self.draining && work.fetch.is_none());
        let served: Vec<WorkId> = served.map(|(id, _)| id).collect();
        served.into_iter().for_each(|id| self.close(id, Ok(())));
    }
}
