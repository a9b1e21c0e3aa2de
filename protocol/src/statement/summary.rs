//! What two hosts compare to find the statements that one of them lacks, without sending ids they share.

use serde::{Deserialize, Serialize};

use crate::id::{KeyId, StatementId};

/// Buckets in a summary: one per first byte of a statement's id.
pub const BUCKETS: usize = 256;

/// A digest of a set of statements and their signatures, about 4.4 KB on the wire.
///
/// Counts signatures, not statements, so that a second admin's signature travels too. It finds honest
/// differences; a member that wants to hide statements can, but then it could as well not send them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Bucket>", into = "Vec<Bucket>")]
pub struct Summary {
    buckets: Vec<Bucket>,
}

/// One bucket of a summary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Bucket {
    /// How many signatures.
    pub count: u32,
    /// XOR of 16 bytes of BLAKE3 over statement id and signer, for each signature.
    pub fingerprint: [u8; 16],
}

/// One statement of a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Entry {
    /// Its id.
    pub id: StatementId,
    /// Equal where the signers are: the same id with another value here is worth exchanging.
    pub signers: u64,
}

/// A summary with a wrong number of buckets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a statement summary has {BUCKETS} buckets, this one {0}; the peer speaks another version")]
pub struct BucketsError(usize);

impl Summary {
    /// The buckets in which `self` and `other` differ.
    pub fn differing(&self, other: &Summary) -> Vec<u8> {
        let pairs = self.buckets.iter().zip(&other.buckets);
        (0..=u8::MAX).zip(pairs).filter_map(|(n, (a, b))| (a != b).then_some(n)).collect()
    }

    /// The buckets.
    pub fn buckets(&self) -> &[Bucket] {
        &self.buckets
    }

    pub(super) fn insert(&mut self, id: &StatementId, signer: &KeyId) {
        let bucket = self.bucket(id, signer);
        bucket.count = bucket.count.wrapping_add(1);
    }

    pub(super) fn remove(&mut self, id: &StatementId, signer: &KeyId) {
        let bucket = self.bucket(id, signer);
        bucket.count = bucket.count.wrapping_sub(1);
    }

    fn bucket(&mut self, id: &StatementId, signer: &KeyId) -> &mut Bucket {
        let bucket = &mut self.buckets[usize::from(id.0[0])];
        for (to, from) in bucket.fingerprint.iter_mut().zip(hash(id, signer)) {
            *to ^= from;
        }
        bucket
    }
}

impl Entry {
    pub(super) fn new(id: StatementId, signers: &[KeyId]) -> Self {
        let mut all = [0; 8];
        for signer in signers {
            for (to, from) in all.iter_mut().zip(hash(&id, signer)) {
                *to ^= from;
            }
        }
        Self { id, signers: u64::from_le_bytes(all) }
    }
}

impl Default for Summary {
    fn default() -> Self {
        Self { buckets: vec![Bucket::default(); BUCKETS] }
    }
}

impl TryFrom<Vec<Bucket>> for Summary {
    type Error = BucketsError;

    fn try_from(buckets: Vec<Bucket>) -> Result<Self, BucketsError> {
        if buckets.len() == BUCKETS { Ok(Self { buckets }) } else { Err(BucketsError(buckets.len())) }
    }
}

impl From<Summary> for Vec<Bucket> {
    fn from(summary: Summary) -> Self {
        summary.buckets
    }
}

fn hash(id: &StatementId, signer: &KeyId) -> [u8; 32] {
    let mut bytes = [0; 64];
    bytes[..32].copy_from_slice(&id.0);
    bytes[32..].copy_from_slice(&signer.0);
    *blake3::hash(&bytes).as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_tells_where_sets_differ_whatever_the_order() {
        let ids: Vec<StatementId> = (0..500u32).map(|n| StatementId::of(&n.to_le_bytes())).collect();
        let (k1, k2) = (KeyId([1; 32]), KeyId([2; 32]));
        let (mut a, mut b) = (Summary::default(), Summary::default());
        ids.iter().for_each(|id| a.insert(id, &k1));
        ids.iter().rev().for_each(|id| b.insert(id, &k1));
        assert!(a.differing(&b).is_empty());
        b.insert(&ids[7], &k2);
        assert_eq!(a.differing(&b), [ids[7].0[0]]);
        b.remove(&ids[7], &k2);
        assert_eq!(a, b);
    }

    #[test]
    fn only_whole_summaries_are_read() {
        let summary = Summary::default();
        let bytes = postcard::to_allocvec(&summary).expect("serializes");
        assert_eq!(postcard::from_bytes::<Summary>(&bytes).expect("reads"), summary);
        let short = postcard::to_allocvec(&vec![Bucket::default(); 255]).expect("serializes");
        assert!(postcard::from_bytes::<Summary>(&short).is_err());
    }

    #[test]
    fn entries_tell_signers_apart() {
        let id = StatementId::of(b"x");
        let (k1, k2) = (KeyId([1; 32]), KeyId([2; 32]));
        assert_eq!(Entry::new(id, &[k1, k2]), Entry::new(id, &[k2, k1]));
        assert_ne!(Entry::new(id, &[k1]), Entry::new(id, &[k1, k2]));
    }
}
