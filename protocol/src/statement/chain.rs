//! Per-author chains: which chained statements stand in line, which wait, and who spoke twice at one place.

use std::collections::{BTreeMap, BTreeSet};

use super::body::Chain;
use crate::id::{KeyId, StatementId};

/// Where a chained statement stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// All before it are here.
    Linked,
    /// One before it is not here yet.
    Waits {
        /// The nearest that is missing.
        missing: StatementId,
    },
    /// What it names as its predecessor is no predecessor, and never will be.
    Broken,
}

/// All chains of all authors. Grows only; every answer is a function of the set of links.
#[derive(Debug, Clone, Default)]
pub(super) struct Chains {
    authors: BTreeMap<KeyId, Author>,
    links: BTreeMap<StatementId, Link>,
}

#[derive(Debug, Clone, Default)]
struct Author {
    by_seq: BTreeMap<u64, BTreeSet<StatementId>>,
    linked: BTreeSet<StatementId>,
    head: Option<(u64, StatementId)>,
    forked_at: Option<u64>,
    waiting: usize,
}

#[derive(Debug, Clone, Copy)]
struct Link {
    author: KeyId,
    chain: Chain,
}

impl Chains {
    /// Adds a statement of `author`.
    pub(super) fn insert(&mut self, id: StatementId, author: KeyId, chain: Chain) {
        if self.links.insert(id, Link { author, chain }).is_some() {
            return;
        }
        let a = self.authors.entry(author).or_default();
        let at = a.by_seq.entry(chain.seq).or_default();
        at.insert(id);
        if at.len() > 1 {
            a.forked_at = Some(a.forked_at.map_or(chain.seq, |seq| seq.min(chain.seq)));
        }
        a.waiting += 1;
        let mut ready = vec![(id, chain)];
        while let Some((id, chain)) = ready.pop() {
            let linked = match chain.prev {
                None => chain.seq == 0,
                Some(prev) => {
                    a.linked.contains(&prev) && self.links.get(&prev).is_some_and(|l| l.before(chain))
                }
            };
            if !linked || !a.linked.insert(id) {
                continue;
            }
            a.waiting -= 1;
            // Of two bodies at one place any serves as the head, as long as every host takes the same.
            let better =
                |head: (u64, StatementId)| chain.seq > head.0 || (chain.seq == head.0 && id < head.1);
            if a.head.is_none_or(better) {
                a.head = Some((chain.seq, id));
            }
            let next = chain.seq.checked_add(1).and_then(|seq| a.by_seq.get(&seq));
            for after in next.into_iter().flatten() {
                if let Some(link) = self.links.get(after) {
                    ready.push((*after, link.chain));
                }
            }
        }
    }

    /// Where statement `id` stands; `None` if it has no chain or is not here.
    pub(super) fn place(&self, id: &StatementId) -> Option<Place> {
        let mut link = self.links.get(id)?;
        let author = self.authors.get(&link.author)?;
        if author.linked.contains(id) {
            return Some(Place::Linked);
        }
        // Sequence numbers fall by one on every step, so this ends.
        while let Some(prev) = link.chain.prev {
            let Some(before) = self.links.get(&prev) else {
                return Some(Place::Waits { missing: prev });
            };
            if before.author != link.author || !before.before(link.chain) {
                return Some(Place::Broken);
            }
            link = before;
        }
        Some(Place::Broken)
    }

    /// Whether statement `id` stands in line.
    pub(super) fn is_linked(&self, id: &StatementId) -> bool {
        self.links
            .get(id)
            .and_then(|link| self.authors.get(&link.author))
            .is_some_and(|author| author.linked.contains(id))
    }

    /// Whether `chain` by `author` would stand in line at once.
    pub(super) fn would_link(&self, author: &KeyId, chain: Chain) -> bool {
        chain.prev.is_none_or(|prev| self.authors.get(author).is_some_and(|a| a.linked.contains(&prev)))
    }

    /// How many statements of `author` are here but not in line.
    pub(super) fn waiting(&self, author: &KeyId) -> usize {
        self.authors.get(author).map_or(0, |a| a.waiting)
    }

    /// The lowest place at which `author` said two things.
    pub(super) fn forked_at(&self, author: &KeyId) -> Option<u64> {
        self.authors.get(author).and_then(|a| a.forked_at)
    }

    /// The place for `author`'s next statement.
    pub(super) fn next(&self, author: &KeyId) -> Chain {
        match self.authors.get(author).and_then(|a| a.head) {
            Some((seq, id)) => Chain { seq: seq.saturating_add(1), prev: Some(id) },
            None => Chain { seq: 0, prev: None },
        }
    }

    /// Every author with two bodies at one place: the lowest place, and the bodies there.
    pub(super) fn forks(&self) -> impl Iterator<Item = (KeyId, u64, &BTreeSet<StatementId>)> {
        self.authors.iter().filter_map(|(key, a)| {
            let seq = a.forked_at?;
            Some((*key, seq, a.by_seq.get(&seq)?))
        })
    }
}

impl Link {
    fn before(&self, chain: Chain) -> bool {
        self.chain.seq.checked_add(1) == Some(chain.seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: KeyId = KeyId([1; 32]);

    fn id(n: u8) -> StatementId {
        StatementId([n; 32])
    }

    fn chain(seq: u64, prev: Option<u8>) -> Chain {
        Chain { seq, prev: prev.map(id) }
    }

    #[test]
    fn late_predecessors_bring_the_rest_into_line() {
        let mut chains = Chains::default();
        chains.insert(id(3), A, chain(2, Some(2)));
        chains.insert(id(2), A, chain(1, Some(1)));
        assert_eq!(chains.place(&id(3)), Some(Place::Waits { missing: id(1) }));
        assert_eq!((chains.waiting(&A), chains.next(&A)), (2, chain(0, None)));
        chains.insert(id(1), A, chain(0, None));
        assert_eq!(chains.place(&id(3)), Some(Place::Linked));
        assert_eq!((chains.waiting(&A), chains.next(&A)), (0, chain(3, Some(3))));
    }

    #[test]
    fn a_wrong_predecessor_never_links() {
        let mut chains = Chains::default();
        chains.insert(id(1), A, chain(0, None));
        chains.insert(id(2), A, chain(5, Some(1)));
        chains.insert(id(3), KeyId([2; 32]), chain(1, Some(1)));
        assert_eq!(chains.place(&id(2)), Some(Place::Broken));
        assert_eq!(chains.place(&id(3)), Some(Place::Broken));
    }

    #[test]
    fn two_bodies_at_one_place_are_found_in_any_order() {
        let links =
            [(1, chain(0, None)), (2, chain(1, Some(1))), (3, chain(1, Some(1))), (4, chain(2, Some(3)))];
        for rotation in 0..links.len() {
            let mut chains = Chains::default();
            for i in 0..links.len() {
                let (n, c) = links[(i + rotation) % links.len()];
                chains.insert(id(n), A, c);
            }
            assert_eq!(chains.forked_at(&A), Some(1));
            assert_eq!(chains.place(&id(4)), Some(Place::Linked));
            assert_eq!(chains.next(&A), chain(3, Some(4)));
            assert_eq!(chains.forks().map(|(_, seq, ids)| (seq, ids.len())).collect::<Vec<_>>(), [(1, 2)]);
        }
    }
}
