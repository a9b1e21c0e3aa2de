//! `weighlock status`.

use std::time::{Duration, Instant};

use clap::Args;

use super::Context;
use super::output::{age, bytes, counted};
use super::progress::{NO_SPACE, disk_full};
use crate::cluster::now;
use crate::error::{Error, Kind, Result};
use crate::local::message::{AdminRequest, Status as Data};

/// What the daemon on this host is doing.
#[derive(Debug, Args)]
pub(super) struct Status {
    /// Wait up to so many seconds until the daemon answers [without a number: 30]
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "30",
        value_parser = clap::value_parser!(u64).range(..=86_400))]
    wait: Option<u64>,
    /// With --wait: and until so many other hosts are connected
    #[arg(long, value_name = "N", requires = "wait", default_value_t = 0)]
    peers: usize,
}

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(100);

impl Status {
    pub(super) fn run(self, context: &Context) -> Result<()> {
        let ask = || context.ask::<Data>(&AdminRequest::Status);
        let status = match self.wait {
            None => ask()?,
            Some(seconds) => {
                let since = Instant::now();
                let left = || Duration::from_secs(seconds).checked_sub(since.elapsed());
                until_ready(ask, self.peers, || left().map(|left| std::thread::sleep(left.min(PAUSE))))?
            }
        };
        context.output.print(&status, text)
    }
}

/// Asks until the daemon answers and `peers` others are connected, or until `pause` says that time is up.
fn until_ready(ask: impl Fn() -> Result<Data>, peers: usize, pause: impl Fn() -> Option<()>) -> Result<Data> {
    loop {
        let late = match ask() {
            Ok(status) if status.peers >= peers => return Ok(status),
            Ok(status) => Error::unavailable(format!(
                "{} of {} connected, after waiting",
                status.peers,
                counted(peers, "host")
            ))
            .hint("see `weighlock peers`, or wait longer: --wait SECONDS"),
            Err(error) if error.kind == Kind::Unavailable => error,
            Err(error) => return Err(error),
        };
        if pause().is_none() {
            return Err(late);
        }
    }
}

fn text(s: &Data) -> String {
    let mut out = String::new();
    let mut line = |key: &str, value: String| out += &format!("{key:<10} {value}\n");
    line("host", format!("{} ({})", s.name, s.host));
    line("cluster", format!("{} ({})", s.cluster_name, s.cluster.short()));
    let membership = if s.member { "" } else { "; this host is NOT an admitted member" };
    line("members", format!("{} admitted, {} connected{membership}", s.members, s.peers));
    if let Some(revoked) = &s.revoked {
        line("REVOKED", format!("{revoked}; other hosts refuse it, an admin may admit it again"));
    }
    line("hardware", s.hardware.clone());
    line("up", format!("{} (pid {}, version {})", age(s.uptime_s), s.pid, s.version));
    if s.draining {
        line(
            "DRAINING",
            "fetches nothing new and gives nothing new to others; `weighlock drain --undo`".into(),
        );
    }
    line("control", s.control.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
    line("data", s.data.to_string());
    line("http", format!("http://{}", s.http));
    line("store", s.data_dir.display().to_string());
    line("loaders", format!("{} ({})", s.loader_socket.display(), s.mode));
    line("layers", format!("{} sealed, {}; {} free", s.layers, bytes(s.layer_bytes), bytes(s.free_bytes)));
    if let Some(since) = s.integrity.proven_since {
        let ago = age(now().0.saturating_sub(since));
        let healed = match s.integrity.healed {
            0 => String::new(),
            healed => format!(", {healed} healed"),
        };
        let damaged = s.integrity.damaged.len();
        line(
            "proven",
            format!("every layer within {ago}; {damaged} damaged{healed}")
                .replace("within just now", "just now"),
        );
    }
    line("open", format!("{} by loaders", s.leases));
    for fetch in &s.fetches {
        let p = &fetch.progress;
        let text = format!(
            "{}: {} of {} from {}",
            fetch.digest.short(),
            bytes(p.done_bytes),
            bytes(p.total_bytes),
            p.sources
        );
        line("fetching", text);
        if p.phase == NO_SPACE {
            line("PAUSED", disk_full(&s.data_dir));
        }
    }
    if !s.ungated.is_empty() {
        line("ungated", format!("{} (no policy: any published version opens)", s.ungated.join(", ")));
    }
    for alarm in &s.alarms {
        line("ALARM", alarm.clone());
    }
    out
}
