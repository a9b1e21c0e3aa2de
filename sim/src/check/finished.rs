//! Once the faults are over, everyone who fetches finishes.

use std::fmt::Write as _;

use weighlock_protocol::swarm::WorkId;

use super::{Check, Seen};
use crate::host::Host;
use crate::world::World;

#[derive(Debug, Default)]
pub(super) struct Finished;

impl Check for Finished {
    fn name(&self) -> &'static str {
        "everyone finishes"
    }

    fn see(&mut self, _: &World, _: &Seen<'_>) -> Result<(), String> {
        Ok(())
    }

    fn end(&mut self, world: &World) -> Result<(), String> {
        let late =
            (0..).zip(world.hosts()).filter(|(_, host)| host.player.counts() && host.finished.is_none());
        let late: Vec<(u32, &Host)> = late.collect();
        match late.first() {
            None => Ok(()),
            Some((first, host)) => Err(format!(
                "{} hosts did not finish by {:.3} s, the first is host {first}, which lacks {} bytes{}",
                late.len(),
                world.now().0 as f64 / 1e9,
                host.lacks_bytes(),
                plight(world, host),
            )),
        }
    }
}

/// What the host lacks and who around it could help.
fn plight(world: &World, host: &Host) -> String {
    let mut out = String::new();
    let Some(swarm) = &host.swarm else {
        return "; it is down".into();
    };
    for progress in host.progress.iter().filter(|progress| progress.lacks > 0) {
        let (work, space) = (WorkId(progress.work), world.space(progress.work));
        let Some(held) = swarm.held(work) else { continue };
        let missing: Vec<u32> = (0..).take(space.count()).filter(|piece| !held.contains(*piece)).collect();
        let _ = write!(
            out,
            "; manifest {}: {} pieces missing, first {:?}",
            progress.work,
            missing.len(),
            &missing[..missing.len().min(4)]
        );
        if let Some(status) = swarm.status(work) {
            let _ = write!(out, ", {} in flight, {} links:", status.in_flight, status.links);
        }
        for link in swarm.links(work) {
            let peer = &world.hosts()[Host::index_of(&link.peer) as usize];
            let _ = write!(
                out,
                " {}({:?}{} has {}{})",
                Host::index_of(&link.peer),
                peer.player.role,
                if link.near { " near" } else { "" },
                link.have,
                if peer.online { "" } else { " down" },
            );
        }
    }
    for download in &host.downloads {
        let stages = download.open.iter().map(|id| world.transfer(*id).map(|transfer| transfer.stage));
        let stages: Vec<_> = stages.collect();
        let _ = write!(out, "; {} from {}: {stages:?}", download.slot, download.from);
    }
    out
}
