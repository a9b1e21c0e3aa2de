//! A set of pieces, one bit each.

use smallvec::SmallVec;

use super::io::PieceNo;

/// So many words stand in the set itself, so that whoever looks at it need not follow where they are: 512 pieces.
const WORDS_HERE: usize = 8;

/// Pieces by number, for a manifest with a fixed count of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PieceSet {
    words: SmallVec<[u64; WORDS_HERE]>,
    len: u32,
}

impl PieceSet {
    /// An empty set for `count` pieces.
    pub fn new(count: usize) -> Self {
        Self { words: SmallVec::from_elem(0, count.div_ceil(64)), len: 0 }
    }

    /// Pieces in it.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// True if nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a piece below the count. True if it is new.
    pub fn insert(&mut self, piece: PieceNo) -> bool {
        let Some(word) = self.words.get_mut(piece as usize / 64) else {
            return false;
        };
        let bit = 1 << (piece % 64);
        let new = *word & bit == 0;
        *word |= bit;
        self.len += u32::from(new);
        new
    }

    /// Takes a piece out. True if it was in.
    pub fn remove(&mut self, piece: PieceNo) -> bool {
        // Without a look at memory far away, for the many sets that are empty.
        if self.len == 0 {
            return false;
        }
        let Some(word) = self.words.get_mut(piece as usize / 64) else {
            return false;
        };
        let bit = 1 << (piece % 64);
        let was = *word & bit != 0;
        *word &= !bit;
        self.len -= u32::from(was);
        was
    }

    /// True if the piece is in it.
    pub fn contains(&self, piece: PieceNo) -> bool {
        self.words.get(piece as usize / 64).is_some_and(|word| word & (1 << (piece % 64)) != 0)
    }

    /// All pieces, in order.
    pub fn iter(&self) -> impl Iterator<Item = PieceNo> + '_ {
        (0u32..).zip(&self.words).flat_map(|(at, &word)| {
            let mut left = word;
            std::iter::from_fn(move || {
                let bit = (left != 0).then(|| left.trailing_zeros())?;
                left &= left - 1;
                Some(at * 64 + bit)
            })
        })
    }

    /// The lowest piece.
    pub fn first(&self) -> Option<PieceNo> {
        self.iter().next()
    }

    /// How many pieces lie below the first one that is not in the set.
    pub fn prefix(&self) -> u32 {
        let full = self.words.iter().take_while(|word| **word == u64::MAX).count();
        let rest = self.words.get(full).map_or(0, |word| word.trailing_ones());
        u32::try_from(full * 64).unwrap_or(u32::MAX) + rest
    }

    /// How many pieces are in both sets.
    pub fn common_count(&self, other: &Self) -> u64 {
        self.words.iter().zip(&other.words).map(|(a, b)| u64::from((a & b).count_ones())).sum()
    }

    /// The `n`-th piece, counted from 0, that is in both sets.
    pub fn common_nth(&self, other: &Self, n: u64) -> Option<PieceNo> {
        nth((0u32..).zip(self.words.iter().zip(&other.words)).map(|(at, (a, b))| (at, a & b)), n)
    }

    /// True if more than `count` pieces are in it and not in `other`.
    pub fn exceeds(&self, other: &Self, count: u32) -> bool {
        let mut left = count;
        self.words.iter().zip(&other.words).any(|(a, b)| {
            let more = (a & !b).count_ones();
            let exceeds = more > left;
            left = left.saturating_sub(more);
            exceeds
        })
    }

    /// The lowest piece that is in both sets.
    pub fn common_first(&self, other: &Self) -> Option<PieceNo> {
        self.common_nth(other, 0)
    }

    /// The lowest piece that is in `self`, `other` and `third`, and not in `without`.
    pub fn first_of(&self, other: &Self, third: &Self, without: &Self) -> Option<PieceNo> {
        let words = self.words.iter().zip(&other.words).zip(third.words.iter().zip(&without.words));
        nth((0u32..).zip(words).map(|(at, ((a, b), (c, d)))| (at, a & b & c & !d)), 0)
    }

    /// Like [`PieceSet::first_of`], from `start` on and around.
    pub fn first_of_from(
        &self,
        start: PieceNo,
        other: &Self,
        third: &Self,
        without: &Self,
    ) -> Option<PieceNo> {
        let words = self.words.len().min(other.words.len());
        let begin = (start as usize / 64).min(words.saturating_sub(1));
        (0..words).find_map(|step| {
            let at = (begin + step) % words;
            let both = self.words[at] & other.words[at] & third.words[at] & !without.words[at];
            (both != 0).then(|| PieceNo::try_from(at * 64).unwrap_or(0) + both.trailing_zeros())
        })
    }
}

fn nth(words: impl Iterator<Item = (u32, u64)>, mut n: u64) -> Option<PieceNo> {
    for (at, mut word) in words {
        let count = u64::from(word.count_ones());
        if n >= count {
            n -= count;
            continue;
        }
        for _ in 0..n {
            word &= word - 1;
        }
        return Some(at * 64 + word.trailing_zeros());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_count_and_choose() {
        let (mut a, mut b) = (PieceSet::new(200), PieceSet::new(200));
        for no in (0..200).step_by(3) {
            assert!(a.insert(no) && !a.insert(no));
        }
        for no in (0..200).step_by(5) {
            b.insert(no);
        }
        assert_eq!((a.len(), b.len(), a.common_count(&b)), (67, 40, 14));
        assert!(a.exceeds(&b, 52) && !a.exceeds(&b, 53) && !a.exceeds(&a, 0), "53 of 67 are not in both");
        let all: Vec<_> = (0..14).filter_map(|n| a.common_nth(&b, n)).collect();
        assert_eq!(all, (0..200).step_by(15).collect::<Vec<_>>());
        assert_eq!(a.common_nth(&b, 14), None);
        assert_eq!(a.iter().collect::<Vec<_>>(), (0..200).step_by(3).collect::<Vec<_>>());
        assert!(a.remove(15) && !a.remove(15));
        assert!(!a.contains(15) && a.contains(18) && a.len() == 66);
        assert!(!a.insert(4_000) && !a.contains(4_000) && !a.remove(4_000), "out of range is no piece");
    }

    #[test]
    fn first_of_four_and_prefix() {
        let mut sets = [PieceSet::new(130), PieceSet::new(130), PieceSet::new(130)];
        for set in &mut sets {
            for no in 0..130 {
                set.insert(no);
            }
        }
        let [a, b, mut c] = sets;
        let mut without = PieceSet::new(130);
        without.insert(0);
        c.remove(1);
        assert_eq!(a.first_of(&b, &c, &without), Some(2));
        assert_eq!(a.first_of_from(64, &b, &c, &without), Some(64));
        assert_eq!((a.prefix(), c.prefix(), without.prefix()), (130, 1, 1));
        assert_eq!(without.first(), Some(0));
    }
}
