//! What is logged: to standard error, by a filter that can be changed while the daemon runs.

use std::fmt;
use std::io::IsTerminal;
use std::sync::{Arc, PoisonError, RwLock};

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, reload};

use crate::config::check_log_filter;
use crate::error::{Error, Result};

/// What libraries remark at their lower levels is no news for the user; a filter may ask for it by their names.
const LIBRARIES: &str = "libp2p=warn,libp2p_kad=error,libp2p_mdns=error,quinn=warn,quinn_proto=warn,quinn_udp=warn,\
    netlink_proto=warn,if_watch=warn,multistream_select=warn,yamux=warn,rustls=warn,hickory_proto=warn,\
    hickory_resolver=warn";

/// The log of this process. Cheap to clone.
#[derive(Clone)]
pub struct Logs {
    filter: Arc<RwLock<String>>,
    replace: Arc<dyn Fn(EnvFilter) -> Result<()> + Send + Sync>,
}

impl Logs {
    /// Starts logging; once per process.
    ///
    /// # Errors
    /// The filter is wrong, or something logs already.
    pub fn start(filter: &str, json: bool) -> Result<Self> {
        let parsed = parse(filter)?;
        let (reloadable, handle) = reload::Layer::new(parsed);
        let lines = tracing_subscriber::fmt::layer()
            .with_ansi(std::io::stderr().is_terminal())
            .with_writer(std::io::stderr);
        let lines = if json { lines.json().boxed() } else { lines.with_target(false).boxed() };
        tracing_subscriber::registry().with(reloadable).with(lines).try_init().map_err(Error::internal)?;
        let replace: Arc<dyn Fn(EnvFilter) -> Result<()> + Send + Sync> =
            Arc::new(move |filter| handle.reload(filter).map_err(Error::internal));
        Ok(Self { filter: Arc::new(RwLock::new(filter.to_owned())), replace })
    }

    /// The filter in force.
    pub fn filter(&self) -> String {
        self.filter.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Logs by another filter from now on.
    ///
    /// # Errors
    /// The filter is wrong; then nothing changes.
    pub fn set(&self, filter: &str) -> Result<()> {
        let parsed = parse(filter)?;
        let mut held = self.filter.write().unwrap_or_else(PoisonError::into_inner);
        (self.replace)(parsed)?;
        filter.clone_into(&mut held);
        Ok(())
    }
}

impl fmt::Debug for Logs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Logs").field("filter", &self.filter()).finish_non_exhaustive()
    }
}

/// # Errors
/// What is wrong with the filter.
fn parse(filter: &str) -> Result<EnvFilter> {
    let wrong = |e: String| {
        Error::invalid(format!("log filter `{filter}`: {e}"))
            .hint("for example info, or info,weighlock=debug")
    };
    check_log_filter(filter).map_err(wrong)?;
    EnvFilter::try_new(format!("{LIBRARIES},{filter}")).map_err(|e| wrong(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    #[test]
    fn libraries_are_quiet_unless_they_are_asked() {
        let enabled = |filter: &str| {
            let subscriber = tracing_subscriber::registry().with(parse(filter).expect("a filter"));
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
