//! Makes two hosts' statement sets equal: the side that begins, and the pages that the other side cuts.

use std::sync::Arc;
use std::time::Duration;

use libp2p::PeerId;
use tokio::sync::{mpsc, oneshot};
use weighlock_protocol::statement::reconcile;
use weighlock_protocol::wire::control::{
    Blob, BucketIds, IDS_MAX, REQUEST_BYTES_MAX, RESPONSE_BYTES_MAX, Request, Response, STATEMENT_BYTES_MAX,
    STATEMENTS_MAX,
};
use weighlock_protocol::{KeyId, StatementId};

use super::backend::Backend;
use super::config::ControlLimits;
use super::handle::{Command, RequestError};

/// How often a busy peer is asked again before a reconciliation is given up.
const BUSY_TRIES_MAX: u32 = 6;
/// Statements taken from the backend at a time.
const BATCH_MAX: usize = 32;

// A page grows by whole batches, and must fit a response nevertheless.
const _: () = assert!(2 * BATCH_MAX * STATEMENT_BYTES_MAX <= RESPONSE_BYTES_MAX);

/// A way for a task to ask one peer, by way of the driver.
#[derive(Clone)]
pub(super) struct Link {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) peer: PeerId,
}

/// What a reconciliation moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Moved {
    pub(super) received: usize,
    pub(super) sent: usize,
}

/// Why a reconciliation broke off.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum SyncError {
    #[error("the peer sent rubbish: {0}")]
    Rubbish(String),
    #[error("the request failed: {0:?}")]
    Request(RequestError),
    #[error("the peer is busy")]
    Busy,
    #[error("the sets differ by more than one reconciliation may move")]
    TooLong,
    #[error("this host's own store failed")]
    Own,
}

/// Runs something that may block where that does no harm.
pub(super) async fn blocking<T: Send + 'static>(
    f: impl FnOnce() -> T + Send + 'static,
) -> Result<T, SyncError> {
    tokio::task::spawn_blocking(f).await.map_err(|error| {
        tracing::error!(%error, "a call to the store failed");
        SyncError::Own
    })
}

/// Fetches what this host lacks and pushes what the peer lacks. `moved` tells how far it came even if it
/// breaks off.
pub(super) async fn reconcile(
    link: &Link,
    from: KeyId,
    backend: &Arc<dyn Backend>,
    limits: &ControlLimits,
    moved: &mut Moved,
) -> Result<(), SyncError> {
    let store = Arc::clone(backend);
    let summary = Blob(blocking(move || store.summary()).await?);
    let Response::Differing { buckets } = link.request(Request::Summary { summary }).await? else {
        return rubbish("a summary was answered with something else");
    };
    let (mut left, mut after) = (buckets, None);
    for _ in 0..limits.sync_pages_max {
        if left.is_empty() {
            return Ok(());
        }
        let asked = Request::Ids { buckets: left.clone(), after };
        let Response::Ids { buckets: page } = link.request(asked).await? else {
            return rubbish("a request for ids was answered with something else");
        };
        let store = Arc::clone(backend);
        let compare = move || reconcile::compare_page(&left, after, page, |bucket| store.ids_in(&[bucket]));
        let diff = blocking(compare).await?.map_err(|e| SyncError::Rubbish(e.to_string()))?;
        fetch(link, from, backend, diff.want, moved).await?;
        push(link, backend, diff.give, limits.sync_page_bytes_max, moved).await?;
        (left, after) = (diff.left, diff.after);
    }
    Err(SyncError::TooLong)
}

/// One page of the ids in `buckets`, of the first only those greater than `after`.
pub(super) fn ids_page(backend: &dyn Backend, buckets: &[u8], after: Option<StatementId>) -> Vec<BucketIds> {
    reconcile::cut_page(buckets, after, IDS_MAX, |bucket| backend.ids_in(&[bucket]))
}

/// The statements that fit into one message, and how many of the ids that covers.
pub(super) fn statements_page(
    backend: &dyn Backend,
    ids: &[StatementId],
    bytes_max: usize,
) -> (Vec<Blob>, usize) {
    let bytes_max = bytes_max.min(RESPONSE_BYTES_MAX / 2);
    let (mut statements, mut done, mut bytes) = (Vec::new(), 0, 0);
    for id in ids.chunks(BATCH_MAX) {
        let batch = backend.statements(id);
        bytes += batch.iter().map(Vec::len).sum::<usize>();
        // A whole batch goes in, so the message may exceed the page by one batch; that fits a response.
        statements.extend(batch.into_iter().filter(|s| s.len() <= STATEMENT_BYTES_MAX).map(Blob));
        done += id.len();
        if bytes >= bytes_max {
            break;
        }
    }
    (statements, done)
}

async fn fetch(
    link: &Link,
    from: KeyId,
    backend: &Arc<dyn Backend>,
    mut want: Vec<StatementId>,
    moved: &mut Moved,
) -> Result<(), SyncError> {
    while !want.is_empty() {
        let ids = want[..want.len().min(STATEMENTS_MAX)].to_vec();
        let asked = ids.len();
        let Response::Statements { statements, done } = link.request(Request::Statements { ids }).await?
        else {
            return rubbish("a request for statements was answered with something else");
        };
        let done = done as usize;
        if done == 0 || done > asked || statements.len() > done {
            return rubbish("statements that were not asked for");
        }
        want.drain(..done);
        let store = Arc::clone(backend);
        let statements = statements.into_iter().map(|s| s.0).collect();
        let report = blocking(move || store.ingest(from, statements)).await?;
        moved.received += report.accepted;
        if let Some(reason) = report.refused {
            return Err(SyncError::Rubbish(reason));
        }
    }
    Ok(())
}

async fn push(
    link: &Link,
    backend: &Arc<dyn Backend>,
    mut give: Vec<StatementId>,
    bytes_max: usize,
    moved: &mut Moved,
) -> Result<(), SyncError> {
    let bytes_max = bytes_max.min(REQUEST_BYTES_MAX / 2);
    while !give.is_empty() {
        let store = Arc::clone(backend);
        let ids: Vec<StatementId> = give.drain(..give.len().min(BATCH_MAX)).collect();
        let batch = blocking(move || store.statements(&ids)).await?;
        let mut message: Vec<Blob> = Vec::new();
        let mut bytes = 0;
        for statement in batch.into_iter().filter(|s| s.len() <= STATEMENT_BYTES_MAX) {
            if bytes + statement.len() > bytes_max && !message.is_empty() {
                moved.sent += push_one(link, std::mem::take(&mut message)).await?;
                bytes = 0;
            }
            bytes += statement.len();
            message.push(Blob(statement));
        }
        if !message.is_empty() {
            moved.sent += push_one(link, message).await?;
        }
    }
    Ok(())
}

async fn push_one(link: &Link, statements: Vec<Blob>) -> Result<usize, SyncError> {
    let pushed = statements.len();
    match link.request(Request::Push { statements }).await? {
        Response::Pushed { accepted } => Ok((accepted as usize).min(pushed)),
        _ => rubbish("a push was answered with something else"),
    }
}

fn rubbish<T>(what: &str) -> Result<T, SyncError> {
    Err(SyncError::Rubbish(what.into()))
}

impl Link {
    /// Asks the peer, again after a pause if it is busy.
    pub(super) async fn request(&self, request: Request) -> Result<Response, SyncError> {
        for attempt in 0..BUSY_TRIES_MAX {
            let (reply, answer) = oneshot::channel();
            let command = Command::Request(self.peer, request.clone(), reply);
            let stopped = SyncError::Request(RequestError::Stopped);
            self.commands.send(command).await.map_err(|_| stopped.clone())?;
            match answer.await.map_err(|_| stopped)?.map_err(SyncError::Request)? {
                Response::Busy => tokio::time::sleep(Duration::from_millis(100 << attempt)).await,
                response => return Ok(response),
            }
        }
        Err(SyncError::Busy)
    }
}
