//! The writing end of the audit log: one line after the other, files that end and begin, signatures, and what is lost.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{info, warn};
use weighlock_protocol::audit::{
    Closed, Entry, Event, Gap, LINE_BYTES_MAX, Line, Position, REASON_CHARS_MAX, Segment, bounded,
};
use weighlock_protocol::statement::Keypair;
use weighlock_protocol::{ClusterId, ManifestDigest};

use super::files::{self, Kept, OpenSince, Opens};

/// Lines that may wait for a signature.
const UNSIGNED_LINES_MAX: u64 = 256;
/// How long a line may wait for a signature.
const UNSIGNED_MAX: Duration = Duration::from_secs(10);
/// A file is ended after this long even when it is small, so that the limit in days can be kept.
const FILE_MS_MAX: u64 = 86_400_000;
/// Bytes of a line beside its entry, about: number, time, and digest of the line before.
const LINE_FRAME_BYTES: u64 = 160;
/// Opens that a new file repeats, as far as they fit half of it.
const CARRIED_MAX: usize = 4096;
/// Closes that wait for room on the disk.
const LATE_MAX: usize = 4096;

/// How much is kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) bytes_max: u64,
    pub(super) segment_bytes: u64,
    pub(super) days_max: u64,
}

/// Why something is open no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// The loader said so.
    Closed,
    /// The loader went away.
    Gone,
    /// The daemon stopped, or was found dead.
    Stopped,
}

/// The log of one host. Every method blocks on the disk, shortly.
pub(super) struct Log {
    dir: PathBuf,
    bounds: Bounds,
    cluster: ClusterId,
    key: Keypair,
    at: Position,
    /// Where lines go; none before the first line, or where the disk said no.
    active: Option<Active>,
    /// Files that are complete, oldest first.
    kept: Vec<Kept>,
    opens: Opens,
    session: u64,
    /// What could not be written, until it can be said.
    gap: Option<Gap>,
    late: Vec<Closed>,
    lost: u64,
    lines: u64,
    unsigned: u64,
    unsigned_since: Option<Instant>,
    is_dirty: bool,
}

struct Active {
    kept: Kept,
    file: Arc<File>,
    /// A write failed and what it left behind is still there.
    is_torn: bool,
    /// Bytes of what it began with. 0 of one that was there before, which ends the sooner.
    head_bytes: u64,
}

/// What a person or a graph wants to know of the log itself.
#[derive(Debug, Clone, Default)]
pub(crate) struct Numbers {
    /// Lines written since the daemon started.
    pub(crate) lines: u64,
    /// Events that were not written, since the log began.
    pub(crate) lost: u64,
    /// Bytes on the disk.
    pub(crate) bytes: u64,
    /// Why lines cannot be written now.
    pub(crate) failing: Option<String>,
}

impl Log {
    /// Reads what is there and goes on with it. What an earlier life left open is closed as of its last line.
    ///
    /// # Errors
    /// The directory cannot be made, for another reason than a full disk, or what is in it cannot be read.
    pub(super) fn open(
        dir: &Path,
        bounds: Bounds,
        cluster: ClusterId,
        key: Keypair,
        now_ms: u64,
    ) -> io::Result<Self> {
        let mut log = Self {
            dir: dir.to_owned(),
            bounds,
            cluster,
            key,
            at: Position::START,
            active: None,
            kept: Vec::new(),
            opens: Opens::new(),
            session: 0,
            gap: None,
            late: Vec::new(),
            lost: 0,
            lines: 0,
            unsigned: 0,
            unsigned_since: None,
            is_dirty: false,
        };
        match files::make_dir(dir) {
            Ok(()) => log.go_on(files::recover(dir)?)?,
            // Only here nothing can be there to go on with.
            Err(e) if is_full(&e) => {}
            Err(e) => return Err(e),
        }
        log.say(now_ms, Event::Start { version: env!("CARGO_PKG_VERSION").into() });
        Ok(log)
    }

    /// Writes an event about an entry. One without a session gets a number; the number is given back.
    pub(super) fn entry(
        &mut self,
        now_ms: u64,
        mut entry: Entry,
        as_event: impl FnOnce(Entry) -> Event,
    ) -> u64 {
        if entry.session == 0 {
            self.session = self.session.max(self.at.seq) + 1;
            entry.session = self.session;
        }
        let session = entry.session;
        self.say(now_ms, as_event(entry));
        session
    }

    /// Writes that something is open no more, if the log says that it is open.
    pub(super) fn close(&mut self, now_ms: u64, session: u64, digest: ManifestDigest, why: Why) {
        let Some(open) = self.opens.get(&(session, digest)) else {
            return;
        };
        let reason = match why {
            Why::Closed => "closed",
            Why::Gone => "socket closed",
            Why::Stopped => "daemon stopped",
        };
        let closed =
            Closed { session, digest, reference: open.entry.reference.clone(), reason: reason.to_owned() };
        if !self.say(now_ms, Event::Close(closed.clone())) && self.late.len() < LATE_MAX {
            self.late.push(Closed { reason: format!("{reason} (written late)"), ..closed });
        }
    }

    /// What a timer has to do: say what was lost, sign, end old files. The file to be synced, outside of any lock.
    pub(super) fn tick(&mut self, now_ms: u64) -> Option<Arc<File>> {
        self.settle(now_ms);
        let is_old = |active: &Active| now_ms.saturating_sub(active.kept.began_ms) > FILE_MS_MAX;
        if self.active.as_ref().is_some_and(is_old)
            && let Err(e) = self.begin(now_ms)
        {
            warn!(error = %e, "the audit log cannot begin a new file");
        }
        if self.unsigned_since.is_some_and(|since| since.elapsed() >= UNSIGNED_MAX) {
            self.sign(now_ms);
        }
        self.dirty()
    }

    /// Signs what is not signed. The file to be synced.
    pub(super) fn seal(&mut self, now_ms: u64) -> Option<Arc<File>> {
        self.settle(now_ms);
        if self.unsigned > 0 {
            self.sign(now_ms);
        }
        self.dirty()
    }

    /// The last words.
    pub(super) fn stop(&mut self, now_ms: u64) -> Option<Arc<File>> {
        self.say(now_ms, Event::Stop {});
        self.seal(now_ms)
    }

    pub(super) fn numbers(&self) -> Numbers {
        Numbers {
            lines: self.lines,
            lost: self.lost + self.gap.as_ref().map_or(0, |gap| gap.lost),
            bytes: self.bytes(),
            failing: self.gap.as_ref().map(|gap| gap.reason.clone()),
        }
    }

    /// All files, oldest first, with the bytes that count.
    pub(super) fn files(&self) -> Vec<Kept> {
        self.kept.iter().cloned().chain(self.active.iter().map(|active| active.kept.clone())).collect()
    }

    /// Number of the last line.
    pub(super) fn last_seq(&self) -> u64 {
        self.at.seq
    }

    /// Takes over what an earlier life left.
    fn go_on(&mut self, found: files::Found) -> io::Result<()> {
        (self.at, self.opens, self.lost, self.kept) = (found.at, found.opens, found.lost, found.kept);
        if !found.is_damaged
            && let Some(last) = self.kept.pop()
        {
            let file = Arc::new(files::append(&last.path)?);
            self.active = Some(Active { kept: last, file, is_torn: found.is_torn, head_bytes: 0 });
        }
        let open: Vec<_> = self.opens.keys().copied().collect();
        for (session, digest) in open {
            self.close(found.last_ms, session, digest, Why::Stopped);
        }
        Ok(())
    }

    /// Whether it was written; a failure is noted as a loss.
    fn say(&mut self, now_ms: u64, event: Event) -> bool {
        self.settle(now_ms);
        let said = if self.gap.is_none() {
            self.write(now_ms, event)
        } else {
            Err(io::ErrorKind::StorageFull.into())
        };
        match said {
            Ok(()) => {
                if self.unsigned >= UNSIGNED_LINES_MAX {
                    self.sign(now_ms);
                }
                true
            }
            Err(e) => {
                self.lose(now_ms, &e);
                false
            }
        }
    }

    /// Says what was lost, once there is room for it.
    fn settle(&mut self, now_ms: u64) {
        let Some(gap) = self.gap.take() else { return };
        let lost = gap.lost;
        if self.write(now_ms, Event::Gap(gap.clone())).is_err() {
            self.gap = Some(gap);
            return;
        }
        self.lost = self.lost.saturating_add(lost);
        info!(lost, "the audit log goes on; it says what was lost");
        for closed in std::mem::take(&mut self.late) {
            let _ = self.write(now_ms, Event::Close(closed));
        }
    }

    fn lose(&mut self, now_ms: u64, error: &io::Error) {
        let reason = bounded(&error.to_string(), REASON_CHARS_MAX);
        let gap = self.gap.get_or_insert_with(|| {
            warn!(%error, "the audit log cannot be written; what is lost is counted");
            Gap { lost: 0, from_ms: now_ms, until_ms: now_ms, reason }
        });
        (gap.lost, gap.until_ms) = (gap.lost.saturating_add(1), now_ms);
    }

    fn sign(&mut self, now_ms: u64) {
        let checkpoint = self.at.checkpoint(self.cluster, self.key.key_id(), now_ms, self.lost);
        let event = Event::Checkpoint { envelope: checkpoint.sign(&self.key) };
        // One that finds no room is tried again with the next tick.
        let _ = self.put(now_ms, event);
    }

    fn write(&mut self, now_ms: u64, event: Event) -> io::Result<()> {
        // What it begins with does not count: else one that repeats much would be full at its birth.
        let is_full = |active: &Active| active.kept.bytes - active.head_bytes >= self.bounds.segment_bytes;
        if self.active.as_ref().is_none_or(is_full) {
            self.begin(now_ms)?;
        }
        self.put(now_ms, event)
    }

    fn put(&mut self, now_ms: u64, event: Event) -> io::Result<()> {
        let line = self.at.next(now_ms, event);
        let mut bytes = line.to_json();
        if bytes.len() > LINE_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the line is too long"));
        }
        let at = Position::after(&line, &bytes);
        bytes.push(b'\n');
        let active = self.active.as_mut().ok_or_else(|| io::Error::other("no file"))?;
        if active.is_torn {
            active.file.set_len(active.kept.bytes)?;
            active.is_torn = false;
        }
        if let Err(e) = (&*active.file).write_all(&bytes) {
            active.is_torn = active.file.set_len(active.kept.bytes).is_err();
            return Err(e);
        }
        active.kept.bytes += bytes.len() as u64;
        self.at = at;
        self.wrote(&line);
        Ok(())
    }

    fn wrote(&mut self, line: &Line) {
        files::note(&mut self.opens, line);
        self.lines += 1;
        self.is_dirty = true;
        if matches!(line.event, Event::Checkpoint { .. }) {
            (self.unsigned, self.unsigned_since) = (0, None);
        } else {
            self.unsigned += 1;
            self.unsigned_since.get_or_insert_with(Instant::now);
        }
    }

    /// Ends the file and begins the next: whole, with all that is open, or not at all.
    fn begin(&mut self, now_ms: u64) -> io::Result<()> {
        if self.unsigned > 0 && self.active.is_some() {
            self.sign(now_ms);
        }
        if let Some(active) = &self.active {
            active.file.sync_data()?;
        }
        self.forget(now_ms);
        let first_seq = self.at.seq + 1;
        let oldest = self.kept.first().or(self.active.as_ref().map(|active| &active.kept));
        let mut left = self.bounds.segment_bytes / 2;
        let has_room = |open: &&OpenSince| {
            let bytes = serde_json::to_vec(&open.entry).map_or(0, |entry| entry.len() as u64);
            left = left.saturating_sub(bytes + LINE_FRAME_BYTES);
            left > 0
        };
        let carried: Vec<&OpenSince> = self.opens.values().take(CARRIED_MAX).take_while(has_room).collect();
        let segment = Event::Segment(Segment {
            cluster: self.cluster,
            host: self.key.key_id(),
            kept_from: oldest.map_or(first_seq, |oldest| oldest.first_seq),
            carried: carried.len() as u64,
            not_carried: (self.opens.len() - carried.len()) as u64,
        });
        let again = carried
            .into_iter()
            .map(|open| Event::Open(Entry { since_ms: Some(open.since_ms), ..open.entry.clone() }));
        let (mut at, mut head, mut lines) = (self.at, Vec::new(), 0);
        for event in std::iter::once(segment).chain(again) {
            let line = at.next(now_ms, event);
            let bytes = line.to_json();
            at = Position::after(&line, &bytes);
            head.extend_from_slice(&bytes);
            head.push(b'\n');
            lines += 1;
        }
        files::make_dir(&self.dir)?;
        let path = files::path_of(&self.dir, first_seq);
        let file = Arc::new(files::create(&path, &head)?);
        let kept = Kept { path, first_seq, began_ms: now_ms, bytes: head.len() as u64 };
        let head_bytes = kept.bytes;
        let before = self.active.replace(Active { kept, file, is_torn: false, head_bytes });
        self.kept.extend(before.map(|active| active.kept));
        self.at = at;
        self.lines += lines;
        self.unsigned += lines;
        self.unsigned_since.get_or_insert_with(Instant::now);
        Ok(())
    }

    /// Removes the oldest files while there are too many bytes, or while all that they tell of is too old.
    fn forget(&mut self, now_ms: u64) {
        let oldest_ms = now_ms.saturating_sub(self.bounds.days_max.saturating_mul(86_400_000));
        while let Some(first) = self.kept.first() {
            let next_ms = self.kept.get(1).or(self.active.as_ref().map(|active| &active.kept));
            let is_old = next_ms.is_some_and(|next| next.began_ms < oldest_ms);
            // Room for the file that begins now.
            let next_bytes = self.bounds.segment_bytes + self.bounds.segment_bytes / 2;
            if !is_old && self.bytes() + next_bytes <= self.bounds.bytes_max {
                return;
            }
            if let Err(e) = fs::remove_file(&first.path)
                && e.kind() != io::ErrorKind::NotFound
            {
                warn!(file = %first.path.display(), error = %e, "an old file of the audit log cannot be removed");
                return;
            }
            self.kept.remove(0);
        }
    }

    fn bytes(&self) -> u64 {
        let active = self.active.as_ref().map_or(0, |active| active.kept.bytes);
        self.kept.iter().map(|one| one.bytes).sum::<u64>() + active
    }

    fn dirty(&mut self) -> Option<Arc<File>> {
        let is_dirty = std::mem::take(&mut self.is_dirty);
        self.active.as_ref().filter(|_| is_dirty).map(|active| active.file.clone())
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::WriteZero
    )
}

#[cfg(test)]
#[path = "log/tests.rs"]
mod tests;
