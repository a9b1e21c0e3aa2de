//! The ledger as its users see it: who is in, what counts, and that only the set matters.

mod golden;
mod ladder;
mod membership;
mod properties;
mod publishing;
mod roots;
mod weighing;

use std::collections::BTreeMap;

use super::*;
use crate::id::{ClusterId, KeyId, ManifestDigest, StatementId};
use crate::time::UnixTime;

/// A day well after every signed time in these tests and before every expiry, unless a test says otherwise.
const NOW: UnixTime = UnixTime(1_800_000_000);
const LATER: UnixTime = UnixTime(1_900_000_000);

fn key(n: u8) -> Keypair {
    Keypair::from_seed([n; 32])
}

fn id(n: u8) -> KeyId {
    key(n).key_id()
}

fn at(secs: u64) -> UnixTime {
    NOW.plus(secs)
}

/// Someone who signs, and where its chain stands.
#[derive(Clone)]
struct Voice {
    key: Keypair,
    cluster: Option<ClusterId>,
    next: Chain,
}

impl Voice {
    fn new(n: u8, cluster: ClusterId) -> Self {
        Self { key: key(n), cluster: Some(cluster), next: Chain { seq: 0, prev: None } }
    }

    fn statement(&self, time: UnixTime, kind: Kind) -> Statement {
        Statement {
            cluster: self.cluster,
            by: self.key.key_id(),
            time,
            chain: kind.is_chained().then_some(self.next),
            kind,
        }
    }

    fn say(&mut self, time: UnixTime, kind: Kind) -> Envelope {
        let statement = self.statement(time, kind);
        let envelope = statement.sign(&[&self.key]);
        if statement.chain.is_some() {
            self.next = Chain { seq: self.next.seq + 1, prev: Some(envelope.id()) };
        }
        envelope
    }
}

fn role(keys: &[u8], threshold: u32, namespaces: &[&str], members: bool) -> RoleSpec {
    RoleSpec {
        keys: keys.iter().map(|n| id(*n)).collect(),
        threshold,
        namespaces: namespaces.iter().map(|g| g.parse().expect("glob")).collect(),
        members,
    }
}

fn root_of(admins: &[u8], threshold: u32) -> Root {
    Root {
        version: 1,
        prev_root: None,
        name: "lab".to_owned(),
        roles: BTreeMap::from([
            (Role::Admin, role(admins, threshold, &["*"], false)),
            (Role::Publisher, role(&[20], 1, &["acme", "acme-*"], true)),
        ]),
        expires: LATER,
        settled: BTreeMap::new(),
    }
}

/// Admin 1's cluster: its first root is applied.
fn cluster() -> (Voice, Ledger) {
    cluster_of(root_of(&[1], 1))
}

fn cluster_of(root: Root) -> (Voice, Ledger) {
    let mut admin = Voice::new(1, ClusterId([0; 32]));
    admin.cluster = None;
    let first = admin.say(NOW, Kind::Root(root));
    let cluster = ClusterId(first.id().0);
    admin.cluster = Some(cluster);
    let mut ledger = Ledger::new(LedgerConfig::new(cluster));
    put(&mut ledger, &first);
    (admin, ledger)
}

fn put(ledger: &mut Ledger, envelope: &Envelope) -> Applied {
    let checked = ledger.check(envelope).expect("well made");
    ledger.apply(checked)
}

fn invite(ticket: u8, uses: u32) -> Kind {
    Kind::Invite(Invite {
        ticket: id(ticket),
        expires: at(1_000),
        uses,
        admit_secs_max: 100_000,
        labels: Labels::from([("rack".to_owned(), "r1".to_owned())]),
        note: String::new(),
    })
}

fn admit(host: u8, invite: Option<StatementId>) -> Kind {
    Kind::Admit(Admit {
        host: id(host),
        name: format!("host-{host}"),
        labels: Labels::from([("rack".to_owned(), "mine".to_owned())]),
        expires: at(50_000),
        invite,
    })
}

fn revoke(target: Target) -> Kind {
    Kind::Revoke(Revoke { target, reason: "test".to_owned() })
}

fn revoke_key(host: u8) -> Kind {
    revoke(Target::Key { key: id(host), since: None })
}

fn publish(tag: &str, manifest: u8) -> Kind {
    Kind::Publish(Publish {
        artifact: "acme/bot".parse().expect("artifact"),
        tag: tag.parse().expect("tag"),
        manifest: ManifestDigest([manifest; 32]),
        total_bytes: 1,
    })
}

fn resolve(ledger: &Ledger, tag: &str) -> Resolution {
    ledger.resolve_tag(&"acme/bot".parse().expect("artifact"), &tag.parse().expect("tag"))
}

/// Everything that a ledger answers, as text.
fn picture(ledger: &Ledger) -> String {
    let statuses: Vec<_> = ledger.statements().map(|id| (id, ledger.status(&id))).collect();
    let tags: Vec<_> =
        ledger.artifacts().map(|a| (a.to_string(), ledger.tags(a).collect::<Vec<_>>())).collect();
    let of: Vec<_> =
        (0..8).map(|n| ledger.publishes_of(&ManifestDigest([n; 32])).collect::<Vec<_>>()).collect();
    let weighed: Vec<_> = (0..8)
        .map(|n| ManifestDigest([n; 32]))
        .map(|digest| {
            let bot = "acme/bot".parse().expect("artifact");
            (ledger.evaluations_of(&bot, &digest), ledger.verdicts_on(&bot, &digest))
        })
        .collect();
    let opens = |a| {
        (0..8).map(|n| ledger.may_open(a, &ManifestDigest([n; 32]), "cpu/x86-64-v4", NOW)).collect::<Vec<_>>()
    };
    let ballots = |a| ledger.pending_of(a).iter().map(|id| (*id, ledger.ballot(id, NOW))).collect::<Vec<_>>();
    let ladder: Vec<_> = ledger
        .promoted_artifacts()
        .map(|a| (ledger.heads_of(a).collect::<Vec<_>>(), ledger.kept(a, 2), ballots(a), opens(a)))
        .collect();
    let policies: Vec<_> = ledger.policies().collect();
    let chains: Vec<_> = (0..60).map(|n| (ledger.next_chain(&id(n)), ledger.is_revoked(&id(n)))).collect();
    format!(
        "{:?}\n{:?}\n{:?}\n{:?}\n{:?}\n{statuses:?}\n{tags:?}\n{of:?}\n{weighed:?}\n{ladder:?}\n{policies:?}\n{chains:?}\n{:?}",
        ledger.root(NOW),
        ledger.members(NOW).collect::<Vec<_>>(),
        ledger.invites(NOW).collect::<Vec<_>>(),
        ledger.revocations().collect::<Vec<_>>(),
        ledger.alarms(NOW),
        ledger.summary(),
    )
}
