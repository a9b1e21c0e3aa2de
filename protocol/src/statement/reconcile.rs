//! Makes two hosts' sets of statements equal: what the side that begins asks and concludes, and what the other answers.

use std::collections::{BTreeMap, BTreeSet};

use super::ledger::Ledger;
use super::summary::{Entry, Summary};
use crate::id::StatementId;
use crate::wire::control::{Blob, BucketIds, IDS_MAX, Request, Response, STATEMENTS_MAX};

/// Bytes of a statement id that an entry id keeps; the rest tells who signed.
const ENTRY_ID_BYTES: usize = 24;

/// How much one reconciliation moves at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReconcileConfig {
    /// Most ids in one page, from 1 to [`IDS_MAX`].
    pub ids_max: usize,
    /// Most statements asked for at once, from 1 to [`STATEMENTS_MAX`].
    pub ask_max: usize,
    /// Most statements pushed at once, from 1 to [`STATEMENTS_MAX`].
    pub push_max: usize,
    /// Most pages of one reconciliation.
    pub pages_max: usize,
}

impl Default for ReconcileConfig {
    fn default() -> Self {
        Self { ids_max: IDS_MAX, ask_max: STATEMENTS_MAX, push_max: 32, pages_max: 4096 }
    }
}

/// What the side that began does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Ask the peer this.
    Ask(Request),
    /// Read these statements from the store, push them, and report the answer. Those that are gone are left out.
    Push(Vec<StatementId>),
    /// The sets are as equal as this reconciliation makes them.
    Done,
}

/// Why a reconciliation broke off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReconcileError {
    /// No honest host answers so.
    #[error("the peer sent rubbish: {0}")]
    Rubbish(&'static str),
    /// More pages than [`ReconcileConfig::pages_max`].
    #[error("the sets differ by more than one reconciliation may move")]
    TooLong,
}

/// The side that begins. It holds ids only; statements go from the answer straight to the caller.
#[derive(Debug, Clone)]
pub struct Reconciliation {
    config: ReconcileConfig,
    asked: Asked,
    pages: usize,
    left: Vec<u8>,
    after: Option<StatementId>,
    /// Entry ids that the peer has and this host lacks.
    want: Vec<StatementId>,
    /// Entry ids that this host has and the peer lacks.
    give: Vec<StatementId>,
}

/// What the next answer belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Nothing,
    Summary,
    Ids,
    Statements(usize),
    Push,
}

impl Reconciliation {
    /// A reconciliation and its first question.
    pub fn begin(config: ReconcileConfig, own: &Ledger) -> (Self, Request) {
        let begun = Self {
            config,
            asked: Asked::Summary,
            pages: 0,
            left: Vec::new(),
            after: None,
            want: Vec::new(),
            give: Vec::new(),
        };
        (begun, Request::Summary { summary: summary(own) })
    }

    /// What to do now that the last answer was dealt with.
    ///
    /// # Errors
    /// [`ReconcileError::TooLong`].
    pub fn next(&mut self, own: &Ledger) -> Result<Next, ReconcileError> {
        if !self.want.is_empty() {
            let ids = self.want[..self.want.len().min(self.config.ask_max.max(1))].to_vec();
            self.asked = Asked::Statements(ids.len());
            return Ok(Next::Ask(Request::Statements { ids }));
        }
        if !self.give.is_empty() {
            let entries: Vec<StatementId> =
                self.give.drain(..self.give.len().min(self.config.push_max.max(1))).collect();
            self.asked = Asked::Push;
            return Ok(Next::Push(named(own, &entries)));
        }
        if self.left.is_empty() {
            self.asked = Asked::Nothing;
            return Ok(Next::Done);
        }
        if self.pages >= self.config.pages_max {
            return Err(ReconcileError::TooLong);
        }
        self.pages += 1;
        self.asked = Asked::Ids;
        Ok(Next::Ask(Request::Ids { buckets: self.left.clone(), after: self.after }))
    }

    /// Takes the answer to the last question. What it returns is to be checked and stored before
    /// [`next`](Self::next) is asked.
    ///
    /// # Errors
    /// [`ReconcileError::Rubbish`].
    pub fn answered(&mut self, own: &Ledger, answer: Response) -> Result<Vec<Blob>, ReconcileError> {
        let asked = std::mem::replace(&mut self.asked, Asked::Nothing);
        match (asked, answer) {
            (Asked::Summary, Response::Differing { buckets }) => {
                self.left = buckets;
                Ok(Vec::new())
            }
            (Asked::Ids, Response::Ids { buckets }) => {
                self.compare(own, buckets)?;
                Ok(Vec::new())
            }
            (Asked::Statements(asked), Response::Statements { statements, done }) => {
                let done = usize::try_from(done).unwrap_or(usize::MAX);
                if done == 0 || done > asked || statements.len() > done {
                    return Err(ReconcileError::Rubbish("statements that were not asked for"));
                }
                self.want.drain(..done.min(self.want.len()));
                Ok(statements)
            }
            (Asked::Push, Response::Pushed { .. }) => Ok(Vec::new()),
            _ => Err(ReconcileError::Rubbish("an answer to something else")),
        }
    }

    fn compare(&mut self, own: &Ledger, page: Vec<BucketIds>) -> Result<(), ReconcileError> {
        let found = compare_page(&self.left, self.after, page, |bucket| entries(own, bucket))?;
        self.want.extend(found.want);
        self.give.extend(found.give);
        (self.left, self.after) = (found.left, found.after);
        Ok(())
    }
}

/// What one page of ids showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Entry ids that the peer has and this host lacks.
    pub want: Vec<StatementId>,
    /// Entry ids that this host has and the peer lacks.
    pub give: Vec<StatementId>,
    /// Buckets that are still to be compared.
    pub left: Vec<u8>,
    /// Of the first of them, only entry ids greater than this.
    pub after: Option<StatementId>,
}

/// Holds a peer's page of ids against our own set: `asked` and `after` are what was asked for, `ids_of` gives our own
/// entry ids of a bucket, in any order.
///
/// # Errors
/// [`ReconcileError::Rubbish`].
pub fn compare_page(
    asked: &[u8],
    after: Option<StatementId>,
    page: Vec<BucketIds>,
    ids_of: impl Fn(u8) -> Vec<StatementId>,
) -> Result<Difference, ReconcileError> {
    let numbers: Vec<u8> = page.iter().map(|b| b.bucket).collect();
    let complete = page.iter().filter(|b| b.complete).count();
    let partial = page.last().filter(|b| !b.complete);
    let in_order = asked.starts_with(&numbers) && !page.is_empty();
    if !in_order || complete + usize::from(partial.is_some()) != page.len() {
        return Err(ReconcileError::Rubbish("a page of ids that is not the one asked for"));
    }
    if partial.is_some_and(|b| b.ids.is_empty()) {
        return Err(ReconcileError::Rubbish("a page of ids that leads nowhere"));
    }
    let next = partial.and_then(|b| b.ids.last().copied());
    let (mut want, mut give) = (Vec::new(), Vec::new());
    for (n, theirs) in page.into_iter().enumerate() {
        let after = after.filter(|_| n == 0);
        if after.is_some() && theirs.ids.first().copied() <= after && !theirs.ids.is_empty() {
            return Err(ReconcileError::Rubbish("a page of ids that starts before the place asked for"));
        }
        let end = theirs.ids.last().copied().filter(|_| !theirs.complete);
        let mine: BTreeSet<StatementId> = beyond(ids_of(theirs.bucket), after)
            .into_iter()
            .filter(|id| end.is_none_or(|end| *id <= end))
            .collect();
        let theirs: BTreeSet<StatementId> = theirs.ids.into_iter().collect();
        want.extend(theirs.difference(&mine));
        give.extend(mine.difference(&theirs));
    }
    Ok(Difference { want, give, left: asked[complete..].to_vec(), after: next })
}

/// The bytes of this host's summary.
pub fn summary(own: &Ledger) -> Blob {
    Blob(serde_json::to_vec(own.summary()).expect("numbers and lists of them always serialize"))
}

/// Buckets in which this host's set differs from the one that a peer summarised.
///
/// # Errors
/// Why the peer's bytes are no summary.
pub fn differing(own: &Ledger, summary: &[u8]) -> Result<Vec<u8>, String> {
    let theirs: Summary = serde_json::from_slice(summary).map_err(|e| e.to_string())?;
    Ok(own.summary().differing(&theirs))
}

/// One page of the entry ids in `buckets`, of the first only those greater than `after`.
pub fn ids_page(
    own: &Ledger,
    buckets: &[u8],
    after: Option<StatementId>,
    config: &ReconcileConfig,
) -> Vec<BucketIds> {
    cut_page(buckets, after, config.ids_max, |bucket| entries(own, bucket))
}

/// The same where `ids_of` gives the entry ids of a bucket, in any order; at most `ids_max` of them.
pub fn cut_page(
    buckets: &[u8],
    after: Option<StatementId>,
    ids_max: usize,
    ids_of: impl Fn(u8) -> Vec<StatementId>,
) -> Vec<BucketIds> {
    let (mut page, mut room) = (Vec::new(), ids_max.clamp(1, IDS_MAX));
    for (n, &bucket) in buckets.iter().enumerate() {
        let mut ids = beyond(ids_of(bucket), after.filter(|_| n == 0));
        let complete = ids.len() <= room;
        ids.truncate(room);
        room -= ids.len();
        if ids.is_empty() && !complete {
            break;
        }
        page.push(BucketIds { bucket, ids, complete });
        if !complete {
            break;
        }
    }
    page
}

/// The statements that entry ids stand for, in that order, those that are not here left out.
pub fn named(own: &Ledger, ids: &[StatementId]) -> Vec<StatementId> {
    let mut buckets: BTreeMap<u8, BTreeMap<[u8; ENTRY_ID_BYTES], StatementId>> = BTreeMap::new();
    let find = |id: &StatementId| {
        let all = || own.ids_in(id.0[0]).map(|entry| (prefix(&entry.id), entry.id)).collect();
        buckets.entry(id.0[0]).or_insert_with(all).get(&prefix(id)).copied()
    };
    ids.iter().filter_map(find).collect()
}

/// What stands for one entry on the wire: most of the statement's id, and a trace of its signers, so that a
/// statement that only gained a signature travels too.
fn entry_id(entry: &Entry) -> StatementId {
    let mut id = entry.id.0;
    id[ENTRY_ID_BYTES..].copy_from_slice(&entry.signers.to_le_bytes());
    StatementId(id)
}

fn prefix(id: &StatementId) -> [u8; ENTRY_ID_BYTES] {
    let mut prefix = [0; ENTRY_ID_BYTES];
    prefix.copy_from_slice(&id.0[..ENTRY_ID_BYTES]);
    prefix
}

/// Entry ids of a bucket.
pub fn entries(own: &Ledger, bucket: u8) -> Vec<StatementId> {
    own.ids_in(bucket).map(|entry| entry_id(&entry)).collect()
}

/// Those greater than `after`, in order, each once.
fn beyond(mut ids: Vec<StatementId>, after: Option<StatementId>) -> Vec<StatementId> {
    ids.retain(|id| after.is_none_or(|after| *id > after));
    ids.sort_unstable();
    ids.dedup();
    ids
}
