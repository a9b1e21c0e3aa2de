//! Strangers: a valid identity that is not admitted gets no byte and no metadata on either plane.

use std::time::SystemTime;

use libp2p::identity::Keypair;
use serde_json::Value;
use tokio::runtime::Runtime;
use weighlock_protocol::statement::{Envelope, Labels};
use weighlock_protocol::ticket::Ticket;
use weighlock_protocol::wire::bao::{GroupSet, all_groups};
use weighlock_protocol::wire::control::{Hello, Request as Ask};
use weighlock_protocol::wire::data::{ALPN_DATA, ALPN_JOIN, Request, close};
use weighlock_protocol::wire::join::{JoinAnswer, JoinRequest};
use weighlock_protocol::{ClusterId, KeyId, LayerId, ManifestDigest, StatementId, UnixTime};
use weighlock_tests::control::{Outcome, Raw, Transport, key_id};
use weighlock_tests::data::Client;
use weighlock_tests::host::{number, string};
use weighlock_tests::{Host, Lab, checkpoint, http, until};

const MODEL: &str = "acme/secret-model:1.0.0";

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

fn key(host: &Host) -> KeyId {
    host.key().parse().expect("a host key")
}

fn cluster(host: &Host) -> ClusterId {
    host.cluster().parse().expect("a cluster id")
}

fn with_model(lab: &Lab) -> (Host, Value) {
    let source = lab.path("source");
    checkpoint::hugging_face(&source, 1, 1);
    let alpha = lab.founder("alpha");
    alpha.add(&source, MODEL);
    let inspected = alpha.ok(&["inspect", MODEL]);
    (alpha, inspected)
}

/// Every request of the data plane for things that are really there.
fn data_requests(inspected: &Value) -> Vec<(&'static str, Vec<u8>)> {
    let file = &inspected["files"][0];
    let layer = LayerId(hex(&string(&file["blake3"])));
    let manifest: ManifestDigest = string(&inspected["digest"]).parse().expect("a digest");
    let size = number(&file["size"]);
    vec![
        ("get of a group", Request::get(layer, &GroupSet::from(0..1), size).encode()),
        ("get of all", Request::get(layer, &all_groups(size), size).encode()),
        ("observe", Request::Observe { layer }.encode()),
        ("link", Request::Link { manifest }.encode()),
        ("tree", Request::Tree { layer }.encode()),
        ("rubbish", vec![0xff; 300]),
        ("nothing", vec![]),
    ]
}

fn hex(text: &str) -> [u8; 32] {
    let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).expect("hex");
    bytes.try_into().expect("32 bytes")
}

#[test]
fn the_data_plane_gives_strangers_nothing() {
    let lab = Lab::new();
    let (alpha, inspected) = with_model(&lab);
    let (host, at) = (key(&alpha), alpha.data());
    let keypair = Keypair::generate_ed25519();
    runtime().block_on(async {
        let stranger = Client::new(keypair.clone());
        for (what, request) in data_requests(&inspected) {
            let answer = stranger.ask(&host, at, ALPN_DATA, &request).await;
            assert_eq!(answer.bytes, b"", "{what}");
            assert_eq!(answer.closed, Some(u64::from(close::NOT_A_MEMBER)), "{what}");
            // Other names get no handshake.
            for alpn in [&b"/iroh-bytes/4"[..], b"h3", b"libp2p", b"weighlock/data/9"] {
                let answer = stranger.ask(&host, at, alpn, &request).await;
                assert_eq!(
                    (answer.bytes.as_slice(), answer.silence),
                    (&b""[..], false),
                    "{what} by {alpn:?}"
                );
            }
        }
        // Nor does it say a word of its own accord.
        let connection = stranger.connect(&host, at, ALPN_DATA).await.expect("a handshake");
        assert!(connection.accept_uni().await.is_err());
        let reason = connection.closed().await;
        assert_eq!(weighlock_tests::data::code(&reason), Some(u64::from(close::NOT_A_MEMBER)));
    });
    let peers = alpha.ok(&["peers"]);
    assert_eq!(peers["items"].as_array().map(Vec::len), Some(0), "{peers}");

    // The very same requests are answered once it is admitted, so the silence above shows something.
    let name = key_id(&keypair).to_string();
    alpha.ok(&["member", "admit", &name, "--name", "former-stranger"]);
    let live = runtime();
    let connection = live.block_on(async {
        let member = Client::new(keypair.clone());
        let requests = data_requests(&inspected);
        let (_, get) = &requests[1];
        let answer = member.ask(&host, at, ALPN_DATA, get).await;
        let size = number(&inspected["files"][0]["size"]);
        assert!(answer.bytes.len() as u64 >= size + 8, "{answer:?}");
        assert_eq!(answer.bytes[..8], size.to_le_bytes());
        member.connect(&host, at, ALPN_DATA).await.expect("a handshake")
    });
    // And no longer once it is revoked: the connection that stands is closed as well.
    alpha.ok(&["member", "revoke", &name]);
    live.block_on(async {
        let reason = tokio::time::timeout(weighlock_tests::PATIENCE, connection.closed()).await;
        let reason = reason.expect("the connection of a former member is closed");
        assert_eq!(weighlock_tests::data::code(&reason), Some(u64::from(close::NOT_A_MEMBER)));
        let former = Client::new(keypair);
        for (what, request) in data_requests(&inspected) {
            let answer = former.ask(&host, at, ALPN_DATA, &request).await;
            assert_eq!(answer.bytes, b"", "{what}");
            assert_eq!(answer.closed, Some(u64::from(close::NOT_A_MEMBER)), "{what}");
        }
    });
}

#[test]
fn the_control_plane_gives_strangers_nothing() {
    let lab = Lab::new();
    let (alpha, inspected) = with_model(&lab);
    let (host, at, cluster) = (key(&alpha), alpha.control(), cluster(&alpha));
    let manifest: ManifestDigest = string(&inspected["digest"]).parse().expect("a digest");
    let ids = vec![StatementId(cluster.0)];
    let requests = [
        ("hello", Ask::Hello(Hello::default()).encode()),
        ("manifest", Ask::Manifest { digest: manifest }.encode()),
        ("statements", Ask::Statements { ids: ids.clone() }.encode()),
        ("ids", Ask::Ids { buckets: (0..=255).collect(), after: None }.encode()),
        ("push", Ask::Push { statements: vec![b"{}".to_vec().into()] }.encode()),
        ("rubbish", vec![0xff; 100]),
    ];
    let before = http::metrics(alpha.http())["weighlock_strangers_refused_total"];
    let keypair = Keypair::generate_ed25519();
    let mut tries = 0.0;
    for transport in [Transport::Quic, Transport::Tcp] {
        for (what, request) in &requests {
            let (outcome, gossip) = runtime().block_on(async {
                let mut stranger = Raw::new(keypair.clone(), cluster);
                let outcome = stranger.ask(&host, transport, at, request.clone()).await;
                (outcome, stranger.gossip)
            });
            assert_eq!(outcome, Outcome::Closed, "{what} over {transport:?}");
            assert!(gossip.is_empty(), "{what} over {transport:?}");
            tries += 1.0;
        }
    }
    until("the refusals are counted", || {
        (http::metrics(alpha.http())["weighlock_strangers_refused_total"] >= before + tries).then_some(())
    });
    assert_eq!(alpha.ok(&["status"])["peers"], 0);

    // Admitted, the same peer is answered on both transports.
    let name = key_id(&keypair).to_string();
    alpha.ok(&["member", "admit", &name]);
    for transport in [Transport::Quic, Transport::Tcp] {
        let request = Ask::Statements { ids: ids.clone() }.encode();
        let outcome = runtime()
            .block_on(async { Raw::new(keypair.clone(), cluster).ask(&host, transport, at, request).await });
        let Outcome::Answer(bytes) = outcome else {
            panic!("{transport:?}: {outcome:?}");
        };
        assert!(bytes.len() > 100, "the root statement: {bytes:?}");
    }
}

#[test]
fn the_join_door_lets_in_only_with_a_ticket_of_ones_own() {
    let lab = Lab::new();
    let (alpha, inspected) = with_model(&lab);
    let other = lab.founder("other");
    let (host, at) = (key(&alpha), alpha.data());
    let ours: Ticket = alpha.ticket(&[]).parse().expect("a ticket");
    let theirs: Ticket = other.ticket(&[]).parse().expect("a ticket");
    let keypair = Keypair::generate_ed25519();
    let (me, someone) = (key_id(&keypair), key_id(&Keypair::generate_ed25519()));
    let admitted = |ticket: &Ticket, host: KeyId| {
        let now = UnixTime(ticket.invite().expires.0 - 1);
        ticket.admit(host, "stranger", Labels::new(), now, now.plus(60)).expect("an admission")
    };
    let request = |ticket: &Ticket, admission: Option<Envelope>| {
        let mut statements = ticket.roots().to_vec();
        statements.push(ticket.invite_envelope().clone());
        statements.extend(admission);
        JoinRequest { statements }.encode()
    };
    let mut forged = vec![
        ("rubbish", vec![0xff; 500]),
        ("nothing", vec![]),
        ("an empty request", JoinRequest { statements: vec![] }.encode()),
        ("an invite without an admission", request(&ours, None)),
        ("an admission of somebody else", request(&ours, Some(admitted(&ours, someone)))),
        ("a ticket of another cluster", request(&theirs, Some(admitted(&theirs, me)))),
        ("an admission by another cluster's ticket", request(&ours, Some(admitted(&theirs, me)))),
    ];
    forged.extend(data_requests(&inspected));
    runtime().block_on(async {
        for (what, request) in forged {
            let stranger = Client::new(keypair.clone());
            let answer = stranger.ask(&host, at, ALPN_JOIN, &request).await;
            assert!(!answer.silence, "{what}");
            if answer.bytes.is_empty() {
                continue;
            }
            match JoinAnswer::parse(&answer.bytes) {
                Ok(JoinAnswer::Refused { reason }) => {
                    assert!(!reason.contains("acme") && !reason.contains("alpha"), "{what}: {reason}");
                }
                other => panic!("{what}: {other:?}"),
            }
        }
    });
    assert_eq!(alpha.ok(&["status"])["members"], 1, "nobody was let in");

    // With a ticket it is welcome.
    let mine = {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
        let now = UnixTime(since.as_secs());
        ours.admit(me, "stranger", Labels::new(), now, now.plus(7200)).expect("an admission")
    };
    let answer = runtime().block_on(async {
        Client::new(keypair).ask(&host, at, ALPN_JOIN, &request(&ours, Some(mine))).await
    });
    let answer = JoinAnswer::parse(&answer.bytes);
    assert!(matches!(answer, Ok(JoinAnswer::Welcome { .. })), "{answer:?}");
    assert_eq!(alpha.ok(&["status"])["members"], 2);
}

#[test]
fn a_used_ticket_does_not_put_out_whom_it_let_in() {
    let lab = Lab::new();
    let alpha = lab.founder("alpha");
    let text = alpha.ticket(&["--uses", "1", "--expires", "1h"]);
    let ticket: Ticket = text.parse().expect("a ticket");
    let issued = UnixTime(ticket.invite().expires.0 - 3600);
    // So that an admission dated back to the invite is earlier than that of the first user.
    until("a second has passed", || {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        (since.expect("a clock after 1970").as_secs() > issued.0 + 1).then_some(())
    });
    let first =
        lab.host("first").command().args(["join", "--name", "first"]).env("WEIGHLOCK_TICKET", &text).status();
    assert!(first.expect("the program runs").success());
    let members = || {
        let all = alpha.ok(&["member", "list"]);
        let names = all["items"].as_array().expect("a list").iter().map(|row| string(&row["name"]));
        names.collect::<std::collections::BTreeSet<_>>()
    };
    let before = members();
    assert!(before.contains("first"), "{before:?}");

    let keypair = Keypair::generate_ed25519();
    let mut statements = ticket.roots().to_vec();
    statements.push(ticket.invite_envelope().clone());
    let late = ticket.admit(key_id(&keypair), "late", Labels::new(), issued, issued.plus(86_400));
    statements.push(late.expect("an admission"));
    let request = JoinRequest { statements }.encode();
    let answer = runtime()
        .block_on(async { Client::new(keypair).ask(&key(&alpha), alpha.data(), ALPN_JOIN, &request).await });
    let answer = JoinAnswer::parse(&answer.bytes);
    assert!(matches!(answer, Ok(JoinAnswer::Refused { .. })), "the ticket was good for one host: {answer:?}");
    assert_eq!(members(), before, "the first host is a member still, and nobody else");
}

#[test]
fn a_host_that_was_put_out_is_told_who_lets_it_in_again() {
    let lab = Lab::new();
    let alpha = lab.founder("alpha");
    let mut beta = lab.joined("beta", &alpha);
    let key = beta.key();
    alpha.ok(&["member", "revoke", "beta", "--reason", "lost"]);
    until("beta hears of it", || beta.ok(&["status"])["revoked"].as_str().map(drop));
    let ticket = lab.path("again.ticket");
    std::fs::write(&ticket, alpha.ticket(&[])).expect("written");
    let join = ["join", "--file", &ticket.to_string_lossy(), "--name", "beta"];
    for runs in [true, false] {
        // No ticket undoes what an admin did by name; to say that it is a member already would be wrong, too.
        let refused = beta.run(&join);
        assert_eq!(refused.code, Some(5), "{}", refused.stderr);
        assert!(refused.stderr.contains(&format!("member admit {key}")), "{runs}: {}", refused.stderr);
        if runs {
            beta.term();
        }
    }
    // Nor does it keep the daemon from starting where it is set for good, as in a container.
    let text = std::fs::read_to_string(&ticket).expect("read");
    beta.environment.push(("WEIGHLOCK_TICKET".into(), text));
    beta.start();
    // Times are in seconds, and an admission of the same one would be no later than the revocation.
    std::thread::sleep(std::time::Duration::from_millis(1_100));
    alpha.ok(&["member", "admit", &key, "--name", "beta"]);
    until("alpha is connected to beta", || alpha.peer(&beta).map(drop));
    until("beta knows", || (beta.ok(&["status"])["member"] == true).then_some(()));
    beta.term();
    let joined = beta.ok(&join);
    assert_eq!(joined["new"], false, "it is a member already");
    beta.start();
}
