//! Members that break the rules of a swarm rather than its proofs: the honest host finishes beside each of them.

use std::fs;
use std::process::Stdio;
use std::sync::atomic::Ordering;

use rustix::process::Signal;
use weighlock_protocol::ManifestDigest;

use super::member::{Daemon, FalseMember, Wrong, command, contents, parsed};
use crate::plane::{bytes, soon};

const REFERENCE: &str = "lab/thing:1.0.0";
/// What a daemon of a debug build may take here, all of the fetch included. One that queued what it is flooded with
/// would take gigabytes.
const MEMORY_BYTES_MAX: u64 = 400 << 20;

/// How the culprit is seen to be named.
enum Named {
    /// It is banned, for this.
    Banned(&'static str),
    /// It is merely slow, or tedious: this is said of it.
    Said(&'static str),
}

/// Beta fetches from alpha and from a member that does `wrong`. Alpha is stopped until the member did it, so that it
/// is surely met.
async fn beside(wrong: Wrong, named: Named) {
    let root = tempfile::tempdir().expect("a directory");
    let source = root.path().join("source");
    fs::create_dir(&source).expect("a directory");
    for (n, len) in [(0, 9 << 20), (1, (3 << 20) + 5), (2, 1)] {
        fs::write(source.join(format!("{n}.txt")), bytes(len, 70 + n)).expect("a file");
    }
    let alpha = Daemon::start(root.path(), "alpha", None);
    let invited = alpha.run(&["invite", "--uses", "2"]);
    let ticket = invited["ticket"].as_str().expect("a ticket");
    let beta = Daemon::start(root.path(), "beta", Some(ticket));
    let member = FalseMember::join(&ticket.parse().expect("a ticket"), &[&alpha, &beta]).await;
    let added = alpha.run(&["add", source.to_str().expect("UTF-8"), REFERENCE]);
    let digest: ManifestDigest = parsed(&added["digest"]);
    let (manifest, layers) = contents(&member, &alpha, digest).await;
    member.declare(&manifest, layers, wrong).await;
    beta.until("beta hears of the artifact", || {
        let listed = beta.run(&["ls", REFERENCE]);
        listed["items"].as_array().is_some_and(|items| !items.is_empty())
    });
    let mallory = member.raw.key;
    beta.until("beta hears what the member claims to hold", || {
        beta.peer(&mallory).is_some_and(|row| row["held"] == 1)
    });

    alpha.signal(Signal::STOP);
    let target = root.path().join("pulled");
    let mut pull = command(&beta.dir);
    pull.args(["pull", REFERENCE, "--to", target.to_str().expect("UTF-8")]);
    let mut pulling = pull.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it runs");
    let name = mallory.to_string();
    let logged = |what: &str| beta.log().lines().any(|line| line.contains(what) && line.contains(&name));
    match named {
        Named::Banned(charge) => {
            beta.until("the culprit is banned", || {
                beta.peer(&mallory).is_some_and(|row| row["banned_s"].as_u64().is_some())
            });
            assert!(logged(charge), "not for what it did:\n{}", beta.log());
        }
        Named::Said(what) => {
            beta.until("the culprit is named", || logged(what));
            assert!(member.lies.load(Ordering::SeqCst) > 0, "nobody asked it for anything");
        }
    }
    alpha.signal(Signal::CONT);
    let ended = tokio::task::spawn_blocking(move || pulling.wait().expect("it ends"));
    let status = soon("the pull ends", ended).await.expect("no panic");
    // A pull that lost patience while alpha was stopped is repeated, as its message says.
    if !status.success() {
        beta.until("the repeated pull succeeds", || {
            beta.try_run(&["pull", REFERENCE, "--to", target.to_str().expect("UTF-8")]).is_ok()
        });
    }
    for n in 0..3 {
        let name = format!("{n}.txt");
        let (right, found) = (fs::read(source.join(&name)), fs::read(target.join(&name)));
        assert!(right.expect("readable") == found.expect("pulled"), "{name} differs");
    }
    let memory = beta.memory_bytes_max();
    assert!(memory < MEMORY_BYTES_MAX, "{memory} bytes of memory");
    let honest = beta.peer(&alpha.key()).expect("a member");
    assert!(honest["banned_s"].is_null(), "{honest}");
    member.stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_member_that_declares_what_it_lacks_is_banned() {
    beside(Wrong::Lacking, Named::Banned("what it does not have")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_member_that_grants_and_never_serves_holds_nobody_up() {
    beside(Wrong::Silent, Named::Said("sends nothing")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_member_that_never_grants_holds_nobody_up() {
    beside(Wrong::Mum, Named::Said("sends nothing")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_member_that_floods_with_frames_is_banned() {
    beside(Wrong::Flood, Named::Banned("flooded")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_flood_of_large_frames_takes_little_memory_and_counts_by_what_is_in_them() {
    beside(Wrong::FloodOfBitfields, Named::Banned("flooded")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_member_that_sends_an_absurd_length_is_banned() {
    beside(Wrong::Length, Named::Banned("make no sense")).await;
}
