//! Abuse from the network: floods of strangers, and members that open everything and finish nothing.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use libp2p::identity::Keypair;
use quinn::{Connection, RecvStream, SendStream};
use tokio::runtime::Runtime;
use weighlock_protocol::wire::bao::all_groups;
use weighlock_protocol::wire::control::Request as Ask;
use weighlock_protocol::wire::data::{ALPN_DATA, ALPN_JOIN, Request, close, reset};
use weighlock_protocol::{ClusterId, KeyId, LayerId, ManifestDigest};
use weighlock_tests::control::{Outcome, Raw, Transport, key_id};
use weighlock_tests::data::{Client, code};
use weighlock_tests::host::{number, string};
use weighlock_tests::{Host, Lab, PATIENCE, checkpoint, http, until};

const MODEL: &str = "acme/model:1.0.0";
const MIB: u64 = 1 << 20;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

fn key(host: &Host) -> KeyId {
    host.key().parse().expect("a host key")
}

fn founder_with_model(lab: &Lab) -> Host {
    let source = lab.path("source");
    checkpoint::single(&source.join("model.safetensors"), 3, 24 * MIB);
    let alpha = lab.founder("alpha");
    alpha.add(&source, MODEL);
    alpha
}

/// A new host gets in, finds the model and fetches it.
fn honest_host_is_served(lab: &Lab, name: &str, alpha: &Host) -> Host {
    let mut host = lab.host(name);
    let ticket = lab.path(&format!("{name}.ticket"));
    std::fs::write(&ticket, alpha.ticket(&[])).expect("the ticket is written");
    host.ok(&["join", "--file", &ticket.to_string_lossy(), "--name", name]);
    // Whom a busy member did not answer in time asks again by itself.
    host.start();
    host.hears_of(MODEL);
    let opened = host.loader().open(MODEL).expect("opened");
    let expected = checkpoint::digests(&lab.path("source"));
    for (path, file) in opened.files {
        assert_eq!(checkpoint::sha256(file), expected[&path], "{path}");
    }
    host
}

/// An admitted identity of the test's own.
fn member(alpha: &Host, name: &str) -> Keypair {
    let keypair = Keypair::generate_ed25519();
    alpha.ok(&["member", "admit", &key_id(&keypair).to_string(), "--name", name]);
    keypair
}

fn grown(alpha: &Host, before: u64) -> u64 {
    alpha.process().anonymous_bytes().saturating_sub(before) / MIB
}

/// Takes places at the join door as fast as it can until it is told to stop: silent, with half a request, with rubbish
/// whose answer it does not read.
async fn flood_the_join_door(host: KeyId, at: SocketAddr, which: usize, stop: Arc<AtomicBool>) -> usize {
    let mut made = 0;
    let client = Client::new(Keypair::generate_ed25519());
    let mut open: Vec<(Connection, Option<(SendStream, RecvStream)>)> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        open.retain(|(connection, _)| connection.close_reason().is_none());
        if open.len() >= 20 {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        }
        let Ok(connection) = client.connect(&host, at, ALPN_JOIN).await else { continue };
        made += 1;
        let streams = match which % 3 {
            0 => None,
            kind => match connection.open_bi().await {
                Ok((mut send, recv)) => {
                    let _ = send.write_all(&[0xff; 1000]).await;
                    if kind == 2 {
                        let _ = send.finish();
                    }
                    Some((send, recv))
                }
                Err(_) => None,
            },
        };
        open.push((connection, streams));
    }
    made
}

#[test]
fn a_flood_at_the_join_door_keeps_nobody_out() {
    let lab = Lab::new();
    let alpha = founder_with_model(&lab);
    let beta = honest_host_is_served(&lab, "beta", &alpha);
    let (host, at, before) = (key(&alpha), alpha.data(), alpha.process().anonymous_bytes());
    let runtime = runtime();
    let stop = Arc::new(AtomicBool::new(false));
    let floods: Vec<_> =
        (0..9).map(|i| runtime.spawn(flood_the_join_door(host, at, i, stop.clone()))).collect();
    std::thread::sleep(Duration::from_secs(1));
    // From the same address as the flood, and with a model to fetch: by ticket, at once or when it asks again.
    let gamma = honest_host_is_served(&lab, "gamma", &alpha);
    // Members do not notice.
    alpha.add(&lab.path("source"), "acme/again:1.0.0");
    beta.hears_of("acme/again:1.0.0");
    gamma.hears_of("acme/again:1.0.0");
    let members = number(&alpha.ok(&["status"])["members"]);
    assert_eq!(members, 3, "no stranger got in");
    let during = grown(&alpha, before);
    assert!(during < 64, "{during} MiB");
    stop.store(true, Ordering::Relaxed);
    let made: usize = runtime.block_on(async {
        let mut made = 0;
        for flood in floods {
            made += flood.await.expect("a flood");
        }
        made
    });
    assert!(made > 100, "that was no flood: {made}");
    assert_eq!(alpha.logged("panicked"), 0);
}

#[test]
fn silence_on_the_control_port_keeps_nobody_out() {
    let lab = Lab::new();
    let alpha = founder_with_model(&lab);
    let at = alpha.control();
    // From an address of its own: the whole of 127/8 is this machine.
    let dial = || {
        let socket =
            rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None)
                .expect("a socket");
        rustix::net::bind(&socket, &SocketAddr::from(([127, 0, 0, 2], 0)))
            .expect("an address of this machine");
        rustix::net::connect(&socket, &at).expect("the kernel takes it");
        TcpStream::from(socket)
    };
    let silent: Vec<TcpStream> = (0..400).map(|_| dial()).collect();
    honest_host_is_served(&lab, "beta", &alpha);
    let descriptors = alpha.process().descriptors();
    assert!(descriptors < 200, "{descriptors} descriptors for 400 who say nothing");
    drop(silent);
    assert_eq!(alpha.logged("panicked"), 0);
}

#[test]
fn a_member_that_opens_everything_and_finishes_nothing_harms_itself() {
    let lab = Lab::new();
    let alpha = founder_with_model(&lab);
    let inspected = alpha.ok(&["inspect", MODEL]);
    let layer = LayerId(
        data_encoding::HEXLOWER
            .decode(string(&inspected["files"][0]["blake3"]).as_bytes())
            .expect("hex")
            .try_into()
            .expect("32 bytes"),
    );
    let manifest: ManifestDigest = string(&inspected["digest"]).parse().expect("a digest");
    let size = number(&inspected["files"][0]["size"]);
    let requests = [
        vec![],
        vec![1],
        Request::Link { manifest }.encode(),
        Request::Observe { layer }.encode(),
        // Asked for and not read.
        Request::get(layer, &all_groups(size), size).encode(),
        Request::Tree { layer }.encode(),
        // Long, and without an end.
        vec![1; 900_000],
    ];
    let keypair = member(&alpha, "greedy");
    let (host, at, before) = (key(&alpha), alpha.data(), alpha.process().anonymous_bytes());
    let runtime = runtime();
    let (connections, mut streams, refused) = runtime.block_on(async {
        let client = Client::new(keypair);
        let (mut connections, mut streams, mut refused) = (Vec::new(), Vec::new(), 0);
        for _ in 0..20 {
            let connection = client.connect(&host, at, ALPN_DATA).await.expect("a handshake");
            // One too many is closed at once.
            if let Ok(reason) = tokio::time::timeout(Duration::from_millis(200), connection.closed()).await {
                assert_eq!(code(&reason), Some(u64::from(close::LIMIT)));
                refused += 1;
                continue;
            }
            for i in 0..150 {
                let open = tokio::time::timeout(Duration::from_millis(200), connection.open_bi());
                let Ok(Ok((mut send, recv))) = open.await else { break };
                let request = &requests[i % requests.len()];
                let write = tokio::time::timeout(Duration::from_millis(50), send.write_all(request));
                let finished = i % requests.len() >= 3 && i % requests.len() < 6;
                if write.await.is_ok() && finished {
                    let _ = send.finish();
                }
                streams.push((i % requests.len(), send, recv));
            }
            connections.push(connection);
        }
        (connections, streams, refused)
    });
    let open = connections.iter().filter(|open: &&Connection| open.close_reason().is_none()).count();
    assert!((1..=8).contains(&open) && refused > 0, "{open} connections of one member, {refused} refused");
    assert!(streams.len() > 500, "{} streams", streams.len());
    let during = grown(&alpha, before);
    assert!(during < 256, "{during} MiB");
    // A new host joins and fetches the very layer meanwhile.
    let beta = honest_host_is_served(&lab, "beta", &alpha);
    // Streams that ask for nothing end.
    runtime.block_on(async {
        let idle = streams.iter_mut().filter(|(kind, ..)| *kind < 2);
        for (_, _, recv) in idle.take(20) {
            let ended = tokio::time::timeout(PATIENCE, recv.read_to_end(10)).await;
            match ended.expect("it waits for a request for ever") {
                Err(quinn::ReadToEndError::Read(quinn::ReadError::Reset(code))) => {
                    assert_eq!(code.into_inner(), u64::from(reset::LIMIT));
                }
                other => panic!("{other:?}"),
            }
        }
    });
    drop((streams, connections));
    until("its connections are gone", || {
        let open = http::metrics(alpha.http())["weighlock_data_connections"];
        (open <= 2.0).then_some(())
    });
    // Reads that nobody takes end after 30 s, and with them their buffers; the allocator gives back what it keeps.
    let mut after = 0;
    let freed = weighlock_tests::wait::found_within(PATIENCE, || {
        after = grown(&alpha, before);
        (after < 64).then_some(())
    });
    assert!(freed.is_some(), "{after} MiB stay");
    alpha.add(&lab.path("source"), "acme/again:1.0.0");
    beta.hears_of("acme/again:1.0.0");
    assert_eq!(alpha.logged("panicked"), 0, "{}", alpha.log());
}

#[test]
fn lengths_that_lie_cost_the_liar_its_connection() {
    let lab = Lab::new();
    let alpha = founder_with_model(&lab);
    let manifest: ManifestDigest =
        string(&alpha.ok(&["inspect", MODEL])["digest"]).parse().expect("a digest");
    let cluster: ClusterId = alpha.cluster().parse().expect("a cluster id");
    let (host, before) = (key(&alpha), alpha.process().anonymous_bytes());
    let runtime = runtime();
    // Frames on a link.
    for (i, length) in [u32::MAX, 1 << 31, (1 << 20) + 1].into_iter().enumerate() {
        let client = runtime.block_on(async { Client::new(member(&alpha, &format!("liar-{i}"))) });
        runtime.block_on(async {
            let connection = client.connect(&host, alpha.data(), ALPN_DATA).await.expect("a handshake");
            let (mut send, mut recv) = connection.open_bi().await.expect("a stream");
            send.write_all(&Request::Link { manifest }.encode()).await.expect("sent");
            send.write_all(&length.to_be_bytes()).await.expect("sent");
            let ended = tokio::time::timeout(PATIENCE, async {
                let mut chunk = vec![0; 1 << 16];
                while let Ok(Some(_)) = recv.read(&mut chunk).await {}
            });
            ended.await.expect("the link ends");
        });
    }
    // The greeting.
    runtime.block_on(async {
        let client = Client::new(member(&alpha, "rude"));
        let connection = client.connect(&host, alpha.data(), ALPN_DATA).await.expect("a handshake");
        let mut hello = connection.open_uni().await.expect("a stream");
        hello.write_all(&[0xff, 0xff, 1]).await.expect("sent");
        let reason = tokio::time::timeout(PATIENCE, connection.closed()).await.expect("closed");
        assert_eq!(code(&reason), Some(u64::from(close::PROTOCOL)));
    });
    // Requests of the control plane: a length of their own comes before them.
    let liar = member(&alpha, "control-liar");
    for transport in [Transport::Quic, Transport::Tcp] {
        let outcome = runtime.block_on(async {
            let lies = vec![0xff; 2 << 20];
            Raw::new(liar.clone(), cluster).ask(&host, transport, alpha.control(), lies).await
        });
        assert!(!matches!(outcome, Outcome::Silence), "{outcome:?}");
    }
    let after = grown(&alpha, before);
    assert!(after < 48, "{after} MiB");
    honest_host_is_served(&lab, "beta", &alpha);
    let polite = member(&alpha, "polite");
    let answer = runtime.block_on(async {
        let request = Ask::Statements { ids: Vec::new() }.encode();
        Raw::new(polite, cluster).ask(&host, Transport::Tcp, alpha.control(), request).await
    });
    assert!(matches!(answer, Outcome::Answer(_)), "{answer:?}");
    assert_eq!(alpha.logged("panicked"), 0);
}
