//! When what is due: one time per key, in order.

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

/// Owns the times: the latest first, so that the next one is taken off the end. A host has few of them at a time, which
/// a list in one place serves better than a tree.
#[derive(Debug, Default)]
pub(super) struct Timers {
    order: Vec<(Time, Due)>,
    /// When the next one is due: asked after every input, and mostly nothing is.
    next: Option<Time>,
}

impl Timers {
    /// Sets the time of a key, whatever it was.
    pub(super) fn set(&mut self, due: Due, at: Time) {
        self.clear(due);
        self.insert(due, at);
    }

    /// Sets it unless it is due earlier.
    pub(super) fn set_earlier(&mut self, due: Due, at: Time) {
        match self.find(due) {
            Some(old) if self.order[old].0 <= at => return,
            Some(old) => {
                self.order.remove(old);
            }
            None => {}
        }
        self.insert(due, at);
    }

    pub(super) fn clear(&mut self, due: Due) {
        if let Some(at) = self.find(due) {
            self.order.remove(at);
            self.look();
        }
    }

    pub(super) fn clear_work(&mut self, work: WorkId) {
        let of_work = |due: &Due| match due {
            Due::News(w) | Due::Starve(w) | Due::Turn(w) | Due::Neighbours(w) | Due::Release(w, _) => {
                *w == work
            }
            Due::Slot(_) | Due::Promise(_) | Due::Uploads => false,
        };
        self.order.retain(|(_, due)| !of_work(due));
        self.look();
    }

    /// Takes one that is due by `now`.
    pub(super) fn pop(&mut self, now: Time) -> Option<Due> {
        self.next.filter(|at| *at <= now)?;
        let due = self.order.pop().map(|(_, due)| due);
        self.look();
        due
    }

    /// When the next one is due.
    pub(super) fn next(&self) -> Option<Time> {
        self.next
    }

    fn look(&mut self) {
        self.next = self.order.last().map(|(at, _)| *at);
    }

    fn find(&self, due: Due) -> Option<usize> {
        self.order.iter().position(|(_, other)| *other == due)
    }

    fn insert(&mut self, due: Due, at: Time) {
        let later = self.order.partition_point(|other| *other > (at, due));
        self.order.insert(later, (at, due));
        self.look();
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
