//! Who says that a layer or a manifest is complete has all of it, and who has all of a manifest says so.

use std::collections::BTreeSet;

use super::{Check, Seen};
use crate::cast::Role;
use crate::world::World;

#[derive(Debug, Default)]
pub(super) struct Complete {
    said: BTreeSet<(u32, u32)>,
    /// Crashed or spoiled: what it said before does not count, what it has it may have had at the start.
    blurred: BTreeSet<u32>,
}

impl Check for Complete {
    fn name(&self) -> &'static str {
        "complete means complete"
    }

    fn see(&mut self, world: &World, seen: &Seen<'_>) -> Result<(), String> {
        match seen {
            Seen::SaysComplete { by, work } => {
                self.said.insert((*by, *work));
                let host = &world.hosts()[*by as usize];
                let progress = host.progress.iter().find(|progress| progress.work == *work);
                let lacks = progress.map_or(0, |progress| progress.lacks);
                if lacks > 0 && host.player.role != Role::FalseAnnouncer {
                    return Err(format!(
                        "host {by} says manifest {work} is complete and lacks {lacks} bytes"
                    ));
                }
            }
            Seen::SaysLayerComplete { by, layer } => {
                let host = &world.hosts()[*by as usize];
                let lacks = host.disk.lacks_bytes(world.layout(), &[*layer]);
                if lacks > 0 {
                    return Err(format!("host {by} says layer {layer} is complete and lacks {lacks} bytes"));
                }
            }
            Seen::Crashed { host } | Seen::Rotten { host } => {
                self.blurred.insert(*host);
            }
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, world: &World) -> Result<(), String> {
        for (index, host) in (0..).zip(world.hosts()) {
            if !host.player.counts() || self.blurred.contains(&index) {
                continue;
            }
            for progress in &host.progress {
                let has = progress.lacked > 0 && progress.lacks == 0;
                if has
                    && !self.said.contains(&(index, progress.work))
                    && progress.finished != Some(world.now())
                {
                    return Err(format!(
                        "host {index} has all of manifest {} and did not say so",
                        progress.work
                    ));
                }
            }
        }
        Ok(())
    }
}
