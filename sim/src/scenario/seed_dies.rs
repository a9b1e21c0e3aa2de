//! The seeds die for good once every piece is held by another host, or earlier and they return: all finish.

use crate::options::{Faults, Options};

/// When the seeds die.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeedDeath {
    /// Once other hosts stored this share of all bytes from them, in thousandths.
    pub after_permille: u32,
    /// How long they are away, in thousandths of the bound. None: for good.
    pub returns_after_bounds_permille: Option<u32>,
}

/// Even seeds of the run: for good. Odd ones: earlier, and they return.
pub(super) fn plan(options: &Options) -> SeedDeath {
    if options.seed.is_multiple_of(2) {
        return SeedDeath { after_permille: 1_000, returns_after_bounds_permille: None };
    }
    let drawn = u32::try_from(options.seed / 2 % 1_000).unwrap_or(0);
    SeedDeath { after_permille: 1 + drawn * 997 / 1_000, returns_after_bounds_permille: Some(500 + drawn) }
}

/// Nothing else takes what may be the last copy: nobody leaves and no disk rots.
pub(super) fn apply(options: &mut Options) {
    options.churn_permille = 0;
    options.faults = Faults { rots: 0, ..options.faults };
}
