//! Fills a store with the statements of many gated artifacts, for `tests/bench/resolve`: `fill DIR ARTIFACTS STATEMENTS`.
//!
//! Every artifact of `acme` is published, judged, promoted to production and cosigned; the rest up to STATEMENTS are
//! further versions. As many of `open` are only published. Prints the seconds that taking them in and folding took.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use weighlock::cluster;
use weighlock::facts::Facts;
use weighlock::keys;
use weighlock_cache::{Store, StoreConfig};
use weighlock_protocol::gate::{Outcome, Policy};
use weighlock_protocol::statement::weighed::Verdict;
use weighlock_protocol::statement::{
    Channel, Cosignature, Keypair, Kind, OnChannel, Promotion, Publish, Ruling, SetPolicy, Statement,
};
use weighlock_protocol::{Artifact, ClusterId, ManifestDigest, Sha256, Stage};

const POLICY: &str = "ladder = [\"production\"]\n[metric.eval_loss]\ndirection = \"lower\"\nmax = 3.0\n";
/// Statements that are taken in at once.
const BATCH: usize = 5_000;
/// Of one artifact before further versions: publish, verdict, promotion, cosignature.
const EACH: usize = 4;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dir, artifacts, statements] = &arguments[..] else {
        return Err("usage: fill DIR ARTIFACTS STATEMENTS".into());
    };
    let (dir, artifacts, statements) = (Path::new(dir), artifacts.parse()?, statements.parse()?);
    let store = Store::open(dir.join("data"), StoreConfig::default())?;
    let host = keys::host_key(&dir.join("data"))?;
    let founded = cluster::found(&store, &dir.join("keys"), &host, "bench", &Default::default(), "bench")?;
    let admin = keys::load(&founded.admin_key)?;
    let facts = Facts::open(store.clone(), host.clone(), founded.cluster)?;
    let said = said(founded.cluster, &facts, &admin, &host, artifacts, statements)?;
    let began = Instant::now();
    for batch in said.chunks(BATCH) {
        let ingested = facts.ingest(batch.to_vec(), true)?;
        if let Some(refused) = ingested.refused {
            return Err(refused.into());
        }
    }
    let taken = began.elapsed().as_secs_f64();
    let heads = facts.ledger().heads().count();
    drop(facts);
    let began = Instant::now();
    let again = Facts::open(store, host, founded.cluster)?;
    let opened = began.elapsed().as_secs_f64();
    let all = again.ledger().len();
    println!(
        "{{\"statements\": {all}, \"heads\": {heads}, \"ingest_s\": {taken:.2}, \"open_s\": {opened:.2}}}"
    );
    Ok(())
}

fn said(
    cluster: ClusterId,
    facts: &Facts,
    admin: &Keypair,
    host: &Keypair,
    artifacts: usize,
    statements: usize,
) -> Result<Vec<Vec<u8>>, Box<dyn std::error::Error>> {
    let mut all: Vec<Vec<u8>> = Vec::with_capacity(statements);
    let mut say = |key: &Keypair, kind: Kind| {
        let chain = kind.is_chained().then(|| facts.ledger().next_chain(&key.key_id()));
        let statement =
            Statement { cluster: Some(cluster), by: key.key_id(), time: cluster::now(), chain, kind };
        let envelope = statement.sign(&[key]);
        all.push(envelope.to_json());
        envelope.id()
    };
    let policy = Policy::parse(POLICY)?.digest();
    let scope = "acme".parse()?;
    say(admin, Kind::Policy(SetPolicy { scope, version: 1, replaces: None, policy, text: POLICY.into() }));
    let publish = |artifact: &Artifact, tag: &str, manifest| -> Result<Kind, Box<dyn std::error::Error>> {
        Ok(Kind::Publish(Publish { artifact: artifact.clone(), tag: tag.parse()?, manifest, total_bytes: 1 }))
    };
    let of = |text: String| ManifestDigest::of(text.as_bytes());
    for n in 0..artifacts {
        let artifact: Artifact = format!("acme/m{n}").parse()?;
        let manifest = of(format!("m{n}"));
        say(host, publish(&artifact, "1.0.0", manifest)?);
        let ruling = Ruling {
            outcome: Outcome::Pass,
            policy,
            baseline: None,
            pinned: None,
            hardware: "any".into(),
            reports: BTreeSet::new(),
            baseline_reports: BTreeSet::new(),
            verdict: Sha256::of(&[]),
            sandbox: String::new(),
            reasons: Vec::new(),
        };
        let verdict = say(admin, Kind::Verdict(Verdict { artifact: artifact.clone(), manifest, ruling }));
        let channel = Channel { artifact, stage: Stage::Production, hardware: "any".into() };
        let promotion = Promotion {
            parent: None,
            epoch: 1,
            root: 1,
            policy: Some(policy),
            verdicts: [verdict].into(),
            from: None,
            note: String::new(),
        };
        let promoted = OnChannel { channel: channel.clone(), manifest, said: promotion };
        let promotion = say(admin, Kind::Promote(promoted));
        let said = Cosignature { promotion, parent: None, epoch: 1, root: 1 };
        say(host, Kind::Cosign(OnChannel { channel, manifest, said }));
    }
    for n in 0..artifacts {
        let artifact: Artifact = format!("open/m{n}").parse()?;
        say(host, publish(&artifact, "1.0.0", of(format!("open{n}")))?);
    }
    for n in 0..statements.saturating_sub(artifacts * (EACH + 1)) {
        let artifact: Artifact = format!("acme/m{}", n % artifacts.max(1)).parse()?;
        say(host, publish(&artifact, &format!("0.{n}.0"), of(format!("v{n}")))?);
    }
    Ok(all)
}
