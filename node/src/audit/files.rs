//! The files of the audit log: their names, what is in them, and how the last one is put right after a kill.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tracing::warn;
use weighlock_protocol::ManifestDigest;
use weighlock_protocol::audit::{Entry, Event, LINE_BYTES_MAX, Line, Position, Verifier};

/// Mode of the directory, and of the files in it.
const DIR_MODE: u32 = 0o750;
const FILE_MODE: u32 = 0o640;
const SUFFIX: &str = ".jsonl";

/// What is open, by session and digest.
pub(super) type Opens = BTreeMap<(u64, ManifestDigest), OpenSince>;

/// Something open, as the log tells it.
#[derive(Debug, Clone)]
pub(super) struct OpenSince {
    pub(super) entry: Entry,
    pub(super) since_ms: u64,
}

/// One file.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub(super) path: PathBuf,
    pub(super) first_seq: u64,
    /// Time of its first line.
    pub(super) began_ms: u64,
    pub(super) bytes: u64,
}

/// A log as it was found.
#[derive(Debug)]
pub(super) struct Found {
    /// Oldest first; the last one is written on unless `is_damaged`.
    pub(super) kept: Vec<Kept>,
    pub(super) at: Position,
    pub(super) last_ms: u64,
    /// Opens that nothing closed.
    pub(super) opens: Opens,
    /// Events lost since the log began.
    pub(super) lost: u64,
    /// The last file has lines that do not belong there, which is no matter of a torn end: nothing is added to it.
    pub(super) is_damaged: bool,
    /// The torn end of the last file could not be cut off yet; its `bytes` say where to.
    pub(super) is_torn: bool,
}

/// Makes the directory if it is not there.
pub(super) fn make_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(DIR_MODE).create(dir)
}

/// The file whose first line has this number.
pub(super) fn path_of(dir: &Path, first_seq: u64) -> PathBuf {
    dir.join(format!("{first_seq:020}{SUFFIX}"))
}

/// Writes a new file that is there whole or not at all, and opens it for more.
pub(super) fn create(path: &Path, head: &[u8]) -> io::Result<File> {
    let fresh = path.with_extension("new");
    let written = (|| {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(FILE_MODE).open(&fresh)?;
        file.write_all(head)?;
        file.sync_data()?;
        fs::rename(&fresh, path)?;
        if let Some(dir) = path.parent() {
            File::open(dir)?.sync_all()?;
        }
        append(path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&fresh);
    }
    written
}

/// Opens a file to go on with it.
pub(super) fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).open(path)
}

/// All files, oldest first. A file whose first line cannot be read counts as empty.
pub(super) fn list(dir: &Path) -> io::Result<Vec<Kept>> {
    let mut kept = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some(first_seq) = name.strip_suffix(SUFFIX).and_then(|digits| digits.parse().ok()) else {
            continue;
        };
        let bytes = fs::metadata(&path)?.len();
        let began_ms = first_line(&path)?.map_or(0, |line| line.time_ms);
        kept.push(Kept { path, first_seq, began_ms, bytes });
    }
    kept.sort_by_key(|one| one.first_seq);
    Ok(kept)
}

/// Reads a log and puts its end right: a line that was being written when the daemon was killed is cut off. It was
/// answered to nobody.
///
/// # Errors
/// The disk's.
pub(super) fn recover(dir: &Path) -> io::Result<Found> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "new") {
            fs::remove_file(path)?;
        }
    }
    let (mut kept, mut is_torn) = (list(dir)?, false);
    while let Some(last) = kept.last_mut() {
        let bytes = fs::read(&last.path)?;
        let read = read(&bytes);
        if read.at.seq == 0 && !read.is_damaged {
            fs::remove_file(&last.path)?;
            kept.pop();
            continue;
        }
        if read.is_damaged {
            warn!(file = %last.path.display(), "the audit log is damaged; `weighlock audit verify` tells where");
        } else if read.good < bytes.len() {
            warn!(file = %last.path.display(), bytes = bytes.len() - read.good, "cutting off a line of the audit log that was not finished");
            let cut = cut(&last.path, read.good as u64);
            is_torn = cut.is_err();
            if let Err(e) = cut {
                warn!(error = %e, "it could not be cut off; that is tried again before the next line");
            }
            last.bytes = read.good as u64;
        }
        let Tail { at, last_ms, opens, lost, is_damaged, .. } = read;
        return Ok(Found { kept, at, last_ms, opens, lost, is_damaged, is_torn });
    }
    let (opens, at) = (Opens::new(), Position::START);
    Ok(Found { kept, at, last_ms: 0, opens, lost: 0, is_damaged: false, is_torn })
}

/// The complete lines of a file's bytes, without their newlines.
pub(super) fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |end| end + 1);
    bytes[..whole].split_inclusive(|b| *b == b'\n').map(|line| &line[..line.len() - 1])
}

/// Notes what a line opens or closes.
pub(super) fn note(opens: &mut Opens, line: &Line) {
    match &line.event {
        Event::Open(entry) => {
            if let Some(digest) = entry.digest {
                let since_ms = entry.since_ms.unwrap_or(line.time_ms);
                let fresh = || OpenSince { entry: entry.clone(), since_ms };
                opens.entry((entry.session, digest)).or_insert_with(fresh);
            }
        }
        Event::Close(closed) => {
            opens.remove(&(closed.session, closed.digest));
        }
        // Whatever an earlier life had open was closed before, if there was room to say so.
        Event::Start { .. } => opens.clear(),
        _ => {}
    }
}

fn cut(path: &Path, bytes: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    file.set_len(bytes)?;
    file.sync_all()
}

struct Tail {
    good: usize,
    at: Position,
    last_ms: u64,
    opens: Opens,
    lost: u64,
    is_damaged: bool,
}

/// Reads the last file: how much of it is good, and where it ends.
fn read(bytes: &[u8]) -> Tail {
    let mut out =
        Tail { good: 0, at: Position::START, last_ms: 0, opens: Opens::new(), lost: 0, is_damaged: false };
    let mut verifier = Verifier::new(None);
    let mut is_bad = false;
    let mut end = 0;
    for raw in lines(bytes) {
        end += raw.len() + 1;
        let line = match (is_bad, verifier.line(raw)) {
            (false, Ok(line)) => {
                out.good = end;
                line
            }
            (_, _) => {
                is_bad = true;
                // Rubbish at the end is what a kill or a power loss leaves; a line after it is not.
                let Ok(line) = Line::parse(raw) else { continue };
                out.is_damaged = true;
                line
            }
        };
        out.at = Position { seq: out.at.seq.max(line.seq), ..Position::after(&line, raw) };
        out.last_ms = line.time_ms;
        match &line.event {
            Event::Gap(gap) => out.lost = out.lost.saturating_add(gap.lost),
            Event::Checkpoint { envelope } => {
                out.lost = envelope.open().map_or(out.lost, |said| said.lost);
            }
            _ => {}
        }
        note(&mut out.opens, &line);
    }
    out
}

fn first_line(path: &Path) -> io::Result<Option<Line>> {
    let mut line = Vec::new();
    let file = File::open(path)?.take(LINE_BYTES_MAX as u64 + 1);
    BufReader::new(file).read_until(b'\n', &mut line)?;
    Ok(Line::parse(line.strip_suffix(b"\n").unwrap_or_default()).ok())
}
