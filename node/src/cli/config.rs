//! `weighlock config show|check|reload`.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::json;

use super::Context;
use super::output::table;
use crate::error::{Error, Result};
use crate::local::fleet::Reloaded;
use crate::local::message::AdminRequest;
use crate::machine::{self, Finding, Verdict};

/// The configuration in force.
#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Print every key with its value, defaults included, and where it comes from
    Show,
    /// Check the configuration, and whether this machine fits it: directories, permissions, sockets, limits, clock
    Check {
        /// The file; the one in force by default
        file: Option<PathBuf>,
        /// Only file and environment, not this machine
        #[arg(long)]
        file_only: bool,
    },
    /// Have the daemon read file and labels again, as SIGHUP does, and say what waits for a restart
    #[command(
        long_about = "Have the daemon read its configuration file again, as SIGHUP does.\n\nlog.level and the labels \
                      take effect at once; sharing within the rack follows labels.rack and labels.zone after a restart, \
                      and so does everything else. The daemon's environment is as it was when it started."
    )]
    Reload,
}

impl ConfigCommand {
    /// The file that is to be checked, where one is named.
    pub(super) fn file(&self) -> Option<&Path> {
        match self {
            ConfigCommand::Check { file, .. } => file.as_deref(),
            _ => None,
        }
    }

    pub(super) fn run(self, context: &Context) -> Result<()> {
        match self {
            ConfigCommand::Show => show(context),
            ConfigCommand::Check { file: _, file_only } => {
                let loaded = &context.loaded;
                let found = if file_only {
                    Vec::new()
                } else {
                    machine::check(&context.dirs, &loaded.config, context.daemon_runs())
                };
                let wrong: Vec<&Finding> = found.iter().filter(|one| one.verdict == Verdict::Error).collect();
                let source = loaded.source();
                let answer = json!({"ok": wrong.is_empty(), "source": source, "findings": found});
                context.output.print(&answer, |_| text(&found, &source, wrong.is_empty()))?;
                match wrong.first() {
                    None => Ok(()),
                    Some(first) => Err(Error::invalid(format!(
                        "this machine does not fit the configuration: {}: {}",
                        first.about,
                        first.text.replace(';', ",")
                    ))
                    .hint("put right what stands above, or give other directories and limits")),
                }
            }
            ConfigCommand::Reload => {
                let reloaded: Reloaded = context.ask(&AdminRequest::Reload)?;
                context.output.print(&reloaded, |reloaded| {
                    let list =
                        |keys: &[String]| if keys.is_empty() { "nothing".into() } else { keys.join(", ") };
                    format!(
                        "changed      {}\nlog level    {}\nat restart   {}\n",
                        list(&reloaded.applied),
                        reloaded.log_level,
                        list(&reloaded.needs_restart)
                    )
                })
            }
        }
    }
}

fn show(context: &Context) -> Result<()> {
    let source = context.loaded.source();
    let plain = toml::to_string(&context.config).map_err(Error::internal)?;
    let mut section = String::new();
    let mut lines = String::new();
    for line in plain.lines() {
        lines += line;
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = format!("{name}.");
        } else if let Some((key, _)) = line.split_once(" = ") {
            let from = context.loaded.origin(&format!("{section}{key}"));
            if from != "default" {
                lines += &format!("  # {from}");
            }
        }
        lines.push('\n');
    }
    let value = json!({"source": source, "config": context.config, "origins": context.loaded.origins,
        "data_dir": context.dirs.data, "socket_dir": context.dirs.sockets, "keys_dir": context.dirs.keys});
    context.output.print(&value, |_| {
        format!(
            "# from {source}\n# store {}\n# role keys {}\n{lines}",
            context.dirs.data.display(),
            context.dirs.keys.display()
        )
    })
}

fn text(found: &[Finding], source: &str, fine: bool) -> String {
    let rows: Vec<Vec<String>> = found
        .iter()
        .map(|one| {
            let verdict = match one.verdict {
                Verdict::Ok => "ok",
                Verdict::Warning => "warning",
                Verdict::Error => "ERROR",
            };
            vec![verdict.into(), one.about.into(), one.text.clone()]
        })
        .collect();
    let mut out = if rows.is_empty() { String::new() } else { table(&["", "WHAT", "FOUND"], &[], &rows) };
    if fine {
        out += &format!("ok ({source})\n");
    }
    out
}
