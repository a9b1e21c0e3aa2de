//! `weighlock config show|check`.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::json;

use super::Context;
use crate::config::Config;
use crate::error::{Error, Result};

/// The configuration in force.
#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Print every key with its value, defaults included
    Show,
    /// Check a configuration file; prints nothing but "ok"
    Check {
        /// The file; the one in force by default
        file: Option<PathBuf>,
    },
}

impl ConfigCommand {
    pub(super) fn run(self, context: &Context) -> Result<()> {
        match self {
            ConfigCommand::Show => {
                let source = context
                    .config_path
                    .as_ref()
                    .map_or("defaults; no file".into(), |p| p.display().to_string());
                let text = toml::to_string(&context.config).map_err(Error::internal)?;
                let value = json!({"source": source, "config": context.config, "data_dir": context.dirs.data,
                    "socket_dir": context.dirs.sockets, "keys_dir": context.dirs.keys});
                context.output.print(&value, |_| {
                    format!(
                        "# from {source}\n# store {}\n# role keys {}\n{text}",
                        context.dirs.data.display(),
                        context.dirs.keys.display()
                    )
                })
            }
            ConfigCommand::Check { file } => {
                let source = match &file {
                    Some(file) => Config::load(Some(file))?.1,
                    None => context.config_path.clone(),
                };
                let source = source.map_or("defaults; no file".into(), |path| path.display().to_string());
                context.output.print(&json!({"ok": true, "source": source}), |_| format!("ok ({source})\n"))
            }
        }
    }
}
