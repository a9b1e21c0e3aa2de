//! `weighlock log-level`.

use clap::Args;

use super::Context;
use crate::error::Result;
use crate::local::fleet::LogLevel as Level;
use crate::local::message::AdminRequest;

/// What the daemon logs, and changing that while it runs.
///
/// Lasts until the daemon is restarted or reads its configuration again (`config reload`, SIGHUP); log.level in the
/// configuration is for good.
#[derive(Debug, Args)]
pub(super) struct LogLevel {
    /// error, warn, info, debug, trace, or a filter such as info,weighlock=debug; tells the one in force if left away
    filter: Option<String>,
}

impl LogLevel {
    pub(super) fn run(self, context: &Context) -> Result<()> {
        let level: Level = context.ask(&AdminRequest::LogLevel { filter: self.filter })?;
        context.output.print(&level, |level| {
            if level.filter == level.configured {
                format!("{}\n", level.filter)
            } else {
                format!("{} (configured: {})\n", level.filter, level.configured)
            }
        })
    }
}
