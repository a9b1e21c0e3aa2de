//! Daemons as real processes, and an admitted member beside them that does wrong in one of several ways.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use quinn::{RecvStream, SendStream, VarInt};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use weighlock::cluster::now;
use weighlock::net::control::{
    Acceptance, Backend, ControlConfig, ControlHandle, IngestReport, start as start_control,
};
use weighlock_protocol::manifest::Manifest;
use weighlock_protocol::statement::{Labels, Ledger, LedgerConfig};
use weighlock_protocol::swarm::{SwarmConfig, piece_bytes};
use weighlock_protocol::ticket::Ticket;
use weighlock_protocol::wire::bao::{GroupSet, all_groups};
use weighlock_protocol::wire::control::{HeldManifest, HostRecord};
use weighlock_protocol::wire::data::{
    ALPN_JOIN, KIND_LINK, LINK_BYTES, MESSAGE_BYTES_MAX, Request, close, reset,
};
use weighlock_protocol::wire::join::{JoinAnswer, JoinRequest};
use weighlock_protocol::wire::swarm::Frame;
use weighlock_protocol::{ClusterId, KeyId, LayerId, ManifestDigest, StatementId};

use crate::plane::{Honest, LOOPBACK, PATIENCE, Raw, soon};

/// What a false member does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wrong {
    /// Flips a bit in bytes of layers.
    Bytes,
    /// Flips a bit in trees; everything else is as it should be.
    Trees,
    /// Refuses each get, as one does that lacks the range.
    Lacking,
    /// Takes each get and sends nothing.
    Silent,
    /// Says what it has and not a word more: it grants nothing, and so has nothing to send.
    Mum,
    /// Sends frames without an end.
    Flood,
    /// Sends large bitfields without an end.
    FloodOfBitfields,
    /// Announces a frame of 4 GiB.
    Length,
}

/// A daemon in a directory of its own.
pub(super) struct Daemon {
    pub(super) dir: PathBuf,
    child: Child,
    ready: Value,
}

pub(super) fn command(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weighlock"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("WEIGHLOCK_"))
    {
        command.env_remove(name);
    }
    let config = dir.join("config.toml");
    if !config.exists() {
        fs::write(&config, "").expect("a file");
    }
    command.arg("--data-dir").arg(dir.join("data"));
    command.arg("--keys-dir").arg(dir.join("keys"));
    command.arg("--config").arg(config).arg("--json");
    command
}

impl Daemon {
    pub(super) fn start(root: &Path, name: &str, ticket: Option<&str>) -> Self {
        let dir = root.join(name);
        fs::create_dir(&dir).expect("a directory");
        let mut command = command(&dir);
        command.args(["up", "--name", name, "--no-mdns"]);
        for door in ["--control-listen", "--data-listen", "--http-listen"] {
            command.args([door, "127.0.0.1:0"]);
        }
        if let Some(ticket) = ticket {
            command.env("WEIGHLOCK_TICKET", ticket);
        }
        let log = fs::File::create(dir.join("log")).expect("a file");
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn().expect("it starts");
        let mut first = String::new();
        let stdout = child.stdout.take().expect("piped");
        // A daemon that cannot start ends, and with it the line.
        BufReader::new(stdout).read_line(&mut first).expect("readable");
        let mut daemon = Self { dir, child, ready: Value::Null };
        daemon.ready =
            serde_json::from_str(&first).unwrap_or_else(|e| panic!("{name}: {e}: {first}\n{}", daemon.log()));
        daemon
    }

    /// Runs a command against this daemon.
    pub(super) fn try_run(&self, arguments: &[&str]) -> Result<Value, String> {
        let output = command(&self.dir).args(arguments).output().expect("it runs");
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let text = String::from_utf8(output.stdout).expect("JSON is UTF-8");
        Ok(serde_json::from_str(text.lines().last().expect("an answer")).expect("JSON"))
    }

    pub(super) fn run(&self, arguments: &[&str]) -> Value {
        self.try_run(arguments).unwrap_or_else(|e| panic!("{arguments:?}: {e}\n{}", self.log()))
    }

    /// What `weighlock peers` says of one host.
    pub(super) fn peer(&self, key: &KeyId) -> Option<Value> {
        let peers = self.run(&["peers"]);
        let rows = peers["items"].as_array().expect("a list");
        rows.iter().find(|row| row["host"] == key.to_string()).cloned()
    }

    pub(super) fn until(&self, what: &str, mut is: impl FnMut() -> bool) {
        let started = Instant::now();
        while !is() {
            assert!(started.elapsed() < PATIENCE, "never happened: {what}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The value of a metric.
    pub(super) fn metric(&self, name: &str) -> f64 {
        let http = self.ready["http"].as_str().expect("an address");
        let mut stream = TcpStream::connect(http).expect("it listens");
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: {http}\r\nConnection: close\r\n\r\n").expect("sent");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("text");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let value = line.unwrap_or_else(|| panic!("no {name} in\n{text}"));
        value.parse().expect("a number")
    }

    pub(super) fn key(&self) -> KeyId {
        parsed(&self.ready["host"])
    }

    fn control(&self) -> Vec<SocketAddr> {
        parsed(&self.ready["control"])
    }

    pub(super) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("our own child");
    }

    /// The most memory that it ever had, in bytes.
    pub(super) fn memory_bytes_max(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
    }

    pub(super) fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(super) fn parsed<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).expect("of this form")
}

/// A control plane that takes no statements and has one manifest to give.
struct Facade {
    ledger: Ledger,
    manifest: Mutex<Option<Arc<[u8]>>>,
}

impl Backend for Facade {
    fn summary(&self) -> Vec<u8> {
        serde_json::to_vec(self.ledger.summary()).expect("plain data")
    }

    fn differing(&self, _summary: &[u8]) -> Result<Vec<u8>, String> {
        Ok(Vec::new())
    }

    fn ids_in(&self, _buckets: &[u8]) -> Vec<StatementId> {
        Vec::new()
    }

    fn statements(&self, _ids: &[StatementId]) -> Vec<Vec<u8>> {
        Vec::new()
    }

    fn ingest(&self, _from: KeyId, _statements: Vec<Vec<u8>>) -> IngestReport {
        IngestReport::default()
    }

    fn validate_gossip(&self, _from: KeyId, _statements: &[Vec<u8>], _manifest: Option<&[u8]>) -> Acceptance {
        Acceptance::Ignore
    }

    fn manifest(&self, digest: &ManifestDigest) -> Option<Arc<[u8]>> {
        let manifest = self.manifest.lock().expect("whole").clone()?;
        (ManifestDigest::of(&manifest) == *digest).then_some(manifest)
    }

    fn put_manifest(&self, _from: KeyId, _bytes: Vec<u8>) {}

    fn audit(&self, _from: KeyId, _query: &[u8]) -> Vec<u8> {
        Vec::new()
    }
}

/// A member like any other, but for what it sends.
pub(super) struct FalseMember {
    pub(super) raw: Raw,
    control: ControlHandle,
    facade: Arc<Facade>,
    cluster: ClusterId,
    pub(super) stop: CancellationToken,
    pub(super) lies: Arc<AtomicU64>,
    /// Frames, or batches of them, that went over its links.
    pub(super) said: Arc<AtomicU64>,
}

impl FalseMember {
    /// Joins by the ticket as `weighlock join` does, and admits the honest in turn.
    pub(super) async fn join(ticket: &Ticket, honest: &[&Daemon]) -> Self {
        let raw = Raw::new();
        let admission =
            ticket.admit(raw.key, "mallory", Labels::new(), now(), now().plus(3600)).expect("a fresh ticket");
        let mut statements = ticket.roots().to_vec();
        statements.extend([ticket.invite_envelope().clone(), admission]);
        let bootstrap = &ticket.bootstrap()[0];
        let connection =
            raw.dial_as(ALPN_JOIN, bootstrap.host, bootstrap.data_addrs[0]).await.expect("it answers");
        let (mut send, mut recv) = connection.open_bi().await.expect("a stream");
        send.write_all(&JoinRequest { statements }.encode()).await.expect("sent");
        send.finish().expect("open");
        let answer = recv.read_to_end(1 << 20).await.expect("an answer");
        connection.close(VarInt::from_u32(close::DONE), b"");
        let answer = JoinAnswer::parse(&answer).expect("valid");
        assert!(matches!(answer, JoinAnswer::Welcome { .. }), "{answer:?}");

        let cluster = ticket.cluster();
        let facade =
            Arc::new(Facade { ledger: Ledger::new(LedgerConfig::new(cluster)), manifest: Mutex::default() });
        let mut config = ControlConfig::new(raw.keypair.clone(), cluster, vec![LOOPBACK]);
        config.mdns = false;
        let stop = CancellationToken::new();
        let (control, driver) = start_control(config, facade.clone(), stop.clone()).await.expect("it starts");
        tokio::spawn(driver.run());
        let members = honest.iter().map(|daemon| daemon.key()).chain([raw.key]);
        control.set_members(members.collect()).await.expect("running");
        for daemon in honest {
            control.dial(daemon.key(), daemon.control()).await.expect("running");
        }
        Self { raw, control, facade, cluster, stop, lies: Arc::default(), said: Arc::default() }
    }

    /// Declares all of an artifact, grants pieces to whoever links, and answers as `wrong` says: flips one bit
    /// somewhere behind the size of each answer, and counts it.
    pub(super) async fn declare(&self, manifest: &Manifest, layers: BTreeMap<LayerId, Honest>, wrong: Wrong) {
        *self.facade.manifest.lock().expect("whole") = Some(manifest.bytes().clone());
        let sizes: Vec<u64> = manifest.layers().map(|layer| layer.size).collect();
        let distinct: BTreeMap<LayerId, u64> =
            manifest.layers().map(|layer| (layer.id, layer.size)).collect();
        let begin = Frame::Begin {
            piece_bytes: piece_bytes(&SwarmConfig::default(), distinct.values().sum()),
            rack: None,
            releasing: false,
        };
        let everything =
            Frame::Bitfield { layers: (0..).zip(sizes).map(|(n, size)| (n, all_groups(size))).collect() };
        let opening = [begin.encode(), everything.encode()].concat();
        let digest = manifest.digest();
        let state = Arc::new((digest, opening, layers, wrong));
        let (lies, said) = (self.lies.clone(), self.said.clone());
        self.raw.serve(move |send, recv| answer(state.clone(), lies.clone(), said.clone(), send, recv));
        let mut record = HostRecord::new(self.cluster, self.raw.key);
        record.data_addrs = vec![self.raw.addr()];
        record.hold([HeldManifest { digest, complete: true }]);
        self.control.announce(record).await.expect("a valid record");
    }
}

type Declared = (ManifestDigest, Vec<u8>, BTreeMap<LayerId, Honest>, Wrong);

async fn answer(
    declared: Arc<Declared>,
    lies: Arc<AtomicU64>,
    said: Arc<AtomicU64>,
    mut send: SendStream,
    mut recv: RecvStream,
) {
    let (digest, opening, layers, wrong) = &*declared;
    let mut bytes = vec![0];
    if recv.read_exact(&mut bytes).await.is_err() {
        return;
    }
    if bytes[0] == KIND_LINK {
        let mut asked = [0; LINK_BYTES];
        if recv.read_exact(&mut asked).await.is_ok() && asked == digest.0 {
            match wrong {
                Wrong::Mum => keep_mum(opening, &lies, send, recv).await,
                _ => link(opening, layers.len(), (*wrong, &said), send, recv).await,
            }
        }
        return;
    }
    let Ok(rest) = recv.read_to_end(MESSAGE_BYTES_MAX).await else {
        return;
    };
    bytes.extend(rest);
    match Request::parse(&bytes) {
        Ok(Request::Get { .. })
            if matches!(wrong, Wrong::Silent | Wrong::Mum | Wrong::Flood | Wrong::FloodOfBitfields) =>
        {
            lies.fetch_add(1, Ordering::SeqCst);
            let _ = send.stopped().await;
        }
        Ok(Request::Get { layer, chunks }) if layers.contains_key(&layer) && *wrong != Wrong::Lacking => {
            let mut response = layers[&layer].response(&chunks);
            if *wrong == Wrong::Bytes {
                flip(&mut response, &lies);
            }
            let _ = send.write_all(&response).await;
            let _ = send.finish();
        }
        Ok(Request::Tree { layer }) if layers.contains_key(&layer) => {
            let blob = &layers[&layer];
            let mut response = [&blob.size().to_le_bytes(), blob.tree()].concat();
            if *wrong == Wrong::Trees {
                flip(&mut response, &lies);
            }
            let _ = send.write_all(&response).await;
            let _ = send.finish();
        }
        _ => {
            lies.fetch_add(1, Ordering::SeqCst);
            let _ = send.reset(VarInt::from_u32(reset::INTERNAL));
        }
    }
}

/// The false member's side of a link: it has everything, and offers a piece of the other's choice again and again.
async fn link(
    opening: &[u8],
    layers: usize,
    (wrong, said): (Wrong, &AtomicU64),
    mut send: SendStream,
    mut recv: RecvStream,
) {
    let listening =
        tokio::spawn(async move { while let Ok(Some(_)) = recv.read_chunk(1 << 16, true).await {} });
    let grant = Frame::Grant { piece: None }.encode();
    // Many ranges of the last layer: long to send, long to take in.
    let last = u32::try_from(layers - 1).expect("few");
    let many = GroupSet::new((0..80_000u64).collect()).expect("in order");
    let (again, pause) = match wrong {
        Wrong::Flood => (grant.repeat(1_000), Duration::ZERO),
        Wrong::FloodOfBitfields => (Frame::Bitfield { layers: vec![(last, many)] }.encode(), Duration::ZERO),
        Wrong::Length => ([&u32::MAX.to_be_bytes()[..], &[0; 5_000]].concat(), Duration::from_millis(20)),
        _ => (grant, Duration::from_millis(20)),
    };
    let talk = async {
        send.write_all(opening).await?;
        loop {
            send.write_all(&again).await?;
            said.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(pause).await;
        }
    };
    let _ended: Result<(), quinn::WriteError> = talk.await;
    listening.abort();
}

/// The side of one that keeps mum: it has everything, and lets each ask lie. Counts them.
async fn keep_mum(opening: &[u8], lies: &AtomicU64, mut send: SendStream, mut recv: RecvStream) {
    if send.write_all(opening).await.is_err() {
        return;
    }
    let mut length = [0; 4];
    while recv.read_exact(&mut length).await.is_ok() {
        let mut body = vec![0; u32::from_be_bytes(length) as usize];
        if recv.read_exact(&mut body).await.is_err() {
            return;
        }
        if matches!(Frame::parse(&body), Ok(Some(Frame::Ask { .. }))) {
            lies.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// What the liar could know as a member: the manifest, from alpha, and the bytes of its layers.
pub(super) async fn contents(
    liar: &FalseMember,
    alpha: &Daemon,
    digest: ManifestDigest,
) -> (Manifest, BTreeMap<LayerId, Honest>) {
    let manifest = soon("alpha gives the manifest", async {
        loop {
            if let Ok(bytes) = liar.control.request_manifest(alpha.key(), digest).await {
                break Manifest::parse(&bytes).expect("valid");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    let layer_bytes = |id: &LayerId| {
        let hex = id.hex();
        fs::read(alpha.dir.join("data/layers").join(&hex[..2]).join(&hex)).expect("alpha holds it")
    };
    let layers = manifest.layers().map(|layer| (layer.id, Honest::of(layer_bytes(&layer.id)))).collect();
    (manifest, layers)
}

fn flip(response: &mut [u8], lies: &AtomicU64) {
    let mut rng = ChaCha8Rng::seed_from_u64(lies.fetch_add(1, Ordering::SeqCst));
    let byte = rng.random_range(8..response.len());
    response[byte] ^= 1 << rng.random_range(0..8);
}
