//! `weighlock demo`: three real daemons on this machine share a real model, and the account of it.

mod ladder;
pub mod lm;
mod variants;
mod weigh;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use indicatif::HumanBytes;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

pub use variants::{Variant, evaluate, write_variant};

use crate::error::{Error, Result};
use crate::local::frame::Client;
use crate::local::message::{Event, FdsWanted, LoaderRequest, Opened, SCHEMA_VERSION};

/// The reference that the demo publishes.
const REFERENCE: &str = "demo/model:1.0.0";
/// How long a daemon may take to start.
const START_MAX: Duration = Duration::from_secs(30);
/// How long hosts may take to hear of the artifact.
const SPREAD_MAX: Duration = Duration::from_secs(30);

/// Runs the demo. Daemons, stores and keys live in a temporary directory that is removed at the end.
///
/// # Errors
/// The first step that failed. The daemons are stopped and everything is removed all the same.
pub fn run(model: Option<&Path>, as_json: bool) -> Result<()> {
    let say = |text: &str| {
        if !as_json {
            println!("{text}");
        }
    };
    if let Some(path) = model {
        weighlock_cache::inspect::plan(path, &Default::default()).map_err(Error::from)?;
    }
    let dir = tempfile::Builder::new()
        .prefix("weighlock-demo-")
        .tempdir()
        .map_err(|e| Error::internal(format!("no temporary directory: {e}")))?;

    // 1. A checkpoint.
    let (source, trained) = match model {
        Some(path) => (path.to_owned(), None),
        None => {
            say("1. Training a small language model on the text in the repository ...");
            let (path, summary) = train(dir.path())?;
            (path, Some(summary))
        }
    };
    match &trained {
        Some(t) => say(&format!(
            "   {} parameters in {:.1} s; validation loss {:.4} nats per byte (+- {:.4}), bigram baseline {:.4}",
            t["parameters"],
            as_f64(&t["seconds"]),
            as_f64(&t["eval_loss"]),
            as_f64(&t["eval_loss_stderr"]),
            as_f64(&t["bigram_loss"])
        )),
        None => say(&format!("1. Taking the checkpoint in {}", source.display())),
    }

    // 2. Three hosts.
    say("\n2. Starting three daemons, each with its own store, keys and ports on 127.0.0.1 ...");
    let mut hosts = vec![Host::start(dir.path(), "alpha", None)?];
    let ticket = hosts[0].ticket()?;
    for name in ["beta", "gamma"] {
        hosts.push(Host::start(dir.path(), name, Some(&ticket))?);
    }
    for host in &hosts {
        say(&format!(
            "   {:<6} {}  data {}",
            host.name,
            short(&host.ready["host"]),
            host.ready["data"].as_str().unwrap_or("?")
        ));
    }

    // 3. Add on one.
    say(&format!("\n3. alpha: weighlock add {} {REFERENCE}", source.display()));
    let added = hosts[0].weighlock(&["add", &source.to_string_lossy(), REFERENCE])?;
    let total = added["total_bytes"].as_u64().unwrap_or_default();
    let seconds = as_f64(&added["seconds"]);
    say(&format!(
        "   {} in {} files, {:.2} s, {}/s\n   {}",
        HumanBytes(total),
        added["files"],
        seconds,
        HumanBytes((total as f64 / seconds.max(1e-9)) as u64),
        added["digest"].as_str().unwrap_or("?")
    ));

    // 4. Open on the others.
    say(
        "\n4. beta and gamma open it through their loader sockets, and read it from the descriptors they get",
    );
    let expected = digests_of(&source)?;
    let mut opened = Vec::new();
    for host in &hosts[1..] {
        host.wait_for(REFERENCE)?;
        let result = open_and_digest(host)?;
        if result.digests != expected {
            return Err(Error::integrity(format!("{}: digests differ from those of the source", host.name)));
        }
        let peers = host.weighlock(&["peers"])?;
        let sources: Vec<String> = peers["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|peer| peer["fetched_bytes"].as_u64().unwrap_or(0) > 0)
            .map(|peer| {
                format!(
                    "{} ({})",
                    peer["name"].as_str().unwrap_or("?"),
                    HumanBytes(peer["fetched_bytes"].as_u64().unwrap_or(0))
                )
            })
            .collect();
        say(&format!(
            "   {:<6} {} fetched, verified and opened in {:.2} s, {}/s, from {}",
            host.name,
            HumanBytes(total),
            result.seconds,
            HumanBytes((total as f64 / result.seconds.max(1e-9)) as u64),
            sources.join(" and ")
        ));
        opened.push(json!({"host": host.name, "seconds": result.seconds, "sources": sources, "files": result.digests.len()}));
    }
    say(&format!(
        "   the SHA-256 of all {} files equals that of the source, read through each descriptor",
        expected.len()
    ));
    for (path, digest) in &expected {
        say(&format!("     {digest}  {path}"));
    }

    // 5. A second open touches no network.
    let again = open_and_digest(&hosts[1])?;
    say(&format!("\n5. beta opens it again: {:.1} ms to the descriptors, nothing fetched", again.open_ms));

    // 6. What must not ship.
    let mut weighed = Vec::new();
    if trained.is_some() {
        say("\n6. The gate: four candidates against a first version of the model (weighlock gate)");
        weighed = weigh::weigh(dir.path(), &source)?;
        for one in &weighed {
            say(&format!("   {:<32} {:<12} loss {:.4}", one.candidate, one.outcome.as_str(), one.eval_loss));
            say(&format!("     {}", one.why));
        }
    }

    // 7. What ships, and comes back.
    let mut climbed = None;
    if trained.is_some() {
        say("\n7. The ladder: a head moves only with evidence, and every host checks for itself");
        climbed = Some(ladder::climb(dir.path(), &source, &hosts, &say)?);
    }
    for host in &mut hosts {
        host.stop()?;
    }
    say("\nAll three daemons stopped on SIGTERM; everything is removed.");
    if as_json {
        let digests: serde_json::Map<String, Value> =
            expected.into_iter().map(|(path, digest)| (path, json!(digest))).collect();
        println!(
            "{}",
            json!({"schema_version": SCHEMA_VERSION, "reference": REFERENCE, "digest": added["digest"], "total_bytes": total,
                "add_seconds": seconds, "trained": trained, "opened": opened, "open_again_ms": again.open_ms, "weighed": weighed, "ladder": climbed, "sha256": digests})
        );
    }
    Ok(())
}

fn train(dir: &Path) -> Result<(PathBuf, Value)> {
    let path = dir.join("model");
    let summary = write_model(&path)?;
    Ok((path, summary))
}

/// Trains the small language model and writes its checkpoint to `dir`, which must not hold anything yet. Answers what
/// came out of it.
///
/// # Errors
/// The directory cannot be written.
pub fn write_model(dir: &Path) -> Result<Value> {
    let started = Instant::now();
    let mut summary = write_variant(dir, Variant::Trained)?;
    summary["seconds"] = started.elapsed().as_secs_f64().into();
    Ok(summary)
}

/// One daemon of the demo: a real process.
struct Host {
    name: &'static str,
    dir: PathBuf,
    child: Child,
    ready: Value,
}

impl Host {
    fn start(dir: &Path, name: &'static str, ticket: Option<&str>) -> Result<Self> {
        let dir = dir.join(name);
        fs::create_dir_all(&dir).map_err(Error::internal)?;
        let log = File::create(dir.join("log")).map_err(Error::internal)?;
        let mut command = command(&dir)?;
        command.args(["--json", "up", "--name", name, "--no-mdns"]);
        command.args([
            "--control-listen",
            "127.0.0.1:0",
            "--data-listen",
            "127.0.0.1:0",
            "--http-listen",
            "127.0.0.1:0",
        ]);
        if let Some(ticket) = ticket {
            command.env("WEIGHLOCK_TICKET", ticket);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut child =
            command.spawn().map_err(|e| Error::internal(format!("cannot start a daemon: {e}")))?;
        let stdout = child.stdout.take();
        let mut host = Self { name, dir, child, ready: Value::Null };
        // The first line tells the addresses once all doors are open; a daemon that dies closes the pipe.
        let (line, seen) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut text = String::new();
            let read = stdout.map(|out| BufReader::new(out).read_line(&mut text));
            let _ = line.send((read.is_some_and(|read| read.is_ok()), text));
        });
        match seen.recv_timeout(START_MAX) {
            Ok((true, text)) if !text.is_empty() => {
                host.ready = serde_json::from_str(&text).map_err(Error::internal)?;
                Ok(host)
            }
            _ => Err(Error::internal(format!("{name} did not start:\n{}", host.log()))),
        }
    }

    /// Runs a command against this host's daemon and returns its JSON.
    fn weighlock(&self, arguments: &[&str]) -> Result<Value> {
        let (code, answer, error) = self.try_weighlock(arguments)?;
        if code != Some(0) {
            return Err(Error::internal(format!("{}: weighlock {}: {error}", self.name, arguments[0])));
        }
        Ok(answer)
    }

    /// As [`weighlock`](Self::weighlock), with the exit code and what it complained of.
    fn try_weighlock(&self, arguments: &[&str]) -> Result<(Option<i32>, Value, String)> {
        let output = command(&self.dir)?
            .arg("--json")
            .args(arguments)
            .output()
            .map_err(|e| Error::internal(format!("cannot run weighlock: {e}")))?;
        let error = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let last = text.lines().last().unwrap_or_default();
        let answer = match output.status.success() {
            true => serde_json::from_str(last)
                .map_err(|e| Error::internal(format!("{}: {e}: {last}", self.name)))?,
            false => Value::Null,
        };
        Ok((output.status.code(), answer, error))
    }

    fn ticket(&self) -> Result<String> {
        let invited = self.weighlock(&["invite", "--uses", "2"])?;
        invited["ticket"].as_str().map(str::to_owned).ok_or_else(|| Error::internal("no ticket"))
    }

    /// Waits until this host has heard of `reference`.
    fn wait_for(&self, reference: &str) -> Result<()> {
        let started = Instant::now();
        while started.elapsed() < SPREAD_MAX {
            let listed = self.weighlock(&["ls", reference])?;
            if listed["items"].as_array().is_some_and(|items| !items.is_empty()) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Err(Error::unavailable(format!("{} did not hear of {reference}:\n{}", self.name, self.log())))
    }

    fn stop(&mut self) -> Result<()> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).map_err(Error::internal)?;
        let status = self.child.wait().map_err(Error::internal)?;
        if status.success() {
            Ok(())
        } else {
            Err(Error::internal(format!("{} ended with {status}:\n{}", self.name, self.log())))
        }
    }

    fn log(&self) -> String {
        let text = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// This very program, with everything of this host inside `dir` and nothing from the caller's environment.
fn command(dir: &Path) -> Result<Command> {
    let program =
        std::env::current_exe().map_err(|e| Error::internal(format!("cannot find this program: {e}")))?;
    let mut command = Command::new(program);
    for variable in std::env::vars_os()
        .map(|(name, _)| name)
        .filter(|name| name.to_string_lossy().starts_with("WEIGHLOCK_"))
    {
        command.env_remove(variable);
    }
    let config = dir.join("config.toml");
    if !config.exists() {
        fs::write(&config, "").map_err(Error::internal)?;
    }
    command
        .arg("--data-dir")
        .arg(dir.join("data"))
        .arg("--keys-dir")
        .arg(dir.join("keys"))
        .arg("--config")
        .arg(config);
    Ok(command)
}

struct OpenResult {
    seconds: f64,
    open_ms: f64,
    digests: Vec<(String, String)>,
}

/// Opens the artifact as a loader does and hashes each file through the descriptor that came.
fn open_and_digest(host: &Host) -> Result<OpenResult> {
    let socket = host.ready["loader_socket"].as_str().unwrap_or_default();
    let lost = |e: std::io::Error| Error::unavailable(format!("{}: {e}", host.name));
    let started = Instant::now();
    let mut client = Client::connect(Path::new(socket)).map_err(lost)?;
    let open = LoaderRequest::Open {
        reference: REFERENCE.into(),
        fds: FdsWanted::All,
        partial: false,
        ungated: false,
        client: Some("weighlock demo".into()),
        copy: false,
        contract: false,
    };
    client.send(&open).map_err(lost)?;
    let opened: Opened = loop {
        match client.recv::<Event>().map_err(lost)?.0 {
            Event::Progress(_) => {}
            Event::Opened(opened) => break *opened,
            Event::Error(error) => return Err(error),
            _ => return Err(Error::internal("an answer of the wrong kind")),
        }
    };
    let mut files = Vec::new();
    while files.len() < opened.fds {
        let (Event::Fds { paths }, fds) = client.recv::<Event>().map_err(lost)? else {
            return Err(Error::internal("an answer of the wrong kind"));
        };
        files.extend(paths.into_iter().zip(fds));
    }
    let elapsed = started.elapsed();
    let mut digests = Vec::new();
    for (path, fd) in files {
        digests.push((path, sha256(File::from(fd))?));
    }
    digests.sort();
    Ok(OpenResult { seconds: elapsed.as_secs_f64(), open_ms: elapsed.as_secs_f64() * 1000.0, digests })
}

/// SHA-256 of the files that an import of `source` takes, by path.
fn digests_of(source: &Path) -> Result<Vec<(String, String)>> {
    let plan = weighlock_cache::inspect::plan(source, &Default::default()).map_err(Error::from)?;
    let digest = |file: &weighlock_cache::plan::PlanFile| {
        let opened = File::open(&file.source)
            .map_err(|e| Error::invalid(format!("{}: {e}", file.source.display())))?;
        Ok((file.path.clone(), sha256(opened)?))
    };
    let mut digests = plan.files.iter().map(digest).collect::<Result<Vec<_>>>()?;
    digests.sort();
    Ok(digests)
}

fn sha256(mut file: File) -> Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(data_encoding::HEXLOWER.encode(&hasher.finalize())),
            Ok(n) => hasher.update(&buffer[..n]),
            Err(e) => return Err(Error::internal(format!("cannot read: {e}"))),
        }
    }
}

fn as_f64(value: &Value) -> f64 {
    value.as_f64().unwrap_or_default()
}

fn short(value: &Value) -> String {
    value.as_str().unwrap_or("?").chars().take(20).collect()
}
