//! Who there is beside the hosts, what they know to sign, and the truth about every statement ever made.

use std::collections::{BTreeMap, BTreeSet};

use weighlock_protocol::statement::{
    Chain, Channel, Envelope, Keypair, Kind, Revoke, Role, RoleSpec, Root, Signed, Statement, Target,
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

/// Who holds which office in the roots of a run, beside the admins.
#[derive(Debug, Clone)]
pub(super) struct Offices {
    /// Named as publishers by every root.
    pub(super) publishers: Vec<Keypair>,
    /// Who may evaluate; nobody in worlds without evaluations.
    pub(super) evaluators: Vec<Keypair>,
    /// Who may approve, promote and roll back; nobody in worlds without channels.
    pub(super) promoters: Vec<Keypair>,
    /// Hosts that the next root names as witnesses.
    pub(super) witnesses: BTreeSet<KeyId>,
}

/// Keys that act, and what they have to act on.
#[derive(Debug)]
pub(super) struct Cast {
    pub(super) cluster: ClusterId,
    pub(super) admins: Vec<Keypair>,
    pub(super) offices: Offices,
    /// Keys of hosts that are never switched on: admitted, revoked, and heard of through what they publish.
    pub(super) ghosts: Vec<Keypair>,
    pub(super) tickets: Vec<Ticket>,
    pub(super) threshold: u32,
}

impl Cast {
    /// Everyone but the hosts.
    pub(super) fn new(
        cluster: ClusterId,
        admins: Vec<Keypair>,
        offices: Offices,
        ghosts: Vec<Keypair>,
        threshold: u32,
    ) -> Self {
        Self { cluster, admins, offices, ghosts, tickets: Vec::new(), threshold }
    }

    /// A root of `version` under `admins`.
    pub(super) fn root(&self, version: u32, prev_root: Option<StatementId>, admins: &[usize]) -> Root {
        let admins = admins.iter().map(|n| &self.admins[*n]);
        self.offices.root(version, prev_root, admins, self.threshold)
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

impl Offices {
    /// A root of `version`, with room for members to publish below `acme`.
    pub(super) fn root<'a>(
        &self,
        version: u32,
        prev_root: Option<StatementId>,
        admins: impl Iterator<Item = &'a Keypair>,
        threshold: u32,
    ) -> Root {
        let everywhere = vec!["*".parse().expect("a glob")];
        let below = vec!["acme".parse().expect("a glob"), "acme-*".parse().expect("a glob")];
        let admins: BTreeSet<KeyId> = admins.map(Keypair::key_id).collect();
        let threshold = threshold.min(u32::try_from(admins.len()).unwrap_or(u32::MAX));
        let ids = |keys: &[Keypair]| keys.iter().map(Keypair::key_id).collect::<BTreeSet<KeyId>>();
        let mut roles = BTreeMap::from([
            (
                Role::Admin,
                RoleSpec { keys: admins, threshold, namespaces: everywhere.clone(), members: false },
            ),
            (
                Role::Publisher,
                RoleSpec {
                    keys: ids(&self.publishers),
                    threshold: 1,
                    namespaces: below.clone(),
                    members: true,
                },
            ),
        ]);
        let more = [
            (Role::Evaluator, ids(&self.evaluators), below.clone()),
            (Role::Promoter, ids(&self.promoters), below),
            (Role::Witness, self.witnesses.clone(), everywhere),
        ];
        for (role, keys, namespaces) in more.into_iter().filter(|(_, keys, _)| !keys.is_empty()) {
            roles.insert(role, RoleSpec { keys, threshold: 1, namespaces, members: false });
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
}

/// Where a witness has one vote: channel, parent, epoch, version of the root.
pub(super) type Place = (Channel, Option<StatementId>, u64, u32);

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
    /// Promotions and rollbacks, in order, and when each was first said: while the network was in this state.
    pub(super) moves: BTreeMap<StatementId, u64>,
    /// By witness and place: the promotions that it cosigned there, of which an honest one has one.
    pub(super) votes: BTreeMap<(KeyId, Place), BTreeSet<StatementId>>,
    /// Who cosigned each promotion.
    pub(super) cosigners: BTreeMap<StatementId, BTreeSet<KeyId>>,
    /// Artifacts of which something was taken back.
    pub(super) taken_back: BTreeSet<Artifact>,
    /// Witnesses of roots, by version: with a threshold of one, two admins who do not hear each other may rotate to
    /// different ones.
    roots: BTreeMap<u32, BTreeSet<BTreeSet<KeyId>>>,
    /// Keys that a root ever let evaluate, promote or cosign.
    officers: BTreeSet<KeyId>,
    /// Whether the key of an officer or a policy was revoked, which touches every artifact.
    pub(super) all_taken_back: bool,
    /// Counts the changes of what can reach what.
    pub(super) spell: u64,
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
                let witnesses =
                    root.roles.get(&Role::Witness).map(|role| role.keys.iter().copied().collect());
                self.roots.entry(root.version).or_default().insert(witnesses.unwrap_or_default());
                let offices = [Role::Evaluator, Role::Promoter, Role::Witness];
                let officers = offices.iter().filter_map(|role| root.roles.get(role));
                self.officers.extend(officers.flat_map(|role| &role.keys));
                if let Some(publishers) = root.roles.get(&Role::Publisher) {
                    self.entitled.extend(&publishers.keys);
                }
            }
            Kind::Promote(_) | Kind::Rollback(_) => {
                self.moves.entry(id).or_insert(self.spell);
            }
            Kind::Cosign(c) => {
                let said = &c.said;
                let place = (c.channel.clone(), said.parent, said.epoch, said.root);
                self.votes.entry((statement.by, place)).or_default().insert(said.promotion);
                self.cosigners.entry(said.promotion).or_default().insert(statement.by);
            }
            Kind::Revoke(Revoke { target: Target::Statement { id }, .. }) => {
                let of = self.signed.get(id).map(|s| &s.kind);
                let moves = of.filter(|kind| kind.channel().is_some() || matches!(kind, Kind::Verdict(_)));
                self.taken_back.extend(moves.and_then(Kind::artifact).cloned());
                // A policy covers many.
                self.all_taken_back |= matches!(of, Some(Kind::Policy(_)));
            }
            Kind::Revoke(Revoke { target: Target::Key { key, .. }, .. }) => {
                self.all_taken_back |= self.officers.contains(key);
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

    /// All that anyone published as `artifact`.
    pub fn manifests_of(&self, artifact: &Artifact) -> BTreeSet<ManifestDigest> {
        let of_it = self.named.iter().filter(|((of, _), _)| of == artifact);
        of_it.flat_map(|(_, named)| named.iter().map(|(digest, _)| *digest)).collect()
    }

    /// Whether `key` was ever admitted or named.
    pub fn is_entitled(&self, key: &KeyId) -> bool {
        self.entitled.contains(key)
    }

    /// Whether `key` was ever an admin's or a ticket's.
    pub fn may_admit(&self, key: &KeyId) -> bool {
        self.admitters.contains(key)
    }

    /// Whether some witness signed both of these promotions in one place.
    pub fn signed_both(&self, one: &StatementId, other: &StatementId) -> bool {
        self.votes.values().any(|given| given.contains(one) && given.contains(other))
    }

    /// Whether some witness that signs twice in one place cosigned both of these, be it in different epochs, and without
    /// such witnesses one of them has fewer than `majority`.
    pub fn carried_both(&self, one: &StatementId, other: &StatementId, majority: usize) -> bool {
        let (Some(one), Some(other)) = (self.cosigners.get(one), self.cosigners.get(other)) else {
            return false;
        };
        let twice = |key: &KeyId| self.votes.iter().any(|((by, _), given)| by == key && given.len() > 1);
        let honest = |all: &BTreeSet<KeyId>| all.iter().filter(|key| !twice(key)).count();
        one.intersection(other).any(twice) && honest(one).min(honest(other)) < majority
    }

    /// Whether there were several roots of this version, each with witnesses of its own: one of them wins in the end.
    pub fn is_forked(&self, root: u32) -> bool {
        self.roots.get(&root).is_some_and(|roots| roots.len() > 1)
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
