//! Opens and closes of this host in a bounded, chained, signed log.
//!
//! `log` writes, `files` knows the files and puts the last one right after a kill, `query` reads, `caller` says who is
//! on a socket, `recorder` is what doors hold. What a line says and how lines prove each other is in
//! `weighlock_protocol::audit`.
//!
//! **Architecture invariant:** an open is answered after its line was written to the file, which is synced every
//! second: a killed daemon loses nothing that it answered, a power failure at most the last second. A log that cannot
//! be written never stops an open: what is lost is counted, and the log itself says so once there is room.

pub(crate) mod caller;
mod files;
mod log;
mod query;
mod recorder;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio_util::sync::CancellationToken;
use tracing::warn;
use weighlock_protocol::audit::{Entry, Event, Grounds};
use weighlock_protocol::statement::Grounds as Open;
use weighlock_protocol::statement::Keypair;
use weighlock_protocol::{ClusterId, KeyId, ManifestDigest};

use crate::config;
use crate::daemon::Node;
use crate::error::{Error, Result};
use crate::facts::{Admitted, Basis};
use crate::fetch::blocking;
use log::{Bounds, Log};
pub(crate) use log::{Numbers, Why};
pub use query::{Filter, Held, Page, Query};
pub(crate) use recorder::{Asked, Recorder};

/// How often the file is synced, and looked after.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);

/// The audit log of this host. Cheap to clone. Methods block on the disk, shortly, unless they are async.
#[derive(Clone)]
pub(crate) struct Audit {
    inner: Arc<Inner>,
}

struct Inner {
    host: KeyId,
    name: String,
    log: Mutex<Log>,
    /// Held by the question that is being answered: each reads whole files, and members may ask many at once.
    asking: Mutex<()>,
}

/// Where the log of a store lies.
pub fn dir(data_dir: &Path) -> PathBuf {
    data_dir.join("audit")
}

/// Why this host hands out what it was asked for.
pub(crate) fn grounds(node: &Node, admitted: &Admitted) -> Grounds {
    match admitted.grounds {
        Basis::Gate(Open::Ungated) => Grounds::Ungated,
        Basis::Gate(Open::Promoted { statement, stage }) => {
            let ledger = node.facts.ledger();
            let channel = ledger.statement(&statement).and_then(|s| s.kind.channel());
            Grounds::Promoted {
                statement,
                stage: stage.to_string(),
                hardware: channel.map(|channel| channel.hardware.clone()).unwrap_or_default(),
            }
        }
        Basis::Evaluator(key) => Grounds::Evaluator { key },
        Basis::Exempt(statement) => Grounds::Exempt { statement },
    }
}

impl Audit {
    /// Opens the log in `data_dir`, or begins it. What a killed daemon left open is closed.
    ///
    /// # Errors
    /// The directory cannot be used. A full disk is no error.
    pub(crate) fn open(
        data_dir: &Path,
        config: &config::Audit,
        cluster: ClusterId,
        key: Keypair,
        name: String,
    ) -> Result<Self> {
        let dir = dir(data_dir);
        let bounds = Bounds {
            bytes_max: config.bytes_max,
            segment_bytes: config.segment_bytes,
            days_max: config.days_max,
        };
        let host = key.key_id();
        let log = Log::open(&dir, bounds, cluster, key, now_ms()).map_err(|e| {
            Error::unavailable(format!("the audit log in {} cannot be used: {e}", dir.display()))
                .hint("the daemon's user must be able to write there")
        })?;
        Ok(Self { inner: Arc::new(Inner { host, name, log: Mutex::new(log), asking: Mutex::new(()) }) })
    }

    /// Syncs and signs until the daemon stops.
    pub(crate) async fn run(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(SYNC_INTERVAL) => {}
            }
            let audit = self.clone();
            let _ = blocking(move || {
                let file = audit.log().tick(now_ms());
                sync(file);
                Ok(())
            })
            .await;
        }
    }

    /// The last words of a daemon that stops in order; signed and synced.
    pub(crate) fn stop(&self) {
        let file = self.log().stop(now_ms());
        sync(file);
    }

    /// What a person or a graph wants to know of the log itself.
    pub(crate) fn numbers(&self) -> Numbers {
        self.log().numbers()
    }

    /// What a person should look at.
    pub(crate) fn alarm(&self) -> Option<String> {
        let numbers = self.numbers();
        let reason = numbers.failing?;
        Some(format!("the audit log cannot be written ({reason}); {} events are lost", numbers.lost))
    }

    /// Answers a question, one after the other.
    ///
    /// # Errors
    /// The log cannot be read, or the answer is too long to be put together.
    pub(crate) fn answer(&self, query: &Query) -> Result<Page> {
        let _one = self.inner.asking.lock().unwrap_or_else(PoisonError::into_inner);
        query::answer(self, query)
    }

    /// Answers a question that another host sent, as bytes for it; a failure is an answer, too.
    pub(crate) fn answer_bytes(&self, query: &[u8]) -> Vec<u8> {
        let answer = serde_json::from_slice(query)
            .map_err(|e| {
                Error::invalid(format!("the question is not understood: {e}"))
                    .hint("is that host of a later release?")
            })
            .and_then(|query| self.answer(&query));
        serde_json::to_vec(&answer).unwrap_or_default()
    }

    fn write(&self, entry: Entry, as_event: impl FnOnce(Entry) -> Event) -> u64 {
        self.log().entry(now_ms(), entry, as_event)
    }

    fn close(&self, session: u64, digest: ManifestDigest, why: Why) {
        self.log().close(now_ms(), session, digest, why);
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.inner.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Milliseconds since 1970 by this host's clock.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn sync(file: Option<Arc<File>>) {
    if let Some(file) = file
        && let Err(e) = file.sync_data()
    {
        warn!(error = %e, "the audit log cannot be synced");
    }
}
