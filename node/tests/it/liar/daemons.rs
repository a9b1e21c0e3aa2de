//! Two honest daemons as real processes and an admitted member that declares everything and sends flipped bits.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::Ordering;

use rustix::process::Signal;
use weighlock_protocol::ManifestDigest;

use super::member::{Daemon, FalseMember, Wrong, command, contents, parsed};
use crate::plane::{bytes, soon};

const REFERENCE: &str = "lab/thing:1.0.0";

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_honest_host_gets_the_right_bytes_beside_a_lying_member_and_names_it() {
    let root = tempfile::tempdir().expect("a directory");
    let source = root.path().join("source");
    fs::create_dir(&source).expect("a directory");
    for (n, len) in [(0, 9 << 20), (1, (3 << 20) + 5), (2, 1)] {
        fs::write(source.join(format!("{n}.txt")), bytes(len, 60 + n)).expect("a file");
    }

    let alpha = Daemon::start(root.path(), "alpha", None);
    let invited = alpha.run(&["invite", "--uses", "2"]);
    let ticket = invited["ticket"].as_str().expect("a ticket");
    let beta = Daemon::start(root.path(), "beta", Some(ticket));
    let liar = FalseMember::join(&ticket.parse().expect("a ticket"), &[&alpha, &beta]).await;

    let source_path = source.to_str().expect("UTF-8");
    let added = alpha.run(&["add", source_path, REFERENCE]);
    let digest: ManifestDigest = parsed(&added["digest"]);
    let (manifest, layers) = contents(&liar, &alpha, digest).await;
    liar.declare(&manifest, layers, Wrong::Bytes).await;

    beta.until("beta hears of the artifact", || {
        let listed = beta.run(&["ls", REFERENCE]);
        listed["items"].as_array().is_some_and(|items| !items.is_empty())
    });
    let mallory = liar.raw.key;
    beta.until("beta hears what the liar claims to hold", || {
        beta.peer(&mallory).is_some_and(|row| row["held"] == 1)
    });

    // While the honest provider is paused, the liar is surely asked.
    alpha.signal(Signal::STOP);
    let target = root.path().join("pulled");
    let mut pull = command(&beta.dir);
    pull.args(["pull", REFERENCE, "--to", target.to_str().expect("UTF-8")]);
    let mut pulling = pull.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it runs");
    beta.until("the liar is banned", || {
        beta.peer(&mallory).is_some_and(|row| row["banned_s"].as_u64().is_some())
    });
    assert!(liar.lies.load(Ordering::SeqCst) > 0);
    assert!(beta.metric("weighlock_lies_total") > 0.0);
    assert!(!target.exists(), "nothing is there before all of it is");
    alpha.signal(Signal::CONT);

    let output = tokio::task::spawn_blocking(move || {
        let mut error = String::new();
        let _ = pulling.stderr.take().expect("piped").read_to_string(&mut error);
        (pulling.wait().expect("it ends"), error)
    });
    let (status, error) = soon("the pull ends", output).await.expect("no panic");
    // A pull that lost patience while alpha was paused is repeated, as its message says.
    if !status.success() {
        beta.until("the repeated pull succeeds", || {
            beta.try_run(&["pull", REFERENCE, "--to", target.to_str().expect("UTF-8")]).is_ok()
        });
    }
    for n in 0..3 {
        let name = format!("{n}.txt");
        let (right, found) = (fs::read(source.join(&name)), fs::read(target.join(&name)));
        assert!(right.expect("readable") == found.expect("pulled"), "{name} differs; {error}");
    }
    let row = beta.peer(&mallory).expect("still a member");
    assert!(row["banned_s"].as_u64().is_some_and(|left| left > 0), "{row}");
    let honest = beta.peer(&alpha.key()).expect("a member");
    assert!(honest["banned_s"].is_null() && honest["fetched_bytes"].as_u64() > Some(0), "{honest}");
    let log = beta.log();
    let named =
        log.lines().any(|line| line.contains("fail verification") && line.contains(&mallory.to_string()));
    assert!(named, "the log does not name the liar:\n{log}");
    liar.stop.cancel();
}

/// A safetensors file of tensors of U8 from these seeds, with a note in its header.
fn safetensors(path: &Path, note: &str, seeds: &[u64]) {
    const LEN: usize = 700_001;
    let mut header = serde_json::json!({"__metadata__": {"note": note}});
    for (n, _) in seeds.iter().enumerate() {
        header[format!("t{n}")] =
            serde_json::json!({"dtype": "U8", "shape": [LEN], "data_offsets": [n * LEN, (n + 1) * LEN]});
    }
    let header = header.to_string();
    let mut out = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
    out.extend(seeds.iter().flat_map(|seed| bytes(LEN, *seed)));
    fs::write(path, out).expect("a file");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_member_that_gives_a_wrong_tree_is_named_and_the_next_version_arrives_all_the_same() {
    let root = tempfile::tempdir().expect("a directory");
    let (first, second) = (root.path().join("1.safetensors"), root.path().join("2.safetensors"));
    safetensors(&first, "", &[1, 2, 3, 4]);
    safetensors(&second, "a longer header", &[1, 20, 3, 4]);

    let alpha = Daemon::start(root.path(), "alpha", None);
    let invited = alpha.run(&["invite", "--uses", "2"]);
    let ticket = invited["ticket"].as_str().expect("a ticket");
    let beta = Daemon::start(root.path(), "beta", Some(ticket));
    let liar = FalseMember::join(&ticket.parse().expect("a ticket"), &[&alpha, &beta]).await;
    let heard = |reference: &str| {
        beta.until("beta hears of it", || {
            beta.run(&["ls", reference])["items"].as_array().is_some_and(|items| !items.is_empty())
        });
    };
    alpha.run(&["add", first.to_str().expect("UTF-8"), REFERENCE]);
    heard(REFERENCE);
    beta.until("beta has the first version", || beta.try_run(&["pull", REFERENCE]).is_ok());

    let next = "lab/thing:2.0.0";
    let added = alpha.run(&["add", second.to_str().expect("UTF-8"), next]);
    let (manifest, layers) = contents(&liar, &alpha, parsed(&added["digest"])).await;
    liar.declare(&manifest, layers, Wrong::Trees).await;
    heard(next);
    let mallory = liar.raw.key;
    beta.until("beta hears what the liar claims to hold", || {
        beta.peer(&mallory).is_some_and(|row| row["held"] == 1)
    });

    // While the honest provider is paused, the liar is surely asked. What it sends of layers is right.
    alpha.signal(Signal::STOP);
    let target = root.path().join("pulled");
    let mut pull = command(&beta.dir);
    pull.args(["pull", next, "--to", target.to_str().expect("UTF-8")]);
    let mut pulling = pull.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it runs");
    beta.until("the liar is banned", || {
        beta.peer(&mallory).is_some_and(|row| row["banned_s"].as_u64().is_some())
    });
    alpha.signal(Signal::CONT);
    assert_eq!(liar.lies.load(Ordering::SeqCst), 1, "one tree");
    let ended = tokio::task::spawn_blocking(move || pulling.wait().expect("it ends"));
    let status = soon("the pull ends", ended).await.expect("no panic");
    if !status.success() {
        beta.until("the repeated pull succeeds", || {
            beta.try_run(&["pull", next, "--to", target.to_str().expect("UTF-8")]).is_ok()
        });
    }
    let right = fs::read(&second).expect("readable");
    assert!(fs::read(target.join("2.safetensors")).expect("pulled") == right, "other bytes");
    assert_eq!(liar.lies.load(Ordering::SeqCst), 1, "a banned host is not asked again");
    let log = beta.log();
    let named =
        log.lines().any(|line| line.contains("fail verification") && line.contains(&mallory.to_string()));
    assert!(named, "the log does not name the liar:\n{log}");
    liar.stop.cancel();
}
