//! Nothing that is stored is asked for again, not even after a restart, and nothing is asked for more than twice at a
//! time: the second time is a hedge.

use super::{Check, Seen};
use crate::world::World;

#[derive(Debug, Default)]
pub(super) struct Once;

impl Check for Once {
    fn name(&self) -> &'static str {
        "nothing stored is asked for again"
    }

    fn see(&mut self, world: &World, seen: &Seen<'_>) -> Result<(), String> {
        let Seen::Asked { by, from, parts, .. } = seen else {
            return Ok(());
        };
        let host = &world.hosts()[*by as usize];
        for (layer, groups) in *parts {
            let same = |(other, range): &(u32, std::ops::Range<u64>)| {
                other == layer && range.start < groups.end && groups.start < range.end
            };
            let others = host.downloads.iter().filter(|download| download.parts.iter().any(same));
            let (count, twice) =
                others.fold((0, false), |(count, twice), other| (count + 1, twice || other.from == *from));
            // What a fetch in flight has stored of a bundle is known when all of it ends.
            if count == 0 && host.disk.touches(world.layout(), *layer, groups) {
                return Err(format!("host {by} asked for {groups:?} of layer {layer} and has some of it"));
            }
            if count > 1 {
                return Err(format!(
                    "host {by} asked {count} others for {groups:?} of layer {layer} already"
                ));
            }
            if twice {
                return Err(format!("host {by} asked {from} twice for {groups:?} of layer {layer}"));
            }
        }
        Ok(())
    }
}
