//! The network at the level of flows: links of hosts and racks, shared max-min fairly by what runs over them.
//!
//! A flow runs over the uplink of its sender and the downlink of its receiver, and over the links of both racks where
//! they differ. Rates follow when [`Network::share`] is called, and only around links where something changed: each
//! link has a level, the most that it gives one flow, and a flow moves at the lowest level on its way. A change ripples
//! from link to link, [`HOPS_MAX`] links far per call; the rest of the ripple goes on at the next call.
//!
//! Left out: packets, queues, slow start, loss that slows a flow, the bytes of headers, frames and acknowledgements.

use smallvec::SmallVec;
use weighlock_protocol::Time;

use crate::calendar::Calendar;

const NANO: u64 = 1_000_000_000;
/// Links that a change of level reaches in one call of [`Network::share`].
pub const HOPS_MAX: usize = 2;
/// Changes of a level below one in so many go no further.
const STIR: u64 = 256;
/// Longest flow, in bytes: what is left of it is kept in billionths of a byte.
const FLOW_BYTES_MAX: u64 = u64::MAX / NANO;
const LINKS_MAX: usize = 4;

/// Names one transfer while it runs; used again afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlowId(u32);

/// What every change of rates looks at stands first, in one line of the processor's cache.
#[derive(Debug, Clone)]
#[repr(C, align(64))]
struct Flow {
    links: [u32; LINKS_MAX],
    rate_bytes_per_s: u64,
    /// In billionths of a byte, so that rates times nanoseconds are exact.
    left: u64,
    since: Time,
    ends: Time,
    /// Earliest entry among the ends; looked at again when it comes up.
    queued: Time,
    /// Counts the uses of this id; an entry among the ends of another use is void.
    life: u32,
    link_count: u8,
    /// Its place among the users of each link.
    places: [u32; LINKS_MAX],
    /// What a flow is for, by the number that its owner gave.
    tag: u64,
    total_bytes: u64,
}

/// A flow as one of its links sees it: most have only one other link, and to share a link its level is all that counts.
#[derive(Debug, Clone, Copy)]
struct User {
    id: u32,
    /// The other link; `MANY` if there are several.
    other: u32,
}

/// The flows over one link: mostly few enough to stand in the list itself.
type Users = SmallVec<[User; 8]>;

/// In place of a link: several.
const MANY: u32 = u32::MAX;

/// Links and what runs over them.
#[derive(Debug)]
pub struct Network {
    hosts: usize,
    /// Rack of each host.
    racks: Vec<Option<u32>>,
    /// Bytes per second: uplink of host `h` at `2h`, downlink at `2h + 1`, then the same of racks.
    capacity: Vec<u64>,
    level: Vec<u64>,
    users: Vec<Users>,
    is_dirty: Vec<bool>,
    dirty: Vec<u32>,
    flows: Vec<Flow>,
    free: Vec<u32>,
    running: usize,
    /// When each may end, its id and life.
    ends: Calendar,
    /// Flows whose links changed, and whether each flow is among them: apart from the flows, which are far from each
    /// other.
    stirred: Vec<u32>,
    is_stirred: Vec<bool>,
    limits: Vec<u64>,
    /// Bytes that each host sent.
    sent_bytes: Vec<u64>,
}

/// A flow that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// The number that its owner gave.
    pub tag: u64,
    /// Bytes that it moved.
    pub bytes: u64,
}

impl Network {
    /// Hosts by (uplink, downlink, rack), and racks by (uplink, downlink), all in bytes per second.
    pub fn new(hosts: &[(u64, u64, Option<u32>)], racks: &[(u64, u64)]) -> Self {
        let of_hosts = hosts.iter().flat_map(|(up, down, _)| [*up, *down]);
        let capacity: Vec<u64> = of_hosts.chain(racks.iter().flat_map(|(up, down)| [*up, *down])).collect();
        Self {
            hosts: hosts.len(),
            racks: hosts.iter().map(|(_, _, rack)| *rack).collect(),
            level: capacity.clone(),
            users: vec![Users::new(); capacity.len()],
            is_dirty: vec![false; capacity.len()],
            capacity,
            dirty: Vec::new(),
            flows: Vec::new(),
            free: Vec::new(),
            running: 0,
            ends: Calendar::default(),
            stirred: Vec::new(),
            is_stirred: Vec::new(),
            limits: Vec::new(),
            sent_bytes: vec![0; hosts.len()],
        }
    }

    /// Begins a transfer. It moves from the next [`Network::share`] on.
    pub fn start(&mut self, now: Time, from: usize, to: usize, bytes: u64, tag: u64) -> FlowId {
        let bytes = bytes.min(FLOW_BYTES_MAX);
        let (mut links, mut link_count) = ([0; LINKS_MAX], 2);
        (links[0], links[1]) = (link(2 * from), link(2 * to + 1));
        if let (Some(a), Some(b)) = (self.racks[from], self.racks[to])
            && a != b
        {
            let first = link(2 * self.hosts);
            (links[2], links[3]) = (first + 2 * a, first + 2 * b + 1);
            link_count = 4;
        }
        let id = self.free.pop().unwrap_or(link(self.flows.len()));
        let life = self.flows.get(id as usize).map_or(0, |flow| flow.life + 1);
        let mut flow = Flow {
            links,
            places: [0; LINKS_MAX],
            link_count,
            life,
            tag,
            total_bytes: bytes,
            left: bytes * NANO,
            rate_bytes_per_s: 0,
            since: now,
            ends: Time(u64::MAX),
            queued: Time(u64::MAX),
        };
        for (of, place) in links.iter().zip(&mut flow.places).take(usize::from(link_count)) {
            let users = &mut self.users[*of as usize];
            *place = link(users.len());
            let other = if link_count == 2 { links[0] ^ links[1] ^ *of } else { MANY };
            users.push(User { id, other });
        }
        match self.flows.get_mut(id as usize) {
            Some(slot) => *slot = flow,
            None => {
                self.flows.push(flow);
                self.is_stirred.push(false);
            }
        }
        self.running += 1;
        self.mark_all(id);
        self.stir(id);
        FlowId(id)
    }

    /// Ends a transfer early. Returns what it moved.
    pub fn stop(&mut self, now: Time, id: FlowId) -> Ended {
        self.flows[id.0 as usize].advance(now);
        self.remove(id.0)
    }

    /// When the next transfer ends at the present rates.
    pub fn next_end(&mut self) -> Option<Time> {
        while let Some((at, id, life)) = self.ends.first() {
            let flow = &mut self.flows[id as usize];
            if flow.life != life || flow.queued != at {
                self.ends.pop();
            } else if flow.ends > at {
                self.ends.pop();
                flow.queued = flow.ends;
                self.ends.push((flow.ends, id, life));
            } else {
                return Some(at);
            }
        }
        None
    }

    /// Takes a transfer that ended by `now`.
    pub fn pop_ended(&mut self, now: Time) -> Option<Ended> {
        if self.next_end()? > now {
            return None;
        }
        let (_, id, _) = self.ends.pop()?;
        self.flows[id as usize].left = 0;
        Some(self.remove(id))
    }

    /// Transfers that run.
    pub fn flow_count(&self) -> usize {
        self.running
    }

    /// True if rates are to be shared anew.
    pub fn is_stirred(&self) -> bool {
        !self.dirty.is_empty() || !self.stirred.is_empty()
    }

    /// Bytes that a host sent in flows that are over.
    pub fn sent_bytes(&self, host: usize) -> u64 {
        self.sent_bytes[host]
    }

    /// True if a flow between these hosts leaves its rack.
    pub fn crosses(&self, from: usize, to: usize) -> bool {
        self.racks[from].is_some() && self.racks[from] != self.racks[to]
    }

    /// Shares links anew where flows came, went or felt a change elsewhere: the tightest link is split evenly, what
    /// its flows leave elsewhere goes to the others.
    pub fn share(&mut self, now: Time) {
        for _ in 0..HOPS_MAX {
            if self.dirty.is_empty() {
                break;
            }
            for at in std::mem::take(&mut self.dirty) {
                self.is_dirty[at as usize] = false;
                self.relevel(at);
            }
        }
        for id in std::mem::take(&mut self.stirred) {
            if !std::mem::take(&mut self.is_stirred[id as usize]) {
                continue;
            }
            let flow = &mut self.flows[id as usize];
            let lowest = flow.links().iter().map(|link| self.level[*link as usize]).min();
            // A link of less than a byte a second per flow still moves: no run hangs on rounding.
            let rate = lowest.unwrap_or(1).max(1);
            if rate == flow.rate_bytes_per_s {
                continue;
            }
            flow.advance(now);
            flow.rate_bytes_per_s = rate;
            flow.ends = Time(now.0.saturating_add(flow.left.div_ceil(rate)));
            if flow.ends < flow.queued {
                flow.queued = flow.ends;
                self.ends.push((flow.ends, id, flow.life));
            }
        }
    }

    fn relevel(&mut self, at: u32) {
        let index = at as usize;
        self.limits.clear();
        for User { id, other } in &self.users[index] {
            if *other != MANY {
                self.limits.push(self.level[*other as usize]);
                continue;
            }
            let flow = &self.flows[*id as usize];
            let others = flow.links().iter().filter(|link| **link != at);
            self.limits.push(others.map(|link| self.level[*link as usize]).min().unwrap_or(u64::MAX));
        }
        let old = self.level[index];
        let new = fair_level(self.capacity[index], &mut self.limits);
        if old.abs_diff(new) <= new / STIR {
            return;
        }
        self.level[index] = new;
        let changed = old.min(new);
        for place in 0..self.users[index].len() {
            let User { id, other } = self.users[index][place];
            self.stir(id);
            if other != MANY {
                // A link that is tighter than this one before and after does not feel the change.
                if changed < self.level[other as usize] {
                    self.mark(other);
                }
                continue;
            }
            let flow = &self.flows[id as usize];
            let (links, count) = (flow.links, usize::from(flow.link_count));
            for other in &links[..count] {
                if *other != at && changed < self.level[*other as usize] {
                    self.mark(*other);
                }
            }
        }
    }

    fn mark(&mut self, link: u32) {
        if !std::mem::replace(&mut self.is_dirty[link as usize], true) {
            self.dirty.push(link);
        }
    }

    fn mark_all(&mut self, id: u32) {
        let flow = &self.flows[id as usize];
        let (links, count) = (flow.links, usize::from(flow.link_count));
        for link in &links[..count] {
            self.mark(*link);
        }
    }

    fn stir(&mut self, id: u32) {
        if !std::mem::replace(&mut self.is_stirred[id as usize], true) {
            self.stirred.push(id);
        }
    }

    fn remove(&mut self, id: u32) -> Ended {
        self.mark_all(id);
        let flow = &mut self.flows[id as usize];
        self.is_stirred[id as usize] = false;
        flow.queued = Time(u64::MAX);
        flow.life += 1;
        let bytes = flow.total_bytes - flow.left.div_ceil(NANO);
        let ended = Ended { tag: flow.tag, bytes };
        let (links, places, count) = (flow.links, flow.places, usize::from(flow.link_count));
        for (link, place) in links[..count].iter().zip(places) {
            let users = &mut self.users[*link as usize];
            users.swap_remove(place as usize);
            if let Some(moved) = users.get(place as usize) {
                let moved = &mut self.flows[moved.id as usize];
                if let Some(at) = moved.links().iter().position(|of| of == link) {
                    moved.places[at] = place;
                }
            }
        }
        self.sent_bytes[links[0] as usize / 2] += bytes;
        self.free.push(id);
        self.running -= 1;
        ended
    }
}

/// The most that a link of this capacity gives one flow, where each flow can use no more than its limit. Above all
/// limits if they leave something: what one of them could have if it had no other limit.
fn fair_level(capacity: u64, limits: &mut [u64]) -> u64 {
    let highest = limits.iter().copied().max().unwrap_or(0);
    let (mut left, mut open) = (capacity, limits.len());
    while open > 0 {
        // Whoever wants less than an even share gets it; that makes the share of the others no smaller.
        let even = left.div_ceil(open as u64);
        let (mut kept, mut given) = (0, 0);
        for at in 0..open {
            let limit = limits[at];
            limits[kept] = limit;
            kept += usize::from(limit >= even);
            given += if limit < even { limit } else { 0 };
        }
        if kept == open {
            return left / open as u64;
        }
        left -= given;
        open = kept;
    }
    left + highest
}

fn link(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

impl Flow {
    fn links(&self) -> &[u32] {
        &self.links[..usize::from(self.link_count)]
    }

    fn advance(&mut self, now: Time) {
        let ns = now.0.saturating_sub(self.since.0);
        let moved = u128::from(self.rate_bytes_per_s) * u128::from(ns);
        self.left = self.left.saturating_sub(u64::try_from(moved).unwrap_or(u64::MAX));
        self.since = now;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rate(network: &Network, id: FlowId) -> u64 {
        network.flows[id.0 as usize].rate_bytes_per_s
    }

    #[test]
    fn a_tight_downlink_leaves_its_share_of_the_uplink_to_others() {
        // Host 0 sends to 1 (downlink 10) and 2 (downlink 1000) over an uplink of 100.
        let mut network = Network::new(&[(100, 100, None), (100, 10, None), (100, 1_000, None)], &[]);
        let slow = network.start(Time(0), 0, 1, 100, 1);
        let quick = network.start(Time(0), 0, 2, 900, 2);
        network.share(Time(0));
        assert_eq!((rate(&network, slow), rate(&network, quick)), (10, 90));
        assert_eq!(network.next_end(), Some(Time(10_000_000_000)));
        assert_eq!(network.pop_ended(Time(9_999_999_999)), None);
        assert_eq!(network.stop(Time(5_000_000_000), quick), Ended { tag: 2, bytes: 450 });
        assert_eq!(network.pop_ended(Time(10_000_000_000)), Some(Ended { tag: 1, bytes: 100 }));
        assert_eq!((network.flow_count(), network.sent_bytes(0)), (0, 550));
    }

    #[test]
    fn equal_flows_share_equally_and_speed_up_when_one_ends() {
        let mut network = Network::new(&[(100, 100, None); 3], &[]);
        network.start(Time(0), 0, 1, 50, 1);
        network.start(Time(0), 0, 2, 100, 2);
        network.share(Time(0));
        assert_eq!(network.pop_ended(Time(1_000_000_000)).map(|ended| ended.tag), Some(1));
        network.share(Time(1_000_000_000));
        assert_eq!(network.next_end(), Some(Time(1_500_000_000)));
        assert_eq!(network.pop_ended(Time(1_500_000_000)).map(|ended| ended.tag), Some(2));
    }

    #[test]
    fn a_rack_uplink_is_shared_by_what_leaves_the_rack() {
        let hosts: Vec<(u64, u64, Option<u32>)> = (0..4).map(|h| (100, 100, Some(h / 2))).collect();
        let mut network = Network::new(&hosts, &[(50, 50), (50, 50)]);
        let inside = network.start(Time(0), 0, 1, 1_000, 0);
        let (one, two) = (network.start(Time(0), 0, 2, 1_000, 0), network.start(Time(0), 1, 3, 1_000, 0));
        network.share(Time(0));
        assert_eq!((rate(&network, one), rate(&network, two), rate(&network, inside)), (25, 25, 75));
        assert!(network.crosses(0, 2) && !network.crosses(0, 1));
    }

    proptest! {
        /// Against progressive filling: raise all rates together, fix those on a link that is full.
        #[test]
        fn rates_are_max_min_fair(
            capacities in prop::collection::vec((10u64..1_000, 10u64..1_000), 2..8),
            pairs in prop::collection::vec((0usize..8, 0usize..8), 1..30),
        ) {
            let hosts: Vec<_> = capacities.iter().map(|(up, down)| (up * 1_000, down * 1_000, None)).collect();
            let mut network = Network::new(&hosts, &[]);
            let pairs: Vec<_> = pairs.iter().map(|(a, b)| (a % hosts.len(), b % hosts.len())).collect();
            let ids: Vec<_> =
                pairs.iter().map(|(from, to)| network.start(Time(0), *from, *to, 1, 0)).collect();
            for _ in 0..50 {
                network.share(Time(0));
            }
            let mut fair = vec![None; pairs.len()];
            let mut left: Vec<f64> = hosts.iter().flat_map(|(up, down, _)| [*up as f64, *down as f64]).collect();
            while fair.iter().any(Option::is_none) {
                let open = |link: usize| {
                    let uses = |(at, (from, to)): (usize, &(usize, usize))| {
                        fair[at].is_none() && (2 * from == link || 2 * to + 1 == link)
                    };
                    pairs.iter().enumerate().filter(|entry| uses(*entry)).count()
                };
                let (tight, share) = (0..left.len())
                    .filter(|link| open(*link) > 0)
                    .map(|link| (link, left[link] / open(link) as f64))
                    .min_by(|a, b| a.1.total_cmp(&b.1))
                    .expect("a link is open");
                for (at, (from, to)) in pairs.iter().enumerate() {
                    if fair[at].is_none() && (2 * from == tight || 2 * to + 1 == tight) {
                        fair[at] = Some(share);
                        left[2 * from] -= share;
                        left[2 * to + 1] -= share;
                    }
                }
            }
            for (id, fair) in ids.iter().zip(fair) {
                let (got, fair) = (rate(&network, *id) as f64, fair.expect("filled"));
                prop_assert!((got - fair).abs() <= fair / 50.0, "{got} instead of {fair}");
            }
        }
    }
}
