//! One store's life in steps, and what must be true wherever it was cut: `tests/crash/run` records, cuts and checks.
//!
//! `crash prepare SOURCE` writes the files to import. `crash act STORE SOURCE` goes through the steps and says `ACK n`
//! after each. `crash check STORE SOURCE BOOT ACKED LIVE` opens what a crash left after ACKED steps, looks at all of
//! it, and goes through the steps once more to their end; LIVE is 1 where only the process died.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bao_tree::io::outboard::PreOrderMemOutboard;
use bao_tree::io::sync::{Outboard, encode_ranges};
use bytes::Bytes;
use weighlock_cache::plan::{Plan, PlanFile};
use weighlock_cache::{
    Commit, ImportOptions, PartialLayer, Scrubbed, Store, StoreConfig, StoreError, Wanted,
};
use weighlock_protocol::manifest::{Contract, LayerKind, Manifest};
use weighlock_protocol::wire::bao::{
    BLOCK, Decoder, GROUP_BYTES, GroupSet, Verified, all_groups, canonical_chunks, tree,
};
use weighlock_protocol::{LayerId, StatementId};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Steps after the store is open.
const STEPS: usize = 17;
/// The layer that arrives from peers, in groups, and how it comes.
const FETCHED_LEN: usize = 40 * GROUP_BYTES as usize + 9;
const SYNCED: std::ops::Range<u64> = 0..20;
const WRITTEN: std::ops::Range<u64> = 0..30;
const CHANNEL: &str = "acme/bot:production on any";
/// The steps that the expectations name.
const SITE_ONE: usize = 1;
const SAID: usize = 2;
const ADDED_A: usize = 3;
const CHECKPOINT: usize = 4;
const MORE: usize = 5;
const SEALED: usize = 6;
const ADDED_B: usize = 8;
const SITE_TWO: usize = 9;
const REMOVED_A: usize = 10;
const DAMAGED: usize = 11;
const HEALED: usize = 12;
const SCRUBBED: usize = 13;
const HEALED_AGAIN: usize = 14;
const LET_GO: usize = 15;
const ADOPTED: usize = 16;
/// What another tool has brought, beside the artifacts.
const FOUND: &str = "found.bin";

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["prepare", source] => prepare(Path::new(source)),
        ["act", store, source] => {
            let life = Life::open(store, source, "boot 1")?;
            life.act(&mut |step| {
                // One write, so that a recording has it as one line.
                std::io::stdout().write_all(format!("ACK {step}\n").as_bytes())
            })
        }
        ["check", store, source, boot, acked, live] => {
            let life = Life::open(store, source, boot)?;
            life.check(acked.parse()?, *live == "1")?;
            life.act(&mut |_| Ok(()))?;
            life.check(STEPS, true).map_err(|e| format!("after going on to the end: {e}"))?;
            Ok(())
        }
        _ => {
            Err("usage: crash prepare SOURCE | act STORE SOURCE | check STORE SOURCE BOOT ACKED LIVE".into())
        }
    }
}

/// What the artifacts consist of. The first file is in both.
fn artifacts() -> BTreeMap<&'static str, Vec<(&'static str, Vec<u8>)>> {
    let shared = ("weights.bin", data(1, 300_000));
    BTreeMap::from([
        ("a", vec![shared.clone(), ("config.bin", data(2, 5_000))]),
        ("b", vec![shared, ("other.bin", data(4, 20_000))]),
    ])
}

fn prepare(source: &Path) -> Result<()> {
    for (name, files) in artifacts() {
        std::fs::create_dir_all(source.join(name))?;
        for (path, bytes) in files {
            std::fs::write(source.join(name).join(path), bytes)?;
        }
    }
    std::fs::write(source.join(FOUND), found().1)?;
    Ok(())
}

/// The layer that is found in a file, and its bytes.
fn found() -> (LayerId, Vec<u8>) {
    let bytes = data(5, 70_000);
    (LayerId::of(&bytes), bytes)
}

/// Bytes that follow from a seed.
fn data(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

fn statement(text: &str) -> (StatementId, Vec<u8>) {
    (StatementId::of(text.as_bytes()), text.as_bytes().to_vec())
}

struct Life {
    store: Store,
    dir: PathBuf,
    source: PathBuf,
    fetched: Vec<u8>,
    fetched_id: LayerId,
}

/// What one transaction decides: all of it or nothing must be visible.
#[derive(Debug, PartialEq, Eq)]
struct Facts {
    statements: Vec<String>,
    head: Option<String>,
    a_complete: bool,
    b_complete: bool,
}

impl Life {
    fn open(dir: &str, source: &str, boot: &str) -> Result<Self> {
        let config = StoreConfig {
            boot_id: Some(boot.into()),
            import_block_bytes: 64 << 10,
            import_files_max: 1,
            free_floor_bytes: 0,
            ..StoreConfig::default()
        };
        let fetched = data(3, FETCHED_LEN);
        let fetched_id = LayerId(*blake3::hash(&fetched).as_bytes());
        let store = Store::open(dir, config)?;
        Ok(Self { store, dir: dir.into(), source: source.into(), fetched, fetched_id })
    }

    /// All steps in order. Each can be done again.
    fn act(&self, ack: &mut dyn FnMut(usize) -> std::io::Result<()>) -> Result<()> {
        let store = &self.store;
        ack(0)?;
        store.set_setting("site", Some(&"one"))?;
        ack(SITE_ONE)?;
        store.append_statements(&[statement("s1"), statement("s2")])?;
        ack(SAID)?;
        let a = self.add("a")?;
        ack(ADDED_A)?;
        if let Some(layer) = self.partial()? {
            layer.write(&self.proven(&GroupSet::from(SYNCED)))?;
            layer.checkpoint()?;
        }
        ack(CHECKPOINT)?;
        if let Some(layer) = self.partial()? {
            layer.write(&self.proven(&GroupSet::from(WRITTEN)))?;
        }
        ack(MORE)?;
        self.fetch_rest()?;
        ack(SEALED)?;
        store.view(&a)?;
        ack(7)?;
        let b = self.add("b")?;
        ack(ADDED_B)?;
        store.set_setting("site", Some(&"two"))?;
        ack(SITE_TWO)?;
        store.remove_artifact(&a.digest())?;
        ack(REMOVED_A)?;
        self.damage()?;
        ack(DAMAGED)?;
        self.fetch_rest()?;
        ack(HEALED)?;
        self.scrub()?;
        ack(SCRUBBED)?;
        self.fetch_rest()?;
        ack(HEALED_AGAIN)?;
        store.evict(&b.digest())?;
        self.sweep()?;
        ack(LET_GO)?;
        self.adopt()?;
        ack(ADOPTED)?;
        store.append_statements(&[statement("last")])?;
        ack(STEPS)?;
        Ok(())
    }

    /// Imports and publishes in one commit, with the head that it moves.
    fn add(&self, name: &str) -> Result<Manifest> {
        let staged = self.store.import(
            &self.plan(name)?,
            &ImportOptions::default(),
            &|_| {},
            &AtomicBool::new(false),
        )?;
        let manifest = staged.manifest().clone();
        self.store.commit(Commit {
            staged: Some(staged),
            statements: vec![statement(&format!("publish {name}"))],
            heads: vec![(CHANNEL.to_owned(), Some(name.as_bytes().to_vec()))],
            ..Commit::default()
        })?;
        Ok(manifest)
    }

    fn plan(&self, name: &str) -> Result<Plan> {
        let dir = self.source.join(name);
        let files = artifacts().remove(name).unwrap_or_default().into_iter().map(|(path, bytes)| PlanFile {
            path: path.into(),
            source: dir.join(path),
            kind: LayerKind::Weights,
            size: bytes.len() as u64,
            tensors: Vec::new(),
        });
        let files = files.collect();
        Ok(Plan { source: dir, files, contract: Contract::default(), warnings: Vec::new() })
    }

    fn partial(&self) -> Result<Option<Arc<PartialLayer>>> {
        match self.store.partial(&self.fetched_id, self.fetched.len() as u64) {
            Ok(layer) => Ok(Some(layer)),
            Err(StoreError::AlreadySealed(_)) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    fn fetch_rest(&self) -> Result<()> {
        if let Some(layer) = self.partial()? {
            layer.write(&self.proven(&layer.missing()))?;
            self.store.seal(&layer)?;
        }
        Ok(())
    }

    /// Somebody writes into a sealed file; the next open sets it aside.
    fn damage(&self) -> Result<()> {
        if !self.rot(100_000)? {
            return Ok(());
        }
        match self.store.open_sealed(&self.fetched_id) {
            Err(StoreError::Corrupt { .. } | StoreError::NotHeld(_)) => Ok(()),
            Err(e) => Err(e.into()),
            Ok(_) => Err("a changed layer was handed out".into()),
        }
    }

    /// Its disk turns a bit over; reading it again sets it aside.
    fn scrub(&self) -> Result<()> {
        if !self.rot(300_000)? {
            return Ok(());
        }
        match self.store.scrub(&self.fetched_id, 0, &mut |_| true)? {
            Scrubbed::Damaged(_) | Scrubbed::Gone => Ok(()),
            other => Err(format!("a rotten layer was read and found {other:?}").into()),
        }
    }

    /// Makes a byte of the sealed file wrong. False if it is not there.
    fn rot(&self, at: usize) -> Result<bool> {
        let hex = self.fetched_id.hex();
        let path = self.dir.join("layers").join(&hex[..2]).join(&hex);
        if !path.exists() {
            return Ok(false);
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640))?;
        let file = std::fs::OpenOptions::new().write(true).open(&path)?;
        file.write_all_at(&[self.fetched[at] ^ 1], at as u64)?;
        Ok(true)
    }

    /// A layer that a fetch has begun is found in a file.
    fn adopt(&self) -> Result<()> {
        let (id, bytes) = found();
        match self.store.partial(&id, bytes.len() as u64) {
            Ok(_) | Err(StoreError::AlreadySealed(_)) => {}
            Err(e) => return Err(e.into()),
        }
        let lease = self.store.lease_layers(BTreeSet::new())?;
        let wanted = Wanted { layers: BTreeSet::from([id]), dry_run: false };
        let taken = self.store.take_layer(&self.source.join(FOUND), &wanted, &lease)?;
        taken.map(drop).ok_or_else(|| "the file was not taken for the layer that it is".into())
    }

    /// All leftovers go, but for the layer that came without an artifact.
    fn sweep(&self) -> Result<()> {
        for one in self.store.garbage()? {
            if one.name != self.fetched_id.hex() {
                self.store.sweep(&one)?;
            }
        }
        Ok(())
    }

    /// Proven items of `groups` of the fetched layer, the way they come off the wire.
    fn proven(&self, groups: &GroupSet) -> Vec<Verified> {
        let outboard = PreOrderMemOutboard::create(&self.fetched, BLOCK);
        let size = self.fetched.len() as u64;
        let mut wire = Vec::new();
        encode_ranges(&self.fetched[..], &outboard, &canonical_chunks(groups, size), &mut wire)
            .expect("in memory");
        let mut decoder = Decoder::new(self.fetched_id, size, groups);
        let mut rest = Bytes::from(wire);
        let mut items = Vec::new();
        while let Some(need) = decoder.need() {
            items.push(decoder.feed(rest.split_to(need)).expect("honest"));
        }
        items
    }

    /// Whether what is here is what must be here after `acked` steps, or after one more that was on its way.
    fn check(&self, acked: usize, live: bool) -> Result<()> {
        let next = (acked + 1).min(STEPS);
        let found = self.facts()?;
        if found != self.facts_after(acked) && found != self.facts_after(next) {
            return Err(format!("after step {acked} there is {found:?}").into());
        }
        let site: Option<String> = self.store.setting("site")?;
        let allowed = [Self::site_after(acked), Self::site_after(next)];
        if !allowed.contains(&site.as_deref()) {
            return Err(format!("after step {acked} the setting is {site:?}").into());
        }
        self.check_layers(acked, live)?;
        self.check_views()?;
        let left = std::fs::read_dir(self.dir.join("staging"))?.count();
        if left > 0 {
            return Err(format!("{left} files are left in staging").into());
        }
        Ok(())
    }

    fn facts(&self) -> Result<Facts> {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let complete = |name: &str| -> Result<bool> {
            let plan = self.plan(name)?;
            for digest in self.store.manifests()? {
                if let Some(bytes) = self.store.manifest(&digest)? {
                    let manifest = Manifest::parse(&bytes)?;
                    if manifest.files().iter().any(|file| file.path == plan.files[1].path) {
                        return Ok(self.store.manifest_complete(&manifest)?);
                    }
                }
            }
            Ok(false)
        };
        Ok(Facts {
            statements: self.store.statements()?.into_iter().map(|(_, bytes)| text(bytes)).collect(),
            head: self.store.heads()?.into_iter().next().map(|(_, bytes)| text(bytes)),
            a_complete: complete("a")?,
            b_complete: complete("b")?,
        })
    }

    fn facts_after(&self, step: usize) -> Facts {
        let said =
            [(SAID, "s1"), (SAID, "s2"), (ADDED_A, "publish a"), (ADDED_B, "publish b"), (STEPS, "last")];
        let said = said.into_iter().filter(|(at, _)| step >= *at);
        let head = match step {
            ADDED_B.. => Some("b".into()),
            ADDED_A.. => Some("a".into()),
            _ => None,
        };
        Facts {
            statements: said.map(|(_, text)| text.to_owned()).collect(),
            head,
            a_complete: (ADDED_A..REMOVED_A).contains(&step),
            b_complete: (ADDED_B..LET_GO).contains(&step),
        }
    }

    fn site_after(step: usize) -> Option<&'static str> {
        match step {
            SITE_TWO.. => Some("two"),
            SITE_ONE.. => Some("one"),
            _ => None,
        }
    }

    /// Whatever opens is right to the last byte and hash; what was acknowledged is there.
    fn check_layers(&self, acked: usize, live: bool) -> Result<()> {
        let mut originals: BTreeMap<LayerId, Vec<u8>> = artifacts()
            .into_values()
            .flatten()
            .map(|(_, bytes)| (LayerId(*blake3::hash(&bytes).as_bytes()), bytes))
            .collect();
        originals.insert(self.fetched_id, self.fetched.clone());
        originals.extend([found()]);
        for (id, bytes) in &originals {
            let Some(_) = self.store.layer(id)? else { continue };
            match self.store.open_sealed(id) {
                Ok(layer) => {
                    let mut read = vec![0; bytes.len()];
                    layer.file.read_exact_at(&mut read, 0)?;
                    if read != *bytes || layer.size != bytes.len() as u64 {
                        return Err(format!("layer {} opens with wrong bytes", id.short()).into());
                    }
                    self.check_tree(id, bytes, &all_groups(layer.size))?;
                }
                // Between the damage and its discovery.
                Err(StoreError::Corrupt { .. })
                    if *id == self.fetched_id && [DAMAGED, SCRUBBED].contains(&(acked + 1)) => {}
                Err(e) => return Err(format!("layer {}: {e}", id.short()).into()),
            }
        }
        if acked >= ADOPTED && self.store.layer(&found().0)?.is_none() {
            return Err(format!("after step {acked} the adopted layer is gone").into());
        }
        let sealed = self.store.layer(&self.fetched_id)?.is_some();
        if !sealed && ((SEALED..REMOVED_A).contains(&acked) || acked >= HEALED_AGAIN) {
            return Err(format!("after step {acked} the fetched layer is gone").into());
        }
        if !sealed {
            self.check_partial(acked, live)?;
        }
        Ok(())
    }

    /// Proven groups are right, all else reads as zeros, and what was promised to stay is there.
    fn check_partial(&self, acked: usize, live: bool) -> Result<()> {
        let promised = match acked {
            CHECKPOINT => SYNCED,
            MORE if live => WRITTEN,
            MORE => SYNCED,
            _ => 0..0,
        };
        let layer = self.store.begun(&self.fetched_id)?;
        let have = layer.as_ref().map_or_else(GroupSet::empty, |layer| layer.have());
        if !GroupSet::from(promised).is_subset(&have) {
            return Err(format!("after step {acked} only groups {have:?} are held").into());
        }
        let Some(layer) = layer else { return Ok(()) };
        let mut read = vec![0; self.fetched.len()];
        layer.open_data()?.read_exact_at(&mut read, 0)?;
        for (group, (read, right)) in
            read.chunks(GROUP_BYTES as usize).zip(self.fetched.chunks(GROUP_BYTES as usize)).enumerate()
        {
            let held = have.contains(&(group as u64));
            if held && read != right {
                return Err(format!("group {group} is declared and wrong").into());
            }
            // Right bytes that are about to be declared are fine.
            if !held && read != right && read.iter().any(|byte| *byte != 0) {
                return Err(format!("group {group} is not declared and shows bytes").into());
            }
        }
        self.check_tree(&self.fetched_id, &self.fetched, &have)
    }

    /// The hashes that a peer would be sent with `have` are those of the layer.
    fn check_tree(&self, id: &LayerId, bytes: &[u8], have: &GroupSet) -> Result<()> {
        let reader = self.store.reader(id)?.ok_or("a layer that is held has no reader")?;
        let outboard = PreOrderMemOutboard::create(bytes, BLOCK);
        for node in tree(bytes.len() as u64).pre_order_nodes_iter() {
            let Some(right) = outboard.load(node)? else { continue };
            match reader.pair(node) {
                Ok(pair) if pair == right => {}
                Ok(_) => return Err(format!("layer {} has a wrong tree", id.short()).into()),
                Err(e) if *have == all_groups(bytes.len() as u64) => return Err(e.into()),
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// A view is whole or not there.
    fn check_views(&self) -> Result<()> {
        for entry in std::fs::read_dir(self.dir.join("views"))? {
            let path = entry?.path();
            for (name, bytes) in artifacts().remove("a").unwrap_or_default() {
                if std::fs::read(path.join(name)).ok().as_ref() != Some(&bytes) {
                    return Err(format!("view {} is not whole", path.display()).into());
                }
            }
        }
        Ok(())
    }
}
