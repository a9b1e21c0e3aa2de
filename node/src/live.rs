//! What of the configuration changes while the daemon runs: the log filter and this host's labels.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use tracing::{info, warn};

use crate::config::{Config, Loaded, differing};
use crate::error::Result;
use crate::local::fleet::{LogLevel, Reloaded};
use crate::logs::Logs;

/// Labels by which hosts of one rack find each other. Neighbours were told of them as links began.
const RACK_LABELS: [&str; 2] = ["labels.rack", "labels.zone"];

/// The part of the configuration that is in force now. Shared by signals and doors.
#[derive(Debug)]
pub struct Live {
    /// The file that was named, if one was.
    file: Option<PathBuf>,
    /// File and environment as they were at the start.
    started_with: Config,
    /// The filter of `up --log`, which beats the file.
    flag: Option<String>,
    logs: Logs,
    labels: watch::Sender<Arc<BTreeMap<String, String>>>,
    /// What the file and the environment said last.
    last: Mutex<Config>,
}

impl Live {
    /// As `loaded` from `file`, or from the default one; with the filter that a flag gave, if one did.
    pub fn new(file: Option<PathBuf>, loaded: &Config, flag: Option<String>, logs: Logs) -> Self {
        Self {
            file,
            started_with: loaded.clone(),
            flag,
            logs,
            labels: watch::Sender::new(Arc::new(loaded.labels.clone())),
            last: Mutex::new(loaded.clone()),
        }
    }

    /// Labels of this host, as a value to watch.
    pub fn labels(&self) -> watch::Receiver<Arc<BTreeMap<String, String>>> {
        self.labels.subscribe()
    }

    /// Reads file and environment again and applies what can be applied.
    ///
    /// # Errors
    /// The configuration is wrong; then nothing changes.
    pub fn reload(&self) -> Result<Reloaded> {
        let loaded = Loaded::new(self.file.as_deref())?;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let live = |key: &String| key == "log.level" || key.starts_with("labels.");
        let applied: Vec<String> = differing(&last, &loaded.config).into_iter().filter(live).collect();
        let needs_restart = differing(&self.started_with, &loaded.config)
            .into_iter()
            .filter(|key| !live(key) || RACK_LABELS.contains(&key.as_str()))
            .collect();
        // Also when it did not change: a filter that was set by hand ends here.
        let log_level = self.flag.clone().unwrap_or_else(|| loaded.config.log.level.clone());
        self.logs.set(&log_level)?;
        let labels = Arc::new(loaded.config.labels.clone());
        self.labels.send_if_modified(|held| {
            let changed = *held != labels;
            *held = labels;
            changed
        });
        *last = loaded.config;
        let reloaded = Reloaded { applied, needs_restart, log_level };
        info!(applied = reloaded.applied.join(" "), log = reloaded.log_level, "configuration read again");
        if !reloaded.needs_restart.is_empty() {
            warn!(keys = reloaded.needs_restart.join(" "), "these changed and take effect after a restart");
        }
        Ok(reloaded)
    }

    /// Tells the log filter, after setting it if one is given.
    ///
    /// # Errors
    /// The filter is wrong.
    pub fn log_level(&self, filter: Option<&str>) -> Result<LogLevel> {
        if let Some(filter) = filter {
            self.logs.set(filter)?;
            info!(log = filter, "the log filter was set by hand");
        }
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let configured = self.flag.clone().unwrap_or_else(|| last.log.level.clone());
        Ok(LogLevel { filter: self.logs.filter(), configured })
    }
}
