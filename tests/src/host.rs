//! Real daemons, each in a directory of its own on loopback, and the command line against them.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::binary;
use crate::loader::Loader;
use crate::wait::{PATIENCE, until};

/// A temporary directory for hosts and sources. Declare it before the hosts, so that it goes after them.
#[derive(Debug)]
pub struct Lab {
    dir: TempDir,
}

/// One host: its directories, and its daemon where one runs. The daemon is killed on drop.
#[derive(Debug)]
pub struct Host {
    /// Its name, also in the cluster.
    pub name: String,
    pub(crate) dir: PathBuf,
    pub(crate) child: Option<Child>,
    ready: Value,
    ports: Option<[SocketAddr; 3]>,
    /// Further arguments of `weighlock up`.
    pub up_arguments: Vec<String>,
    /// User and group of its daemon, where they are not the test's.
    pub user: Option<(u32, u32)>,
    /// Its environment, beside that of the test.
    pub environment: Vec<(String, String)>,
    /// Where the store lies; `data` in the host's directory unless a test says otherwise.
    pub data_dir: PathBuf,
}

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    /// Exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Lab {
    /// An empty one.
    ///
    /// # Panics
    /// No temporary directory can be made.
    #[expect(clippy::new_without_default, reason = "it touches the disk")]
    pub fn new() -> Self {
        // Short, since socket paths must fit in 107 bytes.
        let dir = tempfile::Builder::new().prefix("wl-").tempdir().expect("a temporary directory");
        Self { dir }
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A host that does not run yet.
    ///
    /// # Panics
    /// Its directory cannot be made.
    pub fn host(&self, name: &str) -> Host {
        let dir = self.path(name);
        fs::create_dir_all(&dir).expect("a directory for the host");
        fs::write(dir.join("config.toml"), "").expect("an empty configuration");
        Host {
            name: name.to_owned(),
            data_dir: dir.join("data"),
            dir,
            child: None,
            ready: Value::Null,
            ports: None,
            up_arguments: Vec::new(),
            environment: Vec::new(),
            user: None,
        }
    }

    /// A running host that makes its own cluster.
    ///
    /// # Panics
    /// It does not start.
    pub fn founder(&self, name: &str) -> Host {
        let mut host = self.host(name);
        host.start();
        host
    }

    /// A running host that joined the cluster of `member` by ticket, and that `member` sees.
    ///
    /// # Panics
    /// It does not join or start.
    pub fn joined(&self, name: &str, member: &Host) -> Host {
        let mut host = self.host(name);
        let ticket = self.path(&format!("{name}.ticket"));
        fs::write(&ticket, member.ticket(&[])).expect("the ticket is written");
        let joined = host.ok(&["join", "--file", &text(&ticket), "--name", name]);
        assert_eq!(joined["new"], true, "{joined}");
        assert_eq!(joined["pending"], false, "{joined}");
        host.start();
        until(&format!("{} is connected to {name}", member.name), || member.sees(&host));
        until(&format!("{name} is connected to {}", member.name), || host.sees(member));
        host
    }
}

impl Host {
    /// A command of this host, with everything of it in its own directory and nothing from the caller's environment.
    pub fn command(&self) -> Command {
        let mut command = Command::new(binary::weighlock());
        let ours = |name: &std::ffi::OsString| name.to_string_lossy().starts_with("WEIGHLOCK_");
        for name in std::env::vars_os().map(|(name, _)| name).filter(ours) {
            command.env_remove(name);
        }
        command.arg("--data-dir").arg(&self.data_dir);
        command.arg("--keys-dir").arg(self.dir.join("keys"));
        command.arg("--config").arg(self.dir.join("config.toml"));
        command.stdin(Stdio::null());
        command.envs(self.environment.iter().cloned());
        command
    }

    /// The command that starts its daemon: loopback, free ports the first time and the same ones later.
    pub fn up_command(&self) -> Command {
        let mut command = self.command();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let [control, data, http] = self.ports.unwrap_or([any; 3]).map(|addr| addr.to_string());
        command.args(["--json", "up", "--no-mdns", "--name", &self.name]);
        command.args(["--control-listen", &control, "--data-listen", &data, "--http-listen", &http]);
        command.args(&self.up_arguments);
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        command
    }

    /// Starts the daemon and waits until its doors are open.
    ///
    /// # Panics
    /// It is not ready in time.
    pub fn start(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let log = File::options().create(true).append(true).open(self.dir.join("log")).expect("a log file");
        let mut child =
            self.up_command().stdout(Stdio::piped()).stderr(log).spawn().expect("the program runs");
        let stdout = child.stdout.take().expect("a pipe");
        self.child = Some(child);
        let (line, seen) = mpsc::channel();
        std::thread::spawn(move || {
            let mut text = String::new();
            // A daemon that dies closes the pipe.
            let _ = BufReader::new(stdout).read_line(&mut text);
            let _ = line.send(text);
        });
        let line = seen.recv_timeout(PATIENCE).unwrap_or_default();
        self.ready = serde_json::from_str(&line)
            .unwrap_or_else(|_| panic!("{} did not start; it said {line:?}:\n{}", self.name, self.log()));
        self.ports = Some([self.control(), self.data(), self.http()]);
    }

    /// Ends the daemon at once, as a power switch would but for the disk's cache.
    ///
    /// # Panics
    /// None runs.
    pub fn kill9(&mut self) {
        let mut child = self.child.take().expect("a running daemon");
        child.kill().expect("it can be killed");
        child.wait().expect("it ends");
    }

    /// Asks the daemon to end and waits until it has.
    ///
    /// # Panics
    /// None runs, or it does not end in time.
    pub fn term(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("a running daemon");
        kill_process(Pid::from_child(&child), Signal::TERM).expect("it takes signals");
        let ended = crate::wait::found_within(PATIENCE, || child.try_wait().expect("it can be waited for"));
        ended.unwrap_or_else(|| {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{} did not end on SIGTERM:\n{}", self.name, self.log())
        })
    }

    /// Stops the daemon where it is, until [`resume`](Self::resume): to others it looks like a host that hangs.
    ///
    /// # Panics
    /// None runs.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    ///
    /// # Panics
    /// None runs.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Sends the daemon a signal.
    ///
    /// # Panics
    /// None runs.
    pub fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("a running daemon");
        kill_process(Pid::from_child(child), signal).expect("it takes signals");
    }

    /// Whether the daemon is alive.
    pub fn runs(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Runs a command with `--json`.
    ///
    /// # Panics
    /// The program cannot be run.
    pub fn run(&self, arguments: &[&str]) -> Ran {
        Ran::of(self.command().arg("--json").args(arguments).output().expect("the program runs"))
    }

    /// Runs a command that must succeed, and answers the last object that it printed.
    ///
    /// # Panics
    /// It fails.
    pub fn ok(&self, arguments: &[&str]) -> Value {
        let ran = self.run(arguments);
        assert_eq!(
            ran.code,
            Some(0),
            "{}: weighlock {arguments:?}: {}\n{}",
            self.name,
            ran.stderr,
            self.log()
        );
        ran.last()
    }

    /// `weighlock add`, answered.
    ///
    /// # Panics
    /// It fails.
    pub fn add(&self, path: &Path, reference: &str) -> Value {
        self.ok(&["add", &text(path), reference])
    }

    /// The line of `weighlock ls` for `ns/name:tag`.
    ///
    /// # Panics
    /// The command fails.
    pub fn listed(&self, reference: &str) -> Option<Value> {
        let all = self.ok(&["ls"]);
        let items = all["items"].as_array().expect("a list").clone();
        let name = |row: &Value| format!("{}:{}", string(&row["artifact"]), string(&row["tag"]));
        items.into_iter().find(|row| name(row) == reference)
    }

    /// Waits until this host has heard of `reference`, and answers its line of `weighlock ls`.
    ///
    /// # Panics
    /// It does not hear of it.
    pub fn hears_of(&self, reference: &str) -> Value {
        until(&format!("{} hears of {reference}", self.name), || self.listed(reference))
    }

    /// A ticket of this host's cluster.
    ///
    /// # Panics
    /// It is not an admin's.
    pub fn ticket(&self, arguments: &[&str]) -> String {
        let invited = self.ok(&[&["invite"], arguments].concat());
        string(&invited["ticket"])
    }

    /// This host's key, as text.
    pub fn key(&self) -> String {
        string(&self.ready["host"])
    }

    /// Its cluster, as text.
    pub fn cluster(&self) -> String {
        string(&self.ready["cluster"])
    }

    /// Control plane address, for UDP and TCP.
    pub fn control(&self) -> SocketAddr {
        address(&self.ready["control"][0])
    }

    /// Data plane address.
    pub fn data(&self) -> SocketAddr {
        address(&self.ready["data"])
    }

    /// HTTP address.
    pub fn http(&self) -> SocketAddr {
        address(&self.ready["http"])
    }

    /// Path of the loader socket.
    pub fn loader_socket(&self) -> PathBuf {
        string(&self.ready["loader_socket"]).into()
    }

    /// Path of the command line's socket.
    pub fn admin_socket(&self) -> PathBuf {
        string(&self.ready["admin_socket"]).into()
    }

    /// A connection to the loader socket.
    ///
    /// # Panics
    /// Nobody listens there.
    pub fn loader(&self) -> Loader {
        Loader::connect(&self.loader_socket())
    }

    /// The line of `weighlock peers` for another host.
    ///
    /// # Panics
    /// The command fails.
    pub fn peer(&self, other: &Host) -> Option<Value> {
        let peers = self.ok(&["peers"]);
        let items = peers["items"].as_array().expect("a list").clone();
        items.into_iter().find(|row| string(&row["host"]) == other.key())
    }

    /// Replaces the configuration file.
    ///
    /// # Panics
    /// It cannot be written.
    pub fn configure(&self, toml: &str) {
        fs::write(self.dir.join("config.toml"), toml).expect("the configuration is written");
    }

    /// What must stay as it is when a command is refused: artifacts, layers and leftovers, as the daemon and the disk
    /// tell.
    ///
    /// # Panics
    /// No daemon answers.
    pub fn contents(&self) -> Contents {
        let status = self.ok(&["status"]);
        Contents {
            listed: self.ok(&["ls"])["items"].clone(),
            layers: (status["layers"].clone(), status["layer_bytes"].clone()),
            files: ["layers", "staging", "partial", "views", "quarantine"]
                .iter()
                .flat_map(|name| files_below(&self.data_dir.join(name)))
                .collect(),
        }
    }

    /// The last lines of its log.
    pub fn log(&self) -> String {
        let text = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    fn sees(&self, other: &Host) -> Option<Value> {
        let row = self.peer(other)?;
        // Its record tells where its data plane is.
        let known = row["connected"] == true && row["data"].as_array().is_some_and(|data| !data.is_empty());
        known.then_some(row)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// See [`Host::contents`].
#[derive(Debug, PartialEq, Eq)]
pub struct Contents {
    listed: Value,
    layers: (Value, Value),
    files: Vec<PathBuf>,
}

impl Ran {
    /// Of a process that ended.
    pub fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The last object that it printed.
    ///
    /// # Panics
    /// It is not JSON, or of another schema version.
    pub fn last(&self) -> Value {
        let line = self.stdout.lines().last().unwrap_or_default();
        let value: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line:?}"));
        assert_eq!(value["schema_version"], 1, "{line}");
        value
    }

    /// What is wrong with this as a refusal with exit code `code`: one `error:` line, at least one `hint:` line,
    /// nothing else (a daemon's log lines aside). Empty if nothing is.
    pub fn complaints(&self, code: i32) -> Vec<String> {
        let mut wrong = Vec::new();
        let starting = |what: &str| self.stderr.lines().filter(|line| line.starts_with(what)).count();
        if self.code != Some(code) {
            wrong.push(format!("exit code {:?} instead of {code}", self.code));
        }
        if starting("error: ") != 1 {
            wrong.push(format!("{} error: lines", starting("error: ")));
        }
        if starting("hint: ") != 1 {
            wrong.push(format!("{} hint: lines", starting("hint: ")));
        }
        let stray = |line: &&str| {
            !line.starts_with("error: ") && !line.starts_with("hint: ") && !is_log(line) && !line.is_empty()
        };
        if let Some(line) = self.stderr.lines().find(stray) {
            wrong.push(format!("a stray line {line:?}"));
        }
        if self.stderr.contains("panicked") {
            wrong.push("a panic".into());
        }
        if !wrong.is_empty() {
            wrong.push(format!("it said {:?}", self.stderr));
        }
        wrong
    }
}

/// A daemon's log line begins with its time.
fn is_log(line: &str) -> bool {
    line.trim_start_matches("\u{1b}[2m").get(..4).is_some_and(|year| year.bytes().all(|b| b.is_ascii_digit()))
}

/// All files below a directory, sorted; none where it does not exist.
pub fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(dir) else {
        return found;
    };
    for entry in entries.flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files_below(&entry.path())),
            _ => found.push(entry.path()),
        }
    }
    found.sort();
    found
}

/// A path as an argument.
pub fn text(path: &Path) -> String {
    path.to_str().expect("test paths are UTF-8").to_owned()
}

/// The text of a JSON string.
///
/// # Panics
/// It is something else.
pub fn string(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("not a string: {value}")).to_owned()
}

/// The number in a JSON value.
///
/// # Panics
/// It is something else.
pub fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("not a number: {value}"))
}

fn address(value: &Value) -> SocketAddr {
    string(value).parse().expect("an address")
}
