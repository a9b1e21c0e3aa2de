//! Hosts of different releases in one cluster, as far as one release can show it: what a newer one says is kept.

use std::fs;

use weighlock_protocol::UnixTime;
use weighlock_protocol::statement::{Keypair, Kind, Statement};
use weighlock_tests::host::{string, text};
use weighlock_tests::{Host, Lab, until};

/// The host key of a store, which no command gives away.
fn host_key(host: &Host) -> Keypair {
    let file = fs::read_to_string(host.data_dir.join("keys/host.key")).expect("the key file");
    let seed = file.split_whitespace().nth(1).expect("a seed");
    let seed = data_encoding::BASE64.decode(seed.as_bytes()).expect("base64");
    Keypair::from_seed(seed.try_into().expect("32 bytes"))
}

/// A statement of a kind that this release does not know, by a member.
fn later_kind(host: &Host) -> (String, Vec<u8>) {
    let key = host_key(host);
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    let envelope = Statement {
        cluster: Some(host.cluster().parse().expect("a cluster id")),
        by: key.key_id(),
        time: UnixTime(now),
        chain: None,
        kind: Kind::Unknown { predicate_type: "https://weighlock.dev/quota/v7".into() },
    }
    .sign(&[&key]);
    (envelope.id().to_string(), envelope.to_json())
}

#[test]
fn a_statement_of_a_later_kind_is_stored_passed_on_and_outlives_a_restart() {
    let lab = Lab::new();
    let mut alpha = lab.founder("alpha");
    let mut beta = lab.joined("beta", &alpha);
    let mut gamma = lab.joined("gamma", &alpha);
    until("beta and gamma are connected", || beta.peer(&gamma).filter(|row| row["connected"] == true));
    // Gamma is away when it is said, and alpha, who said it, when gamma comes back.
    gamma.term();

    let (id, json) = later_kind(&alpha);
    let file = lab.path("later.dsse");
    fs::write(&file, &json).expect("written");
    let said = alpha.run(&["statement", "import", &text(&file)]);
    assert_eq!(said.code, Some(0), "it is taken: {}", said.stderr);
    assert!(said.stderr.contains("does not know its kind"), "it has no effect, and says so: {}", said.stderr);
    assert!(string(&said.last()["items"][0]["pending"]).contains("passed on"), "{}", said.stdout);

    let shown = |host: &Host| {
        let ran = host.run(&["statement", "show", &id]);
        (ran.code == Some(0)).then(|| ran.last())
    };
    let original = shown(&alpha).expect("alpha keeps it");
    assert_eq!(string(&original["statement"]["predicateType"]), "https://weighlock.dev/quota/v7");
    until("beta has it", || shown(&beta));
    alpha.term();
    beta.kill9();
    beta.start();
    assert_eq!(shown(&beta), Some(original.clone()), "after a kill, byte for byte under the same id");
    gamma.start();
    until("gamma has it from beta", || shown(&gamma));
    assert_eq!(shown(&gamma), Some(original));
    assert_eq!(gamma.ok(&["status"])["alarms"], serde_json::json!([]), "nobody minds it");
}

#[test]
fn hosts_tell_what_they_can_do() {
    let lab = Lab::new();
    let alpha = lab.founder("alpha");
    let beta = lab.joined("beta", &alpha);
    let row = until("beta's record tells", || {
        alpha.peer(&beta).filter(|row| row["capabilities"].as_array().is_some_and(|list| !list.is_empty()))
    });
    assert_eq!(row["capabilities"], serde_json::json!(["audit", "tree", "link"]), "{row}");
    assert_eq!(string(&row["version"]), env!("CARGO_PKG_VERSION"));
}
