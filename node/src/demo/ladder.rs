//! The demo's third act: versions climb to production with evidence, others open nowhere, and a bad one is rolled back.

use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Host;
use crate::error::{Error, Result};
use crate::local::frame::Client;
use crate::local::message::{Event, LoaderRequest};

/// What is promoted.
const ARTIFACT: &str = "acme/tiny-lm";
/// As strict as the gate's act, with two rungs.
const POLICY: &str = "\
ladder = [\"canary\", \"production\"]
[metric.eval_loss]
direction = \"lower\"
max = 4.0
max_regression = 0.02
";
/// How long hosts may take to hear of something.
const SPREAD_MAX: Duration = Duration::from_secs(30);

/// Runs it on daemons that are up; `trained` is the good model, and the variants and their reports lie below `dir` since
/// the gate's act. Answers the account of it.
///
/// # Errors
/// Something opened that must not, did not open that must, or a host did not hear of it.
pub(super) fn climb(dir: &Path, trained: &Path, hosts: &[Host], say: &dyn Fn(&str)) -> Result<Value> {
    let alpha = &hosts[0];
    let policy = dir.join("gate.toml");
    std::fs::write(&policy, POLICY).map_err(Error::internal)?;
    let policy = policy.to_string_lossy();
    let versions = [
        ("1.0.0", dir.join("early")),
        ("1.1.0", trained.to_owned()),
        ("1.2.0", dir.join("quantized")),
        ("1.3.0", dir.join("tokenizer")),
    ];
    alpha.weighlock(&["keys", "grant", "witness", hosts[1].name, hosts[2].name])?;
    alpha.weighlock(&["policy", "set", "acme", &policy])?;
    for (tag, path) in &versions {
        alpha.weighlock(&["add", &path.to_string_lossy(), &reference(tag)])?;
    }
    for host in hosts {
        host.wait_for(&reference("1.3.0"))?;
        until(host, "witnesses", |host| {
            let keys = host.weighlock(&["keys"])?;
            Ok(keys["roles"]["witness"]["keys"].as_array().map_or(0, Vec::len) == 3)
        })?;
    }
    say("   three witnesses; the policy of acme asks for evals, canary before production");

    let report = |path: &Path| dir.join("reports").join(path.file_name().unwrap_or_default());
    let gate = |tag: &str, path: &Path, against: bool| -> Result<Option<i32>> {
        let verdict = dir.join(format!("{tag}.dsse")).to_string_lossy().into_owned();
        let (candidate, own) = (reference(tag), report(path).to_string_lossy().into_owned());
        let (base, base_report) = (reference("1.0.0"), report(&versions[0].1).to_string_lossy().into_owned());
        let mut arguments =
            vec!["gate", &candidate, "--report", &own, "--ran-on", "here", "--policy", &policy];
        arguments.extend(["--out", &verdict]);
        if against {
            arguments.extend(["--against", &base, "--baseline-report", &base_report]);
        }
        let (code, ..) = alpha.try_weighlock(&arguments)?;
        alpha.weighlock(&["statement", "import", &verdict])?;
        Ok(code)
    };
    for (tag, path) in &versions[..2] {
        if gate(tag, path, *tag != "1.0.0")? != Some(0) {
            return Err(Error::internal(format!("the gate did not pass {tag}")));
        }
        for stage in ["canary", "production"] {
            alpha.weighlock(&["promote", &reference(tag), "--to", stage])?;
        }
        say(&format!("   {tag} passed the gate and climbed to canary and production"));
    }
    if gate("1.2.0", &versions[2].1, true)? != Some(1) {
        return Err(Error::internal("the gate passed a badly quantized model"));
    }
    // 1.3.0 is what a CI that skips the gate leaves behind: nothing.
    let mut refused = serde_json::Map::new();
    for tag in ["1.2.0", "1.3.0"] {
        let (code, _, error) = alpha.try_weighlock(&["promote", &reference(tag), "--to", "canary"])?;
        expect(code, 5, "promote", tag, &error)?;
        for host in hosts {
            let (code, _, error) = host.try_weighlock(&["path", &reference(tag)])?;
            expect(code, 5, host.name, tag, &error)?;
            let why = error.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
            refused.insert(tag.to_owned(), why.into());
        }
        say(&format!("   {tag} opens on no host: {}", refused[tag].as_str().unwrap_or_default()));
    }

    let production = format!("{ARTIFACT}:production");
    let watchers = hosts.iter().map(|host| watch(host, &production)).collect::<Result<Vec<_>>>()?;
    let before = head(alpha)?;
    for (host, watcher) in hosts.iter().zip(&watchers) {
        heard(host, watcher, |digest| digest == before)?;
    }
    let began = Instant::now();
    alpha.weighlock(&["rollback", ARTIFACT, "--reason", "it answers nonsense"])?;
    let mut slowest = Duration::ZERO;
    for (host, watcher) in hosts.iter().zip(&watchers) {
        let at = heard(host, watcher, |digest| digest != before)?;
        slowest = slowest.max(at.duration_since(began));
    }
    let after = head(alpha)?;
    let (code, _, error) = hosts[2].try_weighlock(&["path", &reference("1.1.0")])?;
    expect(code, 5, hosts[2].name, "1.1.0", &error)?;
    say(&format!(
        "   1.1.0 rolled back with one command: loaders on all three hosts heard of it within {} ms of its start",
        slowest.as_millis()
    ));
    let log = alpha.weighlock(&["log", ARTIFACT])?;
    let events = log["events"].as_array().cloned().unwrap_or_default();
    say(&format!(
        "   `weighlock log {ARTIFACT}` tells it all, in {} signed statements; the last:",
        events.len()
    ));
    if let Some(last) = events.last() {
        let text = |key: &str| last[key].as_str().unwrap_or_default().to_owned();
        say(&format!("     {} by {}: {}", text("kind"), text("who"), text("text")));
    }
    Ok(json!({
        "rolled_back_from": before, "to": after, "heard_ms": slowest.as_secs_f64() * 1e3,
        "refused": refused, "statements": events.len(),
    }))
}

fn reference(tag: &str) -> String {
    format!("{ARTIFACT}:{tag}")
}

fn head(host: &Host) -> Result<String> {
    let status = host.weighlock(&["rollout", "status", ARTIFACT])?;
    let heads = status["heads"].as_array().cloned().unwrap_or_default();
    let head = heads.iter().find(|head| head["stage"] == "production");
    let digest = head.and_then(|head| head["digest"].as_str());
    digest.map(str::to_owned).ok_or_else(|| Error::internal("production has no head"))
}

/// What a loader that watches the channel hears, and when.
fn watch(host: &Host, channel: &str) -> Result<mpsc::Receiver<(Instant, String)>> {
    let lost = |e: std::io::Error| Error::unavailable(format!("{}: {e}", host.name));
    let mut client =
        Client::connect(Path::new(host.ready["loader_socket"].as_str().unwrap_or_default())).map_err(lost)?;
    client.send(&LoaderRequest::Watch { reference: channel.to_owned(), hook: None }).map_err(lost)?;
    let (told, hears) = mpsc::channel();
    std::thread::spawn(move || {
        while let Ok((Event::Head(head), _)) = client.recv::<Event>() {
            let digest = head.digest.map(|digest| digest.to_string()).unwrap_or_default();
            if told.send((Instant::now(), digest)).is_err() {
                return;
            }
        }
    });
    Ok(hears)
}

fn heard(
    host: &Host,
    watcher: &mpsc::Receiver<(Instant, String)>,
    wanted: impl Fn(&str) -> bool,
) -> Result<Instant> {
    let began = Instant::now();
    while began.elapsed() < SPREAD_MAX {
        if let Ok((at, digest)) = watcher.recv_timeout(SPREAD_MAX)
            && wanted(&digest)
        {
            return Ok(at);
        }
    }
    Err(Error::unavailable(format!("a loader on {} did not hear of the head", host.name)))
}

fn until(host: &Host, what: &str, found: impl Fn(&Host) -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while began.elapsed() < SPREAD_MAX {
        if found(host)? {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Err(Error::unavailable(format!("{} did not hear of the {what}:\n{}", host.name, host.log())))
}

fn expect(code: Option<i32>, wanted: i32, who: &str, tag: &str, error: &str) -> Result<()> {
    if code == Some(wanted) {
        return Ok(());
    }
    Err(Error::internal(format!("{who} was to refuse {tag} with exit code {wanted}, not {code:?}: {error}")))
}
