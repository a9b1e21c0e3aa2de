//! Times the fold alone, for `tests/bench/fold`: `fold STATEMENTS`, mixed, of every kind that moves a head.
//!
//! Each artifact of `acme` gets two versions, each published, judged, approved, promoted and cosigned by two of three
//! witnesses; then the second is rolled back. A few hundred hosts are admitted. Prints one JSON object: seconds to prove
//! the signatures, to fold all in one go, and to fold them as they come in from a peer, some thousands at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::time::Instant;

use weighlock_protocol::gate::{Outcome, Policy};
use weighlock_protocol::statement::weighed::Verdict;
use weighlock_protocol::statement::{
    Admit, Approval, Chain, Channel, Checked, Cosignature, Envelope, Keypair, Kind, Ledger, LedgerConfig,
    OnChannel, Promotion, Publish, Role, RoleSpec, Rollback, Root, Ruling, SetPolicy, Statement,
};
use weighlock_protocol::{Artifact, ClusterId, ManifestDigest, Sha256, Stage, StatementId, UnixTime};

const POLICY: &str = "ladder = [\"production\"]\n[metric.eval_loss]\ndirection = \"lower\"\nmax = 3.0\n[stage.production]\napprovals = 1\n";
const NOW: UnixTime = UnixTime(1_800_000_000);
const LATER: UnixTime = UnixTime(1_900_000_000);
/// Of one artifact.
const EACH: usize = 13;
const HOSTS: usize = 300;
/// As many as a host takes from a peer at once.
const BATCH: usize = 5_000;
const RUNS: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let count: usize = std::env::args().nth(1).ok_or("usage: fold STATEMENTS")?.parse()?;
    let artifacts = count.saturating_sub(HOSTS + 2) / EACH;
    let mut author = Author::new()?;
    for host in 0..HOSTS {
        author.admit(host);
    }
    for n in 0..artifacts {
        author.climb(n)?;
    }
    for n in 0..count.saturating_sub(author.all.len()) {
        author.publish(&"acme/rest".parse()?, &format!("0.{n}.0"), n)?;
    }
    let empty = Ledger::new(LedgerConfig::new(author.cluster()?));
    let began = Instant::now();
    let checked: Vec<Checked> =
        author.all.iter().map(|envelope| empty.check(envelope)).collect::<Result<_, _>>()?;
    let proven = began.elapsed().as_secs_f64();

    let (mut whole, mut batches) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let (mut ledger, all) = (empty.clone(), checked.clone());
        let began = Instant::now();
        ledger.apply_all(all);
        whole.push(began.elapsed().as_secs_f64());
        expect(&ledger, author.all.len(), artifacts)?;

        let (mut ledger, all) = (empty.clone(), checked.clone());
        let chunks: Vec<Vec<Checked>> = all.chunks(BATCH).map(<[Checked]>::to_vec).collect();
        let began = Instant::now();
        for chunk in chunks {
            ledger.apply_all(chunk);
        }
        batches.push(began.elapsed().as_secs_f64());
        expect(&ledger, author.all.len(), artifacts)?;
    }
    println!(
        "{{\"statements\": {}, \"heads\": {artifacts}, \"runs\": {RUNS}, \"signatures_s\": {proven:.3}, \"fold_s\": {:.3}, \"fold_s_max\": {:.3}, \"fold_in_batches_s\": {:.3}}}",
        author.all.len(),
        median(&mut whole),
        whole.last().copied().unwrap_or_default(),
        median(&mut batches),
    );
    Ok(())
}

/// What was folded came to something: every artifact is back at its first version.
fn expect(ledger: &Ledger, statements: usize, artifacts: usize) -> Result<(), Box<dyn Error>> {
    let back = ledger.heads().filter(|head| head.rolled_back).count();
    match ledger.len() == statements && back == artifacts {
        true => Ok(()),
        false => Err(format!("{} statements, {back} heads that were rolled back to", ledger.len()).into()),
    }
}

/// Sorts.
fn median(of: &mut [f64]) -> f64 {
    of.sort_by(f64::total_cmp);
    of.get(of.len() / 2).copied().unwrap_or_default()
}

/// Everybody who signs.
struct Author {
    all: Vec<Envelope>,
    chain: Chain,
    policy: Sha256,
}

const ADMIN: u8 = 1;
const PROMOTERS: [u8; 2] = [2, 3];
const WITNESSES: [u8; 3] = [10, 11, 12];
const PUBLISHER: u8 = 20;
const EVALUATOR: u8 = 30;

fn key(n: u8) -> Keypair {
    Keypair::from_seed([n; 32])
}

impl Author {
    fn new() -> Result<Self, Box<dyn Error>> {
        let role = |keys: &[u8]| -> Result<RoleSpec, Box<dyn Error>> {
            let keys = keys.iter().map(|n| key(*n).key_id()).collect();
            Ok(RoleSpec { keys, threshold: 1, namespaces: vec!["*".parse()?], members: false })
        };
        let root = Root {
            version: 1,
            prev_root: None,
            name: "bench".to_owned(),
            roles: BTreeMap::from([
                (Role::Admin, role(&[ADMIN])?),
                (Role::Publisher, role(&[PUBLISHER])?),
                (Role::Evaluator, role(&[EVALUATOR])?),
                (Role::Promoter, role(&PROMOTERS)?),
                (Role::Witness, role(&WITNESSES)?),
            ]),
            expires: LATER,
            settled: BTreeMap::new(),
        };
        let policy = Policy::parse(POLICY)?.digest();
        let mut author = Self { all: Vec::new(), chain: Chain { seq: 0, prev: None }, policy };
        author.say(ADMIN, Kind::Root(root));
        let scope = "acme".parse()?;
        author.say(
            ADMIN,
            Kind::Policy(SetPolicy { scope, version: 1, replaces: None, policy, text: POLICY.into() }),
        );
        Ok(author)
    }

    fn cluster(&self) -> Result<ClusterId, Box<dyn Error>> {
        Ok(ClusterId(self.all.first().ok_or("no root")?.id().0))
    }

    fn say(&mut self, by: u8, kind: Kind) -> StatementId {
        let key = key(by);
        // Only the admin says what stands in a chain.
        let chain = kind.is_chained().then_some(self.chain);
        let cluster = self.cluster().ok();
        let envelope = Statement { cluster, by: key.key_id(), time: NOW, chain, kind }.sign(&[&key]);
        let id = envelope.id();
        if chain.is_some() {
            self.chain = Chain { seq: self.chain.seq + 1, prev: Some(id) };
        }
        self.all.push(envelope);
        id
    }

    fn admit(&mut self, n: usize) {
        let mut seed = [0xaa; 32];
        seed[..8].copy_from_slice(&(n as u64).to_le_bytes());
        let host = Keypair::from_seed(seed).key_id();
        let name = format!("host-{n}");
        self.say(
            ADMIN,
            Kind::Admit(Admit { host, name, labels: BTreeMap::new(), expires: LATER, invite: None }),
        );
    }

    fn publish(
        &mut self,
        artifact: &Artifact,
        tag: &str,
        n: usize,
    ) -> Result<ManifestDigest, Box<dyn Error>> {
        let manifest = ManifestDigest::of(format!("{artifact} {tag} {n}").as_bytes());
        let (artifact, tag) = (artifact.clone(), tag.parse()?);
        self.say(PUBLISHER, Kind::Publish(Publish { artifact, tag, manifest, total_bytes: 1 }));
        Ok(manifest)
    }

    /// Two versions of one artifact go up, and the second comes back down.
    fn climb(&mut self, n: usize) -> Result<(), Box<dyn Error>> {
        let artifact: Artifact = format!("acme/m{n}").parse()?;
        let channel =
            Channel { artifact: artifact.clone(), stage: Stage::Production, hardware: "any".into() };
        let mut head: Option<(StatementId, ManifestDigest)> = None;
        let mut first = None;
        for epoch in 1..=2u64 {
            let manifest = self.publish(&artifact, &format!("1.{epoch}.0"), n)?;
            let parent = head.map(|(id, _)| id);
            let ruling = Ruling {
                outcome: Outcome::Pass,
                policy: self.policy,
                baseline: head.map(|(_, manifest)| manifest),
                pinned: None,
                hardware: "any".into(),
                reports: BTreeSet::new(),
                baseline_reports: BTreeSet::new(),
                verdict: Sha256::of(&[]),
                sandbox: String::new(),
                reasons: Vec::new(),
            };
            let verdict = Verdict { artifact: artifact.clone(), manifest, ruling };
            let verdict = self.say(EVALUATOR, Kind::Verdict(verdict));
            let policy = Some(self.policy);
            let said = Approval { parent, policy, note: String::new() };
            let on = OnChannel { channel: channel.clone(), manifest, said };
            self.say(PROMOTERS[1], Kind::Approve(on));
            let said = Promotion {
                parent,
                epoch,
                root: 1,
                policy,
                verdicts: [verdict].into(),
                from: None,
                note: String::new(),
            };
            let on = OnChannel { channel: channel.clone(), manifest, said };
            let promotion = self.say(PROMOTERS[0], Kind::Promote(on));
            for witness in &WITNESSES[..2] {
                let said = Cosignature { promotion, parent, epoch, root: 1 };
                self.say(*witness, Kind::Cosign(OnChannel { channel: channel.clone(), manifest, said }));
            }
            first.get_or_insert(promotion);
            head = Some((promotion, manifest));
        }
        let (over, manifest) = head.ok_or("no head")?;
        let said = Rollback { over, to: first, root: 1, reason: "bad answers".to_owned() };
        self.say(PROMOTERS[0], Kind::Rollback(OnChannel { channel, manifest, said }));
        Ok(())
    }
}
