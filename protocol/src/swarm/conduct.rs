//! How each peer behaves, over all manifests: its rate, its failures, its bans.

use std::time::Duration;

use super::bucket::Bucket;
use super::config::SwarmConfig;
use super::io::Charge;
use crate::id::KeyId;
use crate::time::Time;

/// Who never served is left alone for so many times what it wasted.
const WASTED_FACTOR: u32 = 3;

/// One peer.
#[derive(Debug, Default)]
pub(super) struct Conduct {
    rate_bytes_per_s: Option<u64>,
    /// How fast it takes what it is sent.
    takes_bytes_per_s: Option<u64>,
    failures: u32,
    /// When a failure last counted.
    failed_at: Option<Time>,
    misses: u32,
    silences: u32,
    /// It has sent bytes that proved right at some time.
    has_served: bool,
    bans: u32,
    not_before: Time,
    banned_until: Time,
    /// Payload that it is sent.
    pub(super) uploads: Option<Box<Bucket>>,
    /// Requests of it, made without a promise, that wait or run.
    pub(super) requests: usize,
    /// Requests that were refused since the last one was served.
    pub(super) refused: usize,
    /// Links with it.
    pub(super) links: usize,
}

/// Where a peer was found last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seat(u32);

impl Default for Seat {
    fn default() -> Self {
        Self(u32::MAX)
    }
}

/// Owns what is remembered of peers. They are looked up for every piece, and there are a few dozen: a sorted list of the
/// beginnings of their keys finds one with less of the memory touched than a tree of whole keys.
#[derive(Debug, Default)]
pub(super) struct Peers {
    /// By key: its first bytes, and the place in `all`.
    order: Vec<(u64, u32)>,
    all: Vec<(KeyId, Conduct)>,
}

impl Peers {
    /// Where a peer stands now, for [`Peers::near`].
    pub(super) fn seat(&self, key: &KeyId) -> Seat {
        Seat(self.place(key).and_then(|place| u32::try_from(place).ok()).unwrap_or(u32::MAX))
    }

    /// What is known of a peer that stood there: it is searched for only where it stands elsewhere by now.
    pub(super) fn near(&self, seat: Seat, key: &KeyId) -> Option<&Conduct> {
        self.seated(seat, key).or_else(|| self.place(key)).map(|place| &self.all[place].1)
    }

    /// The same, to be changed.
    pub(super) fn near_mut(&mut self, seat: Seat, key: &KeyId) -> Option<&mut Conduct> {
        self.seated(seat, key).or_else(|| self.place(key)).map(|place| &mut self.all[place].1)
    }

    /// What is known of a peer. Makes room by forgetting one without links or requests, one not banned if there is one.
    pub(super) fn of(&mut self, config: &SwarmConfig, now: Time, key: KeyId) -> &mut Conduct {
        if let Some(place) = self.place(&key) {
            return &mut self.all[place].1;
        }
        if self.all.len() >= config.peers_max {
            self.make_room(now);
        }
        let place = self.all.len();
        let before = self.order.partition_point(|row| self.is_before(row, &key));
        self.order.insert(before, (start(&key), u32::try_from(place).unwrap_or(u32::MAX)));
        self.all.push((key, Conduct::default()));
        &mut self.all[place].1
    }

    pub(super) fn get(&self, key: &KeyId) -> Option<&Conduct> {
        self.place(key).map(|place| &self.all[place].1)
    }

    pub(super) fn get_mut(&mut self, key: &KeyId) -> Option<&mut Conduct> {
        self.place(key).map(|place| &mut self.all[place].1)
    }

    pub(super) fn is_banned(&self, key: &KeyId, now: Time) -> bool {
        self.get(key).is_some_and(|one| one.banned_until > now)
    }

    /// True if it may be asked for a piece now.
    pub(super) fn is_free(&self, key: &KeyId, now: Time) -> bool {
        self.get(key).is_none_or(|one| one.free_at() <= now)
    }

    /// Forgets one of those that could be, if there is any.
    fn make_room(&mut self, now: Time) {
        let rows = self.order.iter().map(|(_, place)| (*place, &self.all[*place as usize].1));
        let free = rows.filter(|(_, one)| one.links == 0 && one.requests == 0);
        let Some((place, _)) = free.min_by_key(|(_, one)| one.free_at().max(now)) else {
            return;
        };
        self.order.retain(|(_, other)| *other != place);
        self.all.swap_remove(place as usize);
        let last = u32::try_from(self.all.len()).unwrap_or(u32::MAX);
        if let Some(moved) = self.order.iter_mut().find(|(_, other)| *other == last) {
            moved.1 = place;
        }
    }

    fn seated(&self, seat: Seat, key: &KeyId) -> Option<usize> {
        let place = seat.0 as usize;
        self.all.get(place).is_some_and(|(other, _)| other == key).then_some(place)
    }

    fn place(&self, key: &KeyId) -> Option<usize> {
        let at = self.order.partition_point(|row| self.is_before(row, key));
        let place = self.order.get(at)?.1 as usize;
        (self.all[place].0 == *key).then_some(place)
    }

    /// Whole keys are only looked at where their beginnings are alike.
    fn is_before(&self, (other, place): &(u64, u32), key: &KeyId) -> bool {
        let start = start(key);
        *other < start || (*other == start && self.all[*place as usize].0 < *key)
    }
}

fn start(key: &KeyId) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&key.0[..8]);
    u64::from_be_bytes(bytes)
}

impl Conduct {
    /// True if it has sent bytes that proved right at some time.
    pub(super) fn has_served(&self) -> bool {
        self.has_served
    }

    /// When it may next be asked.
    pub(super) fn free_at(&self) -> Time {
        self.not_before.max(self.banned_until)
    }

    /// Until when nothing is asked of it whatever happens.
    pub(super) fn banned_until(&self) -> Time {
        self.banned_until
    }

    /// How long it should take for `bytes`.
    pub(super) fn expected(&self, config: &SwarmConfig, bytes: u64) -> Duration {
        let rate = self.rate_bytes_per_s.unwrap_or(config.rate_initial_bytes_per_s).max(1);
        let ns = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
        Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
    }

    /// How long it may take for `bytes`.
    pub(super) fn patience(&self, config: &SwarmConfig, bytes: u64) -> Duration {
        let floor = Duration::from_millis(config.deadline_ms_min);
        let ceiling = Duration::from_millis(config.deadline_ms_max).max(floor);
        self.expected(config, bytes).saturating_mul(config.deadline_factor).clamp(floor, ceiling)
    }

    /// It delivered; `is_short` if so little that the time on the way counts for more than its rate.
    pub(super) fn delivered(&mut self, bytes: u64, took: Duration, is_short: bool) {
        (self.failures, self.misses, self.silences) = (0, 0, 0);
        self.has_served |= bytes > 0;
        if !is_short {
            self.measure(bytes, took);
        }
    }

    /// Takes one more measurement of its rate into account.
    pub(super) fn measure(&mut self, bytes: u64, took: Duration) {
        self.has_served |= bytes > 0;
        self.rate_bytes_per_s = Some(smoothed(self.rate_bytes_per_s, bytes, took));
    }

    /// It has taken all of an upload.
    pub(super) fn taken(&mut self, bytes: u64, took: Duration) {
        self.takes_bytes_per_s = Some(smoothed(self.takes_bytes_per_s, bytes, took));
    }

    /// How fast it takes what it is sent, if that was measured.
    pub(super) fn takes_bytes_per_s(&self) -> Option<u64> {
        self.takes_bytes_per_s
    }

    /// It failed: nothing more for a while, longer each time in a row. What was under way together (`began` is when)
    /// fails together, and counts once: then the answer is false.
    pub(super) fn failed(&mut self, config: &SwarmConfig, now: Time, began: Time) -> bool {
        if self.failed_at.is_some_and(|at| began < at) {
            return false;
        }
        let pause = doubled(config.backoff_ms, self.failures, config.backoff_ms_max);
        self.failures = self.failures.saturating_add(1);
        self.failed_at = Some(now);
        self.not_before = self.not_before.max(now + pause);
        true
    }

    /// It is connected anew: where it was only cut off, that is over. Who is paused for what it did stays so.
    pub(super) fn returned(&mut self, now: Time) {
        if self.links == 0 && self.silences == 0 && self.misses == 0 {
            self.failures = 0;
            self.not_before = self.not_before.min(now);
        }
    }

    /// It did not have what it declared. Answers what it is charged with if it did so too often in a row.
    pub(super) fn missed(&mut self, config: &SwarmConfig, now: Time, began: Time) -> Option<Charge> {
        self.misses = self.misses.saturating_add(1);
        self.failed(config, now, began);
        (self.misses >= config.strikes_max).then_some(Charge::FalseDeclarations)
    }

    /// It sent nothing of what it granted. Who has served before may be behind a link that is full: it is only left
    /// alone for a while.
    /// Where the trouble may be `ours`, each time weighs half as much.
    pub(super) fn silent(
        &mut self,
        config: &SwarmConfig,
        now: Time,
        began: Time,
        ours: bool,
    ) -> Option<Charge> {
        if self.failed(config, now, began) {
            self.silences = self.silences.saturating_add(if ours { 1 } else { 2 });
            if !self.has_served {
                // Those that never serve must not hold up this host for most of the time.
                let pause = now.since(began).saturating_mul(WASTED_FACTOR);
                self.not_before = self.not_before.max(now + pause.min(Duration::from_millis(config.ban_ms)));
            }
        }
        (self.silences >= config.strikes_max.saturating_mul(2) && !self.has_served)
            .then_some(Charge::NeverServes)
    }

    /// Nothing more for a long while, longer each time. Returns the end of the ban.
    pub(super) fn ban(&mut self, config: &SwarmConfig, now: Time) -> Time {
        let ban = doubled(config.ban_ms, self.bans, config.ban_ms_max);
        self.bans = self.bans.saturating_add(1);
        (self.misses, self.silences) = (0, 0);
        self.banned_until = self.banned_until.max(now + ban);
        self.banned_until
    }
}

/// New figures weigh a quarter: transfers share links, so single ones swing.
fn smoothed(old: Option<u64>, bytes: u64, took: Duration) -> u64 {
    let ns = took.as_nanos().max(1);
    let rate = u64::try_from(u128::from(bytes) * 1_000_000_000 / ns).unwrap_or(u64::MAX);
    old.map_or(rate, |old| old - old / 4 + rate / 4)
}

fn doubled(base_ms: u64, times: u32, ms_max: u64) -> Duration {
    let factor = 1u64.checked_shl(times).unwrap_or(u64::MAX);
    Duration::from_millis(base_ms.saturating_mul(factor).min(ms_max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_ceiling_and_end_with_success() {
        let config = SwarmConfig { backoff_ms: 100, backoff_ms_max: 350, ..SwarmConfig::default() };
        let mut peer = Conduct::default();
        let ms = |n: u64| Time(n * 1_000_000);
        assert!(peer.failed(&config, ms(0), ms(0)));
        assert_eq!(peer.free_at(), ms(100));
        assert!(peer.failed(&config, ms(100), ms(100)));
        assert!(!peer.failed(&config, ms(100), ms(50)), "what was under way with it counts once");
        assert_eq!(peer.free_at(), ms(300));
        assert!(peer.failed(&config, ms(300), ms(300)));
        assert_eq!(peer.free_at(), ms(650), "the ceiling");
        peer.delivered(1, Duration::from_secs(1), false);
        assert!(peer.failed(&config, ms(1_000), ms(1_000)));
        assert_eq!(peer.free_at(), ms(1_100));
        assert_eq!(doubled(1, 200, 9), Duration::from_millis(9), "no overflow");
    }

    #[test]
    fn strikes_in_a_row_are_a_charge_and_room_is_made_for_newcomers() {
        let config = SwarmConfig { strikes_max: 3, peers_max: 2, ..SwarmConfig::default() };
        let mut peers = Peers::default();
        let key = |n| KeyId([n; 32]);
        let one = peers.of(&config, Time(0), key(1));
        assert_eq!(one.missed(&config, Time(0), Time(0)), None);
        assert_eq!(one.missed(&config, Time(0), Time(0)), None);
        one.delivered(1, Duration::from_secs(1), true);
        assert_eq!(one.rate_bytes_per_s, None, "so little tells nothing of its rate");
        assert_eq!(one.missed(&config, Time(0), Time(0)), None, "a delivery clears it");
        for _ in 0..5 {
            assert_eq!(one.silent(&config, Time(0), Time(0), false), None, "it has served before");
        }
        (one.has_served, one.silences) = (false, 0);
        for _ in 0..5 {
            assert_eq!(one.silent(&config, Time(0), Time(0), true), None, "half a strike each");
        }
        assert_eq!(one.silent(&config, Time(0), Time(0), true), Some(Charge::NeverServes));
        one.ban(&config, Time(0));
        peers.of(&config, Time(0), key(2));
        peers.of(&config, Time(0), key(3));
        assert!(peers.is_banned(&key(1), Time(1)), "the banned one is kept");
        assert!(peers.get(&key(2)).is_none() && peers.get(&key(3)).is_some());
    }

    #[test]
    fn peers_are_told_apart_by_all_of_their_keys_and_found_after_others_went() {
        let config = SwarmConfig { peers_max: 20, ..SwarmConfig::default() };
        // All begin alike; the last bytes are in no order.
        let key = |n: u8| {
            let mut key = [7; 32];
            key[31] = n.wrapping_mul(77);
            KeyId(key)
        };
        let mut peers = Peers::default();
        for n in 0..60 {
            // Some may not be forgotten.
            peers.of(&config, Time(0), key(n)).links = usize::from(n % 5 == 0);
            peers.of(&config, Time(0), key(n)).refused = usize::from(n);
        }
        let known: Vec<u8> = (0..60).filter(|n| peers.get(&key(*n)).is_some()).collect();
        assert_eq!(known.len(), 20);
        assert!((0..60).step_by(5).all(|n| known.contains(&n)));
        assert!(known.iter().all(|n| peers.get(&key(*n)).is_some_and(|one| one.refused == usize::from(*n))));
        assert!(peers.order.is_sorted_by_key(|(_, place)| peers.all[*place as usize].0));
        assert!(peers.get(&KeyId([7; 32])).is_none());
        // A seat that another has by now, or nobody, finds the right one all the same.
        for n in (0..60).step_by(5) {
            for seat in [peers.seat(&key(n)), peers.seat(&key((n + 5) % 60)), Seat::default()] {
                assert!(peers.near(seat, &key(n)).is_some_and(|one| one.refused == usize::from(n)));
            }
        }
    }
}
