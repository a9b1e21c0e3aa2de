//! Fetching one layer from several providers by the scheduler, with losses in the middle.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use quinn::Connection;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use weighlock::net::data::{Declared, GetError, GetOptions, Got, get, observe};
use weighlock_cache::PartialLayer;
use weighlock_protocol::swarm::{
    Action, Event, Fault, FetchConfig, Input, LayerWant, Poll, SimpleFetch, SlotId,
};
use weighlock_protocol::wire::bao::{GROUP_BYTES, GroupSet, all_groups, bytes_in};
use weighlock_protocol::wire::data::ObserveItem;
use weighlock_protocol::{KeyId, Time};

use crate::plane::{Disk, Honest, Host, acquaint, options, soon};

/// A fetch of one layer from the hosts that it is connected to.
struct Fetch<'a> {
    blob: &'a Honest,
    partial: Arc<PartialLayer>,
    options: GetOptions,
    peers: BTreeMap<KeyId, Connection>,
    scheduler: SimpleFetch,
    started: Instant,
    /// Gets answered in full, by provider.
    answered: BTreeMap<KeyId, u32>,
    faults: Vec<(KeyId, Fault)>,
}

impl<'a> Fetch<'a> {
    async fn new(to: &Host, blob: &'a Honest, from: &[&Host]) -> Self {
        let partial = to.disk.partial(blob);
        let want = LayerWant { layer: blob.layer, size: blob.size(), missing: partial.missing() };
        let config = FetchConfig { slots_per_peer_max: 2, head_bytes_max: 0, ..FetchConfig::default() };
        let mut peers = BTreeMap::new();
        for host in from {
            peers.insert(host.key, to.dial(host).await);
        }
        Self {
            blob,
            partial,
            options: options(),
            peers,
            scheduler: SimpleFetch::new(config, 3, vec![want]),
            started: Instant::now(),
            answered: BTreeMap::new(),
            faults: Vec::new(),
        }
    }

    fn handle(&mut self, input: Input) {
        let now = Time(u64::try_from(self.started.elapsed().as_nanos()).expect("centuries"));
        self.scheduler.handle(now, input);
    }

    /// Hears what each peer declares first.
    async fn hear(&mut self) {
        let peers: Vec<_> = self.peers.iter().map(|(key, connection)| (*key, connection.clone())).collect();
        for (peer, connection) in peers {
            let mut declared: Declared<ObserveItem> =
                observe(&connection, self.blob.layer).await.expect("open");
            let item = soon("an item", declared.next()).await.expect("valid").expect("one");
            let have = item.groups(self.blob.size());
            self.handle(Input::Declared { peer, layer: self.blob.layer, have, connections: 1 });
        }
    }

    /// Runs until the layer is complete, or nobody has the rest. `after` is told of each answer, with their number.
    async fn run(&mut self, mut after: impl AsyncFnMut(usize)) -> bool {
        self.hear().await;
        let mut gets: JoinSet<(SlotId, KeyId, Got)> = JoinSet::new();
        let mut cancels: BTreeMap<SlotId, CancellationToken> = BTreeMap::new();
        let mut count = 0;
        loop {
            let mut stalled = false;
            let wake = loop {
                match self.scheduler.poll() {
                    Poll::Action(Action::Fetch { slot, from, range, .. }) => {
                        let cancel = CancellationToken::new();
                        cancels.insert(slot, cancel.clone());
                        let options = GetOptions { cancel, ..self.options.clone() };
                        let (connection, partial) = (self.peers[&from].clone(), self.partial.clone());
                        gets.spawn(
                            async move { (slot, from, get(&connection, partial, range, options).await) },
                        );
                    }
                    Poll::Action(Action::Cancel { slot }) => {
                        if let Some(cancel) = cancels.get(&slot) {
                            cancel.cancel();
                        }
                    }
                    Poll::Action(Action::Ban { peer, .. }) => panic!("{peer} is honest"),
                    Poll::Event(Event::Done) => return true,
                    Poll::Event(Event::Stalled { .. }) => stalled = true,
                    Poll::Event(_) => {}
                    Poll::Idle { wake } => break wake,
                }
            };
            if stalled && gets.is_empty() {
                return false;
            }
            let pause = async {
                match wake {
                    Some(at) => {
                        let at = self.started + std::time::Duration::from_nanos(at.0);
                        tokio::time::sleep_until(at.into()).await;
                    }
                    None => std::future::pending().await,
                }
            };
            let answer = tokio::select! {
                Some(answer) = gets.join_next() => answer.expect("no panic"),
                () = pause => {
                    self.handle(Input::Tick);
                    continue;
                }
            };
            let (slot, from, got) = answer;
            cancels.remove(&slot);
            match got.end {
                Ok(()) => {
                    *self.answered.entry(from).or_default() += 1;
                    self.handle(Input::Stored { slot, bytes: got.bytes });
                }
                Err(error) => {
                    let fault = match error {
                        GetError::Verify(_) | GetError::Protocol(_) => Fault::Verify,
                        GetError::Miss(_) => Fault::Miss,
                        GetError::Stalled(_) => Fault::Timeout,
                        GetError::Lost(_) => Fault::Lost,
                        GetError::Cancelled => Fault::Cancelled,
                        GetError::Local(e) => panic!("our disk: {e}"),
                    };
                    self.faults.push((from, fault));
                    if fault == Fault::Lost {
                        self.handle(Input::PeerGone { peer: from });
                    }
                    self.handle(Input::Failed { slot, fault, stored: got.stored });
                }
            }
            count += 1;
            after(count).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_comes_from_providers_that_hold_a_part_each() {
    let blob = Honest::new((16 << 20) + 11, 1);
    let groups = all_groups(blob.size()).boundaries()[1];
    let hosts: Vec<Host> = (0..4).map(|_| Host::start()).collect();
    let to = Host::start();
    acquaint(&[&to, &hosts[0], &hosts[1], &hosts[2], &hosts[3]]);
    // A quarter each, in pieces that do not meet the borders of anything.
    let mut kept = Vec::new();
    for (n, host) in (0..).zip(&hosts) {
        let mut part = GroupSet::empty();
        for start in (n * 57..groups).step_by(4 * 57) {
            part |= GroupSet::from(start..(start + 57).min(groups));
        }
        kept.push(host.disk.fill(&blob, &part));
    }
    let mut fetch = Fetch::new(&to, &blob, &hosts.iter().collect::<Vec<_>>()).await;
    assert!(soon("complete", fetch.run(async |_| {})).await);
    to.disk.seal(&blob, &fetch.partial);
    assert_eq!(fetch.options.progress.load(Ordering::SeqCst), blob.size(), "each byte once");
    for host in &hosts {
        let part = host.disk.check(&blob);
        let sent = host.shelf.sent_bytes();
        let payload = bytes_in(&part, blob.size());
        assert!(sent > payload && sent < payload + payload / 20, "{sent} bytes sent of {payload}");
    }
    for host in hosts.iter().chain([&to]) {
        host.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_lost_in_the_middle_is_made_up_for_by_others() {
    let blob = Honest::new(32 << 20, 2);
    let hosts: Vec<Host> = (0..3).map(|_| Host::start()).collect();
    let to = Host::start();
    acquaint(&[&to, &hosts[0], &hosts[1], &hosts[2]]);
    for host in &hosts {
        host.disk.import(&[&blob]);
    }
    let mut fetch = Fetch::new(&to, &blob, &hosts.iter().collect::<Vec<_>>()).await;
    let partial = fetch.partial.clone();
    let complete = fetch.run(async |count| {
        if count == 6 {
            assert!(!partial.complete());
            hosts[1].stop().await;
        }
    });
    assert!(soon("complete", complete).await);
    to.disk.seal(&blob, &fetch.partial);
    let lost: Vec<_> = fetch.faults.iter().filter(|(_, fault)| *fault == Fault::Lost).collect();
    assert!(!lost.is_empty() && lost.iter().all(|(peer, _)| *peer == hosts[1].key), "{:?}", fetch.faults);
    assert!(fetch.answered.contains_key(&hosts[0].key) && fetch.answered.contains_key(&hosts[2].key));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_goes_on_where_it_was_after_the_store_was_closed() {
    let blob = Honest::new((24 << 20) + 1, 3);
    let (from, first) = (Host::start(), Host::start());
    acquaint(&[&from, &first]);
    from.disk.import(&[&blob]);
    let mut fetch = Fetch::new(&first, &blob, &[&from]).await;
    let partial = fetch.partial.clone();
    let halfway = fetch.run(async |count| {
        if count == 12 {
            assert!(!partial.complete());
            from.stop().await;
        }
    });
    assert!(!soon("nobody is left", halfway).await);
    let before = partial.have();
    let before_bytes = bytes_in(&before, blob.size());
    assert!(before_bytes >= 8 << 20 && before_bytes < blob.size(), "{before_bytes} bytes");
    assert_eq!(fetch.options.progress.load(Ordering::SeqCst), before_bytes);
    drop((fetch, partial));
    first.stop().await;
    let Host { disk, shelf, plane, .. } = first;
    drop((shelf, plane));

    let disk = soon("the store closes", async {
        // Tasks of the plane let go of the store one after the other.
        tokio::task::yield_now().await;
        disk.reopened()
    })
    .await;
    let second = Host::with(disk, Default::default(), super::echo());
    let again = Host::start();
    acquaint(&[&again, &second]);
    again.disk.import(&[&blob]);
    let mut fetch = Fetch::new(&second, &blob, &[&again]).await;
    assert_eq!(fetch.partial.have(), before, "what was proven is still held");
    assert!(soon("complete", fetch.run(async |_| {})).await);
    second.disk.seal(&blob, &fetch.partial);
    let missing = blob.size() - before_bytes;
    assert_eq!(fetch.options.progress.load(Ordering::SeqCst), missing, "only what was missing");
    let sent = again.shelf.sent_bytes();
    assert!(sent > missing && sent < missing + missing / 20, "{sent} bytes sent for {missing} missing");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_before_a_loss_or_a_cancel_is_kept() {
    let blob = Honest::new(32 << 20, 4);
    let all = all_groups(blob.size()).boundaries()[1];
    let (from, to) = (Host::start(), Host::start());
    acquaint(&[&from, &to]);
    from.disk.import(&[&blob]);
    let connection = to.dial(&from).await;
    let partial = to.disk.partial(&blob);
    for lose in [false, true] {
        let start = partial.have().boundaries().get(1).copied().unwrap_or(0);
        let options = options();
        let (cancel, progress) = (options.cancel.clone(), options.progress.clone());
        let fetch = tokio::spawn({
            let (connection, partial) = (connection.clone(), partial.clone());
            async move { get(&connection, partial, start..all, options).await }
        });
        let some = 20 * GROUP_BYTES;
        soon("something is stored", async {
            while progress.load(Ordering::SeqCst) < some {
                tokio::task::yield_now().await;
            }
        })
        .await;
        if lose {
            connection.close(0u32.into(), b"");
        } else {
            cancel.cancel();
        }
        let got = soon("it ends", fetch).await.expect("no panic");
        assert!(got.bytes >= some && got.bytes == progress.load(Ordering::SeqCst));
        assert_eq!(bytes_in(&got.stored, blob.size()), got.bytes);
        match got.end {
            Err(GetError::Cancelled) => assert!(!lose),
            Err(GetError::Lost(_)) => assert!(lose),
            // So quick that all of it was there.
            Ok(()) => assert!(partial.complete()),
            Err(other) => panic!("{other}"),
        }
        assert!(got.stored.is_subset(&to.disk.check(&blob)));
    }
    let Disk { store, .. } = &to.disk;
    assert_eq!(store.partials().expect("listed"), vec![(blob.layer, blob.size())]);
}
