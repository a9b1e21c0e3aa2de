//! One fetch of the swarm as requests on the data plane, and what their ends mean to it.

use std::future::Future;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use weighlock_cache::{PartialLayer, StoreError};
use weighlock_protocol::swarm::{Fault, Input, SlotId, WorkId};
use weighlock_protocol::wire::bao::GroupSet;
use weighlock_protocol::wire::data::reset;
use weighlock_protocol::{KeyId, LayerId};

use super::Inner;
use super::driver::Driver;
use super::sources;
use crate::net::data::{GetError, GetOptions, Got, doubt, get};

/// Files of a bundle that are asked for at once.
const PARTS_AT_ONCE: usize = 16;

/// What came of one fetch.
pub(super) struct Answer {
    pub(super) slot: SlotId,
    pub(super) work: WorkId,
    pub(super) from: KeyId,
    pub(super) stored: Vec<(LayerId, GroupSet)>,
    pub(super) bytes: u64,
    end: Result<(), (LayerId, GetError)>,
}

/// Makes ready to ask `from` for `parts`: opens the layers, which is quick.
pub(super) fn prepare(
    driver: &mut Driver,
    slot: SlotId,
    work: WorkId,
    from: KeyId,
    parts: Vec<(LayerId, GroupSet)>,
    cancel: CancellationToken,
) -> impl Future<Output = Answer> + Send + 'static {
    let inner = driver.inner.clone();
    let entry = driver.works.get(work);
    let progress = entry.and_then(|work| work.fetch.as_ref()).map(|fetch| fetch.proven.clone());
    let options = GetOptions {
        batch_bytes: inner.data.config().batch_bytes,
        ahead: inner.data.config().batches_ahead,
        buffers: inner.data.buffers().clone(),
        stall: inner.limits.stall,
        progress: progress.unwrap_or_default(),
        cancel,
    };
    let sizes: Vec<u64> = parts
        .iter()
        .map(|(layer, _)| entry.and_then(|work| work.sizes.get(layer)).copied().unwrap_or_default())
        .collect();
    let opened: Vec<_> = parts
        .into_iter()
        .zip(sizes)
        .map(|((layer, groups), size)| (layer, groups, driver.layers.open(layer, size)))
        .collect();
    async move {
        let mut answer = Answer { slot, work, from, stored: Vec::new(), bytes: 0, end: Ok(()) };
        let addresses = sources::addresses(&inner, &from);
        let connection = tokio::select! {
            biased;
            () = options.cancel.cancelled() => Err(GetError::Cancelled),
            connection = inner.data.connect(from, &addresses) => connection,
        };
        let connection = match connection {
            Ok(connection) => connection,
            Err(e) => {
                answer.end = Err((opened[0].0, e));
                return answer;
            }
        };
        let mut waiting = opened.into_iter();
        let mut running = FuturesUnordered::new();
        loop {
            while running.len() < PARTS_AT_ONCE
                && answer.end.is_ok()
                && let Some((layer, groups, partial)) = waiting.next()
            {
                running.push(one(&connection, layer, groups, partial, options.clone()));
            }
            let Some((layer, got)) = running.next().await else { return answer };
            if !got.stored.is_empty() {
                answer.stored.push((layer, got.stored));
            }
            answer.bytes += got.bytes;
            if let Err(e) = got.end {
                // The first reason counts, unless a later one is a lie.
                if answer.end.is_ok() || matches!(e, GetError::Verify(_)) {
                    answer.end = Err((layer, e));
                }
            }
        }
    }
}

async fn one(
    connection: &quinn::Connection,
    layer: LayerId,
    groups: GroupSet,
    partial: Result<Arc<PartialLayer>, StoreError>,
    options: GetOptions,
) -> (LayerId, Got) {
    let got = match partial {
        // Another fetch or an import has brought the whole layer meanwhile.
        Err(StoreError::AlreadySealed(_)) => Got { stored: groups, bytes: 0, end: Ok(()) },
        Err(e) => Got { stored: GroupSet::empty(), bytes: 0, end: Err(GetError::Local(e)) },
        Ok(partial) => get(connection, partial, groups, options).await,
    };
    if let Err(GetError::Verify(e)) = &got.end {
        // More likely its disk than its will.
        doubt(connection, layer, e).await;
    }
    (layer, got)
}

/// What the end of a fetch means to the swarm.
pub(super) fn input(inner: &Inner, answer: Answer) -> Input {
    let Answer { slot, from, stored, bytes, end, .. } = answer;
    let Err((layer, e)) = end else {
        return Input::Stored { slot, bytes };
    };
    debug!(peer = %from, %layer, error = %e, "piece not fetched");
    let fault = match e {
        GetError::Verify(_) | GetError::Protocol(_) => {
            warn!(peer = %from, %layer, error = %e, "a host sent bytes that fail verification");
            Fault::Verify
        }
        // Too busy is no lie about what it has.
        GetError::Miss(code) if code == reset::LIMIT => Fault::Lost,
        GetError::Miss(_) => Fault::Miss,
        GetError::Stalled(_) => Fault::Timeout,
        // Who of the two is wrong nobody knows, the size being the publisher's word: no reason for a ban.
        GetError::Size { .. } => {
            warn!(peer = %from, %layer, error = %e, "a host and a manifest say different sizes of a layer");
            Fault::Size
        }
        GetError::Lost(_) => Fault::Lost,
        GetError::Cancelled => Fault::Cancelled,
        GetError::Local(StoreError::NoSpace { .. } | StoreError::Quota { .. }) => Fault::NoSpace,
        GetError::Local(e) => {
            inner.set_disk_error(e.into());
            Fault::Local
        }
    };
    Input::Failed { slot, fault, stored }
}
