//! The fold does not depend on the order of insertion: one host's statements, in other orders, give the same state.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use weighlock_protocol::statement::{Ledger, LedgerConfig};

use super::Check;
use crate::fold::canon::fold_hash;
use crate::fold::host::EPOCH;
use crate::fold::world::{FoldWorld, pick, shuffle};

/// Orders that are tried.
const ORDERS: usize = 3;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Order;

impl Check for Order {
    fn name(&self) -> &'static str {
        "order"
    }

    fn end(&mut self, world: &FoldWorld) -> Result<(), String> {
        let mut rng = ChaCha8Rng::seed_from_u64(world.options().seed);
        let circle: Vec<usize> = world.circle().into_iter().collect();
        let Some(host) = pick(&circle, &mut rng) else { return Ok(()) };
        let host = &world.hosts()[*host];
        // Without limits, so that order cannot decide who finds room.
        let mut expected = None;
        for _ in 0..ORDERS {
            let mut ledger = Ledger::new(LedgerConfig::new(host.cluster()));
            let mut all: Vec<_> = host.store.values().filter_map(|e| ledger.check_stored(e).ok()).collect();
            if all.len() != host.store.len() {
                return Err("a stored statement is not taken for one".to_owned());
            }
            // Some come twice, some at once with others.
            let again: Vec<_> = all.iter().filter(|_| rng.random_bool(0.2)).cloned().collect();
            all.extend(again);
            shuffle(&mut all, &mut rng);
            let batch = [1, 3, all.len()][rng.random_range(0..3)].max(1);
            for some in all.chunks(batch) {
                ledger.apply_all(some.to_vec());
            }
            let state = (fold_hash(&ledger, EPOCH, true), ledger.summary().clone());
            if *expected.get_or_insert_with(|| state.clone()) != state {
                return Err("the same statements in another order give another state".to_owned());
            }
            let live = (fold_hash(&host.ledger, EPOCH, true), host.ledger.summary().clone());
            if !world.options().flood && live != state {
                return Err("the statements as they came gave another state than the stored ones".to_owned());
            }
        }
        Ok(())
    }
}
