//! What hostile hosts do beside their state machine, and the death of the seeds.

use std::ops::Range;

use weighlock_protocol::Time;
use weighlock_protocol::wire::swarm::Frame;

use super::{Event, World};
use crate::cast::Role;
use crate::disk::Disk;
use crate::faults::Trouble;
use crate::host::{Host, LinkState};
use crate::layout::Layout;
use crate::options::Options;
use crate::scenario::SeedDeath;

/// Time between two deeds.
const DEED_NS: u64 = 100_000_000;
/// Frames that a flooder sends on each link per deed.
const FLOOD_FRAMES: u32 = 1_000;
/// Requests that a greedy host makes per deed.
const GREEDY_REQUESTS: usize = 100;

/// The seeds die once others hold enough of what they released.
#[derive(Debug)]
pub(super) struct Death {
    plan: SeedDeath,
    released: Disk,
    lacks: u64,
    total: u64,
}

impl Death {
    /// As the scenario wants it.
    pub(super) fn of(options: &Options, layout: &Layout, hosts: &[Host]) -> Option<Self> {
        let plan = options.scenario.seed_death(options)?;
        let released = Disk::new(layout);
        let layers: Vec<u32> = (0..).take(layout.layers.len()).collect();
        let total = released.lacks_bytes(layout, &layers);
        let any = hosts.iter().any(|host| host.player.role == Role::Seed);
        any.then_some(Self { plan, released, lacks: total, total })
    }
}

impl World {
    /// A range of a seed was stored by another host.
    pub(super) fn seed_released(&mut self, from: u32, stored: &[(u32, Range<u64>)]) {
        let Some(death) = self.death.as_mut().filter(|_| self.hosts[from as usize].player.role == Role::Seed)
        else {
            return;
        };
        for (layer, groups) in stored {
            death.lacks -= death.released.add(&self.layout, *layer, groups);
        }
        let out = u128::from(death.total - death.lacks) * 1_000;
        if out < u128::from(death.total) * u128::from(death.plan.after_permille) {
            return;
        }
        let plan = death.plan;
        self.death = None;
        for seed in (0..).zip(&self.hosts).filter(|(_, host)| host.player.role == Role::Seed) {
            // After what happens now, so that nobody's input is cut short.
            self.queue.push(self.now, Event::Trouble(Box::new(Trouble::Crash(seed.0))));
            if let Some(away) = plan.returns_after_bounds_permille {
                let ns = u128::from(self.bound_ns) * u128::from(away) / 1_000;
                let at = Time(self.now.0 + u64::try_from(ns).unwrap_or(0));
                self.heal = self.heal.max(at);
                self.queue.push(at, Event::Trouble(Box::new(Trouble::Restart(seed.0))));
            }
        }
    }

    pub(super) fn begin_harm(&mut self, index: u32) {
        let host = &self.hosts[index as usize];
        if matches!(host.player.role, Role::Flooder | Role::Garbler | Role::Greedy) {
            let life = host.life;
            self.queue.push(Time(self.now.0 + DEED_NS), Event::Harm { host: index, life });
        }
    }

    pub(super) fn harm(&mut self, index: u32, life: u32) {
        let host = &self.hosts[index as usize];
        if host.life != life {
            return;
        }
        self.counts.harm += 1;
        match host.player.role {
            Role::Flooder => self.flood(index),
            Role::Garbler => self.garble(index),
            Role::Greedy => self.grab(index),
            _ => {}
        }
        self.queue.push(Time(self.now.0 + DEED_NS), Event::Harm { host: index, life });
    }

    fn flood(&mut self, index: u32) {
        for number in self.open_links(index) {
            for nth in 0..FLOOD_FRAMES {
                let frame = match nth % 3 {
                    0 => Frame::News { held: vec![0], load: 0 },
                    1 => Frame::Ask { piece: 0, urgent: true },
                    _ => Frame::Decline { piece: None, load: 0 },
                };
                self.send_frame(index, weighlock_protocol::swarm::LinkId(number), frame);
            }
        }
    }

    fn garble(&mut self, index: u32) {
        for number in self.open_links(index) {
            let link = weighlock_protocol::swarm::LinkId(number);
            let frame = match self.draw() % 5 {
                0 => Frame::News { held: vec![u32::MAX, 7], load: 255 },
                1 => Frame::Bitfield { layers: vec![(u32::MAX, (0..u64::MAX).into())] },
                2 => Frame::Begin { piece_bytes: 12_345, rack: None, releasing: false },
                3 => Frame::Ask { piece: u32::MAX - 1, urgent: true },
                _ => Frame::Grant { piece: Some(u32::MAX) },
            };
            self.send_frame(index, link, frame);
        }
    }

    fn grab(&mut self, index: u32) {
        let up = |number: &u32| self.hosts[index as usize].links[*number as usize].state == LinkState::Up;
        let peers: Vec<u32> = self.open_links(index).into_iter().filter(up).collect();
        for nth in 0..GREEDY_REQUESTS {
            let Some(number) = peers.get(nth % peers.len().max(1)) else {
                return;
            };
            let peer = self.hosts[index as usize].links[*number as usize].peer;
            let layer = self.draw() % self.layout.layers.len() as u64;
            let layer = u32::try_from(layer).unwrap_or(0);
            let blocks = self.layout.blocks(layer);
            let block = blocks.start + u32::try_from(self.draw() % blocks.len() as u64).unwrap_or(0);
            let groups = self.layout.groups_of(layer, block);
            // Also of what the peer never declared.
            self.request(index, None, peer, layer, groups);
        }
    }
}
