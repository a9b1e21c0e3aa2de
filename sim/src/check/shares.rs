//! Several manifests at once get fair shares: when a host has half of all its bytes, none is far behind the others.

use std::collections::BTreeSet;

use super::{Check, Seen};
use crate::cast::Role;
use crate::world::World;

/// The slowest manifest must have at least so much of the mean progress, in percent.
const SHARE_PERCENT: u64 = 50;

#[derive(Debug, Default)]
pub(crate) struct Shares {
    seen: BTreeSet<u32>,
}

impl Check for Shares {
    fn name(&self) -> &'static str {
        "manifests get fair shares"
    }

    fn see(&mut self, world: &World, seen: &Seen<'_>) -> Result<(), String> {
        let Seen::Received { by, .. } = seen else {
            return Ok(());
        };
        let host = &world.hosts()[*by as usize];
        if host.progress.len() < 2 || host.player.role != Role::Fetcher || self.seen.contains(by) {
            return Ok(());
        }
        let lacked: u64 = host.progress.iter().map(|progress| progress.lacked).sum();
        if host.lacks_bytes() * 2 > lacked {
            return Ok(());
        }
        self.seen.insert(*by);
        let permille = |progress: &crate::host::Progress| {
            (progress.lacked - progress.lacks.min(progress.lacked)) * 1_000 / progress.lacked.max(1)
        };
        let shares: Vec<u64> = host.progress.iter().map(permille).collect();
        let mean = shares.iter().sum::<u64>() / shares.len() as u64;
        let least = shares.iter().min().copied().unwrap_or(0);
        if least * 100 < mean * SHARE_PERCENT {
            return Err(format!(
                "host {by} has {shares:?} thousandths of its manifests when it has half of all"
            ));
        }
        Ok(())
    }
}
