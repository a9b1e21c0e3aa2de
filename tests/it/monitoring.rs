//! Alert rules and dashboard: every metric that they name is one that a daemon gives.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;
use weighlock_tests::binary::workspace;
use weighlock_tests::{Lab, http};

fn named(text: &str) -> BTreeSet<String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.split(|c| !is_name(c)).filter(|word| word.starts_with("weighlock_")).map(str::to_owned).collect()
}

#[test]
fn alerts_and_dashboard_name_only_metrics_that_there_are() {
    let lab = Lab::new();
    let alpha = lab.founder("alpha");
    let samples = http::metrics(alpha.http());
    let given: BTreeSet<&str> =
        samples.keys().map(|sample| sample.split('{').next().unwrap_or_default()).collect();
    let dir = workspace().join("node/deploy/monitoring");
    for file in ["alerts.yaml", "dashboard.json"] {
        let text = fs::read_to_string(dir.join(file)).expect("the file");
        let used = named(&text);
        assert!(used.len() > 8, "{file}: {used:?}");
        let unknown: Vec<_> = used.iter().filter(|name| !given.contains(name.as_str())).collect();
        assert!(unknown.is_empty(), "{file} names {unknown:?}; a daemon gives {given:?}");
    }
    let board = fs::read_to_string(dir.join("dashboard.json")).expect("the file");
    let board: Value = serde_json::from_str(&board).expect("JSON");
    let ids: BTreeSet<_> =
        board["panels"].as_array().expect("panels").iter().map(|p| p["id"].as_u64()).collect();
    assert_eq!(
        ids.len(),
        board["panels"].as_array().expect("panels").len(),
        "each panel has an id of its own"
    );

    // What the rules reckon with.
    let sample = |name: &str| samples.iter().find(|(key, _)| key.as_str() == name).map(|(_, value)| *value);
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs_f64();
    for expiry in ["weighlock_root_expires_seconds", "weighlock_admission_expires_seconds"] {
        let left = sample(expiry).expect("given") - now;
        assert!(
            (300.0 * 86_400.0..400.0 * 86_400.0).contains(&left),
            "{expiry}: {left} s left of about a year"
        );
    }
    assert_eq!(sample("weighlock_connections_wanted"), Some(0.0), "it is alone");
    let open = sample("weighlock_open_files").expect("given");
    assert!(open > 10.0 && open < sample("weighlock_open_files_max").expect("given"), "{open}");
}
