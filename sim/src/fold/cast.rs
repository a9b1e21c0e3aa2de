//! Who there is beside the hosts, what they know to sign, and the truth about every statement ever made.

use std::collections::{BTreeMap, BTreeSet};

use weighlock_protocol::statement::{
    Chain, Envelope, Keypair, Kind, Role, RoleSpec, Root, Signed, Statement, Target,
};
use weighlock_protocol::{Artifact, ClusterId, KeyId, ManifestDigest, StatementId, Tag, UnixTime};

/// A key of the run: the same seed, role and number give the same key.
pub(super) fn key(seed: u64, role: &str, n: usize) -> Keypair {
    Keypair::from_seed(*blake3::hash(format!("{seed} {role} {n}").as_bytes()).as_bytes())
}

/// A ticket that an admin handed out.
#[derive(Debug, Clone)]
pub(super) struct Ticket {
    pub(super) key: Keypair,
    pub(super) invite: Envelope,
    /// Admissions that it has signed.
    pub(super) signed: usize,
}

/// Keys that act, and what they have to act on.
#[derive(Debug)]
pub(super) struct Cast {
    pub(super) cluster: ClusterId,
    pub(super) admins: Vec<Keypair>,
    /// Named as publishers by every root.
    pub(super) publishers: Vec<Keypair>,
    /// Who may evaluate; nobody in worlds without evaluations.
    pub(super) evaluators: Vec<Keypair>,
    /// Keys of hosts that are never switched on: admitted, revoked, and heard of through what they publish.
    pub(super) ghosts: Vec<Keypair>,
    pub(super) tickets: Vec<Ticket>,
    pub(super) threshold: u32,
}

impl Cast {
    /// Admins, publishers, evaluators and ghosts of `cluster`.
    pub(super) fn new(cluster: ClusterId, keys: [Vec<Keypair>; 4], threshold: u32) -> Self {
        let [admins, publishers, evaluators, ghosts] = keys;
        Self { cluster, admins, publishers, evaluators, ghosts, tickets: Vec::new(), threshold }
    }

    /// A root of `version` under `admins`.
    pub(super) fn root(&self, version: u32, prev_root: Option<StatementId>, admins: &[usize]) -> Root {
        let admins = admins.iter().map(|n| &self.admins[*n]);
        root(version, prev_root, admins, &self.publishers, &self.evaluators, self.threshold)
    }

    /// Signs something as admin `n` says it, with as many others as it takes.
    pub(super) fn sign_together(
        &self,
        n: usize,
        time: UnixTime,
        chain: Option<Chain>,
        kind: Kind,
    ) -> Envelope {
        let mut envelope = self.sign(&self.admins[n], time, chain, kind);
        for other in (0..self.admins.len()).filter(|other| *other != n).take(self.threshold as usize - 1) {
            envelope.endorse(&self.admins[other]);
        }
        envelope
    }

    /// Signs something as `by` says it.
    pub(super) fn sign(&self, by: &Keypair, time: UnixTime, chain: Option<Chain>, kind: Kind) -> Envelope {
        Statement { cluster: Some(self.cluster), by: by.key_id(), time, chain, kind }.sign(&[by])
    }
}

/// A root of `version`, with room for members to publish below `acme`.
pub(super) fn root<'a>(
    version: u32,
    prev_root: Option<StatementId>,
    admins: impl Iterator<Item = &'a Keypair>,
    publishers: &[Keypair],
    evaluators: &[Keypair],
    threshold: u32,
) -> Root {
    let everywhere = vec!["*".parse().expect("a glob")];
    let below = vec!["acme".parse().expect("a glob"), "acme-*".parse().expect("a glob")];
    let admins: BTreeSet<KeyId> = admins.map(Keypair::key_id).collect();
    let threshold = threshold.min(u32::try_from(admins.len()).unwrap_or(u32::MAX));
    let publishers = publishers.iter().map(Keypair::key_id).collect();
    let evaluators: BTreeSet<KeyId> = evaluators.iter().map(Keypair::key_id).collect();
    let mut roles = BTreeMap::from([
        (Role::Admin, RoleSpec { keys: admins, threshold, namespaces: everywhere, members: false }),
        (
            Role::Publisher,
            RoleSpec { keys: publishers, threshold: 1, namespaces: below.clone(), members: true },
        ),
    ]);
    if !evaluators.is_empty() {
        let spec = RoleSpec { keys: evaluators, threshold: 1, namespaces: below, members: false };
        roles.insert(Role::Evaluator, spec);
    }
    Root {
        version,
        prev_root,
        name: "lab".to_owned(),
        roles,
        expires: UnixTime(1_900_000_000),
        settled: BTreeMap::new(),
    }
}

/// What was really signed by whom. Checkers hold hosts against it; no host sees it.
#[derive(Debug, Default)]
pub struct Truth {
    /// Every statement that its author signed.
    pub signed: BTreeMap<StatementId, Statement>,
    /// Who really signed each.
    pub signers: BTreeMap<StatementId, BTreeSet<KeyId>>,
    /// Payloads that nobody signed.
    pub forged: BTreeSet<StatementId>,
    /// Authors that put two bodies at one place, and the place.
    pub equivocations: BTreeSet<(KeyId, u64)>,
    /// For each name and tag, the digests that someone ever entitled has named.
    named: BTreeMap<(Artifact, Tag), BTreeSet<(ManifestDigest, KeyId)>>,
    /// Keys that were ever admin, and keys of tickets.
    pub(super) admitters: BTreeSet<KeyId>,
    entitled: BTreeSet<KeyId>,
    at: BTreeMap<(KeyId, u64), StatementId>,
}

impl Truth {
    /// Notes an envelope whose signatures are all real.
    pub(super) fn note(&mut self, envelope: &Envelope) {
        let Ok(signed) = Signed::parse(envelope.clone()) else { return };
        let (id, statement) = (signed.id(), signed.body().clone());
        self.signers.entry(id).or_default().extend(envelope.signatures().iter().map(|s| s.key));
        match &statement.kind {
            Kind::Publish(p) => {
                let named = self.named.entry((p.artifact.clone(), p.tag.clone())).or_default();
                named.insert((p.manifest, statement.by));
            }
            Kind::Admit(admit) if self.admitters.contains(&statement.by) => {
                self.entitled.insert(admit.host);
            }
            Kind::Root(root) if self.admitters.contains(&statement.by) => {
                if let Some(publishers) = root.roles.get(&Role::Publisher) {
                    self.entitled.extend(&publishers.keys);
                }
            }
            _ => {}
        }
        if let Some(chain) = statement.chain {
            let first = *self.at.entry((statement.by, chain.seq)).or_insert(id);
            if first != id {
                self.equivocations.insert((statement.by, chain.seq));
            }
        }
        self.signed.insert(id, statement);
    }

    /// Whether anyone who was ever named publisher or admitted said that the tag means `digest`, in a namespace that
    /// the root gives.
    pub fn was_named(&self, artifact: &Artifact, tag: &Tag, digest: &ManifestDigest) -> bool {
        let below = artifact.namespace() == "acme" || artifact.namespace().starts_with("acme-");
        let named = self.named.get(&(artifact.clone(), tag.clone()));
        below && named.is_some_and(|all| all.iter().any(|(d, by)| d == digest && self.entitled.contains(by)))
    }

    /// Whether `key` was ever admitted or named.
    pub fn is_entitled(&self, key: &KeyId) -> bool {
        self.entitled.contains(key)
    }

    /// Whether `key` was ever an admin's or a ticket's.
    pub fn may_admit(&self, key: &KeyId) -> bool {
        self.admitters.contains(key)
    }

    /// Publishes and the like, for attacks and revocations to aim at.
    pub(super) fn targets(&self) -> Vec<StatementId> {
        let aim = |s: &Statement| match &s.kind {
            kind if kind.artifact().is_some() => true,
            Kind::Policy(_) | Kind::Unknown { .. } => true,
            Kind::Admit(admit) => admit.invite.is_some(),
            Kind::Revoke(revoke) => matches!(revoke.target, Target::Statement { .. }),
            _ => false,
        };
        self.signed.iter().filter(|(_, s)| aim(s)).map(|(id, _)| *id).collect()
    }
}
