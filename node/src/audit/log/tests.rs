//! The log on a real disk: restarts, torn ends, new files, limits and gaps.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use tempfile::TempDir;
use weighlock_protocol::audit::{
    Caller, Door, Entry, Event, Grounds, Line, TEXT_CHARS_MAX, Verified, Verifier,
};
use weighlock_protocol::statement::Keypair;
use weighlock_protocol::{ClusterId, ManifestDigest};

use super::{Bounds, Log, Why};
use crate::audit::files;

const BOUNDS: Bounds = Bounds { bytes_max: 1 << 20, segment_bytes: 64 << 10, days_max: 400 };

fn key() -> Keypair {
    Keypair::from_seed([1; 32])
}

fn open_with(dir: &TempDir, bounds: Bounds, now_ms: u64) -> Log {
    Log::open(&dir.path().join("audit"), bounds, ClusterId([2; 32]), key(), now_ms).expect("the log opens")
}

fn open(dir: &TempDir, now_ms: u64) -> Log {
    open_with(dir, BOUNDS, now_ms)
}

fn digest(n: u8) -> ManifestDigest {
    ManifestDigest([n; 32])
}

fn entry(n: u8) -> Entry {
    Entry {
        session: 0,
        reference: format!("acme/model:{n}"),
        digest: Some(digest(n)),
        door: Door::Loader,
        caller: Caller { uid: Some(7), ..Caller::default() },
        grounds: Some(Grounds::Ungated),
        reason: None,
        since_ms: None,
    }
}

fn paths(dir: &TempDir) -> Vec<PathBuf> {
    files::list(&dir.path().join("audit")).expect("listed").into_iter().map(|one| one.path).collect()
}

/// All lines and what a verifier says of them.
fn read(dir: &TempDir) -> (Vec<Line>, Verified) {
    let mut verifier = Verifier::new(Some(key().key_id()));
    let mut all = Vec::new();
    for path in paths(dir) {
        let bytes = fs::read(path).expect("read");
        all.extend(files::lines(&bytes).map(|line| verifier.line(line).expect("the chain holds")));
    }
    (all, verifier.seen().clone())
}

fn names(lines: &[Line]) -> Vec<&'static str> {
    let name = |line: &Line| match &line.event {
        Event::Start { .. } => "start",
        Event::Stop {} => "stop",
        Event::Open(entry) if entry.since_ms.is_some() => "carried",
        Event::Open(_) => "open",
        Event::Taken(_) => "taken",
        Event::Refused(_) => "refused",
        Event::Close(_) => "close",
        Event::Gap(_) => "gap",
        Event::Segment(_) => "segment",
        Event::Checkpoint { .. } => "checkpoint",
        Event::Other => "other",
    };
    lines.iter().map(name).collect()
}

#[test]
fn a_killed_daemon_closes_what_it_had_open_as_of_its_last_line() {
    let dir = TempDir::new().expect("a directory");
    let mut log = open(&dir, 1000);
    let session = log.entry(2000, entry(1), Event::Open);
    log.entry(2500, Entry { session, ..entry(2) }, Event::Open);
    log.close(3000, session, digest(2), Why::Closed);
    drop(log);
    let mut log = open(&dir, 9000);
    let other = log.entry(9500, entry(3), Event::Open);
    assert!(other > session, "numbers of connections are not used again");
    log.close(9600, other, digest(3), Why::Gone);
    log.stop(9700);
    let (lines, seen) = read(&dir);
    assert_eq!(
        names(&lines),
        [
            "segment",
            "start",
            "open",
            "open",
            "close",
            "close",
            "start",
            "open",
            "close",
            "stop",
            "checkpoint"
        ]
    );
    let Event::Close(closed) = &lines[5].event else { panic!("{:?}", lines[5]) };
    assert_eq!(
        (closed.reason.as_str(), closed.digest, lines[5].time_ms),
        ("daemon stopped", digest(1), 3000)
    );
    assert_eq!(seen.unsigned_events, 0);
    // Stopped in order: nothing to close at the next start.
    drop(open(&dir, 10_000));
    assert_eq!(names(&read(&dir).0)[11..], ["start"]);
}

#[test]
fn a_torn_end_is_cut_and_a_changed_line_is_kept_for_the_verifier() {
    let dir = TempDir::new().expect("a directory");
    let mut log = open(&dir, 1000);
    log.entry(2000, entry(1), Event::Open);
    drop(log);
    let path = paths(&dir).pop().expect("a file");
    let whole = fs::read(&path).expect("read");
    for torn in [&b"{\"seq\":4,\"prev\":\"sha"[..], b"\0\0\0\0", b"{}\n", b"garbage\n{\"half\n"] {
        fs::write(&path, [&whole[..], torn].concat()).expect("written");
        drop(open(&dir, 5000));
        let (lines, _) = read(&dir);
        assert_eq!(names(&lines), ["segment", "start", "open", "close", "start"], "{torn:?}");
        fs::write(&path, &whole).expect("written");
    }
    // Nothing but a torn first line: the file goes, and the log goes on from the one before.
    let next = files::path_of(path.parent().expect("a directory"), 4);
    fs::write(&next, b"{\"seq\":4").expect("written");
    drop(open(&dir, 5000));
    assert!(!next.exists());
    assert_eq!(names(&read(&dir).0).len(), 5);
    // A line in the middle that somebody changed: everything stays, and what comes now goes into another file.
    let text = fs::read_to_string(&path).expect("read").replacen("model:1", "model:9", 1);
    fs::write(&path, &text).expect("written");
    drop(open(&dir, 6000));
    let all = paths(&dir);
    assert_eq!((all.len(), fs::read_to_string(&all[0]).expect("read")), (2, text));
    let mut verifier = Verifier::new(None);
    let first = fs::read(&all[0]).expect("read");
    assert!(files::lines(&first).any(|line| verifier.line(line).is_err()));
}

#[test]
fn new_files_repeat_what_is_open_and_the_oldest_go() {
    let dir = TempDir::new().expect("a directory");
    let bounds = Bounds { bytes_max: 256 << 10, ..BOUNDS };
    let mut log = open_with(&dir, bounds, 1);
    let long = log.entry(2, entry(1), Event::Open);
    for n in 0..2000u64 {
        let session = log.entry(10 + n, entry(2), Event::Open);
        log.close(11 + n, session, digest(2), Why::Closed);
    }
    let numbers = log.numbers();
    assert!(numbers.bytes <= bounds.bytes_max, "{} bytes", numbers.bytes);
    let on_disk: u64 = paths(&dir).iter().map(|path| fs::metadata(path).expect("there").len()).sum();
    assert_eq!(numbers.bytes, on_disk);
    let (lines, seen) = read(&dir);
    assert!(seen.first_seq > 1 && paths(&dir).len() > 1, "nothing went: {seen:?}");
    // Each file ends signed, and begins with where the chain goes on and what is open.
    assert_eq!(names(&lines)[..2], ["segment", "carried"]);
    let Event::Segment(last) =
        &lines.iter().rfind(|line| matches!(line.event, Event::Segment(_))).expect("one").event
    else {
        panic!("not a segment")
    };
    assert!(last.carried >= 1 && last.kept_from > 1, "{last:?}");
    let second = lines[1..].iter().position(|line| matches!(line.event, Event::Segment(_))).expect("one");
    assert_eq!(names(&lines)[second], "checkpoint");
    let Event::Open(carried) = &lines[1].event else { panic!("{:?}", lines[1]) };
    assert_eq!((carried.session, carried.since_ms), (long, Some(2)));
    // A daemon that starts again still knows it.
    drop(log);
    drop(open_with(&dir, bounds, 5000));
    let (lines, _) = read(&dir);
    assert_eq!(names(&lines[lines.len() - 2..]), ["close", "start"]);
}

#[test]
fn many_open_artifacts_do_not_drive_the_log_out() {
    let dir = TempDir::new().expect("a directory");
    let bounds = Bounds { bytes_max: 96 << 10, segment_bytes: 16 << 10, days_max: 400 };
    let mut log = open_with(&dir, bounds, 1000);
    // More than a file holds, all open at once.
    for n in 0..200 {
        log.entry(2000 + n, Entry { reference: format!("acme/model:{n}"), ..entry(n as u8) }, Event::Open);
    }
    for n in 0..20 {
        log.entry(3000 + n, entry(7), Event::Refused);
    }
    let (lines, seen) = read(&dir);
    let refused = names(&lines).iter().filter(|name| **name == "refused").count();
    assert_eq!((refused, seen.lost), (20, 0), "what came last is there");
    let told = |line: &Line| match &line.event {
        Event::Segment(segment) => Some((segment.carried, segment.not_carried)),
        _ => None,
    };
    let (carried, left_out) = lines.iter().rev().find_map(told).expect("a segment");
    assert!(carried > 10 && left_out > 0, "{carried} {left_out}");
}

#[test]
fn files_older_than_the_limit_in_days_go() {
    let day = 86_400_000;
    let dir = TempDir::new().expect("a directory");
    let mut log = open_with(&dir, Bounds { days_max: 2, ..BOUNDS }, 0);
    for n in 1..=6u64 {
        log.entry(n * (day + 10), entry(1), Event::Refused);
        log.tick(n * (day + 10));
    }
    let (lines, seen) = read(&dir);
    assert!(seen.first_seq > 1 && lines[0].time_ms >= 3 * day, "{seen:?}");
}

#[test]
fn a_full_disk_loses_entries_and_says_how_many() {
    let dir = TempDir::new().expect("a directory");
    let mut log = open(&dir, 1000);
    let kept = log.entry(2000, entry(1), Event::Open);
    let full = Arc::new(OpenOptions::new().write(true).open("/dev/full").expect("a full device"));
    let file = std::mem::replace(&mut log.active.as_mut().expect("a file").file, full);
    let lost = log.entry(3000, entry(2), Event::Open);
    log.entry(3500, entry(3), Event::Refused);
    log.close(4000, kept, digest(1), Why::Closed);
    log.close(4100, lost, digest(2), Why::Closed);
    let numbers = log.numbers();
    assert_eq!(numbers.lost, 3);
    assert!(numbers.failing.is_some_and(|why| why.contains("No space left")));
    // A part of a line that was written before the disk was full.
    (&*file).write_all(b"{\"seq\":").expect("written");
    let active = log.active.as_mut().expect("a file");
    (active.file, active.is_torn) = (file, true);
    log.tick(9000);
    log.entry(9500, entry(4), Event::Open);
    let (lines, seen) = read(&dir);
    assert_eq!(names(&lines)[2..], ["open", "gap", "close", "open"]);
    let Event::Gap(gap) = &lines[3].event else { panic!("{:?}", lines[3]) };
    assert_eq!((gap.lost, gap.from_ms, gap.until_ms, seen.lost), (3, 3000, 4000, 3));
    let Event::Close(closed) = &lines[4].event else { panic!("{:?}", lines[4]) };
    assert_eq!(closed.reason, "closed (written late)");
    assert_eq!(log.numbers().lost, 3);
    // The count outlives the daemon.
    log.stop(9900);
    drop(log);
    assert_eq!(open(&dir, 10_000).numbers().lost, 3);
}

#[test]
fn an_end_that_cannot_be_cut_off_yet_is_cut_off_before_the_next_line() {
    let dir = TempDir::new().expect("a directory");
    let mut log = open(&dir, 1000);
    log.entry(2000, entry(1), Event::Open);
    drop(log);
    let path = paths(&dir).pop().expect("a file");
    OpenOptions::new().append(true).open(&path).expect("opened").write_all(b"{\"seq\":").expect("written");
    let mut found = files::recover(&dir.path().join("audit")).expect("recovered");
    assert!(!found.is_torn);
    // As it is where the disk lets nobody cut.
    OpenOptions::new().append(true).open(&path).expect("opened").write_all(b"{\"seq\":").expect("written");
    found.is_torn = true;
    let mut log = open(&TempDir::new().expect("a directory"), 1000);
    log.dir = dir.path().join("audit");
    log.go_on(found).expect("it goes on");
    log.entry(3000, entry(2), Event::Open);
    let (lines, seen) = read(&dir);
    assert_eq!(names(&lines)[2..], ["open", "close", "open"]);
    assert_eq!(seen.lost, 0);
}

#[test]
fn a_log_that_cannot_be_read_is_an_error_and_is_not_begun_anew() {
    let dir = TempDir::new().expect("a directory");
    drop(open(&dir, 1000));
    let before: Vec<_> = paths(&dir).iter().map(|path| fs::read(path).expect("read")).collect();
    // A file that no line can be: a directory in its place.
    let audit = dir.path().join("audit");
    fs::create_dir(files::path_of(&audit, 99)).expect("made");
    assert!(Log::open(&audit, BOUNDS, ClusterId([2; 32]), key(), 2000).is_err());
    fs::remove_dir(files::path_of(&audit, 99)).expect("removed");
    let after: Vec<_> = paths(&dir).iter().map(|path| fs::read(path).expect("read")).collect();
    assert_eq!(before, after);
}

#[test]
fn a_disk_that_is_full_from_the_start_keeps_nobody_waiting() {
    let dir = TempDir::new().expect("a directory");
    let mut log = open(&dir, 1000);
    drop(log.active.take());
    // A file in the way: nothing can be made there.
    let audit = dir.path().join("audit");
    fs::remove_dir_all(&audit).expect("removed");
    File::create(&audit).expect("made");
    assert!(log.entry(2000, entry(1), Event::Open) > 0);
    assert_eq!(log.numbers().lost, 1);
    fs::remove_file(&audit).expect("removed");
    log.entry(3000, entry(2), Event::Open);
    assert_eq!(names(&read(&dir).0), ["segment", "gap", "open"]);
}

#[test]
fn the_longest_texts_fit_a_line() {
    let dir = TempDir::new().expect("a directory");
    let mut log = open(&dir, 1000);
    // Characters that take most bytes in JSON.
    let reference = "\u{10ffff}".repeat(TEXT_CHARS_MAX);
    let long = Some(reference.clone());
    let quoted = "\"".repeat(super::REASON_CHARS_MAX);
    let caller = Caller { process: long.clone(), runtime: long.clone(), pod: long, ..Caller::default() };
    log.entry(1, Entry { reference, caller, reason: Some(quoted), ..entry(1) }, Event::Refused);
    assert_eq!((log.numbers().lost, names(&read(&dir).0).last()), (0, Some(&"refused")));
}

#[test]
fn lines_are_signed_after_a_while_and_after_many() {
    let dir = TempDir::new().expect("a directory");
    let mut log = open(&dir, 1000);
    for n in 0..super::UNSIGNED_LINES_MAX {
        log.entry(n, entry(1), Event::Refused);
    }
    assert_eq!(read(&dir).1.checkpoints, 1);
    log.entry(5000, entry(1), Event::Refused);
    log.tick(5001);
    assert_eq!(read(&dir).1.checkpoints, 1, "not yet");
    log.unsigned_since = std::time::Instant::now().checked_sub(super::UNSIGNED_MAX);
    log.tick(5002);
    assert_eq!(read(&dir).1.checkpoints, 2);
    assert!(log.seal(5003).is_none(), "nothing new");
}
