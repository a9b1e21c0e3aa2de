//! Racks: one copy of a piece enters a rack, fetched by the host whose turn it is.

use std::time::Duration;

use super::Swarm;
use super::io::{PieceNo, WorkId};
use super::set::PieceSet;
use super::timers::Due;
use super::work::Work;
use crate::id::KeyId;
use crate::time::Time;

/// Whose turn it is to fetch each piece from outside the rack.
#[derive(Debug)]
pub(super) struct Turns {
    mates: Vec<KeyId>,
    /// Hosts of the rack that come before this one, by piece.
    rank: Vec<u8>,
    /// When a neighbour outside was first seen to have the piece, in milliseconds; 0 for not yet.
    seen_ms: Vec<u32>,
    /// Pieces that this host may fetch from outside now.
    pub(super) allowed: PieceSet,
}

impl Turns {
    /// `mates` are the other hosts of the rack that take part.
    pub(super) fn new(me: KeyId, mut mates: Vec<KeyId>, count: usize) -> Self {
        mates.sort_unstable();
        let keys: Vec<u64> = mates.iter().map(short).collect();
        let own = short(&me);
        let (mut rank, mut allowed) = (vec![0u8; count], PieceSet::new(count));
        for (piece, rank) in (0..).zip(&mut rank) {
            let mine = order(own, piece);
            let before = keys.iter().filter(|key| order(**key, piece) < mine).count();
            *rank = u8::try_from(before).unwrap_or(u8::MAX);
            if before == 0 {
                allowed.insert(piece);
            }
        }
        Self { mates, rank, seen_ms: vec![0; count], allowed }
    }

    pub(super) fn is_for(&self, mates: &[KeyId]) -> bool {
        self.mates == mates
    }

    /// A neighbour outside has the piece.
    pub(super) fn seen(&mut self, now: Time, piece: PieceNo) {
        if let Some(seen) = self.seen_ms.get_mut(piece as usize)
            && *seen == 0
        {
            *seen = ms(now);
        }
    }

    /// Lets this host take the turns that others did not.
    fn take(&mut self, now: Time, turn_ms: u64) {
        let now = ms(now);
        for (piece, (rank, seen)) in (0..).zip(self.rank.iter().zip(&self.seen_ms)) {
            if *seen != 0 && u64::from(now.wrapping_sub(*seen)) >= u64::from(*rank) * turn_ms {
                self.allowed.insert(piece);
            }
        }
    }
}

/// Pieces of which this host, among the first holders, is the owner (rendezvous hashing).
pub(super) fn owned(me: KeyId, others: &[KeyId], count: usize) -> PieceSet {
    let keys: Vec<u64> = others.iter().map(short).collect();
    let own = short(&me);
    let mut owned = PieceSet::new(count);
    for piece in 0..PieceNo::try_from(count).unwrap_or(PieceNo::MAX) {
        let mine = order(own, piece);
        if keys.iter().all(|key| order(*key, piece) > mine || (order(*key, piece) == mine && *key > own)) {
            owned.insert(piece);
        }
    }
    owned
}

/// Milliseconds, never 0, for what is less than 49 days apart: a daemon may run for longer.
fn ms(now: Time) -> u32 {
    let low = (now.0 / 1_000_000 + 1) & u64::from(u32::MAX);
    u32::try_from(low).unwrap_or(u32::MAX).max(1)
}

/// Host keys are random (Ed25519 points); eight bytes of them, mixed, tell hosts apart well enough for a fair share.
fn short(key: &KeyId) -> u64 {
    key.0.chunks_exact(8).fold(0, |sum, bytes| {
        let mut word = [0; 8];
        word.copy_from_slice(bytes);
        mix(sum ^ u64::from_le_bytes(word))
    })
}

fn order(key: u64, piece: PieceNo) -> u64 {
    mix(key ^ u64::from(piece).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Swarm {
    /// The hosts of this host's rack may have changed.
    pub(super) fn set_turns(&mut self, id: WorkId) {
        let (Some(rack), Some(work)) = (self.rack, self.works.get_mut(&id)) else {
            return;
        };
        let mates: Vec<KeyId> = work
            .candidates
            .iter()
            .filter(|(_, known)| known.rack == Some(rack))
            .map(|(key, _)| *key)
            .collect();
        if work.turns.as_ref().is_some_and(|turns| turns.is_for(&mates)) {
            return;
        }
        let mut turns = Turns::new(self.me, mates, work.pieces.count());
        if let Some(old) = work.turns.take() {
            turns.seen_ms = old.seen_ms;
            old.allowed.iter().for_each(|piece| {
                turns.allowed.insert(piece);
            });
        }
        for at in 0..work.links().len() {
            if !work.links()[at].near {
                let have: Vec<PieceNo> = work.links()[at].have().iter().collect();
                have.into_iter().for_each(|piece| turns.seen(self.now, piece));
            }
        }
        work.turns = Some(turns);
        if !work.pieces.is_complete() {
            self.timers
                .set_earlier(Due::Turn(id), self.now + Duration::from_millis(self.config.rack_turn_ms));
        }
    }

    pub(super) fn turn(&mut self, id: WorkId) {
        let (now, turn_ms) = (self.now, self.config.rack_turn_ms);
        let Some(work) = self.works.get_mut(&id) else {
            return;
        };
        if let Some(turns) = &mut work.turns
            && !work.pieces.is_complete()
        {
            turns.take(now, turn_ms);
            self.timers.set(Due::Turn(id), now + Duration::from_millis(turn_ms));
            self.import(id);
        }
    }
}

/// True if the piece may be fetched from a neighbour outside the rack.
pub(super) fn may_import(work: &Work, piece: PieceNo) -> bool {
    work.turns.as_ref().is_none_or(|turns| turns.allowed.contains(piece) && !work.near_set.contains(piece))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_piece_has_one_owner_and_shares_are_fair() {
        let keys: Vec<KeyId> = (0..5u8).map(|n| KeyId([n; 32])).collect();
        let mut owners = vec![0; 1_000];
        for me in &keys {
            let others: Vec<KeyId> = keys.iter().filter(|key| *key != me).copied().collect();
            let owned = owned(*me, &others, 1_000);
            assert!((140..260).contains(&owned.len()), "{}", owned.len());
            owned.iter().for_each(|piece| owners[piece as usize] += 1);
            let turns = Turns::new(*me, others, 1_000);
            assert_eq!(turns.allowed, owned, "the owner has the first turn");
        }
        assert!(owners.iter().all(|count| *count == 1));
    }

    #[test]
    fn the_next_in_order_takes_over_after_a_turn() {
        let keys: Vec<KeyId> = (0..3u8).map(|n| KeyId([n; 32])).collect();
        let mut turns = Turns::new(keys[0], keys[1..].to_vec(), 300);
        let ms = |n: u64| Time(n * 1_000_000);
        for piece in 0..200 {
            turns.seen(ms(10), piece);
        }
        let first = turns.allowed.len();
        turns.take(ms(100), 1_000);
        assert_eq!(turns.allowed.len(), first);
        turns.take(ms(1_100), 1_000);
        let second = turns.allowed.len();
        assert!(second > first);
        turns.take(ms(2_100), 1_000);
        assert!(turns.allowed.len() > second);
        assert!((0..200).all(|piece| turns.allowed.contains(piece)), "in the end everyone may");
        assert!((200..300).any(|piece| !turns.allowed.contains(piece)), "not seen, no turn");
    }
}
