//! `weighlock up`: the daemon in the foreground.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;
use tracing_subscriber::EnvFilter;

use super::Context;
use super::join::{persist, read_ticket};
use crate::config::check_log_filter;
use crate::error::{Error, Result};
use crate::{cluster, daemon, keys, preflight};

/// Run the daemon in the foreground; alone it makes a cluster of one host.
///
/// With a ticket (--ticket-file or WEIGHLOCK_TICKET) and no cluster yet, it joins first. SIGTERM and SIGINT drain it.
#[derive(Debug, Args)]
pub(super) struct Up {
    /// Control plane address, UDP and TCP [default: 0.0.0.0:7400]
    #[arg(long, value_name = "ADDR:PORT", env = "WEIGHLOCK_CONTROL_LISTEN")]
    control_listen: Option<SocketAddr>,
    /// Data plane address, UDP [default: 0.0.0.0:7401]
    #[arg(long, value_name = "ADDR:PORT", env = "WEIGHLOCK_DATA_LISTEN")]
    data_listen: Option<SocketAddr>,
    /// HTTP address for /healthz and /metrics [default: 127.0.0.1:7402]
    #[arg(long, value_name = "ADDR:PORT", env = "WEIGHLOCK_HTTP_LISTEN")]
    http_listen: Option<SocketAddr>,
    /// Name of this host for people [default: the system's host name]
    #[arg(long, env = "WEIGHLOCK_NAME")]
    name: Option<String>,
    /// Do not look for members on the local network by multicast DNS
    #[arg(long)]
    no_mdns: bool,
    /// Ticket to join with, where this host belongs to no cluster yet
    #[arg(long, value_name = "FILE")]
    ticket_file: Option<PathBuf>,
    /// Log filter, such as info or weighlock=debug
    #[arg(long, value_name = "FILTER", env = "WEIGHLOCK_LOG")]
    log: Option<String>,
}

impl Up {
    pub(super) fn run(self, context: &Context) -> Result<()> {
        let mut config = context.config.clone();
        config.listen.control = self.control_listen.unwrap_or(config.listen.control);
        config.listen.data = self.data_listen.unwrap_or(config.listen.data);
        config.listen.http = self.http_listen.unwrap_or(config.listen.http);
        config.name = self.name.or(config.name);
        config.discovery.mdns &= !self.no_mdns;
        config.check().map_err(Error::invalid)?;
        context.dirs.check_sockets()?;
        if let Some(filter) = &self.log {
            check_log_filter(filter).map_err(|e| {
                Error::invalid(format!("log filter `{filter}`: {e}"))
                    .hint("for example info, or info,weighlock=debug")
            })?;
        }
        logs(self.log.as_deref().unwrap_or(&config.log.level), config.log.json)?;
        raise_descriptor_limit();

        let store = daemon::open_store(&context.dirs, &config)?;
        let recovery = store.recovery();
        let (resumable, lost) = (recovery.resumable.len(), recovery.lost.len());
        info!(store = %context.dirs.data.display(), resumable, lost, "store open");
        // Before a cluster or a key is made: a daemon that cannot start leaves none behind.
        preflight::check(&context.dirs, &config)?;
        let host = keys::host_key(&context.dirs.data)?;
        let name = cluster::host_name(config.name.as_deref());
        if cluster::of(&store)?.is_none() {
            if let Some(ticket) = read_ticket(None, self.ticket_file.as_deref())? {
                persist(&store, &host, &name, &config.labels, &ticket)?;
                info!(cluster = %ticket.cluster().short(), "joining by ticket");
            } else {
                let founded =
                    cluster::found(&store, &context.dirs.keys, &host, &name, &config.labels, "weighlock")?;
                let key = founded.admin_key.display().to_string();
                info!(cluster = %founded.cluster.short(), admin_key = key, "made a cluster of one host; back up its admin key");
            }
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(|e| Error::internal(format!("cannot start: {e}")))?;
        let output = context.output;
        let dirs = context.dirs.clone();
        let ran = runtime.block_on(async move {
            let stop = CancellationToken::new();
            let on_signal = stop.clone();
            let mut term = signal(SignalKind::terminate()).map_err(Error::internal)?;
            let mut int = signal(SignalKind::interrupt()).map_err(Error::internal)?;
            tokio::spawn(async move {
                tokio::select! { _ = term.recv() => {} , _ = int.recv() => {} }
                on_signal.cancel();
                tokio::select! { _ = term.recv() => {} , _ = int.recv() => {} }
                // Twice means now; nothing acknowledged is lost by it.
                std::process::exit(130);
            });
            daemon::run(dirs, config, store, host, stop, |ready| {
                info!(control = ?ready.control, data = %ready.data, http = %ready.http, "ready");
                let _ = output.print(ready, |r| {
                    format!("weighlock is up: loaders at {}, http://{}\n", r.loader_socket.display(), r.http)
                });
            })
            .await
        });
        runtime.shutdown_timeout(std::time::Duration::from_secs(2));
        ran
    }
}

/// What libraries remark at their lower levels is no news for the user; a filter may ask for it by their names.
const LIBRARIES: &str = "libp2p=warn,libp2p_kad=error,libp2p_mdns=error,quinn=warn,quinn_proto=warn,quinn_udp=warn,\
    netlink_proto=warn,if_watch=warn,multistream_select=warn,yamux=warn,rustls=warn,hickory_proto=warn,\
    hickory_resolver=warn";

fn log_filter(filter: &str) -> Result<EnvFilter> {
    EnvFilter::try_new(format!("{LIBRARIES},{filter}")).map_err(|e| {
        Error::invalid(format!("log filter `{filter}`: {e}"))
            .hint("for example info, or info,weighlock=debug")
    })
}

fn logs(filter: &str, json: bool) -> Result<()> {
    let filter = log_filter(filter)?;
    let ansi = std::io::stderr().is_terminal();
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(ansi).with_writer(std::io::stderr);
    let set = if json { logs.json().try_init() } else { logs.with_target(false).try_init() };
    set.map_err(Error::internal)
}

/// One artifact may have thousands of files, and each loader holds descriptors too.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(e) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(error = %e, "the limit of open files stays low");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;
    use tracing_subscriber::layer::SubscriberExt;

    #[test]
    fn libraries_are_quiet_unless_they_are_asked() {
        let enabled = |filter: &str| {
            let subscriber = tracing_subscriber::registry().with(log_filter(filter).expect("a filter"));
            tracing::subscriber::with_default(subscriber, || {
                [
                    tracing::enabled!(target: "weighlock::daemon", Level::INFO),
                    tracing::enabled!(target: "libp2p_gossipsub::behaviour", Level::INFO),
                    tracing::enabled!(target: "quinn_proto::connection", Level::INFO),
                    tracing::enabled!(target: "libp2p_swarm", Level::WARN),
                ]
            })
        };
        assert_eq!(enabled("info"), [true, false, false, true]);
        assert_eq!(enabled("debug"), [true, false, false, true]);
        assert_eq!(enabled("info,libp2p=info,quinn_proto=debug"), [true, true, true, true]);
    }
}
