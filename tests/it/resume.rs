//! Killed at random moments, a daemon comes back with all it acknowledged, nothing half-made, and resumes.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use weighlock_protocol::LayerId;
use weighlock_protocol::wire::bao::GROUP_BYTES;
use weighlock_tests::host::{files_below, number, string, text};
use weighlock_tests::{Host, Lab, PATIENCE, checkpoint, http, until};

const ROUNDS: u64 = 5;
/// What one kill may cost at most: a piece for each slot, and the test leaves the one peer a single slot.
const REFETCH_BYTES_MAX: u64 = 1 << 20;
/// A have-map has pages, each with its BLAKE3 at its end: the header, then a bit for each group.
const PAGE_BYTES: usize = 4096;
const BODY_BYTES: usize = PAGE_BYTES - 32;
/// Where in the header the length of the boot id stands; its text follows.
const BOOT_ID_AT: usize = 56;

fn fetched(host: &Host) -> u64 {
    http::metrics(host.http())["weighlock_fetched_bytes_total"] as u64
}

#[test]
fn a_fetch_survives_kills_and_fetches_little_twice() {
    const MODEL: &str = "acme/big:1.0.0";
    const BYTES: u64 = 192 << 20;
    let lab = Lab::new();
    let source = lab.path("source/model.safetensors");
    checkpoint::single(&source, 9, BYTES);
    let alpha = lab.founder("alpha");
    alpha.add(&source, MODEL);
    let mut beta = lab.joined("beta", &alpha);
    beta.configure("[limits]\ndownload_bytes_per_s = 67108864\n");
    assert!(beta.term().success());
    beta.start();
    beta.hears_of(MODEL);
    let mut draw = ChaCha8Rng::seed_from_u64(2024);
    let (mut seen_bytes, mut kills) = (0, 0);
    while kills < ROUNDS {
        // The socket stays open, so the fetch is wanted; it may go on from the last life by itself, too.
        let mut loader = beta.loader();
        loader.send(&json!({"v": 1, "op": "open", "ref": MODEL, "fds": "none"}));
        let goal = draw.random_range(1..BYTES / 8);
        let started = Instant::now();
        let got = loop {
            // Looks often: a fast machine fetches it all in no time.
            let got = fetched(&beta);
            if got >= goal {
                break got;
            }
            assert!(
                started.elapsed() < PATIENCE,
                "the fetch does not move:
{}",
                beta.log()
            );
            std::thread::sleep(Duration::from_millis(1));
        };
        beta.kill9();
        kills += 1;
        seen_bytes += got;
        beta.start();
        let row = beta.hears_of(MODEL);
        let status = beta.ok(&["status"]);
        if row["complete"] == true {
            assert!(kills > 1, "the first fetch was over before it could be killed");
            break;
        }
        // Nothing of it is visible before it is whole.
        assert_eq!(files_below(&beta.data_dir.join("views")), [] as [PathBuf; 0]);
        let sealed = files_below(&beta.data_dir.join("layers"));
        let sealed = sealed.iter().filter(|path| path.extension().is_none()).count();
        assert!(sealed as u64 <= number(&status["layers"]) + 1, "{sealed} files, {status}");
    }
    let opened = beta.loader().open(MODEL).expect("completes");
    let sum = opened.files.into_values().map(checkpoint::sha256).next().expect("one file");
    assert_eq!(sum, checkpoint::digests(&lab.path("source"))["model.safetensors"]);
    let fetched_in_all = seen_bytes + fetched(&beta);
    println!("{fetched_in_all} bytes were fetched for {BYTES} over {kills} kills");
    let bound = BYTES + (1 << 20) + kills * REFETCH_BYTES_MAX;
    assert!(fetched_in_all <= bound, "{fetched_in_all} bytes were fetched for {BYTES} over {kills} kills");
    assert_eq!(files_below(&beta.data_dir.join("partial")), [] as [PathBuf; 0], "nothing is left over");
}

/// The groups that a have-map of one page of bits claims.
fn claimed(have: &Path) -> Vec<u64> {
    let file = fs::read(have).expect("a have-map");
    assert_eq!(file.len(), 2 * PAGE_BYTES, "the header and one page");
    let mut groups = Vec::new();
    for (byte, first) in file[PAGE_BYTES..][..BODY_BYTES].iter().zip((0u64..).step_by(8)) {
        groups.extend((0..8).filter(|bit| byte & (1 << bit) != 0).map(|bit| first + bit));
    }
    groups
}

/// Lets a have-map of this boot be one of another boot.
fn written_by_another_boot(have: &Path) {
    let mut file = fs::read(have).expect("a have-map");
    let (body, sum) = file[..PAGE_BYTES].split_at_mut(BODY_BYTES);
    assert_eq!(*sum, LayerId::of(body).0, "the header is as this test knows it");
    let this = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("Linux tells");
    let length = usize::from(body[BOOT_ID_AT]);
    let id = &mut body[BOOT_ID_AT + 1..][..length];
    assert_eq!(*id, *this.trim().as_bytes());
    id.fill(b'0');
    sum.copy_from_slice(&LayerId::of(body).0);
    fs::write(have, file).expect("written");
}

#[test]
fn after_a_reboot_partial_data_is_proven_again() {
    const MODEL: &str = "acme/rebooted:1.0.0";
    const BYTES: u64 = 128 << 20;
    /// What is here at least when the daemon is killed.
    const HERE: u64 = 16 << 20;
    let lab = Lab::new();
    let source = lab.path("source/model.safetensors");
    checkpoint::single(&source, 10, BYTES);
    let size = fs::metadata(&source).expect("a file").len();
    let alpha = lab.founder("alpha");
    alpha.add(&source, MODEL);
    let mut beta = lab.joined("beta", &alpha);
    // All of it would take a quarter of a minute, so the kill meets it in the middle.
    beta.configure("[limits]\ndownload_bytes_per_s = 8388608\n");
    assert!(beta.term().success());
    beta.start();
    beta.hears_of(MODEL);
    let mut loader = beta.loader();
    loader.send(&json!({"v": 1, "op": "open", "ref": MODEL, "fds": "none"}));
    until("a part of it is here", || (fetched(&beta) >= HERE).then_some(()));
    beta.kill9();

    let is_big = |path: &PathBuf| fs::metadata(path).is_ok_and(|meta| meta.len() == size);
    let partial = files_below(&beta.data_dir.join("partial"));
    let data = partial.iter().find(|path| is_big(path)).expect("the fetch was not over before it was killed");
    let have = data.with_extension("have");
    let claimed = claimed(&have);
    let claimed_bytes = claimed.len() as u64 * GROUP_BYTES;
    assert!((HERE / 2..BYTES).contains(&claimed_bytes), "{claimed_bytes} bytes of {size} are claimed");
    written_by_another_boot(&have);
    // As if this one had not reached the disk when the power went.
    let file = File::options().read(true).write(true).open(data).expect("partial data");
    let at = claimed[claimed.len() / 2] * GROUP_BYTES + 100;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("read");
    file.write_all_at(&[byte[0] ^ 4], at).expect("written");

    beta.configure("");
    beta.start();
    beta.hears_of(MODEL);
    let opened = beta.loader().open(MODEL).expect("completes");
    let sum = opened.files.into_values().map(checkpoint::sha256).next().expect("one file");
    assert_eq!(sum, checkpoint::digests(&lab.path("source"))["model.safetensors"]);
    let log = beta.log();
    assert_eq!(beta.logged("groups of a partial layer did not survive"), 1, "{log}");
    assert!(log.lines().any(|line| line.ends_with(" dropped=1")), "only one group was damaged: {log}");
    // The damaged group came once more, and nothing else that was here.
    let (again, missing) = (fetched(&beta), size - (claimed_bytes - GROUP_BYTES));
    assert!(again >= missing, "{again} bytes were fetched, and {missing} were missing");
    assert!(again <= missing + REFETCH_BYTES_MAX, "{again} bytes were fetched, and {missing} were missing");
    assert_eq!(files_below(&beta.data_dir.join("partial")), [] as [PathBuf; 0], "nothing is left over");
}

#[test]
fn an_add_that_is_killed_leaves_nothing_half_made() {
    let lab = Lab::new();
    let mut alpha = lab.founder("alpha");
    let source = |round: u64| lab.path(&format!("source-{round}"));
    let make = |round: u64| {
        checkpoint::hugging_face(&source(round), round, 4);
        checkpoint::single(&source(round).join("extra/model.safetensors"), round, 24 << 20);
        checkpoint::many_files(&source(round).join("notes"), round, 60);
    };
    // How long one takes here decides when to kill, so that most kills meet it in the middle.
    make(0);
    let seconds = alpha.add(&source(0), "acme/model:0.0.0")["seconds"].as_f64().expect("seconds");
    let mut draw = ChaCha8Rng::seed_from_u64(77);
    let mut cut_short = 0;
    for round in 1..=ROUNDS {
        make(round);
        let reference = format!("acme/model:{round}.0.0");
        let mut command = alpha.command();
        command.args(["--json", "add", &text(&source(round)), &reference]);
        let adding = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program runs");
        std::thread::sleep(Duration::from_secs_f64(draw.random_range(0.0..1.3) * seconds));
        alpha.kill9();
        let acknowledged = adding.wait_with_output().expect("it ends").status.success();
        alpha.start();

        let what = format!("round {round}, acknowledged: {acknowledged}");
        let row = alpha.listed(&reference);
        assert!(row.is_some() || !acknowledged, "{what}: lost");
        assert!(row.as_ref().is_none_or(|row| row["complete"] == true), "{what}: {row:?}");
        cut_short += u64::from(row.is_none());
        let below = |name: &str| files_below(&alpha.data_dir.join(name));
        assert_eq!(below("staging"), [] as [PathBuf; 0], "{what}");
        assert_eq!(below("partial"), [] as [PathBuf; 0], "{what}");
        assert_eq!(below("quarantine"), [] as [PathBuf; 0], "{what}");
        let status = alpha.ok(&["status"]);
        let layers = below("layers");
        let files = layers.iter().filter(|path| path.extension().is_none()).count();
        assert_eq!(files as u64, number(&status["layers"]), "{what}: no file without a record");

        // Again, it works, and all that was there before is there still.
        let again = alpha.add(&source(round), &reference);
        assert_eq!(again["new"], row.is_none(), "{what}");
        for earlier in 0..=round {
            let view = string(&alpha.ok(&["path", &format!("acme/model:{earlier}.0.0")])["path"]);
            let (here, there) =
                (checkpoint::view_digests(view.as_ref()), checkpoint::digests(&source(earlier)));
            checkpoint::same(&here, &there, &format!("{what}: artifact {earlier}"));
        }
    }
    println!("{cut_short} of {ROUNDS} adds were cut short");
}
