//! What a host says about itself, signed with its host key.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use ed25519_dalek::{Signature, VerifyingKey};
use serde::{Deserialize, Serialize};

use crate::id::{ClusterId, KeyId, ManifestDigest};
use crate::time::UnixTime;
use crate::wire::control::{Blob, WireError, at_most};

/// Largest encoded host record, in bytes.
pub const HOST_RECORD_BYTES_MAX: usize = 64 << 10;
/// Addresses of one plane in a record, at most.
pub const ADDRS_MAX: usize = 16;
/// Manifests that a record lists, at most. Nobody counts on a host for copies that it does not list. More would fit, but
/// records are told again and again, and two dozen of them greet each newcomer.
pub const HELD_MAX: usize = 512;
/// Labels in a record, at most.
pub const LABELS_MAX: usize = 32;
/// Longest text in a record, in bytes.
pub const TEXT_BYTES_MAX: usize = 256;

/// What precedes a record's bytes in what the host key signs, so that no other signature can pass for it.
const DOMAIN: &[u8] = b"weighlock/host-record/1\0";

/// What one host says about itself. The newest `seq` per host wins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRecord {
    /// Cluster that the record is for.
    pub cluster: ClusterId,
    /// The host's key, which signs the record.
    pub host: KeyId,
    /// Greater than in every earlier record of this host, over restarts too.
    pub seq: u64,
    /// When the record was made, by the host's own clock. For people only: nothing is decided by it.
    pub time: UnixTime,
    /// Where the data plane (QUIC over UDP) listens, at most [`ADDRS_MAX`].
    pub data_addrs: Vec<SocketAddr>,
    /// Where the control plane listens, UDP and TCP on one port, at most [`ADDRS_MAX`].
    pub control_addrs: Vec<SocketAddr>,
    /// Hardware key, such as `nvidia/sm_90` or `cpu/x86-64-v4`.
    pub hardware: String,
    /// Labels such as `zone` and `rack`, at most [`LABELS_MAX`].
    pub labels: BTreeMap<String, String>,
    /// Version of the daemon.
    pub version: String,
    /// What the daemon can do beyond this protocol version, see [`capability`](crate::wire::capability).
    pub capabilities: u64,
    /// Manifests whose layers the host holds, whole or in part, at most [`HELD_MAX`].
    pub held: Vec<HeldManifest>,
    /// Whether the host holds more manifests than it lists.
    pub held_truncated: bool,
    /// The host is about to stop: forget it now rather than when its record grows old.
    pub leaving: bool,
}

/// One manifest that a host holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HeldManifest {
    /// Which one.
    pub digest: ManifestDigest,
    /// Whether all its layers are there.
    pub complete: bool,
}

/// A host record's exact bytes and the host's signature over them. Says nothing until verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedHostRecord {
    bytes: Blob,
    signature: Blob,
}

/// A host record as one host passes it on to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heard {
    /// The record.
    pub record: SignedHostRecord,
    /// How long ago it was first heard, in milliseconds.
    pub age_ms: u32,
}

/// Why a host record does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostRecordError {
    /// Not a record, or one over a limit.
    #[error("host record: {0}")]
    Malformed(&'static str),
    /// It speaks of another cluster.
    #[error("host record of {host} is for cluster {cluster}, not for this one")]
    OtherCluster {
        /// Whose record.
        host: KeyId,
        /// Its cluster.
        cluster: ClusterId,
    },
    /// The signature is not that host's.
    #[error("host record of {0} has a wrong signature")]
    Signature(KeyId),
}

impl HostRecord {
    /// A record with nothing to say: no addresses, no labels, nothing held, `seq` 0.
    pub fn new(cluster: ClusterId, host: KeyId) -> Self {
        Self {
            cluster,
            host,
            seq: 0,
            time: UnixTime(0),
            data_addrs: Vec::new(),
            control_addrs: Vec::new(),
            hardware: String::new(),
            labels: BTreeMap::new(),
            version: String::new(),
            capabilities: 0,
            held: Vec::new(),
            held_truncated: false,
            leaving: false,
        }
    }

    /// Replaces `held` by as much of `all` as a record may list, complete manifests first.
    pub fn hold(&mut self, all: impl IntoIterator<Item = HeldManifest>) {
        self.held = all.into_iter().collect();
        self.held.sort_by_key(|h| (!h.complete, h.digest));
        self.held_truncated = self.held.len() > HELD_MAX;
        self.held.truncate(HELD_MAX);
    }

    /// Signs the record; `sign` returns the host key's Ed25519 signature over the bytes that it is given.
    ///
    /// Errors if the record is over a limit.
    pub fn sign(&self, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> Result<SignedHostRecord, HostRecordError> {
        self.check()?;
        let bytes = postcard::to_allocvec(self).expect("writing our own types to memory cannot fail");
        if bytes.len() > HOST_RECORD_BYTES_MAX {
            return Err(HostRecordError::Malformed("it is too large"));
        }
        let signature = sign(&signed_bytes(&bytes));
        Ok(SignedHostRecord { bytes: Blob(bytes), signature: Blob(signature) })
    }

    fn check(&self) -> Result<(), HostRecordError> {
        let texts = self.labels.iter().flat_map(|(k, v)| [k, v]).chain([&self.hardware, &self.version]);
        let malformed = HostRecordError::Malformed;
        if self.data_addrs.len() > ADDRS_MAX || self.control_addrs.len() > ADDRS_MAX {
            return Err(malformed("it lists too many addresses"));
        }
        if self.labels.len() > LABELS_MAX || self.held.len() > HELD_MAX {
            return Err(malformed("it lists too many labels or manifests"));
        }
        if texts.into_iter().any(|t| t.len() > TEXT_BYTES_MAX || t.chars().any(char::is_control)) {
            return Err(malformed("a text in it is too long or has control characters"));
        }
        Ok(())
    }
}

impl SignedHostRecord {
    /// The record, if it is well-formed, of `cluster`, and signed by the host that it names.
    pub fn verify(&self, cluster: ClusterId) -> Result<HostRecord, HostRecordError> {
        let malformed = HostRecordError::Malformed;
        // What a newer release appended is covered by the signature and ignored here: hosts pass records on, so an older
        // one must not take its neighbours for liars.
        let (record, _newer): (HostRecord, _) =
            postcard::take_from_bytes(&self.bytes.0).map_err(|_| malformed("its fields do not parse"))?;
        record.check()?;
        if record.cluster != cluster {
            return Err(HostRecordError::OtherCluster { host: record.host, cluster: record.cluster });
        }
        let wrong = |_| HostRecordError::Signature(record.host);
        let key = VerifyingKey::from_bytes(record.host.as_bytes()).map_err(wrong)?;
        let signature = Signature::from_slice(&self.signature.0).map_err(wrong)?;
        key.verify_strict(&signed_bytes(&self.bytes.0), &signature).map_err(wrong)?;
        Ok(record)
    }

    /// The host that it says to be of, and its number there; nothing of that is proven. `None` if it does not parse.
    pub fn claims(&self) -> Option<(KeyId, u64)> {
        let (record, _newer): (HostRecord, _) = postcard::take_from_bytes(&self.bytes.0).ok()?;
        Some((record.host, record.seq))
    }

    /// Bytes that the record takes in a message, about.
    pub fn size(&self) -> usize {
        self.bytes.0.len() + self.signature.0.len() + 8
    }

    pub(super) fn check_size(&self, what: &'static str) -> Result<(), WireError> {
        at_most(what, "bytes of a host record", self.bytes.0.len(), HOST_RECORD_BYTES_MAX)?;
        at_most(what, "bytes of a signature", self.signature.0.len(), 64)
    }
}

fn signed_bytes(record: &[u8]) -> Vec<u8> {
    [DOMAIN, record].concat()
}

#[cfg(test)]
pub(super) mod tests {
    use ed25519_dalek::{Signer, SigningKey};

    use super::*;

    fn key(n: u8) -> SigningKey {
        SigningKey::from_bytes(&[n; 32])
    }

    fn signed(record: &HostRecord, by: &SigningKey) -> SignedHostRecord {
        record.sign(|bytes| by.sign(bytes).to_bytes().to_vec()).expect("the record is within its limits")
    }

    fn record() -> HostRecord {
        let mut record = HostRecord::new(ClusterId([1; 32]), KeyId(key(2).verifying_key().to_bytes()));
        record.seq = 300;
        record.time = UnixTime(1_700_000_000);
        record.data_addrs = vec!["192.0.2.1:4001".parse().expect("an address")];
        record.control_addrs = vec!["[2001:db8::1]:4000".parse().expect("an address")];
        record.hardware = "cpu/x86-64-v4".into();
        record.labels.insert("rack".into(), "r1".into());
        record.version = "0.1.0".into();
        record.capabilities = 5;
        record.hold([HeldManifest { digest: ManifestDigest([3; 32]), complete: true }]);
        record
    }

    pub(in crate::wire) fn sample() -> SignedHostRecord {
        signed(&record(), &key(2))
    }

    #[test]
    fn only_the_hosts_own_signature_over_the_exact_bytes_counts() {
        let good = sample();
        assert_eq!(good.verify(ClusterId([1; 32])), Ok(record()));
        assert!(matches!(good.verify(ClusterId([9; 32])), Err(HostRecordError::OtherCluster { .. })));
        let other = signed(&record(), &key(3));
        assert_eq!(other.verify(ClusterId([1; 32])), Err(HostRecordError::Signature(record().host)));
        for bit in 0..good.bytes.0.len() * 8 {
            let mut bad = good.clone();
            bad.bytes.0[bit / 8] ^= 1 << (bit % 8);
            assert!(bad.verify(ClusterId([1; 32])).is_err(), "bit {bit} flipped");
        }
        let undomained = SignedHostRecord {
            signature: Blob(key(2).sign(&good.bytes.0).to_bytes().to_vec()),
            bytes: good.bytes,
        };
        assert!(undomained.verify(ClusterId([1; 32])).is_err());
    }

    #[test]
    fn fields_that_a_newer_release_appends_are_ignored_and_signed() {
        let mut bytes = postcard::to_allocvec(&record()).expect("writing to memory");
        bytes.extend([1, 2, 3]);
        let signature = key(2).sign(&signed_bytes(&bytes)).to_bytes().to_vec();
        let newer = SignedHostRecord { bytes: Blob(bytes), signature: Blob(signature) };
        assert_eq!(newer.verify(ClusterId([1; 32])), Ok(record()));
        let mut cut = newer.clone();
        cut.bytes.0.pop();
        assert_eq!(cut.verify(ClusterId([1; 32])), Err(HostRecordError::Signature(record().host)));
    }

    #[test]
    fn limits_hold_on_signing_and_on_reading() {
        let mut long = record();
        long.hardware = "x".repeat(TEXT_BYTES_MAX + 1);
        assert!(long.sign(|_| vec![0; 64]).is_err());
        let bytes = postcard::to_allocvec(&long).expect("writing to memory");
        let signature = key(2).sign(&signed_bytes(&bytes)).to_bytes().to_vec();
        let forced = SignedHostRecord { bytes: Blob(bytes), signature: Blob(signature) };
        assert!(matches!(forced.verify(ClusterId([1; 32])), Err(HostRecordError::Malformed(_))));

        let mut many = record();
        many.hold(
            (0..600u16)
                .map(|n| HeldManifest { digest: ManifestDigest::of(&n.to_le_bytes()), complete: n == 599 }),
        );
        assert!(many.held_truncated && many.held.len() == HELD_MAX && many.held[0].complete);
        assert!(signed(&many, &key(2)).verify(ClusterId([1; 32])).is_ok());
        // All else at its longest, too: a record that is too long would make the host invisible.
        let text = |n: usize| format!("{n:0>width$}", width = TEXT_BYTES_MAX);
        many.labels = (0..LABELS_MAX).map(|n| (text(n), text(n))).collect();
        (many.hardware, many.version) = (text(0), text(0));
        assert!(signed(&many, &key(2)).verify(ClusterId([1; 32])).is_ok());
    }
}
