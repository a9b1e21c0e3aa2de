//! The network at the level of flows: each host's uplink and downlink is shared max-min fairly by what runs over it.

use std::collections::{BTreeMap, BTreeSet};

use weighlock_protocol::Time;

const NANO: u128 = 1_000_000_000;

/// Names one transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlowId(pub u64);

#[derive(Debug)]
struct Flow {
    up: usize,
    down: usize,
    total_bytes: u64,
    /// In billionths of a byte, so that rates times nanoseconds are exact.
    left: u128,
    rate_bytes_per_s: u64,
    since: Time,
    ends: Option<Time>,
}

/// Links and what runs over them. Rates change only when [`Network::share`] is called.
#[derive(Debug)]
pub struct Network {
    /// Capacity in bytes per second: uplink of host `h` at `2h`, downlink at `2h + 1`.
    capacity: Vec<u64>,
    flows: BTreeMap<FlowId, Flow>,
    ends: BTreeSet<(Time, FlowId)>,
    next: u64,
}

impl Network {
    /// Hosts by their (uplink, downlink) in bytes per second.
    pub fn new(hosts: &[(u64, u64)]) -> Self {
        Self {
            capacity: hosts.iter().flat_map(|(up, down)| [*up, *down]).collect(),
            flows: BTreeMap::new(),
            ends: BTreeSet::new(),
            next: 0,
        }
    }

    /// Begins a transfer. It moves from the next [`Network::share`] on.
    pub fn start(&mut self, now: Time, from: usize, to: usize, bytes: u64) -> FlowId {
        let id = FlowId(self.next);
        self.next += 1;
        let flow = Flow {
            up: 2 * from,
            down: 2 * to + 1,
            total_bytes: bytes,
            left: u128::from(bytes) * NANO,
            rate_bytes_per_s: 0,
            since: now,
            ends: None,
        };
        self.flows.insert(id, flow);
        id
    }

    /// Ends a transfer early. Returns the bytes that it moved.
    pub fn stop(&mut self, now: Time, id: FlowId) -> Option<u64> {
        let mut flow = self.flows.remove(&id)?;
        if let Some(at) = flow.ends {
            self.ends.remove(&(at, id));
        }
        flow.advance(now);
        let left = u64::try_from(flow.left.div_ceil(NANO)).unwrap_or(u64::MAX);
        Some(flow.total_bytes.saturating_sub(left))
    }

    /// When the next transfer ends at the present rates.
    pub fn next_end(&self) -> Option<Time> {
        self.ends.first().map(|(at, _)| *at)
    }

    /// Takes a transfer that ended by `now`.
    pub fn pop_ended(&mut self, now: Time) -> Option<FlowId> {
        let (at, id) = *self.ends.first()?;
        if at > now {
            return None;
        }
        self.ends.pop_first();
        self.flows.remove(&id);
        Some(id)
    }

    /// Transfers that run.
    pub fn flow_count(&self) -> usize {
        self.flows.len()
    }

    /// Shares all links anew: the tightest link is split evenly, what its flows leave elsewhere goes to the others.
    pub fn share(&mut self, now: Time) {
        let mut users: BTreeMap<usize, Vec<FlowId>> = BTreeMap::new();
        for (id, flow) in &mut self.flows {
            flow.advance(now);
            users.entry(flow.up).or_default().push(*id);
            users.entry(flow.down).or_default().push(*id);
        }
        let mut left = self.capacity.clone();
        let mut open: BTreeMap<usize, u64> =
            users.iter().map(|(port, flows)| (*port, flows.len() as u64)).collect();
        let mut tightest: BTreeSet<(u64, usize)> =
            open.iter().map(|(port, count)| (left[*port] / count, *port)).collect();
        let mut fixed: BTreeMap<FlowId, u64> = BTreeMap::new();
        while let Some((rate, port)) = tightest.pop_first() {
            for id in users.get(&port).into_iter().flatten() {
                if fixed.contains_key(id) {
                    continue;
                }
                fixed.insert(*id, rate);
                let flow = &self.flows[id];
                let other = if flow.up == port { flow.down } else { flow.up };
                let Some(count) = open.get_mut(&other) else {
                    continue;
                };
                if let Some(share) = left[other].checked_div(*count) {
                    tightest.remove(&(share, other));
                }
                left[other] -= rate.min(left[other]);
                *count -= 1;
                if let Some(share) = left[other].checked_div(*count) {
                    tightest.insert((share, other));
                }
            }
            open.remove(&port);
        }
        self.ends.clear();
        for (id, flow) in &mut self.flows {
            // A link of less than a byte a second per flow still moves: no run hangs on rounding.
            flow.rate_bytes_per_s = fixed.get(id).copied().unwrap_or(0).max(1);
            let ns = flow.left.div_ceil(u128::from(flow.rate_bytes_per_s));
            let at = Time(now.0.saturating_add(u64::try_from(ns).unwrap_or(u64::MAX)));
            flow.ends = Some(at);
            self.ends.insert((at, *id));
        }
    }
}

impl Flow {
    fn advance(&mut self, now: Time) {
        let ns = now.0.saturating_sub(self.since.0);
        self.left = self.left.saturating_sub(u128::from(self.rate_bytes_per_s) * u128::from(ns));
        self.since = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tight_downlink_leaves_its_share_of_the_uplink_to_others() {
        // Host 0 sends to 1 (downlink 10) and 2 (downlink 1000) over an uplink of 100.
        let mut network = Network::new(&[(100, 100), (100, 10), (100, 1_000)]);
        let slow = network.start(Time(0), 0, 1, 100);
        let quick = network.start(Time(0), 0, 2, 900);
        network.share(Time(0));
        assert_eq!(network.flows[&slow].rate_bytes_per_s, 10);
        assert_eq!(network.flows[&quick].rate_bytes_per_s, 90);
        assert_eq!(network.next_end(), Some(Time(10_000_000_000)));
        assert_eq!(network.pop_ended(Time(9_999_999_999)), None);
        assert_eq!(network.stop(Time(5_000_000_000), quick), Some(450));
        assert_eq!(network.pop_ended(Time(10_000_000_000)), Some(slow));
        assert_eq!(network.flow_count(), 0);
    }

    #[test]
    fn equal_flows_share_equally_and_speed_up_when_one_ends() {
        let mut network = Network::new(&[(100, 100), (100, 100), (100, 100)]);
        let first = network.start(Time(0), 0, 1, 50);
        let second = network.start(Time(0), 0, 2, 100);
        network.share(Time(0));
        assert_eq!(network.pop_ended(Time(1_000_000_000)), Some(first));
        network.share(Time(1_000_000_000));
        assert_eq!(network.next_end(), Some(Time(1_500_000_000)));
        assert_eq!(network.pop_ended(Time(1_500_000_000)), Some(second));
    }
}
