//! Lines that carry the hash of the line before: how they are made, and how a stretch of them is checked.

use serde::{Deserialize, Serialize};

use super::LINE_BYTES_MAX;
use super::checkpoint::{Checkpoint, CheckpointError};
use super::entry::Event;
use crate::id::{ClusterId, KeyId, Sha256};

/// One line of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Its number, 1 for the first line that a host ever wrote.
    pub seq: u64,
    /// SHA-256 of the line before, without its newline; zeros for the first.
    pub prev: Sha256,
    /// By the host's clock, in milliseconds since 1970. Clocks may be set back: the numbers tell the order.
    pub time_ms: u64,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// The end of a log: what the next line goes on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Number of the last line; 0 if there is none.
    pub seq: u64,
    /// SHA-256 of the last line.
    pub head: Sha256,
}

/// Why bytes are no line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// Over [`LINE_BYTES_MAX`].
    #[error("it has {0} bytes, more than {LINE_BYTES_MAX}")]
    TooLong(usize),
    /// Not JSON, or not a line's fields.
    #[error("{0}")]
    Form(String),
}

impl Position {
    /// Before the first line.
    pub const START: Position = Position { seq: 0, head: Sha256([0; 32]) };

    /// The line that says `event` next.
    pub fn next(&self, time_ms: u64, event: Event) -> Line {
        Line { seq: self.seq + 1, prev: self.head, time_ms, event }
    }

    /// The end after `line`, whose bytes are `bytes`.
    pub fn after(line: &Line, bytes: &[u8]) -> Self {
        Self { seq: line.seq, head: Sha256::of(bytes) }
    }

    /// What a host signs at this point.
    pub fn checkpoint(&self, cluster: ClusterId, host: KeyId, time_ms: u64, lost: u64) -> Checkpoint {
        Checkpoint { cluster, host, seq: self.seq, head: self.head, time_ms, lost }
    }
}

impl Line {
    /// Its bytes, without a newline.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a line's fields always serialize")
    }

    /// Reads a line. Nothing about the chain or a signature is proven.
    ///
    /// # Errors
    /// Too long, or of another form.
    pub fn parse(bytes: &[u8]) -> Result<Self, LineError> {
        if bytes.len() > LINE_BYTES_MAX {
            return Err(LineError::TooLong(bytes.len()));
        }
        serde_json::from_slice(bytes).map_err(|e| LineError::Form(e.to_string()))
    }
}

/// What is wrong with a log, and where. Lines are counted from 1, as in the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Not a line at all.
    #[error("line {line} is not a line of an audit log: {reason}")]
    Unreadable {
        /// Where.
        line: u64,
        /// Why.
        reason: LineError,
    },
    /// A number is followed by one that is too high.
    #[error("lines are missing before line {line} ({missing} of them)")]
    Missing {
        /// Where.
        line: u64,
        /// How many.
        missing: u64,
    },
    /// A number is followed by one that is not higher.
    #[error("line {line} is out of order: number {seq} follows number {before}")]
    Order {
        /// Where.
        line: u64,
        /// Its number.
        seq: u64,
        /// The number before.
        before: u64,
    },
    /// The hash in a line is not that of the line before.
    #[error("line {before} is not as it was written, or line {line} is not: their hashes do not agree")]
    Changed {
        /// The line before.
        before: u64,
        /// The line that carries another hash.
        line: u64,
    },
    /// A checkpoint that is none.
    #[error("the checkpoint in line {line} does not count: {reason}")]
    Checkpoint {
        /// Where.
        line: u64,
        /// Why.
        reason: String,
    },
    /// Signed or written by another host than the one that is expected.
    #[error("line {line} is by host {found}, not by {expected}")]
    Host {
        /// Where.
        line: u64,
        /// Who.
        found: KeyId,
        /// Who should.
        expected: KeyId,
    },
}

/// Checks a stretch of a log, line by line.
#[derive(Debug, Clone, Default)]
pub struct Verifier {
    host: Option<KeyId>,
    cluster: Option<ClusterId>,
    last: Option<Position>,
    seen: Verified,
}

/// What was checked. Only what [`signed_through`](Self::signed_through) covers is proven.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Verified {
    /// The host that signed; none if nobody did.
    pub host: Option<KeyId>,
    /// Lines in all.
    pub lines: u64,
    /// Opens, copies, refusals and closes among them.
    pub events: u64,
    /// Number of the first line.
    pub first_seq: u64,
    /// Number of the last line.
    pub last_seq: u64,
    /// Time of the first line, in milliseconds since 1970.
    pub from_ms: u64,
    /// Time of the last line.
    pub until_ms: u64,
    /// Checkpoints.
    pub checkpoints: u64,
    /// Number of the last line that a checkpoint covers or is; 0 if nothing is signed.
    pub signed_through: u64,
    /// Events after it.
    pub unsigned_events: u64,
    /// Events that the host says it could not write.
    pub lost: u64,
}

impl Verifier {
    /// Takes checkpoints of this host only; of whichever host comes first if it is `None`.
    pub fn new(host: Option<KeyId>) -> Self {
        Self { host, ..Self::default() }
    }

    /// Checks the next line, given without its newline.
    ///
    /// # Errors
    /// What is wrong with it, or with the line before it.
    pub fn line(&mut self, bytes: &[u8]) -> Result<Line, Fault> {
        let number = self.seen.lines + 1;
        let line = Line::parse(bytes).map_err(|reason| Fault::Unreadable { line: number, reason })?;
        if let Some(last) = self.last {
            match line.seq {
                seq if seq <= last.seq => {
                    return Err(Fault::Order { line: number, seq, before: last.seq });
                }
                seq if seq > last.seq + 1 => {
                    return Err(Fault::Missing { line: number, missing: seq - last.seq - 1 });
                }
                _ if line.prev != last.head => {
                    return Err(Fault::Changed { before: number - 1, line: number });
                }
                _ => {}
            }
        }
        self.event(number, &line, bytes)?;
        let seen = &mut self.seen;
        if seen.lines == 0 {
            (seen.first_seq, seen.from_ms) = (line.seq, line.time_ms);
        }
        seen.lines = number;
        (seen.last_seq, seen.until_ms) = (line.seq, line.time_ms);
        self.last = Some(Position::after(&line, bytes));
        Ok(line)
    }

    /// What was checked so far.
    pub fn seen(&self) -> &Verified {
        &self.seen
    }

    fn event(&mut self, number: u64, line: &Line, bytes: &[u8]) -> Result<(), Fault> {
        match &line.event {
            Event::Open(entry) if entry.since_ms.is_some() => {}
            Event::Open(_) | Event::Taken(_) | Event::Refused(_) | Event::Close(_) => {
                self.seen.events += 1;
                self.seen.unsigned_events += 1;
            }
            Event::Gap(gap) => self.seen.lost = self.seen.lost.saturating_add(gap.lost),
            Event::Segment(segment) => self.is_by(number, segment.host, segment.cluster)?,
            Event::Checkpoint { envelope } => {
                let fault = |reason: String| Fault::Checkpoint { line: number, reason };
                let said = envelope.open().map_err(|e: CheckpointError| fault(e.to_string()))?;
                self.is_by(number, said.host, said.cluster)?;
                // Nothing signs this line's own bytes but what it carries, so it may carry nothing else.
                if (said.seq + 1, said.head, said.time_ms) != (line.seq, line.prev, line.time_ms)
                    || line.to_json() != bytes
                {
                    return Err(fault("it was signed for another place".into()));
                }
                self.seen.host = Some(said.host);
                self.seen.checkpoints += 1;
                self.seen.signed_through = line.seq;
                self.seen.unsigned_events = 0;
            }
            Event::Start { .. } | Event::Stop {} | Event::Other => {}
        }
        Ok(())
    }

    fn is_by(&mut self, line: u64, found: KeyId, cluster: ClusterId) -> Result<(), Fault> {
        let expected = *self.host.get_or_insert(found);
        if found != expected {
            return Err(Fault::Host { line, found, expected });
        }
        if *self.cluster.get_or_insert(cluster) != cluster {
            return Err(Fault::Checkpoint { line, reason: "it belongs to another cluster".into() });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::audit::{Caller, Closed, Door, Entry, Gap, Grounds, Segment};
    use crate::id::ManifestDigest;
    use crate::statement::Keypair;

    fn key() -> Keypair {
        Keypair::from_seed([5; 32])
    }

    fn entry(n: u64) -> Entry {
        Entry {
            session: n,
            reference: format!("acme/model:{n}"),
            digest: Some(ManifestDigest([n as u8; 32])),
            door: Door::Loader,
            caller: Caller { uid: Some(1000), process: Some("python3".into()), ..Caller::default() },
            grounds: Some(Grounds::Ungated),
            reason: None,
            since_ms: None,
        }
    }

    /// A log with one checkpoint in the middle and one at the end.
    fn log() -> Vec<Vec<u8>> {
        let cluster = ClusterId([9; 32]);
        let closed = Closed {
            session: 1,
            digest: ManifestDigest([1; 32]),
            reference: "acme/model:1".into(),
            reason: "closed".into(),
        };
        let segment = Segment { cluster, host: key().key_id(), kept_from: 1, carried: 0, not_carried: 0 };
        let gap = Gap { lost: 3, from_ms: 6, until_ms: 7, reason: "no space".into() };
        let events = [
            Some(Event::Segment(segment)),
            Some(Event::Start { version: "1".into() }),
            Some(Event::Open(entry(1))),
            None,
            Some(Event::Refused(Entry { reason: Some("no evidence".into()), grounds: None, ..entry(2) })),
            Some(Event::Gap(gap)),
            Some(Event::Close(closed)),
            Some(Event::Taken(Entry { door: Door::Pull, ..entry(3) })),
            Some(Event::Stop {}),
            None,
        ];
        let mut at = Position::START;
        let line = |(n, event): (usize, Option<Event>)| {
            let n = n as u64;
            let event = event.unwrap_or_else(|| Event::Checkpoint {
                envelope: at.checkpoint(cluster, key().key_id(), n, 0).sign(&key()),
            });
            let line = at.next(n, event);
            let bytes = line.to_json();
            at = Position::after(&line, &bytes);
            bytes
        };
        events.into_iter().enumerate().map(line).collect()
    }

    fn verify(lines: &[Vec<u8>]) -> Result<Verified, Fault> {
        let mut verifier = Verifier::new(Some(key().key_id()));
        for line in lines {
            verifier.line(line)?;
        }
        Ok(verifier.seen().clone())
    }

    #[test]
    fn a_log_and_every_end_of_it_verify() {
        let lines = log();
        let seen = verify(&lines).expect("it verifies");
        assert_eq!((seen.lines, seen.events, seen.lost), (10, 4, 3));
        assert_eq!((seen.signed_through, seen.unsigned_events, seen.checkpoints), (10, 0, 2));
        for from in 1..lines.len() {
            assert_eq!(verify(&lines[from..]).expect("a part verifies").first_seq, from as u64 + 1);
        }
        let unsigned = verify(&lines[..9]).expect("it verifies");
        assert_eq!((unsigned.signed_through, unsigned.unsigned_events), (4, 3));
    }

    #[test]
    fn removed_and_moved_lines_are_found() {
        let lines = log();
        for n in 1..lines.len() - 1 {
            let mut shorter = lines.clone();
            shorter.remove(n);
            assert_eq!(verify(&shorter), Err(Fault::Missing { line: n as u64 + 1, missing: 1 }));
            let mut swapped = lines.clone();
            swapped.swap(n, n - 1);
            assert!(verify(&swapped).is_err(), "{n} was swapped");
        }
        let mut doubled = lines.clone();
        doubled.insert(3, lines[2].clone());
        assert_eq!(verify(&doubled), Err(Fault::Order { line: 4, seq: 3, before: 3 }));
    }

    #[test]
    fn another_host_and_a_forged_checkpoint_do_not_count() {
        let lines = log();
        let other = Keypair::from_seed([6; 32]).key_id();
        let mut verifier = Verifier::new(Some(other));
        assert!(matches!(verifier.line(&lines[0]), Err(Fault::Host { line: 1, .. })));
        // A whole log, written anew without the key: nothing in it is signed.
        let unsigned: Vec<Vec<u8>> = {
            let mut at = Position::START;
            let events = lines.iter().map(|line| Line::parse(line).expect("a line").event);
            let without = events.filter(|event| !matches!(event, Event::Checkpoint { .. }));
            let line = |event| {
                let line = at.next(1, event);
                at = Position::after(&line, &line.to_json());
                line.to_json()
            };
            without.map(line).collect()
        };
        assert_eq!(verify(&unsigned).expect("a chain").signed_through, 0);
        // A checkpoint from elsewhere in the log.
        let mut moved = lines.clone();
        let at = Position::after(&Line::parse(&lines[8]).expect("a line"), &lines[8]);
        let event = Line::parse(&lines[3]).expect("a line").event;
        moved[9] = at.next(9, event).to_json();
        assert!(matches!(verify(&moved), Err(Fault::Checkpoint { line: 10, .. })));
    }

    #[test]
    fn events_of_a_later_release_are_read_past() {
        let line = br#"{"seq":1,"prev":"sha256:0000000000000000000000000000000000000000000000000000000000000000","time_ms":5,"event":"moved","to":"elsewhere"}"#;
        assert_eq!(Line::parse(line).map(|line| line.event), Ok(Event::Other));
    }

    proptest! {
        #[test]
        fn any_changed_byte_is_found(line in 0usize..10, at in any::<prop::sample::Index>(), flip in 1u8..=255) {
            let mut lines = log();
            let at = at.index(lines[line].len());
            let signed = verify(&lines).expect("a log").signed_through;
            lines[line][at] ^= flip;
            match verify(&lines) {
                Err(_) => {}
                // A last checkpoint by another name is an event of a later release: less is signed, as if it were cut off.
                Ok(seen) => prop_assert!(line == 9 && seen.signed_through < signed, "{seen:?}"),
            }
        }

        #[test]
        fn rubbish_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Verifier::new(None).line(&bytes);
        }
    }
}
