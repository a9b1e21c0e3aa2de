//! The HTTP door: health, metrics that count what happens, and no answer under a foreign name.

use std::collections::BTreeSet;

use weighlock_tests::{Lab, checkpoint, http, until};

#[test]
fn health_metrics_and_foreign_host_names() {
    let lab = Lab::new();
    let alpha = lab.founder("alpha");
    let beta = lab.joined("beta", &alpha);
    let own = alpha.http().to_string();
    for host in [own.as_str(), "localhost", &format!("localhost:{}", alpha.http().port()), "[::1]:80"] {
        assert_eq!(http::get(alpha.http(), host, "/healthz"), (200, "ok\n".into()), "{host}");
    }
    for host in ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "10.1.2.3", ""] {
        for path in ["/healthz", "/metrics", "/nothing"] {
            let (status, body) = http::get(alpha.http(), host, path);
            assert_eq!(status, 403, "{host:?} {path}: {body}");
            assert!(!body.contains("weighlock_"), "{host:?} {path} tells nothing");
        }
    }
    assert_eq!(http::get(alpha.http(), &own, "/nothing").0, 404);

    let before = http::metrics(alpha.http());
    let names: BTreeSet<&str> = before.keys().map(String::as_str).collect();
    for name in ["weighlock_layers", "weighlock_members", "weighlock_peers", "weighlock_sent_bytes_total"] {
        assert!(names.contains(name), "{name} is missing in {names:?}");
    }
    assert_eq!((before["weighlock_layers"], before["weighlock_members"]), (0.0, 2.0));

    let source = lab.path("source");
    checkpoint::hugging_face(&source, 1, 2);
    alpha.add(&source, "acme/model:1.0.0");
    beta.hears_of("acme/model:1.0.0");
    let mut loader = beta.loader();
    let opened = loader.open("acme/model:1.0.0").expect("opened");
    let sizes = opened.files.values().map(|file| file.metadata().expect("metadata").len());
    let total = sizes.sum::<u64>() as f64;

    let (at_alpha, at_beta) = (http::metrics(alpha.http()), http::metrics(beta.http()));
    assert!(at_alpha["weighlock_layers"] >= opened.files.len() as f64, "{at_alpha:?}");
    assert!(at_alpha["weighlock_layer_bytes"] >= total, "{at_alpha:?}");
    assert!(at_alpha["weighlock_statements"] > before["weighlock_statements"], "{at_alpha:?}");
    assert!(at_beta["weighlock_fetched_bytes_total"] >= total, "{at_beta:?}");
    assert_eq!(at_beta["weighlock_leases"], 1.0);
    assert_eq!(at_beta["weighlock_lies_total"], 0.0);
    // A get is counted when its stream has ended, which may be after the fetch is complete.
    until("alpha counts what it sent", || {
        (http::metrics(alpha.http())["weighlock_sent_bytes_total"] >= total).then_some(())
    });
    drop(loader);
    until("the lease is given back", || {
        (http::metrics(beta.http())["weighlock_leases"] == 0.0).then_some(())
    });
}
