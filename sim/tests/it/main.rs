//! The binary as people run it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn sim(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weighlock-sim")).args(args).output().expect("the simulator starts")
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

#[test]
fn a_run_prints_its_options_first_and_json_last_and_repeats_itself() {
    let picture = file("run.svg");
    let picture = picture.to_str().expect("UTF-8");
    let run = |seed, picture| {
        let size = ["--hosts", "8", "--gib", "0.06", "--gbit", "0.1"];
        sim(&[&["run", "--scenario", "poisoned-peer", "--seed", seed, "--svg", picture][..], &size].concat())
    };
    let (one, again) = (run("5", picture), run("5", "none"));
    assert!(one.status.success(), "{}", text(&one));
    assert_eq!(text(&one), text(&again), "what depends on the machine is not on standard output");
    let out = text(&one);
    assert!(out.starts_with("scenario poisoned-peer seed 5\n"), "{out}");
    let json = |output: &Output| -> serde_json::Value {
        serde_json::from_str(text(output).lines().last().expect("a last line")).expect("JSON")
    };
    assert_eq!(json(&one)["schema_version"], 2);
    assert_eq!(json(&one)["times"]["unfinished"], 0);
    assert!(json(&one)["last_over_bound"].as_f64().expect("a ratio") >= 1.0);
    assert_ne!(json(&run("6", "none"))["trace"], json(&one)["trace"]);
    let drawn = std::fs::read_to_string(picture).expect("the picture is written");
    assert!(drawn.starts_with("<svg ") && drawn.contains("poisoned-peer"));
}

#[test]
fn sweep_and_replay_agree_and_usage_errors_exit_with_2() {
    let sweep = sim(&["sweep", "--seeds", "2", "--from", "7", "--scenario", "flash-crowd"]);
    assert!(sweep.status.success(), "{}", text(&sweep));
    assert!(text(&sweep).contains("2 runs from seed 7 on, no violation"));
    let replay = sim(&["replay", "7", "--scenario", "flash-crowd"]);
    assert!(replay.status.success());
    assert!(text(&replay).starts_with("scenario flash-crowd seed 7\n"));
    assert_eq!(sim(&["run", "--hosts", "0"]).status.code(), Some(2));
    assert_eq!(sim(&["run", "--gib", "minus"]).status.code(), Some(2));
}
