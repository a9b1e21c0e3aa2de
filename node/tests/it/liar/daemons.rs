//! Two honest daemons as real processes and an admitted member that declares everything and sends flipped bits.

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
use weighlock_protocol::ticket::Ticket;
use weighlock_protocol::wire::bao::all_groups;
use weighlock_protocol::wire::control::{HeldManifest, HostRecord};
use weighlock_protocol::wire::data::{ALPN_JOIN, HaveItem, MESSAGE_BYTES_MAX, Request, close, reset};
use weighlock_protocol::wire::join::{JoinAnswer, JoinRequest};
use weighlock_protocol::{ClusterId, KeyId, LayerId, ManifestDigest, StatementId};

use crate::plane::{Honest, LOOPBACK, PATIENCE, Raw, bytes, soon};

const REFERENCE: &str = "lab/thing:1.0.0";

/// What a false member answers wrongly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum About {
    /// Bytes of layers.
    Bytes,
    /// Trees; everything else is as it should be.
    Trees,
}

/// A daemon in a directory of its own.
struct Daemon {
    dir: PathBuf,
    child: Child,
    ready: Value,
}

fn command(dir: &Path) -> Command {
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
    fn start(root: &Path, name: &str, ticket: Option<&str>) -> Self {
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
    fn try_run(&self, arguments: &[&str]) -> Result<Value, String> {
        let output = command(&self.dir).args(arguments).output().expect("it runs");
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let text = String::from_utf8(output.stdout).expect("JSON is UTF-8");
        Ok(serde_json::from_str(text.lines().last().expect("an answer")).expect("JSON"))
    }

    fn run(&self, arguments: &[&str]) -> Value {
        self.try_run(arguments).unwrap_or_else(|e| panic!("{arguments:?}: {e}\n{}", self.log()))
    }

    /// What `weighlock peers` says of one host.
    fn peer(&self, key: &KeyId) -> Option<Value> {
        let peers = self.run(&["peers"]);
        let rows = peers["items"].as_array().expect("a list");
        rows.iter().find(|row| row["host"] == key.to_string()).cloned()
    }

    fn until(&self, what: &str, mut is: impl FnMut() -> bool) {
        let started = Instant::now();
        while !is() {
            assert!(started.elapsed() < PATIENCE, "never happened: {what}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The value of a metric.
    fn metric(&self, name: &str) -> f64 {
        let http = self.ready["http"].as_str().expect("an address");
        let mut stream = TcpStream::connect(http).expect("it listens");
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: {http}\r\nConnection: close\r\n\r\n").expect("sent");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("text");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let value = line.unwrap_or_else(|| panic!("no {name} in\n{text}"));
        value.parse().expect("a number")
    }

    fn key(&self) -> KeyId {
        parsed(&self.ready["host"])
    }

    fn control(&self) -> Vec<SocketAddr> {
        parsed(&self.ready["control"])
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("our own child");
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn parsed<T: serde::de::DeserializeOwned>(value: &Value) -> T {
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
}

/// A member like any other, but for what it sends.
struct FalseMember {
    raw: Raw,
    control: ControlHandle,
    facade: Arc<Facade>,
    cluster: ClusterId,
    stop: CancellationToken,
    lies: Arc<AtomicU64>,
}

impl FalseMember {
    /// Joins by the ticket as `weighlock join` does, and admits the honest in turn.
    async fn join(ticket: &Ticket, honest: &[&Daemon]) -> Self {
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
        Self { raw, control, facade, cluster, stop, lies: Arc::default() }
    }

    /// Declares all of an artifact and answers each get, or each question for a tree, with one bit flipped somewhere
    /// behind the size.
    async fn declare(&self, manifest: &Manifest, layers: BTreeMap<LayerId, Honest>, about: About) {
        *self.facade.manifest.lock().expect("whole") = Some(manifest.bytes().clone());
        let everything = HaveItem {
            layers: (0..).zip(manifest.layers()).map(|(n, layer)| (n, all_groups(layer.size))).collect(),
        };
        let (digest, layers, lies) = (manifest.digest(), Arc::new(layers), self.lies.clone());
        self.raw.serve(move |send, recv| {
            lie(digest, everything.clone(), layers.clone(), (about, lies.clone()), send, recv)
        });
        let mut record = HostRecord::new(self.cluster, self.raw.key);
        record.data_addrs = vec![self.raw.addr()];
        record.hold([HeldManifest { digest, complete: true }]);
        self.control.announce(record).await.expect("a valid record");
    }
}

async fn lie(
    digest: ManifestDigest,
    everything: HaveItem,
    layers: Arc<BTreeMap<LayerId, Honest>>,
    (about, lies): (About, Arc<AtomicU64>),
    mut send: SendStream,
    mut recv: RecvStream,
) {
    let Ok(bytes) = recv.read_to_end(MESSAGE_BYTES_MAX).await else {
        return;
    };
    match Request::parse(&bytes) {
        Ok(Request::Interest { manifest }) if manifest == digest => {
            for item in everything.encode() {
                let _ = send.write_all(&item).await;
            }
            let _ = send.finish();
        }
        Ok(Request::Get { layer, chunks }) if layers.contains_key(&layer) => {
            let mut response = layers[&layer].response(&chunks);
            if about == About::Bytes {
                flip(&mut response, &lies);
            }
            let _ = send.write_all(&response).await;
            let _ = send.finish();
        }
        Ok(Request::Tree { layer }) if layers.contains_key(&layer) => {
            let blob = &layers[&layer];
            let mut response = [&blob.size().to_le_bytes(), blob.tree()].concat();
            flip(&mut response, &lies);
            let _ = send.write_all(&response).await;
            let _ = send.finish();
        }
        _ => {
            let _ = send.reset(VarInt::from_u32(reset::INTERNAL));
        }
    }
}

/// What the liar could know as a member: the manifest, from alpha, and the bytes of its layers.
async fn contents(
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

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_honest_host_gets_the_right_bytes_beside_a_lying_member_and_names_it() {
    let root = tempfile::tempdir().expect("a directory");
    let source = root.path().join("source");
    fs::create_dir(&source).expect("a directory");
    for (n, len) in [(0, 9 << 20), (1, (3 << 20) + 5), (2, 1)] {
        fs::write(source.join(format!("{n}.txt")), bytes(len, 60 + n)).expect("a file");
    }

    let alpha = Daemon::start(root.path(), "alpha", None);
    let invited = alpha.run(&["invite", "--uses", "2"]);
    let ticket = invited["ticket"].as_str().expect("a ticket");
    let beta = Daemon::start(root.path(), "beta", Some(ticket));
    let liar = FalseMember::join(&ticket.parse().expect("a ticket"), &[&alpha, &beta]).await;

    let source_path = source.to_str().expect("UTF-8");
    let added = alpha.run(&["add", source_path, REFERENCE]);
    let digest: ManifestDigest = parsed(&added["digest"]);
    let (manifest, layers) = contents(&liar, &alpha, digest).await;
    liar.declare(&manifest, layers, About::Bytes).await;

    beta.until("beta hears of the artifact", || {
        let listed = beta.run(&["ls", REFERENCE]);
        listed["items"].as_array().is_some_and(|items| !items.is_empty())
    });
    let mallory = liar.raw.key;
    beta.until("beta hears what the liar claims to hold", || {
        beta.peer(&mallory).is_some_and(|row| row["held"] == 1)
    });

    // While the honest provider is paused, the liar is surely asked.
    alpha.signal(Signal::STOP);
    let target = root.path().join("pulled");
    let mut pull = command(&beta.dir);
    pull.args(["pull", REFERENCE, "--to", target.to_str().expect("UTF-8")]);
    let mut pulling = pull.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it runs");
    beta.until("the liar is banned", || {
        beta.peer(&mallory).is_some_and(|row| row["banned_s"].as_u64().is_some())
    });
    assert!(liar.lies.load(Ordering::SeqCst) > 0);
    assert!(beta.metric("weighlock_lies_total") > 0.0);
    assert!(!target.exists(), "nothing is there before all of it is");
    alpha.signal(Signal::CONT);

    let output = tokio::task::spawn_blocking(move || {
        let mut error = String::new();
        let _ = pulling.stderr.take().expect("piped").read_to_string(&mut error);
        (pulling.wait().expect("it ends"), error)
    });
    let (status, error) = soon("the pull ends", output).await.expect("no panic");
    // A pull that lost patience while alpha was paused is repeated, as its message says.
    if !status.success() {
        beta.until("the repeated pull succeeds", || {
            beta.try_run(&["pull", REFERENCE, "--to", target.to_str().expect("UTF-8")]).is_ok()
        });
    }
    for n in 0..3 {
        let name = format!("{n}.txt");
        let (right, found) = (fs::read(source.join(&name)), fs::read(target.join(&name)));
        assert!(right.expect("readable") == found.expect("pulled"), "{name} differs; {error}");
    }
    let row = beta.peer(&mallory).expect("still a member");
    assert!(row["banned_s"].as_u64().is_some_and(|left| left > 0), "{row}");
    let honest = beta.peer(&alpha.key()).expect("a member");
    assert!(honest["banned_s"].is_null() && honest["fetched_bytes"].as_u64() > Some(0), "{honest}");
    let log = beta.log();
    let named =
        log.lines().any(|line| line.contains("fail verification") && line.contains(&mallory.to_string()));
    assert!(named, "the log does not name the liar:\n{log}");
    liar.stop.cancel();
}

/// A safetensors file of tensors of U8 from these seeds, with a note in its header.
fn safetensors(path: &Path, note: &str, seeds: &[u64]) {
    const LEN: usize = 700_001;
    let mut header = serde_json::json!({"__metadata__": {"note": note}});
    for (n, _) in seeds.iter().enumerate() {
        header[format!("t{n}")] =
            serde_json::json!({"dtype": "U8", "shape": [LEN], "data_offsets": [n * LEN, (n + 1) * LEN]});
    }
    let header = header.to_string();
    let mut out = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
    out.extend(seeds.iter().flat_map(|seed| bytes(LEN, *seed)));
    fs::write(path, out).expect("a file");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_member_that_gives_a_wrong_tree_is_named_and_the_next_version_arrives_all_the_same() {
    let root = tempfile::tempdir().expect("a directory");
    let (first, second) = (root.path().join("1.safetensors"), root.path().join("2.safetensors"));
    safetensors(&first, "", &[1, 2, 3, 4]);
    safetensors(&second, "a longer header", &[1, 20, 3, 4]);

    let alpha = Daemon::start(root.path(), "alpha", None);
    let invited = alpha.run(&["invite", "--uses", "2"]);
    let ticket = invited["ticket"].as_str().expect("a ticket");
    let beta = Daemon::start(root.path(), "beta", Some(ticket));
    let liar = FalseMember::join(&ticket.parse().expect("a ticket"), &[&alpha, &beta]).await;
    let heard = |reference: &str| {
        beta.until("beta hears of it", || {
            beta.run(&["ls", reference])["items"].as_array().is_some_and(|items| !items.is_empty())
        });
    };
    alpha.run(&["add", first.to_str().expect("UTF-8"), REFERENCE]);
    heard(REFERENCE);
    beta.until("beta has the first version", || beta.try_run(&["pull", REFERENCE]).is_ok());

    let next = "lab/thing:2.0.0";
    let added = alpha.run(&["add", second.to_str().expect("UTF-8"), next]);
    let (manifest, layers) = contents(&liar, &alpha, parsed(&added["digest"])).await;
    liar.declare(&manifest, layers, About::Trees).await;
    heard(next);
    let mallory = liar.raw.key;
    beta.until("beta hears what the liar claims to hold", || {
        beta.peer(&mallory).is_some_and(|row| row["held"] == 1)
    });

    // While the honest provider is paused, the liar is surely asked. What it sends of layers is right.
    alpha.signal(Signal::STOP);
    let target = root.path().join("pulled");
    let mut pull = command(&beta.dir);
    pull.args(["pull", next, "--to", target.to_str().expect("UTF-8")]);
    let mut pulling = pull.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it runs");
    beta.until("the liar is banned", || {
        beta.peer(&mallory).is_some_and(|row| row["banned_s"].as_u64().is_some())
    });
    alpha.signal(Signal::CONT);
    assert_eq!(liar.lies.load(Ordering::SeqCst), 1, "one tree");
    let ended = tokio::task::spawn_blocking(move || pulling.wait().expect("it ends"));
    let status = soon("the pull ends", ended).await.expect("no panic");
    if !status.success() {
        beta.until("the repeated pull succeeds", || {
            beta.try_run(&["pull", next, "--to", target.to_str().expect("UTF-8")]).is_ok()
        });
    }
    let right = fs::read(&second).expect("readable");
    assert!(fs::read(target.join("2.safetensors")).expect("pulled") == right, "other bytes");
    assert_eq!(liar.lies.load(Ordering::SeqCst), 1, "a banned host is not asked again");
    let log = beta.log();
    let named =
        log.lines().any(|line| line.contains("fail verification") && line.contains(&mallory.to_string()));
    assert!(named, "the log does not name the liar:\n{log}");
    liar.stop.cancel();
}
