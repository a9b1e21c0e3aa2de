//! Two thousand datagrams damaged on their way: everything arrives, nothing wrong is stored, and nobody is called a liar.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::net::UdpSocket;
use weighlock::net::data::{DataConfig, JoinDoor, get};
use weighlock_protocol::wire::bao::{GroupSet, all_groups};

use crate::plane::{Disk, Honest, Host, LOOPBACK, acquaint, options, soon};

/// Datagrams to damage.
const FLIPS: usize = 2_000;
/// One of so many datagrams is damaged.
const ONE_OF: u32 = 12;
/// Groups asked for at once.
const RUN: u64 = 64;

/// A wire between one client and `server` that flips bits.
struct Wire {
    address: SocketAddr,
    flipped: Arc<AtomicUsize>,
}

impl Wire {
    async fn to(server: SocketAddr) -> Self {
        let near = Arc::new(UdpSocket::bind(LOOPBACK).await.expect("a port"));
        let far = Arc::new(UdpSocket::bind(LOOPBACK).await.expect("a port"));
        far.connect(server).await.expect("loopback");
        let address = near.local_addr().expect("bound");
        let flipped = Arc::<AtomicUsize>::default();
        let (back, from, counted) = (near.clone(), far.clone(), flipped.clone());
        tokio::spawn(async move {
            let mut rng = ChaCha8Rng::seed_from_u64(0xf11b);
            let (mut out, mut home) = (vec![0; 65_536], vec![0; 65_536]);
            let mut client = None;
            loop {
                tokio::select! {
                    got = near.recv_from(&mut out) => {
                        let Ok((len, address)) = got else { continue };
                        client = Some(address);
                        damage(&mut out[..len], &mut rng, &counted);
                        let _ = far.send(&out[..len]).await;
                    }
                    got = from.recv(&mut home) => {
                        let (Ok(len), Some(client)) = (got, client) else { continue };
                        damage(&mut home[..len], &mut rng, &counted);
                        let _ = back.send_to(&home[..len], client).await;
                    }
                }
            }
        });
        Self { address, flipped }
    }
}

fn damage(datagram: &mut [u8], rng: &mut ChaCha8Rng, counted: &AtomicUsize) {
    if rng.random_ratio(1, ONE_OF) && !datagram.is_empty() {
        let at = rng.random_range(0..datagram.len());
        datagram[at] ^= 1 << rng.random_range(0..8);
        counted.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_thousand_damaged_datagrams_store_nothing_wrong() {
    let config = || DataConfig { packet_bytes_max: 1200, ..DataConfig::default() };
    let silent = || -> JoinDoor { Arc::new(|_, request| Box::pin(async move { request })) };
    let provider = Host::with(Disk::new(), config(), silent());
    let asker = Host::with(Disk::new(), config(), silent());
    acquaint(&[&provider, &asker]);
    let blob = Honest::new((12 << 20) + 7, 50);
    provider.disk.import(&[&blob]);
    let wire = Wire::to(provider.addr()).await;
    let connection =
        asker.plane.connect(provider.key, &[wire.address]).await.expect("damage delays a handshake");
    let groups = all_groups(blob.size()).boundaries()[1];
    while wire.flipped.load(Ordering::Relaxed) < FLIPS {
        let disk = Disk::new();
        let partial = disk.partial(&blob);
        for start in (0..groups).step_by(RUN as usize) {
            let wanted = GroupSet::from(start..(start + RUN).min(groups));
            let got =
                soon("the get ends", get(&connection, partial.clone(), wanted.clone(), options())).await;
            got.end.expect("damage on the way is no lie, and costs only time");
            assert_eq!(got.stored, wanted);
        }
        assert_eq!(disk.check(&blob), all_groups(blob.size()));
        disk.seal(&blob, &partial);
    }
}
