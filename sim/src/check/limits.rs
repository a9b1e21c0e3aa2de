//! Everything that can grow has a limit and keeps to it: links, fetches and bytes in flight, uploads, waiting requests.

use weighlock_protocol::swarm::BUNDLE_LAYERS_MAX;

use super::{Check, Seen};
use crate::transfer::Stage;
use crate::world::World;

#[derive(Debug, Default)]
pub(super) struct Limits;

impl Check for Limits {
    fn name(&self) -> &'static str {
        "limits are kept"
    }

    fn see(&mut self, world: &World, seen: &Seen<'_>) -> Result<(), String> {
        let config = world.config();
        match seen {
            Seen::Linked { by, work } => {
                let links = world.hosts()[*by as usize].link_count(*work);
                if links > config.neighbours_max {
                    return Err(format!("host {by} has {links} links for manifest {work}"));
                }
            }
            Seen::Asked { by, work, parts, .. } => {
                let downloads = &world.hosts()[*by as usize].downloads;
                if downloads.len() + 1 > config.downloads_max {
                    return Err(format!("host {by} has {} fetches in flight", downloads.len() + 1));
                }
                let bytes = |parts: &[(u32, std::ops::Range<u64>)]| -> u64 {
                    parts.iter().map(|(layer, groups)| world.layout().span_bytes(*layer, groups)).sum()
                };
                let in_flight: u64 = downloads.iter().map(|download| bytes(&download.parts)).sum();
                if in_flight > 0 && in_flight + bytes(parts) > config.in_flight_bytes_max {
                    return Err(format!("host {by} has {} bytes in flight", in_flight + bytes(parts)));
                }
                if bytes(parts) > world.space(*work).piece_bytes() {
                    return Err(format!("host {by} asked for {} bytes at once", bytes(parts)));
                }
            }
            Seen::Load { server } => {
                let host = &world.hosts()[*server as usize];
                let uploads_max = config.uploads_max.max(config.uploads_release_max);
                if host.uploading > uploads_max {
                    // The files of a bundle are requests of their own; they count as one upload.
                    let running = host.serving.iter().filter_map(|id| world.transfer(*id));
                    let running = running.filter(|t| matches!(t.stage, Stage::Flowing(_) | Stage::Withheld));
                    let mut uploads: Vec<_> = running.map(|t| (t.by, t.slot)).collect();
                    uploads.sort_unstable();
                    uploads.dedup();
                    // What was asked for without a promise may be taken for one more file of a promised bundle.
                    let promised: Vec<u32> =
                        uploads.iter().filter(|(_, slot)| slot.is_some()).map(|(by, _)| *by).collect();
                    uploads.retain(|(by, slot)| slot.is_some() || !promised.contains(by));
                    if uploads.len() > uploads_max {
                        return Err(format!(
                            "host {server} has {} uploads at a time: {uploads:?}",
                            uploads.len()
                        ));
                    }
                }
                let waiting = host.serving.len() - host.uploading;
                // Requests that were promised come on top: one for each file of a bundle.
                let promised = (uploads_max + config.grants_ahead_max) * BUNDLE_LAYERS_MAX;
                if waiting > config.requests_max + promised {
                    return Err(format!("{waiting} requests wait at host {server}"));
                }
                // The newest comes last.
                let by = |id: &u64| world.transfer(*id).filter(|t| t.stage == Stage::Waiting).map(|t| t.by);
                let many = host.serving.len() > config.requests_per_peer_max + promised;
                if let Some(newest) = host.serving.last().filter(|_| many).and_then(by) {
                    let same = host.serving.iter().filter(|id| by(id) == Some(newest)).count();
                    if same > config.requests_per_peer_max + promised {
                        return Err(format!("{same} requests of {newest} wait at host {server}"));
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}
