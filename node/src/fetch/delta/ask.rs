//! Asks peers one after another for a whole small layer or for the tree of a large one, within a bounded time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use weighlock_cache::PartialLayer;
use weighlock_protocol::wire::bao::all_groups;
use weighlock_protocol::wire::tree::tree_bytes;
use weighlock_protocol::{KeyId, ManifestDigest};

use super::DeltaLimits;
use crate::fetch::{Inner, sources};
use crate::net::data::{GetError, GetOptions, get, tree};

/// Pause before hosts are looked for again.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// What is asked of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Question {
    /// All its bytes.
    Bytes,
    /// Its tree.
    Tree,
}

/// How a question ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// All that was asked for is in the partial layer, proven.
    Whole,
    /// Nobody gave all of it in time; what came is kept.
    Nobody,
}

/// Who asks, of whom, within which limits.
pub(super) struct Asker<'a> {
    pub(super) inner: &'a Arc<Inner>,
    pub(super) digest: ManifestDigest,
    pub(super) limits: &'a DeltaLimits,
    pub(super) cancel: &'a CancellationToken,
}

impl Asker<'_> {
    /// Asks until one host has answered in full, those first that say that they have all of the artifact. One that
    /// answers wrongly is named and banned.
    pub(super) async fn ask(&self, question: Question, partial: &Arc<PartialLayer>) -> Answer {
        let bytes = match question {
            Question::Bytes => partial.size(),
            Question::Tree => tree_bytes(partial.size()),
        };
        let rate = self.limits.rate_bytes_per_s_min.max(1);
        let begin_until = Instant::now() + self.limits.ask_max;
        let deadline = begin_until + Duration::from_millis((bytes / rate).saturating_mul(1000));
        let mut asked: BTreeSet<KeyId> = BTreeSet::new();
        while Instant::now() < begin_until && !self.cancel.is_cancelled() {
            let hosts = sources::ranked(self.inner, &self.digest, &BTreeSet::new());
            let fresh = |host: &KeyId| !asked.contains(host) && self.inner.banned_until(host).is_none();
            let Some(peer) = hosts.into_iter().find(fresh) else {
                tokio::select! {
                    () = sleep(LOOK_INTERVAL) => continue,
                    () = self.cancel.cancelled() => break,
                }
            };
            asked.insert(peer);
            match self.one(peer, question, partial, deadline).await {
                Ok(()) => return Answer::Whole,
                Err(e) => self.judge(peer, partial, &e),
            }
        }
        Answer::Nobody
    }

    async fn one(
        &self,
        peer: KeyId,
        question: Question,
        partial: &Arc<PartialLayer>,
        deadline: Instant,
    ) -> Result<(), GetError> {
        let stall = self.limits.stall;
        let addresses = sources::addresses(self.inner, &peer);
        let connecting = self.inner.data.connect(peer, &addresses);
        let connection =
            timeout_at(Instant::now() + stall, connecting).await.map_err(|_| GetError::Stalled(stall))??;
        let cancel = self.cancel.child_token();
        let options = GetOptions {
            batch_bytes: self.inner.data.config().batch_bytes,
            ahead: self.inner.data.config().batches_ahead,
            buffers: self.inner.data.buffers().clone(),
            stall,
            progress: Arc::default(),
            cancel: cancel.clone(),
        };
        let answer = async {
            match question {
                Question::Tree => tree(&connection, partial.clone(), options).await,
                Question::Bytes => {
                    let got = get(&connection, partial.clone(), all_groups(partial.size()), options).await;
                    self.inner.fetched_bytes.fetch_add(got.bytes, Ordering::Relaxed);
                    self.inner.count(&peer, |traffic| traffic.fetched_bytes += got.bytes);
                    got.end
                }
            }
        };
        tokio::pin!(answer);
        tokio::select! {
            end = &mut answer => end,
            () = tokio::time::sleep_until(deadline) => {
                // It ends in good order, so that what came is on record.
                cancel.cancel();
                answer.await
            }
        }
    }

    fn judge(&self, peer: KeyId, partial: &PartialLayer, error: &GetError) {
        let layer = partial.id();
        match error {
            GetError::Verify(_) | GetError::Protocol(_) => {
                let ban = Duration::from_millis(self.inner.limits.swarm.ban_ms);
                warn!(%peer, %layer, error = %error, "a host sent a tree or bytes that fail verification");
                warn!(%peer, %layer, seconds = ban.as_secs(), "banned a host for bytes that fail verification");
                self.inner.ban(peer, ban, true);
            }
            error => debug!(%peer, %layer, error = %error, "not answered; asking another host"),
        }
    }
}
