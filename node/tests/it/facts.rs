//! The owner of statements on a real store: founding, joining by ticket, publishing, refusing.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use weighlock::cluster;
use weighlock::error::Kind as Failure;
use weighlock::facts::{Facts, Purpose};
use weighlock::keys;
use weighlock_cache::{ImportOptions, Staged, Store, StoreConfig, inspect};
use weighlock_protocol::statement::{Chain, Channel, Envelope, Invite, Keypair, Kind, Publish, Statement};
use weighlock_protocol::ticket::Ticket;
use weighlock_protocol::wire::join::{JoinAnswer, JoinRequest};
use weighlock_protocol::{ClusterId, ManifestDigest, Reference, Stage};

struct Founder {
    _dir: tempfile::TempDir,
    store: Store,
    facts: Facts,
    host: Keypair,
    admin: Keypair,
    cluster: ClusterId,
}

fn found() -> Founder {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = Store::open(dir.path().join("data"), StoreConfig::default()).expect("store");
    let host = keys::host_key(&dir.path().join("data")).expect("host key");
    let founded = cluster::found(&store, &dir.path().join("keys"), &host, "alpha", &BTreeMap::new(), "test")
        .expect("founded");
    let admin = keys::load(&founded.admin_key).expect("admin key");
    let facts = Facts::open(store.clone(), host.clone(), founded.cluster).expect("facts");
    Founder { _dir: dir, store, facts, host, admin, cluster: founded.cluster }
}

impl Founder {
    fn statements(&self) -> usize {
        self.store.statements().expect("statements").len()
    }

    /// A ticket whose invite `signer` signs, submitted if `submit`.
    fn ticket(&self, signer: &Keypair, expires_in: u64, submit: bool) -> Ticket {
        let key = Keypair::from_seed([9; 32]);
        let next = self.facts.ledger().next_chain(&signer.key_id());
        let now = cluster::now();
        let invite = Statement {
            cluster: Some(self.cluster),
            by: signer.key_id(),
            time: now,
            chain: Some(Chain { seq: next.seq, prev: next.prev }),
            kind: Kind::Invite(Invite {
                ticket: key.key_id(),
                expires: now.plus(expires_in),
                uses: 1,
                admit_secs_max: 1000,
                labels: BTreeMap::new(),
                note: String::new(),
            }),
        }
        .sign(&[signer]);
        if submit {
            let taken = self.facts.ingest(vec![invite.to_json()], true).expect("ingest");
            assert_eq!(taken.accepted.len(), 1);
        }
        let roots: Vec<Envelope> = self.facts.ledger().root_chain().cloned().collect();
        Ticket::new(key, roots, invite, Vec::new()).expect("ticket")
    }

    fn join(&self, ticket: &Ticket, admitted: &Keypair, connected_as: &Keypair) -> JoinAnswer {
        let now = cluster::now();
        let admit =
            ticket.admit(admitted.key_id(), "beta", BTreeMap::new(), now, now.plus(500)).expect("admission");
        let mut statements = ticket.roots().to_vec();
        statements.extend([ticket.invite_envelope().clone(), admit]);
        self.facts.join(connected_as.key_id(), &JoinRequest { statements }.encode())
    }
}

#[test]
fn a_founder_is_a_member_and_stays_one() {
    let f = found();
    assert!(f.facts.ledger().is_member(&f.host.key_id(), cluster::now()));
    let again = Facts::open(f.store.clone(), f.host.clone(), f.cluster).expect("reopened");
    assert!(again.ledger().is_member(&f.host.key_id(), cluster::now()));
    let dir = tempfile::tempdir().expect("tempdir");
    let twice = cluster::found(&f.store, dir.path(), &f.host, "alpha", &BTreeMap::new(), "other");
    assert_eq!(twice.expect_err("founded twice").kind, Failure::Refused);
}

#[test]
fn a_ticket_admits_its_holder_and_nobody_else() {
    let f = found();
    let ticket = f.ticket(&f.admin, 600, true);
    let (beta, thief) = (Keypair::from_seed([2; 32]), Keypair::from_seed([3; 32]));
    let before = f.statements();
    // An admission of beta, brought by a connection that proved another key.
    assert!(matches!(f.join(&ticket, &beta, &thief), JoinAnswer::Refused { .. }));
    assert_eq!(f.statements(), before);
    let JoinAnswer::Welcome { statements, .. } = f.join(&ticket, &beta, &beta) else {
        panic!("not admitted")
    };
    assert!(f.facts.ledger().is_member(&beta.key_id(), cluster::now()));
    assert!(f.facts.members().borrow().contains(&beta.key_id()));
    assert!(statements.len() >= 4, "root, admission of the founder, invite, admission");
    // One use: the next host is refused, and leaves nothing behind.
    let before = f.statements();
    assert!(matches!(f.join(&ticket, &thief, &thief), JoinAnswer::Refused { .. }));
    assert_eq!(f.statements(), before);
    assert!(matches!(f.facts.join(thief.key_id(), b"garbage"), JoinAnswer::Refused { .. }));
}

#[test]
fn a_forged_invite_admits_nobody_and_is_not_stored() {
    let f = found();
    let nobody = Keypair::from_seed([5; 32]);
    let before = f.statements();
    let ticket = f.ticket(&nobody, 600, false);
    assert!(matches!(f.join(&ticket, &nobody, &nobody), JoinAnswer::Refused { .. }));
    assert_eq!(f.statements(), before);
    assert!(!f.facts.ledger().is_member(&nobody.key_id(), cluster::now()));
}

#[test]
fn a_ticket_that_the_member_has_not_heard_of_proves_itself() {
    let f = found();
    let ticket = f.ticket(&f.admin, 600, false);
    let beta = Keypair::from_seed([2; 32]);
    assert!(matches!(f.join(&ticket, &beta, &beta), JoinAnswer::Welcome { .. }));
    assert!(f.facts.ledger().is_member(&beta.key_id(), cluster::now()));
}

fn stage(store: &Store, dir: &Path, text: &str) -> Staged {
    std::fs::create_dir_all(dir).expect("dir");
    std::fs::write(dir.join("notes.txt"), text).expect("write");
    let plan = inspect::plan(dir, &inspect::Options::default()).expect("plan");
    store.import(&plan, &ImportOptions::default(), &|_| {}, &AtomicBool::new(false)).expect("import")
}

#[test]
fn tags_are_immutable_and_publishing_twice_is_publishing_once() {
    let f = found();
    let dir = tempfile::tempdir().expect("tempdir");
    let reference: Reference = "acme/bot:1.0.0".parse().expect("reference");
    let (first, new) =
        f.facts.publish(&reference, stage(&f.store, &dir.path().join("a"), "one")).expect("published");
    assert!(new);
    let digest = f.facts.resolve(&reference).expect("resolves");
    let (again, new) =
        f.facts.publish(&reference, stage(&f.store, &dir.path().join("a"), "one")).expect("again");
    assert_eq!((again, new), (first, false));
    let before = (f.statements(), f.store.layers().expect("layers").len());
    let other =
        f.facts.publish(&reference, stage(&f.store, &dir.path().join("b"), "two")).expect_err("other bytes");
    assert_eq!(other.kind, Failure::Refused);
    assert_eq!((f.statements(), f.store.layers().expect("layers").len()), before);
    let reopened = Facts::open(f.store.clone(), f.host.clone(), f.cluster).expect("reopened");
    assert_eq!(reopened.resolve(&reference), Ok(digest));
    let unknown = reopened.resolve(&"acme/bot:2.0.0".parse().expect("reference")).expect_err("unknown");
    assert_eq!(unknown.kind, Failure::NotFound);
    assert!(unknown.hint.is_some_and(|hint| hint.contains("1.0.0")), "the hint lists what there is");
}

#[test]
fn a_shortened_digest_means_the_one_that_begins_so() {
    let f = found();
    let publish = |tag: &str, digest: [u8; 32]| {
        let statement = Statement {
            cluster: Some(f.cluster),
            by: f.host.key_id(),
            time: cluster::now(),
            chain: None,
            kind: Kind::Publish(Publish {
                artifact: "acme/bot".parse().expect("a name"),
                tag: tag.parse().expect("a tag"),
                manifest: ManifestDigest(digest),
                total_bytes: 1,
            }),
        };
        let taken = f.facts.ingest(vec![statement.sign(&[&f.host]).to_json()], true).expect("ingest");
        assert_eq!((taken.accepted.len(), taken.refused), (1, None));
        ManifestDigest(digest)
    };
    let mut twin = [0xab; 32];
    twin[5] = 0;
    let (one, two) = (publish("1.0.0", [0xab; 32]), publish("2.0.0", twin));
    let other = publish("3.0.0", [0xcd; 32]);
    let resolve = |text: &str| f.facts.resolve(&text.parse().expect("a reference"));
    assert_eq!(resolve("acme/bot@sha256:cdcdcdcd"), Ok(other));
    assert_eq!(resolve("acme/bot@sha256:ababababab00"), Ok(two));
    assert_eq!(resolve(&format!("acme/bot@{one}")), Ok(one));
    let unclear = resolve("acme/bot@sha256:abababab").expect_err("two begin so");
    assert_eq!(unclear.kind, Failure::Invalid);
    assert!(unclear.message.contains(&one.to_string()) && unclear.message.contains(&two.to_string()));
    for unknown in ["acme/bot@sha256:00000000", "acme/cat@sha256:cdcdcdcd"] {
        assert_eq!(resolve(unknown).expect_err("nothing begins so").kind, Failure::NotFound, "{unknown}");
    }
}

#[test]
fn garbage_and_other_clusters_change_nothing() {
    let (f, other) = (found(), found());
    let before = f.statements();
    let theirs: Vec<Vec<u8>> =
        other.store.statements().expect("statements").into_iter().map(|(_, bytes)| bytes).collect();
    for all in [vec![b"{}".to_vec()], vec![b"\xff".to_vec()], theirs] {
        let taken = f.facts.ingest(all, false).expect("ingest");
        assert!(taken.refused.is_some() && taken.accepted.is_empty());
    }
    assert_eq!(f.statements(), before);
}

#[test]
fn a_head_is_committed_with_what_moves_it_and_a_store_that_lost_that_opens_nothing() {
    let f = found();
    let say = |key: &Keypair, kind: Kind| {
        let statement =
            Statement { cluster: Some(f.cluster), by: key.key_id(), time: cluster::now(), chain: None, kind };
        let envelope = statement.sign(&[key]);
        let taken = f.facts.ingest(vec![envelope.to_json()], true).expect("ingest");
        assert_eq!(taken.refused, None);
        envelope.id()
    };
    let digest = ManifestDigest([7; 32]);
    let artifact: weighlock_protocol::Artifact = "acme/bot".parse().expect("a name");
    let tag = "1.0.0".parse().expect("a tag");
    say(
        &f.host,
        Kind::Publish(Publish { artifact: artifact.clone(), tag, manifest: digest, total_bytes: 1 }),
    );
    let channel = Channel { artifact: artifact.clone(), stage: Stage::Production, hardware: "any".into() };
    let now = cluster::now();
    let draft = f.facts.ledger().draft_promotion(&f.admin.key_id(), &channel, digest, now, String::new());
    assert_eq!(draft.holds, []);
    let promotion = say(&f.admin, Kind::Promote(draft.promotion));
    let reference: Reference = "acme/bot:production".parse().expect("a reference");
    assert_eq!(f.facts.resolve(&reference).expect_err("no witness yet").kind, Failure::NotFound);
    assert!(f.store.heads().expect("heads").is_empty());
    assert_eq!(f.facts.cosign_pending().expect("cosigns"), 1);
    assert_eq!(f.facts.cosign_pending().expect("cosigns"), 0, "once");
    assert_eq!(f.facts.resolve(&reference), Ok(digest));
    let heads = f.store.heads().expect("heads");
    assert_eq!(heads.len(), 1);
    assert!(heads[0].0.starts_with("acme/bot:production") && !heads[0].1.is_empty());
    let opens = |facts: &Facts| facts.admit(&reference, Purpose::Use).map(|admitted| admitted.digest);
    let reopened = Facts::open(f.store.clone(), f.host.clone(), f.cluster).expect("reopened");
    assert_eq!(opens(&reopened), Ok(digest));

    // As after a copy of the store from before, or a row that was lost.
    let bytes = f.store.statement(&promotion).expect("read").expect("there");
    f.store.remove_statements(&[promotion]).expect("removed");
    let damaged = Facts::open(f.store.clone(), f.host.clone(), f.cluster).expect("opened");
    let error = opens(&damaged).expect_err("its head is not what it was");
    assert_eq!(error.kind, Failure::Refused);
    assert!(error.message.contains("lost"), "{error}");
    assert_eq!(f.store.heads().expect("heads"), heads, "a loss moves no head");
    damaged.ingest(vec![bytes], false).expect("sent again");
    assert_eq!(opens(&damaged), Ok(digest));
}

#[test]
fn doors_and_heads_that_move_do_not_wait_for_each_other_for_ever() {
    let f = found();
    let digest = ManifestDigest([7; 32]);
    let publish = |artifact: &str| {
        let kind = Kind::Publish(Publish {
            artifact: artifact.parse().expect("a name"),
            tag: "1.0.0".parse().expect("a tag"),
            manifest: digest,
            total_bytes: 1,
        });
        Statement { cluster: Some(f.cluster), by: f.host.key_id(), time: cluster::now(), chain: None, kind }
            .sign(&[&f.host])
            .to_json()
    };
    f.facts.ingest((0..20).map(|n| publish(&format!("acme/m{n}"))).collect(), true).expect("ingest");
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let reference: Reference = "acme/m0:1.0.0".parse().expect("a reference");
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    f.facts.admit(&reference, Purpose::Use).expect("opens");
                }
            });
        }
        for n in 0..20 {
            let artifact = format!("acme/m{n}").parse().expect("a name");
            let channel = Channel { artifact, stage: Stage::Production, hardware: "any".into() };
            let now = cluster::now();
            let draft =
                f.facts.ledger().draft_promotion(&f.admin.key_id(), &channel, digest, now, String::new());
            let kind = Kind::Promote(draft.promotion);
            let statement =
                Statement { cluster: Some(f.cluster), by: f.admin.key_id(), time: now, chain: None, kind };
            f.facts.ingest(vec![statement.sign(&[&f.admin]).to_json()], true).expect("ingest");
            assert_eq!(f.facts.cosign_pending().expect("cosigns"), 1);
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert_eq!(f.facts.ledger().heads().count(), 20);
}
