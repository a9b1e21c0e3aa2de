//! Who is connected to whom.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::host::{Host, Role};

/// Connects honest hosts in a ring, so that all of them can hear of everything, and everyone at random beside it.
pub(super) fn connect(hosts: &mut [Host], neighbours: usize, rng: &mut ChaCha8Rng) {
    let honest: Vec<usize> = (0..hosts.len()).filter(|index| hosts[*index].role != Role::Liar).collect();
    let mut links: Vec<(usize, usize)> =
        (0..honest.len()).map(|at| (honest[at], honest[(at + 1) % honest.len()])).collect();
    let wanted = hosts.len() * neighbours.min(hosts.len() - 1) / 2;
    for nth in 0..wanted.saturating_sub(links.len()) {
        let one = nth % hosts.len();
        let other = rng.random_range(0..hosts.len() as u64);
        links.push((one, usize::try_from(other).unwrap_or(0)));
    }
    for (one, other) in links {
        if one != other && !hosts[one].neighbours.contains(&other) {
            hosts[one].neighbours.push(other);
            hosts[other].neighbours.push(one);
        }
    }
    // Liars that nobody knows would rehearse nothing.
    for index in 0..hosts.len() {
        if hosts[index].neighbours.is_empty() {
            let other = honest[index % honest.len()];
            hosts[index].neighbours.push(other);
            hosts[other].neighbours.push(index);
        }
    }
}
