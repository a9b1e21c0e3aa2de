//! What a host signs about its log, in a DSSE envelope whose payload type no statement has.

use data_encoding::BASE64;
use ed25519_dalek::VerifyingKey;
use serde::{Deserialize, Serialize};

use crate::id::{ClusterId, KeyId, Sha256};
use crate::statement::Keypair;
use crate::statement::envelope::pae_of;

/// Payload type of a checkpoint's envelope. It is part of what is signed (DSSE's encoding), so a checkpoint can never
/// be taken for a statement, nor a statement for a checkpoint.
pub const CHECKPOINT_PAYLOAD_TYPE: &str = "application/vnd.weighlock.audit-checkpoint+json";
/// Largest payload, in bytes.
const PAYLOAD_BYTES_MAX: usize = 4096;

/// What a host says of its log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// The cluster.
    pub cluster: ClusterId,
    /// The host, whose key signs.
    pub host: KeyId,
    /// Number of the last line that is covered.
    pub seq: u64,
    /// SHA-256 of that line.
    pub head: Sha256,
    /// By the host's clock, in milliseconds since 1970.
    pub time_ms: u64,
    /// Events lost since the log began, as far as the host knows.
    pub lost: u64,
}

/// Why an envelope is no checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// Another form, or another payload type.
    #[error("it is not a checkpoint: {0}")]
    Form(String),
    /// The signature does not verify under the key that the payload names.
    #[error("the signature is not that of {0}")]
    Signature(KeyId),
}

/// A checkpoint in its envelope. Nothing is proven before [`open`](Self::open).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedCheckpoint {
    payload: String,
    #[serde(rename = "payloadType")]
    payload_type: String,
    signatures: Vec<WireSignature>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireSignature {
    keyid: KeyId,
    sig: String,
}

impl Checkpoint {
    /// Signs it. `key` must be that of `host`, else nobody takes it.
    pub fn sign(&self, key: &Keypair) -> SignedCheckpoint {
        let payload = serde_json::to_vec(self).expect("texts and numbers always serialize");
        let signature = key.sign_as(CHECKPOINT_PAYLOAD_TYPE, &payload);
        SignedCheckpoint {
            payload: BASE64.encode(&payload),
            payload_type: CHECKPOINT_PAYLOAD_TYPE.to_owned(),
            signatures: vec![WireSignature { keyid: signature.key, sig: BASE64.encode(&signature.bytes) }],
        }
    }
}

impl SignedCheckpoint {
    /// The checkpoint, proven to be signed by the host that it names.
    ///
    /// # Errors
    /// Another payload type or form; more or fewer than one signature; another key's; one that does not verify.
    pub fn open(&self) -> Result<Checkpoint, CheckpointError> {
        let form = |what: &str| CheckpointError::Form(what.to_owned());
        if self.payload_type != CHECKPOINT_PAYLOAD_TYPE {
            return Err(form(&format!("its payload type is not {CHECKPOINT_PAYLOAD_TYPE}")));
        }
        let [signature] = &self.signatures[..] else {
            return Err(form("it does not have exactly one signature"));
        };
        let payload =
            BASE64.decode(self.payload.as_bytes()).map_err(|_| form("its payload is not base64"))?;
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(form("its payload is too long"));
        }
        let said: Checkpoint =
            serde_json::from_slice(&payload).map_err(|e| CheckpointError::Form(e.to_string()))?;
        let bytes: [u8; 64] = BASE64
            .decode(signature.sig.as_bytes())
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or_else(|| form("its signature is not base64 of 64 bytes"))?;
        let signed = VerifyingKey::from_bytes(&said.host.0).is_ok_and(|key| {
            let message = pae_of(CHECKPOINT_PAYLOAD_TYPE, &payload);
            key.verify_strict(&message, &ed25519_dalek::Signature::from_bytes(&bytes)).is_ok()
        });
        if !signed || signature.keyid != said.host {
            return Err(CheckpointError::Signature(said.host));
        }
        Ok(said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statement::envelope::{Envelope, PAYLOAD_TYPE, pae};

    fn sample(key: &Keypair) -> Checkpoint {
        Checkpoint {
            cluster: ClusterId([1; 32]),
            host: key.key_id(),
            seq: 7,
            head: Sha256([2; 32]),
            time_ms: 1,
            lost: 0,
        }
    }

    #[test]
    fn checkpoints_open_and_are_no_statements() {
        let key = Keypair::from_seed([3; 32]);
        let signed = sample(&key).sign(&key);
        assert_eq!(signed.open(), Ok(sample(&key)));
        let json = serde_json::to_string(&signed).expect("serializes");
        assert!(Envelope::parse(json.as_bytes()).is_err());
        // The same bytes under the statements' type: the signature is for the other one.
        let disguised = json.replace(CHECKPOINT_PAYLOAD_TYPE, PAYLOAD_TYPE);
        let envelope = Envelope::parse(disguised.as_bytes()).expect("an envelope by its form");
        let message = pae(envelope.payload());
        let key = VerifyingKey::from_bytes(&key.key_id().0).expect("a key");
        let signature = ed25519_dalek::Signature::from_bytes(&envelope.signatures()[0].bytes);
        assert!(key.verify_strict(&message, &signature).is_err(), "it would be a statement");
    }

    #[test]
    fn another_key_or_payload_is_refused() {
        let (key, other) = (Keypair::from_seed([3; 32]), Keypair::from_seed([4; 32]));
        assert!(matches!(sample(&key).sign(&other).open(), Err(CheckpointError::Signature(_))));
        let mut swapped = sample(&key).sign(&key);
        swapped.payload =
            BASE64.encode(&serde_json::to_vec(&Checkpoint { seq: 8, ..sample(&key) }).expect("serializes"));
        assert!(matches!(swapped.open(), Err(CheckpointError::Signature(_))));
        let statement = Envelope::sign(b"{}".to_vec(), &[&key]).to_json();
        let read: Result<SignedCheckpoint, _> = serde_json::from_slice(&statement);
        assert!(read.is_ok_and(|read| matches!(read.open(), Err(CheckpointError::Form(_)))));
    }
}
