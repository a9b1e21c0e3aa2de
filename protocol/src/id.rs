//! Fixed-size identities: layers, manifests, statements, keys, clusters.

use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a text is not an identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not {what}: {reason}")]
pub struct IdError {
    what: &'static str,
    reason: &'static str,
}

macro_rules! id32 {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 32]);

        impl $name {
            /// The 32 bytes.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// 64 lower-case hex digits, without a prefix.
            pub fn hex(&self) -> String {
                HEXLOWER.encode(&self.0)
            }

            /// The first 12 hex digits, for people.
            pub fn short(&self) -> String {
                HEXLOWER.encode(&self.0[..6])
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), HEXLOWER.encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.short())
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            /// Takes the display form; where that has a prefix, the prefix is required.
            fn from_str(s: &str) -> Result<Self, IdError> {
                let hex = s
                    .strip_prefix($prefix)
                    .ok_or(IdError { what: $what, reason: concat!("it must start with `", $prefix, "`") })?;
                let bytes = HEXLOWER
                    .decode(hex.as_bytes())
                    .map_err(|_| IdError { what: $what, reason: "it must be lower-case hex" })?;
                let bytes = bytes
                    .try_into()
                    .map_err(|_| IdError { what: $what, reason: "it must have 64 hex digits" })?;
                Ok(Self(bytes))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                if s.is_human_readable() { s.collect_str(self) } else { self.0.serialize(s) }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                if d.is_human_readable() {
                    let text = String::deserialize(d)?;
                    text.parse().map_err(serde::de::Error::custom)
                } else {
                    Ok(Self(<[u8; 32]>::deserialize(d)?))
                }
            }
        }
    };
}

id32!(
    /// BLAKE3 root of a layer's bytes: what hosts exchange and verify by. Displays as 64 hex digits.
    LayerId, "", "a layer id (BLAKE3)"
);
id32!(
    /// SHA-256 of a layer's bytes: what OCI and the Hugging Face Hub call it. Displays as `sha256:...`.
    Sha256, "sha256:", "a SHA-256 digest"
);
id32!(
    /// SHA-256 of a manifest's exact bytes: the identity of one version of an artifact.
    ManifestDigest, "sha256:", "a manifest digest"
);
id32!(
    /// SHA-256 of a statement's exact signed payload bytes.
    StatementId, "", "a statement id"
);
id32!(
    /// An Ed25519 public key, raw. Hosts, people and tickets are all keys. Displays as `ed25519:...`.
    KeyId, "ed25519:", "a key id"
);
id32!(
    /// Identity of a cluster: the [`StatementId`] of its first root statement.
    ClusterId, "", "a cluster id"
);

impl LayerId {
    /// BLAKE3 of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

impl Sha256 {
    /// SHA-256 of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::Digest;
        Self(sha2::Sha256::digest(bytes).into())
    }
}

impl ManifestDigest {
    /// The digest of a manifest's exact bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::of(bytes).0)
    }

    /// The first 40 hex digits: what the Hub dialect calls a commit.
    pub fn hub_commit(&self) -> String {
        HEXLOWER.encode(&self.0[..20])
    }
}

impl StatementId {
    /// The id of a statement's exact payload bytes.
    pub fn of(payload: &[u8]) -> Self {
        Self(Sha256::of(payload).0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_forms_round_trip_and_refuse_other_forms() {
        let d = ManifestDigest::of(b"abc");
        assert_eq!(d.to_string(), "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(d.to_string().parse::<ManifestDigest>(), Ok(d));
        assert!(d.hex().parse::<ManifestDigest>().is_err(), "prefix is required");
        assert!(d.to_string().to_uppercase().parse::<ManifestDigest>().is_err());
        assert!("sha256:ab".parse::<Sha256>().is_err());
        let l = LayerId::of(b"abc");
        assert_eq!(l.to_string().parse::<LayerId>(), Ok(l));
        assert_eq!(serde_json::to_string(&l).ok(), Some(format!("\"{l}\"")));
    }
}
