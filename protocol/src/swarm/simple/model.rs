//! The simple scheduler against a naive model of providers that lose, lack, lie, stay mute and leave.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::tests::{layer, peer, small};
use super::*;
use crate::wire::bao::{all_groups, bounded, group_count};

/// How one provider of the model behaves.
#[derive(Debug, Clone)]
struct Provider {
    /// Layer, groups it declares.
    declares: Vec<(u8, Range<u64>)>,
    /// Of these it sends wrong bytes.
    wrong: Vec<(u8, Range<u64>)>,
    /// These it does not have after all.
    lacks: Vec<(u8, Range<u64>)>,
    loss_percent: u32,
    mute_percent: u32,
}

fn spans(layers: u8) -> impl Strategy<Value = (u8, Range<u64>)> {
    (0..layers, 0..40u64, 1..40u64).prop_map(|(layer, start, len)| (layer, start..start + len))
}

fn provider() -> impl Strategy<Value = Provider> {
    let some = |max: usize| prop::collection::vec(spans(3), 0..=max);
    let wrong = prop_oneof![3 => some(0), 1 => some(3)];
    let lacks = prop_oneof![3 => some(0), 1 => some(3)];
    (some(6), wrong, lacks, 0..50u32, 0..30u32).prop_map(|(declares, wrong, lacks, loss, mute)| Provider {
        declares,
        wrong,
        lacks,
        loss_percent: loss,
        mute_percent: mute,
    })
}

/// The driver, the network and the peers, as simple as can be: sets of single groups.
struct Model {
    fetch: SimpleFetch,
    rng: ChaCha8Rng,
    now: Time,
    sizes: Vec<u64>,
    providers: Vec<Provider>,
    online: Vec<bool>,
    declared: BTreeSet<(u8, u8, u64)>,
    stored: BTreeSet<(u8, u64)>,
    flying: BTreeMap<SlotId, (u8, u8, Range<u64>, Option<Time>)>,
    banned: BTreeMap<u8, Time>,
    done: bool,
    idle_and_stalled: bool,
}

impl Model {
    fn declare(&mut self, who: u8) {
        let provider = self.providers[usize::from(who)].clone();
        for (of, range) in provider.declares {
            if usize::from(of) >= self.sizes.len() {
                continue;
            }
            let lacks = |group: u64| provider.lacks.iter().any(|(l, r)| *l == of && r.contains(&group));
            // It lies about what it has once; after a miss it says the truth.
            let honest = self.rng.random_bool(0.5);
            let mut have = GroupSet::empty();
            for group in range.filter(|group| !(honest && lacks(*group))) {
                have |= GroupSet::from(group..group + 1);
                self.declared.insert((who, of, group));
            }
            let (peer, layer) = (peer(who), layer(of));
            self.fetch.handle(self.now, Input::Declared { peer, layer, have, connections: 1 });
            self.drain();
        }
    }

    fn drain(&mut self) {
        loop {
            match self.fetch.poll() {
                Poll::Action(Action::Fetch { slot, from, layer, range, deadline }) => {
                    self.begin(slot, from.0[0], layer.0[0], range, deadline);
                }
                Poll::Action(Action::Cancel { slot }) => {
                    let (who, of, range, _) =
                        self.flying.remove(&slot).expect("only what flies is cancelled");
                    let len = self.rng.random_range(0..=range.end - range.start);
                    let stored = self.store(who, of, range.start..range.start + len).0;
                    self.fetch.handle(self.now, Input::Failed { slot, fault: Fault::Cancelled, stored });
                }
                Poll::Action(Action::Ban { peer, until, .. }) => {
                    let provider = &self.providers[usize::from(peer.0[0])];
                    assert!(!provider.wrong.is_empty(), "an honest peer was banned");
                    self.banned.insert(peer.0[0], until);
                }
                Poll::Event(Event::Done) => self.done = true,
                Poll::Event(Event::Stalled { .. }) => self.idle_and_stalled = true,
                Poll::Event(_) => {}
                Poll::Idle { .. } => return,
            }
        }
    }

    fn begin(&mut self, slot: SlotId, who: u8, of: u8, range: Range<u64>, deadline: Time) {
        assert!(!range.is_empty() && deadline > self.now);
        assert!(self.banned.get(&who).is_none_or(|until| *until <= self.now), "asked a banned peer");
        for group in range.clone() {
            assert!(self.declared.contains(&(who, of, group)), "asked {who} for undeclared {of}/{group}");
        }
        assert!(range.clone().any(|group| !self.stored.contains(&(of, group))), "asked for what is stored");
        let again = range.clone().filter(|group| self.stored.contains(&(of, *group))).count();
        assert_eq!(again, 0, "asked again for groups that are stored");
        let others = self
            .flying
            .values()
            .filter(|(_, l, r, _)| *l == of && r.start < range.end && range.start < r.end);
        assert!(others.count() <= 1, "more than one duplicate");
        self.idle_and_stalled = false;
        let provider = &self.providers[usize::from(who)];
        let mute = self.rng.random_ratio(provider.mute_percent, 100);
        let ends = (!mute).then(|| self.now + Duration::from_millis(self.rng.random_range(1..3_000)));
        self.flying.insert(slot, (who, of, range, ends));
        let of_peer = self.flying.values().filter(|(w, ..)| *w == who).count();
        assert!(of_peer <= 4, "slots per peer");
        assert!(self.flying.len() <= 6, "slots in all");
    }

    /// What of `range` the provider sends rightly before it goes wrong, and whether it went wrong.
    fn store(&mut self, who: u8, of: u8, range: Range<u64>) -> (GroupSet, Option<Fault>) {
        let provider = &self.providers[usize::from(who)];
        let within =
            |spans: &[(u8, Range<u64>)], group| spans.iter().any(|(l, r)| *l == of && r.contains(&group));
        let mut stored = GroupSet::empty();
        for group in range {
            if within(&provider.lacks, group) {
                return (stored, Some(Fault::Miss));
            }
            if within(&provider.wrong, group) {
                return (stored, Some(Fault::Verify));
            }
            stored |= GroupSet::from(group..group + 1);
            self.stored.insert((of, group));
        }
        (stored, None)
    }

    fn finish(&mut self, slot: SlotId) {
        let (who, of, range, _) = self.flying.remove(&slot).expect("it flies");
        let lost = self.rng.random_ratio(self.providers[usize::from(who)].loss_percent, 100);
        let end = if lost { self.rng.random_range(range.start..=range.end) } else { range.end };
        let (stored, fault) = self.store(who, of, range.start..end);
        let fault = fault.or(lost.then_some(Fault::Lost));
        match fault {
            None => self.fetch.handle(self.now, Input::Stored { slot, bytes: (end - range.start) * 16_384 }),
            Some(fault) => self.fetch.handle(self.now, Input::Failed { slot, fault, stored }),
        }
        if fault == Some(Fault::Miss) {
            self.declared.retain(|(w, l, _)| (*w, *l) != (who, of));
            self.drain();
            self.declare(who);
        }
    }

    fn leave(&mut self, who: u8) {
        self.online[usize::from(who)] = false;
        self.declared.retain(|(w, ..)| *w != who);
        self.fetch.handle(self.now, Input::PeerGone { peer: peer(who) });
        self.drain();
        let slots: Vec<_> =
            self.flying.iter().filter(|(_, (w, ..))| *w == who).map(|(slot, _)| *slot).collect();
        for slot in slots {
            if self.flying.remove(&slot).is_some() {
                let stored = GroupSet::empty();
                self.fetch.handle(self.now, Input::Failed { slot, fault: Fault::Lost, stored });
                self.drain();
            }
        }
    }

    /// One step: the next thing that happens. False if nothing ever will.
    fn step(&mut self) -> bool {
        self.drain();
        let Poll::Idle { wake } = self.fetch.poll() else {
            panic!("drained");
        };
        if self.rng.random_bool(0.02) {
            let who = self.rng.random_range(0..self.providers.len() as u64) as u8;
            if self.online[usize::from(who)] {
                self.leave(who);
            } else {
                self.online[usize::from(who)] = true;
                self.declare(who);
            }
            return true;
        }
        let landing = self.flying.iter().filter_map(|(slot, f)| f.3.map(|at| (at, *slot))).min();
        match (landing, wake) {
            (Some((at, slot)), wake) if wake.is_none_or(|wake| at <= wake) => {
                self.now = self.now.max(at);
                self.finish(slot);
            }
            (_, Some(wake)) => {
                assert!(wake > self.now, "a wake in the past would spin");
                self.now = wake;
                self.fetch.handle(wake, Input::Tick);
            }
            _ => {
                assert!(self.flying.is_empty(), "something flies and nothing will end it");
                let away: Vec<u8> =
                    (0..).zip(&self.online).filter(|(_, on)| !**on).map(|(who, _)| who).collect();
                for who in &away {
                    self.online[usize::from(*who)] = true;
                    self.declare(*who);
                }
                return !away.is_empty();
            }
        }
        true
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn it_finishes_exactly_when_honest_bytes_cover_the_layers(
        sizes in prop::collection::vec(0..40 * 16_384u64, 1..=3),
        providers in prop::collection::vec(provider(), 1..6),
        seed in any::<u64>(),
    ) {
        let wants = (0..).zip(&sizes).map(|(n, size)| {
            LayerWant { layer: layer(n), size: *size, missing: all_groups(*size) }
        });
        let config = FetchConfig {
            slots_max: 6, ban_ms: 1_000, ban_ms_max: 60_000, deadline_ms_max: 20_000, ..small()
        };
        let mut model = Model {
            fetch: SimpleFetch::new(config, seed, wants.collect()),
            rng: ChaCha8Rng::seed_from_u64(seed ^ 1),
            now: Time(0),
            online: vec![true; providers.len()],
            sizes: sizes.clone(),
            providers: providers.clone(),
            declared: BTreeSet::new(),
            stored: BTreeSet::new(),
            flying: BTreeMap::new(),
            banned: BTreeMap::new(),
            done: false,
            idle_and_stalled: false,
        };
        let within = |spans: &[(u8, Range<u64>)], of: u8, group: u64| {
            spans.iter().any(|(l, r)| *l == of && r.contains(&group))
        };
        let covered = (0u8..).zip(&sizes).all(|(of, size)| (0..group_count(*size)).all(|group| {
            providers.iter().any(|p| {
                within(&p.declares, of, group) && !within(&p.lacks, of, group) && !within(&p.wrong, of, group)
            })
        }));
        for who in 0..providers.len() {
            model.declare(who as u8);
        }
        let mut steps = 0;
        while !model.done && steps < 3_000 && model.step() {
            steps += 1;
        }
        prop_assert_eq!(model.done, covered, "after {} steps, {:?} missing", steps, model.fetch.missing_bytes());
        let all: BTreeSet<_> = (0u8..).zip(&sizes)
            .flat_map(|(of, size)| bounded(&all_groups(*size), *size).flatten().map(move |group| (of, group)).collect::<Vec<_>>())
            .collect();
        prop_assert_eq!(model.stored == all, model.fetch.is_done());
        if model.done {
            prop_assert_eq!(model.fetch.missing_bytes(), 0);
        } else if model.flying.is_empty() && steps < 3_000 {
            prop_assert!(model.idle_and_stalled, "an unfinished fetch with nothing to do says so");
        }
    }
}
