//! What happens next: events by time, and in order of their making where times are equal.
//!
//! Most events are messages that take one of a few fixed latencies: each latency has a lane, and a lane is in order by
//! itself. Only the rest needs a heap.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use weighlock_protocol::Time;

/// A queue of future events.
#[derive(Debug)]
pub struct Queue<E> {
    lanes: Vec<Lane<E>>,
    /// What has no lane, by its place in `rest`: short rows are quick to move.
    heap: BinaryHeap<Reverse<(Time, u64, u32)>>,
    rest: Vec<Option<E>>,
    free: Vec<u32>,
    next: u64,
}

#[derive(Debug)]
struct Lane<E> {
    delay: Duration,
    events: VecDeque<Entry<E>>,
}

#[derive(Debug)]
struct Entry<E> {
    key: (Time, u64),
    event: E,
}

impl<E> Queue<E> {
    /// An empty queue with a lane per latency.
    pub fn new(latencies: &[Duration]) -> Self {
        let lanes = latencies.iter().map(|delay| Lane { delay: *delay, events: VecDeque::new() });
        Self { lanes: lanes.collect(), heap: BinaryHeap::new(), rest: Vec::new(), free: Vec::new(), next: 0 }
    }

    /// Lets `event` happen at `at`.
    pub fn push(&mut self, at: Time, event: E) {
        let number = self.number();
        let place = match self.free.pop() {
            Some(place) => {
                self.rest[place as usize] = Some(event);
                place
            }
            None => {
                self.rest.push(Some(event));
                u32::try_from(self.rest.len() - 1).unwrap_or(u32::MAX)
            }
        };
        self.heap.push(Reverse((at, number, place)));
    }

    /// Lets `event` happen after the latency of `lane`. `now` never decreases from call to call.
    pub fn send(&mut self, now: Time, lane: u8, event: E) {
        let number = self.number();
        let lane = &mut self.lanes[usize::from(lane)];
        lane.events.push_back(Entry { key: (now + lane.delay, number), event });
    }

    /// When the earliest event happens.
    pub fn next_at(&self) -> Option<Time> {
        let lane = self.lanes.iter().filter_map(|lane| lane.events.front()).map(|entry| entry.key.0).min();
        let heap = self.heap.peek().map(|entry| entry.0.0);
        lane.into_iter().chain(heap).min()
    }

    /// Takes the earliest event.
    pub fn pop(&mut self) -> Option<(Time, E)> {
        let mut first = self.heap.peek().map(|entry| ((entry.0.0, entry.0.1), None));
        for (index, lane) in self.lanes.iter().enumerate() {
            if let Some(entry) = lane.events.front()
                && first.is_none_or(|(key, _)| entry.key < key)
            {
                first = Some((entry.key, Some(index)));
            }
        }
        if let (_, Some(lane)) = first? {
            return self.lanes[lane].events.pop_front().map(|entry| (entry.key.0, entry.event));
        }
        let Reverse((at, _, place)) = self.heap.pop()?;
        self.free.push(place);
        self.rest[place as usize].take().map(|event| (at, event))
    }

    /// Events waiting.
    pub fn len(&self) -> usize {
        self.heap.len() + self.lanes.iter().map(|lane| lane.events.len()).sum::<usize>()
    }

    /// True if nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn earliest_first_and_equal_times_in_order_of_making() {
        let mut queue = Queue::new(&[Duration::from_nanos(4), Duration::from_nanos(1)]);
        queue.push(Time(5), 'c');
        queue.push(Time(1), 'a');
        queue.send(Time(1), 0, 'd');
        queue.send(Time(1), 1, 'b');
        queue.push(Time(5), 'e');
        queue.send(Time(1), 0, 'f');
        assert_eq!((queue.len(), queue.next_at()), (6, Some(Time(1))));
        let all: String = std::iter::from_fn(|| queue.pop()).map(|(_, what)| what).collect();
        assert_eq!(all, "abcdef");
        assert!(queue.is_empty());
    }
}
