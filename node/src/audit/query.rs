//! Questions about the audit log: what happened, what was open at a time, and the lines themselves.

use std::collections::BTreeMap;
use std::fs;

use serde::{Deserialize, Serialize};
use weighlock_protocol::audit::{Entry, Event, Line};
use weighlock_protocol::{KeyId, ManifestDigest};

use super::files::{self, Kept, OpenSince, Opens};
use super::{Audit, now_ms, sync};
use crate::error::{Error, Kind, Result};

/// Events or opens on one page.
const ROWS_MAX: usize = 500;
/// Bytes of log lines behind one page, so that it fits the control plane's messages.
const PAGE_BYTES_MAX: usize = 400 << 10;
/// Opens that all pages of one answer hold together.
const OPENS_MAX: usize = 100_000;
/// Copies that are named beside what is open.
const TAKEN_MAX: usize = 100;

/// A question. Answered by a [`Page`] of which the field of the same name is filled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "lowercase")]
pub enum Query {
    /// The newest events.
    Events {
        /// Which.
        filter: Filter,
        /// Only those with a lower number: the `next` of the page before.
        before: Option<u64>,
        /// At most so many.
        limit: usize,
    },
    /// What was open at some time from `from_ms` to before `until_ms`, in milliseconds since 1970.
    Open {
        /// Which; its times do not count.
        filter: Filter,
        /// From then.
        from_ms: u64,
        /// To before then.
        until_ms: u64,
        /// Rows of earlier pages.
        skip: usize,
    },
    /// The lines, signed to the end. They begin with the file that tells of `since_ms`.
    Lines {
        /// From then, in milliseconds since 1970.
        since_ms: u64,
        /// After this number: the `next` of the page before; 0 at first.
        after: u64,
        /// Up to this number, as the first page told; everything at first.
        through: Option<u64>,
    },
}

/// Which artifacts and times.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Filter {
    /// This reference as it was asked for, or every one of this name where it is `ns/name`.
    pub reference: Option<String>,
    /// This digest, however it was asked for. One of the two is enough.
    pub digest: Option<ManifestDigest>,
    /// Not before, in milliseconds since 1970.
    pub since_ms: Option<u64>,
    /// Before, in milliseconds since 1970.
    pub until_ms: Option<u64>,
}

/// A page of an answer.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Page {
    /// The host whose log it is.
    pub host: Option<KeyId>,
    /// Its name.
    pub name: String,
    /// Number and time of the oldest line that it keeps.
    pub oldest: Option<(u64, u64)>,
    /// Events that it could not write, since its log began.
    pub lost: u64,
    /// Oldest first.
    pub events: Vec<Line>,
    /// By the time since which they were open.
    pub open: Vec<Held>,
    /// Copies that were handed out before the end of the time asked for, the newest of each digest and process first.
    pub taken: Vec<Line>,
    /// JSON Lines.
    pub lines: String,
    /// There is more: what to ask with next.
    pub next: Option<u64>,
    /// Number of the last line to be had.
    pub through: Option<u64>,
}

/// Something that was open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Who opened what.
    #[serde(flatten)]
    pub entry: Entry,
    /// Since when.
    pub opened_ms: u64,
    /// Until when; none if it is still open.
    pub closed_ms: Option<u64>,
    /// Why no longer.
    pub closed: Option<String>,
}

pub(super) fn answer(audit: &Audit, query: &Query) -> Result<Page> {
    let (files, mut page) = {
        let log = audit.log();
        let files = log.files();
        let oldest = files.first().map(|first| (first.first_seq, first.began_ms));
        let lost = log.numbers().lost;
        let (host, name) = (Some(audit.inner.host), audit.inner.name.clone());
        (files, Page { host, name, oldest, lost, ..Page::default() })
    };
    match query {
        Query::Events { filter, before, limit } => events(&files, filter, *before, *limit, &mut page)?,
        Query::Open { filter, from_ms, until_ms, skip } => {
            open(&files, filter, (*from_ms, *until_ms), *skip, &mut page)?;
        }
        Query::Lines { since_ms, after, through } => {
            let (files, through) = match through {
                Some(through) => (files, *through),
                None => {
                    let (file, files, last) = {
                        let mut log = audit.log();
                        (log.seal(now_ms()), log.files(), log.last_seq())
                    };
                    sync(file);
                    (files, last)
                }
            };
            lines(&files, *since_ms, *after, through, &mut page)?;
        }
    }
    Ok(page)
}

fn events(files: &[Kept], filter: &Filter, before: Option<u64>, limit: usize, page: &mut Page) -> Result<()> {
    let limit = limit.clamp(1, ROWS_MAX);
    let before = before.unwrap_or(u64::MAX);
    let mut bytes_left = PAGE_BYTES_MAX;
    for file in files.iter().rev().filter(|file| file.first_seq < before) {
        let Some(bytes) = read(file)? else { break };
        for raw in files::lines(&bytes).collect::<Vec<_>>().into_iter().rev() {
            let Some(line) = filter.wanted(raw) else { continue };
            if line.seq >= before {
                continue;
            }
            if page.events.len() >= limit || bytes_left < raw.len() {
                page.next = page.events.last().map(|last: &Line| last.seq);
                page.events.reverse();
                return Ok(());
            }
            bytes_left -= raw.len();
            page.events.push(line);
        }
        if filter.since_ms.is_some_and(|since| file.began_ms < since) {
            break;
        }
    }
    page.events.reverse();
    Ok(())
}

fn open(files: &[Kept], filter: &Filter, span: (u64, u64), skip: usize, page: &mut Page) -> Result<()> {
    let (from_ms, until_ms) = span;
    if skip >= OPENS_MAX {
        return Err(Error::invalid(format!("more than {OPENS_MAX} opens in that time"))
            .hint("ask for a shorter time, or for one artifact"));
    }
    let begin = files.iter().rposition(|file| file.began_ms <= from_ms).unwrap_or(0);
    let mut going = Opens::new();
    let mut found = Earliest { rows: BTreeMap::new(), keep: skip + ROWS_MAX, from_ms, total: 0 };
    for (n, file) in files.iter().enumerate().skip(begin) {
        // What was opened after the span is of no interest; when it was closed may stand in later files.
        if file.began_ms >= until_ms && going.is_empty() && n > begin {
            break;
        }
        let Some(bytes) = read(file)? else { continue };
        for raw in files::lines(&bytes) {
            let Ok(line) = Line::parse(raw) else { continue };
            match &line.event {
                Event::Open(entry) => {
                    let since = entry.since_ms.unwrap_or(line.time_ms);
                    if since < until_ms && filter.names(entry) {
                        files::note(&mut going, &line);
                    }
                }
                Event::Close(closed) => {
                    if let Some(open) = going.remove(&(closed.session, closed.digest)) {
                        found.add(open, Some((line.time_ms, &closed.reason)));
                    }
                }
                Event::Start { .. } => {
                    for open in std::mem::take(&mut going).into_values() {
                        found.add(open, Some((line.time_ms, "daemon stopped")));
                    }
                }
                _ => {}
            }
        }
    }
    for open in going.into_values() {
        found.add(open, None);
    }
    let total = found.total;
    page.open = found.rows.into_values().skip(skip).collect();
    if skip + page.open.len() < total {
        page.next = Some((skip + page.open.len()) as u64);
    }
    if skip == 0 {
        page.taken = taken(files, filter, until_ms)?;
    }
    Ok(())
}

/// The first rows of an answer by the time since which they were open, however many there are.
struct Earliest {
    /// By time, session and the order in which they were added.
    rows: BTreeMap<(u64, u64, usize), Held>,
    keep: usize,
    from_ms: u64,
    total: usize,
}

impl Earliest {
    /// Adds what was open until `closed`, if that was in the time asked for.
    fn add(&mut self, open: OpenSince, closed: Option<(u64, &str)>) {
        let opened_ms = open.since_ms;
        if closed.is_some_and(|(at, _)| at < self.from_ms || (at == self.from_ms && at != opened_ms)) {
            return;
        }
        self.total += 1;
        let key = (opened_ms, open.entry.session, self.total);
        if self.rows.len() >= self.keep {
            match self.rows.last_key_value() {
                Some((last, _)) if *last > key => self.rows.pop_last(),
                _ => return,
            };
        }
        let held = Held {
            entry: Entry { since_ms: None, ..open.entry },
            opened_ms,
            closed_ms: closed.map(|(at, _)| at),
            closed: closed.map(|(_, why)| why.to_owned()),
        };
        self.rows.insert(key, held);
    }
}

/// The newest copy of each digest by each process.
fn taken(files: &[Kept], filter: &Filter, until_ms: u64) -> Result<Vec<Line>> {
    let mut newest: BTreeMap<_, Line> = BTreeMap::new();
    for file in files.iter().rev().filter(|file| file.began_ms < until_ms) {
        let Some(bytes) = read(file)? else { break };
        for raw in files::lines(&bytes).collect::<Vec<_>>().into_iter().rev() {
            if !says(raw, "\"event\":\"taken\"") {
                continue;
            }
            let Ok(line) = Line::parse(raw) else { continue };
            let Event::Taken(entry) = &line.event else { continue };
            if line.time_ms >= until_ms || !filter.names(entry) {
                continue;
            }
            let caller = &entry.caller;
            let who = (caller.uid, caller.process.clone(), caller.pod.clone(), caller.container.clone());
            let key = (entry.digest, entry.door.name(), who);
            newest.entry(key).or_insert(line);
            if newest.len() >= TAKEN_MAX {
                break;
            }
        }
    }
    let mut all: Vec<Line> = newest.into_values().collect();
    all.sort_by_key(|line| std::cmp::Reverse(line.seq));
    all.truncate(TAKEN_MAX);
    Ok(all)
}

fn lines(files: &[Kept], since_ms: u64, after: u64, through: u64, page: &mut Page) -> Result<()> {
    let begin = files.iter().rposition(|file| file.began_ms <= since_ms).unwrap_or(0);
    page.through = Some(through);
    let mut last = after;
    for (n, file) in files.iter().enumerate().skip(begin) {
        // The file after it begins where this one ends.
        if files.get(n + 1).is_some_and(|next| next.first_seq <= after + 1) {
            continue;
        }
        let Some(bytes) = read(file)? else { continue };
        for raw in files::lines(&bytes) {
            // A line that is none goes along as it is: whoever checks the copy is to find it.
            let seq = Line::parse(raw).map_or(last + 1, |line| line.seq);
            if seq <= after {
                continue;
            }
            if seq > through {
                return Ok(());
            }
            if !page.lines.is_empty() && page.lines.len() + raw.len() > PAGE_BYTES_MAX {
                page.next = Some(last);
                return Ok(());
            }
            page.lines += &String::from_utf8_lossy(raw);
            page.lines.push('\n');
            last = seq;
        }
    }
    Ok(())
}

/// The complete lines of a file; `None` if it went by the limits meanwhile.
fn read(file: &Kept) -> Result<Option<Vec<u8>>> {
    match fs::read(&file.path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::new(
            Kind::Internal,
            format!("cannot read {} of the audit log: {e}", file.path.display()),
        )),
    }
}

fn says(raw: &[u8], what: &str) -> bool {
    std::str::from_utf8(raw).is_ok_and(|text| text.contains(what))
}

impl Filter {
    /// The event of a line, if it is one that is asked for.
    fn wanted(&self, raw: &[u8]) -> Option<Line> {
        let line = Line::parse(raw).ok()?;
        let is_named = match &line.event {
            Event::Open(entry) if entry.since_ms.is_some() => false,
            Event::Open(entry) | Event::Taken(entry) | Event::Refused(entry) => self.names(entry),
            Event::Close(closed) => self.matches(&closed.reference, Some(&closed.digest)),
            Event::Start { .. } | Event::Stop {} | Event::Gap(_) => !self.is_about_one(),
            Event::Segment(_) | Event::Checkpoint { .. } | Event::Other => false,
        };
        let is_then = self.since_ms.is_none_or(|since| line.time_ms >= since)
            && self.until_ms.is_none_or(|until| line.time_ms < until);
        (is_named && is_then).then_some(line)
    }

    fn names(&self, entry: &Entry) -> bool {
        self.matches(&entry.reference, entry.digest.as_ref())
    }

    fn matches(&self, reference: &str, digest: Option<&ManifestDigest>) -> bool {
        let by_digest = self.digest.as_ref().is_some_and(|wanted| digest == Some(wanted));
        let by_name = self.reference.as_deref().is_some_and(|wanted| {
            reference.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '@']))
        });
        !self.is_about_one() || by_digest || by_name
    }

    fn is_about_one(&self) -> bool {
        self.reference.is_some() || self.digest.is_some()
    }
}

#[cfg(test)]
mod tests {
    use weighlock_protocol::audit::{Caller, Door};

    use super::*;

    #[test]
    fn an_answer_holds_its_first_rows_only_and_counts_all() {
        let open = |session: u64, since_ms: u64| OpenSince {
            entry: Entry {
                session,
                reference: "acme/model:1".to_owned(),
                digest: None,
                door: Door::Loader,
                caller: Caller::default(),
                grounds: None,
                reason: None,
                since_ms: Some(since_ms),
            },
            since_ms,
        };
        let mut found = Earliest { rows: BTreeMap::new(), keep: 2, from_ms: 100, total: 0 };
        found.add(open(1, 130), None);
        found.add(open(2, 120), Some((121, "closed")));
        found.add(open(3, 110), None);
        found.add(open(4, 140), None);
        // Over before the time asked for, and just as it began; and one that began and ended with it.
        found.add(open(5, 50), Some((99, "closed")));
        found.add(open(6, 50), Some((100, "closed")));
        found.add(open(7, 100), Some((100, "closed")));
        let sessions: Vec<u64> = found.rows.values().map(|held| held.entry.session).collect();
        assert_eq!((sessions, found.total), (vec![7, 3], 5));
    }
}
