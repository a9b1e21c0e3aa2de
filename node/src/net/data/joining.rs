//! Strangers at the door, by address: few at once, and who says nothing makes room for the next.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::net::site::site;

/// Those who are joining. A flood that only holds places open keeps nobody out: the longest silent one goes first.
pub(super) struct Joining {
    places: Mutex<Places>,
    total_max: usize,
    per_address_max: usize,
}

#[derive(Default)]
struct Places {
    next: u64,
    /// In the order of their arrival.
    taken: BTreeMap<u64, Taken>,
}

struct Taken {
    address: IpAddr,
    judged: bool,
    put_out: CancellationToken,
}

/// A place at the door; given back on drop.
pub(super) struct Place<'a> {
    joining: &'a Joining,
    id: u64,
    put_out: CancellationToken,
}

impl Joining {
    pub(super) fn new(total_max: usize, per_address_max: usize) -> Self {
        Self { places: Mutex::default(), total_max, per_address_max }
    }

    /// A place for a stranger, if there is one or one can be made. `None` while all are being judged.
    pub(super) fn enter(&self, address: IpAddr) -> Option<Place<'_>> {
        let address = site(address);
        let mut places = self.lock();
        let here = places.taken.values().filter(|taken| taken.address == address).count();
        let crowded = here >= self.per_address_max;
        if crowded || places.taken.len() >= self.total_max {
            let may_go = |taken: &Taken| !taken.judged && (!crowded || taken.address == address);
            let longest = places.taken.iter().find(|(_, taken)| may_go(taken)).map(|(id, _)| *id)?;
            if let Some(taken) = places.taken.remove(&longest) {
                taken.put_out.cancel();
            }
        }
        let (id, put_out) = (places.next, CancellationToken::new());
        places.next += 1;
        places.taken.insert(id, Taken { address, judged: false, put_out: put_out.clone() });
        Some(Place { joining: self, id, put_out })
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place<'_> {
    /// Returns once the place was given to somebody else.
    pub(super) async fn put_out(&self) {
        self.put_out.cancelled().await;
    }

    /// While its request is judged nobody is put out.
    pub(super) fn judged(&self, judged: bool) {
        if let Some(taken) = self.joining.lock().taken.get_mut(&self.id) {
            taken.judged = judged;
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.joining.lock().taken.remove(&self.id);
    }
}

/// Handshakes under way, by address.
pub(super) struct Handshakes {
    counts: Mutex<BTreeMap<IpAddr, usize>>,
    per_address_max: usize,
}

/// One handshake; counted until it is dropped.
pub(super) struct Handshake<'a> {
    handshakes: &'a Handshakes,
    address: IpAddr,
}

impl Handshakes {
    pub(super) fn new(per_address_max: usize) -> Self {
        Self { counts: Mutex::default(), per_address_max }
    }

    /// Whether another may begin from there.
    pub(super) fn begin(&self, address: IpAddr) -> Option<Handshake<'_>> {
        let address = site(address);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        if *count >= self.per_address_max {
            return None;
        }
        *count += 1;
        Some(Handshake { handshakes: self, address })
    }
}

impl Drop for Handshake<'_> {
    fn drop(&mut self) {
        let mut counts = self.handshakes.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn the_longest_silent_stranger_makes_room() {
        let joining = Joining::new(4, 2);
        let first = joining.enter(ip(1)).expect("room");
        let second = joining.enter(ip(1)).expect("room");
        first.judged(true);
        let third = joining.enter(ip(1)).expect("the second is silent");
        assert_eq!((first.put_out.is_cancelled(), second.put_out.is_cancelled()), (false, true));
        third.judged(true);
        assert!(joining.enter(ip(1)).is_none(), "all of that address are being judged");
        drop(second);
        // Other addresses have places of their own, until all are taken.
        let fourth = joining.enter(ip(2)).expect("room");
        let fifth = joining.enter(ip(3)).expect("room");
        let sixth = joining.enter(ip(4)).expect("the fourth is silent");
        assert!(fourth.put_out.is_cancelled() && !fifth.put_out.is_cancelled());
        // Answered, it may be put out again; gone, it leaves its place.
        first.judged(false);
        let seventh = joining.enter(ip(1)).expect("the first has its answer");
        assert!(first.put_out.is_cancelled());
        drop((third, fifth, sixth, seventh));
        assert_eq!(joining.lock().taken.len(), 0);
    }

    #[test]
    fn one_address_never_takes_all_handshakes() {
        let handshakes = Handshakes::new(2);
        let site: IpAddr = "2001:db8::1".parse().expect("an address");
        let one = handshakes.begin(site).expect("room");
        let _two = handshakes.begin("2001:db8::ffff:2".parse().expect("an address")).expect("room");
        assert!(handshakes.begin("2001:db8::3".parse().expect("an address")).is_none(), "the same network");
        let _other = handshakes.begin("2001:db8:0:1::1".parse().expect("an address")).expect("another");
        drop(one);
        assert!(handshakes.begin(site).is_some());
    }
}
