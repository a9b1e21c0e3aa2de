//! What happens when, for very many things whose times lie close together: earliest first.
//!
//! A day is a short stretch of time. What belongs to later days lies in its day in no order, which costs nothing; only
//! the present day is in order. So neither grows with the logarithm of all, and each is in one place in memory.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use weighlock_protocol::Time;

/// A day has two to this power nanoseconds.
const DAY_BITS: u32 = 18;
/// Days that have a place of their own, about half a second; what comes later waits together.
const DAYS: u64 = 2_048;

/// When, and what: an id and which use of it.
pub type Entry = (Time, u32, u32);

/// Entries by time, then by the rest.
#[derive(Debug)]
pub struct Calendar {
    /// The day that is in order.
    today: u64,
    now: BinaryHeap<Reverse<Entry>>,
    /// Of day `d` at `d % DAYS`: those after today, up to [`DAYS`] ahead.
    days: Vec<Vec<Entry>>,
    /// How many are in `days`.
    soon: usize,
    later: BinaryHeap<Reverse<Entry>>,
}

impl Default for Calendar {
    fn default() -> Self {
        let days = (0..DAYS).map(|_| Vec::new()).collect();
        Self { today: 0, now: BinaryHeap::new(), days, soon: 0, later: BinaryHeap::new() }
    }
}

impl Calendar {
    /// Adds one.
    pub fn push(&mut self, entry: Entry) {
        let day = day(entry);
        if day <= self.today {
            self.now.push(Reverse(entry));
        } else if day - self.today < DAYS {
            self.days[place(day)].push(entry);
            self.soon += 1;
        } else {
            self.later.push(Reverse(entry));
        }
    }

    /// The earliest.
    pub fn first(&mut self) -> Option<Entry> {
        while self.now.is_empty() {
            self.turn()?;
        }
        self.now.peek().map(|entry| entry.0)
    }

    /// Takes the earliest.
    pub fn pop(&mut self) -> Option<Entry> {
        self.first()?;
        self.now.pop().map(|entry| entry.0)
    }

    /// Goes on to the next day that may have something. None if nothing is left.
    fn turn(&mut self) -> Option<()> {
        self.today = match self.soon {
            0 => day(self.later.peek()?.0),
            _ => self.today + 1,
        };
        let here = &mut self.days[place(self.today)];
        self.soon -= here.len();
        self.now.extend(here.drain(..).map(Reverse));
        while let Some(entry) = self.later.peek().map(|entry| entry.0)
            && day(entry).saturating_sub(self.today) < DAYS
        {
            self.later.pop();
            self.push(entry);
        }
        Some(())
    }
}

fn day((at, ..): Entry) -> u64 {
    at.0 >> DAY_BITS
}

fn place(day: u64) -> usize {
    usize::try_from(day % DAYS).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a heap, with times from one day to far beyond all, some of the past, taken in between.
        #[test]
        fn entries_come_as_from_a_heap(
            steps in prop::collection::vec((0u32..60, any::<u64>(), 0u32..4, 0usize..4), 1..200)
        ) {
            let (mut calendar, mut heap) = (Calendar::default(), BinaryHeap::new());
            let mut last = 0u64;
            for (bits, at, id, taken) in steps {
                let entry = (Time(last.saturating_add(at & ((1 << bits) - 1)).saturating_sub(1 << 17)), id, 0);
                calendar.push(entry);
                heap.push(Reverse(entry));
                for _ in 0..taken {
                    prop_assert_eq!(calendar.first(), heap.peek().map(|entry| entry.0));
                    let next = heap.pop().map(|entry| entry.0);
                    prop_assert_eq!(calendar.pop(), next);
                    last = next.map_or(last, |(at, ..)| at.0);
                }
            }
            while let Some(Reverse(entry)) = heap.pop() {
                prop_assert_eq!(calendar.pop(), Some(entry));
            }
            prop_assert_eq!(calendar.first(), None);
        }
    }
}
