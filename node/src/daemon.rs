//! The composition root: what a daemon consists of, in the order it starts and stops.

mod tell;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use weighlock_cache::{Store, StoreConfig};
use weighlock_protocol::statement::{Keypair, Resolution};
use weighlock_protocol::wire::host::ADDRS_MAX;
use weighlock_protocol::wire::join::{Contact, JoinAnswer};
use weighlock_protocol::{ClusterId, KeyId};

use crate::audit::Audit;
use crate::backend::{ControlBackend, DataBackend};
use crate::config::{Config, Dirs};
use crate::error::{Error, Result};
use crate::facts::Facts;
use crate::fetch::{DeltaLimits, FetchLimits, Fetcher, blocking};
use crate::forgotten::ForgottenHosts;
use crate::live::Live;
use crate::net::control::{self, ControlConfig, ControlHandle};
use crate::net::data::{DataConfig, DataPlane, Doors};
use crate::preflight::listen_error;
use crate::scrub::{self, Scrubber};
use crate::{cluster, gc, hardware, http, loader, membership, memory, proof, server};

/// After a full disk, fetching goes on once so many bytes are available, or all that are missing.
const ROOM_BYTES_MIN: u64 = 256 << 20;
/// How long those who wait for bytes that nobody has are kept waiting.
const PATIENCE: Duration = Duration::from_secs(30);
/// And those for bytes that somebody has who lets lie what is asked of it.
const SILENT_PATIENCE: Duration = Duration::from_secs(600);
/// How long those who need a manifest that no connected host has are kept waiting.
const MANIFEST_PATIENCE: Duration = Duration::from_secs(15);
/// Manifests asked for at once as their statements come in; others are asked for when they are needed.
const MANIFESTS_AT_ONCE_MAX: usize = 64;
/// How often unfinished artifacts are looked for.
const RESUME_INTERVAL: Duration = Duration::from_secs(10);

/// A running daemon: everything its doors need. Shared by all tasks.
pub(crate) struct Node {
    pub(crate) started: Instant,
    pub(crate) name: String,
    pub(crate) hardware: String,
    pub(crate) config: Config,
    pub(crate) dirs: Dirs,
    pub(crate) host: KeyId,
    pub(crate) cluster: ClusterId,
    pub(crate) store: Store,
    pub(crate) facts: Facts,
    pub(crate) control: ControlHandle,
    pub(crate) data: DataPlane,
    pub(crate) fetcher: Fetcher,
    pub(crate) leases: Arc<loader::Leases>,
    pub(crate) contracts: loader::Contracts,
    pub(crate) room: gc::Room,
    pub(crate) gc: gc::Counts,
    pub(crate) audit: Audit,
    pub(crate) views: crate::views::Views,
    pub(crate) scrubber: Arc<Scrubber>,
    pub(crate) live: Arc<Live>,
    pub(crate) forgotten: ForgottenHosts,
    /// Whether this host is being drained.
    pub(crate) drained: watch::Sender<bool>,
    pub(crate) http: SocketAddr,
    pub(crate) stop: CancellationToken,
}

/// Opens the store of a host.
///
/// # Errors
/// In use, damaged, newer, on a network file system.
pub fn open_store(dirs: &Dirs, config: &Config) -> Result<Store> {
    let of_cache = config.store.of_cache(config.limits.free_bytes_min);
    let of_cache = StoreConfig { verify_on_read: config.integrity.verify_on_read, ..of_cache };
    let store = Store::open(&dirs.data, of_cache).map_err(Error::from)?;
    Ok(store)
}

/// Runs a daemon until `stop` is cancelled. `ready` is called once all doors are open.
///
/// # Errors
/// It could not start. What goes wrong later is logged and answered where it was asked for.
pub async fn run(
    dirs: Dirs,
    config: Config,
    store: Store,
    host: Keypair,
    live: Arc<Live>,
    stop: CancellationToken,
    ready: impl FnOnce(&Ready),
) -> Result<()> {
    dirs.check_sockets()?;
    let cluster =
        cluster::of(&store)?.ok_or_else(|| Error::internal("the store belongs to no cluster yet"))?;
    let facts = Facts::open(store.clone(), host.clone(), cluster)?;
    let name = cluster::host_name(config.name.as_deref());
    let forgotten = ForgottenHosts::open(&store)?;
    let audit = Audit::open(&dirs.data, &config.audit, cluster, host.clone(), name.clone())?;
    let keypair = libp2p::identity::Keypair::ed25519_from_bytes(host.seed()).map_err(Error::internal)?;
    // What serves stops after what asks: doors first, then fetches, then the planes, the store last.
    let doors_stop = stop.child_token();
    let planes_stop = CancellationToken::new();

    // Data plane.
    let grown = watch::Sender::new(0);
    let (scrubber, doubts) = Scrubber::new();
    let scrubber = Arc::new(scrubber);
    let possession = Arc::new(DataBackend {
        store: store.clone(),
        facts: facts.clone(),
        grown: grown.clone(),
        scrubber: scrubber.clone(),
        fetcher: OnceLock::new(),
    });
    let contacts = Arc::new(OnceLock::<ControlHandle>::new());
    let doors = Doors {
        members: facts.members(),
        possession: possession.clone(),
        join: join_door(facts.clone(), contacts.clone()),
    };
    let data_config = DataConfig {
        connections_max: config.limits.connections_max,
        packet_bytes_max: config.network.packet_bytes_max,
        windows_bytes_max: config.network.windows_bytes_max,
        ..DataConfig::default()
    };
    let data =
        DataPlane::bind(config.listen.data, &keypair, cluster, data_config, doors, planes_stop.clone())
            .map_err(|e| listen_error("data plane", config.listen.data, "--data-listen", &e))?;
    let data_addr = data.local_addr().map_err(Error::internal)?;

    // Control plane.
    let mut control_config = ControlConfig::new(keypair, cluster, vec![config.listen.control]);
    control_config.mdns = config.discovery.mdns;
    control_config.kad = config.discovery.kademlia;
    let leases = Arc::new(loader::Leases::new(store.clone()));
    let backend = Arc::new(ControlBackend::new(facts.clone(), store.clone(), audit.clone(), leases.clone()));
    let (control, control_driver) =
        control::start(control_config, backend, planes_stop.clone()).await.map_err(|e| {
            Error::unavailable(e).hint("is another daemon running? `--control-listen` takes another port")
        })?;
    let mut control_task = tokio::spawn(control_driver.run());
    let _ = contacts.set(control.clone());

    // Fetching.
    let limits = FetchLimits {
        swarm: config.limits.swarm(),
        stall: Duration::from_secs(config.limits.stall_timeout_s),
        patience: PATIENCE,
        silent_patience: SILENT_PATIENCE,
        manifest_patience: MANIFEST_PATIENCE,
        room_bytes_min: ROOM_BYTES_MIN,
        delta: DeltaLimits::default(),
    };
    let fetcher = Fetcher::new(
        store.clone(),
        control.clone(),
        data.clone(),
        limits,
        facts.members(),
        &config.labels,
        grown,
        stop.child_token(),
    );
    let _ = possession.fetcher.set(fetcher.clone());
    let (room, asked) = gc::Room::new();
    fetcher.set_room(room.clone());

    // Doors on this host.
    let http_listener = tokio::net::TcpListener::bind(config.listen.http)
        .await
        .map_err(|e| listen_error("HTTP", config.listen.http, "--http-listen", &e))?;
    let http = http_listener.local_addr().map_err(Error::internal)?;
    let sockets = server::Sockets::bind(&dirs, &config)?;
    let hardware = config.hardware.clone().unwrap_or_else(hardware::detect);
    facts.set_hardware(&hardware);
    let node = Arc::new(Node {
        started: Instant::now(),
        name,
        hardware,
        config,
        dirs,
        host: host.key_id(),
        cluster,
        store,
        facts,
        control,
        data,
        fetcher,
        leases,
        contracts: loader::Contracts::default(),
        room,
        gc: gc::Counts::default(),
        audit,
        views: crate::views::Views::default(),
        scrubber,
        live,
        forgotten,
        drained: watch::Sender::new(false),
        http,
        stop: doors_stop.clone(),
    });
    // Before a door opens: a rollback may have come to this host just before it stopped.
    let swept = node.clone();
    blocking(move || crate::views::sweep(&swept)).await?;
    let mut tasks: JoinSet<&'static str> = JoinSet::new();
    spawn(&mut tasks, "membership", membership::run(node.clone(), data_addr));
    spawn(&mut tasks, "announcements", tell::announce(node.clone(), data_addr));
    spawn(&mut tasks, "statements", tell::spread(node.clone()));
    spawn(&mut tasks, "proofs", proof::run(node.clone()));
    spawn(&mut tasks, "scrub", scrub::run(node.clone()));
    spawn(&mut tasks, "doubts", scrub::doubts(node.clone(), doubts));
    spawn(&mut tasks, "channels", crate::follow::run(node.clone()));
    spawn(&mut tasks, "cosignatures", crate::witness::run(node.clone()));
    spawn(&mut tasks, "views", crate::views::run(node.clone()));
    spawn(&mut tasks, "collection", gc::run(node.clone(), asked));
    spawn(&mut tasks, "resumption", resume(node.clone()));
    spawn(&mut tasks, "memory", memory::run(doors_stop.clone()));
    spawn(&mut tasks, "audit", node.audit.clone().run(doors_stop.clone()));
    spawn(&mut tasks, "http", http::serve(node.clone(), http_listener));
    spawn(&mut tasks, "sockets", sockets.serve(node.clone()));
    ready(&Ready {
        host: node.host,
        cluster,
        control: node.control.listen_addrs(),
        data: data_addr,
        http,
        admin_socket: node.dirs.admin_socket(),
        loader_socket: node.dirs.loader_socket(),
    });

    let failed = tokio::select! {
        () = stop.cancelled() => None,
        ended = tasks.join_next() => Some(match ended {
            Some(Ok(name)) => format!("{name} ended by itself"),
            other => format!("a part of the daemon failed: {other:?}"),
        }),
        ended = &mut control_task => Some(format!("the control plane ended by itself: {ended:?}")),
    };
    let failed = failed.filter(|_| !stop.is_cancelled());
    if let Some(failed) = &failed {
        tracing::error!(failed, "stopping");
    }
    info!("stopping: no new requests, finishing what is in flight");
    // Others look elsewhere from now on, while they get the rest of what is being sent to them.
    tell::leave(&node, data_addr).await;
    stop.cancel();
    doors_stop.cancel();
    let drain = Duration::from_secs(node.config.limits.drain_timeout_s);
    let finish = async {
        while tasks.join_next().await.is_some() {}
        node.fetcher.stopped().await;
        node.data.drained().await;
    };
    if tokio::time::timeout(drain, finish).await.is_err() {
        warn!(seconds = drain.as_secs(), "some requests did not finish in time");
        tasks.abort_all();
        while tasks.join_next().await.is_some() {}
    }
    // After the doors: what they closed is in it.
    node.audit.stop();
    planes_stop.cancel();
    let planes = async {
        node.data.stopped().await;
        if !control_task.is_finished() {
            let _ = control_task.await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(5), planes).await.is_err() {
        warn!("the network did not close in time");
    }
    info!("stopped");
    failed.map_or(Ok(()), |failed| Err(Error::internal(failed).hint("see the log; restart it")))
}

/// Where a daemon that has started can be reached.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Ready {
    /// Host key.
    pub host: KeyId,
    /// Cluster.
    pub cluster: ClusterId,
    /// Control plane.
    pub control: Vec<SocketAddr>,
    /// Data plane.
    pub data: SocketAddr,
    /// HTTP.
    pub http: SocketAddr,
    /// Socket of the command line.
    pub admin_socket: PathBuf,
    /// Socket of loaders.
    pub loader_socket: PathBuf,
}

impl Node {
    /// Begins or ends to drain this host: no new fetches, nothing new for others, who are told that it leaves.
    pub(crate) async fn drain(&self, on: bool) {
        if self.drained.send_replace(on) != on {
            info!(on, "draining");
        }
        self.fetcher.drain(on).await;
    }

    pub(crate) fn is_draining(&self) -> bool {
        *self.drained.borrow()
    }

    /// Whether this daemon serves other users from the system's directories, rather than one user from theirs.
    pub(crate) fn is_service(&self) -> bool {
        self.dirs.data.starts_with("/var/lib") || self.dirs.sockets.starts_with("/run/weighlock")
    }

    /// Data plane addresses that others may use, as many as a host record takes.
    pub(crate) fn data_addrs(&self, bound: SocketAddr) -> Vec<SocketAddr> {
        let configured = &self.config.listen.advertise_data;
        let mut all = if configured.is_empty() { reachable(bound) } else { configured.clone() };
        all.truncate(ADDRS_MAX);
        all
    }

    /// Control plane addresses that others may use, as many as a host record takes.
    pub(crate) fn control_addrs(&self) -> Vec<SocketAddr> {
        let configured = &self.config.listen.advertise_control;
        let mut all = if configured.is_empty() { self.control.listen_addrs() } else { configured.clone() };
        all.truncate(ADDRS_MAX);
        all
    }
}

/// Admits strangers with a ticket and tells them where members are.
fn join_door(facts: Facts, contacts: Arc<OnceLock<ControlHandle>>) -> crate::net::data::JoinDoor {
    Arc::new(move |key, request| {
        let (facts, contacts) = (facts.clone(), contacts.clone());
        Box::pin(async move {
            let judged = blocking(move || Ok(facts.join(key, &request))).await;
            let mut answer =
                judged.unwrap_or_else(|e| JoinAnswer::Refused { reason: format!("this member failed: {e}") });
            if let (JoinAnswer::Welcome { hosts, .. }, Some(control)) = (&mut answer, contacts.get()) {
                *hosts = membership::contacts(control);
            }
            answer.encode()
        })
    })
}

/// Goes on with artifacts that this host wants and does not have whole: begun before a kill, or damaged since.
async fn resume(node: Arc<Node>) {
    loop {
        let gather = node.clone();
        let unfinished = blocking(move || {
            let mut unfinished = Vec::new();
            for digest in gather.store.held().map_err(Error::from)? {
                if let Some(manifest) = crate::facts::manifest(&gather.store, &digest)?
                    && !gather.store.manifest_complete(&manifest).map_err(Error::from)?
                {
                    unfinished.push(digest);
                }
            }
            Ok(unfinished)
        });
        match unfinished.await {
            Ok(all) => {
                for digest in all {
                    // Runs in the background; whoever opens it meanwhile shares it.
                    if let Err(e) = node.fetcher.begin(digest).await {
                        tracing::debug!(%digest, error = %e, "cannot go on with a fetch");
                    }
                }
            }
            Err(e) => warn!(error = %e, "cannot tell what is unfinished here"),
        }
        ask_for_manifests(&node).await;
        tokio::select! {
            () = node.stop.cancelled() => return,
            () = tokio::time::sleep(RESUME_INTERVAL) => {}
        }
    }
}

/// Manifests that were published while nobody who has them could be asked.
async fn ask_for_manifests(node: &Arc<Node>) {
    let gather = node.clone();
    let missing = blocking(move || {
        let published = crate::facts::published(&gather.facts.ledger());
        let mut missing = Vec::new();
        let published = published.into_iter().filter_map(|(_, _, resolution)| match resolution {
            Resolution::Resolved(digest) | Resolution::Unproven(digest) => Some(digest),
            _ => None,
        });
        let evidence: Vec<_> = gather.facts.ledger().evidence().copied().collect();
        for digest in published.chain(evidence) {
            if gather.store.manifest(&digest).map_err(Error::from)?.is_none() {
                missing.push(digest);
            }
        }
        Ok(missing)
    });
    for digest in missing.await.unwrap_or_default().into_iter().take(MANIFESTS_AT_ONCE_MAX) {
        // One that nobody has must not keep others waiting.
        if node.stop.is_cancelled() || node.fetcher.manifest_now(digest).await.is_err() {
            return;
        }
    }
}

fn spawn(
    tasks: &mut JoinSet<&'static str>,
    name: &'static str,
    task: impl Future<Output = ()> + Send + 'static,
) {
    tasks.spawn(async move {
        task.await;
        name
    });
}

/// The addresses behind a bound one: those of all interfaces where it is unspecified, loopback only if that is all.
fn reachable(bound: SocketAddr) -> Vec<SocketAddr> {
    if !bound.ip().is_unspecified() {
        return vec![bound];
    }
    let all: Vec<IpAddr> = if_addrs::get_if_addrs().unwrap_or_default().iter().map(|i| i.addr.ip()).collect();
    let same_family = |ip: &&IpAddr| ip.is_ipv4() == bound.is_ipv4() || bound.is_ipv6();
    let link_local = |ip: &IpAddr| matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let outside: Vec<_> =
        all.iter().filter(same_family).filter(|ip| !ip.is_loopback() && !link_local(ip)).collect();
    let chosen = if outside.is_empty() { all.iter().filter(same_family).collect() } else { outside };
    chosen.into_iter().map(|ip| SocketAddr::new(*ip, bound.port())).collect()
}

/// Where members are, as a new one should know.
pub(crate) fn own_contact(node: &Node, data_addr: SocketAddr) -> Contact {
    Contact { host: node.host, control: node.control_addrs(), data: node.data_addrs(data_addr) }
}
