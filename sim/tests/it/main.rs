//! The binary as people run it.

use std::process::{Command, Output};

fn sim(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weighlock-sim")).args(args).output().expect("the simulator starts")
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

#[test]
fn a_run_prints_its_options_first_and_json_last_and_repeats_itself() {
    let args = ["run", "--scenario", "poisoned-peer", "--hosts", "8", "--gib", "0.03", "--seed", "5"];
    let (one, again) = (sim(&args), sim(&args));
    assert!(one.status.success(), "{}", text(&one));
    assert_eq!(text(&one), text(&again));
    let out = text(&one);
    assert!(out.starts_with("scenario poisoned-peer seed 5\n"), "{out}");
    let last = out.lines().last().expect("a last line");
    let json: serde_json::Value = serde_json::from_str(last).expect("JSON");
    assert_eq!(json["schema_version"], 1);
    assert_eq!(json["unfinished"], 0);
    assert!(json["last_over_bound"].as_f64().expect("a ratio") >= 1.0);
    let other = sim(&["run", "--scenario", "poisoned-peer", "--hosts", "8", "--gib", "0.03", "--seed", "6"]);
    let other: serde_json::Value =
        serde_json::from_str(text(&other).lines().last().expect("a last line")).expect("JSON");
    assert_ne!(json["trace"], other["trace"]);
}

#[test]
fn sweep_and_replay_agree_and_usage_errors_exit_with_2() {
    let sweep = sim(&["sweep", "--seeds", "2", "--from", "7"]);
    assert!(sweep.status.success(), "{}", text(&sweep));
    assert!(text(&sweep).contains("4 runs from seed 7 on, no violation"));
    let replay = sim(&["replay", "7", "--scenario", "flash-crowd"]);
    assert!(replay.status.success());
    assert!(text(&replay).starts_with("scenario flash-crowd seed 7\n"));
    assert_eq!(sim(&["run", "--hosts", "0"]).status.code(), Some(2));
    assert_eq!(sim(&["run", "--gib", "minus"]).status.code(), Some(2));
}
