//! DSSE envelopes: exact payload bytes and the Ed25519 signatures over them.

use std::collections::BTreeSet;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use data_encoding::{BASE64, BASE64URL};
use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::body::Statement;
use crate::id::{KeyId, StatementId};

/// The only payload type that is accepted.
pub const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
/// Largest envelope accepted, in bytes of its JSON form.
pub const ENVELOPE_BYTES_MAX: usize = 256 << 10;
/// Largest payload accepted, in bytes: with all its signatures it still fits an envelope.
pub const PAYLOAD_BYTES_MAX: usize = 128 << 10;
/// Most signatures in one envelope, and most that are kept for one statement.
pub const SIGNATURES_MAX: usize = 64;

/// Why bytes are not a statement that says anything.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StatementError {
    /// Over [`ENVELOPE_BYTES_MAX`] or [`PAYLOAD_BYTES_MAX`].
    #[error("the statement takes {bytes} bytes; at most {bytes_max} are accepted")]
    TooLarge {
        /// Its size in bytes.
        bytes: usize,
        /// The limit in bytes.
        bytes_max: usize,
    },
    /// Not a DSSE envelope.
    #[error("not a DSSE envelope: {reason}")]
    Envelope {
        /// What is wrong.
        reason: String,
    },
    /// The payload is not an in-toto statement, or its predicate is not what its type says.
    #[error("not a statement: {reason}")]
    Body {
        /// What is wrong.
        reason: String,
    },
    /// A signature does not verify.
    #[error("the signature of {key} is not valid for this statement; do not trust where it came from")]
    Signature {
        /// The key that the signature claims.
        key: KeyId,
    },
    /// The author named in the body did not sign.
    #[error("the statement says it is by {author}, whose signature is missing")]
    AuthorMissing {
        /// The author in the body.
        author: KeyId,
    },
}

/// One signature over an envelope's payload.
#[derive(Clone, PartialEq, Eq)]
pub struct Signature {
    /// Who signed.
    pub key: KeyId,
    /// The raw Ed25519 signature.
    pub bytes: [u8; 64],
}

/// Payload bytes and who signed them. Nothing about the signatures has been proven yet.
///
/// Serializes as DSSE JSON in text formats and as payload and raw signatures in binary ones.
#[derive(Clone, PartialEq, Eq)]
pub struct Envelope {
    payload: Arc<[u8]>,
    signatures: Vec<Signature>,
}

impl Envelope {
    /// An envelope of `payload`, signed by `keys`. The same key twice signs once.
    pub fn sign(payload: Vec<u8>, keys: &[&Keypair]) -> Self {
        let mut signatures: Vec<Signature> = Vec::with_capacity(keys.len());
        for key in keys {
            if signatures.iter().all(|s| s.key != key.key_id()) {
                signatures.push(key.sign(&payload));
            }
        }
        Self { payload: payload.into(), signatures }
    }

    /// Reads DSSE JSON from anywhere, also from an enemy. Unknown fields are ignored and both base64 alphabets are
    /// taken, as DSSE demands; a key id is required here, because it is how the key is known.
    ///
    /// # Errors
    /// Too large, another payload type, no signature, too many, or two by one key.
    pub fn parse(json: &[u8]) -> Result<Self, StatementError> {
        if json.len() > ENVELOPE_BYTES_MAX {
            return Err(StatementError::TooLarge { bytes: json.len(), bytes_max: ENVELOPE_BYTES_MAX });
        }
        let wire: WireEnvelope = serde_json::from_slice(json).map_err(|e| envelope_error(e.to_string()))?;
        wire.open()
    }

    /// The DSSE JSON, compact. Parsing it gives an equal envelope.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(&self.wire()).expect("strings and vectors of strings always serialize")
    }

    /// The exact bytes that are signed.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// SHA-256 of the payload.
    pub fn id(&self) -> StatementId {
        StatementId::of(&self.payload)
    }

    /// The signatures, in the order they came.
    pub fn signatures(&self) -> &[Signature] {
        &self.signatures
    }

    /// Whether `key` has signed the payload, proven.
    pub fn is_signed_by(&self, key: &KeyId) -> bool {
        let message = pae(&self.payload);
        self.signatures.iter().filter(|signature| signature.key == *key).any(|signature| {
            VerifyingKey::from_bytes(&key.0).is_ok_and(|key| {
                key.verify_strict(&message, &ed25519_dalek::Signature::from_bytes(&signature.bytes)).is_ok()
            })
        })
    }

    /// Adds a signature by `key`, for instance a second admin's. Nothing happens if it already signed.
    pub fn endorse(&mut self, key: &Keypair) {
        if self.signatures.iter().all(|s| s.key != key.key_id()) {
            self.signatures.push(key.sign(&self.payload));
        }
    }

    /// Takes over what `other`, an envelope of the same payload, has more signatures; `true` if there were any.
    /// At most [`SIGNATURES_MAX`] are kept, those of `preferred` keys first, then by key. The caller has verified
    /// both.
    pub fn merge(&mut self, other: &Envelope, preferred: impl Fn(&KeyId) -> bool) -> bool {
        if self.payload != other.payload {
            return false;
        }
        let before: BTreeSet<KeyId> = self.signatures.iter().map(|s| s.key).collect();
        self.signatures.extend(other.signatures.iter().filter(|s| !before.contains(&s.key)).cloned());
        if self.signatures.len() > SIGNATURES_MAX {
            self.signatures.sort_by_key(|s| (!preferred(&s.key), s.key));
            self.signatures.truncate(SIGNATURES_MAX);
        }
        self.signatures.iter().any(|s| !before.contains(&s.key))
    }

    fn from_parts(payload: Vec<u8>, signatures: Vec<Signature>) -> Result<Self, StatementError> {
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(StatementError::TooLarge { bytes: payload.len(), bytes_max: PAYLOAD_BYTES_MAX });
        }
        if signatures.is_empty() || signatures.len() > SIGNATURES_MAX {
            return Err(envelope_error(format!(
                "it has {} signatures; 1 to {SIGNATURES_MAX} are accepted",
                signatures.len()
            )));
        }
        let keys: BTreeSet<KeyId> = signatures.iter().map(|s| s.key).collect();
        if keys.len() != signatures.len() {
            return Err(envelope_error("a key signed it twice"));
        }
        Ok(Self { payload: payload.into(), signatures })
    }

    fn wire(&self) -> WireEnvelope {
        WireEnvelope {
            payload: BASE64.encode(&self.payload),
            payload_type: PAYLOAD_TYPE.to_owned(),
            signatures: self
                .signatures
                .iter()
                .map(|s| WireSignature { keyid: s.key, sig: BASE64.encode(&s.bytes) })
                .collect(),
        }
    }
}

impl fmt::Debug for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<KeyId> = self.signatures.iter().map(|s| s.key).collect();
        write!(f, "Envelope({}, {} bytes, by {keys:?})", self.id().short(), self.payload.len())
    }
}

impl Serialize for Envelope {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if s.is_human_readable() {
            return self.wire().serialize(s);
        }
        let signatures: Vec<BinarySignature> = self
            .signatures
            .iter()
            .map(|s| {
                let (r, s_) = s.bytes.split_at(32);
                let half = |b: &[u8]| <[u8; 32]>::try_from(b).expect("half of 64 bytes is 32");
                (s.key, half(r), half(s_))
            })
            .collect();
        (&self.payload[..], signatures).serialize(s)
    }
}

impl<'de> Deserialize<'de> for Envelope {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        if d.is_human_readable() {
            return WireEnvelope::deserialize(d)?.open().map_err(serde::de::Error::custom);
        }
        let (payload, signatures) = <(Vec<u8>, Vec<BinarySignature>)>::deserialize(d)?;
        let signatures = signatures
            .into_iter()
            .map(|(key, r, s)| {
                let mut bytes = [0; 64];
                bytes[..32].copy_from_slice(&r);
                bytes[32..].copy_from_slice(&s);
                Signature { key, bytes }
            })
            .collect();
        Self::from_parts(payload, signatures).map_err(serde::de::Error::custom)
    }
}

/// The bytes that are signed for `payload`: DSSE's pre-authentication encoding (DSSE protocol, "Signature
/// Definition").
pub fn pae(payload: &[u8]) -> Vec<u8> {
    pae_of(PAYLOAD_TYPE, payload)
}

/// The same for a payload of another type, which is no statement.
pub fn pae_of(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut out = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    out.extend_from_slice(payload);
    out
}

/// A signing key. Its secret is never printed.
#[derive(Clone)]
pub struct Keypair(SigningKey);

impl Keypair {
    /// The key of a 32-byte secret seed.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self(SigningKey::from_bytes(&seed))
    }

    /// The secret seed, for the caller that writes it to a file or a ticket.
    pub fn seed(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// The public key.
    pub fn key_id(&self) -> KeyId {
        KeyId(self.0.verifying_key().to_bytes())
    }

    /// Signs a statement's payload, in DSSE's encoding.
    pub fn sign(&self, payload: &[u8]) -> Signature {
        self.sign_as(PAYLOAD_TYPE, payload)
    }

    /// Signs a payload of another type, which is no statement.
    pub fn sign_as(&self, payload_type: &str, payload: &[u8]) -> Signature {
        Signature { key: self.key_id(), bytes: self.0.sign(&pae_of(payload_type, payload)).to_bytes() }
    }
}

impl fmt::Debug for Keypair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keypair({:?})", self.key_id())
    }
}

/// Marks signatures that nobody has checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unverified;
/// Marks that every signature was checked and the author's is among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified;

/// A body together with its envelope; `V` says whether the signatures were proven.
#[derive(Debug, Clone)]
pub struct Signed<T, V> {
    id: StatementId,
    body: T,
    envelope: Envelope,
    state: PhantomData<V>,
}

impl<T, V> Signed<T, V> {
    /// SHA-256 of the payload.
    pub fn id(&self) -> StatementId {
        self.id
    }

    /// The parsed body.
    pub fn body(&self) -> &T {
        &self.body
    }

    /// The envelope it came in.
    pub fn envelope(&self) -> &Envelope {
        &self.envelope
    }

    /// Body and envelope.
    pub fn into_parts(self) -> (T, Envelope) {
        (self.body, self.envelope)
    }

    fn with_state<W>(self) -> Signed<T, W> {
        Signed { id: self.id, body: self.body, envelope: self.envelope, state: PhantomData }
    }
}

impl Signed<Statement, Unverified> {
    /// Reads the body out of an envelope.
    ///
    /// # Errors
    /// The payload is not an in-toto statement of ours, or its author is not among the signers.
    pub fn parse(envelope: Envelope) -> Result<Self, StatementError> {
        let body = Statement::parse(&envelope.payload)?;
        if envelope.signatures.iter().all(|s| s.key != body.by) {
            return Err(StatementError::AuthorMissing { author: body.by });
        }
        Ok(Self { id: envelope.id(), body, envelope, state: PhantomData })
    }

    /// Proves every signature.
    ///
    /// # Errors
    /// Any signature that is not valid: an envelope is taken whole or not at all.
    pub fn verify(self) -> Result<Signed<Statement, Verified>, StatementError> {
        let message = pae(&self.envelope.payload);
        for signature in &self.envelope.signatures {
            let valid = VerifyingKey::from_bytes(&signature.key.0).is_ok_and(|key| {
                key.verify_strict(&message, &ed25519_dalek::Signature::from_bytes(&signature.bytes)).is_ok()
            });
            if !valid {
                return Err(StatementError::Signature { key: signature.key });
            }
        }
        Ok(self.with_state())
    }

    /// Takes signatures as proven because this host proved them before it stored the envelope.
    pub(super) fn trust_own_store(self) -> Signed<Statement, Verified> {
        self.with_state()
    }
}

type BinarySignature = (KeyId, [u8; 32], [u8; 32]);

#[derive(Serialize, Deserialize)]
struct WireEnvelope {
    payload: String,
    #[serde(rename = "payloadType")]
    payload_type: String,
    signatures: Vec<WireSignature>,
}

#[derive(Serialize, Deserialize)]
struct WireSignature {
    keyid: KeyId,
    sig: String,
}

impl WireEnvelope {
    fn open(self) -> Result<Envelope, StatementError> {
        if self.payload_type != PAYLOAD_TYPE {
            return Err(envelope_error(format!("its payload type is not {PAYLOAD_TYPE}")));
        }
        let payload = base64(&self.payload).ok_or_else(|| envelope_error("its payload is not base64"))?;
        let signatures = self
            .signatures
            .into_iter()
            .map(|s| {
                let bytes = base64(&s.sig).and_then(|b| b.try_into().ok());
                let bytes = bytes.ok_or_else(|| envelope_error("a signature is not base64 of 64 bytes"))?;
                Ok(Signature { key: s.keyid, bytes })
            })
            .collect::<Result<_, StatementError>>()?;
        Envelope::from_parts(payload, signatures)
    }
}

fn base64(text: &str) -> Option<Vec<u8>> {
    BASE64.decode(text.as_bytes()).or_else(|_| BASE64URL.decode(text.as_bytes())).ok()
}

fn envelope_error(reason: impl Into<String>) -> StatementError {
    StatementError::Envelope { reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> Keypair {
        Keypair::from_seed([n; 32])
    }

    #[test]
    fn pae_is_as_dsse_says() {
        assert_eq!(pae(b"{}"), b"DSSEv1 28 application/vnd.in-toto+json 2 {}");
    }

    #[test]
    fn json_and_postcard_round_trip() {
        let envelope = Envelope::sign(b"hello".to_vec(), &[&key(1), &key(2), &key(1)]);
        assert_eq!(envelope.signatures().len(), 2, "a key signs once");
        assert_eq!(Envelope::parse(&envelope.to_json()), Ok(envelope.clone()));
        let bytes = postcard::to_allocvec(&envelope).expect("serializes");
        assert_eq!(postcard::from_bytes::<Envelope>(&bytes).expect("reads"), envelope);
    }

    #[test]
    fn other_shapes_are_refused() {
        let text = String::from_utf8(Envelope::sign(b"hello".to_vec(), &[&key(1)]).to_json()).expect("utf-8");
        let sig = text.split("\"signatures\":[").nth(1).and_then(|t| t.split(']').next()).expect("signature");
        for (from, to) in [
            (PAYLOAD_TYPE, "text/plain"),
            ("aGVsbG8=", "aGVsbG9="),
            ("aGVsbG8=", "!"),
            ("ed25519:", "rsa:"),
            ("\"sig\":\"", "\"sig\":\"AAAA"),
            (sig, ""),
            (sig, &format!("{sig},{sig}")),
            ("\"payloadType\"", "\"payload\":\"\",\"payloadType\""),
        ] {
            let other = text.replacen(from, to, 1);
            assert_ne!(other, text, "{from} was not found");
            assert!(Envelope::parse(other.as_bytes()).is_err(), "{other} was accepted");
        }
        let large = vec![b' '; ENVELOPE_BYTES_MAX + 1];
        assert!(matches!(Envelope::parse(&large), Err(StatementError::TooLarge { .. })));
        assert!(Envelope::parse("[".repeat(100_000).as_bytes()).is_err());
    }

    #[test]
    fn unknown_fields_and_url_safe_base64_are_taken() {
        let envelope = Envelope::sign(vec![0xfb, 0xff, 0xfe], &[&key(1)]);
        let text = String::from_utf8(envelope.to_json()).expect("utf-8");
        assert!(text.contains("+//+"), "{text}");
        let other = text.replacen("+//+", "-__-", 1).replacen('{', "{\"x\":1,", 1);
        assert_eq!(Envelope::parse(other.as_bytes()), Ok(envelope));
    }

    #[test]
    fn merging_keeps_preferred_signers_when_full() {
        let mut envelope = Envelope::sign(b"x".to_vec(), &[&key(0)]);
        for n in 1..=63 {
            envelope.endorse(&key(n));
        }
        let wanted = key(200);
        let more = Envelope::sign(b"x".to_vec(), &[&wanted]);
        let id = wanted.key_id();
        assert!(envelope.clone().merge(&more, |k| *k == id));
        assert!(envelope.merge(&more, |k| *k == id || *k == key(0).key_id()));
        assert_eq!(envelope.signatures().len(), SIGNATURES_MAX);
        for k in [id, key(0).key_id()] {
            assert!(envelope.signatures().iter().any(|s| s.key == k));
        }
        assert!(!envelope.merge(&more, |_| true), "nothing new");
        assert!(!envelope.merge(&Envelope::sign(b"y".to_vec(), &[&key(9)]), |_| true));
    }

    #[test]
    fn secrets_are_not_printed() {
        let key = Keypair::from_seed([0xab; 32]);
        let text = format!("{key:?}");
        assert!(!text.contains("abab") && !text.contains("171"), "{text}");
        assert_eq!(Keypair::from_seed(key.seed()).key_id(), key.key_id());
    }
}
