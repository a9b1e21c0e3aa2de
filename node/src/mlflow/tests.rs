//! The client against a small server on loopback that answers as MLflow does, and as other things do. The real one is
//! tried by tests/real/mlflow.py.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tempfile::TempDir;
use weighlock_protocol::gate::Outcome;
use weighlock_protocol::statement::Ruling;
use weighlock_protocol::{KeyId, Sha256, StatementId};

use super::artifacts::{Place, place};
use super::origin::{Entry, ModelVersion};
use super::push::difference;
use super::*;
use crate::error::Kind;
use crate::local::message::SaidRow;

/// Answers by path and query, as text with a status; everything else is MLflow's 404.
struct Fake {
    address: SocketAddr,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    fn new(answers: &[(&str, u16, String)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let answers: BTreeMap<String, (u16, String)> = answers
            .iter()
            .map(|(path, status, body)| ((*path).to_owned(), (*status, body.clone())))
            .collect();
        let heard: Arc<Mutex<Vec<String>>> = Arc::default();
        let log = heard.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                serve(stream, &answers, &log);
            }
        });
        Self { address, heard }
    }

    fn client(&self) -> Client {
        let server = Server::with_variables(&format!("http://{}", self.address), |_| None);
        Client::new(server.expect("an address"))
    }

    fn heard(&self) -> Vec<String> {
        self.heard.lock().expect("no panic").clone()
    }
}

/// One request, one answer, closed.
fn serve(mut stream: TcpStream, answers: &BTreeMap<String, (u16, String)>, log: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let lower = line.to_ascii_lowercase();
        if let Some(n) = lower.strip_prefix("content-length:") {
            length = n.trim().parse().expect("a length");
        }
        if lower.starts_with("authorization:") || head.is_empty() {
            head += line.trim_end();
            head.push('\n');
        }
        if line == "\r\n" {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("a body");
    let request = head.trim_end().replace(" HTTP/1.1", "");
    log.lock()
        .expect("no panic")
        .push(format!("{request} {}", String::from_utf8_lossy(&body)).trim_end().to_owned());
    let path = request.lines().next().and_then(|line| line.split(' ').nth(1)).unwrap_or_default();
    let unknown = json!({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "Registered Model with name=nope not found"});
    let (status, body) = answers.get(path).cloned().unwrap_or((404, unknown.to_string()));
    let answer =
        format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
    let _ = stream.write_all(answer.as_bytes());
}

const VERSION: &str = "/api/2.0/mlflow/model-versions/get?name=bot&version=3";
const SOURCE: &str = "mlflow-artifacts:/1/r/artifacts/model";

fn model_version() -> Value {
    json!({"model_version": {
        "name": "bot", "version": "3", "source": SOURCE, "run_id": "r1", "status": "READY",
        "tags": [{"key": "team", "value": "nlp"}, {"key": "weighlock.digest", "value": "old"}],
        "aliases": ["champion"], "unknown": {"later": 1}
    }})
}

fn run() -> Value {
    json!({"run": {"info": {"run_id": "r1"}, "data": {
        "params": [{"key": "lr", "value": "0.1"}, {"key": "long", "value": "x".repeat(5000)}],
        "metrics": [{"key": "eval_loss", "value": 2.5, "step": 0}, {"key": "bad", "value": "NaN"}],
        "tags": [{"key": "mlflow.source.git.commit", "value": "abc123"}, {"key": "mlflow.log-model.history", "value": "[]"}]
    }}})
}

fn uri(text: &str) -> ModelUri {
    text.parse().expect("a model")
}

#[test]
fn uris_of_models_are_read() {
    for text in ["models:/bot/3", "models:/my bot@champion", "models:/a-b_c.d/12"] {
        assert_eq!(uri(text).to_string(), text);
    }
    for text in [
        "",
        "bot/3",
        "models:/bot",
        "models:/bot/x",
        "models:/bot@",
        "models://bot/1",
        "models:/@a",
        "models:/a:b/1",
        "models:/m-0123",
    ] {
        assert!(text.parse::<ModelUri>().is_err_and(|e| e.contains("models:/NAME/VERSION")), "{text}");
    }
}

#[test]
fn servers_and_credentials_are_taken_from_their_places() {
    let none = |_: &str| None;
    let with = |uri: &str| Server::with_variables(uri, none);
    assert_eq!(with("http://mlflow:5000/").map(|server| server.base), Ok("http://mlflow:5000".into()));
    assert_eq!(with("https://host/ml/flow/").map(|server| server.base), Ok("https://host/ml/flow".into()));
    for bad in [
        "",
        "sqlite:///mlflow.db",
        "./mlruns",
        "file:///tmp/mlruns",
        "databricks",
        "http://",
        "http://h/?a=b",
    ] {
        let error = with(bad).err().expect("refused");
        assert_eq!(error.kind, Kind::Invalid, "{bad}");
        assert!(error.hint.is_some_and(|hint| hint.contains("--mlflow-uri")), "{bad}");
    }
    // A password is in no message, and goes as a header.
    let fake = Fake::new(&[]);
    let asked = |uri: String, variables: &[(&str, &str)]| {
        let variables: BTreeMap<&str, &str> = variables.iter().copied().collect();
        let server = Server::with_variables(&uri, |name| variables.get(name).map(|v| (*v).to_owned()));
        let error = find(&Client::new(server.expect("a server")), &uri_of_nobody()).expect_err("unknown");
        assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
        fake.heard().pop().expect("a request").lines().nth(1).map(|line| line.to_ascii_lowercase())
    };
    let (plain, address) = (format!("http://{}", fake.address), fake.address);
    assert_eq!(asked(plain.clone(), &[]), None);
    let basic = Some("authorization: basic dtpzm2nyzxq=".to_owned());
    assert_eq!(asked(format!("http://u:s3cret@{address}"), &[]), basic);
    let user = [("MLFLOW_TRACKING_USERNAME", "u"), ("MLFLOW_TRACKING_PASSWORD", "s3cret")];
    assert_eq!(asked(plain.clone(), &user), basic);
    assert_eq!(
        asked(plain, &[("MLFLOW_TRACKING_TOKEN", "s3cret")]),
        Some("authorization: bearer s3cret".into())
    );
}

fn uri_of_nobody() -> ModelUri {
    uri("models:/nope/1")
}

#[test]
fn a_version_and_its_run_become_an_origin() {
    let fake = Fake::new(&[
        (VERSION, 200, model_version().to_string()),
        ("/api/2.0/mlflow/registered-models/alias?name=bot&alias=champion", 200, model_version().to_string()),
        ("/api/2.0/mlflow/runs/get?run_id=r1", 200, run().to_string()),
    ]);
    let found = find(&fake.client(), &uri("models:/bot/3")).expect("found");
    let origin = &found.origin;
    assert_eq!(origin.run.as_deref(), Some("r1"));
    assert_eq!(origin.lineage().git_commit.as_deref(), Some("abc123"));
    assert_eq!((origin.model.as_str(), origin.version.as_str()), ("bot", "3"));
    assert_eq!(origin.aliases, ["champion"]);
    assert_eq!(origin.params, BTreeMap::from([("lr".into(), "0.1".into())]));
    assert_eq!(
        origin.metrics,
        BTreeMap::from([("bad".into(), "NaN".into()), ("eval_loss".into(), "2.5".into())])
    );
    let tags: Vec<&str> = origin.tags.keys().map(String::as_str).collect();
    assert_eq!(tags, ["mlflow.source.git.commit", "team"], "neither ours nor those of the web page");
    assert_eq!(found.warnings.len(), 1, "the long parameter: {:?}", found.warnings);
    let by_alias = find(&fake.client(), &uri("models:/bot@champion")).expect("found");
    assert_eq!(by_alias.origin, found.origin);
}

#[test]
fn what_goes_wrong_is_one_clear_line() {
    let large = format!("{{\"a\":\"{}\"}}", "x".repeat(17 << 20));
    let pending = model_version().to_string().replace("READY", "PENDING_REGISTRATION");
    let alias =
        json!({"error_code": "INVALID_PARAMETER_VALUE", "message": "Registered model alias x not found."});
    for (status, body, kind, says) in [
        (404, String::new(), Kind::Unavailable, "does not know"),
        (404, alias.to_string(), Kind::NotFound, "alias x not found"),
        (400, alias.to_string(), Kind::Invalid, "alias x not found"),
        (401, "<html>".into(), Kind::Refused, "refuses this user (HTTP 401)"),
        (
            403,
            json!({"error_code": "PERMISSION_DENIED", "message": "no"}).to_string(),
            Kind::Refused,
            "HTTP 403",
        ),
        (500, "oops".into(), Kind::Unavailable, "HTTP 500"),
        (200, "  <!doctype html><html>login</html>".into(), Kind::Unavailable, "web page instead of JSON"),
        (200, "{}".into(), Kind::Unavailable, "not understood"),
        (200, "not json".into(), Kind::Unavailable, "not understood"),
        (200, large, Kind::Unavailable, "too much"),
        (200, pending, Kind::Unavailable, "PENDING_REGISTRATION"),
    ] {
        let short: String = body.chars().take(40).collect();
        let fake = Fake::new(&[(VERSION, status, body)]);
        let error = find(&fake.client(), &uri("models:/bot/3")).expect_err("refused");
        assert_eq!(error.kind, kind, "{status} {short}: {error:?}");
        assert!(error.message.contains(says), "{status} {short}: {error:?}");
        assert!(!error.message.contains('\n') && error.hint.is_some(), "{error:?}");
    }
    let closed = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let server = Server::with_variables(&format!("http://{closed}"), |_| None).expect("an address");
    let error = find(&Client::new(server), &uri("models:/bot/3")).expect_err("nobody");
    assert!(
        error.kind == Kind::Unavailable && error.message.starts_with("no answer from MLflow at"),
        "{error:?}"
    );
}

#[test]
fn artifact_addresses_lead_somewhere_or_say_what_to_do() {
    let (base, own) = ("http://ml:5000/x", "http://127.0.0.1:5000");
    let proxy = |path: &str| Ok(Place::Proxy(path.to_owned()));
    assert_eq!(place(SOURCE, base), proxy("1/r/artifacts/model"));
    assert_eq!(place("mlflow-artifacts://ml:5000/1/a", base), proxy("1/a"));
    assert_eq!(place("http://ml:5000/x/api/2.0/mlflow-artifacts/artifacts/1/a", base), proxy("1/a"));
    let dir = TempDir::new().expect("a directory");
    let here = format!("file://{}", dir.path().display());
    for own in [own, "http://localhost", "https://[::1]:5000/x"] {
        assert_eq!(place(&here, own), Ok(Place::Here(dir.path().to_owned())), "{own}");
        assert_eq!(place(&here["file://".len()..], own), Ok(Place::Here(dir.path().to_owned())));
    }
    // A server elsewhere does not choose which files of this machine are added.
    assert!(place(&here, base).is_err() && place(&here, "http://localhost.evil:5000").is_err());
    for bad in [
        "s3://bucket/a",
        "mlflow-artifacts:/../etc",
        "mlflow-artifacts://other/1",
        "file:///nowhere/at/all",
        "dbfs:/a",
        "",
    ] {
        assert!(place(bad, base).is_err() && place(bad, own).is_err(), "{bad}");
    }
}

fn listing(files: Value) -> String {
    json!({ "files": files }).to_string()
}

#[test]
fn files_are_downloaded_whole_and_only_below_the_directory() {
    let root = "/api/2.0/mlflow-artifacts/artifacts";
    let uri_answer = json!({ "artifact_uri": SOURCE }).to_string();
    let download_uri = "/api/2.0/mlflow/model-versions/get-download-uri?name=bot&version=3";
    let version: ModelVersion =
        serde_json::from_value(model_version()["model_version"].clone()).expect("a version");
    let found = || Found { version: version.clone(), origin: Default::default(), warnings: Vec::new() };
    // As the client encodes a query.
    let top = format!("{root}?path=1%2Fr%2Fartifacts%2Fmodel");
    let run = |answers: &[(&str, u16, String)]| {
        let fake = Fake::new(&[&[(download_uri, 200, uri_answer.clone())], answers].concat());
        let dir = TempDir::new().expect("a directory");
        let mut told = Vec::new();
        let done =
            download(&fake.client(), &found(), dir.path(), &mut |done, total| told.push((done, total)));
        done.map(|at| (at == dir.path(), told, dir))
    };
    let sub = format!("{top}%2Fsub");
    let (config, weights) = (
        format!("{root}/1/r/artifacts/model/config.json"),
        format!("{root}/1/r/artifacts/model/sub/w%20%231.bin"),
    );
    let files = listing(json!([
        {"path": "config.json", "is_dir": false, "file_size": 2}, {"path": "sub", "is_dir": true}
    ]));
    let weights_listed = listing(json!([{"path": "w #1.bin", "file_size": "5"}]));
    let all = [
        (top.as_str(), 200, files.clone()),
        (&sub, 200, weights_listed.clone()),
        (&config, 200, "{}".into()),
        (&weights, 200, "12345".into()),
    ];
    let (is_there, told, dir) = run(&all).expect("downloaded");
    assert!(is_there);
    assert_eq!(std::fs::read(dir.path().join("sub/w #1.bin")).expect("read"), b"12345");
    assert_eq!(told.last(), Some(&(7, 7)));
    for (path, body, says) in [
        (&weights, "1234", "has 5 bytes, and sent 4"),
        (&weights, "123456", "has 5 bytes, and sent more"),
        (&sub, &listing(json!([{"path": "../../etc/passwd", "file_size": 1}])), "not safe"),
        (&sub, &listing(json!([{"path": "/etc/passwd", "file_size": 1}])), "not safe"),
        (&sub, &listing(json!([{"path": "a"}])), "how large"),
        (
            &top,
            &listing(json!([{"path": "a", "file_size": u64::MAX}, {"path": "b", "file_size": 9}])),
            "more than",
        ),
        (&top, &listing(json!([])), "no files"),
        (
            &top,
            &listing(json!([{"path": "a", "file_size": 0}, {"path": "a", "file_size": 0}])),
            "cannot write",
        ),
    ] {
        let mut answers = all.to_vec();
        let a = format!("{root}/1/r/artifacts/model/a");
        answers.push((&a, 200, String::new()));
        answers.retain(|(at, ..)| at != path);
        answers.push((path, 200, body.to_owned()));
        let Err(error) = run(&answers) else { panic!("taken") };
        assert!(error.message.contains(says), "{says}: {error:?}");
    }
}

fn ruling(time: u64, outcome: Outcome) -> SaidRow<Ruling> {
    let said = Ruling {
        outcome,
        policy: Sha256([1; 32]),
        baseline: None,
        pinned: None,
        hardware: "any".into(),
        reports: Default::default(),
        baseline_reports: Default::default(),
        verdict: Sha256([2; 32]),
        sandbox: String::new(),
        reasons: Vec::new(),
    };
    SaidRow { id: StatementId([time as u8; 32]), by: KeyId([4; 32]), time, said }
}

#[test]
fn a_push_changes_what_differs_and_nothing_twice() {
    let stage = |stage: &str| StageHeld {
        stage: stage.into(),
        hardware: "any".into(),
        statement: StatementId([7; 32]),
    };
    let verdicts = [ruling(2, Outcome::Pass), ruling(1, Outcome::Fail)];
    let wanted = Wanted::new("acme/bot:1", "sha256:aa", &verdicts, &[stage("production")]);
    assert_eq!(wanted.tags.len(), 4);
    let verdict: Value = serde_json::from_str(&wanted.tags["weighlock.verdict"]).expect("JSON");
    assert_eq!((&verdict["outcome"], &verdict["time"]), (&json!("pass"), &json!(2)), "the newest counts");
    let tag = |key: &str, value: &str| Entry { key: key.into(), value: json!(value) };
    let mut now = ModelVersion {
        tags: vec![
            tag("team", "nlp"),
            tag("weighlock.digest", "sha256:aa"),
            tag("weighlock.stage.canary", "{}"),
            tag("weighlock.reference", "acme/bot:0"),
        ],
        aliases: vec!["canary".into(), "champion".into()],
        ..ModelVersion::default()
    };
    let all = difference(&now, &wanted);
    let text: Vec<String> = all.iter().map(|change| serde_json::to_string(change).expect("JSON")).collect();
    assert_eq!(all.len(), 6, "{text:#?}");
    assert!(all.contains(&Change::DeleteAlias { alias: "canary".into() }));
    assert!(all.contains(&Change::SetAlias { alias: "production".into() }));
    assert!(!text.iter().any(|change| change.contains("team") || change.contains("champion")), "{text:#?}");
    // As the server would have it afterwards.
    now.tags = wanted.tags.iter().map(|(key, value)| tag(key, value)).collect();
    now.aliases = vec!["champion".into(), "production".into()];
    assert_eq!(difference(&now, &wanted), []);
    // And the requests, as MLflow takes them.
    let tags = "/api/2.0/mlflow/model-versions/set-tag";
    let aliases = "/api/2.0/mlflow/registered-models/alias";
    let ok = || "{}".to_owned();
    let fake = Fake::new(&[
        (tags, 200, ok()),
        (aliases, 200, ok()),
        ("/api/2.0/mlflow/model-versions/delete-tag", 200, ok()),
    ]);
    apply(&fake.client(), "bot", 3, &all).expect("applied");
    let heard = fake.heard();
    assert_eq!(heard.len(), 6);
    let delete = json!({"alias": "canary", "name": "bot"});
    assert!(heard.contains(&format!("DELETE {aliases} {delete}")), "{heard:#?}");
    assert!(heard.iter().any(
        |request| request.starts_with(&format!("POST {tags} ")) && request.contains("\"version\":\"3\"")
    ));
}
