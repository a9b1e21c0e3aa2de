//! HTTP on loopback: health and metrics. The Hub and OCI dialects will be served here.

mod door;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tracing::warn;

use crate::admin;
use crate::cluster::now;
use crate::daemon::Node;
use crate::error::{Error, Result};
use crate::fetch::blocking;
use crate::gc::{self, What};
use crate::net::control::ControlLimits;
use door::Door;

/// Serves until the daemon stops.
pub(crate) async fn serve(node: Arc<Node>, listener: TcpListener) {
    let stop = node.stop.clone();
    let app = Router::new()
        .route("/healthz", get(health))
        .route("/metrics", get(metrics))
        .layer(middleware::from_fn_with_state(node.http, check_host))
        .with_state(node);
    if let Err(e) = axum::serve(Door::new(listener), app).with_graceful_shutdown(stop.cancelled_owned()).await
    {
        warn!(error = %e, "HTTP ended");
    }
}

/// A page in a browser may be made to call loopback under a name of its own (DNS rebinding); only addresses and
/// `localhost` are answered.
async fn check_host(State(own): State<SocketAddr>, request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let name = host
        .rsplit_once(':')
        .filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()))
        .map_or(host, |(name, _)| name);
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    if name == "localhost"
        || address.is_ok_and(|ip| ip == own.ip() || ip.is_loopback() || own.ip().is_unspecified())
    {
        return next.run(request).await;
    }
    (StatusCode::FORBIDDEN, "this server answers to its address and to localhost only\n").into_response()
}

async fn health(State(node): State<Arc<Node>>) -> Response {
    let store = node.store.clone();
    match blocking(move || store.available_bytes().map_err(Error::from)).await {
        // Alive all the same: whoever restarts what is not healthy would end the draining.
        Ok(_) if !node.stop.is_cancelled() => {
            let word = if node.is_draining() { "draining\n" } else { "ok\n" };
            (StatusCode::OK, word).into_response()
        }
        Ok(_) => (StatusCode::SERVICE_UNAVAILABLE, "stopping\n").into_response(),
        Err(e) => (StatusCode::SERVICE_UNAVAILABLE, format!("{e}\n")).into_response(),
    }
}

async fn metrics(State(node): State<Arc<Node>>) -> Response {
    match gather(&node).await {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{e}\n")).into_response(),
    }
}

/// What whoever looks after many hosts watches: release, expiries, descriptors.
fn fleet(node: &Node, registry: &mut Registry) {
    let release = [("version", env!("CARGO_PKG_VERSION")), ("hardware", &node.hardware)];
    registry.register(
        "build",
        "The release that runs here",
        Info::new(release.map(|(k, v)| (k, v.to_owned()))),
    );
    let (root, admission) = {
        let ledger = node.facts.ledger();
        let root = ledger.root(now()).map_or(0, |root| root.root.expires.0);
        (root, ledger.member(&node.host, now()).map_or(0, |member| member.expires.0))
    };
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let gauges: [(&str, &str, u64); 7] = [
        (
            "draining",
            "1 while this host fetches nothing new and gives nothing new",
            node.is_draining().into(),
        ),
        (
            "root_expires_seconds",
            "When the cluster's root expires, in seconds since 1970; 0 without a root",
            root,
        ),
        (
            "admission_expires_seconds",
            "When this host's admission expires, in seconds since 1970; 0 for no member",
            admission,
        ),
        (
            "connections_wanted",
            "Members that this host would be connected to if all were there",
            wanted(node),
        ),
        (
            "local_connections_max",
            "Local connections that are served at once",
            node.config.limits.local_connections_max as u64,
        ),
        ("open_files", "File descriptors in use", open as u64),
        ("open_files_max", "File descriptors that may be in use", most.unwrap_or(u64::MAX)),
    ];
    for (name, help, value) in gauges {
        registry.register(name, help, ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)));
    }
}

/// Members, but this one and those that somebody here said are gone, as far as it keeps connections.
fn wanted(node: &Node) -> u64 {
    let ledger = node.facts.ledger();
    let others = ledger
        .members(now())
        .filter(|member| member.key != node.host && !node.forgotten.contains(&member.key));
    others.count().min(ControlLimits::default().peers_max) as u64
}

/// Read at the moment of asking, so that nothing has to be counted twice.
async fn gather(node: &Arc<Node>) -> Result<String> {
    let copy = node.clone();
    let (layers, free, usage, integrity) = blocking(move || {
        let integrity = copy.scrubber.report(&copy.store)?;
        let layers = copy.store.layers().map_err(Error::from)?;
        let usage = copy.store.usage().map_err(Error::from)?;
        Ok((layers, copy.store.available_bytes().map_err(Error::from)?, usage, integrity))
    })
    .await?;
    let everything = What { all: true, dry_run: true, ..What::default() };
    let reclaimable = gc::collect(node, everything).await?.freed_bytes;
    let peers = node.control.peers().await.unwrap_or_default().len();
    let control = node.control.stats();
    let traffic = node.fetcher.traffic();
    let (members, alarms, statements) = {
        let ledger = node.facts.ledger();
        (ledger.members(now()).count(), admin::alarms(node, &ledger, &integrity).len(), ledger.len())
    };
    let mut registry = Registry::with_prefix("weighlock");
    let audit = node.audit.numbers();
    let gauges: [(&str, &str, u64); 16] = [
        ("uptime_seconds", "Seconds since the daemon started", node.started.elapsed().as_secs()),
        ("layers", "Sealed layers in the store", layers.len() as u64),
        ("layer_bytes", "Bytes of sealed layers", layers.iter().map(|(_, info)| info.size).sum()),
        ("free_bytes", "Bytes that the store may still use on its disk", free),
        ("disk_free_bytes", "Bytes that are free on the disk, the floor included", usage.free_bytes),
        ("quota_bytes", "Bytes that the store may use; 0 is no limit", usage.quota_bytes),
        ("used_bytes", "Bytes of the store that count for the quota", usage.used_bytes),
        ("reclaimable_bytes", "Bytes that may go when room is needed", reclaimable),
        ("members", "Admitted hosts", members as u64),
        ("peers", "Members connected on the control plane", peers as u64),
        ("data_connections", "Open connections on the data plane", node.data.connections().len() as u64),
        ("fetches", "Artifacts being fetched", node.fetcher.running().len() as u64),
        ("leases", "Artifacts open by loaders", node.leases.open().len() as u64),
        ("statements", "Statements in the store", statements as u64),
        ("alarms", "Things in `weighlock status` that a person should look at", alarms as u64),
        ("audit_bytes", "Bytes of the audit log", audit.bytes),
    ];
    for (name, help, value) in gauges {
        registry.register(name, help, ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)));
    }
    let counters: [(&str, &str, u64); 13] = [
        ("fetched_bytes", "Proven bytes fetched from peers", node.fetcher.fetched_bytes()),
        ("sent_bytes", "Bytes sent to peers, proofs included", traffic.values().map(|t| t.sent_bytes).sum()),
        (
            "lies",
            "Times that a peer sent bytes that fail verification",
            traffic.values().map(|t| t.lies).sum(),
        ),
        (
            "strangers_refused",
            "Connections of strangers refused on the control plane",
            control.strangers_refused,
        ),
        ("gc_runs", "Times that something was let go of", node.gc.runs.load(Ordering::Relaxed)),
        ("gc_bytes", "Bytes that were let go of", node.gc.bytes.load(Ordering::Relaxed)),
        ("audit_lines", "Lines written to the audit log", audit.lines),
        ("audit_lost", "Events that the audit log could not take, since it began", audit.lost),
        ("offences", "Times that a member sent rubbish and was disconnected for a while", control.offences),
        ("gossip_received", "Gossip messages received", control.gossip_received),
        ("statements_ingested", "New statements committed from peers", control.statements_ingested),
        ("reconciled", "Reconciliations completed that this host began", control.reconciled),
        ("reconcile_failed", "Reconciliations that broke off", control.reconcile_failed),
    ];
    for (name, help, value) in counters {
        registry.register(name, help, ConstCounter::new(value));
    }
    fleet(node, &mut registry);
    let copy = node.clone();
    let registry = blocking(move || {
        copy.scrubber.measure(&copy.store, &mut registry)?;
        Ok(registry)
    })
    .await?;
    let mut text = String::new();
    encode(&mut text, &registry).map_err(Error::internal)?;
    Ok(text)
}
