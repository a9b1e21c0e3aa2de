//! What was said before changes nothing when it is said again.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use weighlock_protocol::statement::Applied;

use super::Check;
use crate::fold::canon::fold_hash;
use crate::fold::host::EPOCH;
use crate::fold::world::{FoldWorld, shuffle};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Replayed;

impl Check for Replayed {
    fn name(&self) -> &'static str {
        "replayed"
    }

    fn end(&mut self, world: &FoldWorld) -> Result<(), String> {
        let mut rng = ChaCha8Rng::seed_from_u64(world.options().seed);
        let Some(host) = world.circle().into_iter().next() else { return Ok(()) };
        let before = &world.hosts()[host];
        let mut ledger = before.ledger.clone();
        let mut old: Vec<_> = before.store.values().filter_map(|e| ledger.check_stored(e).ok()).collect();
        shuffle(&mut old, &mut rng);
        let new = ledger.apply_all(old).into_iter().find(|applied| *applied != Applied::Duplicate);
        if let Some(applied) = new {
            return Err(format!("host {host} takes what it had for new: {applied:?}"));
        }
        if fold_hash(&ledger, EPOCH, true) != fold_hash(&before.ledger, EPOCH, true) {
            return Err(format!("what host {host} had heard before changed its answers"));
        }
        Ok(())
    }
}
