//! When what is due: one time per key, in order.

use std::collections::{BTreeMap, BTreeSet};

use super::io::{PieceNo, SlotId, WorkId};
use crate::time::Time;

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Due {
    /// A fetch is late.
    Slot(SlotId),
    /// A promise was not used.
    Promise(u64),
    /// News is to be told.
    News(WorkId),
    /// Look whether the manifest starves.
    Starve(WorkId),
    /// The next host of the rack takes its turn.
    Turn(WorkId),
    /// Look for neighbours.
    Neighbours(WorkId),
    /// A released piece was not seen at a neighbour.
    Release(WorkId, PieceNo),
    /// Uploads may go on.
    Uploads,
}

/// Owns the times.
#[derive(Debug, Default)]
pub(super) struct Timers {
    at: BTreeMap<Due, Time>,
    order: BTreeSet<(Time, Due)>,
}

impl Timers {
    /// Sets the time of a key, whatever it was.
    pub(super) fn set(&mut self, due: Due, at: Time) {
        if let Some(old) = self.at.insert(due, at) {
            self.order.remove(&(old, due));
        }
        self.order.insert((at, due));
    }

    /// Sets it unless it is due earlier.
    pub(super) fn set_earlier(&mut self, due: Due, at: Time) {
        if self.at.get(&due).is_none_or(|old| *old > at) {
            self.set(due, at);
        }
    }

    pub(super) fn clear(&mut self, due: Due) {
        if let Some(old) = self.at.remove(&due) {
            self.order.remove(&(old, due));
        }
    }

    pub(super) fn clear_work(&mut self, work: WorkId) {
        let of_work = |due: &Due| match due {
            Due::News(w) | Due::Starve(w) | Due::Turn(w) | Due::Neighbours(w) | Due::Release(w, _) => {
                *w == work
            }
            Due::Slot(_) | Due::Promise(_) | Due::Uploads => false,
        };
        let gone: Vec<Due> = self.at.keys().copied().filter(of_work).collect();
        gone.into_iter().for_each(|due| self.clear(due));
    }

    /// Takes one that is due by `now`.
    pub(super) fn pop(&mut self, now: Time) -> Option<Due> {
        let (at, due) = *self.order.first()?;
        (at <= now).then(|| {
            self.clear(due);
            due
        })
    }

    /// When the next one is due.
    pub(super) fn next(&self) -> Option<Time> {
        self.order.first().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_time_per_key_in_order() {
        let mut timers = Timers::default();
        timers.set(Due::Uploads, Time(5));
        timers.set(Due::News(WorkId(1)), Time(3));
        timers.set_earlier(Due::Uploads, Time(9));
        assert_eq!(timers.next(), Some(Time(3)));
        timers.set(Due::News(WorkId(1)), Time(7));
        assert_eq!(timers.pop(Time(4)), None);
        assert_eq!(timers.pop(Time(7)), Some(Due::Uploads));
        timers.clear_work(WorkId(1));
        assert_eq!((timers.pop(Time(9)), timers.next()), (None, None));
    }
}
