//! What is known of each peer: what it declared, how fast it is, whether it may be asked.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use super::config::FetchConfig;
use super::pieces::{PieceNo, PieceSet, Pieces};
use crate::time::Time;
use crate::wire::bao::GroupSet;

/// One peer as a provider of one manifest.
#[derive(Debug)]
pub(super) struct Peer {
    /// Pieces that it holds whole.
    full: PieceSet,
    /// What it holds of other pieces.
    partial: BTreeMap<PieceNo, GroupSet>,
    /// Pieces of which it holds something that is missing here. May still name finished pieces.
    useful: PieceSet,
    /// Fetches in flight from it, cancelled ones included until they are answered.
    pub(super) in_flight: u32,
    connections: u32,
    rate_bytes_per_s: Option<u64>,
    failures: u32,
    bans: u32,
    not_before: Time,
    banned_until: Time,
}

impl Peer {
    pub(super) fn new(piece_count: usize) -> Self {
        Self {
            full: PieceSet::new(piece_count),
            partial: BTreeMap::new(),
            useful: PieceSet::new(piece_count),
            in_flight: 0,
            connections: 1,
            rate_bytes_per_s: None,
            failures: 0,
            bans: 0,
            not_before: Time(0),
            banned_until: Time(0),
        }
    }

    /// Adds groups of a layer. True if something of it is missing here.
    pub(super) fn declare(
        &mut self,
        pieces: &Pieces,
        layer: usize,
        have: &GroupSet,
        connections: u32,
    ) -> bool {
        self.connections = connections.max(1);
        let mut news = false;
        for (no, range) in pieces.split(layer, have) {
            if self.full.contains(no) {
                continue;
            }
            let whole = &pieces.piece(no).range;
            if range == *whole {
                self.partial.remove(&no);
                self.full.insert(no);
            } else {
                let part = self.partial.entry(no).or_default();
                *part |= GroupSet::from(range);
                if *part == GroupSet::from(whole.clone()) {
                    self.partial.remove(&no);
                    self.full.insert(no);
                }
            }
            news |= self.refresh(pieces, no);
        }
        news
    }

    /// Forgets what it declared of a layer.
    pub(super) fn forget_layer(&mut self, pieces: &Pieces, layer: usize) {
        for no in pieces.of_layer(layer) {
            self.full.remove(no);
            self.partial.remove(&no);
            self.useful.remove(no);
        }
    }

    /// Forgets everything that it declared, but not how it behaved.
    pub(super) fn forget_all(&mut self, piece_count: usize) {
        self.full = PieceSet::new(piece_count);
        self.useful = PieceSet::new(piece_count);
        self.partial.clear();
    }

    /// Looks again whether it holds something that is missing of a piece.
    pub(super) fn refresh(&mut self, pieces: &Pieces, no: PieceNo) -> bool {
        let useful = self.wanted(pieces, no).is_some();
        if useful {
            self.useful.insert(no);
        } else {
            self.useful.remove(no);
        }
        useful
    }

    /// The first run of groups that is missing here and that it declared.
    pub(super) fn wanted(&self, pieces: &Pieces, no: PieceNo) -> Option<Range<u64>> {
        let missing = &pieces.piece(no).missing;
        let end = pieces.piece(no).range.end;
        let first = |set: &GroupSet| {
            let (start, stop) = (set.boundaries().first()?, set.boundaries().get(1));
            Some(*start..stop.copied().unwrap_or(end))
        };
        if self.full.contains(no) {
            return first(missing);
        }
        first(&(missing & self.partial.get(&no)?))
    }

    pub(super) fn useful(&self) -> &PieceSet {
        &self.useful
    }

    /// When it may next be asked.
    pub(super) fn free_at(&self) -> Time {
        self.not_before.max(self.banned_until)
    }

    pub(super) fn is_banned(&self, now: Time) -> bool {
        self.banned_until > now
    }

    /// True if it may be asked for one more range now.
    pub(super) fn is_free(&self, config: &FetchConfig, now: Time) -> bool {
        let connections = self.connections.min(config.connections_per_peer_max);
        self.free_at() <= now && self.in_flight < config.slots_per_peer_max.max(connections)
    }

    /// How long it should take for `bytes`.
    pub(super) fn expected(&self, config: &FetchConfig, bytes: u64) -> Duration {
        let rate = self.rate_bytes_per_s.unwrap_or(config.rate_initial_bytes_per_s).max(1);
        let ns = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
        Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
    }

    /// How long it may take for `bytes`.
    pub(super) fn patience(&self, config: &FetchConfig, bytes: u64) -> Duration {
        let floor = Duration::from_millis(config.deadline_ms_min);
        let ceiling = Duration::from_millis(config.deadline_ms_max).max(floor);
        self.expected(config, bytes).saturating_mul(config.deadline_factor).clamp(floor, ceiling)
    }

    /// It delivered.
    pub(super) fn delivered(&mut self, bytes: u64, took: Duration) {
        self.failures = 0;
        self.measure(bytes, took);
    }

    /// Takes one more measurement of its rate into account.
    pub(super) fn measure(&mut self, bytes: u64, took: Duration) {
        let ns = took.as_nanos().max(1);
        let rate = u64::try_from(u128::from(bytes) * 1_000_000_000 / ns).unwrap_or(u64::MAX);
        self.rate_bytes_per_s = Some(match self.rate_bytes_per_s {
            // New figures weigh a quarter: slots share a link, so single ones swing.
            Some(old) => old - old / 4 + rate / 4,
            None => rate,
        });
    }

    /// It failed: nothing more for a while, longer each time in a row.
    pub(super) fn failed(&mut self, config: &FetchConfig, now: Time) {
        let pause = doubled(config.backoff_ms, self.failures, config.backoff_ms_max);
        self.failures = self.failures.saturating_add(1);
        self.not_before = self.not_before.max(now + pause);
    }

    /// It lied: nothing more for a long while, longer each time. Returns the end of the ban.
    pub(super) fn ban(&mut self, config: &FetchConfig, now: Time) -> Time {
        let ban = doubled(config.ban_ms, self.bans, config.ban_ms_max);
        self.bans = self.bans.saturating_add(1);
        self.banned_until = self.banned_until.max(now + ban);
        self.banned_until
    }
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
        let config = FetchConfig { backoff_ms: 100, backoff_ms_max: 350, ..FetchConfig::default() };
        let mut peer = Peer::new(1);
        let ms = |n: u64| Time(n * 1_000_000);
        peer.failed(&config, ms(0));
        assert_eq!(peer.free_at(), ms(100));
        peer.failed(&config, ms(100));
        assert_eq!(peer.free_at(), ms(300));
        peer.failed(&config, ms(300));
        assert_eq!(peer.free_at(), ms(650), "the ceiling");
        peer.delivered(1, Duration::from_secs(1));
        peer.failed(&config, ms(1_000));
        assert_eq!(peer.free_at(), ms(1_100));
        assert_eq!(doubled(1, 200, 9), Duration::from_millis(9), "no overflow");
    }
}
