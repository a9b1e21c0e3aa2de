//! Nobody asks for what was not declared to it on a link that is up.

use std::collections::BTreeMap;
use std::ops::Range;

use weighlock_protocol::wire::bao::{GroupSet, all_groups};
use weighlock_protocol::wire::swarm::Frame;

use super::{Check, Seen};
use crate::world::World;

/// By host and its number of the link: from whom, and what of which layer.
#[derive(Debug, Default)]
pub(super) struct DeclaredOnly {
    heard: BTreeMap<(u32, u32), Heard>,
}

#[derive(Debug, Default)]
struct Heard {
    peer: u32,
    work: u32,
    groups: BTreeMap<u32, GroupSet>,
}

impl Heard {
    fn pieces(&mut self, world: &World, pieces: &[u32], there: bool) {
        let space = world.space(self.work);
        for piece in pieces.iter().filter(|piece| (**piece as usize) < space.count()) {
            for part in space.parts(*piece) {
                let Some(layer) = world.layout().index_of(&space.layer_id(part.layer)) else {
                    continue;
                };
                let groups = GroupSet::from(part.groups.clone());
                let known = self.groups.entry(layer).or_default();
                if there {
                    *known |= groups;
                } else {
                    *known -= groups;
                }
            }
        }
    }
}

impl Check for DeclaredOnly {
    fn name(&self) -> &'static str {
        "only declared ranges are asked for"
    }

    fn wants_frames(&self) -> bool {
        true
    }

    fn see(&mut self, world: &World, seen: &Seen<'_>) -> Result<(), String> {
        match seen {
            Seen::LinkUp { by, link, peer, work } => {
                self.heard.insert((*by, *link), Heard { peer: *peer, work: *work, groups: BTreeMap::new() });
            }
            Seen::LinkDown { by, link } => {
                self.heard.remove(&(*by, *link));
            }
            Seen::Frame { to, link, frame } => {
                let Some(heard) = self.heard.get_mut(&(*to, *link)) else {
                    return Ok(());
                };
                match frame {
                    Frame::Bitfield { layers } => {
                        let names = &world.layout().models[heard.work as usize].layers;
                        for (place, groups) in layers {
                            let Some(layer) = names.get(*place as usize) else {
                                continue;
                            };
                            let all = all_groups(world.layout().layers[*layer as usize].size);
                            *heard.groups.entry(*layer).or_default() |= groups & &all;
                        }
                    }
                    Frame::News { held, .. } => heard.pieces(world, held, true),
                    Frame::Lost { pieces } => heard.pieces(world, pieces, false),
                    // A grant of a named piece declares it.
                    Frame::Grant { piece: Some(piece) } => heard.pieces(world, &[*piece], true),
                    _ => {}
                }
            }
            Seen::Asked { by, from, parts, .. } => {
                let links: Vec<&Heard> =
                    self.heard.range((*by, 0)..(*by + 1, 0)).map(|(_, heard)| heard).collect();
                for (layer, range) in *parts {
                    if !declared(&links, *from, *layer, range) {
                        return Err(format!(
                            "host {by} asked {from} for {range:?} of layer {layer}, which it never declared"
                        ));
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}

fn declared(links: &[&Heard], from: u32, layer: u32, range: &Range<u64>) -> bool {
    let mut left = GroupSet::from(range.clone());
    for heard in links.iter().filter(|heard| heard.peer == from) {
        if let Some(groups) = heard.groups.get(&layer) {
            left -= groups.clone();
        }
    }
    left.is_empty()
}
