//! Gives the kernel the datagrams of one burst together: quinn stops at ten, whatever their size.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::future::poll_fn;
use std::hash::BuildHasher;
use std::io::{self, ErrorKind, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// Bytes of one burst: what fits into one message with the headers of IPv4 or IPv6.
const BURST_BYTES_MAX: usize = 65_000;
/// Datagrams of one burst; Linux before 6.9 takes no more (`UDP_MAX_SEGMENTS`).
const BURST_SEGMENTS_MAX: usize = 64;
/// Datagrams of a transmit of quinn that has more to send (its `MAX_TRANSMIT_SEGMENTS`). Others end a burst.
const FULL_SEGMENTS: usize = 10;
/// Bursts that are gathered at once, each for some of the destinations, so that cores do not wait for each other.
const LANES: usize = 8;
/// How often a burst that grows lets other tasks run before it is sent: the connection whose burst it is sends twenty
/// datagrams, then lets others run.
const TURNS: usize = 2;

/// A socket on which full transmits wait for those that follow at once. Datagrams for one destination stay in order.
pub(super) struct Bursts {
    socket: Arc<dyn AsyncUdpSocket>,
    lanes: [Lane; LANES],
    hasher: RandomState,
}

#[derive(Default)]
struct Lane {
    burst: Mutex<Burst>,
    begun: Notify,
}

/// Datagrams that wait, all of one size.
#[derive(Default)]
struct Burst {
    to: Option<To>,
    bytes: Vec<u8>,
}

/// What datagrams that go together have in common.
#[derive(Clone, Copy, PartialEq, Eq)]
struct To {
    destination: SocketAddr,
    source: Option<IpAddr>,
    ecn: Option<EcnCodepoint>,
    segment_bytes: usize,
}

impl Bursts {
    /// Sends on `socket`. Nothing that waits is sent but by [`Bursts::run`] and by what follows it.
    pub(super) fn new(socket: Arc<dyn AsyncUdpSocket>) -> Arc<Self> {
        Arc::new(Self { socket, lanes: Default::default(), hasher: RandomState::new() })
    }

    /// Sends what nothing followed, until `stop`.
    pub(super) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let lanes = self.lanes.iter().map(|lane| self.run_lane(lane));
        tokio::select! {
            _ = futures::future::join_all(lanes) => {}
            () = stop.cancelled() => {}
        }
    }

    async fn run_lane(&self, lane: &Lane) {
        let mut poller = self.socket.clone().create_io_poller();
        loop {
            lane.begun.notified().await;
            for _ in 0..TURNS {
                tokio::task::yield_now().await;
            }
            while self.send(&mut lane.burst()).is_err() {
                if poll_fn(|cx| poller.as_mut().poll_writable(cx)).await.is_err() {
                    return;
                }
            }
        }
    }

    /// Sends what waits. Without effect if nothing does.
    ///
    /// # Errors
    /// `WouldBlock`: the kernel does not take it now, and it goes on waiting. Other failures lose the burst, as a network
    /// would, and concern whoever sends next as little.
    fn send(&self, burst: &mut Burst) -> io::Result<()> {
        let Some(to) = burst.to else { return Ok(()) };
        let transmit = Transmit {
            destination: to.destination,
            ecn: to.ecn,
            contents: &burst.bytes,
            segment_size: Some(to.segment_bytes),
            src_ip: to.source,
        };
        match self.socket.try_send(&transmit) {
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Err(e),
            Err(e) => debug!(error = %e, "a burst is lost"),
            Ok(()) => {}
        }
        burst.to = None;
        burst.bytes.clear();
        Ok(())
    }
}

impl Lane {
    fn burst(&self) -> MutexGuard<'_, Burst> {
        self.burst.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsyncUdpSocket for Bursts {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.socket.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let lane = &self.lanes[self.hasher.hash_one(transmit.destination) as usize % LANES];
        let mut burst = lane.burst();
        let Some(segment_bytes) = transmit.segment_size else {
            self.send(&mut burst)?;
            drop(burst);
            return self.socket.try_send(transmit);
        };
        let len = transmit.contents.len();
        let segments_max = self.socket.max_transmit_segments().min(BURST_SEGMENTS_MAX);
        let room = BURST_BYTES_MAX.min(segments_max * segment_bytes);
        let to = To {
            destination: transmit.destination,
            source: transmit.src_ip,
            ecn: transmit.ecn,
            segment_bytes,
        };
        if burst.to != Some(to) || burst.bytes.len() + len > room {
            self.send(&mut burst)?;
        }
        let is_full = len.is_multiple_of(segment_bytes) && len / segment_bytes >= FULL_SEGMENTS;
        let waits = is_full && burst.bytes.len() + 2 * len <= room;
        if !waits && burst.to.is_none() {
            drop(burst);
            return self.socket.try_send(transmit);
        }
        let before = burst.bytes.len();
        burst.bytes.extend_from_slice(transmit.contents);
        if waits {
            if burst.to.replace(to).is_none() {
                lane.begun.notify_one();
            }
            return Ok(());
        }
        let sent = self.send(&mut burst);
        if burst.to.is_some() {
            // quinn comes again with this one.
            burst.bytes.truncate(before);
        }
        sent
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.socket.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}

impl fmt::Debug for Bursts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bursts").field("socket", &self.socket).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use proptest::prelude::*;

    use super::*;

    /// Notes what it sends; every so often it takes nothing.
    #[derive(Debug, Default)]
    struct Wire {
        sent: Mutex<Vec<(SocketAddr, Vec<Vec<u8>>)>>,
        asked: AtomicUsize,
        /// One in so many is refused; none with 0.
        refused_one_in: usize,
    }

    #[derive(Debug)]
    struct Ready;

    impl UdpPoller for Ready {
        fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncUdpSocket for Wire {
        fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
            Box::pin(Ready)
        }

        fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
            let asked = self.asked.fetch_add(1, Ordering::Relaxed);
            if self.refused_one_in > 0 && asked.is_multiple_of(self.refused_one_in) {
                return Err(ErrorKind::WouldBlock.into());
            }
            let segment_bytes = transmit.segment_size.unwrap_or(transmit.contents.len());
            let datagrams: Vec<Vec<u8>> =
                transmit.contents.chunks(segment_bytes).map(<[u8]>::to_vec).collect();
            assert!(datagrams.len() <= BURST_SEGMENTS_MAX && transmit.contents.len() <= BURST_BYTES_MAX);
            self.sent.lock().expect("lock").push((transmit.destination, datagrams));
            Ok(())
        }

        fn poll_recv(
            &self,
            _: &mut Context<'_>,
            _: &mut [IoSliceMut<'_>],
            _: &mut [RecvMeta],
        ) -> Poll<io::Result<usize>> {
            Poll::Pending
        }

        fn local_addr(&self) -> io::Result<SocketAddr> {
            Err(ErrorKind::Unsupported.into())
        }

        fn max_transmit_segments(&self) -> usize {
            64
        }
    }

    fn destination(n: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, n], 4433))
    }

    /// What quinn hands over: datagrams of `segment_bytes`, the last of which may be shorter.
    fn hand_over(bursts: &Bursts, to: SocketAddr, segment_bytes: usize, datagrams: &[Vec<u8>]) {
        let contents = datagrams.concat();
        let segment_size = (datagrams.len() > 1).then_some(segment_bytes);
        let transmit =
            Transmit { destination: to, ecn: None, contents: &contents, segment_size, src_ip: None };
        while bursts.try_send(&transmit).is_err() {}
    }

    async fn settled(wire: &Arc<Wire>, count: usize) -> Vec<(SocketAddr, Vec<Vec<u8>>)> {
        loop {
            let sent = wire.sent.lock().expect("lock").clone();
            if sent.iter().map(|(_, datagrams)| datagrams.len()).sum::<usize>() >= count {
                return sent;
            }
            tokio::task::yield_now().await;
        }
    }

    fn numbered(from: usize, count: usize, bytes: usize) -> Vec<Vec<u8>> {
        (from..from + count).map(|n| n.to_le_bytes().into_iter().cycle().take(bytes).collect()).collect()
    }

    #[tokio::test]
    async fn full_transmits_go_together_and_the_last_of_them_by_itself() {
        let wire = Arc::new(Wire::default());
        let bursts = Bursts::new(wire.clone());
        let stop = CancellationToken::new();
        tokio::spawn(bursts.clone().run(stop.clone()));
        for at in 0..5 {
            hand_over(&bursts, destination(1), 1452, &numbered(at * 10, 10, 1452));
        }
        let sent = settled(&wire, 50).await;
        assert_eq!(sent.iter().map(|(_, datagrams)| datagrams.len()).collect::<Vec<_>>(), [40, 10]);
        // Nothing waits for more where quinn has no more, or where no more would fit.
        hand_over(&bursts, destination(1), 1452, &numbered(50, 9, 1452));
        hand_over(&bursts, destination(1), 6500, &numbered(59, 10, 6500));
        assert_eq!(wire.sent.lock().expect("lock").len(), 4);
        stop.cancel();
    }

    proptest! {
        #[test]
        fn datagrams_for_one_destination_stay_whole_and_in_order(
            handed in proptest::collection::vec((0u8..3, 0usize..3, 1usize..11, any::<bool>()), 1..60),
            refused_one_in in prop_oneof![Just(0usize), 2usize..6],
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
            runtime.block_on(async {
                let wire = Arc::new(Wire { refused_one_in, ..Wire::default() });
                let bursts = Bursts::new(wire.clone());
                let stop = CancellationToken::new();
                tokio::spawn(bursts.clone().run(stop.clone()));
                let mut expected: Vec<(SocketAddr, Vec<u8>)> = Vec::new();
                for (to, size, count, short) in handed {
                    let segment_bytes = [1200, 1452, 6500][size];
                    let mut datagrams = numbered(expected.len(), count, segment_bytes);
                    if short {
                        datagrams.last_mut().expect("one").truncate(700);
                    }
                    hand_over(&bursts, destination(to), segment_bytes, &datagrams);
                    expected.extend(datagrams.into_iter().map(|datagram| (destination(to), datagram)));
                    if count % 4 == 0 {
                        tokio::task::yield_now().await;
                    }
                }
                let sent = settled(&wire, expected.len()).await;
                let sent: Vec<_> = sent
                    .into_iter()
                    .flat_map(|(to, datagrams)| datagrams.into_iter().map(move |datagram| (to, datagram)))
                    .collect();
                for to in (0..3).map(destination) {
                    let of = |all: &[(SocketAddr, Vec<u8>)]| -> Vec<Vec<u8>> {
                        all.iter().filter(|(at, _)| *at == to).map(|(_, datagram)| datagram.clone()).collect()
                    };
                    assert!(of(&sent) == of(&expected), "{to}");
                }
                stop.cancel();
            });
        }
    }
}
