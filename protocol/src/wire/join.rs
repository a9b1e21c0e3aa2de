//! What a host with a ticket says to a member, and what it hears back.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::id::KeyId;
use crate::statement::Envelope;

/// Largest join request, in bytes: a root chain, an invite, an admission.
pub const JOIN_REQUEST_BYTES_MAX: usize = 512 << 10;
/// Largest answer, in bytes; later statements come by reconciliation.
pub const JOIN_ANSWER_BYTES_MAX: usize = 4 << 20;
/// Most statements in either.
pub const JOIN_STATEMENTS_MAX: usize = 4096;
/// Most hosts in an answer.
pub const JOIN_HOSTS_MAX: usize = 64;

const VERSION: u8 = 1;

/// Why bytes are not a join message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("join message is not understood: {0}")]
pub struct JoinWireError(&'static str);

/// "I hold a ticket": the root chain it came with, the invite, and the admission that the ticket key signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinRequest {
    /// Envelopes, roots first.
    pub statements: Vec<Envelope>,
}

/// A member's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JoinAnswer {
    /// Admitted, here and soon everywhere.
    Welcome {
        /// Statements about authority and membership, as far as they fit.
        statements: Vec<Envelope>,
        /// Members with their addresses.
        hosts: Vec<Contact>,
    },
    /// Not admitted.
    Refused {
        /// Why, for people.
        reason: String,
    },
}

/// Where a member listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contact {
    /// Its host key.
    pub host: KeyId,
    /// Control plane.
    pub control: Vec<SocketAddr>,
    /// Data plane.
    pub data: Vec<SocketAddr>,
}

#[derive(Serialize, Deserialize)]
enum AnswerWire {
    Welcome { statements: Vec<Vec<u8>>, hosts: Vec<Contact> },
    Refused { reason: String },
}

impl JoinRequest {
    /// The bytes to send.
    pub fn encode(&self) -> Vec<u8> {
        encode(&to_json(&self.statements))
    }

    /// Reads a request from a stranger.
    ///
    /// # Errors
    /// Garbage, another version, over a limit.
    pub fn parse(bytes: &[u8]) -> Result<Self, JoinWireError> {
        if bytes.len() > JOIN_REQUEST_BYTES_MAX {
            return Err(JoinWireError("it is over the limit"));
        }
        Ok(Self { statements: from_json(decode(bytes)?)? })
    }
}

impl JoinAnswer {
    /// The bytes to send. Statements that would make it larger than [`JOIN_ANSWER_BYTES_MAX`] are left out.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            JoinAnswer::Welcome { statements, hosts } => {
                let mut room = JOIN_ANSWER_BYTES_MAX / 2;
                let fit = |bytes: &Vec<u8>| {
                    room = room.saturating_sub(bytes.len() + 8);
                    room > 0
                };
                let mut statements = to_json(statements);
                statements.truncate(JOIN_STATEMENTS_MAX);
                let statements = statements.into_iter().take_while(fit).collect();
                let hosts = hosts.iter().take(JOIN_HOSTS_MAX).cloned().collect();
                encode(&AnswerWire::Welcome { statements, hosts })
            }
            JoinAnswer::Refused { reason } => {
                encode(&AnswerWire::Refused { reason: reason.chars().take(500).collect() })
            }
        }
    }

    /// Reads an answer.
    ///
    /// # Errors
    /// Garbage, another version, over a limit.
    pub fn parse(bytes: &[u8]) -> Result<Self, JoinWireError> {
        if bytes.len() > JOIN_ANSWER_BYTES_MAX {
            return Err(JoinWireError("it is over the limit"));
        }
        Ok(match decode(bytes)? {
            AnswerWire::Welcome { statements, hosts } if hosts.len() <= JOIN_HOSTS_MAX => {
                JoinAnswer::Welcome { statements: from_json(statements)?, hosts }
            }
            AnswerWire::Welcome { .. } => return Err(JoinWireError("it names too many hosts")),
            AnswerWire::Refused { reason } => {
                JoinAnswer::Refused { reason: reason.chars().filter(|c| !c.is_control()).take(500).collect() }
            }
        })
    }
}

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_extend(value, vec![VERSION]).expect("writing our own types to memory cannot fail")
}

fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, JoinWireError> {
    match bytes.split_first() {
        Some((&VERSION, body)) => {
            postcard::from_bytes(body).map_err(|_| JoinWireError("its fields do not parse"))
        }
        Some(_) => Err(JoinWireError("it is of another version; upgrade the older of the two hosts")),
        None => Err(JoinWireError("it is empty")),
    }
}

fn to_json(envelopes: &[Envelope]) -> Vec<Vec<u8>> {
    envelopes.iter().map(Envelope::to_json).collect()
}

fn from_json(all: Vec<Vec<u8>>) -> Result<Vec<Envelope>, JoinWireError> {
    if all.len() > JOIN_STATEMENTS_MAX {
        return Err(JoinWireError("it has too many statements"));
    }
    let parse =
        |json: &Vec<u8>| Envelope::parse(json).map_err(|_| JoinWireError("a statement does not parse"));
    all.iter().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_round_trip_and_limits_hold() {
        let host = Contact {
            host: KeyId([3; 32]),
            control: vec![([127, 0, 0, 1], 7400).into()],
            data: vec![([127, 0, 0, 1], 7401).into()],
        };
        let envelope = crate::statement::Envelope::sign(
            b"{}".to_vec(),
            &[&crate::statement::Keypair::from_seed([1; 32])],
        );
        let request = JoinRequest { statements: vec![envelope.clone(); 2] };
        assert_eq!(JoinRequest::parse(&request.encode()), Ok(request));
        let welcome = JoinAnswer::Welcome { statements: vec![envelope], hosts: vec![host; 3] };
        assert_eq!(JoinAnswer::parse(&welcome.encode()), Ok(welcome));
        let refused = JoinAnswer::Refused { reason: "no\nsuch".into() };
        assert_eq!(JoinAnswer::parse(&refused.encode()), Ok(JoinAnswer::Refused { reason: "nosuch".into() }));
        let mut newer = refused.encode();
        newer[0] = 2;
        assert!(JoinAnswer::parse(&newer).is_err_and(|e| e.to_string().contains("version")));
        assert!(JoinRequest::parse(&vec![1; JOIN_REQUEST_BYTES_MAX + 1]).is_err());
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = JoinRequest::parse(&bytes);
            let _ = JoinAnswer::parse(&bytes);
        }
    }
}
