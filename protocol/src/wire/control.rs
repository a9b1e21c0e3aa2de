//! Control plane messages: gossip and the request-response exchange between two hosts.
//!
//! Every message is one version byte and then postcard. A new variant or field means a new version byte,
//! so a host of the previous release says "unknown version" instead of taking the message for rubbish.
//! Messages that the first release knows keep its byte, so that the two understand each other in all else.

use crate::id::{ManifestDigest, StatementId};
use crate::manifest::MANIFEST_BYTES_MAX;
pub use crate::wire::blob::Blob;
pub use crate::wire::host::{
    HOST_RECORD_BYTES_MAX, Heard, HeldManifest, HostRecord, HostRecordError, SignedHostRecord,
};

/// Version byte of what the first release knows.
pub const VERSION: u8 = 1;
/// Version byte of [`Request::Audit`] and [`Response::Audit`].
pub const VERSION_AUDIT: u8 = 2;
/// Largest gossip message, in bytes, envelope of the gossip protocol included.
pub const GOSSIP_BYTES_MAX: usize = 512 << 10;
/// What is left of [`GOSSIP_BYTES_MAX`] for our own payload, in bytes.
pub const GOSSIP_PAYLOAD_BYTES_MAX: usize = GOSSIP_BYTES_MAX - (4 << 10);
/// Largest manifest that travels inside a gossip message, in bytes; larger ones are asked for.
pub const MANIFEST_INLINE_BYTES_MAX: usize = 256 << 10;
/// Largest statement envelope that hosts exchange, in bytes.
pub const STATEMENT_BYTES_MAX: usize = 256 << 10;
/// Statements in one message, at most.
pub const STATEMENTS_MAX: usize = 1024;
/// Statement ids in one message, at most.
pub const IDS_MAX: usize = 8192;
/// Largest summary of a statement set, in bytes.
pub const SUMMARY_BYTES_MAX: usize = 64 << 10;
/// Host records in one [`Hello`], at most, the sender's own aside.
pub const HELLO_RECORDS_MAX: usize = 64;
/// Largest question about an audit log, in bytes.
pub const AUDIT_QUERY_BYTES_MAX: usize = 4 << 10;
/// Largest answer to one, in bytes; more is asked for page by page.
pub const AUDIT_ANSWER_BYTES_MAX: usize = 1 << 20;
/// Largest request, in bytes.
pub const REQUEST_BYTES_MAX: usize = 1 << 20;
/// Largest response, in bytes: a manifest and its frame.
pub const RESPONSE_BYTES_MAX: usize = MANIFEST_BYTES_MAX + 1024;

/// Why bytes from a peer are not a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The first byte names a version that this release does not know. The peer is newer, not hostile.
    #[error("message version {0} is not known here; update this host")]
    Version(u8),
    /// Not a message at all: truncated, trailing bytes, or an unknown variant.
    #[error("not a {what} message: {reason}")]
    Malformed {
        /// Kind of message that was expected.
        what: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Well-formed, but larger than a limit.
    #[error("{what} message holds {found} {item}, at most {limit} are allowed")]
    TooMany {
        /// Kind of message.
        what: &'static str,
        /// What there is too much of.
        item: &'static str,
        /// How much there is.
        found: usize,
        /// How much is allowed.
        limit: usize,
    },
}

/// What is pushed to everyone.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Gossip {
    /// New signed statements, and the manifest that a `publish` among them names if it is small.
    Statements {
        /// Exact envelope bytes, at most [`STATEMENTS_MAX`].
        statements: Vec<Blob>,
        /// Exact manifest bytes, at most [`MANIFEST_INLINE_BYTES_MAX`].
        manifest: Option<Blob>,
    },
    /// What a host says about itself.
    Host(SignedHostRecord),
}

/// What one host asks another.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Request {
    /// Introduces the asker; the answer is [`Response::Hello`].
    Hello(Hello),
    /// Summary of the asker's statement set; the answer is [`Response::Differing`].
    Summary {
        /// Opaque to the wire, at most [`SUMMARY_BYTES_MAX`].
        summary: Blob,
    },
    /// Ids in these buckets; the answer is [`Response::Ids`], one page of it.
    Ids {
        /// Bucket numbers in strictly ascending order.
        buckets: Vec<u8>,
        /// In the first of `buckets`, only ids greater than this one.
        after: Option<StatementId>,
    },
    /// Statements by id; the answer is [`Response::Statements`].
    Statements {
        /// At most [`STATEMENTS_MAX`].
        ids: Vec<StatementId>,
    },
    /// Statements that the asked host lacks; the answer is [`Response::Pushed`].
    Push {
        /// Exact envelope bytes, at most [`STATEMENTS_MAX`].
        statements: Vec<Blob>,
    },
    /// A manifest; the answer is [`Response::Manifest`].
    Manifest {
        /// Which one.
        digest: ManifestDigest,
    },
    /// A question about the asked host's audit log; the answer is [`Response::Audit`]. Travels under
    /// [`VERSION_AUDIT`].
    Audit {
        /// JSON, opaque to the wire, at most [`AUDIT_QUERY_BYTES_MAX`].
        query: Blob,
    },
}

/// What the other answers.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Response {
    /// Introduces the asked host in turn.
    Hello(Hello),
    /// Numbers of the buckets in which the two sets differ, strictly ascending; none if they are equal.
    Differing {
        /// At most 256.
        buckets: Vec<u8>,
    },
    /// One page of ids, in the order of the buckets asked for.
    Ids {
        /// A prefix of the buckets asked for; all but the last are complete. At most [`IDS_MAX`] ids.
        buckets: Vec<BucketIds>,
    },
    /// The statements that fit, in the order asked for; ids that the host does not have are left out.
    Statements {
        /// Exact envelope bytes.
        statements: Vec<Blob>,
        /// How many of the ids asked for are dealt with; the asker asks again for the others.
        done: u32,
    },
    /// The push was taken in.
    Pushed {
        /// How many of the statements were new and valid.
        accepted: u32,
    },
    /// The manifest, if this host has it.
    Manifest {
        /// Exact bytes, at most [`MANIFEST_BYTES_MAX`].
        bytes: Option<Blob>,
    },
    /// Too much to do: ask again later, or ask someone else.
    Busy,
    /// One page about the audit log. Travels under [`VERSION_AUDIT`].
    Audit {
        /// JSON, opaque to the wire, at most [`AUDIT_ANSWER_BYTES_MAX`].
        answer: Blob,
    },
}

/// What two hosts tell each other on connecting.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Hello {
    /// The sender's own record, if it has announced one.
    pub own: Option<SignedHostRecord>,
    /// Fresh records of other hosts, at most [`HELLO_RECORDS_MAX`].
    pub known: Vec<Heard>,
}

/// Ids of one bucket of a statement set.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct BucketIds {
    /// Bucket number.
    pub bucket: u8,
    /// Strictly ascending.
    pub ids: Vec<StatementId>,
    /// Whether these are all ids of the bucket (after the id that the asker gave).
    pub complete: bool,
}

impl Gossip {
    /// The message's bytes.
    pub fn encode(&self) -> Vec<u8> {
        encode(VERSION, self)
    }

    /// Reads a message and checks its limits.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let what = "gossip";
        at_most(what, "bytes", bytes.len(), GOSSIP_BYTES_MAX)?;
        let message = decode::<Self>(what, bytes, |_| VERSION)?;
        match &message {
            Gossip::Statements { statements, manifest } => {
                check_statements(what, statements)?;
                if let Some(manifest) = manifest {
                    at_most(what, "manifest bytes", manifest.0.len(), MANIFEST_INLINE_BYTES_MAX)?;
                }
            }
            Gossip::Host(record) => record.check_size(what)?,
        }
        Ok(message)
    }
}

impl Request {
    /// The message's bytes.
    pub fn encode(&self) -> Vec<u8> {
        encode(self.version(), self)
    }

    /// Reads a message and checks its limits.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let what = "request";
        at_most(what, "bytes", bytes.len(), REQUEST_BYTES_MAX)?;
        let message = decode(what, bytes, Self::version)?;
        match &message {
            Request::Hello(hello) => hello.check(what)?,
            Request::Summary { summary } => {
                at_most(what, "summary bytes", summary.0.len(), SUMMARY_BYTES_MAX)?;
            }
            Request::Ids { buckets, .. } => ascending(what, buckets)?,
            Request::Statements { ids } => at_most(what, "ids", ids.len(), STATEMENTS_MAX)?,
            Request::Push { statements } => check_statements(what, statements)?,
            Request::Manifest { .. } => {}
            Request::Audit { query } => at_most(what, "query bytes", query.0.len(), AUDIT_QUERY_BYTES_MAX)?,
        }
        Ok(message)
    }

    fn version(&self) -> u8 {
        if matches!(self, Request::Audit { .. }) { VERSION_AUDIT } else { VERSION }
    }
}

impl Response {
    /// The message's bytes.
    pub fn encode(&self) -> Vec<u8> {
        encode(self.version(), self)
    }

    /// Reads a message and checks its limits.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let what = "response";
        at_most(what, "bytes", bytes.len(), RESPONSE_BYTES_MAX)?;
        let message = decode(what, bytes, Self::version)?;
        match &message {
            Response::Hello(hello) => hello.check(what)?,
            Response::Differing { buckets } => ascending(what, buckets)?,
            Response::Ids { buckets } => {
                let ids = buckets.iter().map(|b| b.ids.len()).sum();
                at_most(what, "ids", ids, IDS_MAX)?;
                let numbers: Vec<u8> = buckets.iter().map(|b| b.bucket).collect();
                ascending(what, &numbers)?;
                for bucket in buckets {
                    ascending(what, &bucket.ids)?;
                }
            }
            Response::Statements { statements, .. } => check_statements(what, statements)?,
            Response::Manifest { bytes: Some(bytes) } => {
                at_most(what, "manifest bytes", bytes.0.len(), MANIFEST_BYTES_MAX)?;
            }
            Response::Audit { answer } => {
                at_most(what, "answer bytes", answer.0.len(), AUDIT_ANSWER_BYTES_MAX)?;
            }
            Response::Pushed { .. } | Response::Manifest { bytes: None } | Response::Busy => {}
        }
        Ok(message)
    }

    fn version(&self) -> u8 {
        if matches!(self, Response::Audit { .. }) { VERSION_AUDIT } else { VERSION }
    }
}

impl Hello {
    fn check(&self, what: &'static str) -> Result<(), WireError> {
        at_most(what, "host records", self.known.len(), HELLO_RECORDS_MAX)?;
        let records = self.own.iter().chain(self.known.iter().map(|h| &h.record));
        records.into_iter().try_for_each(|r| r.check_size(what))
    }
}

fn encode<T: serde::Serialize>(version: u8, message: &T) -> Vec<u8> {
    postcard::to_extend(message, vec![version]).expect("writing our own types to memory cannot fail")
}

fn decode<T: serde::de::DeserializeOwned>(
    what: &'static str,
    bytes: &[u8],
    version_of: impl FnOnce(&T) -> u8,
) -> Result<T, WireError> {
    let (&version, body) = bytes.split_first().ok_or(WireError::Malformed { what, reason: "it is empty" })?;
    if !(VERSION..=VERSION_AUDIT).contains(&version) {
        return Err(WireError::Version(version));
    }
    let (message, rest) = postcard::take_from_bytes(body)
        .map_err(|_| WireError::Malformed { what, reason: "its fields do not parse" })?;
    if !rest.is_empty() {
        return Err(WireError::Malformed { what, reason: "bytes follow its end" });
    }
    if version_of(&message) != version {
        return Err(WireError::Malformed { what, reason: "its version byte is that of other messages" });
    }
    Ok(message)
}

pub(super) fn at_most(
    what: &'static str,
    item: &'static str,
    found: usize,
    limit: usize,
) -> Result<(), WireError> {
    if found > limit {
        return Err(WireError::TooMany { what, item, found, limit });
    }
    Ok(())
}

fn check_statements(what: &'static str, statements: &[Blob]) -> Result<(), WireError> {
    at_most(what, "statements", statements.len(), STATEMENTS_MAX)?;
    statements.iter().try_for_each(|s| at_most(what, "bytes of a statement", s.0.len(), STATEMENT_BYTES_MAX))
}

fn ascending<T: Ord>(what: &'static str, items: &[T]) -> Result<(), WireError> {
    if items.windows(2).any(|pair| pair[0] >= pair[1]) {
        return Err(WireError::Malformed { what, reason: "a list is not in strictly ascending order" });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn samples() -> Vec<(&'static str, Vec<u8>)> {
        let record = crate::wire::host::tests::sample();
        let id = StatementId([7; 32]);
        let hello =
            Hello { own: Some(record.clone()), known: vec![Heard { record: record.clone(), age_ms: 1500 }] };
        let statements = vec![Blob(b"one".to_vec()), Blob(b"two".to_vec())];
        vec![
            (
                "gossip-statements",
                Gossip::Statements { statements: statements.clone(), manifest: Some(Blob(b"{}".to_vec())) }
                    .encode(),
            ),
            ("gossip-host", Gossip::Host(record).encode()),
            ("request-hello", Request::Hello(Hello::default()).encode()),
            ("request-summary", Request::Summary { summary: Blob(vec![1, 2, 3]) }.encode()),
            ("request-ids", Request::Ids { buckets: vec![0, 255], after: Some(id) }.encode()),
            ("request-statements", Request::Statements { ids: vec![id] }.encode()),
            ("request-push", Request::Push { statements: statements.clone() }.encode()),
            ("request-manifest", Request::Manifest { digest: ManifestDigest([9; 32]) }.encode()),
            ("response-hello", Response::Hello(hello).encode()),
            ("response-differing", Response::Differing { buckets: vec![3, 4] }.encode()),
            (
                "response-ids",
                Response::Ids { buckets: vec![BucketIds { bucket: 3, ids: vec![id], complete: false }] }
                    .encode(),
            ),
            ("response-statements", Response::Statements { statements, done: 300 }.encode()),
            ("response-pushed", Response::Pushed { accepted: 2 }.encode()),
            ("response-manifest", Response::Manifest { bytes: Some(Blob(b"{}".to_vec())) }.encode()),
            ("response-busy", Response::Busy.encode()),
        ]
    }

    fn samples_of_the_second_version() -> Vec<(&'static str, Vec<u8>)> {
        let json = Blob(b"{}".to_vec());
        vec![
            ("request-audit", Request::Audit { query: json.clone() }.encode()),
            ("response-audit", Response::Audit { answer: json }.encode()),
        ]
    }

    fn re_encode(name: &str, bytes: &[u8]) -> Result<Vec<u8>, WireError> {
        Ok(match name.split('-').next() {
            Some("gossip") => Gossip::decode(bytes)?.encode(),
            Some("request") => Request::decode(bytes)?.encode(),
            _ => Response::decode(bytes)?.encode(),
        })
    }

    #[test]
    fn bytes_are_those_of_the_golden_file_and_read_back() {
        let first = include_str!("../../golden/0.1.0/control-v1.txt");
        let second = include_str!("../../golden/0.1.0/control-v2.txt");
        for (golden, samples) in [(first, samples()), (second, samples_of_the_second_version())] {
            let now: Vec<String> = samples
                .iter()
                .map(|(name, bytes)| format!("{name} {}", data_encoding::HEXLOWER.encode(bytes)))
                .collect();
            assert_eq!(
                now,
                golden.lines().collect::<Vec<_>>(),
                "the wire format changed: that needs a new version byte"
            );
            for (name, bytes) in samples {
                assert_eq!(re_encode(name, &bytes), Ok(bytes), "{name}");
            }
        }
    }

    #[test]
    fn truncated_extended_and_future_messages_are_errors() {
        for (name, bytes) in samples().into_iter().chain(samples_of_the_second_version()) {
            for cut in 0..bytes.len() {
                assert!(re_encode(name, &bytes[..cut]).is_err(), "{name} cut to {cut}");
            }
            let longer = [&bytes[..], &[0]].concat();
            assert!(matches!(re_encode(name, &longer), Err(WireError::Malformed { .. })), "{name}");
            let mut newer = bytes;
            let other = if newer[0] == VERSION { VERSION_AUDIT } else { VERSION };
            newer[0] = other;
            assert!(matches!(
                re_encode(name, &newer),
                Err(WireError::Version(_) | WireError::Malformed { .. })
            ));
            newer[0] = VERSION_AUDIT + 1;
            assert_eq!(re_encode(name, &newer), Err(WireError::Version(VERSION_AUDIT + 1)));
        }
    }

    #[test]
    fn limits_are_enforced_on_reading() {
        let many = vec![Blob::default(); STATEMENTS_MAX + 1];
        let large = vec![Blob(vec![0; STATEMENT_BYTES_MAX + 1])];
        let unordered = Request::Ids { buckets: vec![2, 1], after: None };
        assert!(Request::decode(&Request::Push { statements: many }.encode()).is_err());
        assert!(Request::decode(&Request::Push { statements: large }.encode()).is_err());
        assert!(Request::decode(&unordered.encode()).is_err());
        let ids: Vec<StatementId> = (0..=IDS_MAX as u64).map(|n| StatementId::of(&n.to_le_bytes())).collect();
        let mut sorted = ids;
        sorted.sort();
        let page = |ids: Vec<StatementId>| Response::Ids {
            buckets: vec![BucketIds { bucket: 0, ids, complete: true }],
        };
        assert!(matches!(Response::decode(&page(sorted.clone()).encode()), Err(WireError::TooMany { .. })));
        sorted.pop();
        assert!(Response::decode(&page(sorted).encode()).is_ok());
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            for first in [VERSION, VERSION_AUDIT, 0] {
                if let Some(b) = bytes.first_mut() {
                    *b = first;
                }
                let _ = (Gossip::decode(&bytes), Request::decode(&bytes), Response::decode(&bytes));
            }
        }
    }
}
