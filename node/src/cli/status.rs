//! `weighlock status`.

use clap::Args;

use super::Context;
use super::output::{age, bytes};
use crate::error::Result;
use crate::local::message::{AdminRequest, Status as Data};

/// What the daemon on this host is doing.
#[derive(Debug, Args)]
pub(super) struct Status {}

impl Status {
    pub(super) fn run(self, context: &Context) -> Result<()> {
        let status: Data = context.ask(&AdminRequest::Status)?;
        context.output.print(&status, text)
    }
}

fn text(s: &Data) -> String {
    let mut out = String::new();
    let mut line = |key: &str, value: String| out += &format!("{key:<10} {value}\n");
    line("host", format!("{} ({})", s.name, s.host));
    line("cluster", format!("{} ({})", s.cluster_name, s.cluster.short()));
    let membership = if s.member { "" } else { "; this host is NOT an admitted member" };
    line("members", format!("{} admitted, {} connected{membership}", s.members, s.peers));
    line("hardware", s.hardware.clone());
    line("up", format!("{} (pid {}, version {})", age(s.uptime_s), s.pid, s.version));
    line("control", s.control.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
    line("data", s.data.to_string());
    line("http", format!("http://{}", s.http));
    line("store", s.data_dir.display().to_string());
    line("loaders", format!("{} ({})", s.loader_socket.display(), s.mode));
    line("layers", format!("{} sealed, {}; {} free", s.layers, bytes(s.layer_bytes), bytes(s.free_bytes)));
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
    }
    if !s.ungated.is_empty() {
        line("ungated", format!("{} (no policy: any published version opens)", s.ungated.join(", ")));
    }
    for alarm in &s.alarms {
        line("ALARM", alarm.clone());
    }
    out
}
