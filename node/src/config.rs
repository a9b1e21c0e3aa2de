//! The configuration file and where things lie: flags beat the environment, which beats the file.

mod dirs;
pub mod env;
mod integrity;
mod load;
mod store;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use weighlock_protocol::swarm::SwarmConfig;

use crate::net::data::{DataConfig, PACKET_BYTES_MAX, PACKET_BYTES_MIN};
pub use dirs::{Dirs, default_config_path, default_data_dir, default_keys_dir};
pub use integrity::Integrity;
pub use load::{Loaded, differing};
pub use store::Store;

/// Default port of the control plane (UDP and TCP).
pub const CONTROL_PORT: u16 = 7400;
/// Default port of the data plane (UDP).
pub const DATA_PORT: u16 = 7401;
/// Default port of the local HTTP server.
pub const HTTP_PORT: u16 = 7402;

/// The configuration file, `/etc/weighlock/config.toml` or `$XDG_CONFIG_HOME/weighlock/config.toml`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Name of this host in lists; the system's host name by default.
    pub name: Option<String>,
    /// Labels of this host, such as `rack = "r12"` or `zone = "eu-1"`.
    pub labels: BTreeMap<String, String>,
    /// Hardware key of this host (`vendor/arch`); detected when absent.
    pub hardware: Option<String>,
    /// Where sockets listen.
    pub listen: Listen,
    /// How hosts find each other.
    pub discovery: Discovery,
    /// How the data plane uses the network.
    pub network: Network,
    /// Limits.
    pub limits: Limits,
    /// When what lies in the store is proven again.
    pub integrity: Integrity,
    /// Local sockets.
    pub sockets: Sockets,
    /// How much is kept.
    pub store: Store,
    /// The log of opens.
    pub audit: Audit,
    /// Logs.
    pub log: Log,
}

/// Addresses. Port 0 picks a free port, which `weighlock status` tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Listen {
    /// Control plane, UDP and TCP.
    pub control: SocketAddr,
    /// Data plane, UDP.
    pub data: SocketAddr,
    /// HTTP with `/healthz` and `/metrics`; keep it on loopback.
    pub http: SocketAddr,
    /// Addresses that others should use instead of those of this host's interfaces (behind NAT). The first port is
    /// the data plane's.
    pub advertise_data: Vec<SocketAddr>,
    /// The same for the control plane.
    pub advertise_control: Vec<SocketAddr>,
}

/// How hosts find each other beside tickets and what they remember.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Discovery {
    /// Multicast DNS on the local network.
    pub mdns: bool,
    /// Provider records in a Kademlia table.
    pub kademlia: bool,
}

/// How the data plane uses the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Network {
    /// Largest UDP payload that path MTU discovery tries, 1200 to 6500 bytes; 1452 is what plain Ethernet carries.
    /// Lower it only on a path that swallows larger packets instead of refusing them.
    pub packet_bytes_max: u16,
    /// Bytes on their way of all connections together, unread or unacknowledged; bounds memory and, on long paths,
    /// the rate. Each connection uses at most 32 MiB.
    pub windows_bytes_max: u64,
}

/// Bounds on what a daemon uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Data connections from others at once.
    pub connections_max: usize,
    /// Neighbours that this host accepts per artifact; it looks for two thirds of that by itself.
    pub neighbours_max: usize,
    /// Pieces sent at once, all artifacts and peers together; a third more while this host is the first to hold an
    /// artifact and gives each piece out once.
    pub uploads_max: usize,
    /// Bytes per second sent to all peers together; 0 is no limit.
    pub upload_bytes_per_s: u64,
    /// Bytes per second sent to one peer; 0 is no limit.
    pub upload_per_peer_bytes_per_s: u64,
    /// Bytes per second fetched from all peers together; 0 is no limit.
    pub download_bytes_per_s: u64,
    /// Loader and admin connections at once.
    pub local_connections_max: usize,
    /// Bytes that must stay free on the disk.
    pub free_bytes_min: u64,
    /// Most bytes of one report with its samples and log, stored here or fetched from others.
    pub evidence_bytes_max: u64,
    /// Seconds that a get may wait for the next bytes.
    pub stall_timeout_s: u64,
    /// Seconds that `weighlock up` waits on SIGTERM for what is in flight.
    pub drain_timeout_s: u64,
}

/// Local sockets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sockets {
    /// Directory of `loader.sock` and `weighlock.sock`; `<data>/run` by default.
    pub dir: Option<PathBuf>,
    /// Group that may use `loader.sock` (mode 0660); the daemon's own group by default.
    pub loader_group: Option<String>,
}

/// How much of the log of opens and closes is kept; the oldest goes first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Audit {
    /// Bytes of all files together.
    pub bytes_max: u64,
    /// Bytes of one file; the next begins after it.
    pub segment_bytes: u64,
    /// Days.
    pub days_max: u64,
}

/// Logs go to standard error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,weighlock=debug`.
    pub level: String,
    /// One JSON object a line instead of text.
    pub json: bool,
}

impl Default for Listen {
    fn default() -> Self {
        let any = |port| SocketAddr::from(([0, 0, 0, 0], port));
        Self {
            control: any(CONTROL_PORT),
            data: any(DATA_PORT),
            http: SocketAddr::from(([127, 0, 0, 1], HTTP_PORT)),
            advertise_data: Vec::new(),
            advertise_control: Vec::new(),
        }
    }
}

impl Default for Discovery {
    fn default() -> Self {
        Self { mdns: true, kademlia: true }
    }
}

impl Default for Network {
    fn default() -> Self {
        let DataConfig { packet_bytes_max, windows_bytes_max, .. } = DataConfig::default();
        Self { packet_bytes_max, windows_bytes_max }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 512,
            neighbours_max: SwarmConfig::default().neighbours_max,
            uploads_max: SwarmConfig::default().uploads_max,
            upload_bytes_per_s: 0,
            upload_per_peer_bytes_per_s: 0,
            download_bytes_per_s: 0,
            local_connections_max: 1024,
            free_bytes_min: 256 << 20,
            evidence_bytes_max: 4 << 30,
            stall_timeout_s: 15,
            drain_timeout_s: 10,
        }
    }
}

impl Limits {
    /// The limits of the swarm that follow from these.
    pub fn swarm(&self) -> SwarmConfig {
        let rate = |bytes_per_s: u64| (bytes_per_s > 0).then_some(bytes_per_s);
        SwarmConfig {
            neighbours_max: self.neighbours_max,
            neighbours_target: (self.neighbours_max * 2).div_ceil(3),
            uploads_max: self.uploads_max,
            uploads_release_max: self.uploads_max + self.uploads_max.div_ceil(3),
            downloads_aim: self.uploads_max + 1,
            downloads_max: (self.uploads_max + 1) * 2,
            upload_bytes_per_s: rate(self.upload_bytes_per_s),
            upload_per_peer_bytes_per_s: rate(self.upload_per_peer_bytes_per_s),
            download_bytes_per_s: rate(self.download_bytes_per_s),
            ..SwarmConfig::default()
        }
    }
}

impl Default for Audit {
    fn default() -> Self {
        // An open and its close take about 1,000 bytes: a quarter of a million of them, for more than a year.
        Self { bytes_max: 256 << 20, segment_bytes: 4 << 20, days_max: 400 }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".into(), json: false }
    }
}

/// What a level may be.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Checks a log filter: levels, or `target=level`, separated by commas. The library behind it would take a level
/// with a typing error for a target and log nothing.
///
/// # Errors
/// The part that is wrong.
pub fn check_log_filter(filter: &str) -> Result<(), String> {
    for part in filter.split(',').map(str::trim) {
        let level = part.rsplit_once('=').map_or(part, |(_, level)| level);
        // `target[span{field=value}]` has no level.
        if !LEVELS.iter().any(|known| level.eq_ignore_ascii_case(known)) && !part.ends_with(']') {
            return Err(format!("`{level}` is not a log level: {}", LEVELS.join(", ")));
        }
    }
    tracing_subscriber::EnvFilter::try_new(filter).map(drop).map_err(|e| e.to_string())
}

impl Config {
    /// Checks what types cannot say.
    ///
    /// # Errors
    /// The key and what is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        let positive = [
            ("limits.connections_max", self.limits.connections_max as u64),
            ("limits.neighbours_max", self.limits.neighbours_max as u64),
            ("limits.uploads_max", self.limits.uploads_max as u64),
            ("limits.local_connections_max", self.limits.local_connections_max as u64),
            ("limits.evidence_bytes_max", self.limits.evidence_bytes_max),
            ("limits.stall_timeout_s", self.limits.stall_timeout_s),
            ("audit.days_max", self.audit.days_max),
        ];
        if !(PACKET_BYTES_MIN..=PACKET_BYTES_MAX).contains(&self.network.packet_bytes_max) {
            return Err(format!("network.packet_bytes_max must be {PACKET_BYTES_MIN} to {PACKET_BYTES_MAX}"));
        }
        if !(4 << 20..=16 << 30).contains(&self.network.windows_bytes_max) {
            return Err(format!("network.windows_bytes_max must be {} to {}", 4 << 20, 16u64 << 30));
        }
        if let Some((key, _)) = positive.into_iter().find(|(_, value)| *value == 0) {
            return Err(format!("{key} must be at least 1"));
        }
        let bounded = [
            ("limits.connections_max", self.limits.connections_max as u64, 65_536),
            ("limits.neighbours_max", self.limits.neighbours_max as u64, 1024),
            ("limits.uploads_max", self.limits.uploads_max as u64, 64),
            ("limits.local_connections_max", self.limits.local_connections_max as u64, 65_536),
            ("limits.stall_timeout_s", self.limits.stall_timeout_s, 86_400),
            ("limits.drain_timeout_s", self.limits.drain_timeout_s, 86_400),
            ("audit.segment_bytes", self.audit.segment_bytes, 64 << 20),
            ("audit.bytes_max", self.audit.bytes_max, 64 << 30),
            ("audit.days_max", self.audit.days_max, 36_500),
        ];
        if let Some((key, _, max)) = bounded.into_iter().find(|(_, value, max)| value > max) {
            return Err(format!("{key} must be at most {max}"));
        }
        self.integrity.check()?;
        if self.audit.segment_bytes < 64 << 10 {
            return Err("audit.segment_bytes must be at least 65536".into());
        }
        if self.audit.bytes_max < 2 * self.audit.segment_bytes {
            return Err("audit.bytes_max must be at least twice audit.segment_bytes".into());
        }
        if !self.listen.http.ip().is_loopback() {
            return Err(format!(
                "listen.http {} is not a loopback address; metrics would be open to strangers",
                self.listen.http
            ));
        }
        self.store.check()?;
        check_log_filter(&self.log.level).map_err(|e| format!("log.level `{}`: {e}", self.log.level))?;
        if self.labels.len() > 32 {
            return Err("labels has more than 32 entries".into());
        }
        if self.labels.iter().any(|(key, value)| key.is_empty() || key.len() > 64 || value.len() > 128) {
            return Err("a label key has 1 to 64 bytes, its value at most 128".into());
        }
        if let Some(hardware) = &self.hardware
            && (hardware.len() > 64 || hardware.split('/').count() != 2)
        {
            return Err(format!("hardware `{hardware}` is not vendor/arch such as nvidia/sm_90"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_round_trip_and_unknown_keys_are_refused() {
        let text = toml::to_string(&Config::default()).expect("serialises");
        assert_eq!(toml::from_str::<Config>(&text).expect("parses"), Config::default());
        let error = toml::from_str::<Config>("[limits]\nuplods_max = 3\n").expect_err("typo").to_string();
        assert!(error.contains("uplods_max"), "{error}");
    }

    #[test]
    fn values_out_of_range_name_their_key() {
        let mut config = Config::default();
        config.limits.uploads_max = 0;
        assert!(config.check().expect_err("zero").contains("limits.uploads_max"));
        for bytes in [0, 1199, 6501, u16::MAX] {
            let mut config = Config::default();
            config.network.packet_bytes_max = bytes;
            assert!(config.check().expect_err("out of range").contains("network.packet_bytes_max"));
        }
        let mut config = Config::default();
        config.audit.bytes_max = config.audit.segment_bytes;
        assert!(config.check().expect_err("one file").contains("audit.bytes_max"));
        let config = Config { hardware: Some("h100".into()), ..Config::default() };
        assert!(config.check().expect_err("no slash").contains("vendor/arch"));
    }

    #[test]
    fn a_log_filter_with_a_typing_error_is_refused() {
        for good in ["info", "WARN", "off", "info,weighlock=debug", "weighlock::net=trace, warn", "a[b]=info"]
        {
            assert_eq!(check_log_filter(good), Ok(()), "{good}");
        }
        for bad in ["", "infoo", "weighlock=debg", "info,", "info,,warn", "loud", "weighlock", "a[b=info"] {
            assert!(check_log_filter(bad).is_err(), "{bad:?}");
        }
        let mut config = Config::default();
        config.log.level = "verbose".into();
        assert!(config.check().expect_err("no level").contains("log.level"));
    }
}
