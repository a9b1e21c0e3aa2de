//! What the tests of the data plane share: bytes, stores with layers, planes, and raw QUIC peers beside them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bao_tree::ChunkRanges;
use bao_tree::io::outboard::PreOrderMemOutboard;
use bytes::Bytes;
use libp2p::identity::Keypair;
use quinn::{Connection, Endpoint};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weighlock::net::control::{keypair_id, peer_id};
use weighlock::net::data::{Buffers, DataConfig, DataPlane, Doors, GetOptions, JoinDoor, Possession};
use weighlock::net::tls::Identity;
use weighlock_cache::{Commit, LayerReader, PartialLayer, Store, StoreConfig, inspect};
use weighlock_protocol::wire::bao::{
    BLOCK, Decoder, GROUP_BYTES, GroupSet, Verified, all_groups, canonical_chunks,
};
use weighlock_protocol::wire::data::ALPN_DATA;
use weighlock_protocol::{ClusterId, KeyId, LayerId};

pub(crate) const CLUSTER: ClusterId = ClusterId([9; 32]);
/// Long enough for a busy machine; no test waits for it to pass.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
pub(crate) const LOOPBACK: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// Ends a wait that would never end.
pub(crate) async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("never happened: {what}"))
}

/// Bytes that do not compress and differ by seed.
pub(crate) fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

/// A blob with its tree, encoded by bao-tree itself: what an honest provider sends.
pub(crate) struct Honest {
    pub(crate) data: Vec<u8>,
    pub(crate) layer: LayerId,
    outboard: PreOrderMemOutboard,
}

impl Honest {
    pub(crate) fn new(len: usize, seed: u64) -> Self {
        Self::of(bytes(len, seed))
    }

    pub(crate) fn of(data: Vec<u8>) -> Self {
        let outboard = PreOrderMemOutboard::create(&data, BLOCK);
        Self { layer: LayerId(*outboard.root.as_bytes()), data, outboard }
    }

    pub(crate) fn size(&self) -> u64 {
        self.data.len() as u64
    }

    /// The response to a get, size header first.
    pub(crate) fn response(&self, chunks: &ChunkRanges) -> Vec<u8> {
        let mut out = self.size().to_le_bytes().to_vec();
        bao_tree::io::sync::encode_ranges(&self.data[..], &self.outboard, chunks, &mut out)
            .expect("in memory");
        out
    }

    /// All pairs of its tree, in pre-order.
    pub(crate) fn tree(&self) -> &[u8] {
        &self.outboard.data
    }

    /// The bytes of one group.
    pub(crate) fn group(&self, group: u64) -> &[u8] {
        let start = (group * GROUP_BYTES) as usize;
        &self.data[start..self.data.len().min(start + GROUP_BYTES as usize)]
    }

    /// Proven items of `groups`, through the decoder.
    fn proven(&self, groups: &GroupSet) -> Vec<Verified> {
        let response = self.response(&canonical_chunks(groups, self.size()));
        let mut rest = Bytes::from(response).split_off(8);
        let mut decoder = Decoder::new(self.layer, self.size(), groups);
        let mut items = Vec::new();
        while let Some(need) = decoder.need() {
            items.push(decoder.feed(rest.split_to(need)).expect("honest"));
        }
        items
    }
}

/// A store in a directory of its own.
pub(crate) struct Disk {
    pub(crate) store: Store,
    pub(crate) dir: tempfile::TempDir,
}

impl Disk {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path().join("data"), StoreConfig::default()).expect("a new store");
        Self { store, dir }
    }

    /// Imports files as `weighlock add` does.
    pub(crate) fn import(&self, blobs: &[&Honest]) {
        let source = self.dir.path().join("source");
        std::fs::create_dir(&source).expect("a directory");
        for (n, blob) in blobs.iter().enumerate() {
            std::fs::write(source.join(format!("{n}.txt")), &blob.data).expect("a file");
        }
        let plan = inspect::plan(&source, &Default::default()).expect("a plan");
        let staged = self
            .store
            .import(&plan, &Default::default(), &|_| {}, &AtomicBool::new(false))
            .expect("imported");
        let commit = Commit { staged: Some(staged), ..Commit::default() };
        self.store.commit(commit).expect("committed");
        for blob in blobs {
            let info = self.store.layer(&blob.layer).expect("database");
            assert_eq!(info.expect("held").size, blob.size());
        }
    }

    /// Puts some groups of a blob into a partial layer.
    pub(crate) fn fill(&self, blob: &Honest, groups: &GroupSet) -> Arc<PartialLayer> {
        let partial = self.partial(blob);
        partial.write(&blob.proven(groups)).expect("written");
        partial
    }

    pub(crate) fn partial(&self, blob: &Honest) -> Arc<PartialLayer> {
        self.store.partial(&blob.layer, blob.size()).expect("room")
    }

    /// Asserts that what is readable of a blob is right, and that the file holds nothing else. Returns the groups.
    pub(crate) fn check(&self, blob: &Honest) -> GroupSet {
        let Some(reader) = self.store.reader(&blob.layer).expect("store") else {
            return GroupSet::empty();
        };
        let have = reader.have();
        let file = self.dir.path().join(format!("data/partial/{}.data", blob.layer.hex()));
        let raw = std::fs::read(&file).ok();
        for group in 0..all_groups(blob.size()).boundaries()[1] {
            let right = blob.group(group);
            let at = group * GROUP_BYTES;
            let mut read = vec![0; right.len()];
            if have.contains(&group) {
                reader.read_exact_at(&mut read, at).expect("readable");
                assert!(read == right, "group {group} reads wrong");
            } else {
                assert!(
                    right.is_empty() || reader.read_exact_at(&mut read, at).is_err(),
                    "group {group} is not held"
                );
            }
            if let Some(raw) = &raw {
                let there = &raw[at as usize..at as usize + right.len()];
                let blank = there.iter().all(|byte| *byte == 0);
                assert!(
                    there == right || (blank && !have.contains(&group)),
                    "group {group} is wrong in the file"
                );
            }
        }
        have
    }

    /// Seals a complete layer and compares all of it.
    pub(crate) fn seal(&self, blob: &Honest, partial: &Arc<PartialLayer>) {
        self.store.seal(partial).expect("complete");
        let sealed = self.store.open_sealed(&blob.layer).expect("sealed");
        assert!(std::fs::read(&sealed.path).expect("readable") == blob.data, "sealed bytes differ");
    }
}

/// Options for a get in a test.
pub(crate) fn options() -> GetOptions {
    GetOptions {
        batch_bytes: 64 << 10,
        ahead: 1,
        buffers: Buffers::new(8),
        stall: PATIENCE,
        progress: Arc::default(),
        cancel: CancellationToken::new(),
    }
}

/// What a plane serves from a store, with counters.
pub(crate) struct Shelf {
    store: Store,
    grown: watch::Sender<u64>,
    sent: Mutex<BTreeMap<KeyId, u64>>,
}

impl Shelf {
    pub(crate) fn grew(&self) {
        self.grown.send_modify(|n| *n += 1);
    }

    pub(crate) fn sent_bytes(&self) -> u64 {
        self.sent.lock().expect("whole").values().sum()
    }
}

impl Possession for Shelf {
    fn reader(&self, layer: &LayerId) -> Option<LayerReader> {
        self.store.reader(layer).expect("store")
    }

    fn grown(&self) -> watch::Receiver<u64> {
        self.grown.subscribe()
    }

    fn sent(&self, peer: &KeyId, bytes: u64) {
        *self.sent.lock().expect("whole").entry(*peer).or_default() += bytes;
    }
}

/// A data plane over a store, without a daemon around it.
pub(crate) struct Host {
    pub(crate) key: KeyId,
    pub(crate) disk: Disk,
    pub(crate) shelf: Arc<Shelf>,
    pub(crate) plane: DataPlane,
    members: watch::Sender<Arc<BTreeSet<KeyId>>>,
    stop: CancellationToken,
}

impl Host {
    pub(crate) fn start() -> Self {
        let silent: JoinDoor = Arc::new(|_, request| Box::pin(async move { request }));
        Self::with(Disk::new(), DataConfig::default(), silent)
    }

    pub(crate) fn with(disk: Disk, config: DataConfig, join: JoinDoor) -> Self {
        let keypair = Keypair::generate_ed25519();
        let shelf = Arc::new(Shelf {
            store: disk.store.clone(),
            grown: watch::Sender::new(0),
            sent: Mutex::default(),
        });
        let (members, stop) = (watch::Sender::new(Arc::default()), CancellationToken::new());
        let doors = Doors { members: members.subscribe(), possession: shelf.clone(), join };
        let plane =
            DataPlane::bind(LOOPBACK, &keypair, CLUSTER, config, doors, stop.clone()).expect("a free port");
        Self { key: keypair_id(&keypair).expect("Ed25519"), disk, shelf, plane, members, stop }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.plane.local_addr().expect("bound")
    }

    pub(crate) fn admit(&self, keys: impl IntoIterator<Item = KeyId>) {
        let keys: BTreeSet<KeyId> = keys.into_iter().collect();
        self.members.send_modify(|now| {
            let all = now.iter().copied().chain(keys).collect();
            *now = Arc::new(all);
        });
    }

    pub(crate) fn revoke(&self, key: &KeyId) {
        self.members.send_modify(|now| {
            let rest = now.iter().copied().filter(|one| one != key).collect();
            *now = Arc::new(rest);
        });
    }

    pub(crate) async fn dial(&self, other: &Host) -> Connection {
        self.plane.connect(other.key, &[other.addr()]).await.expect("a member answers")
    }

    pub(crate) async fn stop(&self) {
        self.stop.cancel();
        self.plane.stopped().await;
    }
}

/// All of them admit each other.
pub(crate) fn acquaint(hosts: &[&Host]) {
    for host in hosts {
        host.admit(hosts.iter().map(|other| other.key));
    }
}

/// A host key and a QUIC endpoint, nothing of ours around them.
pub(crate) struct Raw {
    pub(crate) key: KeyId,
    pub(crate) keypair: Keypair,
    pub(crate) endpoint: Endpoint,
    identity: Identity,
}

impl Raw {
    pub(crate) fn new() -> Self {
        Self::at(LOOPBACK, |_| {})
    }

    pub(crate) fn at(listen: SocketAddr, adjust: impl FnOnce(&mut quinn::TransportConfig)) -> Self {
        Self::with(Keypair::generate_ed25519(), listen, adjust)
    }

    pub(crate) fn with(
        keypair: Keypair,
        listen: SocketAddr,
        adjust: impl FnOnce(&mut quinn::TransportConfig),
    ) -> Self {
        let identity = Identity::new(&keypair).expect("Ed25519");
        let crypto = identity.server(&[ALPN_DATA]).expect("suites for QUIC");
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        let mut transport = quinn::TransportConfig::default();
        adjust(&mut transport);
        server.transport_config(Arc::new(transport));
        Self {
            key: keypair_id(&keypair).expect("Ed25519"),
            keypair,
            endpoint: Endpoint::server(server, listen).expect("a free port"),
            identity,
        }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.endpoint.local_addr().expect("bound")
    }

    pub(crate) async fn dial(&self, key: KeyId, addr: SocketAddr) -> Connection {
        self.dial_as(ALPN_DATA, key, addr).await.expect("it answers")
    }

    pub(crate) async fn dial_as(
        &self,
        alpn: &[u8],
        key: KeyId,
        addr: SocketAddr,
    ) -> Result<Connection, quinn::ConnectionError> {
        let crypto = self.identity.client(alpn, peer_id(key).expect("a key")).expect("suites for QUIC");
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        let mut transport = quinn::TransportConfig::default();
        transport.keep_alive_interval(Some(Duration::from_secs(5)));
        config.transport_config(Arc::new(transport));
        self.endpoint.connect_with(config, addr, "weighlock").expect("a valid address").await
    }

    /// Answers every stream of every connection by `answer`.
    pub(crate) fn serve<A, F>(&self, answer: A)
    where
        A: Fn(quinn::SendStream, quinn::RecvStream) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let endpoint = self.endpoint.clone();
        tokio::spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                let answer = answer.clone();
                tokio::spawn(async move {
                    let Ok(connection) = incoming.await else { return };
                    while let Ok((send, recv)) = connection.accept_bi().await {
                        tokio::spawn(answer(send, recv));
                    }
                });
            }
        });
    }
}
