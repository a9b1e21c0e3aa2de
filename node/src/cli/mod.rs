//! The command line: one file per command; this one holds what they share.

mod add;
mod adopt;
mod audit;
mod completions;
mod config;
mod demo;
mod df;
mod diff;
mod drain;
mod eval;
mod evidence;
mod follow;
mod gate;
mod gc;
mod init;
mod inspect;
mod invite;
mod join;
mod keys;
mod lock;
mod log;
mod log_level;
mod ls;
mod member;
mod mlflow;
mod output;
mod path;
mod peers;
mod pin;
mod policy;
mod progress;
mod promote;
mod pull;
mod rate;
mod revoke;
mod rm;
mod rollback;
mod rollout;
mod scrub;
mod sides;
mod sign;
mod statement;
mod status;
mod top;
mod up;
mod watch;
mod when;
mod whereis;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use serde::de::DeserializeOwned;
use weighlock_protocol::ClusterId;

use crate::config::{Config, Dirs, Loaded};
use crate::error::{Error, Kind, Result};
use crate::local::frame::Client;
use crate::local::message::{AdminRequest, Event, Introduction};
use output::Output;
pub(crate) use output::counted;

const AFTER_HELP: &str = "\
Artifacts are named namespace/name:tag, channels namespace/name:stage.
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no evidence (gate), 4 not found, 5 refused,
6 unavailable (no daemon, no host has it, no space), 7 bytes failed verification.";

/// Shares verified model layers between GPU hosts and hands them to local loaders.
#[derive(Debug, Parser)]
#[command(name = "weighlock", version, after_help = AFTER_HELP, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// This host's store [default: /var/lib/weighlock for root, else $XDG_DATA_HOME/weighlock]
    #[arg(long, global = true, value_name = "DIR", env = "WEIGHLOCK_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Directory of the local sockets [default: run/ in the store]
    #[arg(long, global = true, value_name = "DIR", env = "WEIGHLOCK_SOCKET_DIR")]
    socket_dir: Option<PathBuf>,
    /// Directory of role keys [default: /etc/weighlock/keys for root, else $XDG_CONFIG_HOME/weighlock/keys]
    #[arg(long, global = true, value_name = "DIR", env = "WEIGHLOCK_KEYS_DIR")]
    keys_dir: Option<PathBuf>,
    /// Configuration file [default: /etc/weighlock/config.toml for root, else under $XDG_CONFIG_HOME]
    #[arg(long, global = true, value_name = "FILE", env = "WEIGHLOCK_CONFIG")]
    config: Option<PathBuf>,
    /// Print JSON: one object, or one a line where a fetch or an import tells progress
    #[arg(long, global = true)]
    json: bool,
    /// No progress bars
    #[arg(long, short, global = true)]
    quiet: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create a cluster on this host and its admin key
    Init(init::Init),
    /// Run the daemon in the foreground; alone it makes a cluster of one host
    Up(up::Up),
    /// Join the cluster that a ticket names
    Join(join::Join),
    /// What the daemon on this host is doing
    Status(status::Status),
    /// Make a ticket that lets hosts join
    Invite(invite::Invite),
    /// Admitted hosts
    #[command(subcommand)]
    Member(member::Member),
    /// The configuration in force
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Import a checkpoint and publish it under an immutable tag
    Add(add::Add),
    /// Keep what other tools have downloaded, such as a Hugging Face cache, as this host's copy
    Adopt(adopt::Adopt),
    /// A model registry: verdicts and stages written back to it
    #[command(subcommand)]
    Mlflow(mlflow::MlflowCommand),
    /// Artifacts of the cluster and what of them is here
    #[command(visible_alias = "list")]
    Ls(ls::Ls),
    /// What an artifact, or a path that is not added yet, consists of
    #[command(visible_alias = "show")]
    Inspect(inspect::Inspect),
    /// How two checkpoints differ, or the scores of two reports
    Diff(diff::Diff),
    /// What was measured of an artifact, and signing reports about it
    Evidence(evidence::Evidence),
    /// Run an evaluator on an artifact, without network, and sign its report
    Eval(eval::Eval),
    /// What a candidate must show
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// Weigh a candidate against what runs now, under a policy
    Gate(gate::Gate),
    /// Make a candidate the head of a stage, with its evidence
    Promote(promote::Promote),
    /// Agree to a promotion that the policy wants approved
    Approve(promote::Approve),
    /// Back from a bad head to the last good one, now
    Rollback(rollback::Rollback),
    /// Channels, and how far hosts are with them
    #[command(subcommand)]
    Rollout(rollout::Rollout),
    /// Say when the head of a channel moves, and run a reload hook
    Watch(watch::Watch),
    /// Keep here, or on hosts with some labels, what a channel runs and what is next
    Follow(follow::Follow),
    /// Who did what to an artifact, when, and on which evidence
    Log(log::Log),
    /// Who may do what in the cluster, and changing that
    Keys(keys::Keys),
    /// Take back a statement, or what a key said
    Revoke(revoke::Revoke),
    /// Pin artifacts in weighlock.lock with how they scored, or check files against it
    Lock(lock::Lock),
    /// Signed statements as files
    #[command(subcommand)]
    Statement(statement::StatementCommand),
    /// Drop this host's copy of an artifact
    #[command(visible_alias = "remove")]
    Rm(rm::Rm),
    /// Read what lies here again, prove it, and heal what is damaged from other hosts
    Scrub(scrub::Scrub),
    /// Let go of what nobody needs, until there is room
    #[command(visible_alias = "prune")]
    Gc(gc::Gc),
    /// Keep artifacts on this host, whatever else needs room
    Pin(pin::Pin),
    /// Let pinned artifacts go again when room is needed
    Unpin(pin::Unpin),
    /// What uses the disk, what of it may go, and how much there may be
    Df(df::Df),
    /// Fetch an artifact and write it to a directory
    Pull(pull::Pull),
    /// Fetch an artifact and print a read-only directory that holds it
    Path(path::PathCommand),
    /// Other hosts of the cluster, as seen from here
    Peers(peers::Peers),
    /// Get this host ready to be restarted or taken away
    Drain(drain::Drain),
    /// What the daemon logs, and changing that while it runs
    LogLevel(log_level::LogLevel),
    /// Which hosts hold an artifact, and how much of it
    Where(whereis::Where),
    /// What was opened here, by whom, and on which grounds
    Audit(audit::Audit),
    /// What is fetched and given to others now, and how fast
    Top(top::Top),
    /// Three daemons share a model, and the gate weighs four; takes a minute, leaves nothing behind
    Demo(demo::Demo),
    /// Print a completion script for a shell
    Completions(completions::Completions),
}

impl Command {
    /// Whether standard output is one document under `--json`, for tools that read it whole.
    fn answers_in_one_document(&self) -> bool {
        matches!(
            self,
            Self::Gate(_)
                | Self::Diff(_)
                | Self::Inspect(_)
                | Self::Lock(_)
                | Self::Evidence(_)
                | Self::Eval(_)
        )
    }
}

/// Runs the program.
pub fn main() -> ExitCode {
    let mut cli = Cli::parse();
    let json = cli.global.json;
    if let Command::Config(command) = &cli.command
        && let Some(file) = command.file()
    {
        // The one in force may be what is to be put right.
        cli.global.config = Some(file.to_owned());
    }
    let mut context = match Context::new(cli.global) {
        Ok(context) => context,
        Err(error) => return output::fail(&error, json),
    };
    if cli.command.answers_in_one_document() {
        context.output = context.output.one_document();
    }
    let done = match cli.command {
        Command::Init(command) => command.run(&context),
        Command::Up(command) => command.run(&context),
        Command::Join(command) => command.run(&context),
        Command::Status(command) => command.run(&context),
        Command::Invite(command) => command.run(&context),
        Command::Member(command) => command.run(&context),
        Command::Config(command) => command.run(&context),
        Command::Add(command) => command.run(&context),
        Command::Adopt(command) => command.run(&context),
        Command::Ls(command) => command.run(&context),
        Command::Inspect(command) => command.run(&context),
        Command::Diff(command) => return command.run(&context),
        Command::Evidence(command) => command.run(&context),
        Command::Eval(command) => command.run(&context),
        Command::Policy(command) => command.run(&context),
        Command::Gate(command) => match command.run(&context) {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
        Command::Promote(command) => command.run(&context),
        Command::Approve(command) => command.run(&context),
        Command::Rollback(command) => command.run(&context),
        Command::Rollout(command) => command.run(&context),
        Command::Watch(command) => command.run(&context),
        Command::Follow(command) => command.run(&context),
        Command::Log(command) => command.run(&context),
        Command::Keys(command) => command.run(&context),
        Command::Revoke(command) => command.run(&context),
        Command::Lock(command) => match command.run(&context) {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
        Command::Statement(command) => command.run(&context),
        Command::Rm(command) => command.run(&context),
        Command::Scrub(command) => command.run(&context),
        Command::Gc(command) => command.run(&context),
        Command::Pin(command) => command.run(&context),
        Command::Unpin(command) => command.run(&context),
        Command::Df(command) => command.run(&context),
        Command::Pull(command) => command.run(&context),
        Command::Path(command) => command.run(&context),
        Command::Peers(command) => command.run(&context),
        Command::Drain(command) => command.run(&context),
        Command::LogLevel(command) => command.run(&context),
        Command::Where(command) => command.run(&context),
        Command::Mlflow(command) => command.run(&context),
        Command::Audit(command) => command.run(&context),
        Command::Top(command) => command.run(&context),
        Command::Demo(command) => command.run(&context),
        Command::Completions(command) => command.run(&context, &mut Cli::command()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => output::fail(&error, json),
    }
}

/// What every command works with.
pub(crate) struct Context {
    pub(crate) dirs: Dirs,
    pub(crate) config: Config,
    /// How it was read.
    pub(crate) loaded: Loaded,
    /// The file that was named, if one was.
    pub(crate) config_file: Option<PathBuf>,
    pub(crate) output: Output,
}

impl Context {
    fn new(global: Global) -> Result<Self> {
        let config_file = global.config.map(absolute).transpose()?;
        let loaded = Loaded::new(config_file.as_deref())?;
        let config = loaded.config.clone();
        let dirs = Dirs::new(
            global.data_dir.map(absolute).transpose()?,
            global.socket_dir.map(absolute).transpose()?,
            global.keys_dir.map(absolute).transpose()?,
            &config,
        );
        let output = Output::new(global.json, global.quiet);
        Ok(Self { dirs, config, loaded, config_file, output })
    }

    /// Asks the daemon and shows its progress.
    pub(crate) fn ask<T: DeserializeOwned>(&self, request: &AdminRequest) -> Result<T> {
        let socket = self.dirs.admin_socket();
        let mut client = connect(&socket)?;
        if let Err(e) = client.send(request) {
            // A daemon that does not serve this connection says why before it closes it.
            return match client.recv::<Event>() {
                Ok((Event::Error(error), _)) => Err(error),
                _ => Err(lost(&e)),
            };
        }
        let mut progress = self.progress();
        loop {
            let (event, _fds) = client.recv::<Event>().map_err(|e| lost(&e))?;
            match event {
                Event::Progress(step) => progress.show(&step),
                Event::Result { data } => {
                    progress.clear();
                    return serde_json::from_value(data).map_err(|e| {
                        Error::internal(format!("the daemon's answer is not understood: {e}"))
                            .hint("are the daemon and this command of the same version?")
                    });
                }
                Event::Error(error) => {
                    progress.clear();
                    return Err(error);
                }
                _ => return Err(Error::internal("the daemon sent an answer of the wrong kind")),
            }
        }
    }

    /// Shows how far something long is.
    pub(crate) fn progress(&self) -> progress::Bar {
        progress::Bar::new(self.output, &self.dirs.data)
    }

    /// The cluster of this host's daemon.
    pub(crate) fn cluster(&self) -> Result<ClusterId> {
        let introduction: Introduction = self.ask(&AdminRequest::Introduction)?;
        Ok(introduction.cluster)
    }

    /// Whether a daemon answers on this store's socket.
    pub(crate) fn daemon_runs(&self) -> bool {
        Client::connect(&self.dirs.admin_socket()).is_ok()
    }
}

/// Connects to a daemon's socket.
pub(crate) fn connect(socket: &std::path::Path) -> Result<Client> {
    Client::connect(socket).map_err(|e| {
        let why = match e.kind() {
            std::io::ErrorKind::PermissionDenied => {
                let is_loader = socket.file_name().is_some_and(|name| name == "loader.sock");
                return Error::refused(format!("may not use the socket {}", socket.display())).hint(
                    if is_loader {
                        "join the group that owns it (configuration key sockets.loader_group)"
                    } else {
                        "it is for the daemon's own user: run the command as that user, or as root"
                    },
                );
            }
            std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => String::new(),
            _ => format!(": {e}"),
        };
        Error::unavailable(format!("no daemon answers at {}{why}", socket.display()))
            .hint("start one with `weighlock up`, or name its store with --data-dir or WEIGHLOCK_DATA_DIR")
    })
}

fn lost(error: &std::io::Error) -> Error {
    if error.kind() == std::io::ErrorKind::InvalidData {
        return Error::internal(format!("the daemon's answer is not understood: {error}"))
            .hint("are the daemon and this command of the same version?");
    }
    Error::new(Kind::Unavailable, format!("lost the daemon in the middle: {error}"))
        .hint("see its log; what it acknowledged is kept, and the command can be repeated")
}

/// A path made absolute without touching the disk.
pub(crate) fn absolute(path: PathBuf) -> Result<PathBuf> {
    std::path::absolute(&path).map_err(|e| Error::invalid(format!("path {}: {e}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_verdict_in_json_has_no_progress_before_it() {
        let parsed = |arguments: &[&str]| Cli::try_parse_from(arguments).expect("a command line");
        let lines = |cli: &Cli| {
            let output = Output::new(true, false);
            let one = cli.command.answers_in_one_document();
            if one { output.one_document() } else { output }.has_lines()
        };
        assert!(!lines(&parsed(&["weighlock", "--json", "gate", "./candidate"])));
        assert!(!lines(&parsed(&["weighlock", "--json", "inspect", "./candidate", "--hash"])));
        assert!(lines(&parsed(&["weighlock", "--json", "pull", "acme/bot:1.0.0", "--to", "here"])));
    }
}
