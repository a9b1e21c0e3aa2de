//! `weighlock up`: the daemon in the foreground.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Context;
use super::join::{Place, persist, place, read_ticket};
use crate::error::{Error, Result};
use crate::fetch::blocking;
use crate::live::Live;
use crate::logs::Logs;
use crate::{cluster, daemon, keys, machine, preflight, service};

/// Run the daemon in the foreground; alone it makes a cluster of one host.
///
/// With a ticket (--ticket-file or WEIGHLOCK_TICKET) and no cluster yet, it joins first. SIGTERM and SIGINT drain it;
/// SIGHUP has it read log level and labels again.
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
        let logs = Logs::start(self.log.as_deref().unwrap_or(&config.log.level), config.log.json)?;
        let live = Arc::new(Live::new(context.config_file.clone(), &context.config, self.log, logs));
        raise_descriptor_limit(machine::descriptors_needed(&config));

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
        // Nobody took the admission of the last ticket yet, and nobody may ever, or it expired: perhaps
        // there is another ticket by now.
        let pending = cluster::pending_join(&store)?;
        match read_ticket(None, self.ticket_file.as_deref()) {
            Ok(Some(ticket)) if cluster::of(&store)? == Some(ticket.cluster()) => {
                let invite = ticket.invite_envelope().to_json();
                let wants = match &pending {
                    Some(pending) => !pending.statements.iter().any(|known| known.as_bytes() == invite),
                    None => place(&store, &host, ticket.cluster())? == Place::Outside,
                };
                if wants {
                    persist(&store, &host, &name, &config.labels, &ticket)?;
                }
            }
            Ok(_) => {}
            Err(error) if pending.is_some() => {
                warn!(%error, "the ticket is of no use; going on with the last one");
            }
            // It was used, and may be old by now.
            Err(_) => {}
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(|e| Error::internal(format!("cannot start: {e}")))?;
        let output = context.output;
        let dirs = context.dirs.clone();
        let ran = runtime.block_on(async move {
            let stop = CancellationToken::new();
            let drain = std::time::Duration::from_secs(config.limits.drain_timeout_s);
            // Also while it drains; it ends with the runtime.
            tokio::spawn(service::watchdog(CancellationToken::new()));
            let on_signal = stop.clone();
            let mut term = signal(SignalKind::terminate()).map_err(Error::internal)?;
            let mut int = signal(SignalKind::interrupt()).map_err(Error::internal)?;
            tokio::spawn(async move {
                tokio::select! { _ = term.recv() => {} , _ = int.recv() => {} }
                on_signal.cancel();
                service::stopping(drain);
                tokio::select! { _ = term.recv() => {} , _ = int.recv() => {} }
                // Twice means now; nothing acknowledged is lost by it.
                std::process::exit(130);
            });
            let mut hangup = signal(SignalKind::hangup()).map_err(Error::internal)?;
            let reloading = live.clone();
            tokio::spawn(async move {
                while hangup.recv().await.is_some() {
                    let reloading = reloading.clone();
                    let read = blocking(move || reloading.reload());
                    if let Err(e) = read.await {
                        warn!(error = %e, "the configuration was not read again; all stays as it was");
                    }
                }
            });
            daemon::run(dirs, config, store, host, live, stop, |ready| {
                info!(control = ?ready.control, data = %ready.data, http = %ready.http, "ready");
                service::ready(&format!("loaders at {}", ready.loader_socket.display()));
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

/// One artifact may have thousands of files, and each loader holds descriptors too.
fn raise_descriptor_limit(needed: u64) {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(e) = setrlimit(Resource::Nofile, limit) {
        warn!(error = %e, "the limit of open files stays low");
    }
    if let Some(most) = getrlimit(Resource::Nofile).current.filter(|most| *most < needed) {
        warn!(most, needed, "few open files are allowed; raise the hard limit (LimitNOFILE=, ulimit -Hn)");
    }
}
