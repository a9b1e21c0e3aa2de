//! Choosing: which neighbour is promised the next upload.

use rand::RngExt;
use smallvec::SmallVec;

use super::Swarm;
use super::io::{PieceNo, WorkId};
use super::link::Link;
use super::timers::Due;
use super::work::Work;
use crate::time::Time;

/// A neighbour that declined so often in a row, or let as many promises pass, is not preferred for being quick.
const IDLE_DECLINES: u8 = 3;

/// What a neighbour fetches from others is mostly something that is here, too: so many thousandths of it. It has no use
/// for an offer of nothing else.
const FETCHED_PERMILLE: u32 = 750;

/// A choice of whom to promise what.
pub(super) struct Choice {
    pub(super) work: WorkId,
    pub(super) link: usize,
    pub(super) piece: Option<PieceNo>,
    pub(super) release: bool,
    pub(super) urgent: bool,
}

impl Swarm {
    /// The neighbour that needs an upload most: those that ask, then in fair turns among manifests those with the
    /// fewest fetches in flight.
    pub(super) fn choose(&mut self) -> Option<Choice> {
        let mut order: SmallVec<[(u64, WorkId); 4]> =
            self.works.values().map(|work| (work.sent_bytes, work.id)).collect();
        order.sort_unstable();
        let asked = order.iter().filter_map(|(_, work)| self.choose_ask(*work)).min_by_key(|(key, _)| *key);
        if let Some(((not_urgent, jobs), choice)) = asked {
            let other = || order.iter().any(|(_, work)| self.someone_waits(*work));
            if !not_urgent || jobs <= 1 || !other() {
                return Some(choice);
            }
        }
        order.into_iter().find_map(|(_, work)| self.choose_free(work))
    }

    fn choose_ask(&self, id: WorkId) -> Option<((bool, u32), Choice)> {
        let work = self.works.get(&id).filter(|work| work.is_asked)?;
        let mut best: Option<((bool, u32), Choice)> = None;
        for (at, link) in work.links().iter().enumerate() {
            let Some((piece, urgent)) = link.more.asks.front().copied() else { continue };
            // A loader may wait for what is asked for so, but whoever says so must not get all uploads.
            let most = self.config.uploads_per_peer_max + u32::from(urgent);
            if link.jobs >= most || (!urgent && !work.release.is_empty()) {
                // Each piece is released once before anything goes out twice.
                continue;
            }
            let key = (!urgent, link.jobs);
            if best.as_ref().is_none_or(|(least, _)| key < *least) {
                best = Some((key, Choice { work: id, link: at, piece: Some(piece), release: false, urgent }));
            }
        }
        best
    }

    fn someone_waits(&self, id: WorkId) -> bool {
        self.works.get(&id).is_some_and(|work| {
            work.links().iter().any(|link| link.near && link.jobs == 0 && self.may_offer(work, link))
        })
    }

    fn may_offer(&self, work: &Work, link: &Link) -> bool {
        link.begun && link.declined_until <= self.now && (!work.release.is_empty() || work.is_useful(link, 0))
    }

    fn choose_free(&mut self, id: WorkId) -> Option<Choice> {
        let work = self.works.get_mut(&id)?;
        if let Some(until) = work.resting(self.now, self.config.release_rest_permille) {
            self.timers.set_earlier(Due::Uploads, until);
            return None;
        }
        let release = work.release.first();
        let work = self.works.get(&id)?;
        // What is released to a slow host is rare for long, for it passes it on as slowly.
        let slow_below = if release.is_some() { self.slow_below(work) } else { 0 };
        let (mut best, mut ties, mut least) = (None, 0u64, (true, u32::MAX, u32::MAX));
        let mut wake: Option<(bool, Time)> = None;
        let stale_ns = self.stale_ns();
        for (at, link) in work.links().iter().enumerate() {
            let told = link.load(self.now, stale_ns);
            let load = told + link.jobs;
            let useful = match release {
                Some(piece) => !link.have().contains(piece),
                None => {
                    let fetched = told.saturating_sub(link.jobs) * FETCHED_PERMILLE / 1_000;
                    link.near && (load as usize) < self.config.downloads_aim && work.is_useful(link, fetched)
                }
            };
            if !link.begun || !useful || link.jobs >= self.config.uploads_per_peer_max {
                continue;
            }
            // Nor is one waited for that, however quick it was, takes nothing now.
            let slow = slow_below > 0
                && (link.declines >= IDLE_DECLINES || self.takes(link).is_some_and(|rate| rate < slow_below));
            if link.declined_until > self.now {
                let at = (slow, link.declined_until);
                wake = Some(wake.map_or(at, |least| least.min(at)));
                continue;
            }
            let key = (slow, load, link.jobs);
            if key > least {
                continue;
            }
            if key < least {
                (least, ties) = (key, 0);
            }
            ties += 1;
            // Each of those that tie is taken with the same chance.
            if ties == 1 || self.rng.random_range(0..ties) == 0 {
                best = Some(at);
            }
        }
        // Better to wait for one that is quick than to release to one that is slow.
        if let Some((slow, at)) = wake
            && (best.is_none() || !slow && least.0)
        {
            self.timers.set_earlier(Due::Uploads, at);
            return None;
        }
        best.map(|link| Choice { work: id, link, piece: release, release: release.is_some(), urgent: false })
    }

    /// Bytes per second below which a neighbour counts as slow: a share of what the one in the middle takes, so that no
    /// single one can make all others slow.
    fn slow_below(&self, work: &Work) -> u64 {
        let mut rates: Vec<u64> = work.links().iter().filter_map(|link| self.takes(link)).collect();
        rates.sort_unstable();
        let middle = rates.get(rates.len() / 2).copied().unwrap_or(0);
        middle / u64::from(self.config.slow_factor.max(1))
    }

    fn takes(&self, link: &Link) -> Option<u64> {
        self.peers.near(link.seat, &link.peer)?.takes_bytes_per_s()
    }
}
