//! Some hosts come while it runs, and after: they find the others and take little longer than their own download.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use weighlock_protocol::Time;

use crate::cast::{self, Player, Role};
use crate::layout::Layout;

/// One fetching host in so many comes late.
const ONE_IN: usize = 3;

pub(super) fn cast(layout: &Layout, cast: &mut [Player], rng: &mut ChaCha8Rng) {
    let bound = cast::bound_ns(layout, cast, 1);
    let staying = cast.iter_mut().filter(|player| player.role == Role::Fetcher && player.leaves.is_none());
    for player in staying.skip(1).step_by(ONE_IN) {
        player.start = Time(rng.random_range(bound / 4..bound * 2 + 2));
        player.late = true;
    }
}
