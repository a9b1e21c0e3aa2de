//! Payload bytes of statements: writing them once, and a strict reading of what others wrote.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::body::{Admit, Chain, Invite, Kind, PREDICATE_PREFIX, Publish, Revoke, Root, Statement, Target};
use super::envelope::{Envelope, Keypair, StatementError};
use super::promotion::{Approval, Channel, Cosignature, Follow, OnChannel, Promotion, Rollback, SetPolicy};
use super::weighed::{Evaluate, Findings, Ruling, Verdict};
use crate::id::{ClusterId, KeyId, ManifestDigest, Sha256, StatementId};
use crate::names::{Artifact, Tag};
use crate::time::UnixTime;

/// in-toto's `_type`.
const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";

impl Statement {
    /// The payload bytes to sign.
    pub fn to_payload(&self) -> Vec<u8> {
        let kind = match &self.kind {
            Kind::Root(k) => KindFields::Root(k),
            Kind::Invite(k) => KindFields::Invite(k),
            Kind::Admit(k) => KindFields::Admit(k),
            Kind::Revoke(k) => KindFields::Revoke(k),
            Kind::Publish(k) => KindFields::Publish(PublishFields {
                artifact: k.artifact.clone(),
                tag: k.tag.clone(),
                total_bytes: k.total_bytes,
            }),
            Kind::Evaluate(k) => {
                KindFields::Evaluate(OfArtifact { artifact: k.artifact.clone(), said: &k.findings })
            }
            Kind::Verdict(k) => {
                KindFields::Verdict(OfArtifact { artifact: k.artifact.clone(), said: &k.ruling })
            }
            Kind::Policy(k) => KindFields::Policy(k),
            Kind::Approve(k) => KindFields::Approve(of_channel(k)),
            Kind::Promote(k) => KindFields::Promote(of_channel(k)),
            Kind::Cosign(k) => KindFields::Cosign(of_channel(k)),
            Kind::Rollback(k) => KindFields::Rollback(of_channel(k)),
            Kind::Follow(k) => KindFields::Follow(k),
            Kind::Unknown { .. } => KindFields::Unknown {},
        };
        let wire = WireStatement {
            r#type: STATEMENT_TYPE.to_owned(),
            subject: vec![self.kind.subject()],
            predicate_type: self.kind.predicate_type(),
            predicate: WirePredicate {
                common: Common { cluster: self.cluster, by: self.by, time: self.time, chain: self.chain },
                kind,
            },
        };
        serde_json::to_vec(&wire).expect("maps with text keys always serialize")
    }

    /// Signs it with the author's key and any endorsers'.
    pub fn sign(&self, keys: &[&Keypair]) -> Envelope {
        Envelope::sign(self.to_payload(), keys)
    }

    /// Reads a payload from anywhere, also from an enemy. Fields that are not known are ignored: a field that
    /// changes what a kind means comes with a new version of it, which is a kind that is not known.
    ///
    /// # Errors
    /// Not in-toto, not ours, a subject that is not what the predicate speaks of, or over a limit.
    pub fn parse(payload: &[u8]) -> Result<Self, StatementError> {
        let head: WireStatement<Common> = read(payload)?;
        if head.r#type != STATEMENT_TYPE {
            return Err(body(format!("its _type is not {STATEMENT_TYPE}")));
        }
        let name = head.predicate_type.strip_prefix(PREDICATE_PREFIX);
        let name = name.ok_or_else(|| body(format!("its predicate type is not below {PREDICATE_PREFIX}")))?;
        if name.len() > 128 || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-.".contains(&b)) {
            return Err(body("its predicate type is not <kind>/v<number>"));
        }
        let kind = match name {
            "root/v1" => Kind::Root(predicate(payload)?),
            "invite/v1" => Kind::Invite(predicate(payload)?),
            "admit/v1" => Kind::Admit(predicate(payload)?),
            "revoke/v1" => Kind::Revoke(predicate(payload)?),
            "publish/v1" => {
                let fields: PublishFields = predicate(payload)?;
                Kind::Publish(Publish {
                    artifact: fields.artifact,
                    tag: fields.tag,
                    manifest: subject_manifest(&head.subject)?,
                    total_bytes: fields.total_bytes,
                })
            }
            "evaluate/v1" => {
                let OfArtifact { artifact, said } = predicate::<OfArtifact<Findings>>(payload)?;
                let manifest = subject_manifest(&head.subject)?;
                Kind::Evaluate(Evaluate { artifact, manifest, findings: said })
            }
            "verdict/v1" => {
                let OfArtifact { artifact, said } = predicate::<OfArtifact<Ruling>>(payload)?;
                let manifest = subject_manifest(&head.subject)?;
                Kind::Verdict(Verdict { artifact, manifest, ruling: said })
            }
            "policy/v1" => Kind::Policy(predicate(payload)?),
            "approve/v1" => Kind::Approve(on_channel(payload, &head.subject)?),
            "promote/v1" => Kind::Promote(on_channel(payload, &head.subject)?),
            "cosign/v1" => Kind::Cosign(on_channel(payload, &head.subject)?),
            "follow/v1" => Kind::Follow(predicate(payload)?),
            "rollback/v1" => Kind::Rollback(on_channel(payload, &head.subject)?),
            _ => Kind::Unknown { predicate_type: head.predicate_type },
        };
        let statement = Self {
            cluster: head.predicate.cluster,
            by: head.predicate.by,
            time: head.predicate.time,
            chain: head.predicate.chain,
            kind,
        };
        statement.check_form().map_err(body)?;
        if !matches!(statement.kind, Kind::Unknown { .. }) && head.subject != [statement.kind.subject()] {
            return Err(body("its subject is not what its predicate speaks of"));
        }
        Ok(statement)
    }
}

impl Kind {
    /// in-toto's subject: the thing itself where it has a SHA-256, else the SHA-256 of its key or name.
    fn subject(&self) -> Subject {
        let key = |key: &KeyId| Subject::new(key.to_string(), Sha256::of(&key.0));
        let statement = |id: &StatementId| Subject::new(id.to_string(), Sha256(id.0));
        match self {
            Kind::Root(root) => Subject::new(root.name.clone(), Sha256::of(root.name.as_bytes())),
            Kind::Invite(invite) => key(&invite.ticket),
            Kind::Admit(admit) => key(&admit.host),
            Kind::Revoke(revoke) => match &revoke.target {
                Target::Key { key: k, .. } => key(k),
                Target::Invite { id, .. } | Target::Statement { id } => statement(id),
            },
            Kind::Publish(p) => Subject::new(format!("{}:{}", p.artifact, p.tag), Sha256(p.manifest.0)),
            Kind::Evaluate(Evaluate { artifact, manifest, .. })
            | Kind::Verdict(Verdict { artifact, manifest, .. }) => {
                Subject::new(artifact.to_string(), Sha256(manifest.0))
            }
            Kind::Follow(follow) => {
                let name = format!("{}:{}", follow.artifact, follow.stage);
                let digest = Sha256::of(name.as_bytes());
                Subject::new(name, digest)
            }
            Kind::Policy(policy) => Subject::new(policy.scope.to_string(), policy.policy),
            Kind::Approve(OnChannel { channel, manifest, .. })
            | Kind::Promote(OnChannel { channel, manifest, .. })
            | Kind::Cosign(OnChannel { channel, manifest, .. })
            | Kind::Rollback(OnChannel { channel, manifest, .. }) => {
                Subject::new(channel.artifact.to_string(), Sha256(manifest.0))
            }
            Kind::Unknown { predicate_type } => {
                Subject::new(predicate_type.clone(), Sha256::of(predicate_type.as_bytes()))
            }
        }
    }
}

#[derive(Serialize, Deserialize)]
struct WireStatement<P> {
    #[serde(rename = "_type")]
    r#type: String,
    subject: Vec<Subject>,
    #[serde(rename = "predicateType")]
    predicate_type: String,
    predicate: P,
}

#[derive(Serialize, Deserialize)]
struct Common {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cluster: Option<ClusterId>,
    by: KeyId,
    time: UnixTime,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    chain: Option<Chain>,
}

#[derive(Serialize)]
struct WirePredicate<'a> {
    #[serde(flatten)]
    common: Common,
    #[serde(flatten)]
    kind: KindFields<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum KindFields<'a> {
    Root(&'a Root),
    Invite(&'a Invite),
    Admit(&'a Admit),
    Revoke(&'a Revoke),
    Publish(PublishFields),
    Evaluate(OfArtifact<&'a Findings>),
    Verdict(OfArtifact<&'a Ruling>),
    Policy(&'a SetPolicy),
    Approve(OfChannel<&'a Approval>),
    Promote(OfChannel<&'a Promotion>),
    Cosign(OfChannel<&'a Cosignature>),
    Rollback(OfChannel<&'a Rollback>),
    Follow(&'a Follow),
    Unknown {},
}

#[derive(PartialEq, Eq, Serialize, Deserialize)]
struct Subject {
    name: String,
    digest: DigestSet,
}

#[derive(PartialEq, Eq, Serialize, Deserialize)]
struct DigestSet {
    #[serde(with = "bare_hex")]
    sha256: Sha256,
}

#[derive(Serialize, Deserialize)]
struct PublishFields {
    artifact: Artifact,
    tag: Tag,
    total_bytes: u64,
}

#[derive(Serialize, Deserialize)]
struct OfArtifact<T> {
    artifact: Artifact,
    #[serde(flatten)]
    said: T,
}

#[derive(Serialize, Deserialize)]
struct OfChannel<T> {
    #[serde(flatten)]
    channel: Channel,
    #[serde(flatten)]
    said: T,
}

/// A second look at the same bytes for what only one kind has; the first found the kind.
#[derive(Deserialize)]
struct WireKind<K> {
    predicate: K,
}

impl Subject {
    fn new(name: String, sha256: Sha256) -> Self {
        Self { name, digest: DigestSet { sha256 } }
    }
}

mod bare_hex {
    //! in-toto writes digests as hex without a prefix.
    use super::{Deserialize, Deserializer, Serializer, Sha256};

    pub(super) fn serialize<S: Serializer>(digest: &Sha256, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&digest.hex())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Sha256, D::Error> {
        let hex = String::deserialize(d)?;
        format!("sha256:{hex}").parse().map_err(serde::de::Error::custom)
    }
}

fn read<T: DeserializeOwned>(payload: &[u8]) -> Result<T, StatementError> {
    serde_json::from_slice(payload).map_err(|e| body(e.to_string()))
}

fn predicate<K: DeserializeOwned>(payload: &[u8]) -> Result<K, StatementError> {
    Ok(read::<WireKind<K>>(payload)?.predicate)
}

fn of_channel<T>(of: &OnChannel<T>) -> OfChannel<&T> {
    OfChannel { channel: of.channel.clone(), said: &of.said }
}

fn on_channel<T: DeserializeOwned>(
    payload: &[u8],
    subject: &[Subject],
) -> Result<OnChannel<T>, StatementError> {
    let OfChannel { channel, said } = predicate(payload)?;
    Ok(OnChannel { channel, manifest: subject_manifest(subject)?, said })
}

fn subject_manifest(subject: &[Subject]) -> Result<ManifestDigest, StatementError> {
    let first = subject.first().ok_or_else(|| body("it has no subject"))?;
    Ok(ManifestDigest(first.digest.sha256.0))
}

fn body(reason: impl Into<String>) -> StatementError {
    StatementError::Body { reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statement::Signed;

    fn publish() -> Statement {
        Statement {
            cluster: Some(ClusterId([7; 32])),
            by: Keypair::from_seed([1; 32]).key_id(),
            time: UnixTime(1_800_000_000),
            chain: None,
            kind: Kind::Publish(Publish {
                artifact: "acme/bot".parse().expect("artifact"),
                tag: "1.0.0".parse().expect("tag"),
                manifest: ManifestDigest::of(b"m"),
                total_bytes: 42,
            }),
        }
    }

    #[test]
    fn a_publish_is_an_in_toto_statement() {
        let payload = publish().to_payload();
        let json: serde_json::Value = serde_json::from_slice(&payload).expect("json");
        assert_eq!(json["_type"], STATEMENT_TYPE);
        assert_eq!(json["subject"][0]["name"], "acme/bot:1.0.0");
        assert_eq!(json["subject"][0]["digest"]["sha256"], ManifestDigest::of(b"m").hex());
        assert_eq!(json["predicateType"], "https://weighlock.dev/publish/v1");
        assert_eq!(Statement::parse(&payload), Ok(publish()));
    }

    #[test]
    fn bodies_that_say_two_things_are_refused() {
        let text = String::from_utf8(publish().to_payload()).expect("utf-8");
        let digest = ManifestDigest::of(b"m").hex();
        let chain = "\"chain\":{\"seq\":0,\"prev\":null},\"by\":";
        for (from, to) in [
            ("acme/bot:1.0.0", "acme/bot:1.0.1"),
            ("\"1.0.0\"", "\"production\""),
            ("\"artifact\":\"acme/bot\"", "\"artifact\":\"../bot\""),
            (digest.as_str(), "00"),
            ("\"total_bytes\":42", "\"total_bytes\":-1"),
            ("\"total_bytes\":42", "\"total_bytes\":42,\"total_bytes\":43"),
            ("\"by\":", chain),
            ("Statement/v1", "Statement/v2"),
            ("weighlock.dev", "example.com"),
            ("publish/v1", "publish/v1\\n"),
            ("\"cluster\":", "\"cluste\":"),
            ("\"subject\":[{", "\"subject\":[],\"x\":[{"),
        ] {
            let other = text.replacen(from, to, 1);
            assert_ne!(other, text, "{from} was not found");
            assert!(Statement::parse(other.as_bytes()).is_err(), "{other} was accepted");
        }
    }

    #[test]
    fn later_kinds_and_fields_are_read_as_far_as_they_are_known() {
        let text = String::from_utf8(publish().to_payload()).expect("utf-8");
        let more = text.replacen("\"by\":", "\"colour\":\"blue\",\"by\":", 1);
        assert_eq!(Statement::parse(more.as_bytes()), Ok(publish()));
        let later = text.replacen("publish/v1", "publish/v2", 1);
        let later = Statement::parse(later.as_bytes()).expect("unknown kinds are kept");
        assert_eq!(
            later.kind,
            Kind::Unknown { predicate_type: "https://weighlock.dev/publish/v2".to_owned() }
        );
        assert_eq!(later.by, publish().by);
    }

    #[test]
    fn the_author_must_sign_and_every_signature_must_hold() {
        let author = Keypair::from_seed([1; 32]);
        let other = Keypair::from_seed([2; 32]);
        let signed = Signed::parse(publish().sign(&[&other, &author])).expect("both");
        assert!(signed.verify().is_ok());
        assert!(matches!(
            Signed::parse(publish().sign(&[&other])),
            Err(StatementError::AuthorMissing { .. })
        ));
        let mut later = publish();
        later.time = UnixTime(1);
        let forged = [later.sign(&[&author]).to_json(), publish().sign(&[&author]).to_json()]
            .map(|json| serde_json::from_slice::<serde_json::Value>(&json).expect("json"));
        let [mut forged, original] = forged;
        forged["signatures"] = original["signatures"].clone();
        let forged = Envelope::parse(forged.to_string().as_bytes()).expect("form is right");
        assert_eq!(
            Signed::parse(forged).expect("form is right").verify().err(),
            Some(StatementError::Signature { key: author.key_id() })
        );
    }
}
