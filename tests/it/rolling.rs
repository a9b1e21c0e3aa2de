//! A rolling restart under load: three daemons end and start again in turn, and no loader sees a failed open.
//!
//! The loaders are the real Python client, since waiting for a daemon that is away is its part of the bargain.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use weighlock_tests::binary::workspace;
use weighlock_tests::host::{number, text};
use weighlock_tests::{Host, Lab, checkpoint, until};

const MODEL: &str = "acme/model:1.0.0";
const BIG: &str = "acme/big:1.0.0";

/// Opens, compares every byte and closes, again and again until the stop file is there. With a descriptor and a mapping
/// taken at the beginning, which must read the same at the end.
const LOADER: &str = r#"
import hashlib, json, os, sys, time, weighlock
socket, ref, source, stop, count = sys.argv[1:]
def digest(data):
    return hashlib.sha256(data).hexdigest()
wanted = {path: digest(open(os.path.join(source, path), "rb").read()) for path in os.listdir(source)}
opens, failed, longest = 0, [], 0.0
kept = weighlock.open(ref, socket)
mapped = {file.path: file.mmap() for file in kept.walk()}
while not os.path.exists(stop):
    began = time.monotonic()
    try:
        with weighlock.open(ref, socket) as artifact:
            for file in artifact.walk():
                if digest(file.read()) != wanted[file.path]:
                    failed.append("wrong bytes in " + file.path)
        opens += 1
    except Exception as error:
        failed.append(f"{type(error).__name__}: {error}")
    longest = max(longest, time.monotonic() - began)
    open(count, "w").write(str(opens))
# An artifact that was opened before all restarts is of use still: what it holds, and what it asks for anew.
for file in kept.walk():
    if digest(mapped[file.path]) != wanted[file.path] or digest(file.open().read()) != wanted[file.path]:
        failed.append("the artifact that was kept open differs in " + file.path)
print(json.dumps({"opens": opens, "failed": failed, "longest_s": longest}))
"#;

/// Fetches one artifact and compares it.
const FETCHER: &str = r#"
import hashlib, json, os, sys, weighlock
socket, ref, source = sys.argv[1:]
with weighlock.open(ref, socket) as artifact:
    same = all(
        hashlib.sha256(file.mmap()).digest() == hashlib.sha256(open(os.path.join(source, file.path), "rb").read()).digest()
        for file in artifact.walk()
    )
print(json.dumps({"same": same}))
"#;

fn python(script: &str, arguments: &[&str]) -> Child {
    let mut command = Command::new("python3");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("WEIGHLOCK_"))
    {
        command.env_remove(name);
    }
    command
        .env("PYTHONPATH", workspace().join("node/python/src"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .args(["-c", script])
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("python3, 3.9 or newer, runs")
}

fn answer(child: Child) -> Value {
    let ended = child.wait_with_output().expect("it ends");
    let errors = String::from_utf8_lossy(&ended.stderr);
    serde_json::from_slice(&ended.stdout).unwrap_or_else(|e| panic!("{e}: {errors}"))
}

fn count(path: &Path) -> u64 {
    fs::read_to_string(path).ok().and_then(|text| text.parse().ok()).unwrap_or_default()
}

#[test]
fn no_open_fails_while_three_daemons_restart_in_turn() {
    let lab = Lab::new();
    let (small, big) = (lab.path("small"), lab.path("big"));
    checkpoint::hugging_face(&small, 11, 3);
    fs::create_dir_all(&big).expect("made");
    checkpoint::single(&big.join("model.safetensors"), 12, 48 << 20);

    // Slow enough that the fetch goes on through all restarts.
    let limited = "[limits]\nupload_bytes_per_s = 3000000\n";
    let mut alpha = lab.host("alpha");
    alpha.configure(limited);
    alpha.start();
    let mut beta = lab.joined("beta", &alpha);
    beta.configure(limited);
    alpha.add(&small, MODEL);
    alpha.add(&big, BIG);
    let mut gamma = lab.joined("gamma", &alpha);
    until("beta and gamma are connected", || beta.peer(&gamma).filter(|row| row["connected"] == true));
    gamma.hears_of(BIG);

    let stop = lab.path("stop");
    let socket = |host: &Host| text(&host.loader_socket());
    let mut counts: Vec<PathBuf> = Vec::new();
    let mut loaders = Vec::new();
    for host in [&alpha, &beta, &gamma] {
        let file = lab.path(&format!("{}.count", host.name));
        let arguments = [&socket(host), MODEL, &text(&small), &text(&stop), &text(&file)];
        loaders.push(python(LOADER, &arguments));
        counts.push(file);
    }
    let fetcher = python(FETCHER, &[&socket(&gamma), BIG, &text(&big)]);
    until("all loaders have opened", || counts.iter().all(|file| count(file) > 0).then_some(()));
    until("the big one is on its way", || {
        let row = gamma.listed(BIG).expect("listed");
        (number(&row["held_bytes"]) > 0).then_some(())
    });

    for host in [&mut alpha, &mut beta, &mut gamma] {
        let ended = host.term();
        assert_eq!(ended.code(), Some(0), "{} drains and ends well:\n{}", host.name, host.log());
        host.start();
        let before: Vec<u64> = counts.iter().map(|file| count(file)).collect();
        until("all loaders go on", || {
            counts.iter().zip(&before).all(|(file, before)| count(file) > before + 1).then_some(())
        });
    }
    fs::write(&stop, "").expect("written");
    for loader in loaders {
        let told = answer(loader);
        assert_eq!(told["failed"], serde_json::json!([]), "{told}");
        assert!(number(&told["opens"]) >= 6, "{told}");
    }
    assert_eq!(
        answer(fetcher)["same"],
        true,
        "the fetch that was interrupted three times has the source's bytes"
    );
}
